// y = x * w^T in one order of arithmetic, whatever the number of rows.
//
// A weight of K inputs (padded with zeros to a multiple of 128) is cut along K into four parts. A part is one chain of
// `multiply_tile` over its K, ascending, from zero; the parts are added as ((p0 + p1) + p2) + p3. That is all of the order
// there is. How outputs, rows and parts are given to blocks and warps differs by the number of rows, and changes no bit.
//
// Weights stand on the 16-wide side of the matrix unit, rows on the 8-wide one, so one row wastes the least. Weights are
// packed at load: tiles of 16 outputs; in each, chunks of 32 inputs; in each, two steps of 16 bytes a lane. Lane
// `4 g + t` of a step `s` has, of outputs (g, g + 8, g, g + 8), the inputs (8t + 4s + 0, 1) twice and (8t + 4s + 2, 3) twice:
// each lane loads what its matrix unit needs, in whole lines of memory, and of a row the 8 inputs that lie together.
#pragma once

#include "math.cuh"

constexpr u32 PARTS = 4;
constexpr u32 CHUNK = 32;
/// Bytes of one chunk of one tile.
constexpr u32 TILE_BYTES = 1024;
/// Positions of one page of the cache.
constexpr u32 PAGE = 16;

/// What becomes of the sums.
enum Then : u32 {
    /// `y` f32 `[row][stride_y]`.
    STORE = 0,
    /// `y` f32 `[row][stride_y]`, added to what is there.
    ADD = 1,
    /// Tiles of 8 gates and 8 ups: `y` bf16 `[row][stride_y]` = silu(gate) * up.
    GATE = 2,
    /// Tiles of 8 dimensions from the lower half of a head and their 8 partners from the upper half, heads in the order
    /// queries, keys, values. Queries and keys are turned by the row's position (arXiv 2104.09864); `y` are the queries, bf16
    /// `[row][stride_y]`; keys and values go to the row's slot of the cache, if it has one.
    TURN = 3,
};

/// One multiplication. Rows of `x` and `y` exist up to a whole tile of rows; what lies beyond the live rows is read and
/// written, and means nothing.
struct Matmul {
    /// Packed bf16, `[outputs / 16, up to whole blocks][chunks][1024 bytes]`.
    const u8* weights;
    /// bf16 `[row][stride_x]`, zero from the weight's own K on.
    const u16* x;
    void* y;
    /// Cosines and sines, f32 `[position][2][head_dim / 2]`.
    const float* turns;
    /// By row.
    const i32* positions;
    /// By row: where its key and value go; negative for a row that has no place.
    const i32* slots;
    /// bf16 `[page][kv head][16][head_dim]`.
    u16* keys;
    u16* values;
    /// Room for the parts where blocks share a tile: 4 * the padded outputs * the rows, f32.
    float* partials;
    /// By tile, zero: how many of its blocks have come to their end.
    u32* arrived;
    u32 chunks;
    /// Outputs that count: numbers in a row of `y` (STORE, ADD, GATE), or heads of all kinds times head_dim (TURN).
    u32 outputs;
    u32 stride_x;
    u32 stride_y;
    u32 then;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
};

/// Where a slot's key or value of one head begins.
DEVICE u64 cache_at(i32 slot, u32 head, u32 kv_heads, u32 head_dim) {
    u32 page = u32(slot) / PAGE, lane = u32(slot) % PAGE;
    return ((u64(page) * kv_heads + head) * PAGE + lane) * head_dim;
}

/// Turns one pair of a query or key, or passes one of a value, and stores it.
DEVICE void turn_and_store(const Matmul& m, u32 tile, u32 g, u32 row, float low, float high) {
    u32 each = m.head_dim / 16;
    u32 head = tile / each, at = tile % each * 8 + g, half = m.head_dim / 2;
    if (head >= m.heads + 2 * m.kv_heads) return;
    float a = low, b = high;
    if (head < m.heads + m.kv_heads) {
        const float* turn = m.turns + u64(m.positions[row]) * m.head_dim;
        float cosine = turn[at], sine = turn[half + at];
        a = multiply_add(-high, sine, low * cosine);
        b = multiply_add(low, sine, high * cosine);
    }
    u16* to;
    if (head < m.heads) {
        to = static_cast<u16*>(m.y) + u64(row) * m.stride_y + head * m.head_dim;
    } else {
        i32 slot = m.slots[row];
        if (slot < 0) return;
        bool key = head < m.heads + m.kv_heads;
        u32 kv = head - m.heads - (key ? 0 : m.kv_heads);
        to = (key ? m.keys : m.values) + cache_at(slot, kv, m.kv_heads, m.head_dim);
    }
    to[at] = to_bf16(a);
    to[half + at] = to_bf16(b);
}

/// Does what is to be done with one lane's four sums of a tile: outputs (g, g + 8) of rows (row, row + 1).
DEVICE void finish(const Matmul& m, u32 tile, u32 g, u32 row, const float (&c)[4]) {
    if (m.then == GATE) {
        u32 at = tile * 8 + g;
        if (at >= m.outputs) return;
        u16* y = static_cast<u16*>(m.y) + u64(row) * m.stride_y + at;
        y[0] = to_bf16(silu(c[0]) * c[2]);
        y[m.stride_y] = to_bf16(silu(c[1]) * c[3]);
        return;
    }
    if (m.then == TURN) {
        turn_and_store(m, tile, g, row, c[0], c[2]);
        turn_and_store(m, tile, g, row + 1, c[1], c[3]);
        return;
    }
    float* y = static_cast<float*>(m.y) + u64(row) * m.stride_y;
    for (u32 i = 0; i < 2; i++) {
        u32 at = tile * 16 + g + 8 * i;
        if (at >= m.outputs) continue;
        float* first = y + at;
        float* second = y + m.stride_y + at;
        if (m.then == ADD) {
            *first = *first + c[2 * i];
            *second = *second + c[2 * i + 1];
        } else {
            *first = c[2 * i];
            *second = c[2 * i + 1];
        }
    }
}

/// One chunk: `MT` tiles of outputs by `NT` tiles of rows. `a` are the lane's weights `[tile][step]`, `b` its part of the rows.
template <int MT, int NT>
DEVICE void multiply_chunk(float (&c)[MT][NT][4], const uint4 (&a)[MT][2], const uint4 (&b)[NT]) {
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int m = 0; m < MT; m++) multiply_tile(c[m][n], a[m][0], b[n].x, b[n].y);
    }
#pragma unroll
    for (int n = 0; n < NT; n++) {
#pragma unroll
        for (int m = 0; m < MT; m++) multiply_tile(c[m][n], a[m][1], b[n].z, b[n].w);
    }
}

/// Few rows: a block of four warps has `MT` tiles of outputs, and each warp one part of their K. Every lane streams what its
/// own matrix unit needs through `STAGES` places of its own in shared memory, so nobody waits for anybody until the end.
///
/// Grid: (tiles / MT). Shared memory: `stream_bytes`.
template <int MT, int NT, int STAGES>
DEVICE void stream(const Matmul& m) {
    constexpr u32 STAGE = MT * TILE_BYTES + NT * 512;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 g = lane / 4, t = lane % 4;
    u32 count = m.chunks / PARTS, first = warp * count;
    u32 tile = blockIdx.x * MT;
    u8* mine = shared_memory() + warp * STAGES * STAGE + lane * 16;
    const u8* weights = m.weights + (u64(tile) * m.chunks + first) * TILE_BYTES + lane * 16;
    const u16* x = m.x + u64(g) * m.stride_x + first * CHUNK + t * 8;
    auto begin_weights = [&](u32 i, u32 stage) {
#pragma unroll
        for (int k = 0; k < MT; k++) {
            const u8* from = weights + (u64(k) * m.chunks + i) * TILE_BYTES;
            copy_begin(mine + stage * STAGE + k * TILE_BYTES, from);
            copy_begin(mine + stage * STAGE + k * TILE_BYTES + 512, from + 512);
        }
    };
    auto begin_rows = [&](u32 i, u32 stage) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            copy_begin(mine + stage * STAGE + MT * TILE_BYTES + n * 512, x + u64(n) * 8 * m.stride_x + i * CHUNK);
        }
    };
    let_kernel_behind_begin();
#pragma unroll 1
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < count) begin_weights(i, i);
    }
    wait_for_kernel_before();
#pragma unroll 1
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < count) begin_rows(i, i);
        copy_close();
    }
    float c[MT][NT][4] = {};
    u32 stage = 0, vacant = STAGES - 1;
#pragma unroll 1
    for (u32 i = 0; i < count; i++) {
        copy_wait<STAGES - 2>();
        const u8* at = mine + stage * STAGE;
        uint4 a[MT][2], b[NT];
#pragma unroll
        for (int k = 0; k < MT; k++) {
            a[k][0] = *reinterpret_cast<const uint4*>(at + k * TILE_BYTES);
            a[k][1] = *reinterpret_cast<const uint4*>(at + k * TILE_BYTES + 512);
        }
#pragma unroll
        for (int n = 0; n < NT; n++) b[n] = *reinterpret_cast<const uint4*>(at + MT * TILE_BYTES + n * 512);
        // The place of the chunk before this one: its numbers are in registers, and used.
        u32 next = i + STAGES - 1;
        if (next < count) {
            begin_weights(next, vacant);
            begin_rows(next, vacant);
        }
        copy_close();
        multiply_chunk<MT, NT>(c, a, b);
        vacant = stage;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    copy_wait<0>();
    block_sync();
    float4* sums = reinterpret_cast<float4*>(shared_memory());
#pragma unroll
    for (int k = 0; k < MT; k++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            sums[((warp * MT + k) * NT + n) * WARP + lane] = {c[k][n][0], c[k][n][1], c[k][n][2], c[k][n][3]};
        }
    }
    block_sync();
#pragma unroll 1
    for (u32 item = warp; item < MT * NT; item += PARTS) {
        float4 sum = sums[item * WARP + lane];
        for (u32 part = 1; part < PARTS; part++) {
            float4 more = sums[(part * MT * NT + item) * WARP + lane];
            sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
        }
        float total[4] = {sum.x, sum.y, sum.z, sum.w};
        finish(m, tile + item / NT, g, item % NT * 8 + 2 * t, total);
    }
}

template <int MT, int NT, int STAGES>
DEVICE_MEMBER constexpr u32 stream_bytes() {
    return PARTS * STAGES * (MT * TILE_BYTES + NT * 512);
}

/// Many rows: the warps of a block are `WM` by `WN`, each with `MT` tiles of outputs by `NT` tiles of rows, and share what
/// they load. `gridDim.z` is 1, and a block goes through all parts one after another; or it is 4, and the last block of a
/// tile to end adds what the four have left.
///
/// Grid: (rows / (8 WN NT), tiles / (WM MT), 1 or 4). Shared memory: `share_bytes`.
template <int MT, int NT, int WM, int WN, int STAGES>
DEVICE void share(const Matmul& m) {
    constexpr u32 THREADS = WM * WN * WARP, TILES = WM * MT, ROWS = WN * NT * 8;
    constexpr u32 STAGE = TILES * TILE_BYTES + ROWS * 64;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 g = lane / 4, t = lane % 4;
    u32 each = m.chunks / PARTS;
    bool alone = gridDim.z == 1;
    u32 count = alone ? m.chunks : each, first = alone ? 0 : blockIdx.z * each;
    u32 tile = blockIdx.y * TILES, row = blockIdx.x * ROWS;
    u8* shared = shared_memory();
    const u8* weights = m.weights + (u64(tile) * m.chunks + first) * TILE_BYTES;
    const u16* x = m.x + u64(row) * m.stride_x + first * CHUNK;
    auto begin_weights = [&](u32 i, u32 stage) {
#pragma unroll
        for (u32 k = threadIdx.x; k < TILES * (TILE_BYTES / 16); k += THREADS) {
            u32 in_tile = k / (TILE_BYTES / 16), piece = k % (TILE_BYTES / 16) * 16;
            copy_begin(shared + stage * STAGE + in_tile * TILE_BYTES + piece,
                       weights + (u64(in_tile) * m.chunks + i) * TILE_BYTES + piece);
        }
    };
    auto begin_rows = [&](u32 i, u32 stage) {
#pragma unroll
        for (u32 k = threadIdx.x; k < ROWS * 4; k += THREADS) {
            copy_begin(shared + stage * STAGE + TILES * TILE_BYTES + k * 16,
                       x + u64(k / 4) * m.stride_x + i * CHUNK + k % 4 * 8);
        }
    };
    let_kernel_behind_begin();
#pragma unroll 1
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < count) begin_weights(i, i);
    }
    wait_for_kernel_before();
#pragma unroll 1
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < count) begin_rows(i, i);
        copy_close();
    }
    float c[MT][NT][4] = {};
    float total[MT][NT][4] = {};
    u32 stage = 0, vacant = STAGES - 1, left = each;
    u32 part = 0;
#pragma unroll 1
    for (u32 i = 0; i < count; i++) {
        copy_wait<STAGES - 2>();
        // Everybody has their numbers of the chunk before this one, whose place is filled again.
        block_sync();
        u32 next = i + STAGES - 1;
        if (next < count) {
            begin_weights(next, vacant);
            begin_rows(next, vacant);
        }
        copy_close();
        const u8* at = shared + stage * STAGE;
        uint4 a[MT][2], b[NT];
#pragma unroll
        for (int k = 0; k < MT; k++) {
            const u8* from = at + (warp % WM * MT + k) * TILE_BYTES + lane * 16;
            a[k][0] = *reinterpret_cast<const uint4*>(from);
            a[k][1] = *reinterpret_cast<const uint4*>(from + 512);
        }
#pragma unroll
        for (int n = 0; n < NT; n++) {
            b[n] = *reinterpret_cast<const uint4*>(at + TILES * TILE_BYTES + (warp / WM * NT + n) * 512 + lane * 16);
        }
        multiply_chunk<MT, NT>(c, a, b);
        vacant = stage;
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        if (--left == 0 && alone) {
#pragma unroll
            for (int k = 0; k < MT; k++) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        total[k][n][e] = part == 0 ? c[k][n][e] : total[k][n][e] + c[k][n][e];
                        c[k][n][e] = 0.0f;
                    }
                }
            }
            left = each;
            part++;
        }
    }
    copy_wait<0>();
    u32 my_tile = tile + warp % WM * MT, my_row = row + warp / WM * NT * 8 + 2 * t;
    if (alone) {
        // By way of shared memory, so that what follows is compiled once and not for every tile.
        block_sync();
        float4* mine = reinterpret_cast<float4*>(shared) + threadIdx.x;
#pragma unroll
        for (int k = 0; k < MT; k++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const float(&sum)[4] = total[k][n];
                mine[(k * NT + n) * THREADS] = {sum[0], sum[1], sum[2], sum[3]};
            }
        }
#pragma unroll 1
        for (int i = 0; i < MT * NT; i++) {
            float4 sum = mine[i * THREADS];
            float sums[4] = {sum.x, sum.y, sum.z, sum.w};
            finish(m, my_tile + i / NT, g, my_row + i % NT * 8, sums);
        }
        return;
    }
    u32 place = blockIdx.y * gridDim.x + blockIdx.x;
    float4* room = reinterpret_cast<float4*>(m.partials) + u64(place) * PARTS * MT * NT * THREADS + threadIdx.x;
#pragma unroll
    for (int k = 0; k < MT; k++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            room[u64((blockIdx.z * MT + k) * NT + n) * THREADS] = {c[k][n][0], c[k][n][1], c[k][n][2], c[k][n][3]};
        }
    }
    device_fence();
    block_sync();
    u32* last = reinterpret_cast<u32*>(shared);
    if (threadIdx.x == 0) *last = atomic_add(m.arrived + place, 1);
    block_sync();
    if (*last != PARTS - 1) return;
    device_fence();
    if (threadIdx.x == 0) m.arrived[place] = 0;
#pragma unroll 1
    for (int i = 0; i < MT * NT; i++) {
        float4 sum = room[u64(i) * THREADS];
        for (u32 other = 1; other < PARTS; other++) {
            float4 more = room[u64(other * MT * NT + i) * THREADS];
            sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
        }
        float sums[4] = {sum.x, sum.y, sum.z, sum.w};
        finish(m, my_tile + i / NT, g, my_row + i % NT * 8, sums);
    }
}

template <int MT, int NT, int WM, int WN, int STAGES>
DEVICE_MEMBER constexpr u32 share_bytes() {
    return STAGES * (WM * MT * TILE_BYTES + WN * NT * 8 * 64);
}

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

/// What the end needs of memory besides the sums, fetched while those are taken.
struct Fetched {
    /// ADD: what is there, as the sums lie. TURN: cosine and sine for the first row, and for the second.
    float v[4];
    i32 slots[2];
};

/// Of one lane's four sums of a tile: outputs (g, g + 8) of rows (row, row + 1).
DEVICE void fetch(const Matmul& m, u32 tile, u32 g, u32 row, Fetched& fetched) {
    if (m.then == ADD) {
        const float* y = static_cast<const float*>(m.y) + u64(row) * m.stride_y;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 at = tile * 16 + g + 8 * i;
            if (at >= m.outputs) continue;
            fetched.v[2 * i] = y[at];
            fetched.v[2 * i + 1] = y[m.stride_y + at];
        }
    } else if (m.then == TURN) {
        u32 each = m.head_dim / 16;
        u32 head = tile / each, at = tile % each * 8 + g, half = m.head_dim / 2;
        if (head >= m.heads + 2 * m.kv_heads) return;
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            const float* turn = m.turns + u64(m.positions[row + i]) * m.head_dim;
            fetched.v[2 * i] = turn[at];
            fetched.v[2 * i + 1] = turn[half + at];
            fetched.slots[i] = m.slots[row + i];
        }
    }
}

/// Turns one pair of a query or key, or passes one of a value, and stores it.
DEVICE void turn_and_store(const Matmul& m, u32 tile, u32 g, u32 row, float low, float high, float cosine, float sine,
                           i32 slot) {
    u32 each = m.head_dim / 16;
    u32 head = tile / each, at = tile % each * 8 + g, half = m.head_dim / 2;
    if (head >= m.heads + 2 * m.kv_heads) return;
    float a = low, b = high;
    if (head < m.heads + m.kv_heads) {
        a = multiply_add(-high, sine, low * cosine);
        b = multiply_add(low, sine, high * cosine);
    }
    u16* to;
    if (head < m.heads) {
        to = static_cast<u16*>(m.y) + u64(row) * m.stride_y + head * m.head_dim;
    } else {
        if (slot < 0) return;
        bool key = head < m.heads + m.kv_heads;
        u32 kv = head - m.heads - (key ? 0 : m.kv_heads);
        to = (key ? m.keys : m.values) + cache_at(slot, kv, m.kv_heads, m.head_dim);
    }
    to[at] = to_bf16(a);
    to[half + at] = to_bf16(b);
}

/// Does what is to be done with one lane's four sums of a tile: outputs (g, g + 8) of rows (row, row + 1).
DEVICE void finish(const Matmul& m, u32 tile, u32 g, u32 row, const float (&c)[4], const Fetched& fetched) {
    if (m.then == GATE) {
        u32 at = tile * 8 + g;
        if (at >= m.outputs) return;
        u16* y = static_cast<u16*>(m.y) + u64(row) * m.stride_y + at;
        y[0] = to_bf16(silu(c[0]) * c[2]);
        y[m.stride_y] = to_bf16(silu(c[1]) * c[3]);
        return;
    }
    if (m.then == TURN) {
        turn_and_store(m, tile, g, row, c[0], c[2], fetched.v[0], fetched.v[1], fetched.slots[0]);
        turn_and_store(m, tile, g, row + 1, c[1], c[3], fetched.v[2], fetched.v[3], fetched.slots[1]);
        return;
    }
    float* y = static_cast<float*>(m.y) + u64(row) * m.stride_y;
    bool adds = m.then == ADD;
#pragma unroll
    for (u32 i = 0; i < 2; i++) {
        u32 at = tile * 16 + g + 8 * i;
        if (at >= m.outputs) continue;
        y[at] = adds ? fetched.v[2 * i] + c[2 * i] : c[2 * i];
        y[m.stride_y + at] = adds ? fetched.v[2 * i + 1] + c[2 * i + 1] : c[2 * i + 1];
    }
}

DEVICE float4 added(float4 a, float4 b) { return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w}; }

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

/// A block of four warps has `MT` tiles of outputs, and each warp one part of their K. Every lane streams what its
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
    Place place = place_of(mine);
    const u8* weights = m.weights + (u64(tile) * m.chunks + first) * TILE_BYTES + lane * 16;
    const u16* x = m.x + u64(g) * m.stride_x + first * CHUNK + t * 8;
    u64 next_tile = u64(m.chunks) * TILE_BYTES, next_rows = u64(m.stride_x) * 8;
    auto begin_weights = [&](u32 i, u32 stage) {
#pragma unroll
        for (int k = 0; k < MT; k++) {
            const u8* from = weights + k * next_tile + i * TILE_BYTES;
            copy_begin(place + stage * STAGE + k * TILE_BYTES, from);
            copy_begin(place + stage * STAGE + k * TILE_BYTES + 512, from + 512);
        }
    };
    auto begin_rows = [&](u32 i, u32 stage) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            copy_begin(place + stage * STAGE + MT * TILE_BYTES + n * 512, x + n * next_rows + i * CHUNK);
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
    // Each warp ends every fourth tile.
    constexpr u32 ITEMS = MT * NT, ENDS = (ITEMS + PARTS - 1) / PARTS;
    static_assert(PARTS * ITEMS * 512 <= PARTS * STAGES * STAGE, "the sums fit where the stages were");
    Fetched fetched[ENDS] = {};
#pragma unroll
    for (u32 e = 0; e < ENDS; e++) {
        u32 item = e * PARTS + warp;
        if (item < ITEMS) fetch(m, tile + item / NT, g, item % NT * 8 + 2 * t, fetched[e]);
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
#pragma unroll
    for (u32 e = 0; e < ENDS; e++) {
        u32 item = e * PARTS + warp;
        if (item >= ITEMS) return;
        float4 sum = sums[item * WARP + lane];
#pragma unroll
        for (u32 part = 1; part < PARTS; part++) sum = added(sum, sums[(part * ITEMS + item) * WARP + lane]);
        float total[4] = {sum.x, sum.y, sum.z, sum.w};
        finish(m, tile + item / NT, g, item % NT * 8 + 2 * t, total, fetched[e]);
    }
}

template <int MT, int NT, int STAGES>
DEVICE_MEMBER constexpr u32 stream_bytes() {
    return PARTS * STAGES * (MT * TILE_BYTES + NT * 512);
}

/// The warps of a block are `WM` by `WN`, each with `MT` tiles of outputs by `NT` tiles of rows, and share what
/// they load, two chunks at a time. `gridDim.z` is 1, and a block goes through all parts one after another; or it is 4, and the
/// last block of a tile to end adds what the four have left.
///
/// Grid: (rows / (8 WN NT), tiles / (WM MT), 1 or 4). Shared memory: `share_bytes`.
template <int MT, int NT, int WM, int WN, int STAGES>
DEVICE void share(const Matmul& m) {
    constexpr u32 THREADS = WM * WN * WARP, TILES = WM * MT, ROWS = WN * NT * 8, ITEMS = MT * NT;
    constexpr u32 HALF = TILES * TILE_BYTES + ROWS * 64, STAGE = 2 * HALF;
    static_assert(ITEMS * THREADS * 16 <= STAGES * STAGE, "the sums fit where the stages were");
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u32 g = lane / 4, t = lane % 4;
    u32 each = m.chunks / PARTS, pairs = (each + 1) / 2;
    bool alone = gridDim.z == 1;
    u32 count = alone ? PARTS * pairs : pairs, first = alone ? 0 : blockIdx.z * each;
    u32 tile = blockIdx.y * TILES, row = blockIdx.x * ROWS;
    u8* shared = shared_memory();
    // Each thread copies 16 bytes of every so manieth tile, of one chunk of the two, and of every so manieth row.
    constexpr u32 TILES_AT_ONCE = THREADS / 128, ROWS_AT_ONCE = THREADS / 8;
    u32 tile_half = threadIdx.x % 128 / 64, row_half = threadIdx.x % 8 / 4;
    const u8* weights = m.weights + (u64(tile + threadIdx.x / 128) * m.chunks + first) * TILE_BYTES + threadIdx.x % 128 * 16;
    const u16* x = m.x + u64(row + threadIdx.x / 8) * m.stride_x + first * CHUNK + threadIdx.x % 8 * 8;
    u64 next_tiles = u64(m.chunks) * TILE_BYTES * TILES_AT_ONCE, next_rows = u64(m.stride_x) * ROWS_AT_ONCE;
    Place tile_place = place_of(shared) + tile_half * HALF + threadIdx.x / 128 * TILE_BYTES + threadIdx.x % 64 * 16;
    Place row_place = place_of(shared) + row_half * HALF + TILES * TILE_BYTES + (threadIdx.x / 8 * 4 + threadIdx.x % 4) * 16;
    // The pair of chunks that is loaded next: where it begins in its part, and in all.
    struct Next {
        u32 in_part, chunk;
    };
    auto advance = [&](Next& next) {
        bool ends = next.in_part + 2 >= each;
        next.chunk += ends ? each - next.in_part : 2;
        next.in_part = ends ? 0 : next.in_part + 2;
    };
    auto begin_weights = [&](const Next& next, u32 stage) {
        if (next.in_part + tile_half >= each) return;
        const u8* from = weights + next.chunk * TILE_BYTES;
#pragma unroll
        for (u32 k = 0; k < TILES / TILES_AT_ONCE; k++) {
            copy_begin(tile_place + stage * STAGE + k * TILES_AT_ONCE * TILE_BYTES, from + k * next_tiles);
        }
    };
    auto begin_rows = [&](const Next& next, u32 stage) {
        if (next.in_part + row_half >= each) return;
        const u16* from = x + next.chunk * CHUNK;
#pragma unroll
        for (u32 k = 0; k < ROWS / ROWS_AT_ONCE; k++) {
            copy_begin(row_place + stage * STAGE + k * ROWS_AT_ONCE * 64, from + k * next_rows);
        }
    };
    let_kernel_behind_begin();
    Next next = {0, 0};
#pragma unroll 1
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < count) begin_weights(next, i);
        advance(next);
    }
    wait_for_kernel_before();
    next = {0, 0};
#pragma unroll 1
    for (u32 i = 0; i < STAGES - 1; i++) {
        if (i < count) begin_rows(next, i);
        advance(next);
        copy_close();
    }
    float c[MT][NT][4] = {};
    float total[MT][NT][4] = {};
    u32 stage = 0, vacant = STAGES - 1, left = count;
#pragma unroll 1
    for (bool is_first = true; left > 0; is_first = false) {
#pragma unroll 1
        for (u32 in_part = 0; in_part < each; in_part += 2) {
            copy_wait<STAGES - 2>();
            // Everybody has their numbers of the step before this one, whose place is filled again.
            block_sync();
            if (left >= STAGES) {
                begin_weights(next, vacant);
                begin_rows(next, vacant);
                advance(next);
            }
            copy_close();
            left--;
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                if (in_part + half >= each) break;
                const u8* at = shared + stage * STAGE + half * HALF;
                uint4 a[MT][2], b[NT];
#pragma unroll
                for (int k = 0; k < MT; k++) {
                    const u8* from = at + (warp % WM * MT + k) * TILE_BYTES + lane * 16;
                    a[k][0] = *reinterpret_cast<const uint4*>(from);
                    a[k][1] = *reinterpret_cast<const uint4*>(from + 512);
                }
                const u8* rows_at = at + TILES * TILE_BYTES + warp / WM * NT * 512 + lane * 16;
#pragma unroll
                for (int n = 0; n < NT; n++) b[n] = *reinterpret_cast<const uint4*>(rows_at + n * 512);
                multiply_chunk<MT, NT>(c, a, b);
            }
            vacant = stage;
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
#pragma unroll
        for (int k = 0; k < MT; k++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    total[k][n][e] = is_first ? c[k][n][e] : total[k][n][e] + c[k][n][e];
                    c[k][n][e] = 0.0f;
                }
            }
        }
    }
    copy_wait<0>();
    // By way of memory, so that what follows is compiled once and not for every tile: shared memory if this block has it all.
    u32 place = blockIdx.y * gridDim.x + blockIdx.x;
    float4* room = reinterpret_cast<float4*>(m.partials) + u64(place) * PARTS * ITEMS * THREADS + threadIdx.x;
    float4* own = alone ? reinterpret_cast<float4*>(shared) + threadIdx.x : room + u64(blockIdx.z) * ITEMS * THREADS;
    block_sync();
#pragma unroll
    for (int k = 0; k < MT; k++) {
#pragma unroll
        for (int n = 0; n < NT; n++) {
            const float(&sum)[4] = total[k][n];
            own[(k * NT + n) * THREADS] = {sum[0], sum[1], sum[2], sum[3]};
        }
    }
    if (!alone) {
        device_fence();
        block_sync();
        u32* last = reinterpret_cast<u32*>(shared);
        if (threadIdx.x == 0) *last = atomic_add(m.arrived + place, 1);
        block_sync();
        if (*last != PARTS - 1) return;
        device_fence();
        if (threadIdx.x == 0) m.arrived[place] = 0;
    }
    // Some at once, so that their loads wait together.
    constexpr u32 BATCH = ITEMS < 4 ? ITEMS : 4;
    u32 my_tile = tile + warp % WM * MT, my_row = row + warp / WM * NT * 8 + 2 * t;
#pragma unroll 1
    for (u32 i = 0; i < ITEMS; i += BATCH) {
        Fetched fetched[BATCH];
        float4 sums[BATCH];
#pragma unroll
        for (u32 k = 0; k < BATCH; k++) fetch(m, my_tile + (i + k) / NT, g, my_row + (i + k) % NT * 8, fetched[k]);
        if (alone) {
#pragma unroll
            for (u32 k = 0; k < BATCH; k++) sums[k] = own[(i + k) * THREADS];
        } else {
            float4 all[PARTS][BATCH];
#pragma unroll
            for (u32 part = 0; part < PARTS; part++) {
#pragma unroll
                for (u32 k = 0; k < BATCH; k++) all[part][k] = room[u64(part * ITEMS + i + k) * THREADS];
            }
#pragma unroll
            for (u32 k = 0; k < BATCH; k++) sums[k] = added(added(added(all[0][k], all[1][k]), all[2][k]), all[3][k]);
        }
#pragma unroll
        for (u32 k = 0; k < BATCH; k++) {
            float sum[4] = {sums[k].x, sums[k].y, sums[k].z, sums[k].w};
            finish(m, my_tile + (i + k) / NT, g, my_row + (i + k) % NT * 8, sum, fetched[k]);
        }
    }
}

template <int MT, int NT, int WM, int WN, int STAGES>
DEVICE_MEMBER constexpr u32 share_bytes() {
    return STAGES * 2 * (WM * MT * TILE_BYTES + WN * NT * 8 * 64);
}

// Attention of rows over their own paths, in a paged cache.
//
// A row sees the positions of its text from 0, and behind them the slots of its path: a list, whatever it stands for. A
// chain, a tree, a prefill and a decode are the same call. Positions are cut every 128, counted from 0, so a piece holds the
// same positions whoever looks at it. Within a piece each score is one chain of `multiply_tile` over the dimensions; the sum
// of exponentials and the weighted values are taken in an order that the position in the piece decides; pieces are joined
// from the first to the last. Where a key lies, which rows are beside this one and how many blocks share the work changes
// no bit.
#include "matmul.cuh"

constexpr u32 PIECE = 128;

struct Attend {
    /// Turned queries, bf16 `[row][heads * head_dim]`.
    const u16* queries;
    /// bf16 `[page][kv head][16][head_dim]`.
    const u16* keys;
    const u16* values;
    /// bf16 `[row][stride_y]`, head after head.
    u16* y;
    /// By row: positions of the text that it sees; 0 for a row that is not live.
    const i32* committed;
    /// By row: where its pages begin in `pages`, which names them in the order of the text.
    const i32* first_page;
    const i32* pages;
    /// By row: where its path begins in `paths`, which names slots, and how long it is.
    const i32* first_path;
    const i32* path_length;
    const i32* paths;
    /// Room for pieces: f32 `[row][kv head][most_pieces][group][head_dim + 2]`.
    float* room;
    /// By row and kv head, zero: how many blocks have come to their end.
    u32* arrived;
    u32 kv_heads;
    u32 stride_y;
    u32 most_pieces;
    /// `1 / sqrt(head_dim)`.
    float scale;
};

/// A row's list of slots.
struct Sight {
    const i32* pages;
    const i32* path;
    u32 committed;
    u32 length;

    DEVICE_MEMBER u32 slot(u32 position) const {
        if (position < committed) return u32(pages[position / PAGE]) * PAGE + position % PAGE;
        return u32(path[position - committed]);
    }
};

/// Scores of one piece, f32 `[position in the piece][8]`, of which the first `GROUP` count: warps take 16 positions each.
template <u32 GROUP, u32 DIM>
DEVICE void score(const Attend& at, const Sight& sight, u32 head, u32 begin, u32 count,
                  const uint4 (&query)[(DIM + 31) / 32], float* scores) {
    constexpr u32 CHUNKS = (DIM + 31) / 32;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 turn = 0; turn < PIECE / 64; turn++) {
        u32 from = (turn * 4 + warp) * 16;
        if (from >= count) break;
        uint4 key[2][CHUNKS];
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 position = from + g + 8 * i;
            bool is_there = position < count;
            const u16* k = at.keys + (is_there ? cache_at(sight.slot(begin + position), head, at.kv_heads, DIM) : 0);
#pragma unroll
            for (u32 c = 0; c < CHUNKS; c++) {
                bool counts = is_there && c * 32 + t * 8 < DIM;
                key[i][c] = counts ? *reinterpret_cast<const uint4*>(k + c * 32 + t * 8) : uint4{0, 0, 0, 0};
            }
        }
        float sum[4] = {};
#pragma unroll
        for (u32 c = 0; c < CHUNKS; c++) {
            uint4 low = key[0][c], high = key[1][c];
            multiply_tile(sum, {low.x, high.x, low.y, high.y}, query[c].x, query[c].y);
            multiply_tile(sum, {low.z, high.z, low.w, high.w}, query[c].z, query[c].w);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 position = from + g + i / 2 * 8, query_head = 2 * t + i % 2;
            if (query_head < GROUP) scores[position * 8 + query_head] = sum[i] * at.scale;
        }
    }
}

/// Turns scores into exponentials beyond their greatest, and leaves that and the exponentials' sum by head.
template <u32 GROUP>
DEVICE void weigh(u32 count, float* scores, float* most, float* sums) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll 1
    for (u32 head = warp; head < GROUP; head += 4) {
        float x[PIECE / WARP];
        float greatest = -INFINITE;
#pragma unroll
        for (u32 i = 0; i < PIECE / WARP; i++) {
            u32 position = i * WARP + lane;
            x[i] = position < count ? scores[position * 8 + head] : -INFINITE;
            greatest = x[i] > greatest ? x[i] : greatest;
        }
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) {
            float other = from_lane_across(greatest, mask);
            greatest = other > greatest ? other : greatest;
        }
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < PIECE / WARP; i++) {
            float weight = exp32(x[i] - greatest);
            sum = sum + weight;
            scores[(i * WARP + lane) * 8 + head] = weight;
        }
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) sum = sum + from_lane_across(sum, mask);
        if (lane == 0) {
            most[head] = greatest;
            sums[head] = sum;
        }
    }
}

/// Weighted values of one piece. Threads take 8 dimensions of every so manieth position; their sums go to `parts`, f32
/// `[positions beside each other][GROUP][DIM]`, to be added in that order.
template <u32 GROUP, u32 DIM>
DEVICE void add_values(const Attend& at, const Sight& sight, u32 head, u32 begin, u32 count, const float* scores,
                       float* parts) {
    constexpr u32 WIDE = DIM / 8, BESIDE = 128 / WIDE;
    u32 d = threadIdx.x % WIDE * 8, first = threadIdx.x / WIDE;
    if (first >= BESIDE) return;
    float sum[GROUP][8] = {};
    constexpr u32 DEEP = 4;
#pragma unroll 1
    for (u32 position = first; position < count; position += BESIDE * DEEP) {
        uint4 value[DEEP];
#pragma unroll
        for (u32 i = 0; i < DEEP; i++) {
            u32 here = position + i * BESIDE;
            value[i] = {0, 0, 0, 0};
            if (here < count) {
                const u16* v = at.values + cache_at(sight.slot(begin + here), head, at.kv_heads, DIM);
                value[i] = *reinterpret_cast<const uint4*>(v + d);
            }
        }
#pragma unroll
        for (u32 i = 0; i < DEEP; i++) {
            u32 here = position + i * BESIDE;
            if (here >= count) break;
            u32 pairs[4] = {value[i].x, value[i].y, value[i].z, value[i].w};
#pragma unroll
            for (u32 q = 0; q < GROUP; q++) {
                float weight = scores[here * 8 + q];
#pragma unroll
                for (u32 e = 0; e < 4; e++) {
                    sum[q][2 * e] = multiply_add(weight, low_bf16(pairs[e]), sum[q][2 * e]);
                    sum[q][2 * e + 1] = multiply_add(weight, high_bf16(pairs[e]), sum[q][2 * e + 1]);
                }
            }
        }
    }
#pragma unroll
    for (u32 q = 0; q < GROUP; q++) {
        float4* to = reinterpret_cast<float4*>(parts + (first * GROUP + q) * DIM + d);
        to[0] = {sum[q][0], sum[q][1], sum[q][2], sum[q][3]};
        to[1] = {sum[q][4], sum[q][5], sum[q][6], sum[q][7]};
    }
}

/// Joins a row's pieces, first to last, and writes its heads.
template <u32 GROUP, u32 DIM>
DEVICE void join(const Attend& at, u32 row, u32 head, u32 pieces, const float* room) {
#pragma unroll 1
    for (u32 i = threadIdx.x; i < GROUP * DIM; i += 128) {
        u32 q = i / DIM, d = i % DIM;
        float most = -INFINITE;
#pragma unroll 1
        for (u32 p = 0; p < pieces; p++) {
            float m = room[(p * GROUP + q) * (DIM + 2) + DIM];
            most = m > most ? m : most;
        }
        float sum = 0.0f, value = 0.0f;
#pragma unroll 1
        for (u32 p = 0; p < pieces; p++) {
            const float* piece = room + (p * GROUP + q) * (DIM + 2);
            float weight = exp32(piece[DIM] - most);
            sum = multiply_add(weight, piece[DIM + 1], sum);
            value = multiply_add(weight, piece[d], value);
        }
        at.y[u64(row) * at.stride_y + (head * GROUP + q) * DIM + d] = to_bf16(value / sum);
    }
}

/// One row and one key/value head in each block; `gridDim.z` blocks take turns at its pieces, and the last one to end joins
/// them. Grid: (kv_heads, rows, at will). Shared memory: `attend_bytes`.
template <u32 GROUP, u32 DIM>
DEVICE void attend(const Attend& at) {
    constexpr u32 CHUNKS = (DIM + 31) / 32, WIDE = DIM / 8, BESIDE = 128 / WIDE;
    let_kernel_behind_begin();
    wait_for_kernel_before();
    u32 head = blockIdx.x, row = blockIdx.y, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    Sight sight;
    sight.committed = u32(at.committed[row]);
    sight.length = sight.committed + u32(at.path_length[row]);
    sight.pages = at.pages + at.first_page[row];
    sight.path = at.paths + at.first_path[row];
    u32 pieces = (sight.length + PIECE - 1) / PIECE;
    if (blockIdx.z >= pieces) return;
    float* scores = reinterpret_cast<float*>(shared_memory());
    float* most = scores + PIECE * 8;
    float* sums = most + 8;
    float* parts = sums + 8;
    float* room = at.room + (u64(row) * at.kv_heads + head) * at.most_pieces * GROUP * (DIM + 2);
    uint4 query[CHUNKS];
#pragma unroll
    for (u32 c = 0; c < CHUNKS; c++) {
        const u16* q = at.queries + ((u64(row) * at.kv_heads + head) * GROUP + g) * DIM + c * 32 + t * 8;
        bool counts = g < GROUP && c * 32 + t * 8 < DIM;
        query[c] = counts ? *reinterpret_cast<const uint4*>(q) : uint4{0, 0, 0, 0};
    }
#pragma unroll 1
    for (u32 piece = blockIdx.z; piece < pieces; piece += gridDim.z) {
        u32 begin = piece * PIECE;
        u32 count = sight.length - begin < PIECE ? sight.length - begin : PIECE;
        score<GROUP, DIM>(at, sight, head, begin, count, query, scores);
        block_sync();
        weigh<GROUP>(count, scores, most, sums);
        block_sync();
        add_values<GROUP, DIM>(at, sight, head, begin, count, scores, parts);
        block_sync();
    #pragma unroll 1
    for (u32 i = threadIdx.x; i < GROUP * DIM; i += 128) {
            u32 q = i / DIM;
            float value = parts[i];
#pragma unroll
            for (u32 b = 1; b < BESIDE; b++) value = value + parts[b * GROUP * DIM + i];
            if (pieces == 1) {
                // As `join` would: the only piece has weight one.
                at.y[u64(row) * at.stride_y + head * GROUP * DIM + i] = to_bf16(value / sums[q]);
            } else {
                float* to = room + (piece * GROUP + q) * (DIM + 2);
                to[i % DIM] = value;
                if (i % DIM == 0) {
                    to[DIM] = most[q];
                    to[DIM + 1] = sums[q];
                }
            }
        }
        block_sync();
    }
    if (pieces == 1) return;
    device_fence();
    block_sync();
    u32* last = reinterpret_cast<u32*>(shared_memory());
    u32 blocks = pieces < gridDim.z ? pieces : gridDim.z, place = row * at.kv_heads + head;
    if (threadIdx.x == 0) *last = atomic_add(at.arrived + place, 1);
    block_sync();
    if (*last != blocks - 1) return;
    device_fence();
    if (threadIdx.x == 0) at.arrived[place] = 0;
    join<GROUP, DIM>(at, row, head, pieces, room);
}

template <u32 GROUP, u32 DIM>
DEVICE_MEMBER constexpr u32 attend_bytes() {
    return (PIECE * 8 + 16 + 128 / (DIM / 8) * GROUP * DIM) * 4;
}

// By query heads of a key/value head, and width of a head.
KERNEL(128, 4) attend_1_by_48(const Attend at) { attend<1, 48>(at); }
KERNEL(128, 4) attend_1_by_64(const Attend at) { attend<1, 64>(at); }
KERNEL(128, 4) attend_2_by_64(const Attend at) { attend<2, 64>(at); }
KERNEL(128, 4) attend_4_by_64(const Attend at) { attend<4, 64>(at); }
KERNEL(128, 4) attend_8_by_64(const Attend at) { attend<8, 64>(at); }
KERNEL(128, 4) attend_1_by_128(const Attend at) { attend<1, 128>(at); }
KERNEL(128, 4) attend_2_by_128(const Attend at) { attend<2, 128>(at); }
KERNEL(128, 4) attend_3_by_128(const Attend at) { attend<3, 128>(at); }
KERNEL(128, 4) attend_4_by_128(const Attend at) { attend<4, 128>(at); }
KERNEL(128, 4) attend_8_by_128(const Attend at) { attend<8, 128>(at); }

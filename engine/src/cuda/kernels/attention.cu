// Attention of rows over their own paths, in a paged cache.
//
// A row sees the positions of its text from 0, and behind them the slots of its path: a list, whatever it stands for. A
// chain, a tree, a prefill and a decode are the same call. Positions are cut every 128, counted from 0, so a piece holds the
// same positions whoever looks at it. Within a piece each score is one chain of `multiply_tile` over the dimensions, the sum
// of exponentials is taken in an order that the position in the piece decides, and each weighted value is one chain over the
// positions; pieces are joined from the first to the last. Where a key lies, which rows are beside this one and how many
// blocks share the work changes no bit.
//
// A matrix tile has eight columns: the query heads of a key/value head, of as many rows as fit. Rows that see the same text
// pass through its pieces together; what a row sees alone, a block of its own looks at.
#pragma once

#include "matmul.cuh"

constexpr u32 PIECE = 128;
/// Threads of a block.
constexpr u32 TEAM = 128;
/// Rows that a block may have, one after another.
constexpr u32 MOST_TOGETHER = 8;

struct Attend {
    /// Turned queries, bf16 `[row][heads * head_dim]`.
    const u16* queries;
    /// bf16 `[page][kv head][16][head_dim]`.
    const u16* keys;
    const u16* values;
    /// bf16 `[row][stride_y]`, head after head.
    u16* y;
    /// By row: positions of the text that it sees; with an empty path, 0 for a row that is not live.
    const i32* committed;
    /// By row: where its pages begin in `pages`, which names them in the order of the text.
    const i32* first_page;
    const i32* pages;
    /// By row: where its path begins in `paths`, which names slots, and how long it is.
    const i32* first_path;
    const i32* path_length;
    const i32* paths;
    /// Room for pieces: f32 `[row][kv head][most_pieces][group * head_dim + 16]`: values, 8 maxima, 8 sums.
    float* room;
    u32 kv_heads;
    u32 stride_y;
    u32 most_pieces;
    /// `1 / sqrt(head_dim)`.
    float scale;
    u32 rows;
    /// Rows of a block, at most `MOST_TOGETHER`: those that share a text share what is loaded of it.
    u32 together;
    /// Blocks that take turns at the pieces of text; at least 1.
    u32 takes;
    /// Query heads of a key/value head, and width of a head, for `join_pieces`.
    u32 group;
    u32 head_dim;
    u32 unused;
};

/// A row's list of slots.
struct Sight {
    i32 committed, length, first_page, first_path;

    DEVICE_MEMBER u32 pieces() const { return (u32(length) + PIECE - 1) / PIECE; }
    /// Pieces that are all text, which rows may share.
    DEVICE_MEMBER u32 texts() const { return u32(committed) / PIECE; }
};

/// What a block has in shared memory.
template <u32 GROUP, u32 DIM>
struct Team {
    /// Rows that a matrix tile takes.
    static constexpr u32 PASS = 8 / GROUP;
    /// A position's values in units of 16 bytes, and what a position takes up, which is a multiple of eight.
    static constexpr u32 WIDE = DIM / 8, UNITS = (WIDE + 7) / 8 * 8;
    u32 slots[PIECE];
    /// By column and position; padded so that a warp's accesses meet in no bank.
    float scores[8][PIECE + 4];
    u16 weights[8][PIECE + 8];
    float most[8];
    float sums[8];
    Sight sights[MOST_TOGETHER];
    /// By position; unit u of position p lies at u ^ (p % 8), so that a column of positions meets in no bank.
    uint4 values[PIECE * UNITS];
};

/// One lane's part of the keys of 2 x 16 positions, as the matrix unit takes them.
template <u32 DIM>
struct Keys {
    static constexpr u32 CHUNKS = (DIM + 31) / 32;
    uint4 of[PIECE / 64][2][CHUNKS];
};

/// Begins to load a piece: keys to registers, values to shared memory; zeros for positions that are not there.
template <u32 GROUP, u32 DIM>
DEVICE void load_piece(const Attend& at, Team<GROUP, DIM>& team, u32 head, u32 count, Keys<DIM>& keys) {
    constexpr u32 WIDE = DIM / 8, UNITS = Team<GROUP, DIM>::UNITS;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 turn = 0; turn < PIECE / 64; turn++) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
            u32 position = (turn * 4 + warp) * 16 + g + 8 * i;
            bool is_there = position < count;
            const u16* k = at.keys + (is_there ? cache_at(i32(team.slots[position]), head, at.kv_heads, DIM) : 0);
#pragma unroll
            for (u32 c = 0; c < Keys<DIM>::CHUNKS; c++) {
                bool counts = is_there && c * 32 + t * 8 < DIM;
                keys.of[turn][i][c] = counts ? *reinterpret_cast<const uint4*>(k + c * 32 + t * 8) : uint4{0, 0, 0, 0};
            }
        }
    }
    u32 rounded = (count + 15) / 16 * 16;
#pragma unroll 4
    for (u32 i = threadIdx.x; i < rounded * WIDE; i += TEAM) {
        u32 position = i / WIDE, unit = i % WIDE;
        uint4* to = &team.values[position * UNITS + (unit ^ (position % 8))];
        if (position < count) {
            copy_begin(place_of(to), at.values + cache_at(i32(team.slots[position]), head, at.kv_heads, DIM) + unit * 8);
        } else {
            *to = {0, 0, 0, 0};
        }
    }
}

/// Scores of one piece: warps take 16 positions each. Positions and columns that are not there get numbers too, which nobody
/// reads.
template <u32 GROUP, u32 DIM>
DEVICE void score(const Attend& at, Team<GROUP, DIM>& team, const uint4 (&query)[(DIM + 31) / 32], const Keys<DIM>& keys) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (u32 turn = 0; turn < PIECE / 64; turn++) {
        float sum[4] = {};
#pragma unroll
        for (u32 c = 0; c < Keys<DIM>::CHUNKS; c++) {
            uint4 low = keys.of[turn][0][c], high = keys.of[turn][1][c];
            multiply_tile(sum, {low.x, high.x, low.y, high.y}, query[c].x, query[c].y);
            multiply_tile(sum, {low.z, high.z, low.w, high.w}, query[c].z, query[c].w);
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 position = (turn * 4 + warp) * 16 + g + i / 2 * 8;
            team.scores[2 * t + i % 2][position] = sum[i] * at.scale;
        }
    }
}

/// Turns scores into exponentials beyond their greatest, rounded to bf16, and leaves that and their sum by column.
template <u32 GROUP, u32 DIM>
DEVICE void weigh(Team<GROUP, DIM>& team, u32 count, u32 columns) {
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll 1
    for (u32 column = warp; column < columns; column += TEAM / WARP) {
        float x[PIECE / WARP];
        float greatest = -INFINITE;
#pragma unroll
        for (u32 i = 0; i < PIECE / WARP; i++) {
            u32 position = i * WARP + lane;
            x[i] = position < count ? team.scores[column][position] : -INFINITE;
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
            u16 weight = to_bf16(exp32(x[i] - greatest));
            sum = sum + from_bf16(weight);
            team.weights[column][i * WARP + lane] = weight;
        }
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) sum = sum + from_lane_across(sum, mask);
        if (lane == 0) {
            team.most[column] = greatest;
            team.sums[column] = sum;
        }
    }
}

/// Weighted values of one piece, for `rows` rows from `first_row` on: warps take 16 dimensions each. Rows whose only piece this
/// is are done with it.
template <u32 GROUP, u32 DIM>
DEVICE void add_values(const Attend& at, Team<GROUP, DIM>& team, u32 head, u32 piece, u32 count, u32 first, u32 r, u32 rows) {
    constexpr u32 UNITS = Team<GROUP, DIM>::UNITS, SIZE = GROUP * DIM + 16;
    u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    // Which row of which 8 x 8 matrix this lane points at: positions, then dimensions.
    u32 matrix = lane / 8, in_step = matrix / 2 * 8 + lane % 8;
#pragma unroll
    for (u32 tile = warp; tile < DIM / 16; tile += TEAM / WARP) {
        float sum[4] = {};
#pragma unroll 4
        for (u32 step = 0; step < (count + 15) / 16; step++) {
            u32 position = step * 16 + in_step, unit = tile * 2 + matrix % 2;
            uint4 value = load_turned(&team.values[position * UNITS + (unit ^ (position % 8))]);
            const u16* weights = &team.weights[g][step * 16 + 2 * t];
            multiply_tile(sum, value, *reinterpret_cast<const u32*>(weights), *reinterpret_cast<const u32*>(weights + 8));
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            u32 column = 2 * t + i % 2, q = column % GROUP, d = tile * 16 + g + i / 2 * 8;
            if (column >= rows * GROUP) continue;
            u32 place = r + column / GROUP, row = first + place;
            if (team.sights[place].pieces() == 1) {
                // As `join_pieces` would: the only piece has weight one.
                at.y[u64(row) * at.stride_y + (head * GROUP + q) * DIM + d] = to_bf16(sum[i] / team.sums[column]);
            } else {
                float* room = at.room + ((u64(row) * at.kv_heads + head) * at.most_pieces + piece) * SIZE;
                room[q * DIM + d] = sum[i];
                if (d == 0) {
                    room[GROUP * DIM + q] = team.most[column];
                    room[GROUP * DIM + 8 + q] = team.sums[column];
                }
            }
        }
    }
}

/// One piece, which is loaded, for `rows` rows that have all of it in common.
template <u32 GROUP, u32 DIM>
DEVICE void pass(const Attend& at, Team<GROUP, DIM>& team, u32 head, u32 piece, u32 count, u32 first, u32 r, u32 rows,
                 const Keys<DIM>& keys) {
    constexpr u32 CHUNKS = (DIM + 31) / 32;
    u32 lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    uint4 query[CHUNKS];
    const u16* q = at.queries + ((u64(first + r + g / GROUP) * at.kv_heads + head) * GROUP + g % GROUP) * DIM;
#pragma unroll
    for (u32 c = 0; c < CHUNKS; c++) {
        bool counts = g < rows * GROUP && c * 32 + t * 8 < DIM;
        query[c] = counts ? *reinterpret_cast<const uint4*>(q + c * 32 + t * 8) : uint4{0, 0, 0, 0};
    }
    score<GROUP, DIM>(at, team, query, keys);
    block_sync();
    weigh<GROUP, DIM>(team, count, rows * GROUP);
    copy_wait<0>();
    block_sync();
    add_values<GROUP, DIM>(at, team, head, piece, count, first, r, rows);
}

/// Brings the slots of a piece as a row sees it, and begins to load it.
template <u32 GROUP, u32 DIM>
DEVICE void begin_piece(const Attend& at, Team<GROUP, DIM>& team, const Sight& sight, u32 head, u32 begin, u32 count,
                        bool& has_waited, Keys<DIM>& keys) {
    u32 position = begin + threadIdx.x;
    if (threadIdx.x < count) {
        team.slots[threadIdx.x] = position < u32(sight.committed)
                                      ? u32(at.pages[u32(sight.first_page) + position / PAGE]) * PAGE + position % PAGE
                                      : u32(at.paths[u32(sight.first_path) + position - u32(sight.committed)]);
    }
    if (!has_waited) wait_for_kernel_before();
    has_waited = true;
    block_sync();
    load_piece<GROUP, DIM>(at, team, head, count, keys);
    copy_close();
}

DEVICE uint2 four_bf16(float4 v) { return {bf16_pair(v.x, v.y), bf16_pair(v.z, v.w)}; }

/// Some rows and one key/value head. The first `at.takes` blocks along z take turns at the pieces of text, for all rows; each
/// further one has one of the rows, and looks at the rest of what it sees.
///
/// Grid: (kv_heads, rows / together, takes + together).
template <u32 GROUP, u32 DIM>
DEVICE void attend(const Attend& at) {
    constexpr u32 PASS = Team<GROUP, DIM>::PASS;
    Team<GROUP, DIM>& team = *reinterpret_cast<Team<GROUP, DIM>*>(shared_memory());
    u32 head = blockIdx.x, first = blockIdx.y * at.together;
    u32 rows = at.rows - first < at.together ? at.rows - first : at.together;
    let_kernel_behind_begin();
    // What rows see was written before any kernel began.
    if (threadIdx.x < rows) {
        u32 row = first + threadIdx.x;
        i32 committed = at.committed[row];
        team.sights[threadIdx.x] = {committed, committed + at.path_length[row], at.first_page[row], at.first_path[row]};
    }
    block_sync();
    bool has_waited = false;
    Keys<DIM> keys;
    bool shares = blockIdx.z < at.takes;
    u32 alone = blockIdx.z - at.takes;
    u32 from = shares ? 0 : alone, to = shares ? rows : alone < rows ? alone + 1 : alone;
    u32 end = 0;
    for (u32 r = from; r < to; r++) {
        u32 pieces = shares ? team.sights[r].texts() : team.sights[r].pieces();
        end = pieces > end ? pieces : end;
    }
    u32 piece = shares ? blockIdx.z : end ? team.sights[alone].texts() : 0;
#pragma unroll 1
    for (; piece < end; piece += shares ? at.takes : 1) {
        i32 loaded = -1;
        u32 r = from;
#pragma unroll 1
        while (r < to) {
            Sight sight = team.sights[r];
            if (shares && piece >= sight.texts()) {
                r++;
                continue;
            }
            u32 passing = 1;
            while (passing < PASS && r + passing < to && piece < team.sights[r + passing].texts() &&
                   team.sights[r + passing].first_page == sight.first_page) {
                passing++;
            }
            u32 left = u32(sight.length) - piece * PIECE, count = left < PIECE ? left : PIECE;
            if (loaded != sight.first_page) {
                begin_piece<GROUP, DIM>(at, team, sight, head, piece * PIECE, count, has_waited, keys);
                loaded = sight.first_page;
            }
            pass<GROUP, DIM>(at, team, head, piece, count, first, r, passing, keys);
            r += passing;
        }
    }
    if (!has_waited) wait_for_kernel_before();
}

/// Joins the pieces of rows that have several, first to last, and writes their heads: threads take 4 dimensions each.
///
/// Grid: (kv_heads, rows).
SHARED_BYTES(join_pieces, 0)
KERNEL(256, 4) join_pieces(const Attend at) {
    let_kernel_behind_begin();
    u32 head = blockIdx.x, row = blockIdx.y;
    u32 pieces = (u32(at.committed[row]) + u32(at.path_length[row]) + PIECE - 1) / PIECE;
    wait_for_kernel_before();
    u32 width = at.group * at.head_dim, size = width + 16;
    if (pieces < 2 || threadIdx.x * 4 >= width) return;
    const float* room = at.room + (u64(row) * at.kv_heads + head) * at.most_pieces * size;
    u32 q = threadIdx.x * 4 / at.head_dim;
    float most = -INFINITE;
#pragma unroll 8
    for (u32 p = 0; p < pieces; p++) {
        float other = room[p * size + width + q];
        most = other > most ? other : most;
    }
    float sum = 0.0f;
    float4 value = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 4
    for (u32 p = 0; p < pieces; p++) {
        const float* piece = room + p * size;
        float weight = exp32(piece[width + q] - most);
        sum = multiply_add(weight, piece[width + 8 + q], sum);
        float4 v = reinterpret_cast<const float4*>(piece)[threadIdx.x];
        value = {multiply_add(weight, v.x, value.x), multiply_add(weight, v.y, value.y),
                 multiply_add(weight, v.z, value.z), multiply_add(weight, v.w, value.w)};
    }
    float4 scaled = {value.x / sum, value.y / sum, value.z / sum, value.w / sum};
    reinterpret_cast<uint2*>(at.y + u64(row) * at.stride_y + head * width)[threadIdx.x] = four_bf16(scaled);
}

template <u32 GROUP, u32 DIM>
DEVICE_MEMBER constexpr u32 attend_bytes() {
    return sizeof(Team<GROUP, DIM>);
}

// By query heads of a key/value head, and width of a head.
#define ATTEND(group, dim, blocks)                                        \
    SHARED_BYTES(attend_##group##_by_##dim, (attend_bytes<group, dim>())) \
    KERNEL(128, blocks) attend_##group##_by_##dim(const Attend at) { attend<group, dim>(at); }

ATTEND(1, 48, 4)
ATTEND(1, 64, 4)
ATTEND(3, 64, 4)
ATTEND(4, 64, 4)
ATTEND(7, 64, 4)
ATTEND(8, 64, 4)
ATTEND(1, 96, 4)
ATTEND(1, 128, 3)
ATTEND(2, 128, 3)
ATTEND(3, 128, 3)
ATTEND(4, 128, 3)
ATTEND(5, 128, 3)
ATTEND(6, 128, 3)
ATTEND(7, 128, 3)
ATTEND(8, 128, 3)

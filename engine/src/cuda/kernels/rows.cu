// The functions of a row between two matmuls. One block has one row, and does the same at one row and at many.
#pragma once

#include "matmul.cuh"

/// The one order in which the warps of a block add: within a warp across lanes, then the warps one after another.
template <u32 WARPS>
DEVICE float sum_of_block(float x, float* room) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) x = x + from_lane_across(x, mask);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    block_sync();
    float sum = room[0];
#pragma unroll
    for (u32 i = 1; i < WARPS; i++) sum = sum + room[i];
    return sum;
}

/// RMSNorm (arXiv 1910.07467): `y = x / sqrt(mean(x^2) + eps) * gain`.
struct Norm {
    /// f32 `[row][width]`.
    const float* x;
    /// f32 `[width]`.
    const float* gain;
    /// bf16 `[row][stride_y]`; what lies beyond `width` is left alone.
    u16* y;
    /// Which row of `x` becomes row i of `y`; row i where this is null.
    const i32* which;
    u32 width;
    u32 stride_y;
    float eps;
};

/// Numbers of a row that a thread keeps.
constexpr u32 KEPT = 32;

/// `width` is a multiple of 4, at most 8192. Grid: (rows).
SHARED_BYTES(rms_norm, 8 * sizeof(float))
KERNEL(256, 2) rms_norm(const Norm n) {
    let_kernel_behind_begin();
    u32 count = n.width / 4;
    float4 w[KEPT / 4], v[KEPT / 4];
#pragma unroll
    for (u32 k = 0; k < KEPT / 4; k++) {
        u32 i = threadIdx.x + k * 256;
        if (i < count) w[k] = reinterpret_cast<const float4*>(n.gain)[i];
    }
    u32 row = n.which ? u32(n.which[blockIdx.x]) : blockIdx.x;
    wait_for_kernel_before();
    const float4* x = reinterpret_cast<const float4*>(n.x + u64(row) * n.width);
    uint2* y = reinterpret_cast<uint2*>(n.y + u64(blockIdx.x) * n.stride_y);
#pragma unroll
    for (u32 k = 0; k < KEPT / 4; k++) {
        u32 i = threadIdx.x + k * 256;
        v[k] = i < count ? x[i] : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < KEPT / 4; k++) {
        sum = multiply_add(v[k].x, v[k].x, sum);
        sum = multiply_add(v[k].y, v[k].y, sum);
        sum = multiply_add(v[k].z, v[k].z, sum);
        sum = multiply_add(v[k].w, v[k].w, sum);
    }
    sum = sum_of_block<8>(sum, reinterpret_cast<float*>(shared_memory()));
    float scale = reciprocal_root(sum / float(n.width) + n.eps);
#pragma unroll
    for (u32 k = 0; k < KEPT / 4; k++) {
        u32 i = threadIdx.x + k * 256;
        if (i >= count) continue;
        y[i] = {bf16_pair(v[k].x * scale * w[k].x, v[k].y * scale * w[k].y),
                bf16_pair(v[k].z * scale * w[k].z, v[k].w * scale * w[k].w)};
    }
}

/// `x[row] = table[token of the row]`.
struct Embed {
    /// bf16: `[token][width]`, or the packed weight of a head that serves as the table.
    const u16* table;
    /// By row.
    const i32* tokens;
    /// f32 `[row][width]`.
    float* x;
    u32 width;
    /// Chunks of the packed weight; 0 for a plain table.
    u32 chunks;
};

/// Grid: (rows).
SHARED_BYTES(embed, 0)
KERNEL(256, 2) embed(const Embed e) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    u32 token = u32(e.tokens[blockIdx.x]);
    float* x = e.x + u64(blockIdx.x) * e.width;
    for (u32 k = threadIdx.x; k < e.width; k += 256) {
        u64 at = u64(token) * e.width + k;
        if (e.chunks) {
            // As matmul.cuh packs: tile, chunk, step, lane, pair, the two of the pair.
            u32 r = token % 16, in = k % 32, t = in / 8, step = in / 4 % 2, pair = r / 8 + in / 2 % 2 * 2;
            at = (u64(token / 16) * e.chunks + k / 32) * 512 + step * 256 + (r % 8 * 4 + t) * 8 + pair * 2 + in % 2;
        }
        x[k] = from_bf16(e.table[at]);
    }
}

/// One position's keys and values to another slot, all layers.
struct Move {
    u16* keys;
    u16* values;
    /// By move.
    const i32* from;
    const i32* to;
    /// Elements of the keys (or values) of one layer.
    u64 layer;
    u32 layers;
    u32 kv_heads;
    u32 head_dim;
    u32 moves;
};

/// Moves are done in order, so a slot may be left and then taken. Grid: (layers, kv_heads).
SHARED_BYTES(move_slots, 0)
KERNEL(128, 2) move_slots(const Move m) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    for (u32 i = 0; i < m.moves; i++) {
        i32 from = m.from[i], to = m.to[i];
        u64 base = u64(blockIdx.x) * m.layer;
        u64 source = base + cache_at(from, blockIdx.y, m.kv_heads, m.head_dim);
        u64 target = base + cache_at(to, blockIdx.y, m.kv_heads, m.head_dim);
        for (u32 d = threadIdx.x; d < m.head_dim; d += 128) {
            m.keys[target + d] = m.keys[source + d];
            m.values[target + d] = m.values[source + d];
        }
        block_sync();
    }
}

/// What is done to queries, keys and values before attention where a model asks for more than a turn of whole heads: biases (Qwen 2),
/// norms of each query and key (Qwen 3), a turn of a part of each head (Phi 3) or of none (SmolLM 3).
struct Heads {
    /// f32 `[row][(heads + 2 * kv_heads) * head_dim]`: queries, keys, values.
    const float* x;
    /// As long as a row of `x`; null: none.
    const float* bias;
    /// What the norms of queries and of keys multiply by, f32 `[head_dim]`; null: no norms.
    const float* query_gain;
    const float* key_gain;
    /// Cosines and sines, f32 `[position][2][turned / 2]`.
    const float* turns;
    /// By row.
    const i32* positions;
    /// By row: where its key and value go; negative for a row that has no place.
    const i32* slots;
    /// bf16 `[row][heads * head_dim]`.
    u16* queries;
    /// bf16 `[page][kv head][16][head_dim]`.
    u16* keys;
    u16* values;
    u32 heads;
    u32 kv_heads;
    /// At most 128.
    u32 head_dim;
    /// How many dimensions of a head are turned, the first ones.
    u32 turned;
    float eps;
    u32 unused;
};

/// A warp has a head of a row. Grid: (heads + 2 * kv_heads, rows).
SHARED_BYTES(place_heads, 128 * sizeof(float))
KERNEL(32, 16) place_heads(const Heads h) {
    constexpr u32 EACH = 128 / WARP;
    let_kernel_behind_begin();
    u32 head = blockIdx.x, row = blockIdx.y, lane = threadIdx.x;
    bool is_query = head < h.heads, is_key = !is_query && head < h.heads + h.kv_heads;
    const float* gain = is_query ? h.query_gain : is_key ? h.key_gain : nullptr;
    u32 turned = is_query || is_key ? h.turned : 0, half = turned / 2;
    float bias[EACH], gains[EACH], cosine[EACH], sine[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 d = lane + i * WARP;
        bias[i] = h.bias && d < h.head_dim ? h.bias[head * h.head_dim + d] : 0.0f;
        gains[i] = gain && d < h.head_dim ? gain[d] : 1.0f;
        const float* turn = h.turns + u64(h.positions[row]) * h.turned;
        cosine[i] = d < turned ? turn[d % half] : 1.0f;
        sine[i] = d < turned ? turn[half + d % half] : 0.0f;
    }
    wait_for_kernel_before();
    const float* x = h.x + (u64(row) * (h.heads + 2 * h.kv_heads) + head) * h.head_dim;
    float v[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 d = lane + i * WARP;
        v[i] = d < h.head_dim ? x[d] : 0.0f;
        if (h.bias) v[i] = v[i] + bias[i];
    }
    if (gain) {
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < EACH; i++) sum = multiply_add(v[i], v[i], sum);
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) sum = sum + from_lane_across(sum, mask);
        float scale = reciprocal_root(sum / float(h.head_dim) + h.eps);
#pragma unroll
        for (u32 i = 0; i < EACH; i++) v[i] = v[i] * scale * gains[i];
    }
    // Each dimension's partner is another lane's.
    float* room = reinterpret_cast<float*>(shared_memory());
#pragma unroll
    for (u32 i = 0; i < EACH; i++) room[lane + i * WARP] = v[i];
    block_sync();
    u16* to;
    if (is_query) {
        to = h.queries + (u64(row) * h.heads + head) * h.head_dim;
    } else {
        i32 slot = h.slots[row];
        if (slot < 0) return;
        u32 kv = head - h.heads - (is_key ? 0 : h.kv_heads);
        to = (is_key ? h.keys : h.values) + cache_at(slot, kv, h.kv_heads, h.head_dim);
    }
#pragma unroll
    for (u32 i = 0; i < EACH; i++) {
        u32 d = lane + i * WARP;
        if (d >= h.head_dim) continue;
        float y = v[i];
        if (d < turned) {
            float other = room[d < half ? d + half : d - half];
            y = multiply_add(d < half ? -other : other, sine[i], v[i] * cosine[i]);
        }
        to[d] = to_bf16(y);
    }
}

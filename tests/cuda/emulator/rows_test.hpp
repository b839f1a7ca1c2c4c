// The functions of a row between two matmuls: norm, embedding, and moves within the cache.
#pragma once

#include "rows.cu"
#include "shapes.hpp"

/// Rows picked out of many get what each gets alone, and that is close to the truth.
inline void norm_of(unsigned width) {
    constexpr unsigned ROWS = 9;
    Dice dice{width};
    Memory<float> x(size_t(ROWS) * width), gain(width);
    for (size_t i = 0; i < size_t(ROWS) * width; i++) x[i] = dice.bell() * 3;
    for (unsigned k = 0; k < width; k++) gain[k] = 1 + dice.bell() * 0.2f;
    unsigned stride = up_to(width, 128);
    auto normalised = [&](std::vector<i32> which, unsigned rows) {
        Memory<u16> y(size_t(rows) * stride);
        Norm n{x, gain, y, which.empty() ? nullptr : which.data(), width, stride, 1e-5f};
        run(rms_norm, {rows, 1, 1}, 256, shared_bytes_of_rms_norm, n);
        return std::vector<u16>(y.data, y.data + size_t(rows) * stride);
    };
    std::vector<u16> all = normalised({}, ROWS);
    std::vector<i32> which{7, 0, 7, 3};
    std::vector<u16> picked = normalised(which, 4);
    for (unsigned r = 0; r < ROWS; r++) {
        double sum = 0;
        for (unsigned k = 0; k < width; k++) sum += double(x[r * width + k]) * x[r * width + k];
        for (unsigned k = 0; k < width; k++) {
            double want = x[r * width + k] / std::sqrt(sum / width + 1e-5) * gain[k], got = from_bf16(all[r * stride + k]);
            CHECK(std::fabs(got - want) <= 0.005 * std::fabs(want) + 1e-6, "norm of %u: %g, not %g", width, got, want);
        }
        for (unsigned k = width; k < stride; k++) CHECK(all[r * stride + k] == 0xffff, "norm of %u writes padding", width);
    }
    for (unsigned i = 0; i < which.size(); i++) {
        bool equal = std::equal(picked.begin() + i * stride, picked.begin() + (i + 1) * stride, all.begin() + size_t(which[i]) * stride);
        CHECK(equal, "norm of %u: row %d picked out", width, which[i]);
    }
}

/// A table of its own and the packed weight of a head give the same.
inline void embedding_of(unsigned width) {
    constexpr unsigned VOCAB = 70;
    Dice dice{width + 1};
    std::vector<float> plain(size_t(VOCAB) * width);
    for (float& w : plain) w = rounded(dice.bell());
    Packed packed(plain, VOCAB, width);
    Memory<u16> table(plain.size());
    for (size_t i = 0; i < plain.size(); i++) table[i] = to_bf16(plain[i]);
    std::vector<i32> tokens{0, 69, 15, 16, 33};
    unsigned rows = unsigned(tokens.size());
    for (unsigned chunks : {0u, packed.chunks}) {
        Memory<float> x(size_t(rows) * width);
        run(embed, {rows, 1, 1}, 256, shared_bytes_of_embed, Embed{chunks ? packed.bytes : table, tokens.data(), x, width, chunks});
        for (unsigned r = 0; r < rows; r++) {
            for (unsigned k = 0; k < width; k++) {
                CHECK(same(x[r * width + k], plain[size_t(tokens[r]) * width + k]), "embedding of token %d, number %u", tokens[r], k);
            }
        }
    }
}

/// Moves are done one after another, in every layer, and touch nothing else.
inline void moves_of(unsigned head_dim) {
    constexpr unsigned LAYERS = 2, KV = 2, PAGES = 3, SLOTS = PAGES * 16;
    size_t layer = size_t(SLOTS) * KV * head_dim;
    Memory<u16> keys(LAYERS * layer), values(LAYERS * layer);
    for (size_t i = 0; i < LAYERS * layer; i++) {
        keys[i] = u16(i * 7);
        values[i] = u16(i * 11 + 1);
    }
    std::vector<u16> want[2] = {{keys.data, keys.data + LAYERS * layer}, {values.data, values.data + LAYERS * layer}};
    // A slot is left and then taken, and one goes on twice.
    std::vector<i32> from{20, 33, 5, 40}, to{3, 20, 33, 41};
    for (unsigned i = 0; i < from.size(); i++) {
        for (auto& part : want) {
            for (unsigned l = 0; l < LAYERS; l++) {
                for (unsigned h = 0; h < KV; h++) {
                    auto at = part.begin() + l * layer;
                    std::copy_n(at + cache_at(from[i], h, KV, head_dim), head_dim, at + cache_at(to[i], h, KV, head_dim));
                }
            }
        }
    }
    Move m{keys, values, from.data(), to.data(), layer, LAYERS, KV, head_dim, unsigned(from.size())};
    run(move_slots, {LAYERS, KV, 1}, 128, shared_bytes_of_move_slots, m);
    CHECK(std::equal(want[0].begin(), want[0].end(), keys.data), "keys of %u after moves", head_dim);
    CHECK(std::equal(want[1].begin(), want[1].end(), values.data), "values of %u after moves", head_dim);
}

/// Biases, norms and turns against the same in double precision; a turn alone also against what the matmul does, to the bit.
inline void heads_of(unsigned head_dim, unsigned turned, bool has_bias, bool has_norms) {
    constexpr unsigned HEADS = 3, KV = 1, ALL = HEADS + 2 * KV, ROWS = 5, PAGES = 2, POSITIONS = 40;
    unsigned width = ALL * head_dim, half = turned / 2;
    Dice dice{head_dim * 7 + turned};
    Memory<float> x(size_t(ROWS) * width), bias(width), query_gain(head_dim), key_gain(head_dim), turns(size_t(POSITIONS) * turned + 1);
    for (size_t i = 0; i < size_t(ROWS) * width; i++) x[i] = dice.bell();
    for (unsigned i = 0; i < width; i++) bias[i] = dice.bell();
    for (unsigned d = 0; d < head_dim; d++) {
        query_gain[d] = 1 + dice.bell() * 0.2f;
        key_gain[d] = 1 + dice.bell() * 0.2f;
    }
    for (unsigned p = 0; p < POSITIONS; p++) {
        for (unsigned i = 0; i < half; i++) {
            turns[p * turned + i] = float(std::cos(p * 0.1 * (i + 1)));
            turns[p * turned + half + i] = float(std::sin(p * 0.1 * (i + 1)));
        }
    }
    std::vector<i32> positions{0, 7, 39, 7, 1}, slots{5, -1, 31, 0, 16};
    size_t cache = size_t(PAGES) * 16 * KV * head_dim;
    Memory<u16> queries(size_t(ROWS) * HEADS * head_dim), keys(cache), values(cache);
    Heads h{x, has_bias ? bias.data : nullptr, has_norms ? query_gain.data : nullptr, has_norms ? key_gain.data : nullptr, turns,
            positions.data(), slots.data(), queries, keys, values, HEADS, KV, head_dim, turned, 1e-6f, 0};
    run(place_heads, {ALL, ROWS, 1}, 32, shared_bytes_of_place_heads, h);
    unsigned written = 0;
    for (unsigned row = 0; row < ROWS; row++) {
        for (unsigned head = 0; head < ALL; head++) {
            bool is_query = head < HEADS, is_key = !is_query && head < HEADS + KV;
            if (!is_query && slots[row] < 0) continue;
            std::vector<double> v(head_dim), y(head_dim);
            double sum = 0;
            for (unsigned d = 0; d < head_dim; d++) {
                v[d] = x[(row * ALL + head) * head_dim + d] + (has_bias ? bias[head * head_dim + d] : 0.0f);
                sum += v[d] * v[d];
            }
            if (has_norms && (is_query || is_key)) {
                for (unsigned d = 0; d < head_dim; d++) {
                    v[d] = v[d] / std::sqrt(sum / head_dim + 1e-6) * (is_query ? query_gain[d] : key_gain[d]);
                }
            }
            y = v;
            for (unsigned i = 0; (is_query || is_key) && i < half; i++) {
                double c = turns[positions[row] * turned + i], s = turns[positions[row] * turned + half + i];
                y[i] = v[i] * c - v[i + half] * s;
                y[i + half] = v[i + half] * c + v[i] * s;
            }
            for (unsigned d = 0; d < head_dim; d++) {
                const u16* at = is_query ? queries.data + (row * HEADS + head) * head_dim
                                         : (is_key ? keys : values).data + cache_at(slots[row], 0, KV, head_dim);
                double got = from_bf16(at[d]);
                CHECK(std::fabs(got - y[d]) <= 0.005 * std::fabs(y[d]) + 1e-3, "heads of %u: row %u, head %u, %u is %g, not %g",
                      head_dim, row, head, d, got, y[d]);
                written += !is_query;
                bool is_turned = (is_query || is_key) && d < turned;
                if (has_bias || has_norms || !is_turned) continue;
                float own = x[(row * ALL + head) * head_dim + d], other = x[(row * ALL + head) * head_dim + (d < half ? d + half : d - half)];
                float c = turns[positions[row] * turned + d % half], s = turns[positions[row] * turned + half + d % half];
                CHECK(at[d] == to_bf16(multiply_add(d < half ? -other : other, s, own * c)), "heads of %u: a turn", head_dim);
            }
        }
    }
    // Nothing else was written.
    unsigned touched = 0;
    for (size_t i = 0; i < cache; i++) touched += (keys[i] != 0xffff) + (values[i] != 0xffff);
    CHECK(touched == written, "heads of %u: %u numbers of the cache were written, not %u", head_dim, touched, written);
}

inline void test_rows() {
    for (auto order : {emulator::Order::FORWARD, emulator::Order::SHUFFLED}) {
        emulator::order = order;
        for (unsigned width : {96u, 1024u, 8192u}) norm_of(width);
        embedding_of(96);
        embedding_of(200);
        moves_of(48);
        moves_of(128);
        heads_of(128, 128, false, true);
        heads_of(128, 128, true, false);
        heads_of(96, 96, false, false);
        heads_of(64, 64, true, true);
        heads_of(64, 48, false, false);
        heads_of(48, 0, true, false);
    }
    emulator::order = emulator::Order::FORWARD;
}

// A small Llama through all kernels: prefill, decode and tree give a row the same logits, and they are close to the truth.
#pragma once

#include "attention.cu"
#include "rows.cu"
#include "shapes.hpp"

/// Two layers, heads of 48 in groups of one as in the smallest bundled model, or of 64 in groups of three.
struct SmallLlama {
    static constexpr unsigned LAYERS = 2, VOCAB = 80, PAGES = 24, ROWS = 128, POSITIONS = 200;
    unsigned hidden, inner, heads, kv_heads, dim;
    void (*attend)(const Attend);
    size_t attend_bytes;
    struct Layer {
        std::vector<float> qkv, o, gate_up, down, norm, mlp_norm;
        std::unique_ptr<Packed> packed_qkv, packed_o, packed_gate_up, packed_down;
    };
    std::vector<Layer> layers;
    std::vector<float> head, norm;
    std::unique_ptr<Packed> packed_head;
    Memory<float> turns;
    std::vector<std::unique_ptr<Memory<u16>>> keys, values;

    unsigned width() const { return heads * dim; }
    unsigned all_heads() const { return heads + 2 * kv_heads; }

    SmallLlama(unsigned hidden, unsigned inner, unsigned heads, unsigned kv_heads, unsigned dim, void (*attend)(const Attend),
               size_t attend_bytes)
        : hidden(hidden), inner(inner), heads(heads), kv_heads(kv_heads), dim(dim), attend(attend), attend_bytes(attend_bytes),
          turns(size_t(POSITIONS) * dim) {
        Dice dice{hidden + dim};
        auto matrix = [&](unsigned outputs, unsigned inputs) {
            std::vector<float> plain(size_t(outputs) * inputs);
            for (float& w : plain) w = rounded(dice.bell() * 2 / std::sqrt(float(inputs)));
            return plain;
        };
        // Pairs by eight: output i of the first half at the place of a tile's row g, its partner at row g + 8.
        auto paired = [](const std::vector<float>& plain, unsigned outputs, unsigned inputs, unsigned span) {
            std::vector<float> mixed(plain.size());
            for (unsigned n = 0; n < outputs; n++) {
                unsigned base = n / span * span, in = n % span, half = span / 2;
                unsigned to = base + in % half / 8 * 16 + in / half * 8 + in % half % 8;
                std::copy_n(plain.begin() + size_t(n) * inputs, inputs, mixed.begin() + size_t(to) * inputs);
            }
            return mixed;
        };
        auto gains = [&] {
            std::vector<float> gain(hidden);
            for (float& w : gain) w = 1 + dice.bell() * 0.2f;
            return gain;
        };
        for (unsigned i = 0; i < LAYERS; i++) {
            Layer layer;
            layer.qkv = matrix(all_heads() * dim, hidden);
            layer.o = matrix(hidden, width());
            layer.gate_up = matrix(2 * inner, hidden);
            layer.down = matrix(hidden, inner);
            layer.norm = gains();
            layer.mlp_norm = gains();
            layer.packed_qkv = std::make_unique<Packed>(paired(layer.qkv, all_heads() * dim, hidden, dim), all_heads() * dim, hidden);
            layer.packed_o = std::make_unique<Packed>(layer.o, hidden, width());
            layer.packed_gate_up = std::make_unique<Packed>(paired(layer.gate_up, 2 * inner, hidden, 2 * inner), 2 * inner, hidden);
            layer.packed_down = std::make_unique<Packed>(layer.down, hidden, inner);
            layers.push_back(std::move(layer));
            size_t cache = size_t(PAGES) * 16 * kv_heads * dim;
            keys.push_back(std::make_unique<Memory<u16>>(cache));
            values.push_back(std::make_unique<Memory<u16>>(cache));
        }
        head = matrix(VOCAB, hidden);
        norm = gains();
        packed_head = std::make_unique<Packed>(head, VOCAB, hidden);
        for (unsigned p = 0; p < POSITIONS; p++) {
            for (unsigned i = 0; i < dim / 2; i++) {
                double angle = p * std::pow(10000.0, -2.0 * i / dim);
                turns[p * dim + i] = float(std::cos(angle));
                turns[p * dim + dim / 2 + i] = float(std::sin(angle));
            }
        }
    }

    struct Row {
        unsigned token, position, slot, committed, first_page;
        std::vector<i32> path;
    };

    /// Logits of rows, in a bucket of `bucket` rows of which the others are padding.
    std::vector<std::vector<float>> step(const std::vector<Row>& rows, const std::vector<i32>& pages, unsigned bucket) {
        unsigned shape = bucket <= 8 ? 0 : bucket <= 16 ? 2 : bucket <= 32 ? 4 : bucket <= 64 ? 6 : 8, z = SHAPES[shape].shares ? 4 : 1;
        unsigned stride = packed_head->chunks * 32, stride_o = layers[0].packed_o->chunks * 32;
        unsigned stride_down = layers[0].packed_down->chunks * 32;
        Memory<i32> tokens(ROWS, 0), positions(ROWS, 0), slots(ROWS), committed(ROWS, 0), first_page(ROWS, 0), first_path(ROWS, 0),
            path_length(ROWS, 0);
        std::vector<i32> paths;
        for (unsigned r = 0; r < rows.size(); r++) {
            tokens[r] = i32(rows[r].token);
            positions[r] = i32(rows[r].position);
            slots[r] = i32(rows[r].slot);
            committed[r] = i32(rows[r].committed);
            first_page[r] = i32(rows[r].first_page);
            first_path[r] = i32(paths.size());
            path_length[r] = i32(rows[r].path.size());
            paths.insert(paths.end(), rows[r].path.begin(), rows[r].path.end());
        }
        Memory<float> x(size_t(ROWS) * hidden), logits(size_t(ROWS) * VOCAB);
        Memory<u16> normed(size_t(ROWS) * stride, 0), queries(size_t(ROWS) * width()), attended(size_t(ROWS) * stride_o, 0),
            activated(size_t(ROWS) * stride_down, 0);
        Memory<float> room(size_t(ROWS) * kv_heads * 2 * (heads / kv_heads * dim + 16));
        emulator::overlaps = true;
        run(embed, {bucket, 1, 1}, 256, 0, Embed{packed_head->bytes, tokens, x, hidden, packed_head->chunks});
        auto multiplied = [&](const Packed& weight, u16* from, void* to, Then then, unsigned outputs, unsigned stride_y, unsigned layer) {
            Matmul m{};
            m.weights = reinterpret_cast<const u8*>(weight.bytes.data);
            m.x = from;
            m.y = to;
            m.turns = turns;
            m.positions = positions;
            m.slots = slots;
            m.keys = *keys[layer];
            m.values = *values[layer];
            m.chunks = weight.chunks;
            m.outputs = outputs;
            m.stride_x = weight.chunks * 32;
            m.stride_y = stride_y;
            m.then = then;
            m.heads = heads;
            m.kv_heads = kv_heads;
            m.head_dim = dim;
            multiply(SHAPES[shape], m, weight.tiles, bucket, z);
        };
        auto normalised = [&](std::vector<float>& gain) {
            run(rms_norm, {bucket, 1, 1}, 256, 32, Norm{x, gain.data(), normed, nullptr, hidden, stride, 1e-5f});
        };
        for (unsigned i = 0; i < LAYERS; i++) {
            Layer& layer = layers[i];
            normalised(layer.norm);
            multiplied(*layer.packed_qkv, normed, queries, TURN, all_heads() * dim, width(), i);
            Attend at{};
            at.queries = queries;
            at.keys = *keys[i];
            at.values = *values[i];
            at.y = attended;
            at.committed = committed;
            at.first_page = first_page;
            at.pages = pages.data();
            at.first_path = first_path;
            at.path_length = path_length;
            at.paths = paths.data();
            at.room = room;
            at.kv_heads = kv_heads;
            at.stride_y = stride_o;
            at.most_pieces = 2;
            at.scale = 1 / std::sqrt(float(dim));
            at.rows = bucket;
            at.together = bucket < 8 ? 1 : 4;
            at.takes = 1;
            at.group = heads / kv_heads;
            at.head_dim = dim;
            run(attend, {kv_heads, (bucket + at.together - 1) / at.together, 1 + at.together}, 128, attend_bytes, at);
            run(join_pieces, {kv_heads, bucket, 1}, 256, 0, at);
            multiplied(*layer.packed_o, attended, x, ADD, hidden, hidden, i);
            normalised(layer.mlp_norm);
            multiplied(*layer.packed_gate_up, normed, activated, GATE, inner, stride_down, i);
            multiplied(*layer.packed_down, activated, x, ADD, hidden, hidden, i);
        }
        normalised(norm);
        multiplied(*packed_head, normed, logits, STORE, VOCAB, VOCAB, 0);
        emulator::wait();
        emulator::overlaps = false;
        std::vector<std::vector<float>> result;
        for (unsigned r = 0; r < rows.size(); r++) result.emplace_back(logits.data + size_t(r) * VOCAB, logits.data + size_t(r + 1) * VOCAB);
        return result;
    }

    /// The same in double precision and without a cache: logits of the last token.
    std::vector<double> reference(const std::vector<unsigned>& text) const {
        using Rows = std::vector<std::vector<double>>;
        Rows x;
        for (unsigned token : text) {
            std::vector<double> row;
            for (unsigned k = 0; k < hidden; k++) row.push_back(head[size_t(token) * hidden + k]);
            x.push_back(row);
        }
        auto times = [](const std::vector<float>& w, const std::vector<double>& v) {
            std::vector<double> y(w.size() / v.size());
            for (size_t n = 0; n < y.size(); n++) {
                for (size_t k = 0; k < v.size(); k++) y[n] += double(w[n * v.size() + k]) * v[k];
            }
            return y;
        };
        auto normalised = [&](const std::vector<double>& v, const std::vector<float>& gain) {
            double sum = 0;
            for (double e : v) sum += e * e;
            std::vector<double> y;
            for (size_t k = 0; k < v.size(); k++) y.push_back(v[k] / std::sqrt(sum / double(v.size()) + 1e-5) * gain[k]);
            return y;
        };
        for (const Layer& layer : layers) {
            Rows qkv;
            for (unsigned p = 0; p < x.size(); p++) {
                auto row = times(layer.qkv, normalised(x[p], layer.norm));
                for (unsigned h = 0; h < heads + kv_heads; h++) {
                    for (unsigned i = 0; i < dim / 2; i++) {
                        double angle = p * std::pow(10000.0, -2.0 * i / dim), a = row[h * dim + i], b = row[h * dim + dim / 2 + i];
                        row[h * dim + i] = a * std::cos(angle) - b * std::sin(angle);
                        row[h * dim + dim / 2 + i] = b * std::cos(angle) + a * std::sin(angle);
                    }
                }
                qkv.push_back(row);
            }
            for (unsigned p = 0; p < x.size(); p++) {
                std::vector<double> mixed(width());
                for (unsigned h = 0; h < heads; h++) {
                    unsigned kv = h / (heads / kv_heads), k = (heads + kv) * dim, v = (heads + kv_heads + kv) * dim;
                    std::vector<double> weights;
                    double sum = 0;
                    for (unsigned s = 0; s <= p; s++) {
                        double score = 0;
                        for (unsigned d = 0; d < dim; d++) score += qkv[p][h * dim + d] * qkv[s][k + d];
                        weights.push_back(std::exp(score / std::sqrt(double(dim))));
                        sum += weights.back();
                    }
                    for (unsigned s = 0; s <= p; s++) {
                        for (unsigned d = 0; d < dim; d++) mixed[h * dim + d] += weights[s] / sum * qkv[s][v + d];
                    }
                }
                auto delta = times(layer.o, mixed);
                for (unsigned k = 0; k < hidden; k++) x[p][k] += delta[k];
                auto both = times(layer.gate_up, normalised(x[p], layer.mlp_norm));
                std::vector<double> activated;
                for (unsigned i = 0; i < inner; i++) activated.push_back(both[i] / (1 + std::exp(-both[i])) * both[inner + i]);
                delta = times(layer.down, activated);
                for (unsigned k = 0; k < hidden; k++) x[p][k] += delta[k];
            }
        }
        return times(head, normalised(x.back(), norm));
    }
};

inline void model_is_its_rows(SmallLlama model) {
    constexpr unsigned LONG = 134;
    Dice dice{99};
    std::vector<unsigned> text;
    for (unsigned i = 0; i < LONG; i++) text.push_back(dice.below(SmallLlama::VOCAB));
    // Text 0 in pages 0 to 8, text 1 in pages 18 down to 10; trees in the last pages.
    std::vector<i32> pages;
    for (i32 p = 0; p < 9; p++) pages.push_back(p);
    for (i32 p = 0; p < 9; p++) pages.push_back(18 - p);
    auto appended = [&](unsigned which, unsigned position) {
        unsigned page = which == 0 ? position / 16 : 18 - position / 16;
        return SmallLlama::Row{text[position], position, page * 16 + position % 16, position + 1, which * 9, {}};
    };
    auto prefill = [&](unsigned which, unsigned from, unsigned to, unsigned bucket) {
        std::vector<SmallLlama::Row> rows;
        for (unsigned p = from; p < to; p++) rows.push_back(appended(which, p));
        return model.step(rows, pages, bucket);
    };
    auto equal = [&](const char* name, const std::vector<float>& a, const std::vector<float>& b, unsigned position) {
        bool same_bits = true;
        for (unsigned i = 0; i < a.size(); i++) same_bits &= same(a[i], b[i]);
        CHECK(same_bits, "model with heads of %u: %s at position %u", model.dim, name, position);
    };
    std::vector<std::vector<float>> chunks;
    for (auto [from, to, bucket] : {std::tuple{0u, 100u, 128u}, {100u, 131u, 32u}, {131u, LONG, 8u}}) {
        for (auto& logits : prefill(0, from, to, bucket)) chunks.push_back(logits);
    }
    // Other chunks, other pages, other shapes.
    unsigned at = 0;
    for (unsigned size : {1u, 7u, 60u, 12u, 49u, 5u}) {
        for (auto& logits : prefill(1, at, at + size, size == 1 ? 1 : up_to(size, 16))) {
            equal("another cut of the prompt", logits, chunks[at], at);
            at++;
        }
    }
    std::vector<double> want = model.reference(text);
    double off = 0, size = 0;
    for (unsigned i = 0; i < want.size(); i++) {
        off += (chunks[LONG - 1][i] - want[i]) * (chunks[LONG - 1][i] - want[i]);
        size += want[i] * want[i];
    }
    CHECK(off <= size * 0.03 * 0.03, "model with heads of %u: logits are %.4f off", model.dim, std::sqrt(off / size));
    // Behind 126 positions: a chain of eight in a tree with siblings, among rows of the other text.
    std::vector<SmallLlama::Row> rows;
    std::vector<i32> slots;
    for (unsigned i = 0; i < 8; i++) {
        slots.push_back(i32(20 * 16 + i * 5));
        unsigned position = 126 + i;
        rows.push_back({text[position], position, unsigned(slots[i]), 126, 0, slots});
        std::vector<i32> sibling(slots.begin(), slots.end() - 1);
        sibling.push_back(i32(23 * 16 + i));
        rows.push_back({(text[position] + 1) % SmallLlama::VOCAB, position, unsigned(sibling.back()), 126, 0, sibling});
        rows.push_back(appended(1, i * 16));
    }
    auto tree = model.step(rows, pages, 32);
    for (unsigned i = 0; i < 8; i++) {
        equal("a tree", tree[3 * i], chunks[126 + i], 126 + i);
        equal("a stranger's row beside a tree", tree[3 * i + 2], chunks[i * 16], i * 16);
    }
}

inline void test_model() {
    emulator::order = emulator::Order::FORWARD;
    model_is_its_rows({96, 136, 2, 2, 48, attend_1_by_48, attend_bytes<1, 48>()});
    emulator::order = emulator::Order::SHUFFLED;
    model_is_its_rows({80, 200, 3, 1, 64, attend_3_by_64, attend_bytes<3, 64>()});
    emulator::order = emulator::Order::FORWARD;
}

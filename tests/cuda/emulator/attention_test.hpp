// Attention: what a row sees decides, not where it lies, who is beside it, or how many blocks share the work.
#pragma once

#include "attention.cu"
#include "check.hpp"

template <unsigned GROUP, unsigned DIM>
void attention_of(void (*kernel)(const Attend)) {
    constexpr unsigned KV = 2, PAGES = 80, LONGEST = 400;
    Dice dice{GROUP * 131 + DIM};
    std::vector<u16> keys(size_t(LONGEST) * KV * DIM), values(keys.size());
    for (u16& k : keys) k = to_bf16(dice.bell());
    for (u16& v : values) v = to_bf16(dice.bell());
    std::vector<u16> query(KV * GROUP * DIM);
    for (u16& q : query) q = to_bf16(dice.bell() * 2);
    Memory<u16> key_cache(size_t(PAGES) * 16 * KV * DIM), value_cache(size_t(PAGES) * 16 * KV * DIM);
    auto put = [&](unsigned position, unsigned slot) {
        for (unsigned h = 0; h < KV; h++) {
            size_t to = cache_at(i32(slot), h, KV, DIM), from = (size_t(position) * KV + h) * DIM;
            std::copy_n(keys.begin() + from, DIM, key_cache.data + to);
            std::copy_n(values.begin() + from, DIM, value_cache.data + to);
        }
    };
    // Text A lies in pages 0.. in order, text B in pages 69 downwards, and single positions in the last ten pages.
    for (unsigned p = 0; p < LONGEST; p++) {
        put(p, p);
        put(p, (69 - p / 16) * 16 + p % 16);
    }
    struct Row {
        unsigned length, committed, place;
    };
    std::vector<Row> rows;
    for (unsigned length : {1u, 2u, 17u, 127u, 128u, 129u, 255u, 256u, 257u, 400u}) {
        rows.push_back({length, length, 0});
        rows.push_back({length, length, 1});
        for (unsigned path : {1u, 3u, 16u}) {
            if (path <= length) rows.push_back({length, length - path, path % 2});
        }
    }
    rows.push_back({0, 0, 0});
    unsigned count = unsigned(rows.size()), next_slot = 70 * 16;
    std::vector<i32> pages, paths;
    for (unsigned p = 0; p < 25; p++) pages.push_back(i32(p));
    for (unsigned p = 0; p < 25; p++) pages.push_back(i32(69 - p));
    Memory<i32> committed(count), first_page(count), first_path(count), path_length(count);
    for (unsigned r = 0; r < count; r++) {
        committed[r] = i32(rows[r].committed);
        first_page[r] = i32(rows[r].place * 25);
        first_path[r] = i32(paths.size());
        path_length[r] = i32(rows[r].length - rows[r].committed);
        for (unsigned p = rows[r].committed; p < rows[r].length; p++) {
            // Slots of paths are taken from all over the last pages, again and again with the same position in them.
            unsigned slot = next_slot + (p * 7) % 160;
            put(p, slot);
            paths.push_back(i32(slot));
        }
        // A row of its own: what the next one puts there must not matter, so rows run one by one where paths overlap.
    }
    unsigned width = KV * GROUP * DIM;
    auto attend_rows = [&](unsigned first, unsigned many, unsigned z, unsigned together) {
        Memory<u16> queries(size_t(many) * width), y(size_t(many) * width);
        for (unsigned r = 0; r < many; r++) std::copy(query.begin(), query.end(), queries.data + size_t(r) * width);
        Memory<float> room(size_t(many) * KV * 4 * (GROUP * DIM + 16));
        Attend at{};
        at.queries = queries;
        at.keys = key_cache;
        at.values = value_cache;
        at.y = y;
        at.committed = committed.data + first;
        at.first_page = first_page.data + first;
        at.pages = pages.data();
        at.first_path = first_path.data + first;
        at.path_length = path_length.data + first;
        at.paths = paths.data();
        at.room = room;
        at.kv_heads = KV;
        at.stride_y = width;
        at.most_pieces = 4;
        at.rows = many;
        at.together = together;
        at.takes = z;
        at.group = GROUP;
        at.head_dim = DIM;
        at.scale = 1.0f / std::sqrt(float(DIM));
        run(kernel, {KV, (many + together - 1) / together, z + together}, 128, attend_bytes<GROUP, DIM>(), at);
        run(join_pieces, {KV, many, 1}, 256, 0, at);
        return std::vector<u16>(y.data, y.data + size_t(many) * width);
    };
    auto fill_path = [&](unsigned r) {
        for (unsigned p = rows[r].committed; p < rows[r].length; p++) put(p, u32(paths[first_path[r] + p - rows[r].committed]));
    };
    std::vector<std::vector<u16>> by_length(LONGEST + 1);
    for (unsigned r = 0; r < count; r++) {
        if (rows[r].length == 0) continue;
        fill_path(r);
        std::vector<u16> one = attend_rows(r, 1, 1 + r % 4, 1 + r % 2);
        std::vector<u16>& known = by_length[rows[r].length];
        if (known.empty()) {
            known = one;
            // Close to the truth.
            for (unsigned h = 0; h < KV * GROUP; h++) {
                std::vector<double> weights(rows[r].length);
                double most = -1e30, sum = 0;
                for (unsigned p = 0; p < rows[r].length; p++) {
                    double score = 0;
                    for (unsigned d = 0; d < DIM; d++) {
                        score += double(from_bf16(query[h * DIM + d])) * from_bf16(keys[(size_t(p) * KV + h / GROUP) * DIM + d]);
                    }
                    weights[p] = score / std::sqrt(double(DIM));
                    most = std::max(most, weights[p]);
                }
                for (double& w : weights) sum += w = std::exp(w - most);
                for (unsigned d = 0; d < DIM; d++) {
                    double want = 0;
                    for (unsigned p = 0; p < rows[r].length; p++) {
                        want += weights[p] / sum * from_bf16(values[(size_t(p) * KV + h / GROUP) * DIM + d]);
                    }
                    double got = from_bf16(one[h * DIM + d]);
                    CHECK(std::fabs(got - want) <= 0.005 * std::fabs(want) + 2e-3, "attention: %g, not %g", got, want);
                }
            }
        }
        CHECK(one == known, "attention %u by %u: %u positions, %u of them text, place %u: another answer", GROUP, DIM,
              rows[r].length, rows[r].committed, rows[r].place);
    }
    // All rows without a path in one launch.
    for (auto [z, together] : {std::pair{1u, 1u}, {3u, 1u}, {1u, 4u}, {4u, 8u}}) {
        for (unsigned r = 0; r < count; r++) {
            if (rows[r].committed < rows[r].length) fill_path(r);
        }
        std::vector<u16> all = attend_rows(0, count, z, together);
        for (unsigned r = 0; r < count; r++) {
            if (rows[r].length == 0) continue;
            bool is_text = rows[r].committed == rows[r].length;
            bool equal = std::equal(all.begin() + size_t(r) * width, all.begin() + size_t(r + 1) * width,
                                    by_length[rows[r].length].begin());
            if (is_text) CHECK(equal, "attention %u by %u: a row of %u among others", GROUP, DIM, rows[r].length);
        }
    }
}

inline void test_attention() {
    emulator::order = emulator::Order::FORWARD;
    attention_of<1, 48>(attend_1_by_48);
    attention_of<1, 64>(attend_1_by_64);
    attention_of<4, 64>(attend_4_by_64);
    attention_of<4, 128>(attend_4_by_128);
    attention_of<1, 96>(attend_1_by_96);
    attention_of<5, 128>(attend_5_by_128);
    emulator::order = emulator::Order::SHUFFLED;
    attention_of<3, 64>(attend_3_by_64);
    attention_of<3, 128>(attend_3_by_128);
    attention_of<1, 128>(attend_1_by_128);
    attention_of<2, 128>(attend_2_by_128);
    attention_of<7, 64>(attend_7_by_64);
    emulator::order = emulator::Order::BACKWARD;
    attention_of<8, 64>(attend_8_by_64);
    attention_of<8, 128>(attend_8_by_128);
    attention_of<6, 128>(attend_6_by_128);
    attention_of<7, 128>(attend_7_by_128);
    emulator::order = emulator::Order::FORWARD;
}

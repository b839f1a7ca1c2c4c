// The matmul: one order of arithmetic in every shape, and what is done with its sums.
#pragma once

#include "shapes.hpp"

/// Every shape gives a row the bits that the smallest one gives it alone, and they are close to the truth.
inline void matmul_is_one_order(unsigned outputs, unsigned inputs, Then then) {
    constexpr unsigned ROWS = 128;
    Dice dice{outputs * 31 + inputs + then};
    std::vector<float> plain(size_t(outputs) * inputs);
    for (float& w : plain) w = rounded(dice.bell());
    Packed weight(plain, outputs, inputs);
    unsigned stride_x = weight.chunks * 32;
    Memory<u16> x(size_t(ROWS) * stride_x, 0);
    for (unsigned r = 0; r < ROWS; r++) {
        for (unsigned k = 0; k < inputs; k++) x[size_t(r) * stride_x + k] = to_bf16(dice.bell());
    }
    // Heads of 16, one of each kind in every 48 outputs; the place and position of each row.
    unsigned head_dim = 16, kinds = outputs / 48;
    Memory<i32> positions(ROWS), slots(ROWS);
    Memory<float> turns(size_t(ROWS) * head_dim);
    for (unsigned r = 0; r < ROWS; r++) {
        positions[r] = i32(dice.below(ROWS));
        slots[r] = r % 7 == 3 ? -1 : i32((r * 37) % ROWS);
    }
    for (unsigned p = 0; p < ROWS; p++) {
        for (unsigned i = 0; i < head_dim / 2; i++) {
            turns[p * head_dim + i] = float(std::cos(p * 0.1 * i));
            turns[p * head_dim + head_dim / 2 + i] = float(std::sin(p * 0.1 * i));
        }
    }
    unsigned stride_y = then == GATE ? outputs / 2 : then == TURN ? kinds * head_dim : outputs;
    size_t cache = size_t(ROWS) * kinds * head_dim;
    struct Result {
        std::vector<u32> y, keys, values;
    };
    auto result = [&](const Shape& shape, u16* from, unsigned rows, unsigned z, unsigned first) {
        Memory<u32> y(size_t(ROWS + 128) * stride_y, then == ADD ? 0 : 0xff);
        Memory<u16> keys(cache), values(cache);
        if (then == ADD) {
            for (size_t i = 0; i < size_t(rows) * stride_y; i++) y[i] = bits_of(0.25f * float((i + size_t(first) * stride_y) % 11));
        }
        Matmul m{};
        m.weights = reinterpret_cast<const u8*>(weight.bytes.data);
        m.x = from;
        m.y = y.data;
        m.turns = turns;
        m.positions = positions.data + first;
        m.slots = slots.data + first;
        m.keys = keys;
        m.values = values;
        m.chunks = weight.chunks;
        m.outputs = then == GATE ? outputs / 2 : outputs;
        m.stride_x = stride_x;
        m.stride_y = stride_y;
        m.then = then;
        m.heads = m.kv_heads = kinds;
        m.head_dim = head_dim;
        multiply(shape, m, weight.tiles, rows, z);
        Result result;
        size_t count = size_t(rows) * stride_y;
        if (then == GATE || then == TURN) {
            const u16* half = reinterpret_cast<const u16*>(y.data);
            result.y.assign(half, half + count);
        } else {
            result.y.assign(y.data, y.data + count);
        }
        result.keys.assign(keys.data, keys.data + cache);
        result.values.assign(values.data, values.data + cache);
        return result;
    };
    // Each row alone: its neighbours in the tile are not numbers.
    Result alone;
    alone.keys.assign(cache, 0xffff);
    alone.values.assign(cache, 0xffff);
    unsigned step = then == STORE ? 5 : 9;
    for (unsigned r = 0; r < ROWS; r += step) {
        Memory<u16> one(size_t(8) * stride_x);
        std::memcpy(one.data, x.data + size_t(r) * stride_x, stride_x * 2);
        Result row = result(SHAPES[0], one, 1, 1, r);
        alone.y.insert(alone.y.end(), row.y.begin(), row.y.end());
        // What its seven neighbours have stored is theirs.
        if (then == TURN && slots[r] >= 0) {
            for (unsigned h = 0; h < kinds; h++) {
                size_t at = cache_at(slots[r], h, kinds, head_dim);
                std::copy_n(row.keys.begin() + at, head_dim, alone.keys.begin() + at);
                std::copy_n(row.values.begin() + at, head_dim, alone.values.begin() + at);
            }
        }
    }
    for (const Shape& shape : SHAPES) {
        for (unsigned z : {1u, 4u}) {
            if (z == 4 && !shape.shares) continue;
            Result all = result(shape, x, ROWS, z, 0);
            unsigned wrong = 0;
            for (unsigned r = 0, i = 0; r < ROWS; r += step, i++) {
                for (unsigned n = 0; n < stride_y; n++) {
                    wrong += all.y[size_t(r) * stride_y + n] != alone.y[size_t(i) * stride_y + n];
                }
                if (then != TURN || slots[r] < 0) continue;
                for (unsigned h = 0; h < kinds; h++) {
                    for (unsigned d = 0; d < head_dim; d++) {
                        size_t at = cache_at(slots[r], h, kinds, head_dim) + d;
                        wrong += all.keys[at] != alone.keys[at] || all.values[at] != alone.values[at];
                    }
                }
            }
            CHECK(wrong == 0, "matmul %s, %u blocks for the parts, %u x %u, then %u: %u numbers differ from a row alone",
                  shape.name, z, outputs, inputs, then, wrong);
        }
    }
    if (then != STORE) return;
    for (unsigned r = 0, i = 0; r < ROWS; r += step, i++) {
        for (unsigned n = 0; n < outputs; n++) {
            double sum = 0, size = 0;
            for (unsigned k = 0; k < inputs; k++) {
                double product = double(plain[size_t(n) * inputs + k]) * from_bf16(x[size_t(r) * stride_x + k]);
                sum += product;
                size += std::fabs(product);
            }
            float got = float_of(alone.y[size_t(i) * stride_y + n]);
            CHECK(std::fabs(got - sum) <= size * 1e-5, "matmul: row %u, output %u is %g, not %g", r, n, got, sum);
        }
    }
}

inline void test_matmul() {
    // More chunks to a part than there are stages, and fewer.
    matmul_is_one_order(96, 2300, STORE);
    for (auto order : {emulator::Order::SHUFFLED, emulator::Order::BACKWARD}) {
        emulator::order = order;
        matmul_is_one_order(96, 384, STORE);
    }
    emulator::order = emulator::Order::FORWARD;
    matmul_is_one_order(96, 100, STORE);
    matmul_is_one_order(96, 256, ADD);
    matmul_is_one_order(96, 256, GATE);
    matmul_is_one_order(96, 128, TURN);
}

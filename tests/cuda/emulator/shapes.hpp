// Packed weights, and the shapes of the matmul with what each needs.
#pragma once

#include "check.hpp"
#include "matmul.cu"

/// `[outputs][inputs]` as `matmul.cuh` wants it, zero where it is padded.
struct Packed {
    Packed(const std::vector<float>& plain, unsigned outputs, unsigned inputs)
        : chunks(up_to(inputs, 128) / 32), tiles(up_to(outputs, 128) / 16), bytes(size_t(tiles) * chunks * 512, 0) {
        for (unsigned n = 0; n < outputs; n++) {
            for (unsigned k = 0; k < inputs; k++) {
                unsigned r = n % 16, in = k % 32, pair = r / 8 + in / 2 % 2 * 2;
                size_t at = (size_t(n / 16) * chunks + k / 32) * 512 + in / 4 % 2 * 256 + (r % 8 * 4 + in / 8) * 8 +
                            pair * 2 + in % 2;
                bytes[at] = to_bf16(plain[size_t(n) * inputs + k]);
            }
        }
    }
    unsigned chunks, tiles;
    Memory<u16> bytes;
};

/// One shape of the matmul.
struct Shape {
    const char* name;
    void (*kernel)(const Matmul);
    unsigned rows, outputs, threads;
    size_t bytes;
    bool shares;
};
inline const Shape SHAPES[] = {
    {"8 by 16", matmul_8_by_16, 8, 16, 128, stream_bytes<1, 1, 16>(), false},
    {"8 by 32", matmul_8_by_32, 8, 32, 128, stream_bytes<2, 1, 10>(), false},
    {"16 by 16", matmul_16_by_16, 16, 16, 128, stream_bytes<1, 2, 13>(), false},
    {"16 by 32", matmul_16_by_32, 16, 32, 128, stream_bytes<2, 2, 9>(), false},
    {"32 by 32", matmul_32_by_32, 32, 32, 128, stream_bytes<2, 4, 7>(), false},
    {"64 by 32", matmul_64_by_32, 64, 32, 128, stream_bytes<2, 8, 4>(), false},
    {"64 by 64", matmul_64_by_64, 64, 64, 128, share_bytes<1, 8, 4, 1, 6>(), true},
    {"64 by 128", matmul_64_by_128, 64, 128, 128, share_bytes<2, 8, 4, 1, 4>(), true},
    {"128 by 128", matmul_128_by_128, 128, 128, 256, share_bytes<2, 8, 4, 2, 4>(), true},
};

/// Runs a shape over `rows` rows, with `z` blocks for the parts.
inline void multiply(const Shape& shape, Matmul m, unsigned tiles, unsigned rows, unsigned z) {
    unsigned across = up_to(rows, shape.rows) / shape.rows, down = tiles * 16 / shape.outputs;
    Memory<float> partials(size_t(4) * across * shape.rows * tiles * 16);
    Memory<u32> arrived(size_t(across) * down, 0);
    m.partials = partials;
    m.arrived = arrived;
    if (shape.shares) {
        emulator::launch(shape.kernel, {across, down, z}, shape.threads, shape.bytes, m);
    } else {
        for (unsigned first = 0; first < rows; first += shape.rows) {
            Matmul part = m;
            part.x += size_t(first) * m.stride_x;
            size_t size = m.then == STORE || m.then == ADD ? 4 : 2;
            part.y = static_cast<u8*>(m.y) + size_t(first) * m.stride_y * size;
            part.positions += m.positions ? first : 0;
            part.slots += m.slots ? first : 0;
            emulator::launch(shape.kernel, {down, 1, 1}, shape.threads, shape.bytes, part);
        }
    }
}

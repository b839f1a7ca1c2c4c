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
#define SHAPE(rows, outputs, threads, shares) \
    {#rows " by " #outputs, matmul_##rows##_by_##outputs, rows, outputs, threads, shared_bytes_of_matmul_##rows##_by_##outputs, shares}
inline const Shape SHAPES[] = {
    SHAPE(8, 16, 128, false), SHAPE(8, 32, 128, false), SHAPE(16, 16, 128, false), SHAPE(16, 32, 128, false),
    SHAPE(32, 32, 128, false), SHAPE(64, 32, 128, false), SHAPE(64, 64, 128, true), SHAPE(64, 128, 128, true),
    SHAPE(128, 128, 256, true),
};

/// Runs a shape over `rows` rows, with `z` blocks for the parts.
inline void multiply(const Shape& shape, Matmul m, unsigned tiles, unsigned rows, unsigned z) {
    unsigned across = up_to(rows, shape.rows) / shape.rows, down = tiles * 16 / shape.outputs;
    auto partials = std::make_shared<Memory<float>>(size_t(4) * across * shape.rows * tiles * 16);
    auto arrived = std::make_shared<Memory<u32>>(size_t(across) * down, 0);
    m.partials = *partials;
    m.arrived = *arrived;
    // They are there until the kernel has run.
    auto kernel = [partials, arrived, run = shape.kernel](const Matmul& m) { run(m); };
    if (shape.shares) {
        emulator::launch(kernel, {across, down, z}, shape.threads, shape.bytes, m);
    } else {
        for (unsigned first = 0; first < rows; first += shape.rows) {
            Matmul part = m;
            part.x += size_t(first) * m.stride_x;
            size_t size = m.then == STORE || m.then == ADD ? 4 : 2;
            part.y = static_cast<u8*>(m.y) + size_t(first) * m.stride_y * size;
            part.positions += m.positions ? first : 0;
            part.slots += m.slots ? first : 0;
            emulator::launch(kernel, {down, 1, 1}, shape.threads, shape.bytes, part);
        }
    }
}

// The matmul by number of rows: which shapes there are. The name says rows and outputs of a block.
#pragma once

#include "matmul.cuh"

// `way` is `stream` or `share`, with the numbers of its template: tiles, warps, and last the stages, of which large blocks have
// more. Small ones leave room for two blocks on a multiprocessor where they can.
#define MATMUL(rows, outputs, threads, blocks, way, ...)                            \
    SHARED_BYTES(matmul_##rows##_by_##outputs, (way##_bytes<__VA_ARGS__>()))        \
    KERNEL(threads, blocks) matmul_##rows##_by_##outputs(const Matmul m) { way<__VA_ARGS__>(m); }

// Each warp for itself: best up to 32 rows, and beyond where blocks would be too few otherwise.
MATMUL(8, 16, 128, 2, stream, 1, 1, (LARGE_BLOCKS ? 16 : 8))
MATMUL(8, 32, 128, 2, stream, 2, 1, (LARGE_BLOCKS ? 10 : 4))
MATMUL(16, 16, 128, 2, stream, 1, 2, (LARGE_BLOCKS ? 13 : 6))
MATMUL(16, 32, 128, 2, stream, 2, 2, (LARGE_BLOCKS ? 9 : 4))
MATMUL(32, 32, 128, 2, stream, 2, 4, (LARGE_BLOCKS ? 7 : 3))
MATMUL(64, 32, 128, 2, stream, 2, 8, (LARGE_BLOCKS ? 4 : 3))
// What is loaded is shared.
MATMUL(64, 64, 128, 2, share, 1, 8, 4, 1, (LARGE_BLOCKS ? 6 : 3))
MATMUL(64, 128, 128, 2, share, 2, 8, 4, 1, (LARGE_BLOCKS ? 4 : 3))
MATMUL(128, 128, 256, 1, share, 2, 8, 4, 2, (LARGE_BLOCKS ? 4 : 3))

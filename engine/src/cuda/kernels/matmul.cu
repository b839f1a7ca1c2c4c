// The matmul by number of rows: which shapes there are. The name says rows and outputs of a block.
#pragma once

#include "matmul.cuh"

// Each warp for itself: best up to 32 rows, and beyond where blocks would be too few otherwise.
KERNEL(128, 2) matmul_8_by_16(const Matmul m) { stream<1, 1, 16>(m); }
KERNEL(128, 2) matmul_8_by_32(const Matmul m) { stream<2, 1, 10>(m); }
KERNEL(128, 2) matmul_16_by_16(const Matmul m) { stream<1, 2, 13>(m); }
KERNEL(128, 2) matmul_16_by_32(const Matmul m) { stream<2, 2, 9>(m); }
KERNEL(128, 2) matmul_32_by_32(const Matmul m) { stream<2, 4, 7>(m); }
KERNEL(128, 2) matmul_64_by_32(const Matmul m) { stream<2, 8, 4>(m); }
// What is loaded is shared.
KERNEL(128, 2) matmul_64_by_64(const Matmul m) { share<1, 8, 4, 1, 6>(m); }
KERNEL(128, 2) matmul_64_by_128(const Matmul m) { share<2, 8, 4, 1, 4>(m); }
KERNEL(256, 1) matmul_128_by_128(const Matmul m) { share<2, 8, 4, 2, 4>(m); }

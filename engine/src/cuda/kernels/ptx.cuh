// Everything here that is more than arithmetic: one named function for each instruction, with two bodies.
//
// The first body is the instruction. The second, under OFFSHOOT_EMULATED, calls the emulator of tests/cuda, which runs the
// same kernels as C++ on a CPU. Kernels use no instruction, and no intrinsic of the compiler, but through this file. They
// include no header of the CUDA toolkit, so NVRTC compiles them alone.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i32 = int;
using i64 = long long;

#ifdef OFFSHOOT_EMULATED
#include "emulator.hpp"
#define DEVICE static inline
#define DEVICE_MEMBER inline
#define KERNEL(threads, blocks) [[maybe_unused]] static void
#define SHARED_BYTES(kernel, bytes) [[maybe_unused]] constexpr u32 shared_bytes_of_##kernel = bytes;
#else
#define DEVICE static __device__ __forceinline__
#define DEVICE_MEMBER __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
/// How much shared memory a block of a kernel needs: whoever launches it reads that from the PTX.
#define SHARED_BYTES(kernel, bytes) extern "C" __device__ const u32 shared_bytes_of_##kernel = bytes;
#endif

/// Whether a block may have 227 KiB of shared memory, as on Hopper and the larger Blackwells, or 99 KiB, which is all that a
/// multiprocessor of compute capability 8.6, 8.9 or 12.0 has.
#if defined(OFFSHOOT_SMALL_BLOCKS) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900)
constexpr bool LARGE_BLOCKS = false;
#else
constexpr bool LARGE_BLOCKS = true;
#endif

constexpr u32 WARP = 32;

/// The block's shared memory, as large as the launch says. Aligned to 16 bytes.
DEVICE u8* shared_memory() {
#ifdef OFFSHOOT_EMULATED
    return emulator::shared_memory();
#else
    extern __shared__ __align__(16) u8 offshoot_shared[];
    return offshoot_shared;
#endif
}

// ---- Waiting

/// All threads of the block have come here, and see what the others have written before.
DEVICE void block_sync() {
#ifdef OFFSHOOT_EMULATED
    emulator::block_sync();
#else
    asm volatile("barrier.sync 0;" ::: "memory");
#endif
}

/// The kernel launched before this one has ended and its writes are seen. Until then only what no kernel writes may be read
/// (weights, and what the host has written for the step), and nothing be written. Every kernel waits, so one that has waited
/// knows that all before it have ended.
DEVICE void wait_for_kernel_before() {
#ifdef OFFSHOOT_EMULATED
    emulator::wait_for_kernel_before();
#elif __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// The kernel launched behind this one may be set up from now on: it waits itself for this one's end. (The emulator lets every
/// kernel begin before all others.)
DEVICE void let_kernel_behind_begin() {
#if !defined(OFFSHOOT_EMULATED) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- Between the lanes of a warp

/// `value` of the lane whose number differs in the bits of `mask`.
DEVICE u32 from_lane_across(u32 value, u32 mask) {
#ifdef OFFSHOOT_EMULATED
    return emulator::from_lane_across(value, mask);
#else
    u32 result;
    asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 0x1f, 0xffffffff;" : "=r"(result) : "r"(value), "r"(mask));
    return result;
#endif
}

DEVICE u32 bits_of(float value) {
#ifdef OFFSHOOT_EMULATED
    return emulator::bits_of(value);
#else
    u32 bits;
    asm("mov.b32 %0, %1;" : "=r"(bits) : "f"(value));
    return bits;
#endif
}

DEVICE float float_of(u32 bits) {
#ifdef OFFSHOOT_EMULATED
    return emulator::float_of(bits);
#else
    float value;
    asm("mov.b32 %0, %1;" : "=f"(value) : "r"(bits));
    return value;
#endif
}

DEVICE u64 bits_of(double value) {
#ifdef OFFSHOOT_EMULATED
    return emulator::bits_of(value);
#else
    u64 bits;
    asm("mov.b64 %0, %1;" : "=l"(bits) : "d"(value));
    return bits;
#endif
}

DEVICE double double_of(u64 bits) {
#ifdef OFFSHOOT_EMULATED
    return emulator::double_of(bits);
#else
    double value;
    asm("mov.b64 %0, %1;" : "=d"(value) : "l"(bits));
    return value;
#endif
}

DEVICE float from_lane_across(float value, u32 mask) {
    return float_of(from_lane_across(bits_of(value), mask));
}

DEVICE u64 from_lane_across(u64 value, u32 mask) {
    u32 low = from_lane_across(u32(value), mask);
    return u64(from_lane_across(u32(value >> 32), mask)) << 32 | low;
}

// ---- Matrix units

/// `c += a * b` on one tile of 16 outputs, 8 rows and 16 products each, accumulated in f32 (`mma.sync.m16n8k16`).
///
/// With `g = lane / 4` and `t = lane % 4`, pairs of bf16: `a.x` (g, 2t), `a.y` (g + 8, 2t), `a.z` (g, 2t + 8), `a.w` (g + 8,
/// 2t + 8); `b0` (2t, g), `b1` (2t + 8, g); f32: `c[0]`, `c[1]` (g, 2t and 2t + 1), `c[2]`, `c[3]` (g + 8, the same).
DEVICE void multiply_tile(float (&c)[4], uint4 a, u32 b0, u32 b1) {
#ifdef OFFSHOOT_EMULATED
    emulator::multiply_tile(c, a, b0, b1);
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
#endif
}

/// Four 8 x 8 matrices of 16-bit numbers from shared memory, turned over (`ldmatrix.x4.trans`): lane `8 i + j` says where row
/// j of matrix i lies, and lane `4 g + t` gets of each matrix the rows 2t and 2t + 1 of column g, as a pair.
DEVICE uint4 load_turned(const void* shared) {
#ifdef OFFSHOOT_EMULATED
    return emulator::load_turned(shared);
#else
    u32 from;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(from) : "l"(shared));
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(from)
                 : "memory");
    return r;
#endif
}

// ---- From memory to shared memory, in the background

/// A place in shared memory as copies name it.
using Place = u32;

DEVICE Place place_of(const void* shared) {
#ifdef OFFSHOOT_EMULATED
    return emulator::place_of(shared);
#else
    Place place;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(place) : "l"(shared));
    return place;
#endif
}

/// Begins to copy 16 bytes that are used once, past the first cache.
DEVICE void copy_begin(Place to, const void* global) {
#ifdef OFFSHOOT_EMULATED
    emulator::copy_begin(to, global);
#else
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#endif
}

/// Closes the group of copies begun since the last one was closed. It may be empty.
DEVICE void copy_close() {
#ifdef OFFSHOOT_EMULATED
    emulator::copy_close();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

/// All but the last `PENDING` groups of this thread's copies are done, and this thread may read them.
template <int PENDING>
DEVICE void copy_wait() {
#ifdef OFFSHOOT_EMULATED
    emulator::copy_wait(PENDING);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// ---- Between blocks

/// What this thread has written is seen by all blocks before what it writes from now on.
DEVICE void device_fence() {
#ifndef OFFSHOOT_EMULATED
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

/// Adds and gives what was there before.
DEVICE u32 atomic_add(u32* at, u32 value) {
#ifdef OFFSHOOT_EMULATED
    return emulator::atomic_add(at, value);
#else
    u32 before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(at), "r"(value) : "memory");
    return before;
#endif
}

/// The same in shared memory.
DEVICE u32 shared_atomic_add(u32* at, u32 value) {
#ifdef OFFSHOOT_EMULATED
    return emulator::atomic_add(at, value);
#else
    u32 to, before;
    asm("{ .reg .u64 a; cvta.to.shared.u64 a, %1; cvt.u32.u64 %0, a; }" : "=r"(to) : "l"(at));
    asm volatile("atom.add.shared.u32 %0, [%1], %2;" : "=r"(before) : "r"(to), "r"(value) : "memory");
    return before;
#endif
}

// ---- Arithmetic with one rounding

/// `a * b + c`, rounded once.
DEVICE float multiply_add(float a, float b, float c) {
#ifdef OFFSHOOT_EMULATED
    return emulator::multiply_add(a, b, c);
#else
    float result;
    asm("fma.rn.f32 %0, %1, %2, %3;" : "=f"(result) : "f"(a), "f"(b), "f"(c));
    return result;
#endif
}

/// `a * b + c`, rounded once.
DEVICE double multiply_add(double a, double b, double c) {
#ifdef OFFSHOOT_EMULATED
    return emulator::multiply_add(a, b, c);
#else
    double result;
    asm("fma.rn.f64 %0, %1, %2, %3;" : "=d"(result) : "d"(a), "d"(b), "d"(c));
    return result;
#endif
}

/// Rounded to nearest, as IEEE 754 has it.
DEVICE float square_root(float x) {
#ifdef OFFSHOOT_EMULATED
    return emulator::square_root(x);
#else
    float result;
    asm("sqrt.rn.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}

/// Two numbers as bf16, rounded to nearest even; `low` in the low half.
DEVICE u32 bf16_pair(float low, float high) {
#ifdef OFFSHOOT_EMULATED
    return emulator::bf16_pair(low, high);
#else
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
#endif
}

DEVICE u16 to_bf16(float x) { return u16(bf16_pair(x, 0.0f)); }
DEVICE float from_bf16(u16 x) { return float_of(u32(x) << 16); }
DEVICE float low_bf16(u32 pair) { return float_of(pair << 16); }
DEVICE float high_bf16(u32 pair) { return float_of(pair & 0xffff0000u); }

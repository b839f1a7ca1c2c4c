// What a bench on the card needs besides the kernels it measures: random numbers, and a memory that is only read.
#pragma once

#include "math.cuh"

struct Fill {
    u16* to;
    u64 count;
    u64 seed;
    float scale;
    u32 unused;
};

/// Uniform bf16 of mean 0 and deviation `scale`. Grid: at will.
SHARED_BYTES(fill, 0)
KERNEL(256, 4) fill(const Fill f) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    for (u64 i = u64(blockIdx.x) * 256 + threadIdx.x; i < f.count; i += u64(gridDim.x) * 256) {
        // SplitMix64 (Steele, Lea, Flood, 2014).
        u64 x = f.seed + i * 0x9e3779b97f4a7c15ull;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
        x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
        x = x ^ (x >> 31);
        f.to[i] = to_bf16((float(u32(x >> 40)) / 16777216.0f - 0.5f) * 3.4641016f * f.scale);
    }
}

struct FillFloat {
    float* to;
    u64 count;
    float value;
    u32 unused;
};

SHARED_BYTES(fill_float, 0)
KERNEL(256, 4) fill_float(const FillFloat f) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    for (u64 i = u64(blockIdx.x) * 256 + threadIdx.x; i < f.count; i += u64(gridDim.x) * 256) f.to[i] = f.value;
}

struct Read {
    const uint4* from;
    u64 count;
    u32* sink;
};

/// Reads all of `from`, 128 bytes a thread at a time. `count` is a multiple of 2048. Grid: at will.
SHARED_BYTES(read_all, 0)
KERNEL(256, 4) read_all(const Read r) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    u32 seen = 0;
    for (u64 base = u64(blockIdx.x) * 2048; base < r.count; base += u64(gridDim.x) * 2048) {
        uint4 v[8];
#pragma unroll
        for (u32 i = 0; i < 8; i++) v[i] = r.from[base + i * 256 + threadIdx.x];
#pragma unroll
        for (u32 i = 0; i < 8; i++) seen = seen ^ v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
    }
    if (seen == 0x12345678u) *r.sink = seen;
}

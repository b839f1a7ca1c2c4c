// A GPU for tests: runs the kernels of engine/src/cuda/kernels as C++, one block after another.
//
// Every thread of a block is a fiber. What a warp or a block does together (exchange between lanes, matrix tiles, barriers)
// is a meeting: a fiber waits there until all of its warp or block have come to the same kind of meeting, so lanes that
// diverge where they must not are found. What the device may do late is done as late as allowed: a copy to shared memory
// arrives when its thread waits for it, and until then the bytes are not-a-number. Shared memory begins as not-a-number
// for every block and ends at a page that must not be touched. The order in which fibers and blocks run is the caller's.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <vector>

#include "fiber.hpp"

struct uint4 {
    unsigned x, y, z, w;
};
struct float4 {
    float x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
struct float2 {
    float x, y;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

[[noreturn]] inline void broken(const char* what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    std::exit(1);
}

enum class Meeting { NONE, EXCHANGE, TILE, TURNED };

/// What a lane brings to a meeting of its warp, and takes from it.
struct Brought {
    unsigned value = 0, mask = 0;
    float c[4] = {};
    uint4 a = {};
    unsigned b[2] = {};
    const void* from = nullptr;
};

struct Warp {
    Meeting meeting = Meeting::NONE;
    unsigned arrived = 0, met = 0;
    Brought brought[32];
};

struct Copy {
    void* to;
    const void* from;
};

struct Thread {
    dim3 index;
    Fiber fiber;
    bool ended = false;
    std::vector<std::vector<Copy>> closed;
    std::vector<Copy> open;
};

/// The block that runs.
struct Block {
    dim3 index, size, grid;
    std::vector<std::unique_ptr<Thread>> threads;
    std::vector<Warp> warps;
    unsigned arrived = 0, met = 0;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    unsigned running = 0;
    std::function<void()> kernel;
    Fiber scheduler;
};

inline Block block;

inline Thread& me() { return *block.threads[block.running]; }
inline void pause() { Fiber::change(me().fiber, block.scheduler); }

/// How the fibers of a block take turns, and the blocks of a grid.
enum class Order { FORWARD, BACKWARD, SHUFFLED };
inline Order order = Order::FORWARD;

inline std::vector<unsigned> turns(size_t count, unsigned seed) {
    std::vector<unsigned> all(count);
    std::iota(all.begin(), all.end(), 0u);
    if (order == Order::BACKWARD) std::reverse(all.begin(), all.end());
    if (order == Order::SHUFFLED) {
        uint64_t state = seed * 2654435761u + 12345;
        for (size_t i = count; i > 1; i--) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(all[i - 1], all[(state >> 33) % i]);
        }
    }
    return all;
}

// ---- What ptx.cuh calls

inline unsigned char* shared_memory() { return block.shared; }

inline void block_sync() {
    unsigned met = block.met;
    if (++block.arrived == block.threads.size()) {
        block.arrived = 0;
        block.met++;
        return;
    }
    while (block.met == met) pause();
}

/// Waits for the warp; the last to come does what it came for.
template <typename Act>
Brought& meet(Meeting meeting, const Brought& brought, Act act) {
    Warp& warp = block.warps[block.running / 32];
    unsigned lanes = std::min<unsigned>(32, block.threads.size() - block.running / 32 * 32), met = warp.met;
    if (warp.arrived == 0) warp.meeting = meeting;
    if (warp.meeting != meeting) broken("the lanes of a warp have come to different instructions");
    warp.brought[block.running % 32] = brought;
    if (++warp.arrived == lanes) {
        act(warp);
        warp.arrived = 0;
        warp.met++;
    } else {
        while (warp.met == met) pause();
    }
    return warp.brought[block.running % 32];
}

inline unsigned from_lane_across(unsigned value, unsigned mask) {
    Brought brought;
    brought.value = value;
    brought.mask = mask;
    // Nobody brings the next value before all have taken this one: they take it as they leave.
    return meet(Meeting::EXCHANGE, brought, [](Warp& warp) {
               unsigned values[32];
               for (int lane = 0; lane < 32; lane++) {
                   if (warp.brought[lane].mask != warp.brought[0].mask) broken("lanes exchange with different masks");
                   values[lane] = warp.brought[lane ^ warp.brought[lane].mask].value;
               }
               for (int lane = 0; lane < 32; lane++) warp.brought[lane].value = values[lane];
           })
        .value;
}

inline unsigned bits_of(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float float_of(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}
inline unsigned long long bits_of(double value) {
    unsigned long long bits;
    std::memcpy(&bits, &value, 8);
    return bits;
}
inline double double_of(unsigned long long bits) {
    double value;
    std::memcpy(&value, &bits, 8);
    return value;
}
inline float bf16(unsigned pair, int high) { return float_of(high ? pair & 0xffff0000u : pair << 16); }

/// The matrix unit in this machine's own arithmetic: one chain of sums over the sixteen products.
inline void multiply_tile(float (&c)[4], uint4 a, unsigned b0, unsigned b1) {
    Brought brought;
    std::memcpy(brought.c, c, sizeof c);
    brought.a = a;
    brought.b[0] = b0;
    brought.b[1] = b1;
    Brought& taken = meet(Meeting::TILE, brought, [](Warp& warp) {
        typedef float Eight __attribute__((vector_size(32)));
        float left[16][16];
        Eight right[16], sums[16];
        for (int lane = 0; lane < 32; lane++) {
            const Brought& l = warp.brought[lane];
            int g = lane / 4, t = lane % 4;
            for (int e = 0; e < 2; e++) {
                left[g][2 * t + e] = bf16(l.a.x, e);
                left[g + 8][2 * t + e] = bf16(l.a.y, e);
                left[g][2 * t + 8 + e] = bf16(l.a.z, e);
                left[g + 8][2 * t + 8 + e] = bf16(l.a.w, e);
                right[2 * t + e][g] = bf16(l.b[0], e);
                right[2 * t + 8 + e][g] = bf16(l.b[1], e);
                sums[g][2 * t + e] = l.c[e];
                sums[g + 8][2 * t + e] = l.c[2 + e];
            }
        }
        for (int m = 0; m < 16; m++) {
            for (int k = 0; k < 16; k++) sums[m] += left[m][k] * right[k];
        }
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, t = lane % 4;
            for (int e = 0; e < 2; e++) {
                warp.brought[lane].c[e] = sums[g][2 * t + e];
                warp.brought[lane].c[2 + e] = sums[g + 8][2 * t + e];
            }
        }
    });
    std::memcpy(c, taken.c, sizeof c);
}

inline uint4 load_turned(const void* shared) {
    Brought brought;
    brought.from = shared;
    return meet(Meeting::TURNED, brought, [](Warp& warp) {
               const unsigned char* rows[32];
               for (int lane = 0; lane < 32; lane++) {
                   rows[lane] = static_cast<const unsigned char*>(warp.brought[lane].from);
                   if (rows[lane] < block.shared || rows[lane] + 16 > block.shared + block.shared_bytes)
                       broken("a matrix is not in shared memory");
               }
               for (int lane = 0; lane < 32; lane++) {
                   int g = lane / 4, t = lane % 4;
                   unsigned pairs[4];
                   for (int i = 0; i < 4; i++) {
                       unsigned short low, high;
                       std::memcpy(&low, rows[8 * i + 2 * t] + 2 * g, 2);
                       std::memcpy(&high, rows[8 * i + 2 * t + 1] + 2 * g, 2);
                       pairs[i] = low | unsigned(high) << 16;
                   }
                   warp.brought[lane].a = {pairs[0], pairs[1], pairs[2], pairs[3]};
               }
           })
        .a;
}

inline unsigned place_of(const void* shared) {
    return unsigned(static_cast<const unsigned char*>(shared) - block.shared);
}

inline void copy_begin(unsigned place, const void* from) {
    if (place + 16 > block.shared_bytes) broken("a copy goes beyond shared memory");
    if (place % 16 || reinterpret_cast<uintptr_t>(from) % 16) broken("a copy is not aligned");
    unsigned char* to = block.shared + place;
    std::memset(to, 0xff, 16);
    me().open.push_back({to, from});
}

inline void copy_close() {
    me().closed.push_back(std::move(me().open));
    me().open.clear();
}

inline void copy_wait(int pending) {
    auto& closed = me().closed;
    while (closed.size() > size_t(pending)) {
        for (const Copy& copy : closed.front()) std::memcpy(copy.to, copy.from, 16);
        closed.erase(closed.begin());
    }
}

inline unsigned atomic_add(unsigned* at, unsigned value) {
    unsigned before = *at;
    *at += value;
    return before;
}

inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }
inline float square_root(float x) { return std::sqrt(x); }

inline unsigned bf16_bits(float x) {
    unsigned bits = bits_of(x);
    if (x != x) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
inline unsigned bf16_pair(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

// ---- What tests call

inline void run_thread() {
    block.kernel();
    Thread& thread = me();
    if (!thread.open.empty() || std::any_of(thread.closed.begin(), thread.closed.end(), [](auto& g) { return !g.empty(); }))
        broken("a thread ended before its copies");
    thread.ended = true;
    pause();
}

/// Runs a kernel: every block of the grid, with so many bytes of shared memory each.
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, size_t shared_bytes, const Arguments&... arguments) {
    size_t page = 4096, room = (shared_bytes + page - 1) / page * page;
    auto* memory = static_cast<unsigned char*>(
        mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory + room, page, PROT_NONE)) broken("no memory");
    block.shared_bytes = (shared_bytes + 15) / 16 * 16;
    block.shared = memory + room - block.shared_bytes;
    block.size = {threads, 1, 1};
    block.grid = grid;
    block.kernel = [&] { kernel(arguments...); };
    while (block.threads.size() < threads) block.threads.push_back(std::make_unique<Thread>());
    block.threads.resize(threads);
    for (unsigned place : turns(size_t(grid.x) * grid.y * grid.z, 7)) {
        block.index = {place % grid.x, place / grid.x % grid.y, place / grid.x / grid.y};
        std::memset(block.shared, 0xff, block.shared_bytes);
        block.warps.assign((threads + 31) / 32, {});
        block.arrived = block.met = 0;
        for (unsigned i = 0; i < threads; i++) {
            Thread& thread = *block.threads[i];
            thread.index = {i, 0, 0};
            thread.ended = false;
            thread.closed.clear();
            thread.open.clear();
            thread.fiber.start(run_thread);
        }
        unsigned alive = threads;
        for (unsigned round = 0; alive > 0; round++) {
            unsigned before = alive, meetings = block.met;
            for (Warp& warp : block.warps) meetings += warp.met;
            for (unsigned i : turns(threads, round)) {
                if (block.threads[i]->ended) continue;
                block.running = i;
                Fiber::change(block.scheduler, block.threads[i]->fiber);
                if (block.threads[i]->ended) alive--;
            }
            unsigned now = block.met;
            for (Warp& warp : block.warps) now += warp.met;
            if (alive == before && now == meetings) broken("a block waits for threads that never come");
        }
    }
    munmap(memory, room + page);
}

}  // namespace emulator

#define threadIdx (emulator::me().index)
#define blockIdx (emulator::block.index)
#define blockDim (emulator::block.size)
#define gridDim (emulator::block.grid)

// A GPU for tests: runs the kernels of engine/src/cuda/kernels as C++, one block after another.
//
// Every thread of a block is a fiber. What a warp or a block does together (exchange between lanes, matrix tiles, barriers)
// is a meeting: a fiber waits there until all of its warp or block have come to the same kind of meeting, so lanes that
// diverge where they must not are found. What the device may do late is done as late as allowed: a copy to shared memory
// arrives when its thread waits for it, and until then the bytes are not-a-number. Shared memory begins as not-a-number
// for every block and ends at a page that must not be touched. A kernel may be begun before those launched before it, which
// then run when it waits for them. The order in which fibers and blocks run is the caller's.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

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

/// Of the machine that the emulator runs on.
inline size_t page_bytes() { return size_t(sysconf(_SC_PAGESIZE)); }

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
    bool ended = false, has_waited = false;
    /// Copies begun, how many of them are done, and where their closed groups end.
    std::vector<Copy> copies;
    size_t copied = 0;
    std::vector<size_t> ends;
    size_t ended_groups = 0;
};

/// The block that runs.
struct Block {
    dim3 index, size, grid;
    /// At least as many as the block has; they keep their stacks.
    std::vector<std::unique_ptr<Thread>> threads;
    unsigned count = 0;
    std::vector<Warp> warps;
    unsigned arrived = 0, met = 0;
    /// Threads that have come to where they wait for the kernel before.
    unsigned at_wait = 0;
    unsigned char* shared = nullptr;
    size_t shared_bytes = 0;
    unsigned running = 0;
    std::function<void()> kernel;
    Fiber scheduler;
};

/// Kernels that have begun and wait for one another, at most.
constexpr size_t MOST_BEGUN = 5;
inline Block blocks[MOST_BEGUN];
inline unsigned begun = 0;
/// That of the kernel begun last.
inline Block& block() { return blocks[begun - 1]; }

inline Thread& me() { return *block().threads[block().running]; }
inline void pause() { Fiber::change(me().fiber, block().scheduler); }

/// How the fibers of a block take turns, and the blocks of a grid.
enum class Order { FORWARD, BACKWARD, SHUFFLED };
inline Order order = Order::FORWARD;
/// Whether a kernel may begin before those launched before it.
inline bool overlaps = false;

/// The numbers below `count` in some order, put into `all`.
inline void take_turns(std::vector<unsigned>& all, size_t count, unsigned seed) {
    // What does not change from one time to the next stays.
    if (order == Order::FORWARD && all.size() == count) return;
    all.resize(count);
    std::iota(all.begin(), all.end(), 0u);
    if (order == Order::BACKWARD) std::reverse(all.begin(), all.end());
    if (order == Order::SHUFFLED) {
        uint64_t state = seed * 2654435761u + 12345;
        for (size_t i = count; i > 1; i--) {
            state = state * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(all[i - 1], all[(state >> 33) % i]);
        }
    }
}

// ---- What ptx.cuh calls

inline unsigned char* shared_memory() { return block().shared; }

inline void block_sync() {
    Block& mine = block();
    unsigned met = mine.met;
    if (++mine.arrived == mine.count) {
        mine.arrived = 0;
        mine.met++;
        return;
    }
    while (mine.met == met) pause();
}

/// Waits for the warp; the last to come does what it came for.
template <typename Act>
Brought& meet(Meeting meeting, const Brought& brought, Act act) {
    Warp& warp = block().warps[block().running / 32];
    unsigned lanes = std::min<unsigned>(32, block().count - block().running / 32 * 32), met = warp.met;
    if (warp.arrived == 0) warp.meeting = meeting;
    if (warp.meeting != meeting) broken("the lanes of a warp have come to different instructions");
    warp.brought[block().running % 32] = brought;
    if (++warp.arrived == lanes) {
        act(warp);
        warp.arrived = 0;
        warp.met++;
    } else {
        while (warp.met == met) pause();
    }
    return warp.brought[block().running % 32];
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
                   if (rows[lane] < block().shared || rows[lane] + 16 > block().shared + block().shared_bytes)
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
    return unsigned(static_cast<const unsigned char*>(shared) - block().shared);
}

inline void copy_begin(unsigned place, const void* from) {
    if (place + 16 > block().shared_bytes) broken("a copy goes beyond shared memory");
    if (place % 16 || reinterpret_cast<uintptr_t>(from) % 16) broken("a copy is not aligned");
    unsigned char* to = block().shared + place;
    std::memset(to, 0xff, 16);
    me().copies.push_back({to, from});
}

inline void copy_close() { me().ends.push_back(me().copies.size()); }

inline void copy_wait(int pending) {
    Thread& thread = me();
    for (; thread.ends.size() - thread.ended_groups > size_t(pending); thread.ended_groups++) {
        for (; thread.copied < thread.ends[thread.ended_groups]; thread.copied++) {
            const Copy& copy = thread.copies[thread.copied];
            std::memcpy(copy.to, copy.from, 16);
        }
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
    block().kernel();
    Thread& thread = me();
    // A kernel that ends before the one before it would let the one behind it begin too early.
    if (!thread.has_waited) broken("a thread ended without having waited for the kernel before");
    if (thread.copied < thread.copies.size()) broken("a thread ended before its copies");
    thread.ended = true;
    pause();
}

struct Launch {
    std::function<void()> kernel;
    dim3 grid;
    unsigned threads;
    size_t shared_bytes;
};

/// Runs every block of a grid.
inline void run_grid(const Launch& launch) {
    size_t page = page_bytes(), room = (launch.shared_bytes + page - 1) / page * page;
    auto* memory = static_cast<unsigned char*>(
        mmap(nullptr, room + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory + room, page, PROT_NONE)) broken("no memory");
    dim3 grid = launch.grid;
    unsigned threads = launch.threads;
    begun++;
    Block& block = emulator::block();
    block.shared_bytes = (launch.shared_bytes + 15) / 16 * 16;
    block.shared = memory + room - block.shared_bytes;
    block.size = {threads, 1, 1};
    block.grid = grid;
    block.kernel = launch.kernel;
    block.count = threads;
    while (block.threads.size() < threads) block.threads.push_back(std::make_unique<Thread>());
    std::vector<unsigned> places, turns;
    take_turns(places, size_t(grid.x) * grid.y * grid.z, 7);
    // Another block of each kernel is the one that begins before the kernels before it have ended.
    static unsigned launches = 0;
    std::rotate(places.begin(), places.begin() + launches++ * 7919 % places.size(), places.end());
    for (unsigned place : places) {
        block.index = {place % grid.x, place / grid.x % grid.y, place / grid.x / grid.y};
        std::memset(block.shared, 0xff, block.shared_bytes);
        block.warps.assign((threads + 31) / 32, {});
        block.arrived = block.met = block.at_wait = 0;
        for (unsigned i = 0; i < threads; i++) {
            Thread& thread = *block.threads[i];
            thread.index = {i, 0, 0};
            thread.ended = thread.has_waited = false;
            thread.copies.clear();
            thread.ends.clear();
            thread.copied = thread.ended_groups = 0;
            thread.fiber.start(run_thread);
        }
        unsigned alive = threads;
        for (unsigned round = 0; alive > 0; round++) {
            unsigned before = alive, meetings = block.met + block.at_wait;
            for (Warp& warp : block.warps) meetings += warp.met;
            take_turns(turns, threads, round);
            for (unsigned i : turns) {
                if (block.threads[i]->ended) continue;
                block.running = i;
                Fiber::change(block.scheduler, block.threads[i]->fiber);
                if (block.threads[i]->ended) alive--;
            }
            unsigned now = block.met + block.at_wait;
            for (Warp& warp : block.warps) now += warp.met;
            if (alive == before && now == meetings) broken("a block waits for threads that never come");
        }
    }
    begun--;
    munmap(memory, room + page);
}

/// Launched and not begun, the first launched first.
inline std::vector<Launch> waiting;

/// Runs all that was launched, the last first: a kernel that waits for the one before it lets that one run.
inline void wait() {
    while (!waiting.empty()) {
        Launch last = std::move(waiting.back());
        waiting.pop_back();
        run_grid(last);
    }
}

/// All threads of a block come here before those kernels run that were launched before.
inline void wait_for_kernel_before() {
    Block& mine = block();
    if (!me().has_waited) mine.at_wait++;
    me().has_waited = true;
    while (!waiting.empty() && mine.at_wait < mine.count) pause();
    wait();
}

/// Launches a kernel, which may begin before those launched before it have ended, and end whenever somebody waits.
inline void launch_early(Launch launch) {
    waiting.push_back(std::move(launch));
    if (waiting.size() == MOST_BEGUN) wait();
}

/// Runs a kernel: every block of the grid, with so many bytes of shared memory each.
template <typename Kernel, typename... Arguments>
void launch(Kernel kernel, dim3 grid, unsigned threads, size_t shared_bytes, const Arguments&... arguments) {
    launch_early({[=] { kernel(arguments...); }, grid, threads, shared_bytes});
    if (!overlaps) wait();
}

}  // namespace emulator

#define threadIdx (emulator::me().index)
#define blockIdx (emulator::block().index)
#define blockDim (emulator::block().size)
#define gridDim (emulator::block().grid)

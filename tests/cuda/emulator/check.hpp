// What the tests of kernels share: dice, bf16, memory, and counting what is wrong.
#pragma once

#include <cinttypes>
#include <string>

#include "math.cuh"

inline int failures = 0;
inline long compared = 0;

#define CHECK(ok, ...)                            \
    do {                                          \
        compared++;                               \
        if (!(ok)) {                              \
            if (failures++ < 20) {                \
                std::printf("FAILED: ");          \
                std::printf(__VA_ARGS__);         \
                std::printf("\n");                \
            }                                     \
        }                                         \
    } while (0)

/// xorshift64* (Vigna, 2016).
struct Dice {
    uint64_t state;
    uint64_t next() {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return state * 0x2545f4914f6cdd1dull;
    }
    unsigned below(unsigned limit) { return unsigned((next() >> 16) % limit); }
    double unit() { return double(next() >> 11) / 9007199254740992.0; }
    /// Roughly normal.
    float bell() {
        double sum = 0;
        for (int i = 0; i < 6; i++) sum += unit() - 0.5;
        return float(sum * 1.4);
    }
    template <typename T>
    T of(std::initializer_list<T> choices) {
        return choices.begin()[below(unsigned(choices.size()))];
    }
};

/// Memory of the device: aligned, and not-a-number until it is written.
template <typename T>
struct Memory {
    explicit Memory(size_t count, int byte = 0xff) : count(count) {
        data = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64 + 64));
        std::memset(static_cast<void*>(data), byte, (count * sizeof(T) + 63) / 64 * 64 + 64);
    }
    Memory(const Memory&) = delete;
    ~Memory() { std::free(data); }
    operator T*() { return data; }
    T& operator[](size_t i) {
        if (i >= count) emulator::broken("a test reads beyond memory");
        return data[i];
    }
    T* data;
    size_t count;
};

inline float rounded(float x) { return from_bf16(to_bf16(x)); }
inline unsigned up_to(unsigned x, unsigned whole) { return (x + whole - 1) / whole * whole; }

/// `launch` with the parameters of a kernel in their own type.
template <typename P>
void run(void (*kernel)(const P), dim3 grid, unsigned threads, size_t bytes, const P& p) {
    emulator::launch(kernel, grid, threads, bytes, p);
}

inline bool same(float a, float b) { return bits_of(a) == bits_of(b); }

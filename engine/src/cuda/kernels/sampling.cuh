// The sampling contract on a device: the formulas of decode/src/sampling, operation by operation.
//
// Given equal logits and settings, tokens, margins, probabilities and scores are those of the CPU's sampler, bit for bit:
// every token's score is the same arithmetic, sums are taken in the same sixteen lanes by token id in the order of the
// ids, and ties go to the lowest id. What differs is only how the tokens that cannot matter are passed over.
#pragma once

#include "math.cuh"

/// Virtual lanes of every sum: token id modulo 16.
constexpr u32 LANES = 16;
/// Pieces of a row that blocks look at side by side.
constexpr u32 SHARES = 32;
/// One strong token of each lane of each piece.
constexpr u32 MAXIMA = SHARES * LANES;
/// Tokens that are sorted at once.
constexpr u32 SORTED = 4096;
/// Guesses that a row may be asked for.
constexpr u32 MOST_GUESSES = 64;
/// Strongest tokens that a score may come with.
constexpr u32 MOST_TOP = 20;
/// Threads of a block that has a row to itself.
constexpr u32 ROW_THREADS = 1024;

constexpr u64 STEP = 0x9e3779b97f4a7c15ull;
constexpr u64 SPREAD = 0xd1342543de82ef95ull;

DEVICE u64 mix(u64 x) {
    x = (x ^ (x >> 27)) * 0x3c79ac492ba7b653ull;
    x = (x ^ (x >> 33)) * 0x1c69b3f74ac4ae35ull;
    return x ^ (x >> 27);
}

/// The noise of one position, everything but the token.
DEVICE u64 noise_key(u64 seed, u32 choice, u32 position) {
    u64 place = u64(choice) << 32 | position;
    return mix(mix(seed + STEP) + place * SPREAD);
}

DEVICE u64 noise_hash(u64 key, u32 token) { return mix(key + u64(token) * STEP); }

/// The Gumbel variate that belongs to a hash.
DEVICE double gumbel_of(u64 hash) {
    const double unit = 1.0 / 18446744073709551616.0;
    double exponential;
    if (hash < 1ull << 63) {
        double x = (double(hash) + 0.5) * unit;
        double y = 1.0 - x;
        exponential = y == 1.0 ? x : -ln64(y) * (x / (1.0 - y));
    } else {
        exponential = -ln64((double(~hash) + 0.5) * unit);
    }
    return -ln64(exponential);
}

/// A token as one integer: a larger key is a stronger logit, or the lower id among equal logits. 0 is no token.
DEVICE u64 key_of(float logit, u32 id) {
    if (!(logit > -INFINITE)) return 0;
    u32 bits = bits_of(logit + 0.0f);
    u32 ordered = bits >> 31 ? ~bits : bits | 1u << 31;
    return u64(ordered) << 32 | u32(~id);
}
DEVICE u32 id_of(u64 key) { return ~u32(key); }

/// A score as an integer in the same order.
DEVICE u64 order_of(double score) {
    u64 bits = bits_of(score + 0.0);
    return bits >> 63 ? ~bits : bits | 1ull << 63;
}

/// What a row is drawn or scored by.
struct Task {
    enum Kind : u32 { NOTHING = 0, PICK = 1, GUESSES = 2, SCORE = 3 };
    u32 kind;
    /// Which row of the logits.
    u32 row;
    /// GUESSES: how many. At most `MOST_GUESSES`.
    u32 guesses;
    /// SCORE: with how many of the strongest. At most `MOST_TOP`.
    u32 top;
    /// SCORE: the token, unless `of` names the task whose pick it is.
    u32 token;
    i32 of;
    float temperature;
    u32 top_k;
    float top_p;
    float min_p;
    u32 choice;
    u32 position;
    u64 seed;
    /// The token counts of the text before the row, the biased tokens and the masked ones, in the lists of `Asks`.
    u32 first_bias, biases;
    u32 first_seen, seens;
    u32 first_mask, masks;
    float repetition;
    float presence;
    float frequency;
    u32 unused;

    DEVICE_MEMBER bool shapes() const { return biases + seens + masks > 0; }
    /// At T = 0 nothing is divided and nothing filtered.
    DEVICE_MEMBER bool filters_by_count(u32 vocab) const { return temperature > 0.0f && top_k > 0 && top_k < vocab; }
    DEVICE_MEMBER bool filters_by_mass() const { return temperature > 0.0f && top_p < 1.0f; }
    DEVICE_MEMBER float divisor() const { return temperature == 0.0f ? 1.0f : temperature; }
};

struct Guess {
    u32 token;
    float q;
    float margin;
    float weight;
};

struct Answer {
    /// 0: nothing was asked. 1: here it is. 2: the row's logits are not finite.
    u32 state;
    /// Guesses; 1 for a pick, whose token and margin are those of the first.
    u32 count;
    float logprob;
    u32 rank;
    u32 tops;
    u32 top_ids[MOST_TOP];
    float top_logprobs[MOST_TOP];
    Guess guesses[MOST_GUESSES];
};

/// What is found out about a task on the way.
struct Found {
    u64 strongest;
    /// Keys below it do not survive top-k and top-p.
    u64 weakest;
    /// The noisy score that a token needs to be among the best; minus infinity where none is known.
    double bar;
    /// How many tokens have reached the bar.
    u32 candidates;
    u32 is_sound;
    float strongest_logit;
    u32 unused;
};

struct Candidate {
    double score;
    u32 token;
    u32 unused;
};

struct Seen {
    u32 token;
    u32 in_prompt;
    u32 in_output;
};
struct Bias {
    u32 token;
    float value;
};

/// Everything the kernels of asks work on. Kernels run in the order survey, filter, race,
/// answer, and score_tokens where a task asks for it.
struct Asks {
    /// f32 `[row][stride]`, of which the first `vocab` count.
    const float* logits;
    const Task* tasks;
    Answer* answers;
    Found* found;
    /// f32 `[task][vocab, up to a multiple of 16]`: rows as requests shape them.
    float* shaped;
    /// `[task][SHARES][LANES]`
    u64* maxima;
    /// `[task][SHARES]`: whether all logits are finite.
    u32* sound;
    /// `[task][room]`, of at most `SORTED`.
    Candidate* candidates;
    const Bias* biases;
    const Seen* seen;
    const u32* masks;
    u32 vocab;
    u32 stride;
    u32 room;
    u32 unused;

    DEVICE_MEMBER u32 padded() const { return (vocab + LANES - 1) / LANES * LANES; }
    DEVICE_MEMBER const float* view(u32 task) const {
        const Task& t = tasks[task];
        return t.shapes() ? shaped + u64(task) * padded() : logits + u64(t.row) * stride;
    }
};

/// `(l - strongest) / T`, the score of a token before the noise, and what min-p lets through.
struct Distance {
    double strongest, temperature, lowest;

    DEVICE_MEMBER Distance(float strongest_logit, float divisor, float min_p)
        : strongest(strongest_logit), temperature(divisor), lowest(ln64(double(min_p))) {}
    DEVICE_MEMBER double of(float logit) const { return (double(logit) - strongest) / temperature; }
    DEVICE_MEMBER bool allows(double distance) const {
        return distance >= lowest && distance > -double(INFINITE);
    }
};

/// Decides from a hash, without a logarithm, that a token cannot reach a score; see decode/src/sampling/scan.rs.
struct Gate {
    float strongest, slope, level;
    bool works;

    DEVICE_MEMBER Gate(float strongest_logit, float temperature, double bar) : strongest(strongest_logit) {
        const double log2e = 1.44269504088896340736;
        double slack = 1e-3 + 2e-6 * (bar < 0.0 ? -bar : bar);
        level = float(log2e * (slack - bar)) + 151.0f;
        slope = float(log2e / double(temperature));
        slope = slope < LARGEST ? slope : LARGEST;
        works = level >= -LARGEST && level <= LARGEST;
    }
    DEVICE_MEMBER bool passes(float logit, u64 hash) const {
        if (!works) return true;
        float exponent = level - (strongest - logit) * slope;
        exponent = exponent < 1.0f ? 1.0f : exponent;
        exponent = exponent > 254.0f ? 254.0f : exponent;
        return float(i32(hash >> 40)) <= float_of(u32(i32(exponent * 8388608.0f)));
    }
};

/// A token's probability relative to the strongest token's.
DEVICE float weight_of(float logit, float strongest, float divisor) { return exp32((logit - strongest) / divisor); }

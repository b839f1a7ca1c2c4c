// The asks: the same tokens and numbers as the slow reference, bit for bit.
#pragma once

#include "sampling_reference.hpp"

/// Runs all kernels of asks over tasks.
struct AskBench {
    std::vector<Task> tasks;
    std::vector<Bias> biases;
    std::vector<Seen> seen;
    std::vector<u32> masks;
    std::vector<Answer> answers;

    void run(const std::vector<std::vector<float>>& rows, unsigned room) {
        unsigned vocab = unsigned(rows[0].size()), count = unsigned(tasks.size()), padded = up_to(vocab, 16);
        unsigned stride = vocab + 3;
        Memory<float> logits(rows.size() * stride), shaped(size_t(count) * padded);
        for (size_t r = 0; r < rows.size(); r++) std::copy(rows[r].begin(), rows[r].end(), logits.data + r * stride);
        Memory<Answer> out(count);
        Memory<Found> found(count);
        Memory<u64> maxima(size_t(count) * MAXIMA);
        Memory<u32> sound(size_t(count) * SHARES);
        Memory<Candidate> candidates(size_t(count) * room);
        Asks asks{};
        asks.logits = logits;
        asks.tasks = tasks.data();
        asks.answers = out;
        asks.found = found;
        asks.shaped = shaped;
        asks.maxima = maxima;
        asks.sound = sound;
        asks.candidates = candidates;
        asks.biases = biases.data();
        asks.seen = seen.data();
        asks.masks = masks.data();
        asks.vocab = vocab;
        asks.stride = stride;
        asks.room = room;
        ::run(survey, {SHARES, count, 1}, 256, shared_bytes_of_survey, asks);
        ::run(filter, {count, 1, 1}, 1024, shared_bytes_of_filter, asks);
        ::run(race, {SHARES, count, 1}, 256, 0, asks);
        ::run(answer, {count, 1, 1}, 1024, shared_bytes_of_answer, asks);
        ::run(score_tokens, {count, 1, 1}, 1024, shared_bytes_of_score_tokens, asks);
        answers.assign(out.data, out.data + count);
    }
};

inline Task dice_task(Dice& dice) {
    Task task{};
    unsigned few = dice.below(40);
    float share = std::max(float(dice.unit()), 1e-6f);
    task.of = -1;
    task.temperature = dice.of({0.f, 1e-45f, 1e-30f, 1e-3f, 0.3f, 0.7f, 1.f, 1.f, 1.f, 2.f, 100.f});
    task.top_k = dice.of({0u, 0u, 0u, 1u, 2u, 5u, 17u, few, 1000u, ~0u});
    task.top_p = dice.of({1.f, 1.f, 1.f, 0.99999994f, 0.99f, 0.9f, 0.5f, 1e-30f, share});
    task.min_p = dice.of({0.f, 0.f, 0.f, 1e-40f, 1e-6f, 0.01f, 0.1f, 1.f, share});
    task.seed = dice.of({u64(0), u64(1), ~u64(0), u64(few), u64(1) << 63});
    task.choice = dice.of({0u, 0u, 1u, ~0u});
    task.position = dice.of({0u, 1u, few, 100000u});
    task.repetition = 1;
    return task;
}

inline std::vector<float> dice_logits(Dice& dice, unsigned vocab) {
    std::vector<float> row(vocab);
    unsigned kind = dice.below(7);
    float wide = dice.of({0.f, 0.01f, 1.f, 3.f, 10.f, 1e4f, 1e30f});
    for (float& l : row) {
        l = dice.bell() * wide;
        if (kind == 1) l = std::round(l);
        if (kind == 2 && dice.below(3)) l = -40 + dice.bell();
        if (kind == 3) l = dice.of({0.f, -0.f, 1.f, -1.f});
        if (kind == 4) l += 1e6f;
        if (kind == 5 && dice.below(8) == 0) l += 20;
    }
    return row;
}

inline void draws_are_the_reference(unsigned seed, unsigned vocab, unsigned count, unsigned room) {
    Dice dice{seed * 7919 + 1};
    AskBench bench;
    std::vector<std::vector<float>> rows;
    std::vector<Request> requests;
    for (unsigned i = 0; i < count; i++) {
        rows.push_back(dice_logits(dice, vocab));
        Task task = dice_task(dice);
        task.kind = dice.of({Task::PICK, Task::GUESSES, Task::GUESSES, Task::SCORE});
        task.row = i;
        task.guesses = dice.of({1u, 2u, 3u, 8u, 40u, 64u});
        task.top = dice.of({0u, 1u, 5u, 20u});
        task.token = dice.below(vocab);
        Request request;
        if (dice.below(3) == 0) {
            task.repetition = dice.of({1.f, 1.3f, 0.5f, 10.f});
            task.presence = dice.of({0.f, 0.5f, -2.f});
            task.frequency = dice.of({0.f, 0.25f, -1.f});
            for (unsigned k = dice.below(20); k > 0; k--) request.prompt.push_back(dice.below(vocab));
            for (unsigned k = dice.below(20); k > 0; k--) request.output.push_back(dice.below(vocab));
            request.min_tokens = dice.below(20);
            // Not all tokens: a row without any has no answer, which another test asks for.
            for (unsigned k = 0; k < vocab / 3 && k < 3; k++) request.stops.push_back(k * 2);
            for (unsigned k = 0; k < vocab / 2 && k < 5; k++) request.bias.push_back({k * 2 + 1, dice.of({100.f, -100.f, 0.5f})});
        }
        task.first_bias = u32(bench.biases.size());
        task.first_seen = u32(bench.seen.size());
        task.first_mask = u32(bench.masks.size());
        bench.biases.insert(bench.biases.end(), request.bias.begin(), request.bias.end());
        for (u32 id = 0; id < vocab; id++) {
            u32 in_prompt = std::count(request.prompt.begin(), request.prompt.end(), id) > 0;
            u32 in_output = u32(std::count(request.output.begin(), request.output.end(), id));
            if (in_prompt || in_output) bench.seen.push_back({id, in_prompt, in_output});
        }
        if (request.output.size() < request.min_tokens) {
            bench.masks.insert(bench.masks.end(), request.stops.begin(), request.stops.end());
        }
        task.biases = u32(bench.biases.size()) - task.first_bias;
        task.seens = u32(bench.seen.size()) - task.first_seen;
        task.masks = u32(bench.masks.size()) - task.first_mask;
        bench.tasks.push_back(task);
        requests.push_back(request);
    }
    bench.run(rows, room);
    for (unsigned i = 0; i < count; i++) {
        const Task& task = bench.tasks[i];
        const Answer& answer = bench.answers[i];
        std::vector<float> row = shaped(rows[i], task, requests[i]);
        Reference reference{row, task};
        char name[200];
        std::snprintf(name, sizeof name, "seed %u, task %u of %u tokens, kind %u, T %g, top_k %u, top_p %g, min_p %g", seed, i,
                      vocab, task.kind, task.temperature, task.top_k, task.top_p, task.min_p);
        CHECK(answer.state == 1, "%s: state %u", name, answer.state);
        if (task.kind == Task::PICK) {
            Ranked ranked = reference.ranked();
            float margin = ranked.size() > 1 ? float(ranked[0].second - ranked[1].second) : INFINITE;
            CHECK(answer.guesses[0].token == ranked[0].first, "%s: picked %u, not %u", name, answer.guesses[0].token, ranked[0].first);
            CHECK(same(answer.guesses[0].margin, margin), "%s: margin %g, not %g", name, answer.guesses[0].margin, margin);
        } else if (task.kind == Task::GUESSES) {
            std::vector<Guess> want = reference.guesses(task.guesses);
            size_t most = std::min<size_t>(want.size(), task.guesses);
            CHECK(answer.count == most, "%s: %u guesses, not %zu", name, answer.count, most);
            for (size_t k = 0; k < std::min<size_t>(answer.count, most); k++) {
                Guess got = answer.guesses[k], right = want[k];
                CHECK(got.token == right.token && same(got.q, right.q) && same(got.margin, right.margin) && same(got.weight, right.weight),
                      "%s: guess %zu is %u q %g margin %g weight %g, not %u %g %g %g", name, k, got.token, got.q, got.margin,
                      got.weight, right.token, right.q, right.margin, right.weight);
            }
        } else {
            auto want = reference.score(task.token, task.top);
            CHECK(same(answer.logprob, want.logprob), "%s: logprob %g, not %g", name, answer.logprob, want.logprob);
            CHECK(answer.rank == want.rank, "%s: rank %u, not %u", name, answer.rank, want.rank);
            CHECK(answer.tops == want.top.size(), "%s: %u strongest", name, answer.tops);
            for (size_t k = 0; k < std::min<size_t>(answer.tops, want.top.size()); k++) {
                CHECK(answer.top_ids[k] == want.top[k].first && same(answer.top_logprobs[k], want.top[k].second),
                      "%s: strongest %zu is %u with %g, not %u with %g", name, k, answer.top_ids[k], answer.top_logprobs[k],
                      want.top[k].first, want.top[k].second);
            }
        }
    }
}

/// The elementary functions have the bits of decode/src/math.rs, whose own test names them by the same fold.
inline void math_is_the_contract() {
    auto sine = [](double x) {
        const double round = 6755399441055744.0;
        double shifted = std::fma(x, 0.63661977236758134308, round), n = shifted - round;
        double r = std::fma(n, -1.57079632679489661923, x);
        r = std::fma(n, -6.123233995736766e-17, r);
        double z = r * r, p = 1.58969099521155e-10;
        for (double c : {-2.5050760253406863e-8, 2.755731370707007e-6, -1.984126982985795e-4, 8.33333333332249e-3,
                         -1.6666666666666632e-1})
            p = std::fma(p, z, c);
        double sin = std::fma(r * z, p, r);
        p = -1.1359647557788195e-11;
        for (double c : {2.087572321298175e-9, -2.7557314351390663e-7, 2.480158728947673e-5, -1.388888888887411e-3,
                         4.16666666666666e-2})
            p = std::fma(p, z, c);
        double cos = std::fma(z * z, p, 1.0 - 0.5 * z);
        switch (bits_of(shifted) & 3) {
            case 0: return sin;
            case 1: return cos;
            case 2: return -sin;
            default: return -cos;
        }
    };
    u64 h = 0xcbf29ce484222325ull;
    auto fold = [&](u64 bits) {
        h = (h ^ bits) * 0x100000001b3ull;
        h = h << 17 | h >> 47;
    };
    for (int i = -800; i < 880; i++) {
        float x = float(i) * 0.1f;
        fold(bits_of(exp32(x)));
        fold(bits_of(silu(x)));
        fold(bits_of(exp64(double(x))));
        fold(bits_of(ln64(double(std::fabs(x)) + 0.01)));
        fold(bits_of(sine(double(x))));
    }
    CHECK(h == 0x794bf49f346bc97eull, "the elementary functions have other bits: %" PRIx64, uint64_t(h));
}

/// The published vectors of the noise.
inline void noise_is_published(const char* path) {
    std::FILE* file = std::fopen(path, "r");
    if (!file) emulator::broken("no vectors of the noise");
    char line[500];
    unsigned read = 0;
    while (std::fgets(line, sizeof line, file)) {
        u64 seed, hash;
        unsigned choice, position, token;
        double gumbel;
        if (std::sscanf(line, " {\"seed\": \"%llx\", \"choice\": %u, \"position\": %u, \"token\": %u, \"hash\": \"%llx\", \"gumbel\": \"%lf\"",
                        &seed, &choice, &position, &token, &hash, &gumbel) != 6)
            continue;
        read++;
        u64 got = noise_hash(noise_key(seed, choice, position), token);
        CHECK(got == hash, "noise: hash %llx, not %llx", got, hash);
        CHECK(std::fabs(gumbel_of(got) - gumbel) < 1e-14 * std::max(1.0, std::fabs(gumbel)), "noise: %g, not %g", gumbel_of(got), gumbel);
    }
    std::fclose(file);
    CHECK(read > 20, "only %u vectors of the noise were read", read);
}

/// Rows that cannot be drawn from say so, and picks are scored under their own token.
inline void states() {
    AskBench bench;
    std::vector<std::vector<float>> rows(5, std::vector<float>(40));
    for (unsigned r = 0; r < 5; r++) {
        for (unsigned id = 0; id < 40; id++) rows[r][id] = float(id * 7 % 40) * 0.1f;
    }
    rows[1][39] = float_of(0x7fc00000u);
    rows[2][0] = INFINITE;
    rows[3][5] = -INFINITE;
    Task task{};
    task.kind = Task::PICK;
    task.of = -1;
    task.temperature = task.top_p = task.repetition = 1;
    task.seed = 3;
    for (unsigned r = 0; r < 5; r++) {
        task.row = r;
        bench.tasks.push_back(task);
    }
    Task score = task;
    score.kind = Task::SCORE;
    score.row = 4;
    score.of = 4;
    score.top = 2;
    bench.tasks.push_back(score);
    score.of = 1;
    bench.tasks.push_back(score);
    task.kind = Task::NOTHING;
    bench.tasks.push_back(task);
    bench.run(rows, 64);
    const u32 want[] = {1, 2, 2, 2, 1, 1, 2, 0};
    for (unsigned i = 0; i < 8; i++) CHECK(bench.answers[i].state == want[i], "state %u of task %u", bench.answers[i].state, i);
    Reference reference{rows[4], bench.tasks[5]};
    CHECK(same(bench.answers[5].logprob, reference.score(bench.answers[4].guesses[0].token, 2).logprob), "the score of a pick");
}

inline void test_sampling(const char* vectors) {
    emulator::order = emulator::Order::FORWARD;
    math_is_the_contract();
    if (vectors) noise_is_published(vectors);
    states();
    unsigned seed = 1;
    for (unsigned vocab : {1u, 2u, 3u, 15u, 16u, 17u, 33u, 100u, 300u}) draws_are_the_reference(seed++, vocab, 24, 512);
    // Larger than all maxima, and than what is sorted at once.
    for (unsigned vocab : {1100u, 9000u}) draws_are_the_reference(seed++, vocab, 32, 512);
    // Hardly any room for candidates.
    emulator::order = emulator::Order::SHUFFLED;
    draws_are_the_reference(seed++, 700, 24, 2);
    draws_are_the_reference(seed++, 2100, 32, 256);
    emulator::order = emulator::Order::FORWARD;
}

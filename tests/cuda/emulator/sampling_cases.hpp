// The asks against what the CPU's sampler has answered: cases that src/cases.rs has written.
#pragma once

#include "sampling_test.hpp"

struct Words {
    std::vector<u32> all;
    size_t at = 0;

    explicit Words(const char* path) {
        std::FILE* file = std::fopen(path, "rb");
        if (!file) emulator::broken("no cases");
        u32 word;
        while (std::fread(&word, 4, 1, file) == 1) all.push_back(word);
        std::fclose(file);
    }
    u32 word() {
        if (at == all.size()) emulator::broken("the cases end too soon");
        return all[at++];
    }
    float number() { return float_of(word()); }
};

inline void case_is_answered_alike(Words& words, unsigned which) {
    AskBench bench;
    Task task{};
    task.kind = words.word();
    u32 vocab = words.word();
    task.guesses = words.word();
    task.top = words.word();
    task.token = words.word();
    task.of = -1;
    task.temperature = words.number();
    task.top_k = words.word();
    task.top_p = words.number();
    task.min_p = words.number();
    task.seed = words.word();
    task.seed |= u64(words.word()) << 32;
    task.choice = words.word();
    task.position = words.word();
    task.repetition = words.number();
    task.presence = words.number();
    task.frequency = words.number();
    task.biases = words.word();
    for (u32 i = 0; i < task.biases; i++) {
        u32 id = words.word();
        bench.biases.push_back({id, words.number()});
    }
    task.seens = words.word();
    for (u32 i = 0; i < task.seens; i++) {
        u32 id = words.word(), in_prompt = words.word();
        bench.seen.push_back({id, in_prompt, words.word()});
    }
    task.masks = words.word();
    for (u32 i = 0; i < task.masks; i++) bench.masks.push_back(words.word());
    std::vector<float> row;
    for (u32 id = 0; id < vocab; id++) row.push_back(words.number());
    bench.tasks.push_back(task);
    bench.run({row}, 512);
    const Answer& answer = bench.answers[0];
    char name[200];
    std::snprintf(name, sizeof name, "case %u of %u tokens, kind %u, T %g, top_k %u, top_p %g, min_p %g", which, vocab, task.kind,
                  task.temperature, task.top_k, task.top_p, task.min_p);
    u32 state = words.word();
    CHECK(answer.state == state, "%s: state %u, not %u", name, answer.state, state);
    bool answers = answer.state == 1;
    if (state != 1) return;
    if (task.kind == Task::PICK) {
        u32 token = words.word();
        float margin = words.number();
        CHECK(answers && answer.guesses[0].token == token && same(answer.guesses[0].margin, margin),
              "%s: %u with %g, not %u with %g", name, answer.guesses[0].token, answer.guesses[0].margin, token, margin);
    } else if (task.kind == Task::GUESSES) {
        u32 count = words.word();
        CHECK(answers && answer.count == count, "%s: %u guesses, not %u", name, answer.count, count);
        for (u32 i = 0; i < count; i++) {
            u32 token = words.word();
            float q = words.number(), margin = words.number(), weight = words.number();
            const Guess& got = answer.guesses[i];
            CHECK(i < answer.count && got.token == token && same(got.q, q) && same(got.margin, margin) && same(got.weight, weight),
                  "%s: guess %u is %u, %g, %g, %g, not %u, %g, %g, %g", name, i, got.token, got.q, got.margin, got.weight, token, q,
                  margin, weight);
        }
    } else {
        float logprob = words.number();
        u32 rank = words.word(), top = words.word();
        CHECK(answers && same(answer.logprob, logprob) && answer.rank == rank && answer.tops == top,
              "%s: %g, rank %u, %u strongest, not %g, %u, %u", name, answer.logprob, answer.rank, answer.tops, logprob, rank, top);
        for (u32 i = 0; i < top; i++) {
            u32 id = words.word();
            float own = words.number();
            CHECK(i < answer.tops && answer.top_ids[i] == id && same(answer.top_logprobs[i], own),
                  "%s: strongest %u is %u with %g, not %u with %g", name, i, answer.top_ids[i], answer.top_logprobs[i], id, own);
        }
    }
}

inline void test_cases(const char* path) {
    Words words(path);
    unsigned count = words.word();
    for (unsigned which = 0; which < count; which++) case_is_answered_alike(words, which);
    CHECK(words.at == words.all.size(), "the cases go on");
}

// The sampling contract, slow and obvious, as decode/src/sampling/reference.rs has it: sorts everything, takes every logarithm.
#pragma once

#include "asks.cu"
#include "check.hpp"

using Ranked = std::vector<std::pair<u32, double>>;

struct Reference {
    const std::vector<float>& logits;
    const Task& task;

    bool has_noise() const { return task.temperature > 0; }

    /// Strongest first, ties to the lowest id; masked tokens are none.
    std::vector<std::pair<u32, float>> sorted() const {
        std::vector<std::pair<u32, float>> tokens;
        for (u32 id = 0; id < logits.size(); id++) {
            if (logits[id] > -INFINITE) tokens.push_back({id, logits[id]});
        }
        std::stable_sort(tokens.begin(), tokens.end(), [](auto a, auto b) { return a.second > b.second; });
        return tokens;
    }

    double lanes(const std::vector<std::pair<u32, float>>& tokens, float strongest, float divisor) const {
        auto by_id = tokens;
        std::sort(by_id.begin(), by_id.end());
        double sums[16] = {};
        for (auto [id, logit] : by_id) sums[id % 16] += double(exp32((logit - strongest) / divisor));
        for (int half : {8, 4, 2, 1}) {
            for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
        }
        return sums[0];
    }

    std::vector<std::pair<u32, float>> survivors() const {
        auto tokens = sorted();
        if (!has_noise()) return tokens;
        if (task.top_k > 0 && task.top_k < tokens.size()) tokens.resize(task.top_k);
        float strongest = tokens[0].second;
        if (task.top_p < 1) {
            double wanted = double(task.top_p) * lanes(tokens, strongest, task.temperature), reached = 0;
            size_t kept = 0;
            while (reached < wanted && kept < tokens.size()) {
                reached += double(exp32((tokens[kept++].second - strongest) / task.temperature));
            }
            tokens.resize(std::max<size_t>(kept, 1));
        }
        double lowest = ln64(double(task.min_p));
        std::vector<std::pair<u32, float>> kept;
        for (auto token : tokens) {
            if ((double(token.second) - double(strongest)) / double(task.temperature) >= lowest) kept.push_back(token);
        }
        return kept;
    }

    Ranked ranked() const {
        Ranked scored;
        auto alive = survivors();
        double strongest = alive[0].second;
        for (auto [id, logit] : alive) {
            double score = logit;
            if (has_noise()) {
                score = (double(logit) - strongest) / double(task.temperature) +
                        gumbel_of(noise_hash(noise_key(task.seed, task.choice, task.position), id));
            }
            scored.push_back({id, score});
        }
        std::sort(scored.begin(), scored.end(), [](auto a, auto b) {
            return a.second > b.second || (a.second == b.second && a.first < b.first);
        });
        return scored;
    }

    std::vector<Guess> guesses(size_t wanted) const {
        Ranked best = ranked();
        wanted = std::min(std::max<size_t>(wanted, 2), logits.size());
        best.resize(std::min(best.size(), wanted));
        std::vector<Guess> out;
        for (auto [id, score] : best) out.push_back({id, 0, float(score - best[0].second), 0});
        auto all = sorted();
        double strongest = all[0].second;
        float divisor = has_noise() ? task.temperature : 1;
        if (has_noise()) {
            float margin = out.back().margin;
            size_t inside = out.size();
            for (auto [id, logit] : all) {
                bool known = false;
                for (size_t i = 0; i < inside; i++) known |= out[i].token == id;
                if (known) continue;
                if (out.size() >= wanted) break;
                margin = std::min(margin, float((double(logit) - strongest) / double(divisor)));
                out.push_back({id, 0, margin, 0});
            }
        }
        float sum = 0;
        for (Guess& guess : out) sum += guess.weight = exp32(guess.margin);
        double mass = lanes(all, all[0].second, divisor);
        for (Guess& guess : out) {
            guess.weight /= sum;
            guess.q = float(exp64((double(logits[guess.token]) - strongest) / double(divisor)) / mass);
        }
        out[0].margin = out.size() > 1 ? -out[1].margin : INFINITE;
        return out;
    }

    struct Scored {
        float logprob;
        u32 rank;
        std::vector<std::pair<u32, float>> top;
    };

    Scored score(u32 token, size_t top) const {
        auto alive = survivors();
        double strongest = alive[0].second;
        float divisor = has_noise() ? task.temperature : 1;
        double log_mass = ln64(lanes(alive, alive[0].second, divisor));
        auto logprob = [&](u32 id) {
            for (auto [other, logit] : alive) {
                if (other == id) return float((double(logit) - strongest) / double(divisor) - log_mass);
            }
            return -INFINITE;
        };
        std::vector<std::pair<u32, float>> order;
        for (u32 id = 0; id < logits.size(); id++) order.push_back({id, logits[id]});
        std::stable_sort(order.begin(), order.end(), [](auto a, auto b) { return a.second > b.second; });
        Scored scored{logprob(token), 0, {}};
        for (size_t i = 0; i < order.size(); i++) {
            if (order[i].first == token) scored.rank = u32(i + 1);
            if (i < std::min(top, order.size())) scored.top.push_back({order[i].first, logprob(order[i].first)});
        }
        return scored;
    }
};

/// The row as a request shapes it, by going through the whole past for every token.
struct Request {
    std::vector<Bias> bias;
    std::vector<u32> prompt, output, stops;
    unsigned min_tokens = 0;
};

inline std::vector<float> shaped(const std::vector<float>& logits, const Task& task, const Request& request) {
    std::vector<float> row = logits;
    for (u32 id = 0; id < row.size(); id++) {
        auto keep = [&](float x) { return std::isfinite(logits[id]) ? std::min(std::max(x, -LARGEST), LARGEST) : logits[id]; };
        for (Bias bias : request.bias) {
            if (bias.token == id) row[id] = keep(row[id] + bias.value);
        }
        long times = std::count(request.output.begin(), request.output.end(), id);
        if (std::count(request.prompt.begin(), request.prompt.end(), id) || times) {
            row[id] = row[id] > 0 ? row[id] / task.repetition : row[id] * task.repetition;
        }
        if (times) {
            row[id] -= task.frequency * float(times);
            row[id] -= task.presence;
        }
        bool stops = std::count(request.stops.begin(), request.stops.end(), id);
        row[id] = stops && request.output.size() < request.min_tokens ? -INFINITE : keep(row[id]);
    }
    return row;
}

// From logits to what rows were asked: picks, guesses and scores. Logits never leave the device.
#pragma once

#include "sampling.cuh"

/// What a block works with that has a row to itself.
struct Room {
    u64 keys[SORTED];
    u64 maxima[MAXIMA];
    double weights[2][2048];
    double lanes[LANES];
    u32 histogram[256];
    u64 prefix;
    u64 kept;
    u64 warps[ROW_THREADS / WARP];
    u32 count;
    u32 need;
    u32 done;
    u32 reached;
};

DEVICE Room& room_of_block() { return *reinterpret_cast<Room*>(shared_memory()); }

/// A number finite before a request's change stays a number, a mask a mask.
DEVICE float settle(float before, float after) {
    if (!(before >= -LARGEST && before <= LARGEST)) return before;
    if (after < -LARGEST) return -LARGEST;
    return after > LARGEST ? LARGEST : after;
}

DEVICE float penalised(const Task& task, float logit, const Seen& seen) {
    float shaped = logit;
    if (task.repetition != 1.0f && (seen.in_prompt || seen.in_output)) {
        shaped = shaped > 0.0f ? shaped / task.repetition : shaped * task.repetition;
    }
    if (seen.in_output) {
        shaped = shaped - task.frequency * float(seen.in_output);
        shaped = shaped - task.presence;
    }
    return settle(logit, shaped);
}

DEVICE u64 greater(u64 a, u64 b) { return a > b ? a : b; }

/// Leaves the greatest number of each warp in `room.warps`, and gives it.
DEVICE u64 greatest_of_warps(u64 x) {
#pragma unroll
    for (u32 mask = 16; mask > 0; mask /= 2) x = greater(x, from_lane_across(x, mask));
    block_sync();
    if (threadIdx.x % WARP == 0) room_of_block().warps[threadIdx.x / WARP] = x;
    block_sync();
    return x;
}

/// Shapes a piece of a row, and finds the strongest token of each of its lanes.
///
/// Grid: (SHARES, tasks).
SHARED_BYTES(survey, 256 * sizeof(u64) + 64)
KERNEL(256, 2) survey(const Asks asks) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    const Task& task = asks.tasks[blockIdx.y];
    if (task.kind == Task::NOTHING) return;
    u32 each = ((asks.padded() / LANES + SHARES - 1) / SHARES) * LANES;
    u32 first = blockIdx.x * each < asks.vocab ? blockIdx.x * each : asks.vocab;
    u32 end = first + each < asks.vocab ? first + each : asks.vocab;
    const float* logits = asks.logits + u64(task.row) * asks.stride;
    u32 sound = 1;
    for (u32 id = first + threadIdx.x; id < end; id += 256) {
        // As everywhere: a row with a logit that is not finite is broken, whatever a request masks.
        if (!(logits[id] >= -LARGEST && logits[id] <= LARGEST)) sound = 0;
    }
    if (task.shapes()) {
        float* shaped = asks.shaped + u64(blockIdx.y) * asks.padded();
        for (u32 id = first + threadIdx.x; id < end; id += 256) shaped[id] = logits[id];
        block_sync();
        for (u32 i = threadIdx.x; i < task.biases; i += 256) {
            Bias bias = asks.biases[task.first_bias + i];
            if (bias.token >= first && bias.token < end) {
                shaped[bias.token] = settle(shaped[bias.token], shaped[bias.token] + bias.value);
            }
        }
        block_sync();
        for (u32 i = threadIdx.x; i < task.seens; i += 256) {
            const Seen& seen = asks.seen[task.first_seen + i];
            if (seen.token >= first && seen.token < end) shaped[seen.token] = penalised(task, shaped[seen.token], seen);
        }
        block_sync();
        for (u32 i = threadIdx.x; i < task.masks; i += 256) {
            u32 id = asks.masks[task.first_mask + i];
            if (id >= first && id < end) shaped[id] = -INFINITE;
        }
        block_sync();
    }
    const float* view = asks.view(blockIdx.y);
    u64 best = 0;
    // `each` and 256 are multiples of 16, so a thread stays in one lane.
    for (u32 id = first + threadIdx.x; id < end; id += 256) best = greater(best, key_of(view[id], id));
    u64* keys = reinterpret_cast<u64*>(shared_memory());
    u32* sounds = reinterpret_cast<u32*>(keys + 256);
    keys[threadIdx.x] = best;
    if (threadIdx.x == 0) *sounds = 0;
    block_sync();
    if (!sound) shared_atomic_add(sounds, 1);
    if (threadIdx.x < LANES) {
        for (u32 i = 1; i < 256 / LANES; i++) best = greater(best, keys[i * LANES + threadIdx.x]);
        asks.maxima[(u64(blockIdx.y) * SHARES + blockIdx.x) * LANES + threadIdx.x] = best;
    }
    block_sync();
    if (threadIdx.x == 0) asks.sound[blockIdx.y * SHARES + blockIdx.x] = *sounds == 0;
}

/// Sorts the first `count` keys, greatest first; there is room up to a power of two.
DEVICE void sort_down(u64* keys, u32 count) {
    u32 size = 1;
    while (size < count) size *= 2;
    for (u32 i = count + threadIdx.x; i < size; i += ROW_THREADS) keys[i] = 0;
    block_sync();
    for (u32 run = 2; run <= size; run *= 2) {
        for (u32 step = run / 2; step > 0; step /= 2) {
            for (u32 i = threadIdx.x; i < size / 2; i += ROW_THREADS) {
                u32 low = i / step * step * 2 + i % step, high = low + step;
                bool falls = (low & run) == 0;
                u64 a = keys[low], b = keys[high];
                if (a < b ? falls : !falls) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            block_sync();
        }
    }
}

/// The `wanted`-th greatest key below `below`; 1 if there are not so many.
DEVICE u64 nth_key(const float* view, u32 vocab, u64 below, u32 wanted) {
    Room& room = room_of_block();
    u64 mask = 0;
    block_sync();
    if (threadIdx.x == 0) {
        room.prefix = 0;
        room.need = wanted;
    }
    for (u32 shift = 64; shift > 0;) {
        shift -= 8;
        if (threadIdx.x < 256) room.histogram[threadIdx.x] = 0;
        block_sync();
        for (u32 id = threadIdx.x; id < vocab; id += ROW_THREADS) {
            u64 key = key_of(view[id], id);
            if (key && key < below && (key & mask) == room.prefix) {
                shared_atomic_add(&room.histogram[key >> shift & 255], 1);
            }
        }
        block_sync();
        if (threadIdx.x == 0) {
            u32 above = 0;
            i32 bin = 255;
            while (bin >= 0 && above + room.histogram[bin] < room.need) above += room.histogram[bin--];
            room.done = bin < 0 ? 2 : room.histogram[bin] == room.need - above;
            if (bin >= 0) {
                room.need -= above;
                room.prefix |= u64(bin) << shift;
            }
        }
        block_sync();
        if (room.done == 2) return 1;
        if (room.done == 1) break;
        mask |= 255ull << shift;
    }
    return room.prefix;
}

/// Leaves the keys from `floor` up to below `below` in `room.keys`, sorted; gives their number, which may be more than fit.
DEVICE u32 gather(const float* view, u32 vocab, u64 floor, u64 below) {
    Room& room = room_of_block();
    block_sync();
    if (threadIdx.x == 0) room.count = 0;
    block_sync();
    for (u32 id = threadIdx.x; id < vocab; id += ROW_THREADS) {
        u64 key = key_of(view[id], id);
        if (key && key >= floor && key < below) {
            u32 at = shared_atomic_add(&room.count, 1);
            if (at < SORTED) room.keys[at] = key;
        }
    }
    block_sync();
    u32 count = room.count;
    if (count <= SORTED) sort_down(room.keys, count);
    return count;
}

/// Leaves at least the `wanted` greatest keys below `below` in `room.keys`, sorted, if there are so many; gives their number.
/// `wanted` is at most `SORTED`.
DEVICE u32 strongest_keys(const float* view, u32 vocab, u64 below, u32 wanted) {
    Room& room = room_of_block();
    // The maxima are distinct tokens, so the wanted-th of them bounds the wanted-th of all from below.
    if (below == ~0ull && wanted > 0 && wanted <= MAXIMA && room.maxima[wanted - 1]) {
        u32 count = gather(view, vocab, room.maxima[wanted - 1], below);
        if (count <= SORTED) return count;
    }
    return gather(view, vocab, nth_key(view, vocab, below, wanted), below);
}

/// Brings the block's task its maxima, sorted.
DEVICE void load_maxima(const Asks& asks) {
    Room& room = room_of_block();
    block_sync();
    if (threadIdx.x < MAXIMA) room.maxima[threadIdx.x] = asks.maxima[u64(blockIdx.x) * MAXIMA + threadIdx.x];
    sort_down(room.maxima, MAXIMA);
}

/// The sum of weights, one accumulator for each lane in the order of the ids, then pairs of lanes (0 with 8, and so on). Counts
/// tokens from `weakest` on that `distance` lets through.
DEVICE double sum_weights(const float* view, u32 vocab, float strongest, float divisor, u64 weakest,
                          const Distance* distance) {
    Room& room = room_of_block();
    constexpr u32 TILE = 2048;
    u32 tiles = (vocab + TILE - 1) / TILE;
    double sum = 0.0;
    // All warps but the first weigh a tile while the first adds the one before it.
    for (u32 i = 0; i <= tiles; i++) {
        block_sync();
        if (threadIdx.x >= WARP && i < tiles) {
            for (u32 k = threadIdx.x - WARP; k < TILE; k += blockDim.x - WARP) {
                u32 id = i * TILE + k;
                double weight = 0.0;
                if (id < vocab) {
                    float logit = view[id];
                    bool counts = key_of(logit, id) >= weakest && (!distance || distance->allows(distance->of(logit)));
                    if (counts) weight = double(weight_of(logit, strongest, divisor));
                }
                room.weights[i % 2][k] = weight;
            }
        }
        if (threadIdx.x < LANES && i > 0) {
            const double* weights = room.weights[(i - 1) % 2] + threadIdx.x;
#pragma unroll 16
            for (u32 k = 0; k < TILE; k += LANES) sum = sum + weights[k];
        }
    }
    if (threadIdx.x < LANES) room.lanes[threadIdx.x] = sum;
    block_sync();
    if (threadIdx.x == 0) {
        for (u32 half = LANES / 2; half > 0; half /= 2) {
            for (u32 lane = 0; lane < half; lane++) room.lanes[lane] = room.lanes[lane] + room.lanes[lane + half];
        }
    }
    block_sync();
    return room.lanes[0];
}

/// The weakest key that top-p lets through, of those from `weakest` on.
DEVICE u64 nucleus(const Asks& asks, const Task& task, const float* view, float strongest, u64 weakest) {
    Room& room = room_of_block();
    float divisor = task.divisor();
    bool by_count = task.filters_by_count(asks.vocab);
    double mass = sum_weights(view, asks.vocab, strongest, divisor, by_count ? weakest : 0, nullptr);
    // Tokens below an equal share of the mass that may be lost are never listed: see decode/src/sampling/filter.rs.
    float floor = 0.0f;
    if (!by_count) {
        float share = float((1.0 - double(task.top_p)) * mass / double(asks.vocab) * 0.99);
        floor = share > 1.17549435082228750797e-38f ? share : 1.17549435082228750797e-38f;
    }
    double wanted = double(task.top_p) * mass, reached = 0.0;
    u64 below = ~0ull, last = 0;
    u32 piece = MAXIMA;
    if (threadIdx.x == 0) room.kept = 0;
    while (true) {
        u32 count = strongest_keys(view, asks.vocab, below, piece);
        if (count > piece) count = piece;
        float* weights = reinterpret_cast<float*>(room.weights[0]);
        for (u32 from = 0; from < count; from += 2048) {
            u32 here = count - from < 2048 ? count - from : 2048;
            block_sync();
            for (u32 i = threadIdx.x; i < here; i += ROW_THREADS) {
                weights[i] = weight_of(view[id_of(room.keys[from + i])], strongest, divisor);
            }
            block_sync();
            if (threadIdx.x == 0) {
                room.reached = 0;
                for (u32 i = 0; i < here; i++) {
                    u64 key = room.keys[from + i];
                    if (key < weakest || weights[i] < floor) {
                        room.reached = 1;
                        break;
                    }
                    last = key;
                    reached = reached + double(weights[i]);
                    if (reached >= wanted) {
                        room.reached = 1;
                        break;
                    }
                }
                room.kept = last;
            }
            block_sync();
            if (room.reached) return room.kept;
        }
        // `sort_down` has put everything that is left behind the last piece.
        if (count < piece) return room.kept;
        below = room.keys[count - 1];
        piece = SORTED;
        block_sync();
    }
}

DEVICE double score_of(const Distance& distance, float logit, u64 noise, u32 token) {
    return distance.of(logit) + gumbel_of(noise_hash(noise, token));
}

/// How many tokens are ranked for a task: the second best gives the first its margin.
DEVICE u32 ranked(const Asks& asks, const Task& task) {
    u32 count = task.kind == Task::GUESSES && task.guesses > 2 ? task.guesses : 2;
    count = count < MOST_GUESSES ? count : MOST_GUESSES;
    return count < asks.vocab ? count : asks.vocab;
}

/// Finds the strongest token and what the filters leave, and a score that some known tokens reach.
///
/// Grid: (tasks).
SHARED_BYTES(filter, sizeof(Room))
KERNEL(1024, 1) filter(const Asks asks) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    const Task& task = asks.tasks[blockIdx.x];
    if (task.kind == Task::NOTHING) return;
    Room& room = room_of_block();
    u64 key = threadIdx.x < MAXIMA ? asks.maxima[u64(blockIdx.x) * MAXIMA + threadIdx.x] : 0;
    if (threadIdx.x < MAXIMA) room.maxima[threadIdx.x] = key;
    if (threadIdx.x == 0) room.count = 0;
    block_sync();
    if (threadIdx.x < SHARES && asks.sound[blockIdx.x * SHARES + threadIdx.x] == 0) shared_atomic_add(&room.count, 1);
    u64 strongest = greatest_of_warps(key);
    for (u32 i = 0; i < ROW_THREADS / WARP; i++) strongest = greater(strongest, room.warps[i]);
    bool sound = room.count == 0 && strongest;
    bool filters = task.filters_by_count(asks.vocab) || task.filters_by_mass();
    if (filters) sort_down(room.maxima, MAXIMA);
    const float* view = asks.view(blockIdx.x);
    float logit = sound ? view[id_of(strongest)] : 0.0f;
    u64 weakest = 0;
    double bar = -double(INFINITE);
    if (sound && task.temperature > 0.0f) {
        if (task.filters_by_count(asks.vocab)) {
            if (task.top_k <= MAXIMA) {
                u32 count = strongest_keys(view, asks.vocab, ~0ull, task.top_k);
                weakest = count < task.top_k ? 1 : room.keys[task.top_k - 1];
            } else {
                weakest = nth_key(view, asks.vocab, ~0ull, task.top_k);
            }
        }
        if (task.filters_by_mass()) weakest = nucleus(asks, task, view, logit, weakest);
        if (task.kind != Task::SCORE) {
            block_sync();
            Distance distance(logit, task.temperature, task.min_p);
            u64 noise = noise_key(task.seed, task.choice, task.position);
            u64 order = 0;
            if (key && key >= weakest) {
                float own = view[id_of(key)];
                if (distance.allows(distance.of(own))) order = order_of(score_of(distance, own, noise, id_of(key)));
            }
            u32 wanted = ranked(asks, task);
            if (wanted <= MAXIMA / WARP) {
                // The best of each warp are distinct tokens too, and nearly always good enough.
                greatest_of_warps(order);
                if (threadIdx.x < MAXIMA / WARP) room.keys[threadIdx.x] = room.warps[threadIdx.x];
                sort_down(room.keys, MAXIMA / WARP);
            } else {
                if (threadIdx.x < MAXIMA) room.keys[threadIdx.x] = order;
                sort_down(room.keys, MAXIMA);
            }
            order = room.keys[wanted - 1];
            if (order) bar = double_of(order >> 63 ? order & ~(1ull << 63) : ~order);
        }
    }
    if (threadIdx.x == 0) {
        Found& found = asks.found[blockIdx.x];
        found.strongest = strongest;
        found.strongest_logit = logit;
        found.weakest = weakest;
        found.bar = bar;
        found.candidates = 0;
        found.is_sound = sound;
    }
}

/// Scores every token that may be among the best.
///
/// Grid: (SHARES, tasks).
SHARED_BYTES(race, 0)
KERNEL(256, 2) race(const Asks asks) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    const Task& task = asks.tasks[blockIdx.y];
    if (task.kind != Task::PICK && task.kind != Task::GUESSES) return;
    Found& found = asks.found[blockIdx.y];
    if (!found.is_sound) return;
    const float* view = asks.view(blockIdx.y);
    if (task.temperature == 0.0f) return;
    Distance distance(found.strongest_logit, task.temperature, task.min_p);
    Gate gate(found.strongest_logit, task.temperature, found.bar);
    u64 noise = noise_key(task.seed, task.choice, task.position), weakest = found.weakest;
    double bar = found.bar;
    for (u32 id = blockIdx.x * 256 + threadIdx.x; id < asks.vocab; id += SHARES * 256) {
        float logit = view[id];
        u64 key = key_of(logit, id);
        if (!key || key < weakest) continue;
        u64 hash = noise_hash(noise, id);
        if (!gate.passes(logit, hash)) continue;
        double away = distance.of(logit);
        if (!distance.allows(away)) continue;
        double score = away + gumbel_of(hash);
        if (score < bar) continue;
        u32 at = atomic_add(&found.candidates, 1);
        if (at < asks.room) asks.candidates[u64(blockIdx.y) * asks.room + at] = {score, id, 0};
    }
}

DEVICE bool is_ahead(double score, u32 token, double other_score, u32 other) {
    return score > other_score || (score == other_score && token < other);
}

/// The best tokens by score where more have reached the bar than there was room for: one search of the row for each.
DEVICE u32 search(const Asks& asks, const Task& task, const Found& found, const float* view, u32 wanted, Guess* out,
                  double* scores) {
    Room& room = room_of_block();
    Distance distance(found.strongest_logit, task.temperature, task.min_p);
    u64 noise = noise_key(task.seed, task.choice, task.position);
    double last = double(INFINITE);
    u32 last_token = 0;
    for (u32 n = 0; n < wanted; n++) {
        double best = -double(INFINITE);
        u32 token = ~0u;
        for (u32 id = threadIdx.x; id < asks.vocab; id += ROW_THREADS) {
            u64 key = key_of(view[id], id);
            if (!key || key < found.weakest || !distance.allows(distance.of(view[id]))) continue;
            double score = score_of(distance, view[id], noise, id);
            if ((n == 0 || is_ahead(last, last_token, score, id)) && (token == ~0u || is_ahead(score, id, best, token))) {
                best = score;
                token = id;
            }
        }
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) {
            double other = double_of(from_lane_across(bits_of(best), mask));
            u32 other_token = from_lane_across(token, mask);
            if (other_token != ~0u && (token == ~0u || is_ahead(other, other_token, best, token))) {
                best = other;
                token = other_token;
            }
        }
        block_sync();
        if (threadIdx.x % WARP == 0) {
            room.warps[threadIdx.x / WARP] = bits_of(best);
            room.histogram[threadIdx.x / WARP] = token;
        }
        block_sync();
        for (u32 i = 0; i < ROW_THREADS / WARP; i++) {
            double other = double_of(room.warps[i]);
            u32 other_token = room.histogram[i];
            if (other_token != ~0u && (token == ~0u || is_ahead(other, other_token, best, token))) {
                best = other;
                token = other_token;
            }
        }
        if (token == ~0u) return n;
        if (threadIdx.x == 0) {
            out[n].token = token;
            scores[n] = best;
        }
        last = best;
        last_token = token;
    }
    return wanted;
}

/// Fills guesses up to `wanted` with the strongest tokens outside the filters: `room.keys` are the strongest, sorted.
DEVICE u32 add_outsiders(const Room& room, u32 strongest, const Distance& distance, const float* view, u32 inside,
                         u32 wanted, Guess* guesses) {
    float margin = inside > 0 ? guesses[inside - 1].margin : 0.0f;
    u32 count = inside;
    for (u32 i = 0; i < strongest && i < wanted && count < wanted; i++) {
        u32 token = id_of(room.keys[i]);
        bool known = false;
        for (u32 k = 0; k < inside; k++) known = known || guesses[k].token == token;
        if (known) continue;
        float away = float(distance.of(view[token]));
        margin = away < margin ? away : margin;
        guesses[count++] = {token, 0.0f, margin, 0.0f};
    }
    return count;
}

/// Answers picks and guesses.
///
/// Grid: (tasks).
SHARED_BYTES(answer, sizeof(Room))
KERNEL(1024, 1) answer(const Asks asks) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    const Task& task = asks.tasks[blockIdx.x];
    Answer& answer = asks.answers[blockIdx.x];
    if (threadIdx.x == 0) {
        answer.state = 0;
        answer.count = 0;
        answer.tops = 0;
    }
    if (task.kind != Task::PICK && task.kind != Task::GUESSES) return;
    const Found found = asks.found[blockIdx.x];
    if (!found.is_sound) {
        if (threadIdx.x == 0) answer.state = 2;
        return;
    }
    Room& room = room_of_block();
    // Scores lie where nothing else does: `room.weights` is for sums.
    double* scores = room.weights[1];
    const float* view = asks.view(blockIdx.x);
    u32 wanted = ranked(asks, task), count = 0;
    if (task.temperature == 0.0f) {
        load_maxima(asks);
        count = strongest_keys(view, asks.vocab, ~0ull, wanted);
        count = count < wanted ? count : wanted;
        if (threadIdx.x < count) {
            u32 token = id_of(room.keys[threadIdx.x]);
            answer.guesses[threadIdx.x].token = token;
            scores[threadIdx.x] = double(view[token]);
        }
    } else if (found.candidates > asks.room) {
        count = search(asks, task, found, view, wanted, answer.guesses, scores);
    } else {
        const Candidate* candidates = asks.candidates + u64(blockIdx.x) * asks.room;
        double* known = reinterpret_cast<double*>(room.keys);
        u32* tokens = reinterpret_cast<u32*>(room.weights[0]);
        for (u32 i = threadIdx.x; i < found.candidates; i += ROW_THREADS) {
            known[i] = candidates[i].score;
            tokens[i] = candidates[i].token;
        }
        block_sync();
        for (u32 i = threadIdx.x; i < found.candidates; i += ROW_THREADS) {
            u32 ahead = 0;
            for (u32 k = 0; k < found.candidates; k++) ahead += is_ahead(known[k], tokens[k], known[i], tokens[i]);
            if (ahead < wanted) {
                answer.guesses[ahead].token = tokens[i];
                scores[ahead] = known[i];
            }
        }
        count = found.candidates < wanted ? found.candidates : wanted;
    }
    block_sync();
    if (threadIdx.x < count) answer.guesses[threadIdx.x].margin = float(scores[threadIdx.x] - scores[0]);
    block_sync();
    if (task.kind == Task::PICK) {
        if (threadIdx.x == 0) {
            answer.guesses[0].margin = count > 1 ? float(scores[0] - scores[1]) : INFINITE;
            answer.count = 1;
            answer.state = 1;
        }
        return;
    }
    u32 strongest = 0;
    if (count < wanted && task.temperature > 0.0f) {
        load_maxima(asks);
        strongest = strongest_keys(view, asks.vocab, ~0ull, wanted);
    }
    // The scores, which lie where the sum's weights will, are done with.
    double mass = sum_weights(view, asks.vocab, found.strongest_logit, task.divisor(), 0, nullptr);
    if (threadIdx.x != 0) return;
    Guess* guesses = answer.guesses;
    if (strongest) {
        Distance distance(found.strongest_logit, task.temperature, task.min_p);
        count = add_outsiders(room, strongest, distance, view, count, wanted, guesses);
    }
    float sum = 0.0f;
    for (u32 i = 0; i < count; i++) {
        guesses[i].weight = exp32(guesses[i].margin);
        sum = sum + guesses[i].weight;
    }
    Distance plain(found.strongest_logit, task.divisor(), 0.0f);
    for (u32 i = 0; i < count; i++) {
        guesses[i].weight = guesses[i].weight / sum;
        guesses[i].q = float(exp64(plain.of(view[guesses[i].token])) / mass);
    }
    if (count > 0) guesses[0].margin = count > 1 ? -guesses[1].margin : INFINITE;
    answer.count = count < task.guesses ? count : task.guesses;
    answer.state = 1;
}

/// Answers scores.
///
/// Grid: (tasks).
SHARED_BYTES(score_tokens, sizeof(Room))
KERNEL(1024, 1) score_tokens(const Asks asks) {
    let_kernel_behind_begin();
    wait_for_kernel_before();
    const Task& task = asks.tasks[blockIdx.x];
    if (task.kind != Task::SCORE) return;
    Answer& answer = asks.answers[blockIdx.x];
    const Found found = asks.found[blockIdx.x];
    bool sound = found.is_sound && (task.of < 0 || asks.answers[task.of].state == 1);
    if (!sound) {
        if (threadIdx.x == 0) answer.state = 2;
        return;
    }
    Room& room = room_of_block();
    const float* view = asks.view(blockIdx.x);
    u32 token = task.of < 0 ? task.token : asks.answers[task.of].guesses[0].token;
    Distance distance(found.strongest_logit, task.divisor(), task.temperature > 0.0f ? task.min_p : 0.0f);
    bool filters = task.filters_by_count(asks.vocab) || task.filters_by_mass();
    bool all = !filters && !(task.temperature > 0.0f && task.min_p != 0.0f);
    double mass = sum_weights(view, asks.vocab, found.strongest_logit, task.divisor(), found.weakest,
                              all ? nullptr : &distance);
    double log_mass = ln64(mass);
    auto logprob = [&](u64 key, float logit) {
        double away = distance.of(logit);
        bool survives = key && key >= found.weakest && distance.allows(away);
        return survives ? float(away - log_mass) : -INFINITE;
    };
    load_maxima(asks);
    u32 tops = task.top < MOST_TOP ? task.top : MOST_TOP;
    tops = tops < asks.vocab ? tops : asks.vocab;
    u32 found_tops = tops ? strongest_keys(view, asks.vocab, ~0ull, tops) : 0;
    found_tops = found_tops < tops ? found_tops : tops;
    if (threadIdx.x < found_tops) {
        u64 key = room.keys[threadIdx.x];
        answer.top_ids[threadIdx.x] = id_of(key);
        answer.top_logprobs[threadIdx.x] = logprob(key, view[id_of(key)]);
    }
    float own = view[token];
    u32 ahead = 0;
    for (u32 id = threadIdx.x; id < asks.vocab; id += ROW_THREADS) {
        ahead += id < token ? view[id] >= own : view[id] > own;
    }
    if (threadIdx.x == 0) room.count = 0;
    block_sync();
    shared_atomic_add(&room.count, ahead);
    block_sync();
    if (threadIdx.x != 0) return;
    // Masked tokens come last, lowest id first.
    for (u32 id = 0; id < asks.vocab && found_tops < tops; id++) {
        if (view[id] == -INFINITE) {
            answer.top_ids[found_tops] = id;
            answer.top_logprobs[found_tops++] = -INFINITE;
        }
    }
    answer.logprob = logprob(key_of(own, token), own);
    answer.rank = room.count + 1;
    answer.tops = tops;
    answer.state = 1;
}

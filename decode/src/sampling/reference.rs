//! The sampling contract once more, slow and obvious: sorts everything, takes
//! every logarithm. The sampler must agree with it exactly.

use super::noise::{NoiseKey, gumbel_of};
use super::params::SamplingParams;
use super::shaping::Shaping;
use crate::math;
use crate::scores::Score;
use std::vec::Vec;

/// All surviving tokens with their noisy scores, best first.
pub(super) fn ranked(
    logits: &[f32],
    vocab_limit: u32,
    params: &SamplingParams,
    position: u32,
) -> Vec<(u32, f64)> {
    ranked_with(logits, vocab_limit, params, |token| {
        gumbel_of(NoiseKey::new(params.seed, params.choice, position).hash(token))
    })
}

/// The same with any noise.
pub(super) fn ranked_with(
    logits: &[f32],
    vocab_limit: u32,
    params: &SamplingParams,
    noise: impl Fn(u32) -> f64,
) -> Vec<(u32, f64)> {
    let temperature = f64::from(params.temperature);
    let strongest = f64::from(survivors(logits, vocab_limit, params)[0].1);
    let mut scored: Vec<(u32, f64)> = survivors(logits, vocab_limit, params)
        .into_iter()
        .map(|(id, logit)| {
            let logit = f64::from(logit);
            let score = if temperature == 0.0 {
                logit
            } else {
                (logit - strongest) / temperature + noise(id)
            };
            (id, score)
        })
        .collect();
    scored.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("no NaN").then(a.0.cmp(&b.0)));
    scored
}

/// The surviving tokens, strongest logit first, ties to the lowest id.
pub(super) fn survivors(
    logits: &[f32],
    vocab_limit: u32,
    params: &SamplingParams,
) -> Vec<(u32, f32)> {
    let mut tokens: Vec<(u32, f32)> = (0..vocab_limit)
        .zip(logits.iter().copied())
        .filter(|&(_, logit)| logit > f32::NEG_INFINITY)
        .collect();
    tokens.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("no NaN").then(a.0.cmp(&b.0)));
    if params.temperature == 0.0 {
        return tokens;
    }
    if params.top_k > 0 {
        tokens.truncate(params.top_k as usize);
    }
    let strongest = tokens[0].1;
    if params.top_p < 1.0 {
        let weight = |logit: f32| f64::from(math::exp((logit - strongest) / params.temperature));
        let mut lanes = [0.0; 16];
        let mut by_id = tokens.clone();
        by_id.sort_by_key(|&(id, _)| id);
        for (id, logit) in by_id {
            lanes[id as usize % 16] += weight(logit);
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                lanes[lane] += lanes[lane + half];
            }
        }
        let wanted = f64::from(params.top_p) * lanes[0];
        let mut reached = 0.0;
        let mut kept = 0;
        while reached < wanted && kept < tokens.len() {
            reached += weight(tokens[kept].1);
            kept += 1;
        }
        tokens.truncate(kept.max(1));
    }
    let lowest = math::ln(f64::from(params.min_p));
    tokens.retain(|&(_, logit)| {
        (f64::from(logit) - f64::from(strongest)) / f64::from(params.temperature) >= lowest
    });
    tokens
}

/// The row as a request shapes it, by going through the whole past for every token.
pub(super) fn shaped(
    logits: &[f32],
    shaping: &Shaping,
    prompt: &[u32],
    output: &[u32],
) -> Vec<f32> {
    let shape = |id: u32, logit: f32| {
        let keep_finite = |shaped: f32| match logit.is_finite() {
            true => shaped.clamp(f32::MIN, f32::MAX),
            false => logit,
        };
        let mut shaped = logit;
        for &(biased, bias) in &shaping.bias {
            if biased == id {
                shaped = keep_finite(shaped + bias);
            }
        }
        let times = output.iter().filter(|&&token| token == id).count();
        if prompt.contains(&id) || times > 0 {
            shaped = if shaped > 0.0 {
                shaped / shaping.repetition_penalty
            } else {
                shaped * shaping.repetition_penalty
            };
        }
        if times > 0 {
            shaped -= shaping.frequency_penalty * times as f32;
            shaped -= shaping.presence_penalty;
        }
        if shaping.stop_ids.contains(&id) && output.len() < shaping.min_tokens as usize {
            return f32::NEG_INFINITY;
        }
        keep_finite(shaped)
    };
    (0..).zip(logits).map(|(id, &l)| shape(id, l)).collect()
}

/// The probability of a token before any filter: the softmax of `l / T`, or of `l` at `T = 0`, every weight taken.
pub(super) fn probability(
    logits: &[f32],
    vocab_limit: u32,
    params: &SamplingParams,
    token: u32,
) -> f32 {
    let unfiltered = SamplingParams {
        temperature: if params.temperature == 0.0 {
            1.0
        } else {
            params.temperature
        },
        ..SamplingParams::default()
    };
    let strongest = survivors(logits, vocab_limit, &unfiltered)[0].1;
    let mut lanes = [0.0_f64; 16];
    for (id, &logit) in (0..vocab_limit).zip(logits) {
        let weight = math::exp((logit - strongest) / unfiltered.temperature);
        lanes[id as usize % 16] += f64::from(weight);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    let away = (f64::from(logits[token as usize]) - f64::from(strongest))
        / f64::from(unfiltered.temperature);
    (math::exp64(away) / lanes[0]) as f32
}

/// The score of a token: the softmax over the survivors, every weight taken.
pub(super) fn score(
    logits: &[f32],
    vocab_limit: u32,
    params: &SamplingParams,
    token: u32,
    top: usize,
) -> Score {
    let params = if params.temperature == 0.0 {
        SamplingParams::default()
    } else {
        *params
    };
    let alive = survivors(logits, vocab_limit, &params);
    let strongest = alive[0].1;
    let mut lanes = [0.0_f64; 16];
    let mut by_id = alive.clone();
    by_id.sort_by_key(|&(id, _)| id);
    for (id, logit) in by_id {
        lanes[id as usize % 16] += f64::from(math::exp((logit - strongest) / params.temperature));
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    let logprob = |id: u32, logit: f32| {
        if alive.iter().any(|&(other, _)| other == id) {
            let away = (f64::from(logit) - f64::from(strongest)) / f64::from(params.temperature);
            (away - math::ln(lanes[0])) as f32
        } else {
            f32::NEG_INFINITY
        }
    };
    let mut order: Vec<(u32, f32)> = (0..vocab_limit).zip(logits.iter().copied()).collect();
    order.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("no NaN").then(a.0.cmp(&b.0)));
    let place = (order.iter())
        .position(|&(id, _)| id == token)
        .expect("in the vocabulary");
    order.truncate(top.max(place + 1));
    Score {
        logprob: logprob(token, order[place].1),
        rank: place as u32 + 1,
        top: (order.iter().take(top))
            .map(|&(id, logit)| (id, logprob(id, logit)))
            .collect(),
    }
}

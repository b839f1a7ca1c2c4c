//! The sampler draws from the softmax it claims to draw from, independently at
//! every position and seed, and drafts that share its noise agree with it as
//! often as theory says. Seeds are fixed, so a test that passes always passes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use offshoot_decode::sampling::{Sampler, SamplingParams, gumbel};

/// A check fails below this probability of its statistic under the hypothesis.
const ALPHA: f64 = 1e-4;

/// The probability that a chi-square variate with `freedom` degrees is at least
/// `statistic` (Wilson and Hilferty's cube-root normal approximation, 1931).
fn p_value(statistic: f64, freedom: usize) -> f64 {
    let spread = 2.0 / (9.0 * freedom as f64);
    let z = ((statistic / freedom as f64).cbrt() - (1.0 - spread)) / spread.sqrt();
    // The normal tail by approximation 7.1.26 of Abramowitz and Stegun, good to 1e-7.
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let poly = t
        * (0.254_829_592
            + t * (-0.284_496_736
                + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let tail = 0.5 * poly * (-x * x).exp();
    if z > 0.0 { tail } else { 1.0 - tail }
}

/// Chi-square p-value of counts against probabilities. Tokens with fewer than
/// five expected draws are counted together; a draw of probability 0 fails.
fn fit(counts: &[u64], probabilities: &[f64]) -> f64 {
    let draws: u64 = counts.iter().sum();
    let mut statistic = 0.0;
    let mut cells = 0;
    let mut rare = (0.0, 0.0);
    for (&count, &probability) in counts.iter().zip(probabilities) {
        if probability == 0.0 {
            if count > 0 {
                return 0.0;
            }
            continue;
        }
        let (count, expected) = (count as f64, probability * draws as f64);
        if expected < 5.0 {
            rare = (rare.0 + count, rare.1 + expected);
        } else {
            statistic += (count - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if rare.1 >= 5.0 {
        statistic += (rare.0 - rare.1).powi(2) / rare.1;
        cells += 1;
    }
    p_value(statistic, cells - 1)
}

/// The distribution that the parameters describe, straightforwardly in f64.
fn softmax(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    if params.top_k > 0 {
        order.truncate(params.top_k as usize);
    }
    let strongest = f64::from(logits[order[0]]);
    let weight =
        |id: usize| ((f64::from(logits[id]) - strongest) / f64::from(params.temperature)).exp();
    let total: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut kept = Vec::new();
    let mut mass = 0.0;
    for &id in &order {
        if mass < f64::from(params.top_p) * total && weight(id) >= f64::from(params.min_p) {
            kept.push(id);
        }
        mass += weight(id);
    }
    let total: f64 = kept.iter().map(|&id| weight(id)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for id in kept {
        probabilities[id] = weight(id) / total;
    }
    probabilities
}

/// Logits with a few strong and many weak tokens, as language models give them.
fn row(length: usize, salt: u32) -> Vec<f32> {
    (0..length)
        .map(|id| {
            let wave = ((id as f32 + 1.0) * (1.7 + salt as f32 * 0.31)).sin();
            wave * 2.0 - (id as f32 * 0.61 + salt as f32).cos().powi(2) * 3.0
        })
        .collect()
}

const DRAWS: u32 = 1_000_000;

#[test]
fn frequencies_fit_the_softmax_at_every_temperature_and_filter() {
    let base = SamplingParams::default();
    let settings = [
        base,
        SamplingParams {
            temperature: 0.3,
            ..base
        },
        SamplingParams {
            temperature: 0.7,
            seed: u64::MAX,
            ..base
        },
        SamplingParams {
            temperature: 3.0,
            seed: 17,
            ..base
        },
        SamplingParams { top_k: 5, ..base },
        SamplingParams {
            top_p: 0.8,
            temperature: 1.3,
            ..base
        },
        SamplingParams {
            min_p: 0.1,
            seed: 1 << 63,
            ..base
        },
        SamplingParams {
            top_k: 20,
            top_p: 0.9,
            min_p: 0.05,
            temperature: 0.9,
            choice: 3,
            ..base
        },
    ];
    let logits = row(48, 1);
    let mut sampler = Sampler::new(48);
    for params in settings {
        let mut counts = vec![0; logits.len()];
        for position in 0..DRAWS {
            let pick = sampler.pick(&logits, &params, position).unwrap();
            counts[pick.token as usize] += 1;
        }
        let p = fit(&counts, &softmax(&logits, &params));
        assert!(p > ALPHA, "p = {p} for {params:?}: {counts:?}");
    }
}

#[test]
fn frequencies_fit_across_seeds_and_choices_too() {
    let logits = row(20, 2);
    let mut sampler = Sampler::new(20);
    let want = softmax(&logits, &SamplingParams::default());
    // Seeds that count, seeds that differ in their highest bits, choices.
    for variant in 0..3 {
        let mut counts = vec![0; logits.len()];
        for draw in 0..DRAWS / 2 {
            let mut params = SamplingParams::default();
            match variant {
                0 => params.seed = u64::from(draw),
                1 => params.seed = u64::from(draw).reverse_bits(),
                _ => params.choice = draw,
            }
            counts[sampler.pick(&logits, &params, 9).unwrap().token as usize] += 1;
        }
        let p = fit(&counts, &want);
        assert!(p > ALPHA, "p = {p} for variant {variant}: {counts:?}");
    }
}

/// The check has teeth: noise that is 2 % too large, cut off in the upper tail or
/// rounded to a grid fails it, and the true noise in the same loop passes.
#[test]
fn biased_noise_fails_the_same_check() {
    let logits = row(10, 1);
    let params = SamplingParams::default();
    let want = softmax(&logits, &params);
    type Bias = fn(f64) -> f64;
    let variants: [(&str, Bias, bool); 4] = [
        ("the true noise", |noise| noise, true),
        ("2 % too large", |noise| noise * 1.02, false),
        ("no upper tail", |noise| noise.min(3.0), false),
        ("a grid of 1/8", |noise| (noise * 8.0).floor() / 8.0, false),
    ];
    for (name, bias, fits) in variants {
        let mut counts = vec![0; logits.len()];
        for position in 0..DRAWS {
            let mut best = (f64::NEG_INFINITY, 0);
            for (token, &logit) in (0_u32..).zip(&logits) {
                let score = f64::from(logit) + bias(gumbel(0, 0, position, token));
                if score > best.0 {
                    best = (score, token as usize);
                }
            }
            counts[best.1] += 1;
        }
        let p = fit(&counts, &want);
        assert_eq!(p > ALPHA, fits, "p = {p} for noise with {name}");
    }
}

/// Counts of token pairs from two draws that must not know of each other.
fn pair_fit(
    first: impl Fn(u32) -> SamplingParams,
    second: impl Fn(u32) -> SamplingParams,
    step: u32,
) -> f64 {
    let logits = row(8, 3);
    let mut sampler = Sampler::new(8);
    let one = softmax(&logits, &SamplingParams::default());
    let want: Vec<f64> = one
        .iter()
        .flat_map(|a| one.iter().map(move |b| a * b))
        .collect();
    let mut counts = vec![0; 64];
    for draw in 0..200_000_u32 {
        let a = sampler.pick(&logits, &first(draw), draw).unwrap().token as usize;
        let b = sampler
            .pick(&logits, &second(draw), draw + step)
            .unwrap()
            .token as usize;
        counts[a * 8 + b] += 1;
    }
    fit(&counts, &want)
}

#[test]
fn positions_seeds_and_choices_are_independent() {
    let base = |_| SamplingParams::default();
    for step in [1, 2, 16, 1 << 20] {
        let p = pair_fit(base, base, step);
        assert!(p > ALPHA, "p = {p} for positions {step} apart");
    }
    for bit in [0, 1, 31, 32, 63] {
        let other = move |_| SamplingParams {
            seed: 1 << bit,
            ..SamplingParams::default()
        };
        let p = pair_fit(base, other, 0);
        assert!(p > ALPHA, "p = {p} for seeds that differ in bit {bit}");
    }
    let counting = |draw| SamplingParams {
        seed: u64::from(draw),
        ..SamplingParams::default()
    };
    let next = |draw| SamplingParams {
        seed: u64::from(draw) + 1,
        ..SamplingParams::default()
    };
    let p = pair_fit(counting, next, 0);
    assert!(p > ALPHA, "p = {p} for neighbouring seeds");
    let choice = |_| SamplingParams {
        choice: 1,
        ..SamplingParams::default()
    };
    let p = pair_fit(base, choice, 0);
    assert!(p > ALPHA, "p = {p} for neighbouring choices");
    // The same check sees a dependence when there is one.
    assert!(pair_fit(base, base, 0) < ALPHA);
}

#[test]
fn noise_of_neighbouring_tokens_is_uncorrelated() {
    for (token_step, position_step) in [(1, 0), (0, 1), (1, 1), (16, 0), (4096, 0)] {
        let mut sum = 0.0;
        let draws = 200_000;
        for draw in 0..draws {
            let (token, position) = (draw % 500, draw / 500);
            let a = gumbel(5, 0, position, token);
            let b = gumbel(5, 0, position + position_step, token + token_step);
            sum += (a - EULER) * (b - EULER);
        }
        // The product of two independent Gumbel variates has deviation pi^2 / 6.
        let z = sum / f64::from(draws).sqrt() / (std::f64::consts::PI.powi(2) / 6.0);
        assert!(
            z.abs() < 4.5,
            "z = {z} for steps {token_step}, {position_step}"
        );
    }
}

/// The mean of a Gumbel variate.
const EULER: f64 = 0.577_215_664_901_532_9;

/// Two models under the same noise pick the same token with probability at least
/// (1 - TV) / (1 + TV) (arXiv 2408.07978), and never more than 1 - TV.
#[test]
fn shared_noise_couples_as_well_as_theory_promises() {
    let mut sampler = Sampler::new(30);
    let params = SamplingParams {
        seed: 11,
        ..SamplingParams::default()
    };
    let mut distances = Vec::new();
    for pair in 0..24_u32 {
        let target = row(30, pair);
        let drift = pair as f32 * 0.08;
        let draft: Vec<f32> = target
            .iter()
            .zip(row(30, pair + 100))
            .map(|(t, d)| t + drift * d)
            .collect();
        let (p, q) = (softmax(&target, &params), softmax(&draft, &params));
        let distance = p.iter().zip(&q).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
        let draws = 20_000;
        let mut same = 0;
        for position in 0..draws {
            let target = sampler.pick(&target, &params, position).unwrap().token;
            let draft = sampler.pick(&draft, &params, position).unwrap().token;
            same += u32::from(target == draft);
        }
        let share = f64::from(same) / f64::from(draws);
        // Four and a half deviations of a share of 20000 draws.
        let room = 4.5 * (0.25_f64 / f64::from(draws)).sqrt();
        assert!(
            share >= (1.0 - distance) / (1.0 + distance) - room,
            "{share} at TV {distance}"
        );
        assert!(share <= 1.0 - distance + room, "{share} at TV {distance}");
        distances.push(distance);
    }
    assert!(
        distances.iter().any(|&d| d > 0.4) && distances.contains(&0.0),
        "{distances:?}"
    );
}

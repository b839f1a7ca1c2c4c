#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::super::dice::Dice;
use super::super::reference;
use super::*;

/// The gate may only refuse what cannot win: 10^5 random rows, extreme ones among
/// them, every parameter and every vector width against all logarithms.
#[test]
fn every_width_equals_the_reference_that_takes_all_logarithms() {
    let widths = Width::all();
    let mut samplers: Vec<Sampler> = widths
        .iter()
        .map(|&width| Sampler::with_width(u32::MAX, width))
        .collect();
    let mut dice = Dice(0x5eed);
    let mut guesses = Vec::new();
    for case in 0..100_000_u32 {
        let logits = dice.logits();
        let params = dice.params();
        params.validate().unwrap();
        let k = dice.of(&[1, 2, 3, 8, 16, 17, 40]);
        let want = reference::ranked(&logits, u32::MAX, &params, case);
        let sampler = &mut samplers[case as usize % widths.len()];

        let pick = sampler.pick(&logits, &params, case).unwrap();
        let margin = want
            .get(1)
            .map_or(f32::INFINITY, |second| (want[0].1 - second.1) as f32);
        assert_eq!(
            (pick.token, pick.margin),
            (want[0].0, margin),
            "case {case} {params:?} {logits:?}"
        );

        sampler
            .guesses(&logits, &params, case, k, &mut guesses)
            .unwrap();
        let wanted = reference_guesses(&logits, &want, &params, k);
        let got: Vec<(u32, f32)> = guesses
            .iter()
            .map(|guess| (guess.token, guess.margin))
            .collect();
        assert_eq!(got, wanted, "case {case}, k = {k}, {params:?} {logits:?}");
    }
}

/// The ranked tokens, then the strongest of the others.
fn reference_guesses(
    logits: &[f32],
    ranked: &[(u32, f64)],
    params: &SamplingParams,
    k: usize,
) -> Vec<(u32, f32)> {
    let mut guesses: Vec<(u32, f32)> = ranked
        .iter()
        .map(|&(id, score)| (id, (score - ranked[0].1) as f32))
        .collect();
    let unfiltered = SamplingParams {
        temperature: 0.0,
        ..*params
    };
    let by_logit = reference::survivors(logits, u32::MAX, &unfiltered);
    let strongest = f64::from(by_logit[0].1);
    for (id, logit) in by_logit {
        if ranked.iter().all(|entry| entry.0 != id) {
            let distance = (f64::from(logit) - strongest) / f64::from(params.temperature);
            let last = guesses[guesses.len() - 1].1;
            guesses.push((id, last.min(distance as f32)));
        }
    }
    guesses.truncate(k);
    // The first is told by its lead over the second, not by its distance to itself.
    let second = guesses.get(1).map_or(f32::NEG_INFINITY, |guess| guess.1);
    if let Some(first) = guesses.first_mut() {
        first.1 = -second;
    }
    guesses
}

#[test]
fn outsiders_follow_the_survivors_in_the_order_of_their_logits() {
    let logits = [1.0, 4.0, 3.0, f32::NEG_INFINITY, 2.0];
    let params = SamplingParams {
        top_k: 1,
        temperature: 0.5,
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(5);
    let mut guesses = Vec::new();
    sampler
        .guesses(&logits, &params, 3, 3, &mut guesses)
        .unwrap();
    let got: Vec<(u32, f32)> = guesses
        .iter()
        .map(|guess| (guess.token, guess.margin))
        .collect();
    assert_eq!(got, [(1, 2.0), (2, -2.0), (4, -4.0)]);
    sampler
        .guesses(&logits, &params, 3, 9, &mut guesses)
        .unwrap();
    assert_eq!(guesses.len(), 4, "a masked token is no guess");
}

/// Rows as wide as a real vocabulary, where blocks are skipped in bulk.
#[test]
fn wide_rows_equal_the_reference() {
    let mut sampler = Sampler::new(4096);
    let mut dice = Dice(99);
    let mut guesses = Vec::new();
    for position in 0..400 {
        let scale = dice.of(&[0.5, 2.0, 4.0]);
        let logits: Vec<f32> = (0..4099).map(|_| (dice.bell() * scale) as f32).collect();
        let mut params = dice.params();
        if position % 2 == 0 {
            params = SamplingParams {
                seed: params.seed,
                ..SamplingParams::default()
            };
        }
        let want = reference::ranked(&logits, 4096, &params, position);
        assert_eq!(
            sampler.pick(&logits, &params, position).unwrap().token,
            want[0].0
        );
        sampler
            .guesses(&logits, &params, position, 8, &mut guesses)
            .unwrap();
        let got: Vec<(u32, f32)> = guesses
            .iter()
            .map(|guess| (guess.token, guess.margin))
            .collect();
        let wanted = reference_guesses(&logits[..4096], &want, &params, 8);
        assert_eq!(got, wanted, "{params:?}");
    }
}

#[test]
fn a_guess_has_margins_that_fall_and_weights_that_add_up() {
    let mut sampler = Sampler::new(100);
    let logits: Vec<f32> = (0..100).map(|id| (id as f32 * 0.7).sin() * 3.0).collect();
    let mut guesses = Vec::new();
    for temperature in [0.0, 0.7, 1.0] {
        let params = SamplingParams {
            temperature,
            ..SamplingParams::default()
        };
        sampler
            .guesses(&logits, &params, 5, 6, &mut guesses)
            .unwrap();
        assert_eq!(guesses.len(), 6);
        assert!(guesses[0].margin >= 0.0);
        assert_eq!(guesses[0].margin, -guesses[1].margin);
        assert!(
            guesses
                .windows(2)
                .all(|pair| pair[0].margin >= pair[1].margin)
        );
        let sum: f32 = guesses.iter().map(|guess| guess.weight).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        let ratio = guesses[1].weight / guesses[0].weight;
        assert!((ratio - guesses[1].margin.exp()).abs() < 1e-5);
        let pick = sampler.pick(&logits, &params, 5).unwrap();
        assert_eq!(pick.token, guesses[0].token);
        assert!((pick.margin - guesses[0].margin).abs() < 1e-6);
    }
    sampler
        .guesses(&logits, &SamplingParams::default(), 5, 0, &mut guesses)
        .unwrap();
    assert!(guesses.is_empty());
    sampler
        .guesses(&logits, &SamplingParams::default(), 5, 1000, &mut guesses)
        .unwrap();
    assert_eq!(guesses.len(), 100);
}

/// The probability of a guess is the softmax of `l / T` over the vocabulary, whatever the filters are and wherever the
/// guess stands: the same bits at every vector width, those of the reference that takes every weight.
#[test]
fn q_is_the_softmax_over_the_whole_vocabulary() {
    let widths = Width::all();
    let mut dice = Dice(0x9a);
    for case in 0..20_000_u32 {
        let logits = dice.logits();
        let params = dice.params();
        let k = dice.of(&[1, 2, 8, 40]);
        let mut first: Option<Vec<Guess>> = None;
        for &width in &widths {
            let mut guesses = Vec::new();
            Sampler::with_width(u32::MAX, width)
                .guesses(&logits, &params, case, k, &mut guesses)
                .unwrap();
            for guess in &guesses {
                let want = reference::probability(&logits, u32::MAX, &params, guess.token);
                assert_eq!(guess.q.to_bits(), want.to_bits(), "{params:?} {logits:?}");
                assert!((0.0..=1.0).contains(&guess.q));
            }
            assert!(guesses.iter().map(|guess| guess.q).sum::<f32>() < 1.0 + 1e-5);
            match &first {
                Some(narrow) => assert_eq!(narrow, &guesses, "{width:?} {params:?} {logits:?}"),
                None => first = Some(guesses),
            }
        }
    }
    // By hand: probabilities 1/2, 1/4, 1/8, 1/8 at T = 1, and square roots of those ratios at T = 2.
    let logits = [4.0_f32, 2.0, 1.0, 1.0].map(f32::ln);
    let mut guesses = Vec::new();
    for (temperature, root) in [(0.0, 1.0), (1.0, 1.0), (2.0, 0.5)] {
        let params = SamplingParams {
            temperature,
            top_k: 1,
            ..SamplingParams::default()
        };
        (Sampler::new(4).guesses(&logits, &params, 0, 4, &mut guesses)).unwrap();
        let weights = [4.0_f32, 2.0, 1.0, 1.0].map(|weight| weight.powf(root));
        let sum: f32 = weights.iter().sum();
        for guess in &guesses {
            let want = weights[guess.token as usize] / sum;
            assert!((guess.q - want).abs() < 1e-6, "{guess:?} {want}");
        }
    }
}

/// The tokens that are ever picked, over many positions.
fn picked(logits: &[f32], params: SamplingParams, limit: u32) -> Vec<u32> {
    let mut sampler = Sampler::new(limit);
    let mut seen = std::collections::BTreeSet::new();
    for position in 0..4000 {
        seen.insert(sampler.pick(logits, &params, position).unwrap().token);
    }
    seen.into_iter().collect()
}

#[test]
fn top_k_keeps_the_lowest_ids_among_equals() {
    let logits = [1.0, 2.0, 1.0, 2.0, 1.0, 1.0];
    let params = |top_k| SamplingParams {
        top_k,
        ..SamplingParams::default()
    };
    assert_eq!(picked(&logits, params(1), 6), [1]);
    assert_eq!(picked(&logits, params(2), 6), [1, 3]);
    assert_eq!(picked(&logits, params(4), 6), [0, 1, 2, 3]);
    assert_eq!(picked(&logits, params(0), 6), [0, 1, 2, 3, 4, 5]);
    assert_eq!(picked(&logits, params(100), 6), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_the_mass() {
    // Probabilities 1/2, 1/4, 1/8, 1/8.
    let logits = [
        8.0_f32.ln(),
        1.0_f32.ln(),
        2.0_f32.ln(),
        4.0_f32.ln(),
        1.0_f32.ln(),
    ];
    let params = |top_p| SamplingParams {
        top_p,
        ..SamplingParams::default()
    };
    assert_eq!(picked(&logits, params(1e-9), 5), [0]);
    assert_eq!(picked(&logits, params(0.49), 5), [0]);
    assert_eq!(picked(&logits, params(0.51), 5), [0, 3]);
    assert_eq!(picked(&logits, params(0.74), 5), [0, 3]);
    assert_eq!(picked(&logits, params(0.80), 5), [0, 2, 3]);
    // The two weakest are equal: the lower id goes first.
    assert_eq!(picked(&logits, params(0.90), 5), [0, 1, 2, 3]);
    assert_eq!(picked(&logits, params(0.999), 5), [0, 1, 2, 3, 4]);
}

#[test]
fn top_p_counts_the_mass_that_top_k_left() {
    // After top-k 2 the probabilities are 2/3 and 1/3: 0.6 is reached by the first.
    let logits = [4.0_f32.ln(), 2.0_f32.ln(), 1.0_f32.ln(), 1.0_f32.ln()];
    let with = |top_k| SamplingParams {
        top_k,
        top_p: 0.6,
        ..SamplingParams::default()
    };
    assert_eq!(picked(&logits, with(2), 4), [0]);
    assert_eq!(picked(&logits, with(0), 4), [0, 1]);
}

#[test]
fn min_p_is_relative_to_the_strongest_after_the_temperature() {
    let logits = [4.0_f32.ln(), 2.1_f32.ln(), 1.9_f32.ln(), 0.5_f32.ln()];
    let params = |min_p, temperature| SamplingParams {
        min_p,
        temperature,
        ..SamplingParams::default()
    };
    assert_eq!(picked(&logits, params(0.5, 1.0), 4), [0, 1]);
    assert_eq!(picked(&logits, params(0.4, 1.0), 4), [0, 1, 2]);
    // At T = 2 the ratios are square roots: 0.72, 0.69, 0.35.
    assert_eq!(picked(&logits, params(0.5, 2.0), 4), [0, 1, 2]);
    assert_eq!(picked(&logits, params(1.0, 1.0), 4), [0]);
    assert_eq!(picked(&[1.0, 3.0, 3.0], params(1.0, 1.0), 3), [1, 2]);
}

#[test]
fn padding_and_masked_tokens_are_never_picked() {
    let mut logits = vec![0.0; 50];
    logits[40..].fill(100.0);
    logits[3] = f32::NEG_INFINITY;
    let seen = picked(&logits, SamplingParams::default(), 40);
    assert_eq!(seen.len(), 39);
    assert!(!seen.contains(&3) && seen.iter().all(|&id| id < 40));
    let greedy = SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    };
    assert_eq!(picked(&logits, greedy, 40), [0], "ties go to the lowest id");
    // What padding holds is nobody's business.
    logits[45] = f32::NAN;
    assert_eq!(picked(&logits, greedy, 40), [0]);
}

#[test]
fn rows_without_a_finite_maximum_are_refused() {
    let mut guesses = vec![Guess {
        token: 1,
        q: 1.0,
        margin: 0.0,
        weight: 1.0,
    }];
    for width in Width::all() {
        let mut sampler = Sampler::with_width(u32::MAX, width);
        for place in [0, 5, 31, 32, 36] {
            for bad in [f32::NAN, f32::INFINITY, -f32::NAN] {
                let mut logits = vec![1.0; 37];
                logits[place] = bad;
                for temperature in [0.0, 1.0] {
                    let params = SamplingParams {
                        temperature,
                        ..SamplingParams::default()
                    };
                    assert_eq!(sampler.pick(&logits, &params, 0), Err(NotFinite));
                    assert_eq!(
                        sampler.guesses(&logits, &params, 0, 3, &mut guesses),
                        Err(NotFinite)
                    );
                    assert!(guesses.is_empty());
                }
            }
        }
        let params = SamplingParams::default();
        assert_eq!(
            sampler.pick(&[f32::NEG_INFINITY; 40], &params, 0),
            Err(NotFinite)
        );
        assert_eq!(sampler.pick(&[], &params, 0), Err(NotFinite));
        let mut one = [f32::NEG_INFINITY; 40];
        one[7] = -3.0;
        let pick = sampler.pick(&one, &params, 0).unwrap();
        assert_eq!((pick.token, pick.margin), (7, f32::INFINITY));
    }
}

/// Speed is read off by a person, not asserted: machines differ.
#[test]
#[ignore = "prints timings; run by hand with --nocapture"]
#[allow(clippy::print_stdout, reason = "the figures are the point")]
fn timings() {
    let mut dice = Dice(7);
    for length in [4096, 131_072] {
        let rows: Vec<Vec<f32>> = (0..16)
            .map(|_| (0..length).map(|_| (dice.bell() * 3.0) as f32).collect())
            .collect();
        let base = SamplingParams::default();
        let settings = [
            (
                "T=0",
                SamplingParams {
                    temperature: 0.0,
                    ..base
                },
            ),
            ("T=1", base),
            ("top_k=50", SamplingParams { top_k: 50, ..base }),
            ("top_p=0.9", SamplingParams { top_p: 0.9, ..base }),
            (
                "min_p=0.05",
                SamplingParams {
                    min_p: 0.05,
                    ..base
                },
            ),
            (
                "k=50 p=0.9",
                SamplingParams {
                    top_k: 50,
                    top_p: 0.9,
                    ..base
                },
            ),
        ];
        let rounds = 40_000_000 / length as u32;
        for width in Width::all() {
            let mut sampler = Sampler::with_width(u32::MAX, width);
            for (name, params) in settings {
                let micros = |start: std::time::Instant| {
                    start.elapsed().as_secs_f64() * 1e6 / f64::from(rounds)
                };
                let mut sum = 0;
                let start = std::time::Instant::now();
                for round in 0..rounds {
                    let row = &rows[round as usize % 16];
                    sum += u64::from(sampler.pick(row, &params, round).unwrap().token);
                }
                let pick = micros(start);
                let mut out = Vec::new();
                let start = std::time::Instant::now();
                for round in 0..rounds {
                    let row = &rows[round as usize % 16];
                    sampler.guesses(row, &params, round, 8, &mut out).unwrap();
                    sum += u64::from(out[0].token);
                }
                let guesses = micros(start);
                println!(
                    "{length:>7} {width:?} {name:<11} pick {pick:6.2} us, guesses(8) {guesses:6.2} us ({sum})"
                );
            }
        }
    }
}

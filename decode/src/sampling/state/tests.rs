#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use super::super::dice::Dice;
use super::super::reference;
use super::super::scan::Width;
use super::*;

/// A row without the values that shaping leaves alone, so that shaped rows can always be sampled from.
fn finite(dice: &mut Dice) -> Vec<f32> {
    let mut logits = dice.logits();
    for logit in &mut logits {
        *logit = logit.max(f32::MIN);
    }
    logits
}

/// Every parameter at once, at random: picks, guesses and scores of one session against counting and sorting anew.
#[test]
fn a_session_that_follows_its_text_equals_the_reference() {
    let widths = Width::all();
    let mut samplers: Vec<Sampler> = (widths.iter())
        .map(|&width| Sampler::with_width(u32::MAX, width))
        .collect();
    let mut dice = Dice(0xfade);
    let mut guesses = Vec::new();
    for case in 0..6_000 {
        let sampler = &mut samplers[case % widths.len()];
        let vocab = finite(&mut dice).len();
        let (params, shaping) = (dice.params(), dice.shaping(vocab));
        let sampling = Sampling {
            params,
            shaping: shaping.clone(),
        };
        let mut state = SamplerState::from(sampling.clone());
        sampling.validate(vocab as u32).unwrap();
        let prompt_len = 1 + dice.below(6) as usize;
        let text = dice.text(prompt_len + 10, vocab);
        let mut len = prompt_len;
        while len < text.len() {
            let mut logits: Vec<f32> = finite(&mut dice);
            logits.resize(vocab, -1.0);
            let path = {
                let depth = dice.below(5) as usize;
                dice.text(depth, vocab)
            };
            let past = History {
                text: &text[..len],
                path: &path,
                prompt_len: prompt_len as u32,
            };
            let output = [&text[prompt_len..len], &path].concat();
            let row = reference::shaped(&logits, &shaping, &text[..prompt_len], &output);
            let position = past.position();
            assert_eq!(position as usize, prompt_len + output.len());

            let want = reference::ranked(&row, u32::MAX, &params, position);
            let pick = sampler.pick_after(&logits, &mut state, &past).unwrap();
            assert_eq!(pick.token, want[0].0, "case {case} {params:?} {shaping:?}");
            sampler
                .guesses_after(&logits, &mut state, &past, 3, &mut guesses)
                .unwrap();
            for (guess, want) in guesses.iter().zip(&want) {
                assert_eq!(guess.token, want.0, "case {case} {params:?} {shaping:?}");
            }
            let token = dice.of(&[pick.token, dice_token(vocab, case)]);
            let top = dice.of(&[0, 1, 5, 20]);
            for (basis, wanted) in [
                (
                    Basis::Raw,
                    reference::score(&logits, u32::MAX, &SamplingParams::default(), token, top),
                ),
                (
                    Basis::Processed,
                    reference::score(&row, u32::MAX, &params, token, top),
                ),
            ] {
                let got = sampler.score_after(&logits, &mut state, &past, token, (basis, top));
                let got = got.unwrap();
                assert_eq!(got, wanted, "case {case} {params:?} {shaping:?} {row:?}");
                assert!(got.logprob <= 0.0);
            }
            len += 1 + dice.below(4) as usize;
        }
    }
}

fn dice_token(vocab: usize, case: usize) -> u32 {
    ((case * 7) % vocab) as u32
}

/// Parameters at their neutral values, in any mixture with others left out, change not a bit.
#[test]
fn neutral_parameters_are_no_parameters() {
    let mut sampler = Sampler::new(u32::MAX);
    let mut dice = Dice(0xace);
    for case in 0..20_000 {
        let logits = finite(&mut dice);
        let params = dice.params();
        let text = dice.text(8, logits.len());
        let past = History {
            text: &text[..6],
            path: &text[6..],
            prompt_len: 3,
        };
        let neutral = Shaping {
            bias: (0..logits.len().min(9) as u32)
                .map(|id| (id, 0.0))
                .collect(),
            repetition_penalty: 1.0,
            presence_penalty: -0.0,
            frequency_penalty: 0.0,
            min_tokens: dice.of(&[0, 5]),
            stop_ids: vec![0],
        };
        let mut with = SamplerState::from(Sampling {
            params,
            shaping: neutral,
        });
        let mut without = SamplerState::from(params);
        let pick = sampler.pick_after(&logits, &mut without, &past).unwrap();
        assert_eq!(
            sampler.pick_after(&logits, &mut with, &past).unwrap(),
            pick,
            "case {case} {params:?} {logits:?}"
        );
        assert_eq!(sampler.pick(&logits, &params, 8).unwrap(), pick);
        for basis in [Basis::Raw, Basis::Processed] {
            let asked = (basis, 20);
            let plain = sampler
                .score_after(&logits, &mut without, &past, pick.token, asked)
                .unwrap();
            let score = sampler
                .score_after(&logits, &mut with, &past, pick.token, asked)
                .unwrap();
            assert_eq!(score, plain);
            assert!(plain.logprob > f32::NEG_INFINITY || params.temperature < 1e-20);
        }
    }
}

/// Log-probabilities by hand, and what filters and T = 0 do to them.
#[test]
fn scores_are_logarithms_of_probabilities() {
    // Probabilities 1/2, 1/8, 1/8, 1/4.
    let logits = [4.0_f32, 1.0, 1.0, 2.0].map(f32::ln);
    let mut sampler = Sampler::new(4);
    let near = |got: f32, want: f64| assert!((f64::from(got) - want).abs() < 1e-6, "{got} {want}");
    let raw = SamplingParams::default();
    let score = sampler.score(&logits, &raw, 2, 3).unwrap();
    near(score.logprob, (0.125_f64).ln());
    assert_eq!(score.rank, 4, "ties go to the lowest id");
    let ids: Vec<u32> = score.top.iter().map(|&(id, _)| id).collect();
    assert_eq!(ids, [0, 3, 1]);
    near(score.top[0].1, (0.5_f64).ln());
    let two = SamplingParams { top_k: 2, ..raw };
    let score = sampler.score(&logits, &two, 3, 4).unwrap();
    near(score.logprob, (1.0_f64 / 3.0).ln());
    assert_eq!((score.rank, score.top.len()), (2, 4));
    assert_eq!(score.top[2], (1, f32::NEG_INFINITY));
    let cold = SamplingParams {
        temperature: 0.0,
        top_k: 1,
        ..raw
    };
    let score = sampler.score(&logits, &cold, 1, 0).unwrap();
    near(score.logprob, (0.125_f64).ln());
    assert_eq!(score.rank, 3);
    // A masked token is listed last, and padding never.
    let masked = [0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 7.0];
    let score = sampler.score(&masked, &raw, 3, 20).unwrap();
    assert_eq!((score.logprob, score.rank), (f32::NEG_INFINITY, 4));
    let ids: Vec<u32> = score.top.iter().map(|&(id, _)| id).collect();
    assert_eq!(ids, [0, 2, 1, 3]);
    let bad = [0.0, f32::NAN, 0.0, 0.0];
    assert_eq!(sampler.score(&bad, &raw, 0, 1), Err(NotFinite));
}

/// Every ask is answered with what its own function gives.
#[test]
fn an_answer_is_what_was_asked_for() {
    let mut sampler = Sampler::new(u32::MAX);
    let mut dice = Dice(0xa5c);
    for case in 0..4_000 {
        let logits = finite(&mut dice);
        let vocab = logits.len();
        let sampling = Sampling {
            params: dice.params(),
            shaping: dice.shaping(vocab),
        };
        let mut state = SamplerState::from(sampling);
        let text = dice.text(9, vocab);
        let past = History {
            text: &text[..7],
            path: &text[7..],
            prompt_len: 4,
        };
        let mut answer = |ask| sampler.answer(ask, &logits, &mut state, &past);
        let nothing = answer(Ask::Nothing);
        let token = dice_token(vocab, case);
        let top = dice.of(&[0, 1, 5, 20]);
        let plain = answer(Ask::Pick { score: None });
        let scored = [Basis::Raw, Basis::Processed].map(|basis| {
            let score = Some((basis, top));
            (basis, answer(Ask::Pick { score }))
        });
        let guessed = [0, 1, 2, 9].map(|most| (most, answer(Ask::Guesses(most))));
        let known = answer(Ask::Score { token, top });

        assert_eq!(nothing, None);
        let pick = sampler.pick_after(&logits, &mut state, &past).unwrap();
        assert_eq!(
            (plain, &pick.score),
            (Some(Answer::Pick(pick.clone())), &None)
        );
        let top = usize::from(top);
        for (basis, got) in scored {
            let score = sampler.score_after(&logits, &mut state, &past, pick.token, (basis, top));
            let want = Pick {
                score: Some(Box::new(score.unwrap())),
                ..pick.clone()
            };
            assert_eq!(got, Some(Answer::Pick(want)), "{basis:?}");
        }
        let mut guesses = Vec::new();
        (sampler.guesses_after(&logits, &mut state, &past, 9, &mut guesses)).unwrap();
        for (most, got) in guessed {
            let Some(Answer::Guesses(got)) = got else {
                panic!("{got:?}")
            };
            let most = usize::from(most);
            assert_eq!(got.len(), most.min(guesses.len()));
            for (got, want) in got.iter().zip(&guesses) {
                // Even an only guess is told by its lead over the second.
                let facts = |guess: &Guess| (guess.token, guess.q, guess.margin);
                assert_eq!(facts(got), facts(want), "of {most}");
            }
        }
        let want = sampler.score(&logits, &SamplingParams::default(), token, top);
        assert_eq!(known, Some(Answer::Score(Box::new(want.unwrap()))));

        // Without a mask, which would hide the token.
        let mut state = SamplerState::from(state.sampling.params);
        let mut broken = logits.clone();
        broken[token as usize] = f32::NAN;
        for ask in [
            Ask::Pick { score: None },
            Ask::Guesses(3),
            Ask::Score { token, top: 2 },
        ] {
            let got = sampler.answer(ask, &broken, &mut state, &past);
            assert_eq!(got, Some(Answer::NotFinite));
        }
        let got = sampler.answer(Ask::Nothing, &broken, &mut state, &past);
        assert_eq!(got, None);
    }
}

//! Every parameter of a request, with guesses and without: the same tokens and the same scores, to the bit.

use decode::Sampling;
use decode::sampling::{SamplingParams, Shaping};
use speculation::message::{Basis, PromptScoring, Score, Scores, Scoring};

use crate::plain::{Plain, plain};
use crate::{Asked, run};

const MODEL: &str = "target";

/// A token that the model says early, but not at once, when nothing is asked of it, and one that it says often.
fn landmarks(temperature: f32) -> (u32, u32) {
    let asked = asked(temperature, |_| {});
    let text = plain(MODEL, &asked).text;
    let count = |token: u32| text.iter().filter(|&&other| other == token).count();
    let often = text
        .iter()
        .copied()
        .max_by_key(|&token| count(token))
        .unwrap();
    let new = (1..8).rev().find(|&at| !text[..at].contains(&text[at]));
    (text[new.expect("not one token over and over")], often)
}

fn asked(temperature: f32, change: impl FnOnce(&mut Asked)) -> Asked {
    let mut asked = Asked {
        sampling: Sampling::from(SamplingParams {
            temperature,
            seed: 11,
            ..SamplingParams::default()
        }),
        ..Asked::default()
    };
    change(&mut asked);
    asked
}

fn scored(picks: u8, basis: Basis) -> Scoring {
    Scoring {
        picks: Some(picks),
        basis,
        prompt: Some(PromptScoring {
            top: picks,
            first: 1,
        }),
    }
}

/// A name, and the request.
fn matrix(temperature: f32, early: u32, often: u32) -> Vec<(&'static str, Asked)> {
    let case = |name, change: &dyn Fn(&mut Asked)| (name, asked(temperature, change));
    let mut cases = vec![
        case("nothing", &|_| {}),
        case("bias", &|asked| {
            asked.sampling.shaping.bias = vec![(often, -100.0), (early, 1.5), (7, 2.5)];
        }),
        case("repetition", &|asked| {
            asked.sampling.shaping.repetition_penalty = 1.6;
        }),
        case("less repetition", &|asked| {
            asked.sampling.shaping.repetition_penalty = 0.7;
        }),
        case("presence", &|asked| {
            asked.sampling.shaping.presence_penalty = 1.5
        }),
        case("frequency", &|asked| {
            asked.sampling.shaping.frequency_penalty = 0.9
        }),
        case("stop", &|asked| {
            asked.sampling.shaping.stop_ids = vec![early]
        }),
        case("min_tokens", &|asked| {
            asked.sampling.shaping.stop_ids = vec![early];
            asked.sampling.shaping.min_tokens = 12;
        }),
        case("everything", &|asked| {
            asked.sampling.shaping = Shaping {
                bias: vec![(often, -1.0), (9, 4.0)],
                repetition_penalty: 1.2,
                presence_penalty: 0.4,
                frequency_penalty: 0.3,
                min_tokens: 9,
                stop_ids: vec![early],
            };
            asked.sampling.params.top_k = 40;
            asked.sampling.params.top_p = 0.9;
            asked.sampling.params.min_p = 0.01;
        }),
    ];
    if temperature > 0.0 {
        cases.extend([
            case("top_k", &|asked| asked.sampling.params.top_k = 3),
            case("top_p", &|asked| asked.sampling.params.top_p = 0.6),
            case("min_p", &|asked| asked.sampling.params.min_p = 0.2),
        ]);
    }
    cases
}

fn all(scores: &Scores) -> Vec<Score> {
    (0..scores.len())
        .map(|at| scores.get(at).unwrap())
        .collect()
}

async fn check(temperature: f32) {
    let (early, often) = landmarks(temperature);
    let mut texts: Vec<(&str, Plain)> = Vec::new();
    for (at, (name, mut asked)) in matrix(temperature, early, often).into_iter().enumerate() {
        asked.scoring = match at % 4 {
            0 => scored(20, Basis::Processed),
            1 => scored(5, Basis::Raw),
            2 => scored(0, Basis::Processed),
            _ => scored(1, Basis::Raw),
        };
        let truth = plain(MODEL, &asked);
        assert_eq!(truth.picks.len(), truth.text.len());
        for rows in [0, 16] {
            let reported = run(MODEL, rows, &asked, &truth).await;
            let said = Plain {
                text: reported.text,
                picks: all(&reported.picks),
                prompt: all(&reported.prompt),
            };
            assert_eq!(said, truth, "{name} at T = {temperature} with {rows} rows");
            let hits = reported.last.walks.guesses_accepted;
            assert_eq!(hits > 0, rows > 0, "{name}: {:?}", reported.last.walks);
        }
        texts.push((name, truth));
    }
    // A parameter that changes nothing would show nothing.
    let base = texts[0].1.text.clone();
    for (name, other) in &texts[1..] {
        assert_ne!(
            other.text, base,
            "{name} at T = {temperature} has no effect"
        );
    }
    let text = |name| {
        &texts
            .iter()
            .find(|(other, _)| *other == name)
            .unwrap()
            .1
            .text
    };
    let until = base.iter().position(|&token| token == early).unwrap();
    assert_eq!(text("stop")[..], base[..=until]);
    assert!(text("min_tokens").len() >= 12 && !text("min_tokens")[..12].contains(&early));
    assert!(!text("bias").contains(&often));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_parameter_decodes_the_same_with_guesses_and_without_greedily() {
    check(0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_parameter_decodes_the_same_with_guesses_and_without_at_a_temperature() {
    check(0.8).await;
}

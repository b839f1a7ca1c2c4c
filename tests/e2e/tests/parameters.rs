//! Every parameter of a request has the same effect with and without speculation: tokens, text, finish reasons and scores
//! are equal to the bit.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use offshoot_e2e::client::{Client, Completion, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::{REFERENCE, full, prompts, strategies};
use proto::outward;
use proto::v1::{GenerateRequest, LogprobsMode};
use speculation::strategy::{Knob, Knobs, Range, Settings};

const TOKENS: u32 = 40;

type Change = fn(&mut GenerateRequest);

/// Whether a parameter must change the completions of plain decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Shows,
    MayNotShow,
}

/// Parameters and combinations, by name.
const MATRIX: &[(&str, Effect, Change)] = &[
    ("nothing", Effect::MayNotShow, |_| {}),
    ("top_k", Effect::MayNotShow, |r| r.top_k = 3),
    ("top_p", Effect::MayNotShow, |r| r.top_p = Some(0.6)),
    ("min_p", Effect::MayNotShow, |r| r.min_p = 0.2),
    ("seed", Effect::MayNotShow, |r| r.seed = Some(99)),
    ("max_tokens", Effect::Shows, |r| r.max_tokens = 17),
    ("logit_bias", Effect::Shows, |r| {
        (r.bias_ids, r.bias_values) = (vec![10, 11, 300, 301], vec![6.0, -100.0, 5.0, 5.5]);
    }),
    ("repetition_penalty", Effect::Shows, |r| {
        r.repetition_penalty = Some(1.4);
    }),
    ("presence_penalty", Effect::Shows, |r| {
        r.presence_penalty = 1.5
    }),
    ("frequency_penalty", Effect::Shows, |r| {
        r.frequency_penalty = 0.8
    }),
    ("stop_token_ids", Effect::MayNotShow, |r| {
        r.stop_token_ids = (200..232).collect();
    }),
    ("min_tokens", Effect::MayNotShow, |r| {
        r.stop_token_ids = (200..232).collect();
        r.min_tokens = 12;
    }),
    ("stop", Effect::Shows, |r| {
        r.stop = vec![
            ";\n".to_owned(),
            " = ".to_owned(),
            "e(".to_owned(),
            ".".to_owned(),
        ];
    }),
    ("include_stop", Effect::Shows, |r| {
        r.stop = vec![";".to_owned(), "e".to_owned()];
        r.include_stop = true;
        r.min_tokens = 3;
    }),
    ("ignore_eos", Effect::MayNotShow, |r| {
        (r.bias_ids, r.bias_values) = (vec![0], vec![8.0]);
        r.ignore_eos = true;
    }),
    ("end of text", Effect::Shows, |r| {
        (r.bias_ids, r.bias_values) = (vec![0], vec![8.0]);
    }),
    ("n", Effect::MayNotShow, |r| r.n = 3),
    ("logprobs", Effect::Shows, |r| r.logprobs = Some(5)),
    ("logprobs alone", Effect::Shows, |r| r.logprobs = Some(0)),
    ("logprobs processed", Effect::Shows, |r| {
        r.logprobs = Some(4);
        r.logprobs_mode = LogprobsMode::Processed.into();
        r.top_p = Some(0.9);
        r.presence_penalty = 0.5;
    }),
    ("prompt_logprobs", Effect::Shows, |r| {
        r.prompt_logprobs = Some(3)
    }),
    ("priority", Effect::MayNotShow, |r| r.priority = -3),
    ("everything", Effect::Shows, |r| {
        (r.bias_ids, r.bias_values) = (vec![10, 300], vec![-2.0, 1.5]);
        r.repetition_penalty = Some(1.1);
        r.presence_penalty = 0.3;
        r.frequency_penalty = 0.2;
        r.min_tokens = 9;
        (r.top_k, r.top_p, r.min_p) = (50, Some(0.95), 0.01);
        r.stop = vec!["}\n".to_owned()];
        (r.logprobs, r.prompt_logprobs) = (Some(2), Some(1));
        r.n = 2;
    }),
];

/// All that a client sees of a completion.
fn seen(all: &BTreeMap<u32, Completion>) -> impl PartialEq + std::fmt::Debug + use<> {
    let each = all.iter().map(|(choice, completion)| {
        let Completion {
            ids,
            text,
            reason,
            scores,
            prompt_scores,
            stop_text,
            ..
        } = completion.clone();
        let scores = (scores, prompt_scores);
        (*choice, ids, text, reason, scores, stop_text)
    });
    each.collect::<Vec<_>>()
}

async fn ask(
    client: &Client,
    prompt: &str,
    t: f32,
    strategy: &Settings,
    change: Change,
) -> BTreeMap<u32, Completion> {
    let mut asked = request(prompt, TOKENS, t, &strategy.name);
    let knobs = strategy.knobs.iter();
    asked.knobs = knobs
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    change(&mut asked);
    let all = client.generate_all(asked.clone()).await.unwrap();
    assert_eq!(all.len() as u32, asked.n.max(1));
    for completion in all.values() {
        let (tokens, prompt) = (completion.ids.len(), completion.started.prompt_tokens);
        let scored = asked.logprobs.map_or(0, |_| tokens);
        assert_eq!(completion.scores.len(), scored, "one score for each token");
        let scored = asked.prompt_logprobs.map_or(0, |_| prompt as usize - 1);
        assert_eq!(completion.prompt_scores.len(), scored);
    }
    all
}

/// Also where only the end is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_completion_resumes_wherever_it_was_interrupted() {
    let prompt = &prompts(1).unwrap()[0];
    let cluster = Cluster::start(Shape {
        drafts: 1,
        qualifiers: 0,
        target_pace: 0,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 2).await.unwrap();
    let mut resumed = 0;
    for (name, _, change) in MATRIX {
        let mut asked = request(prompt, TOKENS, 0.8, "auto");
        change(&mut asked);
        let all = client.generate_all(asked.clone()).await.unwrap();
        for (&choice, whole) in &all {
            let len = whole.ids.len();
            let cuts: BTreeSet<usize> = [0, 1.min(len), len / 2, len.saturating_sub(1), len].into();
            for cut in cuts {
                let about = format!("{name}, choice {choice}, {cut} of {len} tokens");
                let arrived = &whole.ids[..cut];
                let rest = outward::resume(asked.clone(), &whole.started, arrived, choice);
                let rest = client.generate_all(rest).await;
                let mut rest = rest.unwrap_or_else(|status| panic!("{about}: {status}"));
                let rest = rest.remove(&choice).unwrap();
                assert_eq!(rest.ids, whole.ids[cut..], "{about}");
                assert!(whole.text.ends_with(&rest.text), "{about}: {:?}", rest.text);
                assert_eq!(rest.reason, whole.reason, "{about}");
                assert_eq!(rest.stop_text, whole.stop_text, "{about}");
                assert_eq!(rest.prompt_scores, whole.prompt_scores, "{about}");
                let ranks = whole.scores.ranks.get(cut..).unwrap_or_default();
                assert_eq!(rest.scores.ranks, ranks, "{about}");
                let logprobs = whole.scores.logprobs.get(cut..).unwrap_or_default();
                assert_eq!(rest.scores.logprobs, logprobs, "{about}");
                resumed += 1;
            }
        }
    }
    println!("{resumed} completions resumed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_parameter_is_the_same_under_every_strategy() {
    let prompts = prompts(if full() { 12 } else { 2 }).unwrap();
    let cluster = Cluster::start(Shape {
        drafts: 2,
        qualifiers: 1,
        target_pace: 0,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let nothing: Change = |_| {};
    let reference = Settings::new(REFERENCE);
    let mut compared = 0;
    for (name, effect, change) in MATRIX {
        let mut shows = false;
        for (at, prompt) in prompts.iter().enumerate() {
            for t in [0.0, 0.8] {
                // Shortly, each prompt has a temperature of its own.
                if !full() && (t > 0.0) != (at % 2 == 1) {
                    continue;
                }
                let plain = ask(&client, prompt, t, &reference, *change).await;
                let bare = ask(&client, prompt, t, &reference, nothing).await;
                shows |= seen(&plain) != seen(&bare);
                for strategy in strategies() {
                    let settings = Settings::new(strategy.name);
                    let other = ask(&client, prompt, t, &settings, *change).await;
                    assert_eq!(
                        seen(&other),
                        seen(&plain),
                        "{name} at T = {t} under {}",
                        strategy.name
                    );
                    compared += 1;
                }
            }
        }
        assert!(
            shows || *effect == Effect::MayNotShow,
            "{name} changed nothing, so the test proves nothing"
        );
    }
    println!(
        "{compared} answers under {} settings equal plain decoding's",
        MATRIX.len()
    );
}

/// Every strategy that has knobs, with all of them at one end of their range, then at the other.
fn extremes() -> Vec<Settings> {
    let least = |knob: &Knob| match knob.range {
        Range::Whole(least, _) => f64::from(least),
        Range::Real(least, _) => least,
    };
    let most = |knob: &Knob| match knob.range {
        Range::Whole(_, most) => f64::from(most),
        Range::Real(_, most) => most,
    };
    let mut all = Vec::new();
    for strategy in strategies() {
        let at = |end: &dyn Fn(&Knob) -> f64| Settings {
            name: strategy.name.to_owned(),
            knobs: (strategy.knobs.iter())
                .map(|knob| (knob.name.to_owned(), end(knob)))
                .collect::<Knobs>(),
            ..Settings::default()
        };
        if !strategy.knobs.is_empty() {
            all.extend([at(&least), at(&most)]);
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn knobs_change_the_speed_and_nothing_else() {
    let prompts = prompts(2).unwrap();
    let cluster = Cluster::start(Shape {
        drafts: 2,
        qualifiers: 1,
        target_pace: 0,
    })
    .unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let settings = extremes();
    assert!(settings.len() >= 6, "{settings:?}");
    for prompt in &prompts {
        let plain = ask(&client, prompt, 0.8, &Settings::new(REFERENCE), |_| {}).await;
        for setting in &settings {
            for change in [
                (|_| {}) as Change,
                |r| r.drafts = Some(1),
                |r| r.drafts = Some(0),
                |r| r.no_qualifier = true,
            ] {
                let other = ask(&client, prompt, 0.8, setting, change).await;
                assert_eq!(seen(&other), seen(&plain), "{setting:?}");
            }
        }
    }
}

//! A draft: guesses are made under the request's parameters, each with the tokens before it, the guesses above it among
//! them.

use decode::sampling::{SamplingParams, Shaping};
use decode::{Answer, Ask, Sampling};
use speculation::message::SessionSpec;
use speculation::strategy::Settings;

use crate::plain::Model;
use crate::{Asked, Duties, Duty, PROMPT, name, report, spec, start, stream};

const DEPTH: usize = 24;

/// What the model says under the parameters, one token a step.
fn plain(sampling: &Sampling) -> Vec<u32> {
    let mut model = Model::load("draft");
    let mut text = PROMPT.to_vec();
    for _ in 1..PROMPT.len() {
        model.step(&text, sampling, Ask::Nothing);
    }
    for _ in 0..DEPTH {
        let answer = model.step(&text, sampling, Ask::Pick { score: None });
        let Some(Answer::Pick(pick)) = answer else {
            panic!("a pick was answered by {answer:?}");
        };
        text.push(pick.token);
    }
    text.split_off(PROMPT.len())
}

/// The chain that a draft grows, first guesses only.
async fn grown(sampling: &Sampling) -> Vec<u32> {
    let handle = start("draft");
    // Nothing is sent: the draft grows on its own.
    let (_to_worker, reports, _) = stream(&handle, 1).await;
    let spec = SessionSpec {
        strategy: Settings::new("serial").with("gamma", DEPTH as f64),
        duties: Duties::of(Duty::Propose),
        ..spec(0, &Asked::default(), 1000)
    };
    (handle.open(name(1), spec, sampling.clone()))
        .await
        .unwrap();
    let mut chain = Vec::new();
    while chain.len() < DEPTH {
        for message in reports.next(1).await.unwrap() {
            chain.extend(report(message).nodes.tokens);
        }
    }
    handle.stop();
    chain
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_first_guesses_is_the_models_own_text() {
    let mut texts = Vec::new();
    for temperature in [0.0, 0.8] {
        let params = SamplingParams {
            temperature,
            seed: 5,
            ..SamplingParams::default()
        };
        let base = plain(&params.into());
        let shapings = [
            Shaping::default(),
            Shaping {
                repetition_penalty: 1.5,
                ..Shaping::default()
            },
            Shaping {
                presence_penalty: -2.0,
                ..Shaping::default()
            },
            Shaping {
                frequency_penalty: -2.0,
                ..Shaping::default()
            },
            Shaping {
                bias: vec![(base[0], -100.0)],
                ..Shaping::default()
            },
            Shaping {
                min_tokens: 6,
                stop_ids: vec![base[0], base[1]],
                ..Shaping::default()
            },
        ];
        for shaping in shapings {
            let sampling = Sampling { params, shaping };
            let text = plain(&sampling);
            assert_eq!(grown(&sampling).await, text, "{sampling:?}");
            texts.push(text);
        }
    }
    // Most of these parameters change the text, or nothing is shown.
    texts.sort();
    texts.dedup();
    assert!(texts.len() >= 8, "{} different texts", texts.len());
}

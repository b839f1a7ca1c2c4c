//! The model thread with a real model and no network: guesses are made under the request's parameters, each with the
//! tokens before it, the guesses above it among them.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use engine::sampling::{Past, Recipe, Sampler, SamplingParams, Shaping};
use engine::{AppendLogits, Engine, EngineOptions, SeqRows, StepOutput};
use offshoot_draft_worker::grow::Grow;
use speculation::message::{
    LinkName, Relayed, Scoring, SessionId, SessionSpec, Shard, Stopping, Task, Term,
};
use speculation::policy::{GrowthPolicy, Pause};
use worker::ModelArgs;

const NAME: LinkName = LinkName {
    coordinator: 1,
    incarnation: 1,
};
const PROMPT: [u32; 5] = [400, 17, 901, 33, 256];
const DEPTH: u16 = 24;

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/draft")
}

/// What the model says under the recipe, one token a step.
fn plain(params: SamplingParams, shaping: &Shaping) -> Vec<u32> {
    let mut engine = Engine::load(&dir(), &EngineOptions::for_sequences(64, 1)).unwrap();
    let seq = engine.open(64).unwrap();
    let mut sampler = Sampler::new(4096);
    let mut output = StepOutput::new();
    let mut text = PROMPT.to_vec();
    let mut done = 0;
    while text.len() < PROMPT.len() + usize::from(DEPTH) {
        let rows = SeqRows {
            seq,
            append: &text[done..],
            append_logits: AppendLogits::Last,
            tree: &[],
        };
        let go_on = &mut |_| ControlFlow::Continue(());
        engine.step(&[rows], &mut output, go_on).unwrap();
        done = text.len();
        let past = Past {
            text: &text,
            path: &[],
            prompt_len: PROMPT.len(),
        };
        let mut recipe = Recipe::new(params, shaping.clone());
        let pick = sampler
            .pick_after(output.row(0), &mut recipe, &past)
            .unwrap();
        text.push(pick.token);
    }
    text.split_off(PROMPT.len())
}

/// The chain that a draft grows, first guesses only.
async fn grown(params: SamplingParams, shaping: &Shaping) -> Vec<u32> {
    let args = ModelArgs {
        model: dir(),
        threads: NonZeroUsize::MIN,
        pin: None,
        pace: Duration::ZERO,
        dtype: None,
        max_num_seqs: 1,
        kv_mib: 64,
    };
    let loaded = worker::model::load(&args, 64).unwrap();
    let vocab = loaded.info.vocabulary_len;
    let handle = worker::start(loaded, Grow::new(vocab)).unwrap();
    // Nothing is relayed: the draft grows on its own.
    let (_to_worker, frames) = futures::channel::mpsc::channel::<Result<Relayed, String>>(1);
    let (end, pump) = handle.link(NAME, 1, frames);
    tokio::spawn(pump);
    let spec = SessionSpec {
        session: SessionId(1),
        term: Term(1),
        text: PROMPT.to_vec(),
        stopping: Stopping {
            prompt_len: PROMPT.len() as u32,
            max_len: 60,
            max_len_is_context: false,
            stop_ids: Vec::new(),
        },
        allowed_len: 1000,
        scoring: Scoring::default(),
        task: Task::Grow {
            policy: GrowthPolicy {
                width: 1,
                branch: 1,
                depth: DEPTH,
                nodes: DEPTH,
                min_path: 0.0,
                pause: Pause::AfterSteps(DEPTH),
            },
            shard: Shard::default(),
        },
    };
    let recipe = Recipe::new(params, shaping.clone());
    handle.open(NAME, spec, recipe).await.unwrap();
    let mut chain = Vec::new();
    while chain.len() < usize::from(DEPTH) {
        for report in end.next(1).await.unwrap() {
            chain.extend(report.message.unwrap().nodes.tokens);
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
        let base = plain(params, &Shaping::default());
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
            let text = plain(params, &shaping);
            assert_eq!(
                grown(params, &shaping).await,
                text,
                "{params:?} {shaping:?}"
            );
            texts.push(text);
        }
    }
    // Most of these parameters change the text, or nothing is shown.
    texts.sort();
    texts.dedup();
    assert!(texts.len() >= 8, "{} different texts", texts.len());
}

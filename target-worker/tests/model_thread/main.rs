//! The model thread with real models and no network: whatever guesses arrive, and whatever a request asks of sampling,
//! the picks and their scores are those of plain decoding.

#![allow(clippy::unwrap_used, reason = "tests")]

mod leases;
mod links;
mod parameters;

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use engine::sampling::{Basis, Past, Recipe, Sampler, SamplingParams, Shaping, TokenScore};
use engine::{AppendLogits, Engine, EngineOptions, SeqRows, StepOutput};
use futures::SinkExt;
use offshoot_target_worker::walk::Walk;
use speculation::message::{
    self, Addressed, LinkName, NodeBatch, Prob16, Relayed, ReplicaUpdate, Score, Scores, Scoring,
    SessionId, SessionSpec, Stopping, Task, Term, VerifyReport,
};
use speculation::policy::{Launch, VerifyPolicy};
use worker::{ModelArgs, WorkerHandle};

const PROMPT: [u32; 5] = [400, 17, 901, 33, 256];
const TOKENS: u32 = 40;
const SESSION: SessionId = SessionId(5);

/// A stream of coordinator 1.
fn name(incarnation: u64) -> LinkName {
    LinkName {
        coordinator: 1,
        incarnation,
    }
}

fn dir(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../models")
        .join(model)
}

fn start(model: &str) -> WorkerHandle<VerifyReport> {
    let args = ModelArgs {
        model: dir(model),
        threads: NonZeroUsize::MIN,
        pin: None,
        pace: Duration::ZERO,
        dtype: None,
        max_num_seqs: 2,
        kv_mib: 64,
    };
    let loaded = worker::model::load(&args, 64).unwrap();
    let vocab = loaded.info.vocabulary_len;
    worker::start(loaded, Walk::new(vocab)).unwrap()
}

/// What a request asks of sampling and scores. Stop ids are those of the shaping.
#[derive(Clone, Debug)]
struct Asked {
    params: SamplingParams,
    shaping: Shaping,
    scoring: Scoring,
}

impl Default for Asked {
    fn default() -> Self {
        Asked {
            params: SamplingParams {
                temperature: 0.8,
                seed: 3,
                ..SamplingParams::default()
            },
            shaping: Shaping::default(),
            scoring: Scoring::default(),
        }
    }
}

fn spec(rows: u16, asked: &Asked, allowed_len: u32) -> SessionSpec {
    SessionSpec {
        session: SESSION,
        term: Term(1),
        text: PROMPT.to_vec(),
        stopping: Stopping {
            prompt_len: PROMPT.len() as u32,
            max_len: PROMPT.len() as u32 + TOKENS,
            max_len_is_context: false,
            stop_ids: asked.shaping.stop_ids.clone(),
        },
        allowed_len,
        scoring: asked.scoring,
        task: Task::Commit(VerifyPolicy {
            // Turn-taking makes the number of steps a fact rather than a race.
            launch: match rows {
                0 => Launch::AtOnce,
                _ => Launch::Round(Duration::from_secs(60)),
            },
            rows,
            min_path: 0.0,
        }),
    }
}

/// A text behind [`PROMPT`], and the scores that were asked for.
#[derive(Debug, Default, PartialEq)]
struct Plain {
    text: Vec<u32>,
    picks: Vec<Score>,
    prompt: Vec<Score>,
}

fn told(score: TokenScore) -> Score {
    Score {
        logprob: score.logprob,
        rank: score.rank,
        top: score.top,
    }
}

/// The engine and the sampler, one token a step, nothing else; nothing is remembered from token to token.
fn plain(model: &str, asked: &Asked) -> Plain {
    let mut engine = Engine::load(&dir(model), &EngineOptions::for_sequences(256, 1)).unwrap();
    let seq = engine.open(256).unwrap();
    let mut sampler = Sampler::new(4096);
    let mut output = StepOutput::new();
    let mut text = PROMPT.to_vec();
    let mut plain = Plain::default();
    let basis = match asked.scoring.basis {
        message::Basis::Raw => Basis::Raw,
        message::Basis::Processed => Basis::Processed,
    };
    for done in 1.. {
        let rows = SeqRows {
            seq,
            append: &text[done - 1..done],
            append_logits: AppendLogits::Last,
            tree: &[],
        };
        let go_on = &mut |_| ControlFlow::Continue(());
        engine.step(&[rows], &mut output, go_on).unwrap();
        let row = output.row(0);
        if done < PROMPT.len() {
            if let Some(wanted) = asked.scoring.prompt {
                let own = SamplingParams::default();
                let score = sampler.score(row, &own, text[done], wanted.top.into());
                plain.prompt.push(told(score.unwrap()));
            }
            continue;
        }
        let past = Past {
            text: &text,
            path: &[],
            prompt_len: PROMPT.len(),
        };
        let mut recipe = Recipe::new(asked.params, asked.shaping.clone());
        let token = sampler.pick_after(row, &mut recipe, &past).unwrap().token;
        if let Some(top) = asked.scoring.picks {
            let asked = (basis, top.into());
            let score = sampler.score_after(row, &mut recipe, &past, token, asked);
            plain.picks.push(told(score.unwrap()));
        }
        text.push(token);
        let over = text.len() == PROMPT.len() + TOKENS as usize;
        if over || asked.shaping.stop_ids.contains(&token) {
            break;
        }
    }
    plain.text = text.split_off(PROMPT.len());
    plain
}

fn relayed(message: ReplicaUpdate) -> Result<Relayed, String> {
    let update = Addressed {
        session: SESSION,
        term: Term(1),
        message,
    };
    Ok(Relayed {
        updates: vec![update],
        closed: Vec::new(),
    })
}

/// A chain of guesses behind `base_len`: the truth, except that every fourth token is wrong, each with a rival.
fn guesses(base_len: u32, first_id: u32, truth: &[u32]) -> ReplicaUpdate {
    let mut nodes = NodeBatch {
        first_id,
        ..NodeBatch::default()
    };
    let mut parent = 0;
    for (at, &token) in truth.iter().enumerate() {
        let wrong = token ^ 1;
        for (token, edge) in [(token, 40_000), (wrong, 20_000)] {
            nodes.parents.push(parent);
            nodes.tokens.push(token);
            nodes.edges.push(Prob16(edge));
            nodes.owners.push(0);
        }
        // The chain goes on below the wrong one from time to time.
        let right = first_id + 2 * at as u32;
        parent = if at % 4 == 3 { right + 1 } else { right };
    }
    ReplicaUpdate {
        base_len,
        nodes,
        round_done: Some(base_len),
        ..ReplicaUpdate::default()
    }
}

/// What a session has told in the end.
struct Heard {
    text: Vec<u32>,
    picks: Scores,
    prompt: Scores,
    last: VerifyReport,
}

/// A session that gets guesses at the truth, six ahead, and acknowledges the prompt's scores.
async fn run(model: &str, rows: u16, asked: &Asked, truth: &Plain) -> Heard {
    let handle = start(model);
    let (mut to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(name(1), 1, frames);
    tokio::spawn(pump);
    let recipe = Recipe::new(asked.params, asked.shaping.clone());
    handle
        .open(name(1), spec(rows, asked, 1000), recipe)
        .await
        .unwrap();
    let truth = &truth.text;
    let mut text: Vec<u32> = Vec::new();
    let (mut picks, mut prompt) = (Scores::default(), Scores::default());
    let first = guesses(PROMPT.len() as u32, 1, &truth[..truth.len().min(6)]);
    let mut next_id = 1 + first.nodes.len() as u32;
    to_worker.send(relayed(first)).await.unwrap();
    loop {
        for report in end.next(4).await.unwrap() {
            let report = report.message.unwrap();
            let known = PROMPT.len() + text.len() - report.base_len as usize;
            text.extend(report.picks.iter().skip(known));
            if let Some(scores) = &report.scores {
                assert_eq!(scores.len(), report.picks.len());
                assert!(picks.append(&scores.slice(known..scores.len())));
            }
            if let Some(part) = &report.prompt_scores {
                let known = 1 + prompt.len() - part.first as usize;
                assert!(prompt.append(&part.scores.slice(known..part.scores.len())));
            }
            if report.finish.is_some() {
                handle.stop();
                return Heard {
                    text,
                    picks,
                    prompt,
                    last: report,
                };
            }
            let len = PROMPT.len() as u32 + text.len() as u32;
            let ahead = &truth[text.len()..truth.len().min(text.len() + 6)];
            let mut update = guesses(len, next_id, ahead);
            update.prompt_scored = 1 + prompt.len() as u32;
            next_id += update.nodes.len() as u32;
            to_worker.send(relayed(update)).await.unwrap();
        }
    }
}

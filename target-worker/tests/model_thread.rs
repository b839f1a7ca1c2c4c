//! The model thread with a real model and no network: whatever guesses arrive, the picks are those of plain decoding.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use engine::sampling::{Sampler, SamplingParams};
use engine::{AppendLogits, Engine, EngineOptions, SeqRows, StepOutput};
use futures::SinkExt;
use offshoot_target_worker::walk::Walk;
use speculation::message::{
    Addressed, Finish, NodeBatch, Prob16, Relayed, ReplicaUpdate, Scoring, SessionId, SessionSpec,
    Stopping, Task, Term, VerifyReport,
};
use speculation::policy::{Launch, VerifyPolicy};
use worker::{LinkOver, ModelArgs, OpenError, WorkerHandle};

const PROMPT: [u32; 5] = [400, 17, 901, 33, 256];
const TOKENS: u32 = 40;
const SESSION: SessionId = SessionId(5);

fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/draft")
}

fn start() -> WorkerHandle<VerifyReport> {
    let args = ModelArgs {
        model: dir(),
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

fn params() -> SamplingParams {
    SamplingParams {
        temperature: 0.8,
        seed: 3,
        ..SamplingParams::default()
    }
}

fn spec(rows: u16, allowed_len: u32) -> SessionSpec {
    SessionSpec {
        session: SESSION,
        term: Term(1),
        text: PROMPT.to_vec(),
        stopping: Stopping {
            prompt_len: PROMPT.len() as u32,
            max_len: PROMPT.len() as u32 + TOKENS,
            max_len_is_context: false,
            stop_ids: Vec::new(),
        },
        allowed_len,
        scoring: Scoring::default(),
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

/// The engine and the sampler, one token a step, nothing else.
fn plain() -> Vec<u32> {
    let mut engine = Engine::load(&dir(), &EngineOptions::for_sequences(256, 1)).unwrap();
    let seq = engine.open(256).unwrap();
    let mut sampler = Sampler::new(4096);
    let mut output = StepOutput::new();
    let mut text = PROMPT.to_vec();
    let mut done = 0;
    while text.len() < PROMPT.len() + TOKENS as usize {
        let rows = SeqRows {
            seq,
            append: &text[done..],
            append_logits: AppendLogits::Last,
            tree: &[],
        };
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        engine.step(&[rows], &mut output, go_on).unwrap();
        done = text.len();
        let pick = sampler.pick(output.row(0), &params(), done as u32).unwrap();
        text.push(pick.token);
    }
    text.split_off(PROMPT.len())
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

async fn run(rows: u16) -> (Vec<u32>, VerifyReport) {
    let truth = plain();
    let handle = start();
    let (mut to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(1, 1, frames);
    tokio::spawn(pump);
    handle.open(1, spec(rows, 1000), params()).await.unwrap();
    let mut text: Vec<u32> = Vec::new();
    let first = guesses(PROMPT.len() as u32, 1, &truth[..6]);
    let mut next_id = 1 + first.nodes.len() as u32;
    to_worker.send(relayed(first)).await.unwrap();
    loop {
        for report in end.next(4).await.unwrap() {
            let report = report.message.unwrap();
            let known = PROMPT.len() + text.len() - report.base_len as usize;
            text.extend(report.picks.iter().skip(known));
            if report.finish.is_some() {
                handle.stop();
                return (text, report);
            }
            let len = PROMPT.len() as u32 + text.len() as u32;
            let ahead = &truth[text.len()..truth.len().min(text.len() + 6)];
            let update = guesses(len, next_id, ahead);
            next_id += update.nodes.len() as u32;
            to_worker.send(relayed(update)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_decoding_is_the_engine_and_the_sampler() {
    let (text, last) = run(0).await;
    assert_eq!(text, plain());
    assert_eq!(last.finish, Some(Finish::Length));
    assert_eq!(last.walks.steps, u64::from(TOKENS));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_change_the_number_of_steps_and_nothing_else() {
    let (text, last) = run(16).await;
    assert_eq!(text, plain());
    assert_eq!(last.walks.tokens, u64::from(TOKENS));
    assert!(last.walks.guesses_submitted > last.walks.guesses_accepted);
    assert!(
        last.walks.steps <= u64::from(TOKENS).div_ceil(4) + 1,
        "{:?}",
        last.walks
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_parks_at_its_credit_and_a_lost_link_frees_everything() {
    let handle = start();
    let (mut to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(1, 1, frames);
    let pump = tokio::spawn(pump);
    let credit = PROMPT.len() as u32 + 3;
    handle.open(1, spec(0, credit), params()).await.unwrap();
    let mut have = PROMPT.len();
    while have < credit as usize {
        for report in end.next(4).await.unwrap() {
            let report = report.message.unwrap();
            have = have.max(report.base_len as usize + report.picks.len());
        }
    }
    assert_eq!(have, credit as usize);
    let more = ReplicaUpdate {
        base_len: PROMPT.len() as u32,
        allowed_len: credit + 1,
        ..ReplicaUpdate::default()
    };
    to_worker.send(relayed(more)).await.unwrap();
    let report = end.next(4).await.unwrap().pop().unwrap().message.unwrap();
    assert_eq!(
        report.base_len as usize + report.picks.len(),
        credit as usize + 1
    );
    let again = handle.open(1, spec(0, credit), params()).await;
    assert_eq!(again, Err(OpenError::Duplicate(SESSION)));
    drop(to_worker);
    pump.await.unwrap();
    handle.idle().await;
    let unlinked = handle.open(1, spec(0, credit), params()).await;
    assert_eq!(unlinked, Err(OpenError::NotLinked(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_opens_are_refused_by_name() {
    let handle = start();
    let (_to_worker, frames) = futures::channel::mpsc::channel(8);
    let (_end, pump) = handle.link(1, 1, frames);
    tokio::spawn(pump);
    let hot = SamplingParams {
        temperature: -1.0,
        ..params()
    };
    let refused = handle.open(1, spec(0, 9), hot).await.unwrap_err();
    assert!(refused.to_string().contains("temperature"), "{refused}");
    let mut alien = spec(0, 9);
    alien.text[2] = 70_000;
    let refused = handle.open(1, alien, params()).await.unwrap_err();
    assert!(refused.to_string().contains("70000"), "{refused}");
    let mut long = spec(0, 9);
    long.stopping.max_len = 100_000;
    let refused = handle.open(1, long, params()).await.unwrap_err();
    assert!(matches!(refused, OpenError::TooLong { .. }), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impossible_update_ends_its_session_and_no_other() {
    let handle = start();
    let (mut to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(1, 1, frames);
    tokio::spawn(pump);
    handle.open(1, spec(0, 6), params()).await.unwrap();
    let mut other = spec(0, 1000);
    other.session = SessionId(6);
    handle.open(1, other, params()).await.unwrap();
    let mut bad = guesses(PROMPT.len() as u32, 1, &[1]);
    bad.nodes.parents[0] = 99;
    to_worker.send(relayed(bad)).await.unwrap();
    let (mut fault, mut finished) = (None, None);
    while fault.is_none() || finished.is_none() {
        for report in end.next(4).await.unwrap() {
            match report.message {
                Err(why) => fault = Some((report.session, why)),
                Ok(message) if message.finish.is_some() => finished = Some(report.session),
                Ok(_) => {}
            }
        }
    }
    let (session, why) = fault.unwrap();
    assert_eq!((session, finished), (SESSION, Some(SessionId(6))));
    assert!(why.contains("99"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_halves_of_a_link_end_together() {
    let handle = start();
    let (mut to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(1, 1, frames);
    let pump = tokio::spawn(pump);
    handle.open(1, spec(0, 6), params()).await.unwrap();
    to_worker.send(Err("nonsense".to_owned())).await.unwrap();
    pump.await.unwrap();
    let over = loop {
        if let Err(over) = end.next(4).await {
            break over;
        }
    };
    assert_eq!(over, LinkOver(Some("nonsense".to_owned())));
    handle.idle().await;
    let (_to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(1, 2, frames);
    let pump = tokio::spawn(pump);
    drop(end);
    pump.await.unwrap();
    let (_to_worker, frames) = futures::channel::mpsc::channel(8);
    let (end, pump) = handle.link(1, 3, frames);
    let pump = tokio::spawn(pump);
    handle.stop();
    pump.await.unwrap();
    assert_eq!(end.next(4).await, Err(LinkOver(None)));
    handle.ended().await;
}

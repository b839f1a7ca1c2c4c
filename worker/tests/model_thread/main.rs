//! The model thread with real models and no network: whatever guesses arrive, and whatever a request asks of sampling,
//! the picks and their scores are those of plain decoding; and what a draft guesses is what its model says.

#![allow(clippy::unwrap_used, reason = "tests")]

mod drafts;
mod leases;
mod parameters;
mod plain;
mod streams;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use decode::Sampling;
use decode::sampling::SamplingParams;
use futures::SinkExt;
use futures::channel::mpsc;
use offshoot_worker::{Duties, Duty, ModelArgs, Offer, Reports, Role, WorkerHandle};
use speculation::message::{
    Addressed, CoordinatorFrame, FromWorker, NodeBatch, Prob16, ReplicaUpdate, Report, Scores,
    Scoring, SessionId, SessionSpec, Shard, Stopping, StreamName, Term,
};
use speculation::strategy::{
    Entry, Growth, Knob, NextStep, Range, Registry, Settings, Strategy, Verification,
};
use speculation::wait::{Start, Waits};
use tokio_util::task::TaskTracker;

use plain::Plain;

const PROMPT: [u32; 5] = [400, 17, 901, 33, 256];
const TOKENS: u32 = 40;
const SESSION: SessionId = SessionId(5);

/// A stream of coordinator 1.
fn name(incarnation: u64) -> StreamName {
    StreamName {
        coordinator: 1,
        incarnation,
    }
}

fn dir(model: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../models")
        .join(model)
}

/// A worker with this model that does everything.
fn start(model: &str) -> WorkerHandle {
    let args = ModelArgs {
        heads: None,
        hrad: None,
        model: dir(model),
        device: engine::DeviceName::Cpu,
        threads: NonZeroUsize::MIN,
        nice: 0,
        pin: None,
        pace: Duration::ZERO,
        step_ms: None,
        synthetic: None,
        overlay: None,
        dtype: None,
        max_num_seqs: 2,
        kv_mib: Some(64),
        gpu_memory_utilization: None,
        prompt_stretch: 2.0,
    };
    let offer = Offer {
        role: Role::Target,
        duties: Duty::ALL.into_iter().collect(),
        tree_rows: 64,
        history_tokens: 10_000,
    };
    let loaded = offshoot_worker::model::load(&args, &offer).unwrap();
    offshoot_worker::start(loaded, Registry::default().with(&PATIENT)).unwrap()
}

/// Turn-taking without a deadline, so that the number of steps is a fact rather than a race.
static PATIENT: Entry = Entry {
    name: "patient",
    about: "Waits for every round",
    source: "",
    knobs: &[Knob {
        name: "rows",
        range: Range::Whole(1, 64),
        default: 16.0,
        help: "nodes verified per step",
        sweep: &[],
    }],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Patient {
            rows: knobs.whole("rows"),
        })
    },
};

#[derive(Debug)]
struct Patient {
    rows: u16,
}

impl Strategy for Patient {
    fn duties(&self, role: Role) -> Duties {
        match role {
            Role::Target => Duties::of(Duty::Commit),
            Role::Draft | Role::Qualifier => Duties::default(),
        }
    }

    fn growth(&self) -> Growth {
        Growth {
            round: Some(1),
            ..Growth::default()
        }
    }

    fn verification(&self, _: Duty) -> Verification {
        Verification {
            rows: self.rows,
            ..Verification::default()
        }
    }

    fn starts(&self, next: &NextStep, _: &mut Waits<'_>) -> Start {
        if next.is_round_done {
            Start::Now
        } else {
            Start::WaitUntil(next.base_since + Duration::from_secs(60))
        }
    }
}

/// What a request asks of sampling and scores. Stop ids are those of the shaping.
#[derive(Clone, Debug)]
struct Asked {
    sampling: Sampling,
    scoring: Scoring,
}

impl Default for Asked {
    fn default() -> Self {
        let params = SamplingParams {
            temperature: 0.8,
            seed: 3,
            ..SamplingParams::default()
        };
        Asked {
            sampling: params.into(),
            scoring: Scoring::default(),
        }
    }
}

/// A session that commits, with at most so many guesses in a step.
fn spec(rows: u16, asked: &Asked, allowed_len: u32) -> SessionSpec {
    SessionSpec {
        session: SESSION,
        term: Term(1),
        text: PROMPT.to_vec(),
        stopping: Stopping {
            prompt_len: PROMPT.len() as u32,
            max_len: PROMPT.len() as u32 + TOKENS,
            max_len_is_context: false,
            stop_ids: asked.sampling.shaping.stop_ids.clone(),
        },
        allowed_len,
        scoring: asked.scoring,
        strategy: match rows {
            0 => Settings::new("ar"),
            _ => Settings::new("patient").with("rows", rows.into()),
        },
        duties: Duties::of(Duty::Commit),
        shard: Shard::default(),
        is_shared: false,
        history: None,
        has_journal: false,
    }
}

type ToWorker = mpsc::Sender<Result<CoordinatorFrame, String>>;

/// A stream of coordinator 1: dropping the sender breaks it, and the tracker knows when the worker has noticed.
async fn stream(handle: &WorkerHandle, number: u64) -> (ToWorker, Reports, TaskTracker) {
    let (to_worker, frames) = mpsc::channel(8);
    let tasks = TaskTracker::new();
    let reports = handle.stream(name(number), number, frames, &tasks).await;
    tasks.close();
    (to_worker, reports, tasks)
}

/// The report in a message that is not a fault.
fn report(message: Addressed<FromWorker>) -> Report {
    match message.message {
        FromWorker::Report(report) => report,
        FromWorker::Preempted => panic!("session {:?} was preempted", message.session),
        FromWorker::Fault(why) => panic!("session {:?} failed: {why}", message.session),
    }
}

fn frame(message: ReplicaUpdate) -> Result<CoordinatorFrame, String> {
    let update = Addressed {
        session: SESSION,
        term: Term(1),
        message,
    };
    Ok(CoordinatorFrame {
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

/// What a session has reported in the end.
struct Reported {
    text: Vec<u32>,
    picks: Scores,
    prompt: Scores,
    last: Report,
}

/// A session that gets guesses at the truth, six ahead, and acknowledges the prompt's scores.
async fn run(model: &str, rows: u16, asked: &Asked, truth: &Plain) -> Reported {
    let handle = start(model);
    let (mut to_worker, reports, _) = stream(&handle, 1).await;
    handle
        .open(name(1), spec(rows, asked, 1000), asked.sampling.clone())
        .await
        .unwrap();
    let truth = &truth.text;
    let mut text: Vec<u32> = Vec::new();
    let (mut picks, mut prompt) = (Scores::default(), Scores::default());
    let first = guesses(PROMPT.len() as u32, 1, &truth[..truth.len().min(6)]);
    let mut next_id = 1 + first.nodes.len() as u32;
    to_worker.send(frame(first)).await.unwrap();
    loop {
        for message in reports.next(4).await.unwrap() {
            let report = report(message);
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
                return Reported {
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
            to_worker.send(frame(update)).await.unwrap();
        }
    }
}

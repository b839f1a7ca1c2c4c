//! What the model thread and the service promise, with a model that a test can hold up and make refuse.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod gate;
mod sessions;
mod wire;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use decode::sampling::SamplingParams;
use speculation::message::{
    Addressed, CoordinatorFrame, FromWorker, ReplicaUpdate, Report, Scoring, SessionId,
    SessionSpec, Shard, Stopping, StreamName, Term,
};
use speculation::strategy::{Advice, Entry, Registry, Settings, Strategy};
use tokio_util::task::TaskTracker;

use crate::model::{self, ModelArgs, Offer};
use crate::{Duties, Duty, Reports, Role, WorkerHandle};
use gate::{Call, Gate};

const PROMPT: [u32; 5] = [400, 17, 901, 33, 256];

const NAME: StreamName = StreamName {
    coordinator: 1,
    incarnation: 1,
};

/// Advice at once, whatever it brings: the steps of a qualifier are a fact.
static EAGER: Entry = Entry {
    name: "eager",
    about: "A qualifier that never waits",
    source: "",
    knobs: &[],
    is_sensible: |_| true,
    build: |_| Arc::new(Eager),
};

#[derive(Debug)]
struct Eager;

impl Strategy for Eager {
    fn duties(&self, _: Role) -> Duties {
        Duties::of(Duty::Advise)
    }

    fn advice(&self) -> Advice {
        Advice {
            ahead: 8,
            bare_share: 1.0,
            least: 0.0,
        }
    }
}

/// A worker that does everything, with room for four sessions.
fn start(pace: Duration) -> (WorkerHandle, Gate) {
    start_as(pace, Duty::ALL.into_iter().collect())
}

fn start_as(pace: Duration, duties: Duties) -> (WorkerHandle, Gate) {
    let args = ModelArgs {
        heads: None,
        hrad: None,
        model: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/draft"),
        device: engine::DeviceName::Cpu,
        threads: NonZeroUsize::MIN,
        nice: 0,
        pin: None,
        pace,
        step_ms: None,
        synthetic: None,
        overlay: None,
        dtype: None,
        max_num_seqs: 4,
        kv_mib: Some(64),
        gpu_memory_utilization: None,
        prompt_stretch: 2.0,
    };
    let offer = Offer {
        role: Role::Target,
        duties,
        tree_rows: 64,
        history_tokens: 10_000,
    };
    let mut loaded = model::load(&args, &offer).unwrap();
    let (gate, backend) = Gate::before(loaded.backend);
    loaded.backend = backend;
    let handle = crate::start(loaded, Registry::default().with(&EAGER)).unwrap();
    (handle, gate)
}

/// A session that adds `tokens` tokens by plain decoding.
fn spec(session: u64, tokens: u32) -> SessionSpec {
    SessionSpec {
        session: SessionId(session),
        term: Term(1),
        text: PROMPT.to_vec(),
        stopping: Stopping {
            prompt_len: PROMPT.len() as u32,
            max_len: PROMPT.len() as u32 + tokens,
            max_len_is_context: false,
            stop_ids: Vec::new(),
        },
        allowed_len: 1000,
        scoring: Scoring::default(),
        strategy: Settings::new("ar"),
        duties: Duties::of(Duty::Commit),
        shard: Shard::default(),
        is_shared: false,
        history: None,
        has_journal: false,
    }
}

/// The same with guesses as the only duty.
fn draft(session: u64) -> SessionSpec {
    SessionSpec {
        strategy: Settings::new("serial").with("gamma", 3.0),
        duties: Duties::of(Duty::Propose),
        ..spec(session, 40)
    }
}

fn greedy() -> SamplingParams {
    SamplingParams {
        temperature: 0.0,
        ..SamplingParams::default()
    }
}

/// Nothing is buffered: a frame that was sent has been taken by the worker, and the one before it is in the inbox.
type ToWorker = flume::Sender<Result<CoordinatorFrame, String>>;

/// The stream [`NAME`], whose tracker knows when the worker has noticed its end.
async fn stream(handle: &WorkerHandle) -> (ToWorker, Reports, TaskTracker) {
    let (to_worker, frames) = flume::bounded(0);
    let tasks = TaskTracker::new();
    let frames = frames.into_stream();
    let reports = handle.stream(NAME, 1, frames, &tasks).await;
    tasks.close();
    (to_worker, reports, tasks)
}

fn frame(session: u64, message: ReplicaUpdate) -> Result<CoordinatorFrame, String> {
    let update = Addressed {
        session: SessionId(session),
        term: Term(1),
        message,
    };
    Ok(CoordinatorFrame {
        updates: vec![update],
        closed: Vec::new(),
    })
}

/// Reads until one session has reported something that is looked for; gives that, and the faults of others.
async fn read<T>(
    reports: &Reports,
    session: u64,
    mut found: impl FnMut(Report) -> Option<T>,
) -> (T, Vec<(u64, String)>) {
    let mut faults = Vec::new();
    loop {
        for message in reports.next(8).await.unwrap() {
            let from = message.session.0;
            match message.message {
                FromWorker::Fault(why) => faults.push((from, why)),
                FromWorker::Preempted => faults.push((from, "preempted".to_owned())),
                FromWorker::Report(report) if from == session => {
                    if let Some(found) = found(report) {
                        return (found, faults);
                    }
                }
                FromWorker::Report(_) => {}
            }
        }
    }
}

/// The last report of a session that ends.
async fn last(reports: &Reports, session: u64) -> (Report, Vec<(u64, String)>) {
    read(reports, session, |report| {
        report.finish.is_some().then_some(report)
    })
    .await
}

//! What all sessions of a coordinator share.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::v1;
use runtime::Drain;
use speculation::learned::Calibrations;
use speculation::message::SessionId;
use speculation::recording::Recording;
use speculation::strategy::Settings;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metrics::CoordinatorMetrics;
use crate::recorder::Recorder;
use crate::registry::Registry;

/// Tokens that are expected of a completion before any has ended.
const FIRST_EXPECTED: f64 = 256.0;

/// Prompts that are encoded at one time, at most.
const MOST_ENCODERS: usize = 4;

/// Weight of the newest completion in the mean of their lengths.
const NEWEST: f64 = 0.1;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) registry: Registry,
    pub(crate) drain: Drain,
    /// Cancelled when the grace time of the drain is almost over: sessions end, but say so.
    pub(crate) cut: CancellationToken,
    pub(crate) policy: Policy,
    /// Held during a step of encoding a prompt: for half of the processors, so that long prompts leave the relay its share.
    pub(crate) encoders: Arc<Semaphore>,
    /// How far each source of guesses can be trusted, learned from all sessions; the last one to end wins.
    calibrations: Mutex<Calibrations>,
    /// Tokens of a completion whose request says nothing of its length: a mean of recent ones.
    expected: Mutex<f64>,
    /// How the models agreed in the newest completions.
    recorder: Mutex<Recorder>,
    /// The next session's number.
    next: AtomicU64,
    pub(crate) metrics: Arc<CoordinatorMetrics>,
    pub(crate) started: Instant,
}

/// How requests are served, where they do not say so themselves.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// How long a session whose target is lost waits for another.
    pub(crate) failover_wait: Duration,
    /// How long a session keeps its workers for a client that takes nothing, and when that is given up.
    pub(crate) park_after: Duration,
    pub(crate) client_timeout: Duration,
    /// The strategy of a request that names none.
    pub(crate) strategy: Settings,
    /// Whose requests it serves.
    pub(crate) tenant: String,
    /// Positions of the newest completions that are recorded; 0: none.
    pub(crate) record: usize,
}

impl Cluster {
    /// `first` is the first session's number: two coordinators of one cluster should not use the same.
    pub(crate) fn new(registry: Registry, drain: Drain, policy: Policy, first: u64) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Cluster {
            recorder: Mutex::new(Recorder::new(policy.record)),
            registry,
            drain,
            cut: CancellationToken::new(),
            policy,
            encoders: Arc::new(Semaphore::new((processors / 2).clamp(1, MOST_ENCODERS))),
            calibrations: Mutex::default(),
            expected: Mutex::new(FIRST_EXPECTED),
            next: AtomicU64::new(first),
            metrics: Arc::default(),
            started: Instant::now(),
        }
    }

    /// Tokens that a completion is expected to have whose request says nothing of that.
    pub(crate) fn expected_tokens(&self) -> u32 {
        *self.expected.lock() as u32
    }

    /// A completion whose request said nothing of its length has ended with this many tokens.
    pub(crate) fn learn_tokens(&self, tokens: usize) {
        let mut expected = self.expected.lock();
        *expected += NEWEST * (tokens as f64 - *expected);
    }

    /// The number of a new session.
    pub(crate) fn next_session(&self) -> SessionId {
        SessionId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// A completion at this temperature has ended with a recording.
    pub(crate) fn record(&self, temperature: f32, recording: &Recording) {
        self.recorder.lock().add(temperature, recording);
    }

    /// How the models agreed in the newest completions, oldest first.
    pub(crate) fn recorded(&self) -> Vec<v1::RecordedText> {
        self.recorder.lock().texts()
    }

    /// What a new session begins with.
    pub(crate) fn calibrations(&self) -> Calibrations {
        self.calibrations.lock().clone()
    }

    /// A session has ended with this.
    pub(crate) fn learn(&self, calibrations: Calibrations) {
        *self.calibrations.lock() = calibrations;
    }
}

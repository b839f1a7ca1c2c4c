//! The messages between replicas, as plain data. The wire format (protobuf) lives in the `proto` crate.
//!
//! Messages name a *committed* base (length and term) plus tokens; a node is named by a number that a sender uses once
//! per stream, or by the path of tokens from the base. What a message means does not depend on who sent it.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use crate::bypass::Mode;
use crate::duty::{Duties, Role, Source};
use crate::history::HistoryKey;
use crate::journal::Taken;
use crate::misses::Misses;
use crate::stats::WalkStats;
use crate::strategy::Settings;
pub use decode::Forecast;
pub use decode::scores::{Basis, PromptScores, PromptScoring, Score, Scores, Scoring};
use decode::{Drawn, Surprisal};

/// Names a request inside a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Counted by the coordinator: each time it gives a session to a worker, that worker gets the next one. A message of an
/// older term changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u32);

/// The number of a node on one direction of one stream; counted from 1, never reused. 0 names the sender's root.
pub type NodeNumber = u32;

/// The parent number that means "continues the committed text".
pub const ROOT: NodeNumber = 0;

/// A probability in steps of 1/65535, as it crosses the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Prob16(pub u16);

impl Prob16 {
    /// Rounds a probability; NaN counts as 0.
    pub fn from_f32(p: f32) -> Self {
        // `as` saturates, cuts off, and maps NaN to 0, which is what is wanted here.
        Prob16((p.clamp(0.0, 1.0) * 65535.0 + 0.5) as u16)
    }

    /// The probability.
    pub fn to_f32(self) -> f32 {
        f32::from(self.0) / 65535.0
    }
}

/// New nodes: parallel arrays; node `i` has the number `first_id + i`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeBatch {
    /// Number of the first node.
    pub first_id: NodeNumber,
    /// Number of each node's parent, [`ROOT`] for the sender's base.
    pub parents: Vec<NodeNumber>,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Edge probabilities.
    pub edges: Vec<Prob16>,
    /// Which draft should expand each node.
    pub owners: Vec<u8>,
    /// Where each node came from, or empty if the sender did not make them.
    pub origins: Vec<Origin>,
    /// What a draft drew, each with the number of the node that it follows, under the rule `rejection`. A parent may be a
    /// node of an earlier message.
    pub groups: Vec<(NodeNumber, Drawn)>,
    /// How surprising a model finds nodes of this message or of earlier ones, under the rule `fuzzy`: to a qualifier and
    /// from a draft, the draft; to a target, the qualifier.
    pub surprisals: Vec<(NodeNumber, Surprisal)>,
}

/// Where a node came from, and how its source rated it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The contributor.
    pub source: Source,
    /// The probability that the source's model gives the token.
    pub q: Prob16,
    /// How far it leads the other guesses at its position.
    pub margin: Margin,
}

/// A noisy margin in sixteenths of a logit over temperature, saturating at -8 and almost 8, as it crosses the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Margin(pub i8);

impl Margin {
    /// Rounds towards zero; NaN counts as 0.
    pub fn from_f32(margin: f32) -> Self {
        // `as` saturates and maps NaN to 0.
        Margin((margin * 16.0) as i8)
    }

    /// In logits over temperature.
    pub fn to_f32(self) -> f32 {
        f32::from(self.0) / 16.0
    }
}

/// What the target expects of its next steps; a hint for proposers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outlook {
    /// Guesses accepted in a step, as a mean that follows recent steps; `None` before the first.
    pub accepted: Option<f32>,
    /// Whether it computes guesses at all; while it rests, nobody has to make any.
    pub mode: Mode,
    /// How often its walk has ended in a token that it had no guess for, since it has the session. One that a guess may still
    /// turn out to have been on its way for is not counted yet.
    pub misses: u32,
    /// How the guesses that follow the text will do; `None` from a target that does not forecast.
    pub forecast: Option<Forecast>,
    /// What a step of its takes, microseconds; `None` before it has measured one.
    pub step_us: Option<u32>,
}

impl NodeBatch {
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.groups.is_empty() && self.surprisals.is_empty()
    }
}

/// Which part of a shared frontier a draft grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// This draft's number, below `count`.
    pub index: u8,
    /// Number of drafts that grow this request, at least 1.
    pub count: u8,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { index: 0, count: 1 }
    }
}

/// Coordinator to worker: the state of one session, as the difference from what was sent before on this stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplicaUpdate {
    /// Number of committed tokens before `commit`.
    pub base_len: u32,
    /// The committed tokens after `base_len`.
    pub commit: Vec<u32>,
    /// New guesses; their root is the end of `commit`.
    pub nodes: NodeBatch,
    /// New edge probabilities of nodes that were sent before.
    pub rescored: Vec<(NodeNumber, Prob16)>,
    /// The committed length for which all drafts have finished their round, for strategies that take turns.
    pub round_done: Option<u32>,
    /// The text may grow to this length for now (flow control by the client); 0 leaves it as it was.
    pub allowed_len: u32,
    /// Scores of the prompt below this position have arrived; 0 leaves it as it was. Meant for targets.
    pub prompt_scored: u32,
    /// The receiver's part of the frontier; meant for drafts.
    pub shard: Option<Shard>,
    /// What the target expects; meant for drafts and qualifiers, with every commit.
    pub outlook: Outlook,
}

/// Worker to coordinator: what one session has picked and grown, cumulative since the last acknowledged base.
///
/// Picks of a session that commits are the text. Picks of one that advises are advice, and the next report may take
/// them back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Position of the first pick; the committed length where there are none.
    pub base_len: u32,
    /// The picked tokens.
    pub picks: Vec<u32>,
    /// How clearly each pick won.
    pub margins: Vec<Margin>,
    /// How surprising the worker's model finds each pick, from a session that advises by the rule `fuzzy`.
    pub surprisals: Vec<Surprisal>,
    /// The scores of the picks, one for each, if the session asked for them.
    pub scores: Option<Box<Scores>>,
    /// The prompt's scores after what the coordinator has acknowledged ([`ReplicaUpdate::prompt_scored`]), as far as
    /// they are known and fit a message. They continue after `finish`: a coordinator that asked for them closes the
    /// session when it has them all.
    pub prompt_scores: Option<Box<PromptScores>>,
    /// Set once the text is complete.
    pub finish: Option<Finish>,
    /// New guesses; their root is the end of the picks.
    pub nodes: NodeBatch,
    /// The committed length for which this worker has finished its round of guesses.
    pub round_done: Option<u32>,
    /// What a worker that commits expects of its next steps.
    pub outlook: Outlook,
    /// Totals since the session was opened.
    pub activity: Activity,
    /// Totals of the verification walk since the session was opened.
    pub walks: WalkStats,
    /// Of a worker that proposes: the target's misses by cause.
    pub misses: Misses,
    /// Of a worker that commits, where its journal is wanted: the steps since the last report.
    pub journal: Vec<Taken>,
}

/// A worker's message about one session.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are reports, which would each need an allocation of its own"
)]
pub enum FromWorker {
    /// What is new.
    Report(Report),
    /// The worker gives the session up.
    Fault(String),
    /// The cache is full, and the session was opened later than others: it is to go on when there is room again.
    Preempted,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end-of-text or stop token was committed.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The model's context is full.
    Context,
    /// The model produced a value that is not a number.
    NotFinite,
}

/// How a worker spent the life of a session; totals in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Steps that computed at least one row of this session.
    pub steps: u64,
    /// Rows computed for this session.
    pub rows: u64,
    /// Time inside such steps.
    pub busy_us: u64,
    /// Time the worker was idle although the session was alive and not parked.
    pub bubble_us: u64,
    /// Time the session was parked.
    pub parked_us: u64,
    /// Time since the session was opened.
    pub life_us: u64,
    /// Steps given up because a commit had made them useless.
    pub abandoned_steps: u64,
}

impl Activity {
    /// The totals of both.
    #[must_use]
    pub fn plus(self, other: Activity) -> Activity {
        Activity {
            steps: self.steps.saturating_add(other.steps),
            rows: self.rows.saturating_add(other.rows),
            busy_us: self.busy_us.saturating_add(other.busy_us),
            bubble_us: self.bubble_us.saturating_add(other.bubble_us),
            parked_us: self.parked_us.saturating_add(other.parked_us),
            life_us: self.life_us.saturating_add(other.life_us),
            abandoned_steps: self.abandoned_steps.saturating_add(other.abandoned_steps),
        }
    }
}

/// When a text ends; belongs to the target's walk, which truncates inside an accepted path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopping {
    /// Length of the prompt within the text, so that the limits survive a failover.
    pub prompt_len: u32,
    /// The text may have this many tokens at most, prompt included.
    pub max_len: u32,
    /// Whether `max_len` is the model's context rather than the caller's limit.
    pub max_len_is_context: bool,
    /// Tokens that end the text; the token itself is the last one committed.
    pub stop_ids: Vec<u32>,
}

/// Everything a worker needs to serve a session, besides how to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSpec {
    /// The session.
    pub session: SessionId,
    /// Its term.
    pub term: Term,
    /// Prompt and committed tokens so far.
    pub text: Vec<u32>,
    /// When the text ends.
    pub stopping: Stopping,
    /// The text may grow to this length for now.
    pub allowed_len: u32,
    /// The scores that are wanted.
    pub scoring: Scoring,
    /// How it is decoded.
    pub strategy: Settings,
    /// What the worker does for it.
    pub duties: Duties,
    /// Which part of the frontier a draft grows.
    pub shard: Shard,
    /// Whether drafts or qualifiers of the session compute on the target's device, as far as that is known when it is
    /// opened on a target.
    pub is_shared: bool,
    /// Whose completed texts a target may look up, and is to keep this one with; none where the request does not ask for
    /// that.
    pub history: Option<HistoryKey>,
    /// Whether a target is to report the journal of its steps.
    pub has_journal: bool,
}

/// One message about one session.
#[derive(Clone, Debug, PartialEq)]
pub struct Addressed<T> {
    /// The session.
    pub session: SessionId,
    /// The term under which it was sent.
    pub term: Term,
    /// The message itself.
    pub message: T,
}

/// One stream between a coordinator and a worker, as the coordinator names it. An open call names the stream it belongs
/// to: one that outlives its stream must not open a session on the next, where nobody would close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamName {
    /// Names the coordinator: a random number, another one in each run of the process; never 0.
    pub coordinator: u64,
    /// Counts the coordinator's streams; never 0.
    pub incarnation: u64,
}

impl core::fmt::Display for StreamName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:x}.{}", self.coordinator, self.incarnation)
    }
}

/// One frame from a coordinator to a worker.
#[derive(Clone, Debug, Default)]
pub struct CoordinatorFrame {
    /// Updates of sessions.
    pub updates: Vec<Addressed<ReplicaUpdate>>,
    /// Sessions to close, unless they were opened again under a later term.
    pub closed: Vec<(SessionId, Term)>,
}

/// What a worker says about itself in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
    /// What it is used for.
    pub role: Role,
    /// What it can do for a session.
    pub duties: Duties,
    /// Name of the model directory.
    pub model: String,
    /// Names everything the text depends on.
    pub numerics_id: String,
    /// Hash of the tokenizer's vocabulary.
    pub vocabulary_hash: String,
    /// Tokens in the tokenizer's vocabulary.
    pub vocabulary_len: u32,
    /// Longest text, prompt included.
    pub max_context: u32,
    /// Sessions served at the same time.
    pub max_sessions: u32,
    /// End-of-text tokens of the model.
    pub eos_ids: Vec<u32>,
    /// Positions that the key/value cache holds, all sessions together.
    pub kv_positions: u32,
    /// A session takes whole pages of this many positions.
    pub kv_page: u32,
    /// Names what it computes on: workers of the same name slow each other down. Empty: nothing that others use.
    pub device: String,
}

//! What replicas tell each other, as plain data. The wire format (protobuf) lives in the `proto` crate.
//!
//! Messages name a *committed* base (length and term) plus tokens; a node is named by a number that one sender uses
//! once on one link, or by the path of tokens from the base. Nobody asks who sent a message.

use crate::policy::{AdvicePolicy, GrowthPolicy, VerifyPolicy};
pub use crate::score::{Basis, PromptScores, PromptScoring, Score, Scores, Scoring};

/// Names a request inside a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Incremented by the coordinator whenever it gives a session to other workers; a message of an older term changes
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Term(pub u32);

/// The number of a node on one direction of one link; counted from 1, never reused. 0 names the sender's root.
pub type LinkId = u32;

/// The parent number that means "continues the committed text".
pub const ROOT: LinkId = 0;

/// A probability in steps of 1/65535, as it crosses the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Prob16(pub u16);

impl Prob16 {
    /// Rounds a probability; NaN counts as 0.
    pub fn from_f32(p: f32) -> Self {
        // `as` saturates and maps NaN to 0, which is what is wanted here.
        Prob16((p.clamp(0.0, 1.0) * 65535.0).round() as u16)
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
    pub first_id: LinkId,
    /// Number of each node's parent, [`ROOT`] for the sender's base.
    pub parents: Vec<LinkId>,
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Edge probabilities.
    pub edges: Vec<Prob16>,
    /// Which draft should expand each node.
    pub owners: Vec<u8>,
}

impl NodeBatch {
    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
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

/// Coordinator to worker: the state of one session, as the difference to what this link was told before.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplicaUpdate {
    /// Number of committed tokens before `commit`.
    pub base_len: u32,
    /// The committed tokens behind `base_len`.
    pub commit: Vec<u32>,
    /// New guesses; their root is the end of `commit`.
    pub nodes: NodeBatch,
    /// New edge probabilities of nodes already told.
    pub rescored: Vec<(LinkId, Prob16)>,
    /// The committed length for which all drafts have finished their round, for the turn-taking strategies.
    pub round_done: Option<u32>,
    /// The text may grow to this length for now (flow control by the client); 0 leaves it as it was.
    pub allowed_len: u32,
    /// Scores of the prompt below this position have arrived; 0 leaves it as it was. Meant for targets.
    pub prompt_scored: u32,
    /// The receiver's part of the frontier; meant for drafts.
    pub shard: Option<Shard>,
}

/// Draft to coordinator: what one session has grown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DraftReport {
    /// Committed length at the root of `nodes`.
    pub base_len: u32,
    /// New guesses.
    pub nodes: NodeBatch,
    /// The committed length for which this draft has finished its round.
    pub round_done: Option<u32>,
    /// Totals since the session was opened.
    pub activity: Activity,
}

/// Verifier to coordinator: the tokens it picked behind `base_len`, cumulative since the last acknowledged base.
///
/// From a target they are the text. From a qualifier they are advice, and the next report may take them back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VerifyReport {
    /// Position of the first pick.
    pub base_len: u32,
    /// The picked tokens.
    pub picks: Vec<u32>,
    /// How clearly each token won, in units of logits over temperature, saturating at 255 sixteenths.
    pub margins: Vec<u8>,
    /// The scores of the picks, one for each, if the session asked for them.
    pub scores: Option<Box<Scores>>,
    /// The prompt's scores behind what the coordinator has acknowledged ([`ReplicaUpdate::prompt_scored`]), as far as
    /// they are known and fit a message. They go on after `finish`: a coordinator that asked for them closes the
    /// session when it has them all.
    pub prompt_scores: Option<Box<PromptScores>>,
    /// Set once the text is complete.
    pub finish: Option<Finish>,
    /// Totals since the session was opened.
    pub activity: Activity,
    /// Totals of the verification walk since the session was opened.
    pub walks: crate::stats::WalkStats,
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
    /// Steps given up because a commit had made them worthless.
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
    /// Length of the prompt within the text, so that the limits survive a replay.
    pub prompt_len: u32,
    /// The text may have this many tokens at most, prompt included.
    pub max_len: u32,
    /// Whether `max_len` is the model's context rather than the caller's wish.
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
    /// What the worker is to do.
    pub task: Task,
}

/// A worker's part in a session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// Grow guesses.
    Grow {
        /// How.
        policy: GrowthPolicy,
        /// Which part of the frontier.
        shard: Shard,
    },
    /// Walk the tree; what is picked is the text.
    Commit(VerifyPolicy),
    /// Walk the tree ahead of the target; what is picked is advice.
    Advise(VerifyPolicy, AdvicePolicy),
}

impl Task {
    /// The same task for a worker that can hold only `rows` tree rows of a session.
    #[must_use]
    pub fn within(self, rows: u16) -> Task {
        match self {
            Task::Grow { policy, shard } => Task::Grow {
                policy: GrowthPolicy {
                    nodes: policy.nodes.min(rows),
                    width: policy.width.min(rows),
                    ..policy
                },
                shard,
            },
            Task::Commit(policy) => Task::Commit(VerifyPolicy {
                rows: policy.rows.min(rows),
                ..policy
            }),
            Task::Advise(policy, advice) => Task::Advise(
                VerifyPolicy {
                    rows: policy.rows.min(rows / 2),
                    ..policy
                },
                AdvicePolicy {
                    ahead: advice.ahead.min(rows / 2),
                    ..advice
                },
            ),
        }
    }
}

/// One message about one session.
#[derive(Clone, Debug, PartialEq)]
pub struct Addressed<T> {
    /// The session.
    pub session: SessionId,
    /// The term under which it was sent.
    pub term: Term,
    /// What is said.
    pub message: T,
}

/// One stream between a coordinator and a worker, as the coordinator names it. An open call names the stream it belongs
/// to: one that outlives its stream must not open a session on the next, where nobody would close it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkName {
    /// The coordinator: random, another one in each life of the process; never 0.
    pub coordinator: u64,
    /// Counts the coordinator's streams; never 0.
    pub incarnation: u64,
}

impl std::fmt::Display for LinkName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}.{}", self.coordinator, self.incarnation)
    }
}

/// What a coordinator says to a worker at one time.
#[derive(Clone, Debug, Default)]
pub struct Relayed {
    /// New states.
    pub updates: Vec<Addressed<ReplicaUpdate>>,
    /// Sessions to forget, unless they were opened anew under a later term.
    pub closed: Vec<(SessionId, Term)>,
}

/// What a worker says of itself in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerInfo {
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
    /// A session takes whole pages of so many positions.
    pub kv_page: u32,
}

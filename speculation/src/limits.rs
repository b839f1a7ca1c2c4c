//! The caps every receiver enforces before it allocates.

pub use decode::sampling::MAX_BIASED;
pub use decode::scores::{MAX_PROMPT_SCORES, MAX_TOP_SCORES};

/// Nodes one message may add to one session.
pub const MAX_NODES_PER_UPDATE: usize = 512;

/// Groups of drawn siblings one message may carry for one session.
pub const MAX_GROUPS_PER_UPDATE: usize = 64;

/// Nodes one replica of a session may hold.
pub const MAX_TREE: usize = 1024;

/// Committed tokens or picks one message may carry for one session. Prompts travel in the open call.
pub const MAX_COMMIT: usize = 1024;

/// Tokens a client may leave unread before its session parks.
pub const CLIENT_CREDIT: u32 = 256;

/// Drafts that may share one session.
pub const MAX_DRAFTS: usize = 64;

/// Knobs that one message may set.
pub const MAX_KNOBS: usize = 32;

/// Prompt rows of one session that may be scored in one step, times the vocabulary: a bound on the work of a step.
pub const MAX_SCORED_LOGITS: usize = 1 << 22;

/// Steps of a journal one report may carry.
pub const MAX_JOURNAL_STEPS: usize = 1024;

/// Guesses, new estimates and picks of a journal one report may carry, all together.
pub const MAX_JOURNAL_NODES: usize = 16_384;

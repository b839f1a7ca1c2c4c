//! The caps every receiver enforces before it allocates.

/// Nodes one message may add to one session.
pub const MAX_NODES_PER_UPDATE: usize = 512;

/// Nodes one replica of a session may hold.
pub const MAX_TREE: usize = 1024;

/// Committed tokens or picks one message may carry for one session. Prompts travel by the open call.
pub const MAX_COMMIT: usize = 1024;

/// Tokens a client may leave unread before its session parks.
pub const CLIENT_CREDIT: u32 = 256;

/// Drafts that may share one session.
pub const MAX_DRAFTS: usize = 64;

/// Of the strongest tokens of a place, how many a session may ask to be scored.
pub const MAX_TOP_SCORES: u8 = 20;

/// Prompt tokens whose scores one message may carry for one session.
pub const MAX_PROMPT_SCORES: usize = 256;

/// Tokens whose logits a request may bias.
pub const MAX_BIASED: usize = 1024;

/// Logits of prompt rows that one session may have in memory at the same time, to be scored: 16 MiB.
pub const MAX_SCORED_LOGITS: usize = 1 << 22;

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

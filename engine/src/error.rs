//! The ways in which a call on a backend is refused.

use decode::NodeId;

/// Why a call on a [`Backend`](crate::Backend) was refused. Nothing has changed when one is returned.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EngineError {
    /// Released, or of another engine.
    #[error("the sequence is not open")]
    UnknownSequence,
    /// All sequences are in use.
    #[error("all {most} sequences are open; wait for one to end, or allow more")]
    TooManySequences {
        /// `max_sequences`.
        most: usize,
    },
    /// The cache has too few free pages.
    #[error(
        "the cache has {free} free pages and {needed} are needed; release a sequence or raise kv_pages"
    )]
    CacheFull {
        /// Pages that the call would take.
        needed: usize,
        /// Pages that are free.
        free: usize,
    },
    /// Longer than the model's context.
    #[error("{len} positions exceed the model's context of {most}")]
    ContextExceeded {
        /// Positions asked for.
        len: usize,
        /// The model's context.
        most: usize,
    },
    /// A longer text than the sequence was opened for.
    #[error("{len} committed positions exceed the {max_len} that the sequence was opened for")]
    SequenceFull {
        /// Length the call would have led to.
        len: usize,
        /// The longest that is allowed.
        max_len: usize,
    },
    /// Not in the vocabulary.
    #[error("token {token} is not below the vocabulary size {vocab}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// The vocabulary size.
        vocab: usize,
    },
    /// A tree row beyond the model's context.
    #[error("position {position} is not below {most}, the end of the context")]
    PositionOutOfRange {
        /// Absolute position of the row.
        position: usize,
        /// First position that does not exist.
        most: usize,
    },
    /// More tree rows than the sequence has room for.
    #[error("{rows} tree rows where {vacant} fit; drop some, or raise scratch_rows")]
    TooManyTreeRows {
        /// Tree rows of the sequence in the batch.
        rows: usize,
        /// Rows that are vacant.
        vacant: usize,
    },
    /// The cache holds the node's row already, or the batch has it twice.
    #[error("node {} is in the cache already; drop it first", node.index)]
    NodeTwice {
        /// The node.
        node: NodeId,
    },
    /// The parent is neither earlier in the batch nor in the cache.
    #[error("node {} has no row in the cache that could be a parent", node.index)]
    UnknownParent {
        /// The parent.
        node: NodeId,
    },
    /// What was to be kept is not a chain of cached rows behind the text.
    #[error("node {} does not continue the chain of cached rows behind the text", node.index)]
    BrokenPath {
        /// The first node that breaks it.
        node: NodeId,
    },
    /// There is no such position to shorten to.
    #[error("cannot shorten to {len} positions, only {committed} are cached")]
    ShortenBeyondEnd {
        /// Length asked for.
        len: usize,
        /// Cached positions of the text.
        committed: usize,
    },
    /// More is asked of appended tokens than there are.
    #[error("{asks} answers are asked of {appended} appended tokens")]
    TooManyAsks {
        /// What is asked.
        asks: usize,
        /// Appended tokens.
        appended: usize,
    },
    /// The text that came with a step does not hold the tokens that the step appends, where it appends them.
    #[error("the text and the tokens appended at position {position} differ")]
    TextDiffers {
        /// Where the append begins.
        position: usize,
    },
    /// The path that came with a row that is asked for something does not lead to it.
    #[error("the path of node {} does not lead to it", node.index)]
    PathDiffers {
        /// The node.
        node: NodeId,
    },
    /// A row is to be judged by something that did not come with the plan.
    #[error("there is no judgement {judgement} in the plan")]
    UnknownJudgement {
        /// Its number.
        judgement: u16,
    },
    /// A sequence may be in a batch once.
    #[error("a sequence appears twice in the batch")]
    SequenceTwice,
    /// Over the row budget of a step.
    #[error("{rows} rows exceed the step's {most}; split the batch or raise max_rows")]
    TooManyRows {
        /// Rows of the batch.
        rows: usize,
        /// `max_rows`.
        most: usize,
    },
    /// The device does not compute any more. Nothing that is asked of this backend will be answered.
    #[error("the device has failed: {0}")]
    Device(String),
}

//! The ways in which a call on an engine is refused.

use crate::sequence::Slot;

/// Why a call on an [`Engine`](crate::Engine) was refused. Nothing has changed when one is returned.
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
        /// Pages the sequence would reserve.
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
    /// More committed positions than were reserved at open.
    #[error("{len} committed positions exceed the {max_len} reserved when the sequence was opened")]
    SequenceFull {
        /// Length the call would have led to.
        len: usize,
        /// Length reserved.
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
    /// Not in the scratch region.
    #[error("slot {} is not below scratch_rows {scratch_rows}", slot.0)]
    SlotOutOfRange {
        /// The slot.
        slot: Slot,
        /// Slots of a sequence.
        scratch_rows: usize,
    },
    /// The slot holds an evaluated row, or is named twice in the batch.
    #[error("slot {} is in use; free it first", slot.0)]
    SlotInUse {
        /// The slot.
        slot: Slot,
    },
    /// The parent is neither earlier in the batch nor alive from an earlier step.
    #[error("slot {} is not an evaluated row that can be a parent", slot.0)]
    UnknownParent {
        /// The parent's slot.
        slot: Slot,
    },
    /// The path to commit is not a chain of evaluated rows from the tail.
    #[error("slot {} does not continue the chain of evaluated rows from the tail", slot.0)]
    BrokenPath {
        /// The first slot that breaks it.
        slot: Slot,
    },
    /// Nothing to drop.
    #[error("cannot truncate to {len} positions, only {committed} are committed")]
    TruncateBeyondEnd {
        /// Length asked for.
        len: usize,
        /// Committed length.
        committed: usize,
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
}

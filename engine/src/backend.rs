//! What a worker sees of a model on a device.

use std::ops::ControlFlow;

use decode::{Answer, CacheOp, SamplerState, StepPlan};

use crate::error::EngineError;
use crate::sequence::SeqId;

/// What is fixed about a loaded model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Names everything that decides which tokens are answered. Backends with equal ids compute equal bits.
    pub numerics_id: String,
    /// Token ids that are answered lie below it.
    pub vocab: u32,
    /// Positions that the model was trained for.
    pub max_positions: usize,
    /// Tokens that end a text.
    pub eos: Vec<u32>,
    /// Rows of one step, all sequences together.
    pub max_rows: usize,
    /// Pages of [`PAGE`](crate::PAGE) positions, for the texts of all sequences together.
    pub total_pages: usize,
}

impl Facts {
    /// Refuses a text that would grow longer than the model was trained for.
    pub(crate) fn check_len(&self, max_len: usize) -> Result<(), EngineError> {
        if max_len > self.max_positions {
            return Err(EngineError::ContextExceeded {
                len: max_len,
                most: self.max_positions,
            });
        }
        Ok(())
    }
}

/// What one sequence contributes to a step.
#[derive(Debug)]
pub struct SeqStep<'a> {
    /// The sequence; at most once in a batch.
    pub seq: SeqId,
    /// What is computed and what is asked. Appended tokens go straight behind the cached text; any of them drops the
    /// tree rows of earlier steps, whose paths begin at what is no longer its end.
    pub plan: &'a StepPlan,
    /// The committed text of the session: what is cached, then what the plan appends, then whatever follows.
    pub text: &'a [u32],
    /// How many tokens of the text are the prompt.
    pub prompt_len: u32,
    /// How the session samples.
    pub sampler: &'a mut SamplerState,
}

/// How a step ended.
#[derive(Clone, Debug, PartialEq)]
pub enum StepEnd {
    /// All rows were computed: appended tokens are cached text, tree rows are cached. For each entry of the batch, what
    /// was asked is answered, in the order of [`StepPlan::asked`].
    Done(Vec<Vec<Answer>>),
    /// Given up between two layers: nothing is appended, the rows are vacant again, the caches are as before.
    Interrupted,
}

/// A loaded model with the keys and values of its sequences. One thread owns it and calls [`Backend::step`] in a loop.
///
/// A row's answer depends on nothing but its own token path, what it is asked and how its session samples: not on the
/// rows, sequences and steps around it. Every call is checked in full first; after an error no text and no row has
/// changed.
pub trait Backend: Send {
    /// What is fixed about the model.
    fn facts(&self) -> &Facts;

    /// Pages that no sequence has.
    fn free_pages(&self) -> usize;

    /// Opens a sequence whose text may grow to `max_len` positions. It takes pages as it grows, and gives them back when it is
    /// shortened or released.
    ///
    /// # Errors
    /// [`EngineError::ContextExceeded`] or [`EngineError::TooManySequences`].
    fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError>;

    /// Takes back what a sequence holds. Releasing one that is not open does nothing.
    fn release(&mut self, seq: SeqId);

    /// Positions of the text that are cached; 0 for a sequence that is not open.
    fn len(&self, seq: SeqId) -> usize;

    /// Tree rows that still fit beside those that are cached; 0 for a sequence that is not open.
    fn vacant_rows(&self, seq: SeqId) -> usize;

    /// Does to the cache what the session has decided.
    ///
    /// [`CacheOp::Keep`] takes a chain of rows behind the text, whose last one's children then hang from the text; every
    /// other row is dropped. [`CacheOp::Drop`] drops rows with what hangs from them, and skips nodes without a row.
    ///
    /// # Errors
    /// [`EngineError::UnknownSequence`]; [`EngineError::BrokenPath`], [`EngineError::SequenceFull`] or
    /// [`EngineError::CacheFull`] of a chain; [`EngineError::ShortenBeyondEnd`].
    fn apply(&mut self, seq: SeqId, op: &CacheOp) -> Result<(), EngineError>;

    /// Computes a batch and answers what its rows are asked.
    ///
    /// A pick that no walk can reach is [`Answer::Skipped`]: one below a row of the step (or below the last appended
    /// token) whose own pick is another token, or was skipped. Appended tokens are committed, so they are always
    /// answered. `at_layer` is called with the layer's number before each layer; `Break` gives the step up.
    ///
    /// # Errors
    /// Whatever is wrong with one entry refuses the whole batch.
    fn step(
        &mut self,
        batch: &mut [SeqStep<'_>],
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError>;
}

//! A backend without a model: what its rows are asked, a [`Proposer`] answers.
//!
//! Sessions treat it like any draft model. A proposer may give a whole tree at once; then the rows below answer from that
//! tree, and the proposer is asked again only where it ends, or where others' guesses leave it.

use std::ops::ControlFlow;

use decode::{Answer, Ask, CacheOp, Guess, History, Proposal, Proposer, Seen};

use crate::answers;
use crate::backend::{Backend, Facts, SeqStep, StepEnd};
use crate::error::EngineError;
use crate::load::LoadError;
use crate::options::EngineOptions;
use crate::sequence::{SeqId, Sequences};
use crate::step::Limits;

/// Guesses of one proposal, at most.
const MOST: usize = 64;

/// Proposals that are kept of one text; the oldest is forgotten.
const KEPT: usize = 8;

/// Makes a proposer for a new text.
pub type Maker = Box<dyn FnMut() -> Box<dyn Proposer + Send> + Send>;

/// What stands in the place of a model.
pub struct ProposingSpec {
    /// Names it in the handshake.
    pub name: String,
    /// Token ids lie below it; guesses beyond it are dropped.
    pub vocab: u32,
    /// The longest text.
    pub max_positions: usize,
    /// Makes a proposer for each text.
    pub make: Maker,
}

/// See the module documentation.
pub struct Proposing {
    make: Maker,
    sequences: Sequences,
    open: Vec<(SeqId, Follower)>,
    limits: Limits,
    facts: Facts,
}

/// A proposer with the text that it follows.
struct Follower {
    proposer: Box<dyn Proposer + Send>,
    /// Tokens of the text when it was asked last.
    len: usize,
    kept: Vec<Kept>,
}

/// A proposal for the tokens at `lead` behind the first `start` ones of the text.
struct Kept {
    start: usize,
    lead: Vec<u32>,
    proposal: Proposal,
}

impl Kept {
    /// What it says of the token behind these; `None` where it has ended, or never got there.
    fn guesses(&self, before: &History<'_>) -> Option<Vec<Guess>> {
        let since = before.text.get(self.start..)?;
        let behind: Vec<u32> = since.iter().chain(before.path).copied().collect();
        let below = behind.strip_prefix(&self.lead[..])?;
        let at = self.proposal.descend(below).ok()?;
        let mut found: Vec<_> = (self.proposal.children(at))
            .map(|(_, proposed)| (proposed.rank, proposed.guess))
            .collect();
        found.sort_by_key(|&(rank, _)| rank);
        let guesses: Vec<Guess> = found.into_iter().map(|(_, guess)| guess).collect();
        (!guesses.is_empty()).then_some(guesses)
    }
}

impl Follower {
    fn guesses(&mut self, before: &History<'_>) -> Vec<Guess> {
        let known = self.kept.iter().rev().find_map(|kept| kept.guesses(before));
        known.unwrap_or_else(|| {
            self.len = before.text.len();
            let seen = Seen {
                before: *before,
                taps: &[],
            };
            let kept = Kept {
                start: before.text.len(),
                lead: before.path.to_vec(),
                proposal: self.proposer.propose(&seen, MOST),
            };
            let guesses = kept.guesses(before).unwrap_or_default();
            if self.kept.len() >= KEPT {
                self.kept.remove(0);
            }
            self.kept.push(kept);
            guesses
        })
    }
}

impl Proposing {
    /// Makes a backend of the sizes that `options` say; threads and weight type mean nothing to it.
    ///
    /// # Errors
    /// [`LoadError::Option`] for a size that cannot be served.
    pub fn new(spec: ProposingSpec, options: &EngineOptions) -> Result<Proposing, LoadError> {
        options.check()?;
        let sequences = Sequences::new(
            options.max_sequences,
            options.scratch_rows,
            options.kv_pages,
        );
        Ok(Proposing {
            make: spec.make,
            limits: Limits {
                vocab: spec.vocab as usize,
                answered: spec.vocab,
                positions: spec.max_positions,
                rows: options.max_rows,
            },
            facts: Facts {
                numerics_id: format!("proposing-{}", spec.name),
                vocab: spec.vocab,
                max_positions: spec.max_positions,
                eos: Vec::new(),
                max_rows: options.max_rows,
                total_pages: sequences.total_pages(),
            },
            sequences,
            open: Vec::new(),
        })
    }

    fn follower(&mut self, seq: SeqId, len: usize) -> &mut Follower {
        let at = (self.open.iter().position(|(open, _)| *open == seq)).unwrap_or_else(|| {
            self.open.push((seq, Follower::of((self.make)())));
            self.open.len() - 1
        });
        let follower = &mut self.open[at].1;
        if len < follower.len {
            // The text is another one: what it had seen before is not the beginning of this one.
            *follower = Follower::of((self.make)());
        }
        follower
    }
}

impl Follower {
    fn of(proposer: Box<dyn Proposer + Send>) -> Self {
        Follower {
            proposer,
            len: 0,
            kept: Vec::new(),
        }
    }
}

impl Backend for Proposing {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_pages(&self) -> usize {
        self.sequences.free_pages()
    }

    fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError> {
        self.facts.check_len(max_len)?;
        self.sequences.open(max_len)
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.release(seq);
        self.open.retain(|(open, _)| *open != seq);
    }

    fn len(&self, seq: SeqId) -> usize {
        self.sequences.len(seq)
    }

    fn vacant_rows(&self, seq: SeqId) -> usize {
        self.sequences.vacant_rows(seq)
    }

    fn apply(&mut self, seq: SeqId, op: &CacheOp) -> Result<(), EngineError> {
        self.sequences.apply(seq, op)?;
        if let CacheOp::Shorten(_) = op {
            // What comes behind it may be another text.
            self.open.retain(|(open, _)| *open != seq);
        }
        Ok(())
    }

    /// As every backend's; it has one layer. It guesses, and can neither pick nor score: that is [`Answer::NotFinite`].
    fn step(
        &mut self,
        batch: &mut [SeqStep<'_>],
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError> {
        let Some(plan) = answers::plan(batch, &mut self.sequences, self.limits)? else {
            return Ok(StepEnd::Done(vec![Vec::new(); batch.len()]));
        };
        if at_layer(0).is_break() {
            return Ok(StepEnd::Interrupted);
        }
        let vocab = self.facts.vocab;
        let answers = answers::answer(&plan, batch, |part, group, _, asked| {
            let Ask::Guesses(most) = asked.ask else {
                return Answer::NotFinite;
            };
            let before = answers::before(part, group, asked);
            let follower = self.follower(part.seq, before.text.len());
            let mut guesses = follower.guesses(&before);
            guesses.retain(|guess| guess.token < vocab);
            guesses.truncate(most.into());
            Answer::Guesses(guesses)
        });
        plan.done(&mut self.sequences);
        Ok(StepEnd::Done(answers))
    }
}

//! A profile over a real model: its steps run, its answers are the profile's.

use std::ops::ControlFlow;

use decode::CacheOp;

use crate::backend::{Backend, Facts, SeqStep, StepEnd};
use crate::error::EngineError;
use crate::load::LoadError;
use crate::options::EngineOptions;
use crate::sequence::SeqId;
use crate::synthetic::backend::{Spec, Synthetic};

/// A backend whose steps cost what those of another one cost, and whose answers are drawn from a profile.
///
/// Every call goes to both, the real one first; what it answers is thrown away. What text it is given is the profile's.
pub struct Overlay {
    real: Box<dyn Backend>,
    drawn: Synthetic,
    /// Open sequences: what callers and the real backend call one, and what the drawn one does.
    open: Vec<(SeqId, SeqId)>,
    facts: Facts,
}

impl Overlay {
    /// Lays a profile over a backend, which has the sizes that `options` say and the vocabulary and context that `spec`
    /// says.
    ///
    /// # Errors
    /// As [`Synthetic::new`].
    pub fn new(
        real: Box<dyn Backend>,
        spec: Spec,
        options: &EngineOptions,
    ) -> Result<Overlay, LoadError> {
        let drawn = Synthetic::new(spec, options)?;
        let facts = Facts {
            numerics_id: drawn.facts().numerics_id.clone(),
            ..real.facts().clone()
        };
        Ok(Overlay {
            real,
            drawn,
            open: Vec::new(),
            facts,
        })
    }

    /// The drawn backend's name of a sequence.
    fn drawn(&self, seq: SeqId) -> Result<SeqId, EngineError> {
        let found = self.open.iter().find(|(real, _)| *real == seq);
        found
            .map(|(_, drawn)| *drawn)
            .ok_or(EngineError::UnknownSequence)
    }
}

impl Backend for Overlay {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_pages(&self) -> usize {
        self.real.free_pages()
    }

    fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError> {
        let real = self.real.open(max_len)?;
        match self.drawn.open(max_len) {
            Ok(drawn) => {
                self.open.push((real, drawn));
                Ok(real)
            }
            Err(error) => {
                self.real.release(real);
                Err(error)
            }
        }
    }

    fn release(&mut self, seq: SeqId) {
        self.real.release(seq);
        if let Ok(drawn) = self.drawn(seq) {
            self.drawn.release(drawn);
            self.open.retain(|(real, _)| *real != seq);
        }
    }

    fn len(&self, seq: SeqId) -> usize {
        self.real.len(seq)
    }

    fn vacant_rows(&self, seq: SeqId) -> usize {
        self.real.vacant_rows(seq)
    }

    fn apply(&mut self, seq: SeqId, op: &CacheOp) -> Result<(), EngineError> {
        let drawn = self.drawn(seq)?;
        self.real.apply(seq, op)?;
        self.drawn.apply(drawn, op)
    }

    fn step(
        &mut self,
        batch: &mut [SeqStep<'_>],
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError> {
        let drawn: Vec<SeqId> = (batch.iter())
            .map(|part| self.drawn(part.seq))
            .collect::<Result<_, _>>()?;
        match self.real.step(batch, at_layer)? {
            StepEnd::Interrupted => Ok(StepEnd::Interrupted),
            StepEnd::Done(_) => {
                let mut batch: Vec<SeqStep<'_>> = (batch.iter_mut().zip(drawn))
                    .map(|(part, seq)| SeqStep {
                        seq,
                        plan: part.plan,
                        text: part.text,
                        prompt_len: part.prompt_len,
                        sampler: &mut *part.sampler,
                    })
                    .collect();
                // The real step is over, so there is nothing to give up any more.
                self.drawn
                    .step(&mut batch, &mut |_| ControlFlow::Continue(()))
            }
        }
    }
}

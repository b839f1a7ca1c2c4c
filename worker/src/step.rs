//! One step of the model: the plans of all sessions are computed as one batch, and each session gets its answers.

use std::mem;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use control::host::{Batch, Host, Outcome, Part, Usefulness};
use decode::{Answer, SamplerState};
use engine::{EngineError, SeqStep, StepEnd};

use crate::stream::StreamSlots;
use crate::thread::{ModelThread, Own};
use crate::trace::SessionTrace;
use crate::watch::Watch;

/// Why the sessions of a batch exist: events that arrive during a step are handled after it.
const HELD: &str = "a session is held at least until the step it has a part in has ended";

impl ModelThread {
    /// Applies to the caches what the sessions have decided. A session whose cache refuses that ends and has no part in the
    /// step: its text could be wrong.
    pub(crate) fn settle(&mut self, batch: &mut Batch) {
        for (session, ops) in mem::take(&mut batch.cache_ops) {
            let Some(own) = self.host.own(session) else {
                continue;
            };
            let seq = own.seq;
            let settled = ops.iter().try_for_each(|op| self.backend.apply(seq, op));
            if let Err(error) = settled {
                batch.parts.retain(|part| part.session != session);
                self.fault(session, format!("the cache and the tree disagree: {error}"));
            }
        }
    }

    /// Computes a batch that was laid out from `begun` on.
    ///
    /// `Break`: the device has failed, and nothing more can be computed.
    pub(crate) fn step(&mut self, batch: Batch, begun: Instant) -> ControlFlow<()> {
        let mut useful = Usefulness::of(&batch);
        match self.compute(&batch, &mut useful) {
            Ok(StepEnd::Done(answers)) => self.finish(&batch, &answers, useful, begun),
            Ok(StepEnd::Interrupted) => self.ended(&batch, begun, Outcome::Abandoned),
            Err(error @ EngineError::Device(_)) => {
                tracing::error!(%error, "no step can be computed any more");
                return ControlFlow::Break(());
            }
            Err(error) => return self.refused(batch, &error),
        }
        ControlFlow::Continue(())
    }

    fn compute(&mut self, batch: &Batch, useful: &mut Usefulness) -> Result<StepEnd, EngineError> {
        // Taken out for the time, because the sessions are read while the samplers are written.
        let mut samplers: Vec<SamplerState> = (batch.parts.iter())
            .map(|part| mem::take(sampler(&mut self.host, part)))
            .collect();
        let mut entries: Vec<SeqStep<'_>> = (batch.parts.iter().zip(&mut samplers))
            .map(|(part, sampler)| entry(&self.host, part, sampler))
            .collect();
        let mut watch = Watch {
            host: &self.host,
            batch,
            useful,
            inbox: &mut self.inbox,
        };
        let end = (self.backend).step(&mut entries, &mut |_layer| watch.look());
        for (part, state) in batch.parts.iter().zip(samplers) {
            *sampler(&mut self.host, part) = state;
        }
        end
    }

    /// Hands every session its answers, then lets a paced step last as long as it should. Reports follow when that is over;
    /// computing the answers is part of the step.
    fn finish(
        &mut self,
        batch: &Batch,
        answers: &[Vec<Answer>],
        mut useful: Usefulness,
        begun: Instant,
    ) {
        let computed = begun.elapsed();
        let pace = self.pace.of(batch.rows());
        let cost = self.pace.cost(batch.rows(), computed);
        let took = computed.max(pace);
        (self.host).handle_answers(self.now(), batch, answers, cost, took);
        let mut watch = Watch {
            host: &self.host,
            batch,
            useful: &mut useful,
            inbox: &mut self.inbox,
        };
        let outcome = if watch.pad(begun, pace).is_break() {
            Outcome::Abandoned
        } else {
            Outcome::Done
        };
        self.ended(batch, begun, outcome);
    }

    fn ended(&mut self, batch: &Batch, begun: Instant, outcome: Outcome) {
        let took = begun.elapsed();
        match outcome {
            Outcome::Done => self.metrics.stepped(batch.rows(), took),
            Outcome::Abandoned => self.metrics.abandoned(took),
        }
        self.host.handle_ended(self.now(), batch, took, outcome);
        self.metrics.pages(&*self.backend);
        for part in &batch.parts {
            self.trace(part, begun, took, outcome);
        }
    }

    fn trace(&mut self, part: &Part, begun: Instant, took: Duration, outcome: Outcome) {
        let is_traced = |own: &Own| (own.trace.as_ref()).is_some_and(SessionTrace::is_recording);
        if !self.host.own(part.session).is_some_and(is_traced) {
            return;
        }
        let trail = self.host.take_trail(part.session).unwrap_or_default();
        let own = self.host.own(part.session);
        if let Some(trace) = own.and_then(|own| own.trace.as_ref()) {
            trace.step(begun, took, &part.plan, outcome, &trail);
        }
    }

    /// The backend refuses a batch as a whole for what is wrong with one part. So each part is computed on its own, and only
    /// the session at fault ends.
    fn refused(&mut self, batch: Batch, error: &EngineError) -> ControlFlow<()> {
        tracing::error!(%error, parts = batch.parts.len(), "the backend refused a planned step");
        if let [part] = batch.parts.as_slice() {
            self.fault(part.session, error.to_string());
            return ControlFlow::Continue(());
        }
        for part in batch.parts {
            let alone = Batch {
                parts: vec![part],
                ..Batch::default()
            };
            self.step(alone, Instant::now())?;
        }
        ControlFlow::Continue(())
    }
}

fn sampler<'a>(host: &'a mut Host<StreamSlots, Own>, part: &Part) -> &'a mut SamplerState {
    let (own, ..) = host.get_mut(part.session).expect(HELD);
    &mut own.sampler
}

fn entry<'a>(
    host: &'a Host<StreamSlots, Own>,
    part: &'a Part,
    sampler: &'a mut SamplerState,
) -> SeqStep<'a> {
    let session = host.session(part.session).expect(HELD);
    SeqStep {
        seq: host.own(part.session).expect(HELD).seq,
        plan: &part.plan,
        text: session.text(),
        prompt_len: session.prompt_len(),
        sampler,
    }
}

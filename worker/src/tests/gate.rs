//! A model for tests: the bundled draft, whose steps a test can hold up, and which refuses what a test tells it to.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use decode::CacheOp;
use engine::{Backend, EngineError, Facts, SeqId, SeqStep, StepEnd};
use flume::{Receiver, Sender};

/// A call of the backend that can be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Apply,
    Step,
}

#[derive(Debug, Default)]
struct State {
    opened: Vec<SeqId>,
    released: HashSet<SeqId>,
    /// The sequence, counted from 0 in the order of opening, whose calls of this kind are refused.
    refuses: Option<(Call, usize)>,
    is_closed: bool,
}

/// What a test knows of the model, and does to it.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    state: Arc<Mutex<State>>,
    arrived: Receiver<()>,
    passes: Sender<()>,
}

impl Gate {
    /// A gate that stands open, before a model.
    pub(crate) fn before(backend: Box<dyn Backend>) -> (Self, Box<dyn Backend>) {
        let (arrives, arrived) = flume::unbounded();
        let (passes, passed) = flume::unbounded();
        let gate = Gate {
            state: Arc::default(),
            arrived,
            passes,
        };
        let gated = Gated {
            backend,
            state: Arc::clone(&gate.state),
            arrives,
            passed,
        };
        (gate, Box::new(gated))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// From now on each step waits before its first layer.
    pub(crate) fn close(&self) {
        self.state().is_closed = true;
    }

    /// Waits until a step has come to the closed gate.
    pub(crate) async fn arrived(&self) {
        self.arrived.recv_async().await.unwrap();
    }

    /// Lets the step that has come to the gate pass.
    pub(crate) fn pass(&self) {
        self.passes.send(()).unwrap();
    }

    /// Lets it pass, and every later one.
    pub(crate) fn open(&self) {
        self.state().is_closed = false;
        self.pass();
    }

    /// From now on these calls for this sequence are refused.
    pub(crate) fn refuse(&self, call: Call, sequence: usize) {
        self.state().refuses = Some((call, sequence));
    }

    /// Sequences that were opened so far, and those of them that are held.
    pub(crate) fn sequences(&self) -> (usize, usize) {
        let state = self.state();
        let opened = state.opened.len();
        (opened, opened - state.released.len())
    }
}

struct Gated {
    backend: Box<dyn Backend>,
    state: Arc<Mutex<State>>,
    arrives: Sender<()>,
    passed: Receiver<()>,
}

impl Gated {
    fn check(&self, call: Call, seq: SeqId) -> Result<(), EngineError> {
        let state = self.state.lock().unwrap();
        match state.refuses {
            Some((refused, at)) if refused == call && state.opened.get(at) == Some(&seq) => {
                Err(EngineError::UnknownSequence)
            }
            Some(_) | None => Ok(()),
        }
    }
}

impl Backend for Gated {
    fn facts(&self) -> &Facts {
        self.backend.facts()
    }

    fn free_pages(&self) -> usize {
        self.backend.free_pages()
    }

    fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError> {
        let seq = self.backend.open(max_len)?;
        self.state.lock().unwrap().opened.push(seq);
        Ok(seq)
    }

    fn release(&mut self, seq: SeqId) {
        self.backend.release(seq);
        self.state.lock().unwrap().released.insert(seq);
    }

    fn len(&self, seq: SeqId) -> usize {
        self.backend.len(seq)
    }

    fn vacant_rows(&self, seq: SeqId) -> usize {
        self.backend.vacant_rows(seq)
    }

    fn apply(&mut self, seq: SeqId, op: &CacheOp) -> Result<(), EngineError> {
        self.check(Call::Apply, seq)?;
        self.backend.apply(seq, op)
    }

    fn step(
        &mut self,
        batch: &mut [SeqStep<'_>],
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError> {
        for part in batch.iter() {
            self.check(Call::Step, part.seq)?;
        }
        let is_closed = self.state.lock().unwrap().is_closed;
        let (arrives, passed) = (&self.arrives, &self.passed);
        self.backend.step(batch, &mut |layer| {
            if is_closed && layer == 0 {
                // Where the test is over nobody is left to wait for.
                let _ = arrives.send(());
                let _ = passed.recv();
            }
            at_layer(layer)
        })
    }
}

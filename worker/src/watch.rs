//! What arrives while a step is computed, and whether the step is still of use.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use speculation::message::{Addressed, ReplicaUpdate, SessionId};

use crate::handle::Event;
use crate::kind::Kind;
use crate::thread::{Going, Held, INBOX, Stepping};

/// Looks at what arrives during a step, to give it up when nothing in it is of use any more.
pub(crate) struct Watch<'a, K: Kind> {
    pub(crate) kind: &'a K,
    pub(crate) held: &'a Held<K>,
    pub(crate) batch: &'a [Stepping],
    pub(crate) useless: Vec<bool>,
    pub(crate) events: &'a Receiver<Event<K::Report>>,
    pub(crate) pending: &'a mut VecDeque<Event<K::Report>>,
}

impl<K: Kind> Watch<'_, K> {
    /// Looks through what has arrived.
    pub(crate) fn look(&mut self) -> Going {
        while self.pending.len() < INBOX {
            match self.events.try_recv() {
                Ok(event) => self.note(event),
                Err(_) => break,
            }
        }
        self.verdict()
    }

    /// Lets a paced step last as long as it should.
    pub(crate) fn pad(&mut self, begun: Instant, pace: Duration) -> Going {
        loop {
            self.verdict()?;
            let left = pace.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return ControlFlow::Continue(());
            }
            if self.pending.len() >= INBOX {
                std::thread::sleep(left);
                return ControlFlow::Continue(());
            }
            match self.events.recv_timeout(left) {
                Ok(event) => self.note(event),
                Err(RecvTimeoutError::Timeout) => return ControlFlow::Continue(()),
                Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
            }
        }
    }

    fn note(&mut self, event: Event<K::Report>) {
        if let Event::Relayed { relayed, .. } = &event {
            for update in &relayed.updates {
                self.judge(update);
            }
            for &(closed, _) in &relayed.closed {
                self.mark(closed);
            }
        }
        self.pending.push_back(event);
    }

    fn judge(&mut self, update: &Addressed<ReplicaUpdate>) {
        let part = self.batch.iter().find(|part| part.id == update.session);
        if let (Some(part), Some(served)) = (part, self.held.get(update.session))
            && self.held.term(update.session) == Some(update.term)
            && (self.kind).obsoletes(&served.session, &part.plan, &update.message)
        {
            self.mark(update.session);
        }
    }

    fn mark(&mut self, id: SessionId) {
        if let Some(at) = self.batch.iter().position(|part| part.id == id) {
            self.useless[at] = true;
        }
    }

    fn verdict(&self) -> Going {
        if self.useless.iter().all(|&useless| useless) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

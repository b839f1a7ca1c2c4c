//! A session on a worker: one state machine for every duty.
//!
//! Feed it with `handle_*`; ask it with [`Session::poll_step`] what it could compute, with
//! [`Session::plan_step`] for its share of a step, with [`Session::poll_cache_ops`] what
//! the model's cache has to do before and after that, and with [`Session::poll_report`] what to report to the
//! coordinator.

mod account;
mod find;
mod heads;
mod outline;
mod propose;
mod replaying;
mod rules;
mod verify;

use alloc::vec::Vec;

use decode::{Answer, CacheOp, StepPlan};

use crate::Time;
use crate::allocation::Share;
use crate::duty::{Duties, Duty, Source};
use crate::learned::Learned;
use crate::message::{Activity, ReplicaUpdate, Report, SessionSpec};
use crate::numbering::PeerError;
use crate::replica::Poll;
use crate::strategy::{Registry, StrategyError};

use propose::Proposer;
use verify::Verifier;
pub use verify::{Guesser, Trail};

/// What a worker offers to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Token ids lie below it.
    pub vocab: u32,
    /// Tree rows that its cache holds for one session.
    pub rows: u16,
    /// What its proposals count as; of workers that propose.
    pub source: Source,
}

/// A session cannot be served by this worker.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SessionError {
    /// Its strategy is unknown here, or a knob is wrong.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// The duties do not go together.
    #[error(
        "a session has one of the duties propose, advise and commit on a worker; {0} were given"
    )]
    Duties(usize),
}

/// See the module documentation.
#[derive(Debug)]
pub struct Session {
    agent: Agent,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a session is one of the two for its whole life, and lies in a map of its owner"
)]
enum Agent {
    Proposer(Proposer),
    Verifier(Verifier),
}

/// The duty of a session that has exactly one.
fn only(duties: Duties) -> Result<Duty, SessionError> {
    let mut each = duties.iter();
    match (each.next(), each.next()) {
        (Some(duty), None) => Ok(duty),
        _ => Err(SessionError::Duties(duties.iter().count())),
    }
}

impl Session {
    /// A session that starts at `now` and whose cache holds the first `cached` tokens of its text.
    ///
    /// # Errors
    /// When its strategy is not in `registry`, or its duties do not go together.
    pub fn new(
        now: Time,
        spec: &SessionSpec,
        registry: &Registry,
        capacity: Capacity,
        cached: u32,
    ) -> Result<Self, SessionError> {
        let strategy = registry.choose(&spec.strategy)?;
        let agent = match only(spec.duties)? {
            Duty::Propose => Agent::Proposer(Proposer::new(spec, strategy, capacity, cached)),
            duty @ (Duty::Advise | Duty::Commit) => {
                Agent::Verifier(Verifier::new(now, spec, duty, strategy, capacity, cached))
            }
        };
        Ok(Session { agent })
    }

    /// The tokens whose keys and values the cache holds once [`poll_cache_ops`](Self::poll_cache_ops) is done.
    pub fn cached_text(&self) -> &[u32] {
        match &self.agent {
            Agent::Proposer(proposer) => proposer.replica.cached_text(),
            Agent::Verifier(verifier) => verifier.replica.cached_text(),
        }
    }

    /// The committed text, prompt included.
    pub fn text(&self) -> &[u32] {
        match &self.agent {
            Agent::Proposer(proposer) => &proposer.replica.text,
            Agent::Verifier(verifier) => &verifier.replica.text,
        }
    }

    /// How many tokens of the text are the prompt.
    pub fn prompt_len(&self) -> u32 {
        match &self.agent {
            Agent::Proposer(proposer) => proposer.replica.stopping.prompt_len,
            Agent::Verifier(verifier) => verifier.replica.stopping.prompt_len,
        }
    }

    /// Tree rows that the cache holds for it once [`poll_cache_ops`](Self::poll_cache_ops) is done.
    pub fn rows_held(&self) -> usize {
        match &self.agent {
            Agent::Proposer(proposer) => proposer.replica.rows_held(),
            Agent::Verifier(verifier) => verifier.replica.rows_held(),
        }
    }

    /// Takes the coordinator's newest state, and learns from what was committed.
    ///
    /// # Errors
    /// When no correct coordinator would send this; then nothing has changed, except possibly the text.
    pub fn handle_update(
        &mut self,
        now: Time,
        update: &ReplicaUpdate,
        learned: &mut Learned,
    ) -> Result<(), PeerError> {
        match &mut self.agent {
            Agent::Proposer(proposer) => proposer.handle_update(update, learned),
            Agent::Verifier(verifier) => verifier.handle_update(now, update, learned),
        }
    }

    /// What to do now: work for the next step, of at most `room` rows.
    pub fn poll_step(&mut self, now: Time, room: usize, learned: &mut Learned) -> Poll {
        match &mut self.agent {
            Agent::Proposer(proposer) => proposer.poll_step(room, learned),
            Agent::Verifier(verifier) => verifier.poll_step(now, room, learned),
        }
    }

    /// The plan of a share of the work that [`Session::poll_step`] has just offered. The base has at least one row, and
    /// guesses come only with a whole base.
    pub fn plan_step(&mut self, share: Share) -> StepPlan {
        match &mut self.agent {
            Agent::Proposer(proposer) => proposer.plan_step(share),
            Agent::Verifier(verifier) => verifier.plan_step(share),
        }
    }

    /// Whether it goes on without guesses where that is faster, and so counts for
    /// [`Bypass`](crate::bypass::Bypass).
    pub fn may_rest(&self) -> bool {
        match &self.agent {
            Agent::Proposer(_) => false,
            Agent::Verifier(verifier) => verifier.may_rest(),
        }
    }

    /// Whether drafts or qualifiers of the session compute on the target's device.
    pub fn is_shared(&self) -> bool {
        match &self.agent {
            Agent::Proposer(_) => false,
            Agent::Verifier(verifier) => verifier.is_shared,
        }
    }

    /// What the cache has to do before the next step.
    pub fn poll_cache_ops(&mut self) -> Vec<CacheOp> {
        match &mut self.agent {
            Agent::Proposer(proposer) => proposer.replica.take_ops(),
            Agent::Verifier(verifier) => verifier.replica.take_ops(),
        }
    }

    /// A plan was computed in `took`, and the step ended at `now`; `answers` are those to [`StepPlan::asked`], in order.
    pub fn handle_step(
        &mut self,
        now: Time,
        took: Time,
        plan: &StepPlan,
        answers: &[Answer],
        learned: &mut Learned,
    ) {
        match &mut self.agent {
            Agent::Proposer(proposer) => proposer.handle_step(plan, answers, learned),
            Agent::Verifier(verifier) => verifier.handle_step(now, took, plan, answers, learned),
        }
    }

    /// Whether the commit in `update` makes a step in flight useless.
    pub fn is_obsolete(&self, plan: &StepPlan, update: &ReplicaUpdate) -> bool {
        match &self.agent {
            Agent::Proposer(proposer) => proposer.is_obsolete(plan, update),
            Agent::Verifier(verifier) => verifier.is_obsolete(plan, update),
        }
    }

    /// What its steps have made of guesses since this was last asked; of a target.
    pub fn take_trail(&mut self) -> Trail {
        match &mut self.agent {
            Agent::Proposer(_) => Trail::default(),
            Agent::Verifier(verifier) => verifier.take_trail(),
        }
    }

    /// The session is closed by its coordinator.
    pub fn handle_closed(&mut self, learned: &mut Learned) {
        match &mut self.agent {
            Agent::Proposer(_) => {}
            Agent::Verifier(verifier) => verifier.handle_closed(learned),
        }
    }

    /// The next report to the coordinator, if there is anything new.
    pub fn poll_report(&mut self, activity: Activity) -> Option<Report> {
        match &mut self.agent {
            Agent::Proposer(proposer) => proposer.poll_report(activity),
            Agent::Verifier(verifier) => verifier.poll_report(activity),
        }
    }
}

//! One worker of the cluster of one session: what it holds, and the two ends of its stream.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

use speculation::Time;
use speculation::cost::CostModel;
use speculation::link::LinkError;
use speculation::message::{Activity, ReplicaUpdate, SessionSpec, Term};
use speculation::relay::{LinkKey, Role};
use speculation::replica::Poll;

use crate::cache::Cache;
use crate::hosted::{Guessed, Hosted, Report};
use crate::reference::Speaker;

/// How fast a worker computes: `base + per_row * rows`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) base_us: u64,
    pub(crate) per_row_us: u64,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: LinkKey,
    pub(crate) term: Term,
    pub(crate) role: Role,
    pub(crate) hosted: Hosted,
    pub(crate) inbox: VecDeque<ReplicaUpdate>,
    pub(crate) outbox: VecDeque<Report>,
    /// Everything the relay has taken, to send it again.
    pub(crate) sent: Vec<Report>,
    /// Something happened since it was last asked for work, or for a report.
    pub(crate) may_step: bool,
    pub(crate) may_report: bool,
    /// The relay may have news for it.
    pub(crate) may_update: bool,
    /// The step in flight has been found worth finishing in spite of the next update.
    pub(crate) looked: bool,
    pub(crate) wake: Option<Time>,
    /// Garbage was sent in its name: what it says next may be refused.
    pub(crate) tainted: bool,
    /// Out of 8, how readily the schedule lets it act.
    pub(crate) eager: usize,
    /// When the step in flight ends.
    pub(crate) ready: Time,
    took: Time,
    pace: Pace,
    cost: CostModel,
}

impl Deref for Worker {
    type Target = Hosted;

    fn deref(&self) -> &Hosted {
        &self.hosted
    }
}

impl DerefMut for Worker {
    fn deref_mut(&mut self) -> &mut Hosted {
        &mut self.hosted
    }
}

impl Worker {
    pub(crate) fn open(
        key: LinkKey,
        role: Role,
        spec: &SessionSpec,
        now: Time,
        speaker: Speaker,
        pace: Pace,
    ) -> Self {
        Worker {
            key,
            term: spec.term,
            role,
            hosted: Hosted::open(role, spec, now, speaker, Cache::default()),
            inbox: VecDeque::new(),
            outbox: VecDeque::from([Report::Opened]),
            sent: Vec::new(),
            may_step: true,
            may_report: false,
            may_update: true,
            looked: false,
            wake: None,
            tainted: false,
            eager: 8,
            ready: now,
            took: Time::ZERO,
            pace,
            cost: CostModel::new(Time::ZERO),
        }
    }

    /// Gives up the step in flight if an update makes it worthless; whether the worker is free now.
    pub(crate) fn yields_to(&mut self, update: &ReplicaUpdate) -> bool {
        if self.flight.is_none() {
            return true;
        }
        let obsolete = self.role == Role::Draft && self.is_obsolete(update);
        if obsolete {
            self.flight = None;
            self.may_step = true;
        }
        obsolete
    }

    /// Hands an update to the session.
    pub(crate) fn take(&mut self, now: Time, update: &ReplicaUpdate) -> Result<(), LinkError> {
        self.may_step = true;
        self.may_report = true;
        self.hosted.take(now, update)
    }

    /// Asks the session for work and starts it. Returns whether it has nothing to do until told.
    pub(crate) fn start(
        &mut self,
        now: Time,
        room: usize,
        guessed: Option<&Guessed>,
    ) -> Option<Poll> {
        self.may_step = false;
        self.may_report = true;
        self.wake = None;
        let idle = self.hosted.start(now, &self.cost, room, guessed);
        if let Some(Poll::Wait(until)) = idle {
            self.wake = until;
        }
        if let Some(flight) = &self.hosted.flight {
            let rows = flight.plan.rows() as u64;
            self.took = Time::from_micros(self.pace.base_us + self.pace.per_row_us * rows);
            self.ready = now + self.took;
        }
        idle
    }

    /// The step in flight ends.
    pub(crate) fn finish(&mut self, now: Time, guessed: &mut Guessed) {
        let rows = self.flight.as_ref().map_or(0, |flight| flight.plan.rows());
        self.cost.observe(rows, self.took);
        self.may_step = true;
        self.may_report = true;
        self.looked = false;
        self.hosted.finish(now, self.took, guessed);
    }

    /// The newest report, if there is one.
    pub(crate) fn report(&mut self) {
        self.may_report = false;
        if let Some(report) = self.hosted.report(Activity::default()) {
            self.outbox.push_back(report);
            // A draft's report is limited in size; there may be more.
            self.may_report = true;
        }
    }
}

//! One worker of the cluster of one session: its real session, a stupid model and cache, and the two ends of its stream.

use std::collections::VecDeque;

use decode::StepPlan;
use simulation::cache::{Admitted, Cache};
use simulation::reference::{Model, VOCAB};
use simulation::served::{Guessed, Served};
use speculation::Time;
use speculation::allocation::{Room, allocate};
use speculation::bypass::Plan;
use speculation::duty::{Role, Source};
use speculation::learned::Learned;
use speculation::message::{Activity, ReplicaUpdate, Report, SessionSpec, Term};
use speculation::numbering::PeerError;
use speculation::relay::WorkerKey;
use speculation::replica::Poll;
use speculation::session::{Capacity, Session};
use speculation::strategy::Registry;

/// More tree rows than any strategy wants.
const ROWS: u16 = 1024;

/// How fast a worker computes: `base + per_row * rows`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) base_us: u64,
    pub(crate) per_row_us: u64,
}

/// What a worker says.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    /// The open call was answered.
    Opened,
    Report(Box<Report>),
}

/// A step under way.
#[derive(Debug)]
struct Flight {
    plan: StepPlan,
    admitted: Admitted,
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: WorkerKey,
    pub(crate) term: Term,
    pub(crate) role: Role,
    pub(crate) session: Session,
    learned: Learned,
    served: Served,
    flight: Option<Flight>,
    pub(crate) inbox: VecDeque<ReplicaUpdate>,
    pub(crate) outbox: VecDeque<Said>,
    /// Everything the relay has taken, to send it again.
    pub(crate) sent: Vec<Said>,
    /// Something happened since it was last asked for work, or for a report.
    pub(crate) may_step: bool,
    pub(crate) may_report: bool,
    /// The relay may have something new for it.
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
}

impl Worker {
    pub(crate) fn open(
        key: WorkerKey,
        role: Role,
        spec: &SessionSpec,
        now: Time,
        model: Model,
        pace: Pace,
    ) -> Self {
        let capacity = Capacity {
            vocab: VOCAB,
            rows: ROWS,
            source: Source::Draft,
        };
        let registry = Registry::default();
        let session = Session::new(now, spec, &registry, capacity, 0);
        Worker {
            key,
            term: spec.term,
            role,
            session: session.expect("one duty of a strategy of the registry"),
            learned: Learned::new(Time::ZERO, Plan::default()),
            served: Served::new(spec, &registry, capacity, model, Cache::default(), 50),
            flight: None,
            inbox: VecDeque::new(),
            outbox: VecDeque::from([Said::Opened]),
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
        }
    }

    /// The text that the session has.
    pub(crate) fn text(&self) -> &[u32] {
        &self.served.text
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.flight.is_some()
    }

    /// Does what the session says about its cache, and checks that nothing is held in vain.
    pub(crate) fn settle(&mut self) {
        self.served.apply(self.session.poll_cache_ops());
        self.served.check(&self.session);
    }

    /// Gives up the step in flight if an update makes it worthless; whether the worker is free now.
    pub(crate) fn yields_to(&mut self, update: &ReplicaUpdate) -> bool {
        let Some(Flight { plan, admitted }) = &self.flight else {
            return true;
        };
        let is_obsolete = self.role == Role::Draft
            && (self.served).is_obsolete(&self.session, plan, admitted, update);
        if is_obsolete {
            self.flight = None;
            self.may_step = true;
        }
        is_obsolete
    }

    /// Hands an update to the session.
    pub(crate) fn take(&mut self, now: Time, update: &ReplicaUpdate) -> Result<(), PeerError> {
        assert!(
            self.flight.is_none(),
            "a session is not told in the middle of a step"
        );
        self.may_step = true;
        self.may_report = true;
        let fresh = self.served.fresh(update);
        let taken = (self.session).handle_update(now, update, &mut self.learned);
        match fresh {
            // Bad nodes do not undo a good commit.
            Some(fresh) => self.served.text.extend(fresh),
            None => assert!(taken.is_err(), "a bad commit was taken"),
        }
        assert_eq!(self.session.text(), self.served.text);
        taken
    }

    /// Asks the session for work and starts it. Gives what it said if that is not a step. Every row is a text in
    /// `guessed`.
    pub(crate) fn start(
        &mut self,
        now: Time,
        room: usize,
        guessed: Option<&Guessed>,
    ) -> Option<Poll> {
        self.may_step = false;
        self.may_report = true;
        self.wake = None;
        self.settle();
        let plan = match self.session.poll_step(now, room, &mut self.learned) {
            Poll::Work(work) => {
                let room = Room {
                    rows: room,
                    prompt_stretch: 1.0,
                };
                let share = allocate(&self.learned.cost, room, &[&work])[0];
                self.session.plan_step(share)
            }
            Poll::Wait(until, work) => {
                assert!(
                    until.is_none_or(|until| until > now),
                    "a wait is for something"
                );
                self.wake = until;
                return Some(Poll::Wait(until, work));
            }
            other => return Some(other),
        };
        self.settle();
        let admitted = self.served.admit(&plan, room);
        if let Some(guessed) = guessed {
            admitted.check_guessed(guessed, self.session.text());
        }
        let rows = plan.len() as u64;
        self.took = Time::from_micros(self.pace.base_us + self.pace.per_row_us * rows);
        self.ready = now + self.took;
        self.flight = Some(Flight { plan, admitted });
        None
    }

    /// The step in flight ends.
    pub(crate) fn finish(&mut self, now: Time, guessed: &mut Guessed) {
        let Flight { plan, admitted } = self.flight.take().expect("a step is in flight");
        self.may_step = true;
        self.may_report = true;
        self.looked = false;
        let answers = self.served.compute(&plan, &admitted, Some(guessed));
        (self.session).handle_step(now, self.took, &plan, &answers, &mut self.learned);
        self.learned.cost.observe(plan.len(), self.took);
        self.served.follow(self.session.text().to_vec());
    }

    /// The newest report, if there is one.
    pub(crate) fn report(&mut self) {
        self.may_report = false;
        if let Some(report) = self.session.poll_report(Activity::default()) {
            self.served.check_report(&report);
            self.outbox.push_back(Said::Report(Box::new(report)));
            // A draft's report is limited in size; there may be more.
            self.may_report = true;
        }
    }
}

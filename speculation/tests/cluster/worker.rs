//! One worker of the simulated cluster: a real session, a stupid cache, and the two ends of its stream.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use speculation::Time;
use speculation::calibration::Calibration;
use speculation::cost::CostModel;
use speculation::draft::DraftSession;
use speculation::limits::MAX_COMMIT;
use speculation::link::LinkError;
use speculation::message::{
    Activity, DraftReport, LinkId, ROOT, ReplicaUpdate, SessionSpec, Task, Term, VerifyReport,
};
use speculation::relay::{LinkKey, Role};
use speculation::replica::{History, Poll, RowAt, StepPlan};
use speculation::verify::{NotFinite, VerifySession};

use crate::cache::{Admitted, Cache};
use crate::reference::{Speaker, VOCAB, hash};

/// How fast a worker computes: `base + per_row * rows`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) base_us: u64,
    pub(crate) per_row_us: u64,
}

/// What a worker sends.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    Opened,
    Draft(DraftReport),
    Verify(VerifyReport),
}

#[derive(Debug)]
pub(crate) enum Agent {
    Draft(Box<DraftSession>, Box<Calibration>),
    Verify(Box<VerifySession>),
}

#[derive(Debug)]
pub(crate) struct Flight {
    plan: StepPlan,
    admitted: Admitted,
    took: Time,
    pub(crate) ready: Time,
}

/// The texts that somebody guessed, as hashes: a row for any other text is made up.
pub(crate) type Guessed = BTreeSet<u64>;

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: LinkKey,
    pub(crate) term: Term,
    pub(crate) role: Role,
    pub(crate) agent: Agent,
    /// The text this session has been told or has decided.
    pub(crate) text: Vec<u32>,
    pub(crate) cache: Cache,
    pub(crate) flight: Option<Flight>,
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
    pub(crate) task: Task,
    speaker: Speaker,
    pace: Pace,
    cost: CostModel,
    max_len: usize,
    /// What this draft guessed itself.
    own: Guessed,
    /// The whole text of every node it told of.
    told: BTreeMap<LinkId, Vec<u32>>,
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
        let agent = match role {
            Role::Draft => Agent::Draft(
                Box::new(DraftSession::new(spec, VOCAB, 0).expect("a draft's task")),
                Box::default(),
            ),
            Role::Qualifier | Role::Target => Agent::Verify(Box::new(
                VerifySession::new(now, spec, VOCAB, 0).expect("a verifier's task"),
            )),
        };
        Worker {
            key,
            term: spec.term,
            role,
            agent,
            text: spec.text.clone(),
            cache: Cache::default(),
            flight: None,
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
            task: spec.task,
            speaker,
            pace,
            cost: CostModel::new(Time::ZERO),
            max_len: spec.stopping.max_len as usize,
            own: Guessed::new(),
            told: BTreeMap::new(),
        }
    }

    /// Applies pending cache operations and checks that nothing is held in vain.
    pub(crate) fn settle(&mut self) {
        let ops = match &mut self.agent {
            Agent::Draft(session, _) => session.poll_cache_ops(),
            Agent::Verify(session) => session.poll_cache_ops(),
        };
        self.cache.apply(ops);
        self.cache.check(&self.text);
    }

    /// Gives up the step in flight if an update makes it worthless; whether the worker is free now.
    pub(crate) fn yields_to(&mut self, update: &ReplicaUpdate) -> bool {
        let Some(flight) = &self.flight else {
            return true;
        };
        let Agent::Draft(session, _) = &self.agent else {
            return false;
        };
        let obsolete = session.obsoletes(&flight.plan, update);
        let mut text = self.text.clone();
        text.extend(self.fresh(update).unwrap_or_default());
        let useful = text == self.text
            || flight.plan.rows.is_empty()
            || !flight.plan.append.is_empty()
            || flight
                .admitted
                .paths
                .iter()
                .any(|path| path.starts_with(&text));
        assert_eq!(obsolete, !useful, "only worthless steps are given up");
        if obsolete {
            self.flight = None;
            self.may_step = true;
        }
        obsolete
    }

    /// Hands an update to the session.
    pub(crate) fn take(&mut self, now: Time, update: &ReplicaUpdate) -> Result<(), LinkError> {
        assert!(
            self.flight.is_none(),
            "a session is not told in the middle of a step"
        );
        self.may_step = true;
        self.may_report = true;
        let fresh = self.fresh(update);
        let result = match &mut self.agent {
            Agent::Draft(session, calibration) => session.handle_update(update, calibration),
            Agent::Verify(session) => session.handle_update(now, update),
        };
        match fresh {
            // Bad nodes do not undo a good commit.
            Some(fresh) => self.text.extend_from_slice(&fresh),
            None => assert!(result.is_err(), "a bad commit was taken"),
        }
        if let Agent::Verify(session) = &self.agent {
            assert_eq!(session.text(), self.text);
        }
        result
    }

    /// The new tokens of an update; nothing if it cannot be right.
    fn fresh(&self, update: &ReplicaUpdate) -> Option<Vec<u32>> {
        let base = update.base_len as usize;
        let sound = update.commit.len() <= MAX_COMMIT
            && base <= self.text.len()
            && base + update.commit.len() <= self.max_len
            && update.commit.iter().all(|&token| token < VOCAB)
            && update
                .commit
                .iter()
                .zip(&self.text[base..])
                .all(|(told, have)| told == have);
        sound.then(|| {
            update
                .commit
                .get(self.text.len() - base..)
                .unwrap_or(&[])
                .to_vec()
        })
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
        let poll = match &mut self.agent {
            Agent::Draft(session, _) => session.poll_step(&self.cost, room),
            Agent::Verify(session) => session.poll_step(now, &self.cost, room),
        };
        let plan = match poll {
            Poll::Step(plan) => plan,
            Poll::Wait(until) => {
                assert!(
                    until.is_none_or(|until| until > now),
                    "a wait is for something"
                );
                self.wake = until;
                return Some(Poll::Wait(until));
            }
            other => return Some(other),
        };
        self.settle();
        let admitted = self.cache.admit(&self.text, &plan, room);
        self.check_policy(&plan, &admitted);
        if let Some(guessed) = guessed {
            for path in &admitted.paths {
                assert!(guessed.contains(&hash(0, path)), "nobody guessed {path:?}");
            }
        }
        let rows = plan.rows() as u64;
        let took = Time::from_micros(self.pace.base_us + self.pace.per_row_us * rows);
        self.flight = Some(Flight {
            plan,
            admitted,
            took,
            ready: now + took,
        });
        None
    }

    /// What the strategy promises about the rows of a step.
    fn check_policy(&self, plan: &StepPlan, admitted: &Admitted) {
        for path in &admitted.paths {
            assert!(
                path.len() < self.max_len,
                "a row at the very end could pick nothing"
            );
        }
        match self.task {
            Task::Grow { policy, .. } => {
                let held = self.cache.rows() + plan.rows.len();
                assert!(held <= usize::from(policy.nodes), "{held} rows held");
            }
            Task::Commit(policy) => {
                assert!(plan.rows.len() <= usize::from(policy.rows));
                assert_eq!(self.cache.rows(), 0, "a target keeps no rows between steps");
            }
            Task::Advise(policy, advice) => {
                let scratch = usize::from(policy.rows) + usize::from(advice.ahead);
                let held = self.cache.rows() + plan.rows.len();
                assert!(held <= scratch + 1, "{held} rows held");
            }
        }
    }

    /// The step in flight ends.
    pub(crate) fn finish(&mut self, now: Time, guessed: &mut Guessed) {
        let flight = self.flight.take().expect("a step is in flight");
        let Flight {
            plan,
            admitted,
            took,
            ..
        } = flight;
        self.cache.compute(&plan, &admitted);
        self.cost.observe(plan.rows(), took);
        self.may_step = true;
        self.may_report = true;
        self.looked = false;
        let (speaker, own) = (self.speaker, &mut self.own);
        match &mut self.agent {
            Agent::Draft(session, calibration) => {
                session.handle_step(&plan, calibration, |at, history, branch| {
                    let path = path_of(&admitted, &plan, at, history);
                    let found = speaker.guesses(path, branch);
                    for guess in &found {
                        let guess = hash(0, &[path, &[guess.token]].concat());
                        guessed.insert(guess);
                        own.insert(guess);
                    }
                    found
                });
            }
            Agent::Verify(session) => {
                let mut asked = BTreeSet::new();
                session.handle_step(now, &plan, took, |at, history| -> Result<_, NotFinite> {
                    let path = path_of(&admitted, &plan, at, history);
                    assert!(
                        asked.insert(history.position()),
                        "each place is picked once"
                    );
                    let picked = speaker.pick(path);
                    guessed.insert(hash(0, &[path, &[picked.token]].concat()));
                    Ok(picked)
                });
                self.text = session.text().to_vec();
            }
        }
    }

    /// A draft tells of its own guesses, and of other nodes only to name what these continue.
    fn check_no_echo(&mut self, report: &DraftReport) {
        let nodes = &report.nodes;
        for (at, (&parent, &token)) in nodes.parents.iter().zip(&nodes.tokens).enumerate() {
            let above = if parent == ROOT {
                &self.text[..report.base_len as usize]
            } else {
                &self.told[&parent]
            };
            let path = [above, &[token]].concat();
            let id = nodes.first_id + at as LinkId;
            let own = self.own.contains(&hash(0, &path));
            assert!(own || nodes.parents.contains(&id), "{path:?} was told back");
            self.told.insert(id, path);
        }
    }

    /// The newest report, if there is one.
    pub(crate) fn report(&mut self) {
        self.may_report = false;
        let activity = Activity::default();
        let report = match &mut self.agent {
            Agent::Draft(session, _) => session.poll_report(activity).map(Report::Draft),
            Agent::Verify(session) => session.poll_report(activity).map(Report::Verify),
        };
        if let Some(Report::Draft(report)) = &report {
            self.check_no_echo(report);
        }
        if let Some(report) = report {
            self.outbox.push_back(report);
            // A draft's report is limited in size; there may be more.
            self.may_report = true;
        }
    }
}

/// The text a row ends, after checking that the session means the same tokens.
fn path_of<'a>(
    admitted: &'a Admitted,
    plan: &StepPlan,
    at: RowAt,
    history: History<'_>,
) -> &'a [u32] {
    if at == RowAt::Tail {
        assert!(!plan.append.is_empty(), "the tail was not computed");
    }
    let path = admitted.path(at);
    assert_eq!(
        path,
        [history.text, history.path].concat(),
        "penalties are those of the tokens before"
    );
    assert_eq!(
        path.len(),
        history.position() as usize,
        "the noise is that of the token's position"
    );
    path
}

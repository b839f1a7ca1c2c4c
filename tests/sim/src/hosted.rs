//! One session on one worker: a real state machine, a stupid cache, and checks of everything it says.

use std::collections::{BTreeMap, BTreeSet};

use speculation::Time;
use speculation::calibration::Calibration;
use speculation::cost::CostModel;
use speculation::draft::DraftSession;
use speculation::limits::MAX_COMMIT;
use speculation::link::LinkError;
use speculation::message::{
    Activity, DraftReport, LinkId, ROOT, ReplicaUpdate, SessionSpec, Task, VerifyReport,
};
use speculation::relay::Role;
use speculation::replica::{History, Poll, RowAt, StepPlan, TailLogits};
use speculation::verify::{NotFinite, VerifySession};

use crate::cache::{Admitted, Cache};
use crate::reference::{Speaker, VOCAB, hash, score};

/// What a session says.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// The open call was answered; only the cluster of one session sends it this way.
    #[cfg(test)]
    Opened,
    Draft(DraftReport),
    Verify(VerifyReport),
}

#[derive(Debug)]
pub(crate) enum Agent {
    Draft(Box<DraftSession>, Box<Calibration>),
    Verify(Box<VerifySession>),
}

/// A step under way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) plan: StepPlan,
    admitted: Admitted,
}

/// The texts that somebody guessed, as hashes: a row for any other text is made up.
pub(crate) type Guessed = BTreeSet<u64>;

/// A session as one worker holds it.
#[derive(Debug)]
pub(crate) struct Hosted {
    pub(crate) agent: Agent,
    /// The text this session has been told or has decided.
    pub(crate) text: Vec<u32>,
    pub(crate) cache: Cache,
    pub(crate) flight: Option<Flight>,
    pub(crate) task: Task,
    speaker: Speaker,
    pub(crate) max_len: usize,
    /// What this draft guessed itself.
    own: Guessed,
    /// The whole text of every node it told of.
    told: BTreeMap<LinkId, Vec<u32>>,
}

impl Hosted {
    /// Opens the session over a cache that may hold the beginning of its text already.
    pub(crate) fn open(
        role: Role,
        spec: &SessionSpec,
        now: Time,
        speaker: Speaker,
        cache: Cache,
    ) -> Self {
        let cached = cache.len() as u32;
        let agent = match role {
            Role::Draft => Agent::Draft(
                Box::new(DraftSession::new(spec, VOCAB, cached).expect("a draft's task")),
                Box::default(),
            ),
            Role::Qualifier | Role::Target => Agent::Verify(Box::new(
                VerifySession::new(now, spec, VOCAB, cached).expect("a verifier's task"),
            )),
        };
        Hosted {
            agent,
            text: spec.text.clone(),
            cache,
            flight: None,
            task: spec.task,
            speaker,
            max_len: spec.stopping.max_len as usize,
            own: Guessed::new(),
            told: BTreeMap::new(),
        }
    }

    /// The tokens that the session says its cache holds, once pending operations are done.
    pub(crate) fn cached_text(&self) -> &[u32] {
        match &self.agent {
            Agent::Draft(session, _) => session.cached_text(),
            Agent::Verify(session) => session.cached_text(),
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

    /// Whether an update leaves nothing of the step in flight that would be of use.
    pub(crate) fn is_obsolete(&self, update: &ReplicaUpdate) -> bool {
        let Some(flight) = &self.flight else {
            return false;
        };
        let session = match &self.agent {
            Agent::Draft(session, _) => session,
            Agent::Verify(session) => return session.obsoletes(&flight.plan, update),
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
        obsolete
    }

    /// Hands an update to the session.
    pub(crate) fn take(&mut self, now: Time, update: &ReplicaUpdate) -> Result<(), LinkError> {
        assert!(
            self.flight.is_none(),
            "a session is not told in the middle of a step"
        );
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

    /// Asks the session for work and starts it, in a step with `room` rows left. Gives what it said if that is not a
    /// step.
    pub(crate) fn start(
        &mut self,
        now: Time,
        cost: &CostModel,
        room: usize,
        guessed: Option<&Guessed>,
    ) -> Option<Poll> {
        self.settle();
        let poll = match &mut self.agent {
            Agent::Draft(session, _) => session.poll_step(cost, room),
            Agent::Verify(session) => session.poll_step(now, cost, room),
        };
        let plan = match poll {
            Poll::Step(plan) => plan,
            Poll::Wait(until) => {
                assert!(
                    until.is_none_or(|until| until > now),
                    "a wait is for something"
                );
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
        self.flight = Some(Flight { plan, admitted });
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

    /// The step in flight ends after `took`.
    pub(crate) fn finish(&mut self, now: Time, took: Time, guessed: &mut Guessed) {
        let flight = self.flight.take().expect("a step is in flight");
        let Flight { plan, admitted } = flight;
        self.cache.compute(&plan, &admitted);
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
                let scoring = session.scoring();
                if plan.tail == TailLogits::All {
                    let first = admitted.first;
                    session.handle_scored(&plan, |at, token| {
                        let RowAt::Appended(row) = at else {
                            panic!("only appended rows are scored this way");
                        };
                        let known = [&admitted.text[..=first + row], &[token]].concat();
                        let top = scoring.prompt.map_or(0, |prompt| prompt.top);
                        Ok(score(speaker.language, &known, top))
                    });
                    return;
                }
                let mut asked = BTreeSet::new();
                session.handle_step(now, &plan, took, |at, history| -> Result<_, NotFinite> {
                    let path = path_of(&admitted, &plan, at, history);
                    assert!(
                        asked.insert(history.position()),
                        "each place is picked once"
                    );
                    let mut picked = speaker.pick(path);
                    let known = [path, &[picked.token]].concat();
                    guessed.insert(hash(0, &known));
                    picked.score = (scoring.picks).map(|top| score(speaker.language, &known, top));
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
    pub(crate) fn report(&mut self, activity: Activity) -> Option<Report> {
        let report = match &mut self.agent {
            Agent::Draft(session, _) => session.poll_report(activity).map(Report::Draft),
            Agent::Verify(session) => session.poll_report(activity).map(Report::Verify),
        };
        if let Some(Report::Draft(report)) = &report {
            self.check_no_echo(report);
        }
        report
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

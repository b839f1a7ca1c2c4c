//! What the tests of sessions share: a model that answers by a hash, a worker that checks what it is asked, and a
//! strategy that only these tests have.

use std::collections::BTreeSet;
use std::sync::Arc;

use decode::{Answer, Ask, CacheOp, Guess, NodeId, Pick, Score, StepPlan};
use speculation::Time;
use speculation::allocation::{Room, allocate};
use speculation::bypass::Plan;
use speculation::duty::{Duties, Duty, Role, Source};
use speculation::learned::Learned;
use speculation::message::{
    Activity, Outlook, ReplicaUpdate, Report, Scoring, SessionId, SessionSpec, Shard, Stopping,
    Term,
};
use speculation::replica::Poll;
use speculation::session::{Capacity, Session};
use speculation::strategy::{
    Entry, Growth, Knob, NextStep, Range, Registry, Round, Settings, Shape, Strategy, Verification,
};
use speculation::wait::{Start, Waits};

pub(crate) const VOCAB: u32 = 5;

pub(crate) const MS: Time = Time::from_millis(1);

/// More rows than any of these tests fills.
pub(crate) const AMPLE: Capacity = Capacity {
    vocab: VOCAB,
    rows: 1000,
    source: Source::Draft,
};

fn hash(tokens: &[u32]) -> u64 {
    tokens.iter().fold(7, |hash, &token| {
        (hash ^ u64::from(token))
            .wrapping_mul(0x0100_0000_01b3)
            .rotate_left(23)
    })
}

/// The token that the model picks behind `past`.
pub(crate) fn next(past: &[u32]) -> u32 {
    (hash(past) >> 9) as u32 % VOCAB
}

pub(crate) fn score(past: &[u32], token: u32, top: u8) -> Score {
    let hash = hash(past) ^ u64::from(token);
    Score {
        logprob: -((hash % 512) as f32) / 16.0,
        rank: 1 + (hash % 5) as u32,
        top: (0..u32::from(top))
            .map(|id| (id, -(id as f32) - past.len() as f32))
            .collect(),
    }
}

/// What the model answers behind `past`.
fn answer(past: &[u32], ask: Ask) -> Answer {
    match ask {
        Ask::Nothing => unreachable!("nobody answers nothing"),
        Ask::Judge { .. } | Ask::Draw(_) => unreachable!("these sessions have the rule `exact`"),
        Ask::Pick { score: wanted } => {
            let token = next(past);
            Answer::Pick(Pick {
                token,
                margin: 1.5,
                score: wanted.map(|(_, top)| Box::new(score(past, token, top))),
            })
        }
        Ask::Guesses(most) => {
            let best = next(past);
            let guesses = (0..VOCAB).take(usize::from(most)).map(|rank| Guess {
                token: (best + rank) % VOCAB,
                q: 0.5 / (1 + rank) as f32,
                margin: 2.0 - 3.0 * rank as f32,
                weight: 0.25 / (1 + rank) as f32,
            });
            Answer::Guesses(guesses.collect())
        }
        Ask::Score { token, top } => Answer::Score(Box::new(score(past, token, top))),
    }
}

/// A session of the test strategy that commits; tests change what they are about.
pub(crate) fn spec(text: &[u32]) -> SessionSpec {
    SessionSpec {
        session: SessionId(1),
        term: Term(1),
        text: text.to_vec(),
        stopping: Stopping {
            prompt_len: text.len() as u32,
            max_len: 10_000,
            ..Stopping::default()
        },
        allowed_len: 10_000,
        scoring: Scoring::default(),
        strategy: Settings::new(EAGER.name),
        duties: Duties::of(Duty::Commit),
        shard: Shard::default(),
        is_shared: false,
        history: None,
        has_journal: false,
    }
}

/// Every strategy, and those of these tests.
pub(crate) fn registry() -> Registry {
    Registry::default().with(&EAGER).with(&LONELY)
}

/// A strategy in which nobody waits: verifiers submit the best nodes there are, drafts rest once they have made as many
/// steps as the target accepts guesses.
pub(crate) static EAGER: Entry = Entry {
    name: "eager",
    about: "Known to these tests only",
    source: "",
    knobs: &[Knob {
        name: "most",
        range: Range::Whole(1, 64),
        default: 6.0,
        help: "nodes verified per target step, at most",
        sweep: &[],
    }],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Eager {
            most: knobs.whole("most"),
        })
    },
};

#[derive(Debug)]
struct Eager {
    most: u16,
}

impl Strategy for Eager {
    fn duties(&self, role: Role) -> Duties {
        Duties::of(match role {
            Role::Draft => Duty::Propose,
            Role::Qualifier => Duty::Advise,
            Role::Target => Duty::Commit,
        })
    }

    fn growth(&self) -> Growth {
        Growth {
            width: 1,
            branch: 1,
            depth: 40,
            nodes: 40,
            ..Growth::default()
        }
    }

    fn pauses(&self, round: &Round) -> bool {
        (round.outlook.accepted).is_some_and(|accepted| f32::from(round.steps) > accepted)
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: self.most,
            ..Verification::default()
        }
    }

    fn advice(&self) -> speculation::strategy::Advice {
        speculation::strategy::Advice {
            ahead: 8,
            bare_share: 1.0,
            least: 0.0,
        }
    }
}

/// A strategy whose target expects nothing of anybody's guesses, and would otherwise wait for them.
pub(crate) static LONELY: Entry = Entry {
    name: "lonely",
    about: "Known to these tests only",
    source: "",
    knobs: &[],
    is_sensible: |_| true,
    build: |_| Arc::new(Lonely),
};

#[derive(Debug)]
struct Lonely;

impl Strategy for Lonely {
    fn duties(&self, role: Role) -> Duties {
        Duties::of(match role {
            Role::Draft | Role::Qualifier => Duty::Propose,
            Role::Target => Duty::Commit,
        })
    }

    fn growth(&self) -> Growth {
        Growth {
            width: 1,
            branch: 1,
            depth: 2,
            nodes: 2,
            ..Growth::default()
        }
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: 8,
            ..Verification::default()
        }
    }

    fn shape(&self, _duty: Duty, _outlook: &Outlook) -> Shape {
        Shape::Nothing
    }

    fn starts(&self, next: &NextStep, _waits: &mut Waits<'_>) -> Start {
        Start::WaitUntil(next.now + MS)
    }
}

/// What a session that has its worker to itself does next.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    Step(StepPlan),
    Wait(Option<Time>),
    Parked,
    Done,
}

/// A worker with one session. It knows of its cache only how much of the text and which rows it holds.
pub(crate) struct Worker {
    pub(crate) session: Session,
    pub(crate) learned: Learned,
    cached: usize,
    rows: BTreeSet<NodeId>,
}

impl Worker {
    pub(crate) fn new(spec: &SessionSpec, capacity: Capacity) -> Worker {
        Worker::with(spec, capacity, Learned::new(Time::ZERO, Plan::default()))
    }

    /// The next session of a worker that has learned something from others.
    pub(crate) fn with(spec: &SessionSpec, capacity: Capacity, learned: Learned) -> Worker {
        Worker {
            session: Session::new(Time::ZERO, spec, &registry(), capacity, 0).unwrap(),
            learned,
            cached: 0,
            rows: BTreeSet::new(),
        }
    }

    /// What the session wants; its cache is brought up to date. It has the worker to itself, so that it gets all rows that
    /// pay.
    pub(crate) fn poll(&mut self, now: Time, room: usize) -> Next {
        let next = match self.session.poll_step(now, room, &mut self.learned) {
            Poll::Work(work) => {
                let room = Room {
                    rows: room,
                    prompt_stretch: 1.0,
                };
                let share = allocate(&self.learned.cost, room, &[&work])[0];
                Next::Step(self.session.plan_step(share))
            }
            Poll::Wait(until, _) => Next::Wait(until),
            Poll::Parked => Next::Parked,
            Poll::Done => Next::Done,
        };
        for op in self.session.poll_cache_ops() {
            match op {
                CacheOp::Keep(chain) => {
                    assert!(chain.iter().all(|id| self.rows.remove(id)), "{chain:?}");
                    self.cached += chain.len();
                }
                CacheOp::Drop(rows) => {
                    assert!(rows.iter().all(|id| self.rows.remove(id)), "{rows:?}");
                }
                CacheOp::Shorten(_) => panic!("nothing is computed twice"),
            }
        }
        if let Next::Step(plan) = &next {
            assert!((1..=room).contains(&plan.len()), "{plan:?}");
            self.check(plan);
        }
        next
    }

    /// The plan of a session that has something to compute.
    pub(crate) fn plan(&mut self, now: Time) -> StepPlan {
        match self.poll(now, 256) {
            Next::Step(plan) => plan,
            other => panic!("{other:?} instead of a step"),
        }
    }

    /// Every row continues what is in the cache or comes before it in the step, and none is computed twice.
    fn check(&self, plan: &StepPlan) {
        let text = self.session.text();
        assert_eq!(text[self.cached..][..plan.append.len()], plan.append);
        let mut rows = self.rows.clone();
        for row in &plan.rows {
            assert!(row.parent.is_none_or(|parent| rows.contains(&parent)));
            assert!(rows.insert(row.node), "{:?} is computed twice", row.node);
            let is_asked = row.ask != Ask::Nothing;
            assert_eq!(row.path.last(), is_asked.then_some(&row.token));
        }
    }

    /// The model's answers to a plan that was polled last.
    pub(crate) fn answers(&self, plan: &StepPlan) -> Vec<Answer> {
        self.answers_by(plan, |text, path, ask| answer(&[text, path].concat(), ask))
    }

    /// The answers of another model, which is given the text and the path before each token that it is asked about.
    pub(crate) fn answers_by(
        &self,
        plan: &StepPlan,
        mut answer: impl FnMut(&[u32], &[u32], Ask) -> Answer,
    ) -> Vec<Answer> {
        let text = self.session.text();
        let end = self.cached + plan.append.len();
        let first = end - plan.asks.len();
        let mut answers = Vec::new();
        for (at, &ask) in plan.asks.iter().enumerate() {
            answers.push(answer(&text[..=first + at], &[], ask));
        }
        for row in plan.rows.iter().filter(|row| row.ask != Ask::Nothing) {
            answers.push(answer(text, &row.path, row.ask));
        }
        answers
    }

    /// The step was computed.
    pub(crate) fn finish(&mut self, now: Time, plan: &StepPlan, answers: &[Answer]) {
        let ends = (answers.iter()).filter(|answer| matches!(answer, Answer::End(_)));
        assert_eq!(answers.len() - ends.count(), plan.asked().count());
        self.cached += plan.append.len();
        self.rows.extend(plan.rows.iter().map(|row| row.node));
        (self.session).handle_step(now, MS, plan, answers, &mut self.learned);
        self.learned.cost.observe(plan.len(), MS);
    }

    /// One step, if the session wants any.
    pub(crate) fn step(&mut self, now: Time, room: usize) -> Next {
        let next = self.poll(now, room);
        if let Next::Step(plan) = &next {
            let answers = self.answers(plan);
            self.finish(now, plan, &answers);
        }
        next
    }

    pub(crate) fn update(&mut self, now: Time, update: &ReplicaUpdate) {
        (self.session)
            .handle_update(now, update, &mut self.learned)
            .unwrap();
    }

    pub(crate) fn report(&mut self) -> Option<Report> {
        self.session.poll_report(Activity::default())
    }
}

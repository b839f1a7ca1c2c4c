//! A worker: the real [`Host`] around a backend that draws its answers. What is simulated is how long a step lasts.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::ops::ControlFlow;

use control::host::{self, Batch, Host, Limits, Outcome, Usefulness};
use control::session::{Parting, Refused, RefusedKind};
use control::table;
use decode::SamplerState;
use decode::sampling::SamplingParams;
use engine::synthetic::{Member, Spec, Synthetic};
use engine::{Backend, EngineOptions, PAGE, SeqId, SeqStep, StepEnd};
use speculation::Time;
use speculation::allocation::Room;
use speculation::bypass::Plan;
use speculation::duty::{Role, Source};
use speculation::message::{
    Addressed, CoordinatorFrame, FromWorker, SessionId, SessionSpec, StreamName, Term,
};
use speculation::session::Capacity;
use speculation::strategy::Registry;

use crate::clock::{Clock, Event, ToCoordinator, ToWorker};
use crate::experiment::{Answers, Cluster, LabError, StepTime};
use crate::outcome::{self, Noted};

/// Rows of one step, all sessions together, as the product's workers have it.
const MAX_ROWS: usize = 256;
/// How many times as long as without prompts a step may last for their sake, likewise.
const PROMPT_STRETCH: f64 = 2.0;
/// The one coordinator and its one stream.
const STREAM: StreamName = StreamName {
    coordinator: 1,
    incarnation: 1,
};
/// What is to be told to the coordinator.
#[derive(Debug, Default)]
struct Slots(BTreeMap<SessionId, (Term, FromWorker)>);

impl table::Slots for Slots {
    fn discard(&mut self, session: SessionId) {
        self.0.remove(&session);
    }

    fn is_vacant(&self, session: SessionId) -> bool {
        !self.0.contains_key(&session)
    }

    fn put(&mut self, session: SessionId, term: Term, message: FromWorker) {
        self.0.insert(session, (term, message));
    }
}

/// What the worker keeps for a session.
#[derive(Debug)]
struct Own {
    seq: SeqId,
    sampler: SamplerState,
}

/// A step that is being computed.
#[derive(Debug)]
struct Step {
    number: u64,
    batch: Batch,
    useful: Usefulness,
    begun: Time,
    took: Time,
}

/// Sizes of a worker.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Sessions at one time.
    pub(crate) sessions: usize,
    /// Positions of the longest text.
    pub(crate) positions: usize,
}

impl Sizes {
    /// Pages of the cache: enough for all sessions.
    pub(crate) fn pages(self) -> usize {
        self.positions.div_ceil(PAGE) * self.sessions
    }
}

/// See the module documentation.
pub(crate) struct Worker {
    pub(crate) at: usize,
    pub(crate) role: Role,
    host: Host<Slots, Own>,
    backend: Synthetic,
    time: StepTime,
    answers: Answers,
    host_per_row: Time,
    arrived: VecDeque<ToWorker>,
    step: Option<Step>,
    steps: u64,
    tick: Option<Time>,
    /// Since when it has nothing to compute.
    idle: Option<Time>,
    /// Whether it ever had a session.
    pub(crate) was_used: bool,
    /// The time that it was in steps.
    pub(crate) busy: Time,
    /// The time whose steps are noted down.
    watch: Option<(Time, Time)>,
    noted: Vec<outcome::Step>,
}

impl Worker {
    pub(crate) fn new(
        at: usize,
        role: Role,
        cluster: &Cluster,
        sizes: Sizes,
        (registry, watch): (&Registry, Option<(Time, Time)>),
    ) -> Result<Self, LabError> {
        // As the product's workers of these roles.
        let (member, rows) = match role {
            Role::Target => (Member::Target, 256),
            Role::Qualifier => (Member::Qualifier, 256),
            Role::Draft => (Member::Draft, 768),
        };
        let spec = Spec {
            profile: cluster.profile.clone(),
            member,
            vocab: cluster.vocabulary.size,
            tokens: cluster.vocabulary.tokens.clone(),
            max_positions: sizes.positions,
            eos: cluster.vocabulary.eos.clone(),
        };
        let options = EngineOptions {
            vocab: Some(cluster.vocabulary.size),
            kv_pages: sizes.pages(),
            max_sequences: sizes.sessions,
            scratch_rows: rows,
            max_rows: MAX_ROWS,
            ..EngineOptions::default()
        };
        let backend = Synthetic::new(spec, &options)?;
        let time = cluster.times.of(role).clone();
        let limits = Limits {
            capacity: Capacity {
                vocab: cluster.vocabulary.size,
                rows,
                source: Source::Draft,
            },
            room: Room {
                rows: MAX_ROWS,
                prompt_stretch: PROMPT_STRETCH,
            },
            cache: host::Cache {
                pages: sizes.pages() as u32,
                page: PAGE as u32,
            },
            bypass: Plan::default(),
            history: 0,
        };
        let mut host = Host::new(limits, registry.clone(), time.of(1));
        host.handle_stream(0, STREAM, Slots::default());
        Ok(Worker {
            at,
            role,
            host,
            backend,
            time,
            answers: cluster.answers,
            host_per_row: cluster.host_per_row,
            arrived: VecDeque::new(),
            step: None,
            steps: 0,
            tick: None,
            idle: Some(Time::ZERO),
            was_used: false,
            busy: Time::ZERO,
            watch,
            noted: Vec::new(),
        })
    }

    /// Something arrives. It is handled between two steps; a step that it makes useless is given up at once.
    pub(crate) fn receive(&mut self, clock: &mut Clock, what: ToWorker) -> Result<(), LabError> {
        if let (Some(step), ToWorker::Frame(frame)) = (&mut self.step, &what) {
            self.host.judge(&step.batch, frame, &mut step.useful);
            if step.useful.is_gone()
                && let Some(step) = self.step.take()
            {
                let took = clock.now - step.begun;
                (self.host).handle_ended(clock.now, &step.batch, took, Outcome::Abandoned);
                self.note(clock.now, &step, Outcome::Abandoned);
                self.report(clock);
            }
        }
        self.arrived.push_back(what);
        self.run(clock)
    }

    /// Goes on where it stands.
    pub(crate) fn run(&mut self, clock: &mut Clock) -> Result<(), LabError> {
        if self.step.is_some() {
            return Ok(());
        }
        if let Some(since) = self.idle.take() {
            let _ = self.host.handle_idle(clock.now - since);
        }
        while let Some(what) = self.arrived.pop_front() {
            match what {
                ToWorker::Open(spec, params) => {
                    let why = self.open(clock.now, &spec, params);
                    let answer = ToCoordinator::Answered(spec.session, spec.term, why);
                    clock.send_up(self.at, answer);
                }
                ToWorker::Frame(frame) => self.handle_frame(clock.now, frame),
            }
        }
        while let Some(released) = self.host.poll_preempted(clock.now) {
            self.backend.release(released.own.seq);
        }
        let mut batch = self.host.poll_batch(clock.now);
        for (id, ops) in mem::take(&mut batch.cache_ops) {
            let Some(seq) = self.host.own(id).map(|own| own.seq) else {
                continue;
            };
            for op in &ops {
                (self.backend.apply(seq, op)).map_err(|error| broken("the cache", &error))?;
            }
        }
        if batch.parts.is_empty() {
            self.report(clock);
            self.idle = Some(clock.now);
            if let Some(at) = batch.wake
                && (self.tick).is_none_or(|tick| tick <= clock.now || tick > at)
            {
                self.tick = Some(at);
                clock.at(at, Event::Tick(self.at));
            }
            return Ok(());
        }
        self.steps += 1;
        let took = self.time.of(batch.rows());
        if self.answers == Answers::AtBeginning {
            self.hand_out(clock.now, &batch, took)?;
        }
        let lasts = took + self.host_per_row * batch.rows() as u32;
        self.step = Some(Step {
            number: self.steps,
            useful: Usefulness::of(&batch),
            batch,
            begun: clock.now,
            took,
        });
        clock.at(clock.now + lasts, Event::StepEnds(self.at, self.steps));
        Ok(())
    }

    /// A step is over, unless it was given up.
    pub(crate) fn step_ends(&mut self, clock: &mut Clock, number: u64) -> Result<(), LabError> {
        let Some(step) = self.step.take_if(|step| step.number == number) else {
            return Ok(());
        };
        let Step { batch, took, .. } = &step;
        if self.answers == Answers::AtEnd {
            self.hand_out(clock.now, batch, *took)?;
        }
        (self.host).handle_ended(clock.now, batch, *took, Outcome::Done);
        self.note(clock.now, &step, Outcome::Done);
        self.report(clock);
        self.run(clock)
    }

    /// Gives sessions the answers of a step.
    fn hand_out(&mut self, now: Time, batch: &Batch, took: Time) -> Result<(), LabError> {
        let answers = self.compute(batch)?;
        (self.host).handle_answers(now, batch, &answers, took, took);
        Ok(())
    }

    fn compute(&mut self, batch: &Batch) -> Result<Vec<Vec<decode::Answer>>, LabError> {
        const HELD: &str = "a session is held at least until the step it has a part in has ended";
        // Taken out for the time, because the sessions are read while the samplers are written.
        let mut samplers: Vec<SamplerState> = (batch.parts.iter())
            .map(|part| mem::take(&mut self.host.get_mut(part.session).expect(HELD).0.sampler))
            .collect();
        let mut entries: Vec<SeqStep<'_>> = (batch.parts.iter().zip(&mut samplers))
            .map(|(part, sampler)| {
                let session = self.host.session(part.session).expect(HELD);
                SeqStep {
                    seq: self.host.own(part.session).expect(HELD).seq,
                    plan: &part.plan,
                    text: session.text(),
                    prompt_len: session.prompt_len(),
                    sampler,
                }
            })
            .collect();
        let end = (self.backend).step(&mut entries, &mut |_| ControlFlow::Continue(()));
        for (part, state) in batch.parts.iter().zip(samplers) {
            self.host.get_mut(part.session).expect(HELD).0.sampler = state;
        }
        match end {
            Ok(StepEnd::Done(answers)) => Ok(answers),
            Ok(StepEnd::Interrupted) => Err(LabError::Broken("a step was interrupted".into())),
            Err(error) => Err(broken("a step", &error)),
        }
    }

    /// Carries out an open call; why not, if it cannot.
    fn open(&mut self, now: Time, spec: &SessionSpec, params: SamplingParams) -> Option<Parting> {
        let refused = |kind, message: String| Some(Parting::Refused(Refused { kind, message }));
        let opening = match self.host.handle_open(now, STREAM, spec) {
            Ok(opening) => opening,
            Err(why) => return refused(RefusedKind::Full, format!("{why:?}")),
        };
        let seq = match self.backend.open(spec.stopping.max_len as usize) {
            Ok(seq) => seq,
            Err(error) => return refused(RefusedKind::Full, error.to_string()),
        };
        let own = Own {
            seq,
            sampler: params.into(),
        };
        self.was_used = true;
        match self.host.hold(now, opening, spec, 0, own) {
            Ok(()) => None,
            Err((error, own)) => {
                self.backend.release(own.seq);
                refused(RefusedKind::Other, error.to_string())
            }
        }
    }

    fn handle_frame(&mut self, now: Time, frame: CoordinatorFrame) {
        for released in self.host.handle_frame(now, 0, frame) {
            self.backend.release(released.own.seq);
        }
    }

    /// Tells the coordinator what is new.
    fn report(&mut self, clock: &mut Clock) {
        self.host.report(clock.now);
        let Some(slots) = self.host.slots_of(0).filter(|slots| !slots.0.is_empty()) else {
            return;
        };
        let reports = mem::take(&mut slots.0).into_iter();
        let reports = reports.map(|(session, (term, message))| Addressed {
            session,
            term,
            message,
        });
        clock.send_up(self.at, ToCoordinator::Reports(reports.collect()));
    }

    fn note(&mut self, now: Time, step: &Step, outcome: Outcome) {
        self.busy += now - step.begun;
        let is_noted = |(from, until): (Time, Time)| now >= from && step.begun < until;
        if self.watch.is_some_and(is_noted) {
            self.noted.push(outcome::Step {
                begun: step.begun,
                ended: now,
                rows: step.batch.rows(),
                is_abandoned: outcome == Outcome::Abandoned,
            });
        }
    }

    /// What it did in the time that was noted.
    pub(crate) fn into_noted(self) -> Noted {
        Noted {
            role: self.role,
            steps: self.noted,
        }
    }

    /// Sessions that it holds.
    pub(crate) fn sessions(&self) -> usize {
        self.host.len()
    }
}

fn broken(what: &str, error: &dyn std::fmt::Display) -> LabError {
    LabError::Broken(format!("{what} was refused: {error}"))
}

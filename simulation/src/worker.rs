//! A worker process: one model thread around the real [`Host`], which decides everything that is not arithmetic. What is
//! simulated is the loop of the thread, its clock, its streams, its cache and its model.

mod step;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use control::host::{Before, Host, Limits, Released, Why};
use control::ownership::LEASE;
use control::table::{self, Refusal};
use speculation::Time;
use speculation::allocation::Room;
use speculation::bypass::Mode;
use speculation::duty::{Role, Source};
use speculation::message::{
    Activity, Addressed, CoordinatorFrame, FromWorker, ReplicaUpdate, SessionId, SessionSpec,
    StreamName, Term,
};
use speculation::session::Capacity;
use speculation::strategy::Registry;

use crate::cache::Cache;
use crate::network::{Answer, Event, Message, Network, StreamId, ToCoordinator, ToWorker, note};
use crate::reference::{Language, Model, VOCAB};
use crate::scenario::WorkerPlan;
use crate::served::Served;
use step::Step;

/// Sessions of one frame, at most; small, so that frames are often full.
const FRAME: usize = 2;

/// Tokens of completed texts that a worker keeps: so few that they often make room for others.
const HISTORY: usize = 1000;

/// Messages of older terms that are kept to be sent again.
const ECHOES: usize = 12;

/// The languages of all sessions.
pub(crate) type Languages = BTreeMap<SessionId, Language>;

/// What has arrived for the model thread.
#[derive(Clone, Debug)]
enum Arrived {
    Open {
        stream: StreamId,
        call: u64,
        spec: Box<SessionSpec>,
    },
    Stream(StreamId, u64),
    Frame(StreamId, CoordinatorFrame),
    Lost(StreamId),
    /// It cannot serve one of its sessions any more.
    GiveUp,
}

/// The slots of one stream.
#[derive(Debug, Default)]
struct Slots {
    messages: BTreeMap<SessionId, (Term, FromWorker)>,
    /// Filled since the worker last looked.
    fresh: Vec<SessionId>,
    /// The writer is about to look.
    is_writing: bool,
}

impl table::Slots for Slots {
    fn discard(&mut self, session: SessionId) {
        self.messages.remove(&session);
    }

    fn is_vacant(&self, session: SessionId) -> bool {
        !self.messages.contains_key(&session)
    }

    fn put(&mut self, session: SessionId, term: Term, message: FromWorker) {
        self.messages.insert(session, (term, message));
        self.fresh.push(session);
    }
}

/// A stream as coordinators name it.
fn stream_name(coordinator: u64, stream: StreamId) -> StreamName {
    StreamName {
        coordinator,
        incarnation: stream.0 as u64 + 1,
    }
}

fn number(stream: StreamId) -> u64 {
    stream.0 as u64
}

/// Who may say what about a session, kept a second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    coordinator: u64,
    term: Term,
    /// `None` once that was lost.
    stream: Option<StreamId>,
}

/// What the worker keeps for a session.
#[derive(Debug)]
struct Own {
    served: Served,
    owner: Owner,
    /// When it lost its stream.
    rests: Time,
    /// The target has said that it computes no guesses.
    is_unused: bool,
    /// Steps in a row that others have had although it had something to compute.
    passed_over: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) at: usize,
    pub(crate) plan: WorkerPlan,
    /// Counts its starts; what was meant for an older life does not reach it.
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    /// It stands still until then.
    pub(crate) hangs_until: Time,
    /// Steps last so many times as long, until then.
    pub(crate) lags: (u32, Time),
    /// It ends when it has no session, and is started again after so long.
    pub(crate) drains: Option<Time>,
    host: Host<Slots, Own>,
    registry: Registry,
    arrived: VecDeque<Arrived>,
    /// Streams that the thread knows of.
    streams: BTreeSet<StreamId>,
    /// Streams whose sockets are closed, which the thread may still have to learn.
    closed: BTreeSet<StreamId>,
    step: Option<Step>,
    steps: u64,
    tick: Option<Time>,
    /// Since when it has nothing to compute.
    idle: Option<Time>,
    /// What sessions were told and said, to be repeated under later terms.
    told: VecDeque<(SessionId, Term, CoordinatorFrame)>,
    said: VecDeque<Message>,
    /// How often a session was taken back with something in its cache, for coverage.
    pub(crate) takebacks: u64,
    /// How often a session was given up because the cache was full, for coverage.
    pub(crate) preemptions: u64,
}

impl Worker {
    pub(crate) fn new(at: usize, plan: WorkerPlan, registry: Registry) -> Self {
        let limits = Limits {
            capacity: Capacity {
                vocab: VOCAB,
                rows: plan.tree_rows,
                source: Source::Draft,
            },
            room: Room {
                rows: plan.max_rows,
                prompt_stretch: plan.prompt_stretch,
            },
            cache: control::host::Cache {
                pages: plan.pages,
                page: plan.page,
            },
            bypass: plan.bypass,
            history: HISTORY,
        };
        let pace = Time::from_micros(plan.pace_us);
        Worker {
            at,
            life: 0,
            is_up: true,
            hangs_until: Time::ZERO,
            lags: (1, Time::ZERO),
            drains: None,
            host: Host::new(limits, registry.clone(), pace),
            registry,
            plan,
            arrived: VecDeque::new(),
            streams: BTreeSet::new(),
            closed: BTreeSet::new(),
            step: None,
            steps: 0,
            tick: None,
            idle: None,
            told: VecDeque::new(),
            said: VecDeque::new(),
            takebacks: 0,
            preemptions: 0,
        }
    }

    /// The process is gone, with everything it had.
    pub(crate) fn crash(&mut self) {
        let fresh = Worker::new(self.at, self.plan.clone(), self.registry.clone());
        *self = Worker {
            life: self.life + 1,
            is_up: false,
            takebacks: self.takebacks,
            preemptions: self.preemptions,
            ..fresh
        };
    }

    /// Nothing of any session is left.
    pub(crate) fn check_empty(&self) {
        let at = self.at;
        let held: Vec<_> = (self.host.iter())
            .map(|(id, own)| (id, own.owner))
            .collect();
        assert!(held.is_empty(), "worker {at} still holds {held:?}");
        assert_eq!(self.host.pages(), 0, "worker {at} leaks pages");
        for slots in self.host.slots() {
            assert!(
                slots.messages.is_empty(),
                "worker {at} still has something to say"
            );
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.host.is_empty()
    }

    /// Something arrives on the process's sockets. The model thread learns of it when it has time.
    pub(crate) fn receive(
        &mut self,
        network: &mut Network,
        coordinator: u64,
        stream: StreamId,
        what: ToWorker,
        languages: &Languages,
    ) {
        match what {
            ToWorker::Connect => {
                // Before the stream is accepted: an open call may follow at once.
                (self.arrived).push_back(Arrived::Stream(stream, coordinator));
                network.send_to_coordinator(stream, ToCoordinator::Accepted);
            }
            ToWorker::Open { call, .. } if self.drains.is_some() => {
                let answer = Answer::Draining;
                network.answer(stream, ToCoordinator::Answered { call, answer });
            }
            ToWorker::Open { call, spec } => {
                (self.arrived).push_back(Arrived::Open { stream, call, spec });
            }
            ToWorker::Frame(frame) => {
                self.judge(network, &frame);
                self.arrived.push_back(Arrived::Frame(stream, frame));
            }
            ToWorker::Closed => self.close_stream(stream),
        }
        self.run(network, languages);
    }

    /// A stream is found broken at this end.
    pub(crate) fn handle_broken(
        &mut self,
        network: &mut Network,
        stream: StreamId,
        languages: &Languages,
    ) {
        if self.is_up {
            network.send_to_coordinator(stream, ToCoordinator::Closed);
            self.close_stream(stream);
            self.run(network, languages);
        }
    }

    fn close_stream(&mut self, stream: StreamId) {
        self.closed.insert(stream);
        self.arrived.push_back(Arrived::Lost(stream));
    }

    /// It cannot serve one of its sessions any more.
    pub(crate) fn give_up(&mut self, network: &mut Network, languages: &Languages) {
        self.arrived.push_back(Arrived::GiveUp);
        self.run(network, languages);
    }

    /// Goes on where it stands.
    pub(crate) fn run(&mut self, network: &mut Network, languages: &Languages) {
        if self.step.is_some() {
            return;
        }
        self.charge_idle(network.now);
        while let Some(arrived) = self.arrived.pop_front() {
            self.handle(network, arrived, languages);
        }
        while let Some(released) = self.host.poll_expired(network.now) {
            note!(
                network,
                "worker {}: the lease of {:?} ends",
                self.at,
                released.session
            );
            let owner = released.own.owner;
            assert_eq!(owner.stream, None, "a session on a stream does not expire");
            assert!(network.now >= released.own.rests + LEASE);
            self.release(released);
        }
        self.preempt(network);
        let mut batch = self.host.poll_batch(network.now);
        for (id, ops) in std::mem::take(&mut batch.cache_ops) {
            let (own, ..) = self.host.get_mut(id).expect("it has operations");
            own.served.apply(ops);
        }
        for (id, own) in self.host.iter() {
            // A session that rests does what its cache needs when it is opened anew.
            if own.owner.stream.is_some() {
                own.served.check(self.host.session(id).expect("it is held"));
            }
        }
        if batch.parts.is_empty() {
            self.report(network);
            self.idle = Some(network.now);
            if let Some(at) = batch.wake
                && self
                    .tick
                    .is_none_or(|tick| tick <= network.now || tick > at)
            {
                self.tick = Some(at);
                network.at(at, Event::Tick(self.at, self.life));
            }
        } else {
            self.start(network, batch);
        }
    }

    fn charge_idle(&mut self, now: Time) {
        if let Some(since) = self.idle.take() {
            let charged = self.host.handle_idle(now - since).count();
            assert_eq!(charged, self.host.len());
        }
    }

    fn handle(&mut self, network: &mut Network, arrived: Arrived, languages: &Languages) {
        match arrived {
            Arrived::Open { stream, call, spec } => {
                self.handle_call(network, stream, call, &spec, languages);
            }
            Arrived::Stream(stream, coordinator) => {
                self.streams.insert(stream);
                let name = stream_name(coordinator, stream);
                (self.host).handle_stream(number(stream), name, Slots::default());
            }
            Arrived::Frame(stream, frame) => self.handle_frame(network, stream, frame),
            Arrived::Lost(stream) => {
                note!(network, "worker {} lost {stream:?}", self.at);
                self.streams.remove(&stream);
                self.host.handle_stream_lost(network.now, number(stream));
                let ids: Vec<SessionId> = self.host.iter().map(|(id, _)| id).collect();
                for id in ids {
                    let (own, ..) = self.host.get_mut(id).expect("it is held");
                    if own.owner.stream == Some(stream) {
                        own.owner.stream = None;
                        own.rests = network.now;
                    }
                }
            }
            Arrived::GiveUp => {
                let ids: Vec<SessionId> = self.host.iter().map(|(id, _)| id).collect();
                if ids.is_empty() {
                    return;
                }
                let id = ids[network.dice.below(ids.len())];
                note!(network, "worker {} gives {id:?} up", self.at);
                let released = self.host.fault(network.now, id, "it was told to".into());
                self.release(released.expect("it was held"));
                self.start_writers(network);
            }
        }
    }

    fn handle_call(
        &mut self,
        network: &mut Network,
        stream: StreamId,
        call: u64,
        spec: &SessionSpec,
        languages: &Languages,
    ) {
        // Nobody may be left who waits for the answer, and that may be known or not.
        let is_forsaken = self.closed.contains(&stream);
        if is_forsaken && network.dice.percent(50) {
            return;
        }
        let answer = self.open(network.now, stream, spec, languages);
        note!(
            network,
            "worker {} opens {:?} {:?}: {answer:?}",
            self.at,
            spec.session,
            spec.term
        );
        if is_forsaken && answer == Answer::Opened && network.dice.percent(50) {
            let released = self.host.close(network.now, spec.session);
            return self.release(released.expect("it was opened"));
        }
        if answer == Answer::Opened && spec.term > Term(1) && network.dice.percent(20) {
            self.repeat(network, stream);
        }
        network.answer(stream, ToCoordinator::Answered { call, answer });
    }

    fn open(
        &mut self,
        now: Time,
        stream: StreamId,
        spec: &SessionSpec,
        languages: &Languages,
    ) -> Answer {
        // The call names the stream it belongs to.
        let coordinator = spec.session.0 >> 32;
        let older = (self.host.own(spec.session)).is_none_or(|own| own.owner.term < spec.term);
        let name = stream_name(coordinator, stream);
        let mut opening = match self.host.handle_open(now, name, spec) {
            Err(Refusal::NoStream) => {
                assert!(!self.streams.contains(&stream), "a stream is forgotten");
                return Answer::NoStream;
            }
            Err(Refusal::Duplicate) => {
                assert!(!older, "who takes a session back");
                return Answer::Duplicate;
            }
            Err(Refusal::Full) => {
                let more = (spec.text.len() as u32).div_ceil(self.plan.page);
                assert!(self.pages() + more > self.plan.pages, "there is room");
                return Answer::Full;
            }
            Ok(opening) => opening,
        };
        assert!(
            older && self.streams.contains(&stream),
            "who takes a session back"
        );
        let before = opening.before.take();
        let cache = match before.and_then(|before| self.take_back(before)) {
            Some(held) => held,
            None if self.host.len() >= self.plan.max_sessions => return Answer::Full,
            None => Cache::default(),
        };
        let language = languages[&spec.session];
        let model = match self.plan.role {
            Role::Target => Model::target(language),
            Role::Draft | Role::Qualifier => Model {
                language,
                salt: self.plan.salt,
                agreement: self.plan.agreement,
                is_target: false,
            },
        };
        let capacity = Capacity {
            vocab: VOCAB,
            rows: self.plan.tree_rows,
            source: Source::Draft,
        };
        let cached = cache.text().len() as u32;
        let served = Served::new(
            spec,
            &self.registry,
            capacity,
            model,
            cache,
            self.plan.skips,
        );
        let own = Own {
            served,
            owner: Owner {
                coordinator,
                term: spec.term,
                stream: Some(stream),
            },
            rests: now,
            is_unused: false,
            passed_over: 0,
        };
        (self.host.hold(now, opening, spec, cached, own))
            .expect("a strategy of the registry, and one duty");
        assert_eq!(self.host.term(spec.session), Some(spec.term));
        Answer::Opened
    }

    /// Pages that the texts of all sessions need.
    fn pages(&self) -> u32 {
        let sessions = self.host.iter().filter_map(|(id, _)| self.host.session(id));
        sessions
            .map(|session| (session.text().len() as u32).div_ceil(self.plan.page))
            .sum()
    }

    /// Gives up sessions until the texts of the others fit.
    fn preempt(&mut self, network: &mut Network) {
        loop {
            let needed = self.pages();
            let Some(released) = self.host.poll_preempted(network.now) else {
                assert!(needed <= self.plan.pages, "the cache overflows");
                return;
            };
            note!(
                network,
                "worker {} preempts {:?}",
                self.at,
                released.session
            );
            assert!(needed > self.plan.pages, "there was room");
            let rests = |own: &Own| own.owner.stream.is_none();
            assert!(
                rests(&released.own) || !self.host.iter().any(|(_, own)| rests(own)),
                "a session without a stream goes first"
            );
            self.preemptions += 1;
            self.release(released);
        }
    }

    /// Ends a session that is opened anew; gives what its cache holds of the text.
    fn take_back(&mut self, before: Before<Own>) -> Option<Cache> {
        let Before {
            mut own,
            cache_ops,
            reusable,
            totals,
        } = before;
        check_totals(totals);
        own.served.apply(cache_ops);
        let same = reusable?;
        let mut cache = own.served.cache;
        cache.truncate(same as usize);
        self.takebacks += u64::from(same > 0);
        Some(cache)
    }

    fn release(&mut self, released: Released<Own>) {
        check_totals(released.totals);
    }

    fn handle_frame(&mut self, network: &mut Network, stream: StreamId, frame: CoordinatorFrame) {
        let before: Vec<(SessionId, bool, String)> = (frame.updates.iter())
            .filter_map(|update| {
                let id = update.session;
                let owner = self.host.own(id)?.owner;
                let is_meant = owner.term == update.term && owner.stream == Some(stream);
                let session = self.host.session(id)?;
                // Only what has to stay the same is looked at.
                let print = if is_meant {
                    String::new()
                } else {
                    format!("{session:?}")
                };
                Some((id, is_meant, print))
            })
            .collect();
        // An older stream may have been lost before what it carried is looked at.
        let is_up = self.streams.contains(&stream);
        let is_closed = |id: SessionId, term: Term| {
            let owner = self.host.own(id).map(|own| own.owner);
            is_up && owner.is_some_and(|own| own.coordinator == id.0 >> 32 && own.term <= term)
        };
        let closed: BTreeSet<SessionId> = (frame.closed.iter())
            .filter(|&&(id, term)| is_closed(id, term))
            .map(|&(id, _)| id)
            .collect();
        for update in &frame.updates {
            let is_meant = before
                .iter()
                .any(|(id, is_meant, _)| *id == update.session && *is_meant);
            if is_meant {
                self.note_told(network, update);
            }
        }
        let released = self.host.handle_frame(network.now, number(stream), frame);
        let mut gone = BTreeSet::new();
        for released in released {
            let id = released.session;
            note!(network, "worker {} closes {id:?}", self.at);
            assert_eq!(released.why, Why::Closed, "an honest update is taken");
            gone.insert(id);
            self.release(released);
        }
        assert_eq!(gone, closed, "who closes");
        for (id, is_meant, print) in before {
            let Some(session) = self.host.session(id) else {
                continue;
            };
            if is_meant {
                let text = &self.host.own(id).expect("it is held").served.text;
                assert_eq!(session.text(), text, "what is told is taken");
            } else {
                assert_eq!(format!("{session:?}"), print, "who is told");
            }
        }
    }

    /// Follows an update that a session is about to take.
    fn note_told(&mut self, network: &mut Network, update: &Addressed<ReplicaUpdate>) {
        let (own, ..) = self.host.get_mut(update.session).expect("it is meant");
        let fresh = own
            .served
            .fresh(&update.message)
            .expect("an honest update is right");
        own.served.text.extend(fresh);
        if update.message.outlook.accepted.is_some() {
            own.is_unused = update.message.outlook.mode == Mode::Rest;
        }
        if self.told.len() >= ECHOES {
            self.told.pop_front();
        }
        let echo = CoordinatorFrame {
            updates: vec![update.clone()],
            closed: if network.dice.percent(20) {
                vec![(update.session, update.term)]
            } else {
                Vec::new()
            },
        };
        (self.told).push_back((update.session, update.term, echo));
    }

    /// Fills every vacant slot whose session has something new.
    fn report(&mut self, network: &mut Network) {
        self.host.report(network.now);
        self.start_writers(network);
    }

    /// Looks at what the slots were filled with, and wakes their writers.
    fn start_writers(&mut self, network: &mut Network) {
        for &stream in &self.streams {
            let slots = self.host.slots_of(number(stream)).expect("it is up");
            let fresh = std::mem::take(&mut slots.fresh);
            let messages: Vec<_> = (fresh.iter())
                .filter_map(|&id| Some((id, slots.messages.get(&id)?.1.clone())))
                .collect();
            if !slots.messages.is_empty() && !std::mem::replace(&mut slots.is_writing, true) {
                let after = network.dice.roll() % self.plan.writer_us;
                network.after_us(after, Event::WorkerWrites(self.at, self.life, stream));
            }
            for (id, message) in messages {
                if let FromWorker::Report(report) = message {
                    check_totals(report.activity);
                    let (own, ..) = self.host.get_mut(id).expect("it reports");
                    own.served.check_report(&report);
                }
            }
        }
    }

    /// The writer of a stream takes what is there.
    pub(crate) fn write(&mut self, network: &mut Network, stream: StreamId, languages: &Languages) {
        let Some(slots) = self.host.slots_of(number(stream)) else {
            return;
        };
        let mut frame: Vec<Message> = Vec::new();
        while frame.len() < FRAME
            && let Some((session, (term, message))) = slots.messages.pop_first()
        {
            frame.push(Addressed {
                session,
                term,
                message,
            });
        }
        slots.is_writing = !slots.messages.is_empty();
        if slots.is_writing {
            let after = network.dice.roll() % self.plan.writer_us;
            network.after_us(after, Event::WorkerWrites(self.at, self.life, stream));
        }
        for message in &frame {
            if self.said.len() >= ECHOES {
                self.said.pop_front();
            }
            self.said.push_back(message.clone());
        }
        network.send_to_coordinator(stream, ToCoordinator::Frame(frame));
        // The slots are vacant again.
        self.run(network, languages);
    }

    /// Says again, on the newest stream of a coordinator, what was said and told under older terms.
    pub(crate) fn echo(&mut self, network: &mut Network, coordinator: u64, languages: &Languages) {
        let Some(stream) = self.host.newest_stream(coordinator) else {
            return;
        };
        self.repeat(network, StreamId(stream as usize));
        self.run(network, languages);
    }

    /// What was said and told under older terms comes once more on this stream, and so do their closes.
    fn repeat(&mut self, network: &mut Network, stream: StreamId) {
        let is_old =
            |id: SessionId, term: Term| (self.host.term(id)).is_some_and(|held| term < held);
        let said: Vec<Message> = (self.said.iter())
            .filter(|message| is_old(message.session, message.term))
            .cloned()
            .collect();
        let told: Vec<CoordinatorFrame> = (self.told.iter())
            .filter(|&&(session, term, _)| is_old(session, term))
            .map(|(_, _, frame)| frame.clone())
            .collect();
        let (at, answers, updates) = (self.at, said.len(), told.len());
        note!(network, "worker {at} echoes {answers} and {updates}");
        if !said.is_empty() {
            network.send_to_coordinator(stream, ToCoordinator::Frame(said));
        }
        for frame in told {
            self.arrived.push_back(Arrived::Frame(stream, frame));
        }
    }
}

/// A session's time is accounted for once.
fn check_totals(totals: Activity) {
    let accounted = totals.busy_us + totals.bubble_us + totals.parked_us;
    assert!(
        accounted <= totals.life_us,
        "more time than there was: {totals:?}"
    );
}

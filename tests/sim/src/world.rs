//! The whole cluster: dispatches events until nothing is left to happen, and checks that everything ended well.

use std::collections::BTreeMap;

use speculation::Time;
use speculation::message::SessionId;

use crate::air::{Air, Down, End, Event, StreamId, Up, note};
use crate::client::{Client, Word};
use crate::coordinator::{Coordinator, name};
use crate::reference::Language;
use crate::scenario::{Fault, KEEPALIVE, Scenario};
use crate::worker::Worker;

/// Every request ends this long after the last fault is over: within the patience of everybody, and then some.
const FAIR: Time = Time::from_secs(120);

/// More than any run takes.
const EVENTS: u64 = 3_000_000;

/// What a run went through, to show that schedules reach what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Events that happened.
    pub events: u64,
    /// Sessions that coordinators took in.
    pub sessions: u64,
    /// Times that a target was replaced.
    pub replays: u64,
    /// Times that a session was taken back with something in its cache.
    pub takebacks: u64,
    /// Attempts of clients that failed and were made again.
    pub failures: u64,
    /// Virtual time of the run, milliseconds.
    pub millis: u64,
}

impl Coverage {
    /// The totals of both.
    #[must_use]
    pub fn plus(self, other: Coverage) -> Coverage {
        Coverage {
            events: self.events + other.events,
            sessions: self.sessions + other.sessions,
            replays: self.replays + other.replays,
            takebacks: self.takebacks + other.takebacks,
            failures: self.failures + other.failures,
            millis: self.millis + other.millis,
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct World {
    scenario: Scenario,
    pub(crate) air: Air,
    workers: Vec<Worker>,
    coordinators: Vec<Coordinator>,
    clients: Vec<Client>,
    languages: BTreeMap<SessionId, Language>,
    /// When the last fault is over.
    healed: Time,
    coverage: Coverage,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let (scenario, dice) = Scenario::new(seed);
        let count = scenario.workers.len();
        let mut air = Air::new(dice, scenario.delays, scenario.coordinators, count);
        let workers: Vec<Worker> = (scenario.workers.iter().enumerate())
            .map(|(at, plan)| Worker::new(at, plan.clone()))
            .collect();
        let coordinators: Vec<Coordinator> = (0..scenario.coordinators)
            .map(|at| Coordinator::new(at, 0, &scenario))
            .collect();
        let clients: Vec<Client> = (scenario.requests.iter().enumerate())
            .map(|(at, request)| Client::new(at, request.clone()))
            .collect();
        for coordinator in &coordinators {
            for worker in 0..count {
                air.after_us(0, Event::Dial(coordinator.at, 0, worker));
            }
        }
        for client in &clients {
            let at = client.at;
            // The first streams are up before the first client comes; later ones may find none.
            let begins = client.request.begins + Time::from_millis(30);
            air.at(begins, Event::Client(at, 0, Word::Begin));
            for &leaves in &client.request.leaves {
                air.at(begins + leaves, Event::Client(at, u32::MAX, Word::Leave));
            }
            if let Some(quits) = client.request.quits {
                air.at(begins + quits, Event::Client(at, u32::MAX, Word::Quit));
            }
        }
        let mut healed = Time::ZERO;
        for (at, fault) in &scenario.faults {
            let at = *at + Time::from_millis(20);
            air.at(at, Event::Fault(fault.clone()));
            healed = healed.max(at + lasts(fault));
        }
        World {
            scenario,
            air,
            workers,
            coordinators,
            clients,
            languages: BTreeMap::new(),
            healed,
            coverage: Coverage::default(),
        }
    }

    /// Runs to the end and checks it.
    pub(crate) fn run(&mut self) -> Coverage {
        if self.air.log.is_some() {
            let text = format!("{:#?}", self.scenario);
            self.air.push_line(text);
        }
        let limit = self.healed + FAIR;
        while let Some(event) = self.air.next() {
            self.coverage.events += 1;
            assert!(self.coverage.events < EVENTS, "it goes on and on");
            self.handle(event);
            for coordinator in &mut self.coordinators {
                coordinator.settle(&mut self.air);
                for (session, client) in coordinator.born.drain(..) {
                    let language = self.clients[client].request.language;
                    self.languages.insert(session, language);
                }
            }
            if self.air.now > limit {
                let waiting: Vec<usize> = (self.clients.iter())
                    .filter(|client| !client.is_done)
                    .map(|client| client.at)
                    .collect();
                assert!(
                    waiting.is_empty(),
                    "clients {waiting:?} still wait {FAIR:?} after the last fault"
                );
            }
        }
        self.check_end();
        let mut coverage = self.coverage;
        coverage.millis = self.air.now.as_millis() as u64;
        coverage.failures = (self.clients.iter())
            .map(|client| u64::from(client.failures))
            .sum();
        coverage.takebacks = self.workers.iter().map(|worker| worker.takebacks).sum();
        coverage.replays += self
            .coordinators
            .iter()
            .map(|home| home.replays)
            .sum::<u64>();
        coverage.sessions = self.languages.len() as u64;
        coverage
    }

    fn check_end(&self) {
        for client in &self.clients {
            assert!(client.is_done, "client {} never got its text", client.at);
        }
        for coordinator in &self.coordinators {
            coordinator.check_empty();
        }
        for worker in &self.workers {
            worker.check_empty();
        }
    }

    fn handle(&mut self, event: Event) {
        let held = self.held_up(&event);
        if let Some(until) = held {
            self.air.at(until, event);
            return;
        }
        let (air, known) = (&mut self.air, &self.languages);
        let languages = |id: SessionId| known[&id];
        match event {
            Event::NextDown(stream) => {
                if let Some(what) = air.streams[stream.0].downs.pop_front() {
                    self.down(stream, what);
                }
            }
            Event::NextUp(stream) => {
                if let Some(what) = air.streams[stream.0].ups.pop_front() {
                    self.up(stream, what);
                }
            }
            Event::Down(stream, what) => self.down(stream, what),
            Event::Up(stream, what) => self.up(stream, what),
            Event::Notice(stream, End::Worker) => {
                let worker = air.streams[stream.0].worker;
                self.workers[worker].notice(air, stream, &languages);
            }
            Event::Notice(stream, End::Coordinator) => {
                let (at, life, ..) = air.ends(stream);
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.lose(air, stream);
                }
            }
            Event::Tick(worker, life) => {
                let worker = &mut self.workers[worker];
                if worker.life == life {
                    worker.run(air, &languages);
                }
            }
            Event::StepEnds(worker, life, step) => {
                let worker = &mut self.workers[worker];
                if worker.life == life {
                    worker.step_ends(air, step, &languages);
                }
            }
            Event::WorkerWrites(worker, life, stream) => {
                let worker = &mut self.workers[worker];
                if worker.life == life {
                    worker.write(air, stream, &languages);
                }
            }
            Event::CoordinatorWrites(stream) => {
                let (at, life, ..) = air.ends(stream);
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.write(air, stream);
                }
            }
            Event::Run(at, life, session) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.run(air, session);
                }
            }
            Event::Dial(at, life, worker) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.dial(air, worker);
                }
            }
            Event::Silent(stream) => {
                let (at, life, worker, _) = air.ends(stream);
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.silent(air, stream, worker);
                }
            }
            Event::Again(at, life, call) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.again(air, call);
                }
            }
            Event::Fault(fault) => self.fault(fault),
            Event::WorkerStarts(worker) => {
                note!(air, "worker {worker} starts");
                self.workers[worker].is_up = true;
            }
            Event::CoordinatorStarts(at) => {
                note!(air, "coordinator {at} starts");
                let life = self.coordinators[at].life + 1;
                let replays = self.coordinators[at].replays;
                self.coordinators[at] = Coordinator::new(at, life, &self.scenario);
                self.coordinators[at].replays = replays;
                for worker in 0..self.workers.len() {
                    air.after_us(0, Event::Dial(at, life, worker));
                }
            }
            Event::Client(client, attempt, word) => self.client(client, attempt, word),
            Event::Service(at, life, from, wish) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.wish(air, from, wish);
                }
            }
        }
        self.drain();
    }

    /// Until when an event has to wait: a path is blocked, or a process stands still.
    fn held_up(&self, event: &Event) -> Option<Time> {
        let hangs = |worker: usize| {
            let until = self.workers[worker].hangs_until;
            (until > self.air.now).then_some(until)
        };
        match event {
            Event::Down(stream, _) | Event::NextDown(stream) => {
                let worker = self.air.streams[stream.0].worker;
                self.air.held_up(*stream, 0).or(hangs(worker))
            }
            Event::Up(stream, _) | Event::NextUp(stream) => self.air.held_up(*stream, 1),
            Event::Notice(stream, End::Worker) => hangs(self.air.streams[stream.0].worker),
            Event::Tick(worker, _)
            | Event::StepEnds(worker, _, _)
            | Event::WorkerWrites(worker, _, _) => hangs(*worker),
            _ => None,
        }
    }

    fn down(&mut self, stream: StreamId, what: Down) {
        let (at, life, worker, is_cut) = self.air.ends(stream);
        let known = &self.languages;
        let languages = |id: SessionId| known[&id];
        let worker = &mut self.workers[worker];
        match what {
            _ if is_cut => {}
            Down::Connect if !worker.is_up => self.air.up(stream, Up::Refused),
            what if worker.is_up => {
                worker.receive(&mut self.air, name(at, life), stream, what, &languages);
            }
            _ => {}
        }
    }

    fn up(&mut self, stream: StreamId, what: Up) {
        let (at, life, worker, is_cut) = self.air.ends(stream);
        if let Some(home) = alive(&mut self.coordinators, at, life).filter(|_| !is_cut) {
            home.receive(&mut self.air, stream, worker, what);
        }
    }

    /// Workers that drain end when they have nothing left.
    fn drain(&mut self) {
        for at in 0..self.workers.len() {
            let worker = &self.workers[at];
            if let Some(down) = worker.drains
                && worker.is_idle()
                && worker.is_up
            {
                self.crash_worker(at, down);
            }
        }
    }

    fn crash_worker(&mut self, worker: usize, down: Time) {
        note!(self.air, "worker {worker} is gone for {down:?}");
        self.workers[worker].crash();
        for at in 0..self.air.streams.len() {
            let stream = &mut self.air.streams[at];
            if stream.worker == worker && !stream.is_cut {
                stream.is_cut = true;
                let after = self.air.trip_us();
                let notice = Event::Notice(StreamId(at), End::Coordinator);
                self.air.after_us(after, notice);
            }
        }
        let at = self.air.now + down;
        self.air.at(at, Event::WorkerStarts(worker));
    }

    fn crash_coordinator(&mut self, coordinator: usize, down: Time) {
        note!(self.air, "coordinator {coordinator} is gone for {down:?}");
        let home = &mut self.coordinators[coordinator];
        home.is_up = false;
        let life = home.life;
        for at in 0..self.air.streams.len() {
            let stream = &mut self.air.streams[at];
            let own = stream.coordinator == coordinator && stream.coordinator_life == life;
            if own && !stream.is_cut {
                stream.is_cut = true;
                let after = self.air.trip_us();
                self.air
                    .after_us(after, Event::Notice(StreamId(at), End::Worker));
            }
        }
        for client in &mut self.clients {
            if client.served.is_some_and(|(at, _)| at == coordinator) {
                let after = self.air.trip_us();
                let word = Word::Failed("the coordinator is gone");
                let (at, attempt) = (client.at, client.attempt);
                self.air.after_us(after, Event::Client(at, attempt, word));
            }
        }
        let at = self.air.now + down;
        self.air.at(at, Event::CoordinatorStarts(coordinator));
    }

    /// A stream breaks; its ends learn of it after their own times.
    fn cut(&mut self, stream: StreamId, notice: [Time; 2]) {
        if std::mem::replace(&mut self.air.streams[stream.0].is_cut, true) {
            return;
        }
        for (end, after) in [(End::Coordinator, notice[0]), (End::Worker, notice[1])] {
            let at = self.air.now + after;
            self.air.at(at, Event::Notice(stream, end));
        }
    }

    fn streams(&self, coordinator: usize, worker: usize) -> Vec<StreamId> {
        (self.air.streams.iter().enumerate())
            .filter(|(_, stream)| stream.coordinator == coordinator && stream.worker == worker)
            .filter(|(_, stream)| !stream.is_cut)
            .map(|(at, _)| StreamId(at))
            .collect()
    }

    fn fault(&mut self, fault: Fault) {
        note!(self.air, "{fault:?}");
        let now = self.air.now;
        match fault {
            Fault::WorkerCrash { worker, down } => {
                if self.workers[worker].is_up {
                    self.crash_worker(worker, down);
                }
            }
            Fault::CoordinatorCrash { coordinator, down } => {
                if self.coordinators[coordinator].is_up {
                    self.crash_coordinator(coordinator, down);
                }
            }
            Fault::Hang { worker, lasts } => {
                let hangs = &mut self.workers[worker].hangs_until;
                *hangs = (now + lasts).max(*hangs);
                if lasts > KEEPALIVE {
                    for coordinator in 0..self.coordinators.len() {
                        for stream in self.streams(coordinator, worker) {
                            self.cut_later(stream);
                        }
                    }
                }
            }
            Fault::Lag {
                worker,
                lasts,
                times,
            } => self.workers[worker].lags = (times, now + lasts),
            Fault::Drain { worker, down } => {
                if self.workers[worker].is_up {
                    self.workers[worker].drains = Some(down);
                }
            }
            Fault::Break {
                coordinator,
                worker,
                notice,
            } => {
                for stream in self.streams(coordinator, worker) {
                    self.cut(stream, notice);
                }
            }
            Fault::Block {
                coordinator,
                worker,
                ways,
                lasts,
            } => {
                for (way, _) in ways.iter().enumerate().filter(|(_, blocked)| **blocked) {
                    self.air.block(coordinator, worker, way, now + lasts);
                }
                if lasts > KEEPALIVE {
                    for stream in self.streams(coordinator, worker) {
                        self.cut_later(stream);
                    }
                }
            }
            Fault::Echo {
                coordinator,
                worker,
            } => {
                let name = self.coordinators[coordinator].name();
                let known = &self.languages;
                let worker = &mut self.workers[worker];
                if worker.is_up {
                    worker.echo(&mut self.air, name, &|id| known[&id]);
                }
            }
        }
    }

    /// A stream that is silent for too long is given up by both ends, each by its own clock.
    fn cut_later(&mut self, stream: StreamId) {
        for end in [End::Coordinator, End::Worker] {
            let after = KEEPALIVE + Time::from_micros(self.air.dice.roll() % 900_000);
            let at = self.air.now + after;
            self.air.at(at, Event::Notice(stream, end));
        }
    }

    fn client(&mut self, at: usize, attempt: u32, word: Word) {
        let client = &mut self.clients[at];
        if client.is_done {
            return;
        }
        match word {
            Word::Leave | Word::Quit => {
                let quits = matches!(word, Word::Quit);
                client.hang_up(&mut self.air);
                if quits {
                    client.is_done = true;
                } else {
                    let after = Time::from_micros(self.air.dice.roll() % 100_000);
                    client.retry(&mut self.air, after);
                }
            }
            _ if attempt != client.attempt => {}
            Word::Begin => {
                let coordinator = self.air.dice.below(self.coordinators.len());
                let home = &mut self.coordinators[coordinator];
                client.served = Some((coordinator, home.life));
                if home.is_up {
                    let (request, text) = (&client.request, &client.text);
                    home.submit(&mut self.air, (at, attempt), request, text);
                } else {
                    let word = Word::Failed("the coordinator is not there");
                    self.air.after_us(1000, Event::Client(at, attempt, word));
                }
            }
            word => client.hear(&mut self.air, word),
        }
    }
}

fn alive(coordinators: &mut [Coordinator], at: usize, life: u32) -> Option<&mut Coordinator> {
    (coordinators.get_mut(at)).filter(|home| home.is_up && home.life == life)
}

/// How long a fault lasts.
fn lasts(fault: &Fault) -> Time {
    match fault {
        Fault::WorkerCrash { down, .. } | Fault::CoordinatorCrash { down, .. } => *down,
        Fault::Hang { lasts, .. } | Fault::Lag { lasts, .. } | Fault::Block { lasts, .. } => *lasts,
        Fault::Drain { down, .. } => *down + Time::from_secs(10),
        Fault::Break { notice, .. } => notice[0].max(notice[1]),
        Fault::Echo { .. } => Time::ZERO,
    }
}

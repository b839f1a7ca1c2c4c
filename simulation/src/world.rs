//! The whole cluster: dispatches events until nothing is left to happen, and checks that everything ended well.

mod faults;

use std::collections::BTreeMap;

use speculation::Time;
use speculation::strategy::Registry;

use crate::client::{Client, ClientEvent};
use crate::coordinator::{Coordinator, name};
use crate::network::{Answer, End, Event, Network, StreamId, ToCoordinator, ToWorker, note};
use crate::scenario::Scenario;
use crate::worker::{Languages, Worker};

/// Every request ends this long after the last fault is over: within the patience of everybody, and then some.
const FAIR: Time = Time::from_secs(120);

/// More than any run takes.
const EVENTS: u64 = 3_000_000;

/// What a run went through, to show that schedules reach what they are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Events that happened.
    pub events: u64,
    /// Sessions that got a target.
    pub sessions: u64,
    /// Times that a target was replaced.
    pub failovers: u64,
    /// Times that a session was taken back with something in its cache.
    pub takebacks: u64,
    /// Sessions given up because a cache was full.
    pub preemptions: u64,
    /// Times that a request or a session looked for a target and had to wait.
    pub waits: u64,
    /// Times that a coordinator has forgotten a worker that left.
    pub retirements: u64,
    /// Times that a session that was parked for its client went on.
    pub resumes: u64,
    /// Attempts of clients for which there was no room.
    pub refusals: u64,
    /// Attempts of clients that failed and were made again.
    pub failures: u64,
    /// Virtual time of the run, milliseconds.
    pub millis: u64,
    /// Requests by strategy.
    pub strategies: BTreeMap<String, u64>,
}

impl Coverage {
    /// The totals of both.
    #[must_use]
    pub fn plus(mut self, other: Coverage) -> Coverage {
        for (name, requests) in other.strategies {
            *self.strategies.entry(name).or_default() += requests;
        }
        Coverage {
            events: self.events + other.events,
            sessions: self.sessions + other.sessions,
            failovers: self.failovers + other.failovers,
            takebacks: self.takebacks + other.takebacks,
            preemptions: self.preemptions + other.preemptions,
            waits: self.waits + other.waits,
            retirements: self.retirements + other.retirements,
            resumes: self.resumes + other.resumes,
            refusals: self.refusals + other.refusals,
            failures: self.failures + other.failures,
            millis: self.millis + other.millis,
            strategies: self.strategies,
        }
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct World {
    scenario: Scenario,
    registry: Registry,
    pub(crate) network: Network,
    workers: Vec<Worker>,
    coordinators: Vec<Coordinator>,
    clients: Vec<Client>,
    languages: Languages,
    /// When the last fault is over.
    healed: Time,
    coverage: Coverage,
}

impl World {
    pub(crate) fn new(seed: u64, registry: &Registry) -> Self {
        let (scenario, dice) = Scenario::new(seed, registry);
        let count = scenario.workers.len();
        let mut network = Network::new(dice, scenario.delays, scenario.coordinators, count);
        let workers: Vec<Worker> = (scenario.workers.iter().enumerate())
            .map(|(at, plan)| Worker::new(at, plan.clone(), registry.clone()))
            .collect();
        let coordinators: Vec<Coordinator> = (0..scenario.coordinators)
            .map(|at| Coordinator::new(at, 0, &scenario, registry))
            .collect();
        let clients: Vec<Client> = (scenario.requests.iter().enumerate())
            .map(|(at, request)| Client::new(at, request.clone()))
            .collect();
        for coordinator in &coordinators {
            for worker in 0..count {
                network.after_us(0, Event::Connect(coordinator.at, 0, worker));
            }
        }
        for client in &clients {
            let at = client.at;
            // The first streams are up before the first client comes; later ones may find none.
            let begins = client.request.begins + Time::from_millis(30);
            network.at(begins, Event::Client(at, 0, ClientEvent::Begin));
            for &leaves in &client.request.leaves {
                network.at(
                    begins + leaves,
                    Event::Client(at, u32::MAX, ClientEvent::Leave),
                );
            }
            if let Some(quits) = client.request.quits {
                network.at(
                    begins + quits,
                    Event::Client(at, u32::MAX, ClientEvent::Quit),
                );
            }
        }
        let mut healed = Time::ZERO;
        for (at, fault) in &scenario.faults {
            let at = *at + Time::from_millis(20);
            network.at(at, Event::Fault(fault.clone()));
            healed = healed.max(at + faults::lasts(fault));
        }
        World {
            scenario,
            registry: registry.clone(),
            network,
            workers,
            coordinators,
            clients,
            languages: Languages::new(),
            healed,
            coverage: Coverage::default(),
        }
    }

    /// Runs to the end and checks it.
    pub(crate) fn run(&mut self) -> Coverage {
        if self.network.log.is_some() {
            let text = format!("{:#?}", self.scenario);
            self.network.push_line(text);
        }
        let limit = self.healed + FAIR;
        while let Some(event) = self.network.next() {
            self.coverage.events += 1;
            assert!(self.coverage.events < EVENTS, "it goes on and on");
            self.handle(event);
            for coordinator in (self.coordinators.iter_mut()).filter(|home| home.is_touched) {
                coordinator.settle(&mut self.network);
                for (session, client, numerics) in coordinator.placed.drain(..) {
                    let plain = &self.clients[client].request.plain[numerics];
                    self.languages.insert(session, plain.language);
                }
            }
            if self.network.now > limit {
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
        self.coverage()
    }

    fn coverage(&self) -> Coverage {
        let of_clients = |of: fn(&Client) -> u32| -> u64 {
            (self.clients.iter())
                .map(|client| u64::from(of(client)))
                .sum()
        };
        let mut coverage = self.coverage.clone();
        coverage.millis = self.network.now.as_millis() as u64;
        coverage.failures = of_clients(|client| client.failures);
        coverage.refusals = of_clients(|client| client.refusals);
        coverage.takebacks = self.workers.iter().map(|worker| worker.takebacks).sum();
        coverage.preemptions = self.workers.iter().map(|worker| worker.preemptions).sum();
        coverage.failovers += self
            .coordinators
            .iter()
            .map(|home| home.failovers)
            .sum::<u64>();
        coverage.waits += self.coordinators.iter().map(|home| home.waits).sum::<u64>();
        coverage.retirements += (self.coordinators.iter())
            .map(|home| home.retirements)
            .sum::<u64>();
        coverage.resumes += (self.coordinators.iter())
            .map(|home| home.resumes)
            .sum::<u64>();
        coverage.sessions = self.languages.len() as u64;
        for client in &self.clients {
            let name = client.request.strategy.name.clone();
            *coverage.strategies.entry(name).or_default() += 1;
        }
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
            self.network.at(until, event);
            return;
        }
        let (network, languages) = (&mut self.network, &self.languages);
        match event {
            Event::NextToWorker(stream) => {
                if let Some(what) = network.streams[stream.0].to_worker.pop_front() {
                    self.at_worker(stream, what);
                }
            }
            Event::NextToCoordinator(stream) => {
                if let Some(what) = network.streams[stream.0].to_coordinator.pop_front() {
                    self.at_coordinator(stream, what);
                }
            }
            Event::ToWorker(stream, what) => self.at_worker(stream, what),
            Event::ToCoordinator(stream, what) => self.at_coordinator(stream, what),
            Event::Broken(stream, End::Worker) => {
                let worker = network.streams[stream.0].worker;
                self.workers[worker].handle_broken(network, stream, languages);
            }
            Event::Broken(stream, End::Coordinator) => {
                let (at, life, ..) = network.ends(stream);
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.lose(network, stream);
                }
            }
            Event::Tick(worker, life) => {
                let worker = &mut self.workers[worker];
                if worker.life == life {
                    worker.run(network, languages);
                }
            }
            Event::StepEnds(worker, life, step) => {
                let worker = &mut self.workers[worker];
                if worker.life == life {
                    worker.step_ends(network, step, languages);
                }
            }
            Event::WorkerWrites(worker, life, stream) => {
                let worker = &mut self.workers[worker];
                if worker.life == life {
                    worker.write(network, stream, languages);
                }
            }
            Event::CoordinatorWrites(stream) => {
                let (at, life, ..) = network.ends(stream);
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.write(network, stream);
                }
            }
            Event::Run(at, life, session) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.run(network, session);
                }
            }
            Event::Connect(at, life, worker) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.connect(network, worker);
                }
            }
            Event::Listed(at, life, worker) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.list(network, worker);
                }
            }
            Event::Timeout(stream) => {
                let (at, life, worker, _) = network.ends(stream);
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.handle_timeout(network, stream, worker);
                }
            }
            Event::CallAgain(at, life, call) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.call_again(network, call);
                }
            }
            Event::CallBreaks(at, life, call) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.handle_answer(network, call, Answer::Broken);
                }
            }
            Event::Fault(fault) => self.fault(fault),
            Event::WorkerStarts(worker) => {
                note!(network, "worker {worker} starts");
                self.workers[worker].is_up = true;
            }
            Event::CoordinatorStarts(at) => {
                note!(network, "coordinator {at} starts");
                let life = self.coordinators[at].life + 1;
                let before = &self.coordinators[at];
                self.coverage.failovers += before.failovers;
                self.coverage.waits += before.waits;
                self.coverage.retirements += before.retirements;
                self.coverage.resumes += before.resumes;
                self.coordinators[at] = Coordinator::new(at, life, &self.scenario, &self.registry);
                for worker in 0..self.workers.len() {
                    network.after_us(0, Event::Connect(at, life, worker));
                }
            }
            Event::Client(client, attempt, event) => self.client(client, attempt, event),
            Event::FromClient(at, life, from, what) => {
                if let Some(home) = alive(&mut self.coordinators, at, life) {
                    home.handle_client(network, from, what);
                }
            }
        }
        self.drain();
    }

    /// Until when an event has to wait: a path is blocked, or a process stands still.
    fn held_up(&self, event: &Event) -> Option<Time> {
        let hangs = |worker: usize| {
            let until = self.workers[worker].hangs_until;
            (until > self.network.now).then_some(until)
        };
        match event {
            Event::ToWorker(stream, _) | Event::NextToWorker(stream) => {
                let worker = self.network.streams[stream.0].worker;
                self.network.held_up(*stream, 0).or(hangs(worker))
            }
            Event::ToCoordinator(stream, _) | Event::NextToCoordinator(stream) => {
                self.network.held_up(*stream, 1)
            }
            Event::Broken(stream, End::Worker) => hangs(self.network.streams[stream.0].worker),
            Event::Tick(worker, _)
            | Event::StepEnds(worker, _, _)
            | Event::WorkerWrites(worker, _, _) => hangs(*worker),
            _ => None,
        }
    }

    fn at_worker(&mut self, stream: StreamId, what: ToWorker) {
        let (at, life, worker, is_cut) = self.network.ends(stream);
        let languages = &self.languages;
        let worker = &mut self.workers[worker];
        match what {
            _ if is_cut => {}
            ToWorker::Connect if !worker.is_up => self
                .network
                .send_to_coordinator(stream, ToCoordinator::Refused),
            what if worker.is_up => {
                worker.receive(&mut self.network, name(at, life), stream, what, languages);
            }
            _ => {}
        }
    }

    fn at_coordinator(&mut self, stream: StreamId, what: ToCoordinator) {
        let (at, life, worker, is_cut) = self.network.ends(stream);
        if let Some(home) = alive(&mut self.coordinators, at, life).filter(|_| !is_cut) {
            home.receive(&mut self.network, stream, worker, what);
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

    fn client(&mut self, at: usize, attempt: u32, event: ClientEvent) {
        let client = &mut self.clients[at];
        if client.is_done {
            return;
        }
        match event {
            ClientEvent::Leave | ClientEvent::Quit => {
                let quits = matches!(event, ClientEvent::Quit);
                client.hang_up(&mut self.network);
                if quits {
                    client.is_done = true;
                } else {
                    let after = Time::from_micros(self.network.dice.roll() % 100_000);
                    client.retry(&mut self.network, after);
                }
            }
            _ if attempt != client.attempt => {}
            ClientEvent::Begin => {
                let coordinator = self.network.dice.below(self.coordinators.len());
                let home = &mut self.coordinators[coordinator];
                client.served = Some((coordinator, home.life));
                if home.is_up {
                    home.is_touched = true;
                    let text = (&client.text[..], client.numerics);
                    home.submit(&mut self.network, (at, attempt), &client.request, text);
                } else {
                    let event = ClientEvent::Failed("the coordinator is not there");
                    self.network
                        .after_us(1000, Event::Client(at, attempt, event));
                }
            }
            event => client.handle(&mut self.network, event),
        }
    }
}

fn alive(coordinators: &mut [Coordinator], at: usize, life: u32) -> Option<&mut Coordinator> {
    let home = (coordinators.get_mut(at)).filter(|home| home.is_up && home.life == life)?;
    home.is_touched = true;
    Some(home)
}

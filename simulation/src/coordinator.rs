//! A coordinator process around the real [`Fleet`](control::fleet::Fleet): its streams to the workers with their slots and
//! writers, its open calls, and the tasks of its requests. See [`crate::placement`] for who gets a reservation, [`crate::request`] for one
//! request.

use std::collections::{BTreeMap, BTreeSet};

use control::fleet::State;
use speculation::Time;
use speculation::learned::Calibrations;
use speculation::message::{
    Addressed, CoordinatorFrame, ReplicaUpdate, SessionId, SessionSpec, Term,
};
use speculation::relay::WorkerKey;
use speculation::strategy::Registry;

use crate::client::{ClientEvent, FromClient};
use crate::network::{Answer, Event, Message, Network, StreamId, ToCoordinator, ToWorker, note};
use crate::placement::Placement;
use crate::request::Task;
use crate::scenario::{NUMERICS, Numerics, Request, Scenario, WorkerPlan};

/// How long a worker may take to accept a stream.
const ANSWER_LIMIT_US: u64 = 5_000_000;
/// Pauses between attempts, the first and the longest.
const PAUSES_US: [u64; 2] = [100_000, 2_000_000];
/// A stream that lived no longer than this is no reason to hurry back.
const SHORT_LIFE: Time = Time::from_secs(1);
/// Pauses before an open that found the worker full is tried again.
const FULL_PAUSES_US: [u64; 3] = [10_000, 40_000, 160_000];
/// Sessions of one frame, at most; small, so that frames are often full.
const FRAME: usize = 2;

/// What a worker is told about one session.
#[derive(Debug)]
pub(crate) enum Slot {
    Update(Term, Box<ReplicaUpdate>),
    Close(Term),
}

/// A stream that is up, or was.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) worker: usize,
    key: WorkerKey,
    /// As the fleet counts them.
    pub(crate) incarnation: u64,
    pub(crate) is_lost: bool,
    pub(crate) slots: BTreeMap<SessionId, Slot>,
    /// Sessions that wait until their slots are vacant.
    pub(crate) awaited: BTreeSet<SessionId>,
    is_writing: bool,
}

/// How a worker is reached.
#[derive(Debug)]
struct Link {
    connects: Option<StreamId>,
    pause_us: u64,
    begun: Time,
}

/// An open call under way.
#[derive(Debug)]
struct Call {
    session: SessionId,
    worker: WorkerKey,
    stream: StreamId,
    term: Term,
    /// The session is over: under this term it is closed once more where the call may have been carried out.
    closes: Term,
    spec: Box<SessionSpec>,
    tries: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) at: usize,
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    /// Something has happened to it since it was settled last.
    pub(crate) is_touched: bool,
    pub(crate) failover_wait: Time,
    pub(crate) credit: u32,
    pub(crate) park_after: Time,
    pub(crate) registry: Registry,
    task_us: u64,
    pub(crate) inbox: usize,
    pub(crate) plans: Vec<WorkerPlan>,
    links: Vec<Link>,
    pub(crate) connections: BTreeMap<StreamId, Connection>,
    pub(crate) placement: Placement,
    /// What sessions have learned, for those to come.
    pub(crate) calibration: Calibrations,
    pub(crate) tasks: BTreeMap<SessionId, Box<Task>>,
    calls: BTreeMap<u64, Call>,
    sessions: u32,
    /// Sessions that have a target, with their clients and its numerics.
    pub(crate) placed: Vec<(SessionId, usize, Numerics)>,
    /// Targets replaced, for coverage.
    pub(crate) failovers: u64,
    /// Requests and sessions that waited for a target, for coverage.
    pub(crate) waits: u64,
    /// Workers that were forgotten, for coverage.
    pub(crate) retirements: u64,
    /// Sessions that were parked and went on, for coverage.
    pub(crate) resumes: u64,
}

impl Coordinator {
    pub(crate) fn new(at: usize, life: u32, scenario: &Scenario, registry: &Registry) -> Self {
        let link = |_: &WorkerPlan| Link {
            connects: None,
            pause_us: PAUSES_US[0],
            begun: Time::ZERO,
        };
        Coordinator {
            at,
            life,
            is_up: true,
            is_touched: false,
            failover_wait: scenario.failover_wait,
            credit: scenario.credit,
            park_after: scenario.park_after,
            registry: registry.clone(),
            task_us: scenario.task_us,
            inbox: scenario.inbox,
            links: scenario.workers.iter().map(link).collect(),
            placement: Placement::new(scenario),
            plans: scenario.workers.clone(),
            connections: BTreeMap::new(),
            calibration: Calibrations::default(),
            tasks: BTreeMap::new(),
            calls: BTreeMap::new(),
            sessions: 0,
            placed: Vec::new(),
            failovers: 0,
            waits: 0,
            retirements: 0,
            resumes: 0,
        }
    }

    /// Names this life of the process.
    pub(crate) fn name(&self) -> u64 {
        name(self.at, self.life)
    }

    pub(crate) fn check_empty(&self) {
        let at = self.at;
        assert!(self.tasks.is_empty(), "coordinator {at} still has requests");
        assert!(self.calls.is_empty(), "coordinator {at} still calls");
        self.placement.check_empty();
        for connection in self.connections.values() {
            assert!(
                connection.is_lost || connection.slots.is_empty(),
                "{at} still has something to say"
            );
        }
    }

    /// No source lists a worker any more.
    pub(crate) fn retire(&mut self, worker: usize) {
        self.placement.retire(worker);
    }

    /// A worker is listed again.
    pub(crate) fn list(&mut self, network: &mut Network, worker: usize) {
        if self.placement.list(worker) {
            self.links[worker].pause_us = PAUSES_US[0];
            self.reconnect(network, worker, 0);
        }
    }

    /// Closes the streams to workers that the fleet has forgotten.
    fn close_forgotten(&mut self, network: &mut Network) {
        while let Some(worker) = self.placement.poll_forgotten() {
            let at = self.at;
            note!(network, "coordinator {at} forgets worker {worker}");
            self.retirements += 1;
            if let Some(stream) = self.links[worker].connects.take() {
                network.send_to_worker(stream, ToWorker::Closed);
            }
            let up = (self.connections.iter_mut())
                .find(|(_, connection)| connection.worker == worker && !connection.is_lost);
            let Some((&stream, connection)) = up else {
                continue;
            };
            connection.is_lost = true;
            network.send_to_worker(stream, ToWorker::Closed);
            self.break_calls(network, stream);
        }
    }

    /// Connects to a worker, unless it was forgotten or is connected already.
    pub(crate) fn connect(&mut self, network: &mut Network, worker: usize) {
        let is_up = (self.connections.values())
            .any(|connection| connection.worker == worker && !connection.is_lost);
        if !self.placement.is_member(worker) || is_up || self.links[worker].connects.is_some() {
            return;
        }
        let stream = network.stream(self.at, self.life, worker);
        self.links[worker].connects = Some(stream);
        network.send_to_worker(stream, ToWorker::Connect);
        network.after_us(ANSWER_LIMIT_US, Event::Timeout(stream));
    }

    fn reconnect(&mut self, network: &mut Network, worker: usize, after_us: u64) {
        network.after_us(after_us, Event::Connect(self.at, self.life, worker));
    }

    /// The attempt has failed; there is another one after a pause.
    fn handle_unreachable(&mut self, network: &mut Network, worker: usize) {
        let link = &mut self.links[worker];
        link.connects = None;
        link.pause_us = (link.pause_us * 2).min(PAUSES_US[1]);
        let pause = link.pause_us;
        self.reconnect(network, worker, pause);
        let state = State::Connecting(Some("it does not answer".to_owned()));
        self.placement.handle_down(worker, state);
    }

    /// A stream was not accepted in time.
    pub(crate) fn handle_timeout(
        &mut self,
        network: &mut Network,
        stream: StreamId,
        worker: usize,
    ) {
        if self.links[worker].connects == Some(stream) {
            network.send_to_worker(stream, ToWorker::Closed);
            self.handle_unreachable(network, worker);
        }
    }

    /// Something arrives from a worker.
    pub(crate) fn receive(
        &mut self,
        network: &mut Network,
        stream: StreamId,
        worker: usize,
        what: ToCoordinator,
    ) {
        match what {
            ToCoordinator::Accepted if self.links[worker].connects == Some(stream) => {
                let at = self.at;
                note!(
                    network,
                    "coordinator {at} has {stream:?} to worker {worker}"
                );
                let link = &mut self.links[worker];
                link.connects = None;
                link.begun = network.now;
                let incarnation = self.placement.handle_ready(worker);
                let connection = Connection {
                    worker,
                    key: self.placement.key(worker),
                    incarnation,
                    is_lost: false,
                    slots: BTreeMap::new(),
                    awaited: BTreeSet::new(),
                    is_writing: false,
                };
                self.connections.insert(stream, connection);
            }
            ToCoordinator::Refused if self.links[worker].connects == Some(stream) => {
                self.handle_unreachable(network, worker);
            }
            ToCoordinator::Accepted | ToCoordinator::Refused => {}
            ToCoordinator::Closed => self.lose(network, stream),
            ToCoordinator::Answered { call, answer } => self.handle_answer(network, call, answer),
            ToCoordinator::Frame(frame) => {
                for message in frame {
                    self.handle_message(network, stream, message);
                }
            }
        }
    }

    /// A stream is gone, for every session.
    pub(crate) fn lose(&mut self, network: &mut Network, stream: StreamId) {
        let connection = self.connections.get_mut(&stream);
        let Some(connection) = connection.filter(|connection| !connection.is_lost) else {
            // It breaks before it was accepted.
            let mut links = self.links.iter();
            if let Some(worker) = links.position(|link| link.connects == Some(stream)) {
                self.handle_unreachable(network, worker);
            }
            return;
        };
        let (at, worker) = (self.at, connection.worker);
        note!(
            network,
            "coordinator {at} lost {stream:?} to worker {worker}"
        );
        connection.is_lost = true;
        network.send_to_worker(stream, ToWorker::Closed);
        let sessions: Vec<SessionId> = (self.tasks.iter())
            .filter(|(_, task)| task.is_on(stream))
            .map(|(&id, _)| id)
            .collect();
        for session in sessions {
            self.wake(network, session);
        }
        self.break_calls(network, stream);
        let state = State::Lost("its stream broke".to_owned());
        self.placement.handle_down(worker, state);
        let link = &mut self.links[worker];
        let after = if network.now.saturating_sub(link.begun) < SHORT_LIFE {
            link.pause_us = (link.pause_us * 2).min(PAUSES_US[1]);
            link.pause_us
        } else {
            link.pause_us = PAUSES_US[0];
            0
        };
        self.reconnect(network, worker, after);
    }

    fn break_calls(&mut self, network: &mut Network, stream: StreamId) {
        let broken: Vec<u64> = (self.calls.iter())
            .filter(|(_, call)| call.stream == stream)
            .map(|(&number, _)| number)
            .collect();
        for call in broken {
            // Each call learns it by itself; by then the session may be on the next stream.
            let after = network.dice.roll() % (4 * self.task_us);
            network.after_us(after, Event::CallBreaks(self.at, self.life, call));
        }
    }

    fn handle_message(&mut self, network: &mut Network, stream: StreamId, message: Message) {
        let (session, most) = (message.session, self.inbox);
        if let Some(task) = self.tasks.get_mut(&session)
            && task.receive(stream, message, most)
        {
            self.wake(network, session);
        }
    }

    /// An open call is answered.
    pub(crate) fn handle_answer(&mut self, network: &mut Network, number: u64, answer: Answer) {
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        let stream = call.stream;
        if answer == Answer::Full && call.tries < FULL_PAUSES_US.len() {
            let pause = FULL_PAUSES_US[call.tries];
            call.tries += 1;
            network.after_us(pause, Event::CallAgain(self.at, self.life, number));
            return;
        }
        let Some(call) = self.calls.remove(&number) else {
            return;
        };
        if answer == Answer::NoStream {
            // The worker knows of no such stream: whatever this side still holds is not one.
            self.lose(network, stream);
        }
        let (worker, term) = (call.worker, call.term);
        match self.tasks.get_mut(&call.session) {
            Some(task) => {
                task.answers.push_back((worker, stream, term, answer));
                self.wake(network, call.session);
            }
            // The call may have been carried out behind the close.
            None => self.put(network, stream, call.session, Slot::Close(call.closes)),
        }
    }

    /// Makes an open call again that found the worker full.
    pub(crate) fn call_again(&mut self, network: &mut Network, number: u64) {
        if let Some(call) = self.calls.get(&number) {
            let spec = call.spec.clone();
            network.call(call.stream, ToWorker::Open { call: number, spec });
        }
    }

    /// Opens a session on a worker where it has a reservation.
    pub(crate) fn call(
        &mut self,
        network: &mut Network,
        worker: WorkerKey,
        stream: StreamId,
        spec: Box<SessionSpec>,
    ) {
        let number = network.dice.roll();
        let call = Call {
            session: spec.session,
            worker,
            stream,
            term: spec.term,
            closes: spec.term,
            spec: spec.clone(),
            tries: 0,
        };
        self.calls.insert(number, call);
        if self.connections[&stream].is_lost {
            self.handle_answer(network, number, Answer::Broken);
        } else {
            network.call(stream, ToWorker::Open { call: number, spec });
        }
    }

    /// A session is over; calls of it may still be under way.
    pub(crate) fn forget(&mut self, session: SessionId, closes: Term) {
        for call in (self.calls.values_mut()).filter(|call| call.session == session) {
            call.closes = closes;
        }
    }

    /// Fills a slot.
    pub(crate) fn put(
        &mut self,
        network: &mut Network,
        stream: StreamId,
        id: SessionId,
        slot: Slot,
    ) {
        let connection = self.connections.get_mut(&stream);
        let Some(connection) = connection.filter(|connection| !connection.is_lost) else {
            return;
        };
        connection.slots.insert(id, slot);
        if !std::mem::replace(&mut connection.is_writing, true) {
            let after = network.dice.roll() % self.plans[connection.worker].writer_us;
            network.after_us(after, Event::CoordinatorWrites(stream));
        }
    }

    /// The writer of a stream takes what is there.
    pub(crate) fn write(&mut self, network: &mut Network, stream: StreamId) {
        let connection = self.connections.get_mut(&stream);
        let Some(connection) = connection.filter(|connection| !connection.is_lost) else {
            return;
        };
        let mut frame = CoordinatorFrame::default();
        let mut taken = Vec::new();
        while taken.len() < FRAME
            && let Some((session, slot)) = connection.slots.pop_first()
        {
            taken.push(session);
            match slot {
                Slot::Close(term) => frame.closed.push((session, term)),
                Slot::Update(term, message) => frame.updates.push(Addressed {
                    session,
                    term,
                    message: *message,
                }),
            }
        }
        connection.is_writing = !connection.slots.is_empty();
        if connection.is_writing {
            let after = network.dice.roll() % self.plans[connection.worker].writer_us;
            network.after_us(after, Event::CoordinatorWrites(stream));
        }
        let woken: Vec<SessionId> = (taken.into_iter())
            .filter(|session| connection.awaited.remove(session))
            .collect();
        for session in woken {
            if let Some(task) = self.tasks.get_mut(&session) {
                task.taken.push_back(stream);
            }
            self.wake(network, session);
        }
        network.send_to_worker(stream, ToWorker::Frame(frame));
    }

    /// A request's task is to be scheduled.
    pub(crate) fn wake(&mut self, network: &mut Network, session: SessionId) {
        let task_us = self.task_us;
        if let Some(task) = self.tasks.get_mut(&session)
            && !std::mem::replace(&mut task.is_woken, true)
        {
            let after = network.dice.roll() % task_us;
            network.after_us(after, Event::Run(self.at, self.life, session));
        }
    }

    /// A request's task runs.
    pub(crate) fn run(&mut self, network: &mut Network, session: SessionId) {
        let Some(mut task) = self.tasks.remove(&session) else {
            return;
        };
        task.is_woken = false;
        if task.drive(network, self) {
            note!(network, "{session:?} is over");
        } else {
            self.tasks.insert(session, task);
        }
    }

    /// Wakes everybody who waits for what has changed, and checks that nobody is forgotten. To be called after everything
    /// else.
    pub(crate) fn settle(&mut self, network: &mut Network) {
        self.is_touched = false;
        self.close_forgotten(network);
        let changes = self.placement.poll_changes();
        let mut woken = Vec::new();
        for (&id, task) in &mut self.tasks {
            let is_woken = (changes.arrival && task.handle_arrivals())
                | (changes.vacancy && task.handle_vacancy());
            if is_woken {
                woken.push(id);
            }
        }
        for id in woken {
            self.wake(network, id);
        }
        self.placement.check(&self.tasks);
    }

    /// A client asks for the text behind what it has.
    pub(crate) fn submit(
        &mut self,
        network: &mut Network,
        from: (usize, u32),
        request: &Request,
        (text, numerics): (&[u32], Option<Numerics>),
    ) {
        let place = match self.placement.enter(request, &self.tasks) {
            Err(retry) => return self.tell(network, from, ClientEvent::Refused(retry)),
            Ok(place) => place,
        };
        self.sessions += 1;
        let id = SessionId((self.name() << 32) | u64::from(self.sessions));
        let at = self.at;
        note!(
            network,
            "coordinator {at} takes client {} in as {id:?}",
            from.0
        );
        let numerics = numerics.filter(|_| text.len() > request.prompt.len());
        let task = Task::new(id, from, request, text, numerics, place);
        self.tasks.insert(id, Box::new(task));
        self.wake(network, id);
    }

    /// A client has gone, or has taken a message.
    pub(crate) fn handle_client(
        &mut self,
        network: &mut Network,
        from: (usize, u32),
        what: FromClient,
    ) {
        let task = self.tasks.iter_mut().find(|(_, task)| task.serves(from));
        if let Some((&session, task)) = task {
            task.handle_client(what);
            self.wake(network, session);
        }
    }

    /// Tells a client something.
    pub(crate) fn tell(&self, network: &mut Network, from: (usize, u32), event: ClientEvent) {
        network.tell_client(self.at, from, event);
    }

    /// The numerics of a target.
    pub(crate) fn numerics_of(&self, worker: WorkerKey) -> Numerics {
        self.plans[self.placement.worker_of(worker)].numerics
    }

    /// The stream on which a worker has a reservation.
    pub(crate) fn stream_of(&self, worker: WorkerKey, incarnation: u64) -> StreamId {
        let mut connections = self.connections.iter();
        let found = connections.find(|(_, connection)| {
            connection.key == worker && connection.incarnation == incarnation
        });
        *found.expect("a reservation is on a stream").0
    }
}

/// The name of one life of a coordinator.
pub(crate) fn name(at: usize, life: u32) -> u64 {
    (at as u64 + 1) * 1000 + u64::from(life)
}

/// The numerics_id of a target, as the product writes it.
pub(crate) fn numerics_id(numerics: Numerics) -> &'static str {
    NUMERICS[numerics]
}

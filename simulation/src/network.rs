//! Virtual time and the network: what happens when, what is under way between whom, and what the network does to it.
//!
//! A stream keeps the order of what it carries, in each direction, and loses nothing before it breaks; when it breaks,
//! everything that has not arrived is gone, and its two ends learn of it at different times. Calls beside a stream
//! keep no order. A path that is blocked lets nothing through in one direction until it is healed.

use std::collections::{BTreeMap, VecDeque};

use speculation::Time;
use speculation::message::{Addressed, CoordinatorFrame, FromWorker, SessionId, SessionSpec};

use crate::client::{ClientEvent, FromClient};
use crate::reference::Dice;
use crate::scenario::{Delays, Fault};

/// One incarnation of the stream between a coordinator and a worker; an index that is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) usize);

/// The two ends of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Coordinator,
    Worker,
}

/// What reaches a worker.
#[derive(Clone, Debug)]
pub(crate) enum ToWorker {
    Connect,
    Open { call: u64, spec: Box<SessionSpec> },
    Frame(CoordinatorFrame),
    Closed,
}

/// What a worker says of one session.
pub(crate) type Message = Addressed<FromWorker>;

/// What a worker answers to an open call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Opened,
    Full,
    NoStream,
    Duplicate,
    /// The worker takes no new sessions.
    Draining,
    /// The call broke with its stream.
    Broken,
}

/// What reaches a coordinator.
#[derive(Clone, Debug)]
pub(crate) enum ToCoordinator {
    Accepted,
    Refused,
    Answered { call: u64, answer: Answer },
    Frame(Vec<Message>),
    Closed,
}

/// Everything that can happen.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// What a stream carries arrives: the next thing that was sent that way.
    NextToWorker(StreamId),
    NextToCoordinator(StreamId),
    /// What was sent beside a stream arrives.
    ToWorker(StreamId, ToWorker),
    ToCoordinator(StreamId, ToCoordinator),
    /// An end learns that its stream is broken.
    Broken(StreamId, End),
    /// A worker's model thread looks again.
    Tick(usize, u32),
    /// A step has been computed, or has lasted as long as its pace wants.
    StepEnds(usize, u32, u64),
    /// A writer takes what the slots of a stream hold.
    WorkerWrites(usize, u32, StreamId),
    CoordinatorWrites(StreamId),
    /// A coordinator's task of one request is scheduled.
    Run(usize, u32, SessionId),
    Connect(usize, u32, usize),
    /// A coordinator's sources list a worker again.
    Listed(usize, u32, usize),
    /// A stream was not accepted in time.
    Timeout(StreamId),
    /// An open call that found the worker full is made again.
    CallAgain(usize, u32, u64),
    /// An open call ends because its stream is lost.
    CallBreaks(usize, u32, u64),
    Fault(Fault),
    WorkerStarts(usize),
    CoordinatorStarts(usize),
    /// What an attempt of a client is told, or does.
    Client(usize, u32, ClientEvent),
    /// What an attempt of a client wants of a coordinator in one of its lives.
    FromClient(usize, u32, (usize, u32), FromClient),
}

/// One stream, as the network sees it.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) coordinator: usize,
    pub(crate) coordinator_life: u32,
    pub(crate) worker: usize,
    /// Nothing passes any more.
    pub(crate) is_cut: bool,
    /// When the last message of each direction arrives.
    last: [Time; 2],
    /// What is under way. Whatever holds messages up, they keep their order.
    pub(crate) to_worker: VecDeque<ToWorker>,
    pub(crate) to_coordinator: VecDeque<ToCoordinator>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) now: Time,
    pub(crate) dice: Dice,
    pub(crate) streams: Vec<Stream>,
    turn: u64,
    /// What happens at one time happens in the order in which it was planned.
    queue: BTreeMap<(Time, u64), Event>,
    delays: Delays,
    workers: usize,
    /// Until when nothing passes: by coordinator and worker, down and up.
    blocked: Vec<[Time; 2]>,
    /// When the last message to a client arrives, by coordinator and client.
    told: BTreeMap<(usize, usize), Time>,
    /// What has happened, if anybody wants to know.
    pub(crate) log: Option<Vec<String>>,
}

/// Notes what has happened, if anybody wants to know; costs nothing otherwise.
macro_rules! note {
    ($network:expr, $($text:tt)+) => {
        if $network.log.is_some() {
            let line = format!($($text)+);
            $network.push_line(line);
        }
    };
}
pub(crate) use note;

impl Network {
    pub(crate) fn new(dice: Dice, delays: Delays, coordinators: usize, workers: usize) -> Self {
        Network {
            now: Time::from_millis(1),
            dice,
            streams: Vec::new(),
            turn: 0,
            queue: BTreeMap::new(),
            delays,
            workers,
            blocked: vec![[Time::ZERO; 2]; coordinators * workers],
            told: BTreeMap::new(),
            log: None,
        }
    }

    pub(crate) fn push_line(&mut self, line: String) {
        let now = self.now;
        if let Some(log) = &mut self.log {
            log.push(format!("{:>12.6} {line}", now.as_secs_f64()));
        }
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.turn += 1;
        self.queue.insert((at, self.turn), event);
    }

    pub(crate) fn after_us(&mut self, us: u64, event: Event) {
        self.at(self.now + Time::from_micros(us), event);
    }

    /// The next event; time goes on to it.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = self.now.max(at);
        Some(event)
    }

    /// How long something takes from here to there, microseconds.
    pub(crate) fn trip_us(&mut self) -> u64 {
        self.delays.base_us + self.dice.roll() % (self.delays.jitter_us + 1)
    }

    /// How long a call beside the streams, or its answer, takes, microseconds.
    fn call_us(&mut self) -> u64 {
        self.trip_us() + self.dice.roll() % (self.delays.calls_us + 1)
    }

    /// The coordinator of a stream, its life then, the worker, and whether nothing passes any more.
    pub(crate) fn ends(&self, stream: StreamId) -> (usize, u32, usize, bool) {
        let stream = &self.streams[stream.0];
        let life = stream.coordinator_life;
        (stream.coordinator, life, stream.worker, stream.is_cut)
    }

    pub(crate) fn stream(&mut self, coordinator: usize, life: u32, worker: usize) -> StreamId {
        self.streams.push(Stream {
            coordinator,
            coordinator_life: life,
            worker,
            is_cut: false,
            last: [Time::ZERO; 2],
            to_worker: VecDeque::new(),
            to_coordinator: VecDeque::new(),
        });
        StreamId(self.streams.len() - 1)
    }

    /// Sends to the worker in the order of the stream.
    pub(crate) fn send_to_worker(&mut self, stream: StreamId, what: ToWorker) {
        let at = self.in_order(stream, 0);
        self.streams[stream.0].to_worker.push_back(what);
        self.at(at, Event::NextToWorker(stream));
    }

    /// Sends to the worker beside the stream.
    pub(crate) fn call(&mut self, stream: StreamId, what: ToWorker) {
        let trip = self.call_us();
        self.after_us(trip, Event::ToWorker(stream, what));
    }

    /// Sends to the coordinator in the order of the stream.
    pub(crate) fn send_to_coordinator(&mut self, stream: StreamId, what: ToCoordinator) {
        let at = self.in_order(stream, 1);
        self.streams[stream.0].to_coordinator.push_back(what);
        self.at(at, Event::NextToCoordinator(stream));
    }

    /// Answers a call beside the stream.
    pub(crate) fn answer(&mut self, stream: StreamId, what: ToCoordinator) {
        let trip = self.call_us();
        self.after_us(trip, Event::ToCoordinator(stream, what));
    }

    /// Tells a client something, in order.
    pub(crate) fn tell_client(
        &mut self,
        coordinator: usize,
        (client, attempt): (usize, u32),
        event: ClientEvent,
    ) {
        let at = self.now + Time::from_micros(self.trip_us());
        let last = self.told.entry((coordinator, client)).or_default();
        *last = at.max(*last);
        let at = *last;
        self.at(at, Event::Client(client, attempt, event));
    }

    fn in_order(&mut self, stream: StreamId, way: usize) -> Time {
        let at = self.now + Time::from_micros(self.trip_us());
        let last = &mut self.streams[stream.0].last[way];
        *last = at.max(*last);
        *last
    }

    /// Nothing passes between them in one direction (0 is down to the worker) until then.
    pub(crate) fn block(&mut self, coordinator: usize, worker: usize, way: usize, until: Time) {
        let path = &mut self.blocked[coordinator * self.workers + worker][way];
        *path = until.max(*path);
    }

    /// When a message that arrives now gets through, if not now.
    pub(crate) fn held_up(&self, stream: StreamId, way: usize) -> Option<Time> {
        let Stream {
            coordinator,
            worker,
            ..
        } = self.streams[stream.0];
        let until = self.blocked[coordinator * self.workers + worker][way];
        (until > self.now).then_some(until)
    }
}

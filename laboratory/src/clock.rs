//! Virtual time: what happens when, and how long messages take.

use std::collections::BTreeMap;

use control::session::Parting;
use decode::sampling::{NoiseKey, SamplingParams};
use speculation::Time;
use speculation::message::{Addressed, CoordinatorFrame, FromWorker, SessionId, SessionSpec, Term};

use crate::experiment::Network;

/// What reaches a worker.
#[derive(Debug)]
pub(crate) enum ToWorker {
    Open(Box<SessionSpec>, SamplingParams),
    Frame(CoordinatorFrame),
}

/// What reaches the coordinator.
#[derive(Debug)]
pub(crate) enum ToCoordinator {
    /// An open call was carried out, or not.
    Answered(SessionId, Term, Option<Parting>),
    Reports(Vec<Addressed<FromWorker>>),
}

/// Everything that can happen; workers by their numbers.
#[derive(Debug)]
pub(crate) enum Event {
    ToWorker(usize, ToWorker),
    ToCoordinator(usize, ToCoordinator),
    /// A step has lasted as long as it does.
    StepEnds(usize, u64),
    /// A worker looks again although nothing has arrived.
    Tick(usize),
    /// A client sends its next request.
    Ask,
    /// A session of the coordinator looks again.
    Wake(SessionId),
}

/// The two directions of the way to a worker.
#[derive(Clone, Copy, Debug)]
enum Way {
    Down,
    Up,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Clock {
    pub(crate) now: Time,
    turn: u64,
    /// What happens at one time happens in the order in which it was planned.
    queue: BTreeMap<(Time, u64), Event>,
    network: Network,
    /// When the last message of each direction arrives, by worker.
    last: Vec<[Time; 2]>,
    seed: u64,
}

impl Clock {
    pub(crate) fn new(network: Network, workers: usize, seed: u64) -> Self {
        Clock {
            now: Time::ZERO,
            turn: 0,
            queue: BTreeMap::new(),
            network,
            last: vec![[Time::ZERO; 2]; workers],
            seed,
        }
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.turn += 1;
        self.queue.insert((at, self.turn), event);
    }

    /// The next event; time goes on to it.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let ((at, _), event) = self.queue.pop_first()?;
        self.now = self.now.max(at);
        Some(event)
    }

    pub(crate) fn send_down(&mut self, worker: usize, what: ToWorker) {
        let at = self.arrival(worker, Way::Down);
        self.at(at, Event::ToWorker(worker, what));
    }

    pub(crate) fn send_up(&mut self, worker: usize, what: ToCoordinator) {
        let at = self.arrival(worker, Way::Up);
        self.at(at, Event::ToCoordinator(worker, what));
    }

    /// When a message that is sent now arrives: behind those before it.
    fn arrival(&mut self, worker: usize, way: Way) -> Time {
        let Network { trip, jitter } = self.network;
        let more = match jitter {
            Time::ZERO => Time::ZERO,
            jitter => {
                let bits = NoiseKey::new(self.seed, 0, worker as u32).hash(self.turn as u32);
                // 53 bits, so that every value is exact.
                jitter.mul_f64((bits >> 11) as f64 / (1_u64 << 53) as f64)
            }
        };
        let last = &mut self.last[worker][way as usize];
        *last = (self.now + trip + more).max(*last);
        *last
    }
}

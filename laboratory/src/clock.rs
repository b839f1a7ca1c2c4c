//! Virtual time: what happens when, and how long messages take.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

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

#[derive(Debug)]
struct Entry {
    at: Time,
    turn: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.turn).cmp(&(other.at, other.turn))
    }
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
    queue: BinaryHeap<Reverse<Entry>>,
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
            queue: BinaryHeap::new(),
            network,
            last: vec![[Time::ZERO; 2]; workers],
            seed,
        }
    }

    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.turn += 1;
        let turn = self.turn;
        self.queue.push(Reverse(Entry { at, turn, event }));
    }

    /// The next event; time goes on to it.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let Reverse(entry) = self.queue.pop()?;
        self.now = self.now.max(entry.at);
        Some(entry.event)
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

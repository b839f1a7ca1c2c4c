//! What goes wrong: processes that end or stand still, streams that break, paths that are blocked, messages that come
//! again. And what merely changes: workers that leave a coordinator's sources and come back.

use speculation::Time;

use super::World;
use crate::client::ClientEvent;
use crate::network::{End, Event, StreamId, note};
use crate::scenario::{Fault, KEEPALIVE};

impl World {
    pub(super) fn crash_worker(&mut self, worker: usize, down: Time) {
        note!(self.network, "worker {worker} is gone for {down:?}");
        self.workers[worker].crash();
        for at in 0..self.network.streams.len() {
            let stream = &mut self.network.streams[at];
            if stream.worker == worker && !stream.is_cut {
                stream.is_cut = true;
                let after = self.network.trip_us();
                let notice = Event::Broken(StreamId(at), End::Coordinator);
                self.network.after_us(after, notice);
            }
        }
        let at = self.network.now + down;
        self.network.at(at, Event::WorkerStarts(worker));
    }

    fn crash_coordinator(&mut self, coordinator: usize, down: Time) {
        note!(
            self.network,
            "coordinator {coordinator} is gone for {down:?}"
        );
        let home = &mut self.coordinators[coordinator];
        home.is_up = false;
        let life = home.life;
        for at in 0..self.network.streams.len() {
            let stream = &mut self.network.streams[at];
            let own = stream.coordinator == coordinator && stream.coordinator_life == life;
            if own && !stream.is_cut {
                stream.is_cut = true;
                let after = self.network.trip_us();
                self.network
                    .after_us(after, Event::Broken(StreamId(at), End::Worker));
            }
        }
        for client in &mut self.clients {
            if client.served.is_some_and(|(at, _)| at == coordinator) {
                let after = self.network.trip_us();
                let event = ClientEvent::Failed("the coordinator is gone");
                let (at, attempt) = (client.at, client.attempt);
                self.network
                    .after_us(after, Event::Client(at, attempt, event));
            }
        }
        let at = self.network.now + down;
        self.network.at(at, Event::CoordinatorStarts(coordinator));
    }

    /// A stream breaks; its ends learn of it after their own times.
    fn cut(&mut self, stream: StreamId, notice: [Time; 2]) {
        if std::mem::replace(&mut self.network.streams[stream.0].is_cut, true) {
            return;
        }
        for (end, after) in [(End::Coordinator, notice[0]), (End::Worker, notice[1])] {
            let at = self.network.now + after;
            self.network.at(at, Event::Broken(stream, end));
        }
    }

    fn streams(&self, coordinator: usize, worker: usize) -> Vec<StreamId> {
        (self.network.streams.iter().enumerate())
            .filter(|(_, stream)| stream.coordinator == coordinator && stream.worker == worker)
            .filter(|(_, stream)| !stream.is_cut)
            .map(|(at, _)| StreamId(at))
            .collect()
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        note!(self.network, "{fault:?}");
        let now = self.network.now;
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
            Fault::GiveUp { worker } => {
                let worker = &mut self.workers[worker];
                if worker.is_up {
                    worker.give_up(&mut self.network, &self.languages);
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
                    self.network.block(coordinator, worker, way, now + lasts);
                }
                if lasts > KEEPALIVE {
                    for stream in self.streams(coordinator, worker) {
                        self.cut_later(stream);
                    }
                }
            }
            Fault::Leave {
                coordinator,
                worker,
                lasts,
            } => {
                let home = &mut self.coordinators[coordinator];
                if home.is_up {
                    home.is_touched = true;
                    home.retire(worker);
                    let back = Event::Listed(coordinator, home.life, worker);
                    self.network.at(now + lasts, back);
                }
            }
            Fault::Echo {
                coordinator,
                worker,
            } => {
                let name = self.coordinators[coordinator].name();
                let worker = &mut self.workers[worker];
                if worker.is_up {
                    worker.echo(&mut self.network, name, &self.languages);
                }
            }
        }
    }

    /// A stream that is silent for too long is given up by both ends, each by its own clock.
    fn cut_later(&mut self, stream: StreamId) {
        for end in [End::Coordinator, End::Worker] {
            let after = KEEPALIVE + Time::from_micros(self.network.dice.roll() % 900_000);
            let at = self.network.now + after;
            self.network.at(at, Event::Broken(stream, end));
        }
    }
}

/// How long a fault lasts.
pub(super) fn lasts(fault: &Fault) -> Time {
    match fault {
        Fault::WorkerCrash { down, .. } | Fault::CoordinatorCrash { down, .. } => *down,
        Fault::Hang { lasts, .. }
        | Fault::Lag { lasts, .. }
        | Fault::Block { lasts, .. }
        | Fault::Leave { lasts, .. } => *lasts,
        Fault::Drain { down, .. } => *down + Time::from_secs(10),
        Fault::Break { notice, .. } => notice[0].max(notice[1]),
        Fault::Echo { .. } | Fault::GiveUp { .. } => Time::ZERO,
    }
}

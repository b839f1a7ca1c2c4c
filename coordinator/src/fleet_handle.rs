//! The coordinator's [`Fleet`] behind its one lock, and what follows from each of its changes: whoever waits is notified,
//! and the process is ready once a target was up, while it can take in requests. They wait for a target that is lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use control::admission::Admission;
use control::fleet::{Fleet, Reservation};
use control::placement::{ClientKey, TargetNeed, Turn};
use parking_lot::Mutex;
use runtime::{Latch, Readiness};
use speculation::duty::Role;
use speculation::relay::WorkerKey;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::change::{Notifier, Watcher};
use crate::failure::Failure;

/// See the module documentation. Shared by the registry, the links to the workers and the sessions. The lock is never
/// held across an await, and nothing that runs under it takes it again.
#[derive(Debug)]
pub(crate) struct FleetHandle {
    state: Mutex<State>,
    /// Notified when a reservation becomes free, a completion ends, or a worker comes or goes.
    vacancies: Notifier,
    /// Notified when a worker becomes ready.
    arrivals: Notifier,
    readiness: Readiness,
}

#[derive(Debug)]
struct State {
    fleet: Fleet,
    /// Held until a target was up, and while there is no room for another request.
    latch: Option<Latch>,
    /// Of each worker of the fleet, what is cancelled when the fleet forgets it.
    forgotten: BTreeMap<WorkerKey, CancellationToken>,
}

impl FleetHandle {
    /// A fleet without workers, for so many completions: the process is not ready.
    pub(crate) fn new(admission: Admission, readiness: Readiness) -> Self {
        let latch = Some(readiness.latch());
        FleetHandle {
            state: Mutex::new(State {
                fleet: Fleet::new(admission),
                latch,
                forgotten: BTreeMap::new(),
            }),
            vacancies: Notifier::default(),
            arrivals: Notifier::default(),
            readiness,
        }
    }

    /// Adds a worker, which is expected to have this role, if any. `forgotten` is cancelled when the fleet has forgotten
    /// the worker: it was retired, and has no sessions.
    pub(crate) fn add_worker(
        &self,
        key: WorkerKey,
        role: Option<Role>,
        forgotten: CancellationToken,
    ) {
        let mut state = self.state.lock();
        state.fleet.add_worker(key, role);
        state.forgotten.insert(key, forgotten);
    }

    /// Looks at the fleet.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Fleet) -> T) -> T {
        look(&self.state.lock().fleet)
    }

    /// Changes the fleet, and notifies those whom the change concerns.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Fleet) -> T) -> T {
        let (result, changes) = {
            let mut state = self.state.lock();
            let result = change(&mut state.fleet);
            let changes = state.fleet.poll_changes();
            while let Some(key) = state.fleet.poll_forgotten() {
                if let Some(forgotten) = state.forgotten.remove(&key) {
                    forgotten.cancel();
                }
            }
            if state.fleet.has_had_target() && state.fleet.admission().room() > 0 {
                state.latch = None;
            } else if state.latch.is_none() {
                state.latch = Some(self.readiness.latch());
            }
            (result, changes)
        };
        if changes.arrival {
            self.arrivals.notify();
        }
        if changes.vacancy {
            self.vacancies.notify();
        }
        result
    }

    /// Every reason for a request without a target, or a session that has lost its own, to look again.
    pub(crate) fn vacancies(&self) -> Watcher {
        self.vacancies.watch()
    }

    /// Every worker that becomes ready.
    pub(crate) fn arrivals(&self) -> Watcher {
        self.arrivals.watch()
    }

    /// Takes all completions of a request in, or refuses it at once.
    pub(crate) fn enter(
        self: &Arc<Self>,
        completions: usize,
        priority: i32,
        client: ClientKey,
    ) -> Result<Vec<Entry>, Failure> {
        let turns = self.change(|fleet| fleet.enter(completions, priority, client))?;
        let entries = turns.into_iter().map(|turn| Entry {
            fleet: Arc::clone(self),
            turn,
            stage: Stage::Waiting,
        });
        Ok(entries.collect())
    }

    /// The guard of a turn that waits already.
    pub(crate) fn waiting(self: &Arc<Self>, turn: Turn) -> Waiting {
        Waiting {
            fleet: Arc::clone(self),
            turn,
        }
    }
}

/// A completion that was taken in; dropping it makes room for another.
#[derive(Debug)]
pub(crate) struct Entry {
    fleet: Arc<FleetHandle>,
    turn: Turn,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It waits for its turn, or for a client that takes nothing.
    Waiting,
    /// It runs since then.
    Running(Instant),
}

impl Entry {
    /// When its turn is.
    pub(crate) fn turn(&self) -> Turn {
        self.turn
    }

    /// From now on those of later turns leave it what it could use.
    pub(crate) fn wait(&self, need: TargetNeed) {
        self.fleet.change(|fleet| fleet.wait(self.turn, need));
    }

    /// It has its reservations.
    pub(crate) fn placed(&mut self) {
        self.stage = Stage::Running(Instant::now());
    }

    /// It waits for a client that takes nothing, and has no reservation: another may run.
    pub(crate) fn park(&mut self) {
        if let Stage::Running(_) = self.stage {
            self.stage = Stage::Waiting;
            self.fleet.change(Fleet::handle_parked);
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.fleet.change(|fleet| match self.stage {
            Stage::Running(at) => fleet.handle_ended(self.turn, at.elapsed()),
            Stage::Waiting => fleet.handle_left(self.turn),
        });
    }
}

/// A session in the placement queue that has lost its target; dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    fleet: Arc<FleetHandle>,
    turn: Turn,
}

impl Waiting {
    /// When its turn is.
    pub(crate) fn turn(&self) -> Turn {
        self.turn
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.fleet.change(|fleet| fleet.stop_waiting(self.turn));
    }
}

/// A reservation in the fleet; dropping it gives the reservation back.
#[derive(Debug)]
pub(crate) struct Reserved {
    fleet: Arc<FleetHandle>,
    reservation: Reservation,
}

impl Reserved {
    /// Guards a reservation that was just given.
    pub(crate) fn new(fleet: &Arc<FleetHandle>, reservation: Reservation) -> Self {
        Reserved {
            fleet: Arc::clone(fleet),
            reservation,
        }
    }

    /// Which one.
    pub(crate) fn reservation(&self) -> &Reservation {
        &self.reservation
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.fleet.change(|fleet| fleet.release(self.reservation));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use control::fleet::{Need, NoPlace, Profile, State as Standing, Wanted};
    use futures::FutureExt;
    use speculation::message::SessionId;

    const CLIENT: ClientKey = ClientKey(7);
    const DRAFT: WorkerKey = WorkerKey(0);
    const TARGETS: [WorkerKey; 2] = [WorkerKey(1), WorkerKey(2)];

    fn handle(readiness: &Readiness) -> Arc<FleetHandle> {
        let handle = FleetHandle::new(Admission::new(99, 0), readiness.clone());
        for key in [DRAFT].into_iter().chain(TARGETS) {
            handle.add_worker(key, None, CancellationToken::new());
        }
        Arc::new(handle)
    }

    fn up(handle: &FleetHandle, key: WorkerKey) {
        let profile = Profile {
            numerics_id: "a".to_owned(),
            max_context: 8,
            max_sessions: 1,
            pages: 2,
            page: 4,
            device: String::new(),
        };
        let role = if key == DRAFT {
            Role::Draft
        } else {
            Role::Target
        };
        handle.change(|fleet| fleet.handle_ready(key, role, profile));
    }

    fn down(handle: &FleetHandle, key: WorkerKey) {
        let state = Standing::Connecting(Some("gone".to_owned()));
        handle.change(|fleet| fleet.handle_down(key, state));
    }

    fn place(handle: &Arc<FleetHandle>, session: u64) -> Result<Vec<Reserved>, NoPlace> {
        let given = handle.change(|fleet| {
            let need = Need {
                wanted: Wanted {
                    drafts: 1,
                    qualifiers: 0,
                },
                numerics: None,
                turn: fleet.enter(1, 0, CLIENT).unwrap()[0],
                tokens: 2,
                positions: 8,
            };
            fleet.place(SessionId(session), &need)
        })?;
        Ok((given.into_iter())
            .map(|reservation| Reserved::new(handle, reservation))
            .collect())
    }

    #[test]
    fn the_process_is_ready_once_a_target_was_up_and_while_it_takes_requests_in() {
        let readiness = Readiness::new();
        let handle = handle(&readiness);
        up(&handle, DRAFT);
        assert!(!readiness.is_ready(), "a draft is no target");
        up(&handle, TARGETS[0]);
        assert!(readiness.is_ready());
        down(&handle, TARGETS[0]);
        assert!(readiness.is_ready(), "requests wait for the next one");
        let mut entries = handle.enter(98, 0, CLIENT).unwrap();
        assert!(readiness.is_ready());
        assert!(
            handle.enter(1, 0, CLIENT).is_err(),
            "the last is for others"
        );
        assert!(readiness.is_ready());
        entries.extend(handle.enter(1, 0, ClientKey(8)).unwrap());
        assert!(!readiness.is_ready(), "the queue is full");
        entries.pop();
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_dropped_reservation_is_free_again_and_whoever_waits_is_notified() {
        let handle = handle(&Readiness::new());
        let (mut vacancies, mut arrivals) = (handle.vacancies(), handle.arrivals());
        up(&handle, DRAFT);
        up(&handle, TARGETS[0]);
        down(&handle, TARGETS[1]);
        assert!(arrivals.changed().now_or_never().is_some());
        assert!(vacancies.changed().now_or_never().is_some());
        let first = place(&handle, 1).unwrap();
        assert_eq!(first.len(), 2);
        assert_eq!(place(&handle, 2).unwrap_err(), NoPlace::Busy);
        assert!(vacancies.changed().now_or_never().is_none());
        drop(first);
        assert!(vacancies.changed().now_or_never().is_some());
        assert!(arrivals.changed().now_or_never().is_none());
        assert_eq!(handle.read(|fleet| fleet.reserved().count()), 0);
        assert!(place(&handle, 2).is_ok());
    }

    #[test]
    fn a_retired_worker_is_forgotten_with_its_last_reservation() {
        let readiness = Readiness::new();
        let handle = Arc::new(FleetHandle::new(Admission::new(99, 0), readiness.clone()));
        let forgotten = CancellationToken::new();
        handle.add_worker(TARGETS[0], None, forgotten.clone());
        up(&handle, TARGETS[0]);
        let reserved = place(&handle, 1).unwrap();
        handle.change(|fleet| fleet.retire_worker(TARGETS[0]));
        assert!(!forgotten.is_cancelled() && readiness.is_ready());
        drop(reserved);
        assert!(forgotten.is_cancelled() && readiness.is_ready());
        assert!(handle.state.lock().forgotten.is_empty(), "nothing is kept");
    }

    #[test]
    fn what_is_parked_leaves_room_for_another_and_counts_until_it_ends() {
        let handle = FleetHandle::new(Admission::new(1, 1), Readiness::new());
        handle.add_worker(TARGETS[0], None, CancellationToken::new());
        let handle = Arc::new(handle);
        up(&handle, TARGETS[0]);
        let counts =
            || handle.read(|fleet| (fleet.admission().running(), fleet.admission().waiting()));
        let mut entry = handle.enter(1, 0, CLIENT).unwrap().remove(0);
        let need = Need {
            wanted: Wanted {
                drafts: 0,
                qualifiers: 0,
            },
            numerics: None,
            turn: entry.turn(),
            tokens: 2,
            positions: 8,
        };
        let given = handle
            .change(|fleet| fleet.place(SessionId(1), &need))
            .unwrap();
        entry.placed();
        assert_eq!(counts(), (1, 0));
        let mut vacancies = handle.vacancies();
        drop(Reserved::new(&handle, given[0]));
        entry.park();
        entry.park();
        assert!(vacancies.changed().now_or_never().is_some());
        assert_eq!(counts(), (0, 1));
        let other = handle.enter(1, 0, CLIENT).unwrap();
        assert!(handle.enter(1, 0, CLIENT).is_err(), "it is still inside");
        drop((entry, other));
        assert_eq!(counts(), (0, 0));
    }

    #[test]
    fn who_leaves_the_queue_lets_the_next_one_look() {
        let handle = handle(&Readiness::new());
        let mut entries = handle.enter(2, 0, CLIENT).unwrap();
        for entry in &entries {
            entry.wait(TargetNeed::default());
        }
        let waiting = || handle.read(|fleet| (fleet.queue().len(), fleet.admission().waiting()));
        let mut vacancies = handle.vacancies();
        assert_eq!(waiting(), (2, 2));
        drop(entries.remove(0));
        assert!(vacancies.changed().now_or_never().is_some());
        drop(entries);
        assert!(vacancies.changed().now_or_never().is_none(), "nobody waits");
        assert_eq!(waiting(), (0, 0));
    }
}

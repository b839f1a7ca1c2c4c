//! The workers of this cluster: how they join and leave, their links, and which of them a session gets.

use std::collections::BTreeSet;
use std::sync::Arc;

use control::admission::Admission;
use control::failover::{LostTarget, NoTarget};
use control::fleet::{Fleet, Need, NoPlace, Reservation, State, Text, Turns, Wanted};
use control::placement::{ClientKey, TargetNeed, Turn};
use proto::{outward, v1};
use runtime::{Caller, KeepAlive, Readiness};
use speculation::bypass::Mode;
use speculation::duty::Role;
use speculation::message::SessionId;
use speculation::relay::WorkerKey;
use text::Tokenizer;
use tokio_util::task::TaskTracker;

use crate::change::Watcher;
use crate::config::Config;
use crate::discovery::Address;
use crate::failure::Failure;
use crate::fleet_handle::{Entry, FleetHandle, Reserved, Waiting};
use crate::links::Links;
use crate::mailbox::MailboxMaker;
use crate::reservation::ReservedWorker;
use crate::worker::Worker;
use crate::worker_link;
use crate::worker_stream::WorkerStream;
use crate::worker_totals::Totals;

/// Why a session has no reservation.
#[derive(Debug)]
pub(crate) enum Unplaced {
    /// No target that would do takes a session now; after the next vacancy one may.
    Busy,
    /// No target is ready. There has been one, so another may come soon.
    Missing(Failure),
    /// There is none, and waiting would not help.
    Failed(Failure),
}

/// A session that asks for workers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester<'a> {
    /// The session.
    pub(crate) session: SessionId,
    /// Makes the mailboxes through which its workers reach it.
    pub(crate) mailboxes: &'a MailboxMaker,
}

/// See the module documentation. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    links: Arc<Links>,
    tasks: TaskTracker,
}

impl Registry {
    /// Starts one link per worker of the flags. `readiness` is held back until a target was ready, and while the queue is
    /// full.
    pub(crate) fn start(
        config: &Config,
        coordinator: u64,
        tokenizer: Tokenizer,
        readiness: Readiness,
    ) -> Self {
        let admission = Admission::new(config.max_sessions, config.max_queued);
        let fleet = Arc::new(FleetHandle::new(admission, readiness));
        let caller = Caller::new(config.tls.clone()).with_keep_alive(KeepAlive::LINK);
        let registry = Registry {
            links: Arc::new(Links::new(fleet, coordinator, caller, tokenizer)),
            tasks: TaskTracker::new(),
        };
        for configured in &config.workers {
            registry.add_worker(Address::new(&configured.address), configured.role);
        }
        registry
    }

    /// A worker is listed at this address: from now on it is linked. `expected` is the role that its handshake has to
    /// name, if any.
    pub(crate) fn add_worker(&self, address: Address, expected: Option<Role>) {
        // It may still finish its sessions from when it was listed before.
        for worker in self.links.at(&address.authority) {
            if self
                .fleet()
                .change(|fleet| fleet.restore_worker(worker.key))
            {
                return;
            }
        }
        let key = self.links.next_key();
        let worker = Arc::new(Worker::new(key, expected, address));
        // What the fleet knows has an entry here.
        self.links.workers.insert(key, Arc::clone(&worker));
        (self.fleet()).add_worker(key, expected, worker.forgotten.clone());
        (self.tasks).spawn(worker_link::run(Arc::clone(&self.links), worker));
    }

    /// The worker at this address is no longer listed: it gets no new sessions, finishes those that it has, and is
    /// forgotten then, or when its stream is lost.
    pub(crate) fn retire_worker(&self, address: &Address) {
        for worker in self.links.at(&address.authority) {
            (self.fleet()).change(|fleet| fleet.retire_worker(worker.key));
        }
    }

    /// `HOST:PORT` of every worker.
    pub(crate) fn addresses(&self) -> BTreeSet<Arc<str>> {
        let workers = self.links.all();
        (workers.iter())
            .map(|worker| Arc::clone(&worker.address.authority))
            .collect()
    }

    /// Runs a task beside the links; it is dropped when they end.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.links.stop.clone();
        (self.tasks).spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    fn fleet(&self) -> &Arc<FleetHandle> {
        &self.links.fleet
    }

    /// Resolves when every worker has been tried once.
    pub(crate) async fn tried(&self) {
        for worker in self.links.all() {
            worker.tried.cancelled().await;
        }
    }

    /// Ends all links.
    pub(crate) async fn stop(&self) {
        self.links.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.links.tokenizer
    }

    /// Every reason for a request without a target, or a session that has lost its own, to look again.
    pub(crate) fn vacancies(&self) -> Watcher {
        self.fleet().vacancies()
    }

    /// Every worker that becomes ready.
    pub(crate) fn arrivals(&self) -> Watcher {
        self.fleet().arrivals()
    }

    /// What people call a worker.
    pub(crate) fn address(&self, key: WorkerKey) -> String {
        let worker = self.links.workers.get(&key);
        worker.map_or("a worker that has left".to_owned(), |worker| {
            worker.address.to_string()
        })
    }

    /// Takes all completions of a request in, or refuses it at once.
    pub(crate) fn enter(
        &self,
        completions: usize,
        priority: i32,
        client: ClientKey,
    ) -> Result<Vec<Entry>, Failure> {
        self.fleet().enter(completions, priority, client)
    }

    /// The longest context of all targets, and the target that has it, where that is known.
    pub(crate) fn longest_context(&self) -> Option<(u32, WorkerKey)> {
        self.fleet().read(Fleet::longest_context)
    }

    /// Reserves workers for a new session: the target comes first.
    pub(crate) fn place(
        &self,
        requester: Requester<'_>,
        need: &Need<'_>,
    ) -> Result<Vec<ReservedWorker>, Unplaced> {
        self.fleet()
            .change(|fleet| {
                let given = (fleet.place(requester.session, need)).map_err(|why| match why {
                    NoPlace::Busy => Unplaced::Busy,
                    NoPlace::Missing => {
                        let mut each = fleet.missing_targets(|key| self.address(key));
                        if each.is_empty() {
                            "none is known".clone_into(&mut each);
                        }
                        let failure = Failure::NoTarget(each);
                        if fleet.has_had_target() {
                            Unplaced::Missing(failure)
                        } else {
                            Unplaced::Failed(failure)
                        }
                    }
                    NoPlace::OtherNumerics(present) => Unplaced::Failed(Failure::OtherNumerics {
                        wanted: need.numerics.unwrap_or_default().to_owned(),
                        present: present.join(", "),
                    }),
                    NoPlace::TooLong { context, target } => {
                        Unplaced::Failed(Failure::PromptTooLong {
                            tokens: need.tokens as usize,
                            context,
                            target: self.address(target),
                        })
                    }
                })?;
                Ok(self.all_found(given))
            })
            .map(|found| self.join_all(requester, found))
    }

    /// Reserves drafts and qualifiers, as many as the session still wants besides those it has.
    pub(crate) fn place_contributors(
        &self,
        requester: Requester<'_>,
        wanted: Wanted,
        text: Text,
        present: &[WorkerKey],
    ) -> Vec<ReservedWorker> {
        let found = self.fleet().change(|fleet| {
            let given = fleet.place_contributors(requester.session, wanted, text, present);
            self.all_found(given)
        });
        self.join_all(requester, found)
    }

    /// Reserves another target for a session that has lost its own, or was parked. `own` is the turn by which it was
    /// placed first. When there is no room it waits, until `waiting` is dropped.
    ///
    /// # Errors
    /// When there is none for it now.
    pub(crate) fn replace_target(
        &self,
        requester: Requester<'_>,
        lost: LostTarget,
        need: TargetNeed,
        (own, waiting): (Turn, &mut Option<Waiting>),
    ) -> Result<ReservedWorker, NoTarget> {
        let mut turns = Turns {
            own,
            waiting: waiting.as_ref().map(Waiting::turn),
        };
        let found = self.fleet().change(|fleet| {
            let given = fleet.replace_target(requester.session, lost, need, &mut turns);
            given.map(|given| self.found(given))
        });
        if waiting.is_none() {
            *waiting = turns.waiting.map(|turn| self.fleet().waiting(turn));
        }
        Ok(self.join(requester, found?))
    }

    /// Finds the stream of a reservation. Under the lock of the fleet, where streams come and go.
    fn found(&self, reservation: Reservation) -> Found {
        let worker = self.links.workers.get(&reservation.worker);
        let worker = worker.map(|worker| Arc::clone(worker.value()));
        let worker = worker.expect("the fleet has the workers of the registry");
        let stream = worker.incarnation(reservation.incarnation);
        let stream = stream.expect("a worker that takes sessions has a stream");
        Found {
            reservation,
            stream,
        }
    }

    fn all_found(&self, given: Vec<Reservation>) -> Vec<Found> {
        (given.into_iter())
            .map(|reservation| self.found(reservation))
            .collect()
    }

    /// Joins the session to the stream of its reservation. Not under the lock of the fleet, which the guards take when
    /// they are dropped.
    fn join(&self, requester: Requester<'_>, found: Found) -> ReservedWorker {
        let Found {
            reservation,
            stream,
        } = found;
        let mailbox = requester.mailboxes.mailbox(stream.key);
        let reserved = Reserved::new(self.fleet(), reservation);
        ReservedWorker::join(requester.session, stream, mailbox, reserved)
    }

    fn join_all(&self, requester: Requester<'_>, found: Vec<Found>) -> Vec<ReservedWorker> {
        (found.into_iter())
            .map(|found| self.join(requester, found))
            .collect()
    }

    /// A worker has said that it is shutting down: no new session is given to it, those it has go on.
    pub(crate) fn set_draining(&self, reserved: &ReservedWorker) {
        let &Reservation {
            worker,
            incarnation,
            ..
        } = reserved.reserved.reservation();
        (self.fleet()).change(|fleet| fleet.handle_draining(worker, incarnation));
    }

    /// The text of a session has come to need this many positions on its workers.
    pub(crate) fn grow<'a>(
        &self,
        workers: impl Iterator<Item = &'a ReservedWorker>,
        positions: u32,
    ) {
        self.fleet().change(|fleet| {
            for worker in workers {
                fleet.grow(*worker.reserved.reservation(), positions);
            }
        });
    }

    /// A target has said what it has drafts and qualifiers do.
    pub(crate) fn set_mode(&self, target: &ReservedWorker, mode: Mode) {
        let reservation = *target.reserved.reservation();
        (self.fleet()).change(|fleet| fleet.handle_mode(reservation, mode));
    }

    /// A session has found that a stream is lost.
    pub(crate) fn lose(&self, stream: &WorkerStream, reason: &str) {
        let worker = self.links.workers.get(&stream.key);
        if let Some(worker) = worker.map(|worker| Arc::clone(worker.value())) {
            worker.lose(self.fleet(), stream, reason);
        }
    }

    /// Completions that run, and that wait.
    pub(crate) fn completions(&self) -> (usize, usize) {
        self.fleet()
            .read(|fleet| (fleet.admission().running(), fleet.admission().waiting()))
    }

    /// Completions that have looked for a target in vain: new ones, and those that have lost theirs.
    pub(crate) fn seeking(&self) -> usize {
        self.fleet().read(|fleet| fleet.queue().len())
    }

    /// What was reported of all targets.
    pub(crate) fn targets(&self) -> Totals {
        self.links.targets()
    }

    /// Each worker's role, if it is known, its state in one word, and its sessions.
    pub(crate) fn states(&self) -> Vec<(Option<Role>, &'static str, usize)> {
        let workers = self.links.all();
        self.fleet().read(|fleet| {
            (workers.iter())
                .filter_map(|worker| {
                    let state = match fleet.state(worker.key)? {
                        State::Connecting(_) | State::Lost(_) => "connecting",
                        State::Refused(_) => "refused",
                        State::Ready(_) | State::Draining(_) => "ready",
                    };
                    Some((worker.role(), state, fleet.sessions(worker.key)))
                })
                .collect()
        })
    }

    /// The workers, for people.
    pub(crate) fn describe(&self) -> Vec<v1::WorkerInfo> {
        let workers = self.links.all();
        self.fleet().read(|fleet| {
            (workers.iter())
                .filter_map(|worker| {
                    let state = match fleet.state(worker.key)? {
                        State::Connecting(None) => "connecting".to_owned(),
                        State::Connecting(Some(reason)) | State::Lost(reason) => {
                            format!("connecting: {reason}")
                        }
                        State::Refused(reason) => format!("refused: {reason}"),
                        State::Draining(_) => "draining".to_owned(),
                        State::Ready(_) if fleet.is_retired(worker.key) => "draining".to_owned(),
                        State::Ready(_) => "ready".to_owned(),
                    };
                    Some(describe(worker, state, fleet.sessions(worker.key)))
                })
                .collect()
        })
    }
}

/// A reservation with the stream that it belongs to.
struct Found {
    reservation: Reservation,
    stream: Arc<WorkerStream>,
}

fn describe(worker: &Worker, state: String, sessions: usize) -> v1::WorkerInfo {
    let stream = worker.stream();
    let hello = stream.as_ref().map(|stream| &stream.hello);
    let totals = worker.totals();
    v1::WorkerInfo {
        role: worker.role_name().to_owned(),
        address: worker.address.to_string(),
        model: hello.map_or(String::new(), |hello| hello.model.clone()),
        numerics_id: hello.map_or(String::new(), |hello| hello.numerics_id.clone()),
        state,
        max_sessions: hello.map_or(0, |hello| hello.max_sessions as u32),
        sessions: sessions as u32,
        activity: Some(outward::activity(totals.activity)),
        walks: Some(outward::walks(totals.walks)),
    }
}

//! The workers of this cluster, by address, and which of them a request gets.

use std::sync::Arc;

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use proto::{outward, v1};
use runtime::{Latch, Readiness};
use speculation::limits::MAX_DRAFTS;
use speculation::message::SessionId;
use speculation::relay::{LinkKey, Role};
use text::Tokenizer;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::WorkerConfig;
use crate::hello::role_name;
use crate::link::Link;
use crate::pump;
use crate::seat::{Seat, SeatMaker};
use crate::tally::{self, Tally, Totals};

/// Where a worker stands.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// There is no stream, for the reason of the last attempt.
    Connecting(Option<String>),
    /// It cannot be used as it is.
    Refused(String),
    /// Its stream is up.
    Ready(Arc<Link>),
}

/// A configured worker; lives as long as the coordinator.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) key: LinkKey,
    pub(crate) role: Role,
    pub(crate) address: Arc<str>,
    state: RwLock<State>,
    /// What sessions reported of it.
    pub(crate) tally: Arc<Tally>,
    /// Cancelled when the first attempt to reach it has ended, one way or the other.
    pub(crate) tried: CancellationToken,
}

impl Worker {
    pub(crate) fn role_name(&self) -> &'static str {
        role_name(self.role)
    }

    /// Notes where the worker stands. Whether that is news, for those who log it.
    pub(crate) fn set(&self, state: State) -> bool {
        let mut current = self.state.write();
        let news = match (&*current, &state) {
            (State::Connecting(was), State::Connecting(is)) => was != is,
            (State::Refused(was), State::Refused(is)) => was != is,
            (State::Ready(_), _) | (_, State::Ready(_)) | (State::Connecting(_), _) => true,
            (State::Refused(_), State::Connecting(_)) => true,
        };
        *current = state;
        news
    }

    /// The coordinator ends: sessions that are still there learn it.
    pub(crate) fn lose(&self) {
        if let State::Ready(link) = &*self.state.read() {
            link.lose();
        }
    }

    fn ready(&self) -> Option<Arc<Link>> {
        match &*self.state.read() {
            State::Ready(link) if !link.lost.is_cancelled() => Some(Arc::clone(link)),
            State::Ready(_) | State::Connecting(_) | State::Refused(_) => None,
        }
    }

    fn describe(&self) -> String {
        match &*self.state.read() {
            State::Connecting(_) => "connecting".to_owned(),
            State::Refused(reason) => format!("refused: {reason}"),
            State::Ready(_) => "ready".to_owned(),
        }
    }
}

/// What the tasks of all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Names this process to workers.
    pub(crate) coordinator: u64,
    pub(crate) tokenizer: Tokenizer,
    /// Told whenever a seat becomes free or a worker comes or goes.
    pub(crate) vacated: Arc<Notify>,
    pub(crate) stop: CancellationToken,
    readiness: Readiness,
    targets: Mutex<Targets>,
}

/// Without a target that is ready, neither is the coordinator.
#[derive(Debug)]
struct Targets {
    ready: usize,
    /// Held while none is.
    latch: Option<Latch>,
}

/// A worker's stream is up for as long as this lives.
#[derive(Debug)]
pub(crate) struct Up<'a> {
    shared: &'a Shared,
    role: Role,
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        if self.role == Role::Target {
            let mut targets = self.shared.targets.lock();
            targets.ready -= 1;
            if targets.ready == 0 {
                targets.latch = Some(self.shared.readiness.latch());
            }
        }
    }
}

impl Shared {
    /// A worker of this role is ready, until the result is dropped.
    pub(crate) fn up(&self, role: Role) -> Up<'_> {
        if role == Role::Target {
            let mut targets = self.targets.lock();
            targets.ready += 1;
            targets.latch = None;
        }
        self.vacated.notify_waiters();
        Up { shared: self, role }
    }
}

/// Which workers a session wants besides a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Drafts, at most.
    pub(crate) drafts: usize,
    /// Qualifiers, at most.
    pub(crate) qualifiers: usize,
}

/// A session's seat and the link it is on.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) link: Arc<Link>,
    pub(crate) seat: Arc<Seat>,
}

/// Why a session has no place.
#[derive(Debug)]
pub(crate) enum NoPlace {
    /// Every ready target serves as many sessions as it can.
    Busy,
    /// No target is ready; the text says what each is doing.
    Missing(String),
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Registry {
    workers: DashMap<Arc<str>, Arc<Worker>>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Held while a session takes its seats, so that two do not take the last one of a worker.
    placing: Mutex<()>,
}

impl Registry {
    /// Starts one task per worker. `readiness` is held back whenever no target is ready.
    pub(crate) fn start(
        configured: &[WorkerConfig],
        coordinator: u64,
        tokenizer: Tokenizer,
        readiness: Readiness,
    ) -> Self {
        let targets = Targets {
            ready: 0,
            latch: Some(readiness.latch()),
        };
        let registry = Registry {
            workers: DashMap::new(),
            shared: Arc::new(Shared {
                coordinator,
                tokenizer,
                vacated: Arc::new(Notify::new()),
                stop: CancellationToken::new(),
                readiness,
                targets: Mutex::new(targets),
            }),
            tasks: TaskTracker::new(),
            placing: Mutex::new(()),
        };
        for (number, config) in (0..).zip(configured) {
            let worker = Arc::new(Worker {
                key: LinkKey(number),
                role: config.role,
                address: config.address.as_str().into(),
                state: RwLock::new(State::Connecting(None)),
                tally: Arc::default(),
                tried: CancellationToken::new(),
            });
            (registry.workers).insert(Arc::clone(&worker.address), Arc::clone(&worker));
            (registry.tasks).spawn(pump::run(Arc::clone(&registry.shared), worker));
        }
        registry
    }

    /// Resolves when every worker has been tried once.
    pub(crate) async fn tried(&self) {
        for worker in self.workers() {
            worker.tried.cancelled().await;
        }
    }

    /// Ends all links.
    pub(crate) async fn stop(&self) {
        self.shared.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.shared.tokenizer
    }

    pub(crate) fn coordinator(&self) -> u64 {
        self.shared.coordinator
    }

    /// Told whenever a request without a place should look again.
    pub(crate) fn vacated(&self) -> &Notify {
        &self.shared.vacated
    }

    /// In the order of their configuration.
    fn workers(&self) -> Vec<Arc<Worker>> {
        let mut workers: Vec<_> = (self.workers.iter())
            .map(|entry| Arc::clone(entry.value()))
            .collect();
        workers.sort_by_key(|worker| worker.key);
        workers
    }

    /// Seats a session: the target first.
    pub(crate) fn place(
        &self,
        session: SessionId,
        wanted: Wanted,
        seats: &SeatMaker,
    ) -> Result<Vec<Place>, NoPlace> {
        let _placing = self.placing.lock();
        let workers = self.workers();
        let ready = |role| {
            let mut links: Vec<_> = (workers.iter())
                .filter(|worker| worker.role == role)
                .filter_map(|worker| worker.ready())
                .collect();
            // Stable: among equals the first configured one.
            links.sort_by_key(|link| link.sessions());
            links
        };
        let targets = ready(Role::Target);
        let target = match targets.iter().find(|link| !link.is_full()) {
            Some(target) => Arc::clone(target),
            None if targets.is_empty() => return Err(NoPlace::Missing(self.missing())),
            None => return Err(NoPlace::Busy),
        };
        let some = |role, most: usize| {
            let mut links = ready(role);
            links.retain(|link| !link.is_full());
            links.truncate(most);
            links
        };
        let links = std::iter::once(target)
            .chain(some(Role::Qualifier, wanted.qualifiers))
            .chain(some(Role::Draft, wanted.drafts.min(MAX_DRAFTS)));
        Ok(links
            .map(|link| {
                let seat = seats.seat(link.key);
                link.join(session, Arc::clone(&seat));
                Place { link, seat }
            })
            .collect())
    }

    /// What each target is doing instead of being ready.
    fn missing(&self) -> String {
        let targets = self.workers().into_iter();
        let each: Vec<_> = targets
            .filter(|worker| worker.role == Role::Target)
            .map(|worker| match &*worker.state.read() {
                State::Connecting(Some(reason)) => {
                    format!("{} is not connected ({reason})", worker.address)
                }
                State::Connecting(None) => format!("{} is being connected", worker.address),
                State::Refused(reason) => format!("{} is refused: {reason}", worker.address),
                State::Ready(_) => format!("{} was just lost", worker.address),
            })
            .collect();
        each.join("; ")
    }

    /// What was reported of all targets.
    pub(crate) fn targets(&self) -> Totals {
        let workers = self.workers();
        let targets = workers.iter().filter(|worker| worker.role == Role::Target);
        tally::sum(targets.map(|target| target.tally.totals()))
    }

    /// Each worker's role, state in one word, and sessions.
    pub(crate) fn states(&self) -> Vec<(Role, &'static str, usize)> {
        (self.workers().into_iter())
            .map(|worker| {
                let sessions = worker.ready().map_or(0, |link| link.sessions());
                let state = match &*worker.state.read() {
                    State::Connecting(_) => "connecting",
                    State::Refused(_) => "refused",
                    State::Ready(_) => "ready",
                };
                (worker.role, state, sessions)
            })
            .collect()
    }

    /// The workers, for people.
    pub(crate) fn describe(&self) -> Vec<v1::WorkerInfo> {
        (self.workers().into_iter())
            .map(|worker| {
                let link = worker.ready();
                let hello = link.as_ref().map(|link| &link.hello);
                let totals = worker.tally.totals();
                v1::WorkerInfo {
                    role: worker.role_name().to_owned(),
                    address: worker.address.to_string(),
                    model: hello.map_or(String::new(), |hello| hello.model.clone()),
                    numerics_id: hello.map_or(String::new(), |hello| hello.numerics_id.clone()),
                    state: worker.describe(),
                    max_sessions: hello.map_or(0, |hello| hello.max_sessions as u32),
                    sessions: link.as_ref().map_or(0, |link| link.sessions() as u32),
                    activity: Some(outward::activity(totals.activity)),
                    walks: Some(outward::walks(totals.walks)),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn shared(readiness: &Readiness) -> Shared {
        let json = r#"{"version":"1.0","added_tokens":[],"pre_tokenizer":null,"decoder":null,
            "model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;
        Shared {
            coordinator: 1,
            tokenizer: Tokenizer::from_bytes(json.as_bytes()).unwrap(),
            vacated: Arc::default(),
            stop: CancellationToken::new(),
            readiness: readiness.clone(),
            targets: Mutex::new(Targets {
                ready: 0,
                latch: Some(readiness.latch()),
            }),
        }
    }

    #[test]
    fn ready_is_who_has_a_target_however_often_it_changes() {
        let readiness = Readiness::new();
        let shared = shared(&readiness);
        let draft = shared.up(Role::Draft);
        assert!(!readiness.is_ready(), "a draft is no target");
        let first = shared.up(Role::Target);
        let second = shared.up(Role::Target);
        assert!(readiness.is_ready());
        drop(first);
        assert!(readiness.is_ready(), "another target is left");
        drop(second);
        assert!(!readiness.is_ready());
        let again = shared.up(Role::Target);
        assert!(readiness.is_ready());
        drop((again, draft));
        assert!(!readiness.is_ready());
    }
}

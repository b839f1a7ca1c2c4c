//! The workers of this cluster, by address, and which of them a request gets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::{Mutex, RwLock};
use proto::{outward, v1};
use runtime::{Caller, KeepAlive, Latch, Readiness};
use speculation::ferry::Wanted;
use speculation::limits::MAX_DRAFTS;
use speculation::message::{LinkName, SessionId};
use speculation::relay::{LinkKey, Role};
use speculation::replay::{Hope, Returns};
use text::Tokenizer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;
use crate::hello::role_name;
use crate::link::Link;
use crate::news::{Listener, News};
use crate::pump;
use crate::seat::{Seat, SeatMaker};
use crate::seekers::{Seeker, Seekers, Turn, Waiting};
use crate::tally::{self, Tally, Totals};

/// Where a worker stands.
#[derive(Clone, Debug)]
pub(crate) enum State {
    /// There is no stream, for the reason of the last attempt.
    Connecting(Option<String>),
    /// The stream broke, and the first attempt to have it back is under way.
    Lost(String),
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
            (State::Lost(was), State::Lost(is)) => was != is,
            (State::Ready(_) | State::Lost(_) | State::Connecting(_) | State::Refused(_), _) => {
                true
            }
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
            State::Ready(_) | State::Lost(_) | State::Connecting(_) | State::Refused(_) => None,
        }
    }

    /// Its link, if it takes sessions.
    fn open(&self) -> Option<Arc<Link>> {
        self.ready().filter(|link| !link.is_retired())
    }

    /// Whether it may be there again in no time.
    fn is_about_to_return(&self) -> bool {
        match &*self.state.read() {
            State::Lost(_) | State::Connecting(None) => true,
            State::Ready(link) => link.lost.is_cancelled(),
            State::Connecting(Some(_)) | State::Refused(_) => false,
        }
    }

    fn describe(&self) -> String {
        match &*self.state.read() {
            State::Connecting(_) | State::Lost(_) => "connecting".to_owned(),
            State::Refused(reason) => format!("refused: {reason}"),
            State::Ready(link) if link.is_retired() => "draining".to_owned(),
            State::Ready(_) => "ready".to_owned(),
        }
    }
}

/// What the tasks of all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Names this process to workers.
    coordinator: u64,
    /// Streams so far, to all workers.
    links: AtomicU64,
    /// How workers are called.
    pub(crate) caller: Caller,
    pub(crate) tokenizer: Tokenizer,
    /// Told whenever a seat becomes free or a worker comes or goes.
    pub(crate) vacancies: News,
    /// Told whenever a worker becomes ready.
    pub(crate) arrivals: News,
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
    /// The name of a new stream.
    pub(crate) fn next_link(&self) -> LinkName {
        LinkName {
            coordinator: self.coordinator,
            incarnation: self.links.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }

    /// A worker of this role is ready, until the result is dropped.
    pub(crate) fn up(&self, role: Role) -> Up<'_> {
        if role == Role::Target {
            let mut targets = self.targets.lock();
            targets.ready += 1;
            targets.latch = None;
        }
        self.arrivals.tell();
        self.vacancies.tell();
        Up { shared: self, role }
    }
}

/// A session's seat and the link it is on. Dropping it closes the session there, whatever ended it.
#[derive(Debug)]
pub(crate) struct Place {
    session: SessionId,
    pub(crate) link: Arc<Link>,
    pub(crate) seat: Arc<Seat>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.link.leave(self.session);
    }
}

/// Why a session has no place.
#[derive(Debug)]
pub(crate) enum NoPlace {
    /// Every ready target serves as many sessions as it can.
    Busy,
    /// No target is ready; the text says what each is doing.
    Missing(String),
    /// There are targets, but none with the numerics that are needed; the text has theirs.
    OtherNumerics(String),
    /// The longest context of all targets does not hold the text.
    TooLong { context: u32, target: String },
}

/// What a new session needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Need<'a> {
    pub(crate) wanted: Wanted,
    /// Only a target of this numerics_id will do.
    pub(crate) numerics: Option<&'a str>,
    /// When its turn is.
    pub(crate) turn: Turn,
    /// Tokens of the prompt.
    pub(crate) tokens: u32,
    /// Positions that the text may take, where the context holds them.
    pub(crate) positions: u32,
}

/// What a session knows of the target it has lost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LostTarget<'a> {
    pub(crate) key: LinkKey,
    /// Only a target of equal numerics goes on with the same text.
    pub(crate) numerics_id: &'a str,
    pub(crate) hope: Hope,
}

fn take_seat(session: SessionId, link: Arc<Link>, positions: u32, seats: &SeatMaker) -> Place {
    let seat = seats.seat(link.key);
    link.join(session, Arc::clone(&seat), positions);
    Place {
        session,
        link,
        seat,
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Registry {
    workers: DashMap<Arc<str>, Arc<Worker>>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
    /// Held while a session takes its seats, so that two do not take the last one of a worker.
    placing: Mutex<()>,
    pub(crate) seekers: Arc<Seekers>,
}

impl Registry {
    /// Starts one task per worker. `readiness` is held back whenever no target is ready.
    pub(crate) fn start(
        config: &Config,
        coordinator: u64,
        tokenizer: Tokenizer,
        readiness: Readiness,
    ) -> Self {
        let targets = Targets {
            ready: 0,
            latch: Some(readiness.latch()),
        };
        let vacancies = News::new();
        let registry = Registry {
            workers: DashMap::new(),
            seekers: Seekers::new(vacancies.clone()),
            shared: Arc::new(Shared {
                coordinator,
                links: AtomicU64::new(0),
                caller: Caller::new(config.tls.clone()).with_keep_alive(KeepAlive::LINK),
                tokenizer,
                vacancies,
                arrivals: News::new(),
                stop: CancellationToken::new(),
                readiness,
                targets: Mutex::new(targets),
            }),
            tasks: TaskTracker::new(),
            placing: Mutex::new(()),
        };
        for (number, config) in (0..).zip(&config.workers) {
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

    /// Hears of every reason for a request without a place, or a session without a target, to look again.
    pub(crate) fn vacancies(&self) -> Listener {
        self.shared.vacancies.listen()
    }

    /// Hears of every worker that becomes ready.
    pub(crate) fn arrivals(&self) -> Listener {
        self.shared.arrivals.listen()
    }

    /// In the order of their configuration.
    fn workers(&self) -> Vec<Arc<Worker>> {
        let mut workers: Vec<_> = (self.workers.iter())
            .map(|entry| Arc::clone(entry.value()))
            .collect();
        workers.sort_by_key(|worker| worker.key);
        workers
    }

    /// The workers of a role that take sessions, least loaded first; among equals in the order of configuration.
    fn open_links(&self, role: Role) -> Vec<Arc<Link>> {
        let mut links: Vec<_> = (self.workers().iter())
            .filter(|worker| worker.role == role)
            .filter_map(|worker| worker.open())
            .collect();
        links.sort_by_key(|link| link.sessions());
        links
    }

    /// Seats a session: the target first.
    pub(crate) fn place(
        &self,
        session: SessionId,
        need: &Need<'_>,
        seats: &SeatMaker,
    ) -> Result<Vec<Place>, NoPlace> {
        let _placing = self.placing.lock();
        let targets = self.open_links(Role::Target);
        let equal = |link: &Link| need.numerics.is_none_or(|id| link.hello.numerics_id == id);
        let mut fitting: Vec<_> = targets.iter().filter(|link| equal(link)).collect();
        let longest = (fitting.iter()).max_by_key(|link| link.hello.max_context);
        let too_long = (longest.filter(|link| link.hello.max_context <= need.tokens))
            .map(|link| (link.hello.max_context, link.address.to_string()));
        fitting.retain(|link| link.hello.max_context > need.tokens);
        let free = |link: &&&Arc<Link>| {
            link.has_room(need.positions) && self.seekers.may_take(need.turn, link)
        };
        let target = match fitting.iter().find(free) {
            Some(&target) => Arc::clone(target),
            None if !fitting.is_empty() || self.is_one_returning() => return Err(NoPlace::Busy),
            None if targets.is_empty() => return Err(NoPlace::Missing(self.missing())),
            None => {
                return Err(match too_long {
                    Some((context, target)) => NoPlace::TooLong { context, target },
                    None => {
                        let ids = targets.iter().map(|link| link.hello.numerics_id.as_str());
                        NoPlace::OtherNumerics(ids.collect::<Vec<_>>().join(", "))
                    }
                });
            }
        };
        let mut places = vec![take_seat(session, target, need.positions, seats)];
        let positions = need.positions.min(places[0].link.hello.max_context);
        places.extend(self.contributors(session, need.wanted, positions, &[], seats));
        Ok(places)
    }

    /// Seats a session on drafts and qualifiers, as many as it still wants besides those it has.
    pub(crate) fn place_contributors(
        &self,
        session: SessionId,
        wanted: Wanted,
        positions: u32,
        present: &[LinkKey],
        seats: &SeatMaker,
    ) -> Vec<Place> {
        let _placing = self.placing.lock();
        self.contributors(session, wanted, positions, present, seats)
    }

    fn contributors(
        &self,
        session: SessionId,
        wanted: Wanted,
        positions: u32,
        present: &[LinkKey],
        seats: &SeatMaker,
    ) -> Vec<Place> {
        let some = |role, most: usize| {
            let links = self.open_links(role).into_iter();
            links
                .filter(|link| link.hello.max_context >= positions)
                .filter(|link| link.has_room(positions) && !present.contains(&link.key))
                .take(most)
        };
        some(Role::Qualifier, wanted.qualifiers)
            .chain(some(Role::Draft, wanted.drafts.min(MAX_DRAFTS)))
            .map(|link| take_seat(session, link, positions, seats))
            .collect()
    }

    /// Seats a session that has lost its target: there again if it is back, otherwise on another of equal numerics, once
    /// the lost one does not come back at once. When there is no room, seats that become free are for those in `waiting`,
    /// until that is dropped.
    pub(crate) fn replace_target(
        &self,
        session: SessionId,
        lost: &LostTarget<'_>,
        positions: u32,
        seats: &SeatMaker,
        waiting: &mut Option<Waiting>,
    ) -> Option<Place> {
        let _placing = self.placing.lock();
        let turn = match waiting {
            Some(waiting) => waiting.turn,
            None => self.seekers.orphan(),
        };
        let mut links = self.open_links(Role::Target);
        links.retain(|link| link.hello.numerics_id == lost.numerics_id);
        links.retain(|link| link.hello.max_context >= positions && link.has_room(positions));
        links.retain(|link| self.seekers.may_take(turn, link));
        if links.is_empty() && waiting.is_none() {
            let seeker = Seeker {
                numerics: Some(lost.numerics_id.to_owned()),
                not: (lost.hope == Hope::Refuses).then_some(lost.key),
                context: positions,
            };
            *waiting = Some(self.seekers.wait(turn, seeker));
        }
        let own = links.iter().position(|link| link.key == lost.key);
        let own = own.map(|at| links.remove(at));
        let soon = (self.workers().iter())
            .any(|worker| worker.key == lost.key && worker.is_about_to_return());
        let returns = if soon {
            Returns::Soon
        } else {
            Returns::Unknown
        };
        let link = lost.hope.choose(own, links.into_iter().next(), returns)?;
        Some(take_seat(session, link, positions, seats))
    }

    /// Whether a target may be there in no time.
    fn is_one_returning(&self) -> bool {
        (self.workers().iter())
            .any(|worker| worker.role == Role::Target && worker.is_about_to_return())
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
                State::Lost(reason) => format!("{} was just lost ({reason})", worker.address),
                State::Refused(reason) => format!("{} is refused: {reason}", worker.address),
                State::Ready(link) if link.is_retired() => {
                    format!("{} is shutting down", worker.address)
                }
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
                    State::Connecting(_) | State::Lost(_) => "connecting",
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
            caller: Caller::default(),
            coordinator: 1,
            links: AtomicU64::new(0),
            tokenizer: Tokenizer::from_bytes(json.as_bytes()).unwrap(),
            vacancies: News::new(),
            arrivals: News::new(),
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

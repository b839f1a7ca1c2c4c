//! The fleet as one coordinator sees it: the state of each worker, which sessions have a reservation on it, and which
//! of them a session gets. Requests enter it, wait in its one queue, and run once they are placed.
//!
//! Workers come and go. One that is retired takes no new sessions, and is forgotten once it has none; see
//! [`Fleet::retire_worker`].

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use speculation::Time;
use speculation::bypass::Mode;
use speculation::duty::Role;
use speculation::limits::MAX_DRAFTS;
use speculation::message::SessionId;
use speculation::relay::WorkerKey;

use crate::admission::{Admission, QueueFull};
use crate::failover::{Expectation, LostTarget, NoTarget, Returns};
use crate::placement::{ClientKey, PlacementQueue, TargetNeed, Turn};

/// What a worker can hold, from its handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Names everything the text depends on.
    pub numerics_id: String,
    /// Tokens a text may have there, prompt included.
    pub max_context: u32,
    /// Sessions it serves at one time.
    pub max_sessions: usize,
    /// Pages of its cache.
    pub pages: u32,
    /// Positions of one page.
    pub page: u32,
    /// Names what it computes on: workers of the same name slow each other down. Empty: nothing that others use.
    pub device: String,
}

impl Profile {
    fn pages_of(&self, positions: u32) -> u32 {
        positions.min(self.max_context).div_ceil(self.page)
    }
}

/// The state of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no stream, for the reason of the last attempt; without one, nothing was tried yet.
    Connecting(Option<String>),
    /// The stream broke, and the first attempt to have it back is under way.
    Lost(String),
    /// It cannot be used as it is.
    Refused(String),
    /// Its stream is up.
    Ready(Profile),
    /// Its stream is up, but it takes no new sessions.
    Draining(Profile),
}

/// Whether a worker is to stay in the fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    /// It takes sessions while its stream is up.
    Listed,
    /// It finishes the sessions that it has, and is forgotten then.
    Retired,
}

#[derive(Debug)]
struct Worker {
    /// What its newest handshake says; before the first one what is expected, if anything is.
    role: Option<Role>,
    state: State,
    membership: Membership,
    /// Counts its streams, so that what belongs to an older one is recognised.
    incarnation: u64,
    /// Of a target: what it has others do, as it said last.
    mode: Mode,
    /// Pages that each session is expected to need, of those on the current stream.
    reservations: BTreeMap<SessionId, u32>,
}

impl Worker {
    fn open(&self) -> Option<&Profile> {
        match (&self.state, self.membership) {
            (State::Ready(profile), Membership::Listed) => Some(profile),
            (State::Ready(_), Membership::Retired)
            | (State::Connecting(_) | State::Lost(_) | State::Refused(_) | State::Draining(_), _) => {
                None
            }
        }
    }

    /// Whether it is a target, or may turn out to be one.
    fn may_be_target(&self) -> bool {
        self.role.is_none_or(|role| role == Role::Target)
    }

    /// Whether there is room for one more session, whose text may take this many positions.
    fn has_room(&self, profile: &Profile, positions: u32) -> bool {
        let pages = self.reservations.values().sum::<u32>() + profile.pages_of(positions);
        self.reservations.len() < profile.max_sessions && pages <= profile.pages
    }

    /// Whether it may be back in a moment.
    fn is_about_to_return(&self) -> bool {
        matches!(self.state, State::Lost(_) | State::Connecting(None))
    }
}

/// The right of a session to be opened on a worker. [`Fleet::release`] gives it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a reservation that is not released is lost"]
pub struct Reservation {
    /// The session.
    pub session: SessionId,
    /// The worker.
    pub worker: WorkerKey,
    /// What the worker is.
    pub role: Role,
    /// The stream of the worker that it belongs to.
    pub incarnation: u64,
    /// Tokens that a text may have there.
    pub context: u32,
    /// Of a target: what it has drafts and qualifiers do.
    pub mode: Mode,
    /// Of a draft or qualifier: whether it computes on the device of the session's target. Of a target: whether one that
    /// was reserved with it does.
    pub is_shared: bool,
}

/// Which workers a session wants besides a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Drafts, at most.
    pub drafts: usize,
    /// Qualifiers, at most.
    pub qualifiers: usize,
}

impl Wanted {
    /// What is still wanted by a session that has these already.
    #[must_use]
    pub fn besides(self, present: impl Iterator<Item = Role>) -> Wanted {
        present.fold(self, |left, role| match role {
            Role::Draft => Wanted {
                drafts: left.drafts.saturating_sub(1),
                ..left
            },
            Role::Qualifier => Wanted {
                qualifiers: left.qualifiers.saturating_sub(1),
                ..left
            },
            Role::Target => left,
        })
    }

    /// Whether nothing is wanted.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self.drafts == 0 && self.qualifiers == 0
    }
}

/// What a new session needs.
#[derive(Clone, Copy, Debug)]
pub struct Need<'a> {
    /// Workers besides the target.
    pub wanted: Wanted,
    /// Only a target of this numerics_id will do.
    pub numerics: Option<&'a str>,
    /// When its turn is.
    pub turn: Turn,
    /// Tokens of the text so far; the context has to hold one more.
    pub tokens: u32,
    /// Positions that the text is expected to take, where the context holds them.
    pub positions: u32,
}

/// The turns of a session that looks for another target.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// The one that its completion was given when it arrived.
    pub own: Turn,
    /// The one by which it waits now, if it does.
    pub waiting: Option<Turn>,
}

/// How long a text is and may become.
#[derive(Clone, Copy, Debug)]
pub struct Text {
    /// Tokens it has, at least.
    pub tokens: u32,
    /// Positions that it is expected to take.
    pub positions: u32,
}

/// Why a session has no reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// Every target that would do serves as many sessions as it can, or is kept for an earlier turn, or as many
    /// completions run as may.
    Busy,
    /// No target is ready.
    Missing,
    /// There are targets, but none with the numerics that are needed; these are theirs.
    OtherNumerics(Vec<String>),
    /// The longest context of all targets does not hold the text.
    TooLong {
        /// That context.
        context: u32,
        /// The target that has it.
        target: WorkerKey,
    },
}

/// What has changed for those that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// A reservation has become free, or a worker has come or gone: searches for a target are repeated.
    pub vacancy: bool,
    /// A worker has become ready: sessions that want more contributors look again.
    pub arrival: bool,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Fleet {
    workers: BTreeMap<WorkerKey, Worker>,
    admission: Admission,
    /// The requests and sessions that wait for a target.
    queue: PlacementQueue,
    changes: Changes,
    /// Whether there was ever a target whose stream was up.
    has_had_target: bool,
    /// Retired workers that were forgotten and not yet polled.
    forgotten: Vec<WorkerKey>,
}

/// Workers of which [`Fleet::missing_targets`] tells the state.
const MOST_NAMED: usize = 8;

impl Fleet {
    /// A fleet without workers, for as many completions as `admission` allows.
    pub fn new(admission: Admission) -> Self {
        Fleet {
            workers: BTreeMap::new(),
            admission,
            queue: PlacementQueue::default(),
            changes: Changes::default(),
            has_had_target: false,
            forgotten: Vec::new(),
        }
    }

    /// A worker was configured or discovered; `role` is what it is expected to be, if anything is. Keys are never used
    /// again.
    pub fn add_worker(&mut self, key: WorkerKey, role: Option<Role>) {
        let worker = Worker {
            role,
            state: State::Connecting(None),
            membership: Membership::Listed,
            incarnation: 0,
            mode: Mode::default(),
            reservations: BTreeMap::new(),
        };
        self.workers.insert(key, worker);
    }

    /// Nothing lists the worker any more: no new session is given to it, those it has go on. It is forgotten when the
    /// last one has left it, or when its stream is lost; [`Fleet::poll_forgotten`] says so.
    pub fn retire_worker(&mut self, key: WorkerKey) {
        if let Some(worker) = self.workers.get_mut(&key) {
            worker.membership = Membership::Retired;
            self.changes.vacancy = true;
            self.forget_if_done(key);
        }
    }

    /// A retired worker is listed again. Returns whether it was still known; if not, it is to be added as a new one.
    pub fn restore_worker(&mut self, key: WorkerKey) -> bool {
        let Some(worker) = self.workers.get_mut(&key) else {
            return false;
        };
        worker.membership = Membership::Listed;
        self.changes.vacancy = true;
        self.changes.arrival = true;
        true
    }

    /// Whether the worker finishes its sessions and is forgotten then.
    pub fn is_retired(&self, key: WorkerKey) -> bool {
        (self.workers.get(&key)).is_some_and(|worker| worker.membership == Membership::Retired)
    }

    fn forget_if_done(&mut self, key: WorkerKey) {
        let is_done = |worker: &Worker| {
            worker.membership == Membership::Retired && worker.reservations.is_empty()
        };
        if self.workers.get(&key).is_some_and(is_done) {
            self.workers.remove(&key);
            self.forgotten.push(key);
            self.changes.vacancy = true;
        }
    }

    /// A retired worker that has no sessions any more and was forgotten: its stream is to be closed.
    pub fn poll_forgotten(&mut self) -> Option<WorkerKey> {
        self.forgotten.pop()
    }

    /// Its stream is up; `role` is what its handshake says. Returns the number of that stream.
    pub fn handle_ready(&mut self, key: WorkerKey, role: Role, profile: Profile) -> u64 {
        let Some(worker) = self.workers.get_mut(&key) else {
            return 0;
        };
        self.has_had_target |= role == Role::Target;
        worker.role = Some(role);
        worker.state = State::Ready(profile);
        worker.incarnation += 1;
        worker.mode = Mode::default();
        worker.reservations.clear();
        self.changes.vacancy = true;
        self.changes.arrival = true;
        worker.incarnation
    }

    /// Its stream is lost, there is none, or it is refused. Returns whether that is new, so that it is logged once.
    pub fn handle_down(&mut self, key: WorkerKey, state: State) -> bool {
        let Some(worker) = self.workers.get_mut(&key) else {
            return false;
        };
        let is_new = worker.state != state;
        worker.state = state;
        worker.reservations.clear();
        self.changes.vacancy = true;
        self.forget_if_done(key);
        is_new
    }

    /// Whether the stream of a target has ever been up.
    pub fn has_had_target(&self) -> bool {
        self.has_had_target
    }

    /// It is shutting down: no new session is given to it, those it has go on.
    pub fn handle_draining(&mut self, key: WorkerKey, incarnation: u64) {
        if let Some(worker) = self.workers.get_mut(&key)
            && worker.incarnation == incarnation
            && let State::Ready(profile) = &worker.state
        {
            worker.state = State::Draining(profile.clone());
            self.changes.vacancy = true;
        }
    }

    /// What has changed since the last time.
    pub fn poll_changes(&mut self) -> Changes {
        core::mem::take(&mut self.changes)
    }

    /// The requests and sessions that wait for a target.
    pub fn queue(&self) -> &PlacementQueue {
        &self.queue
    }

    /// How many completions run and wait.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// A client's request arrives with so many completions; each gets its turn. [`Fleet::handle_left`] ends one that was
    /// not placed or is parked, [`Fleet::handle_ended`] one that runs.
    ///
    /// # Errors
    /// When there is no room for all of them, or what there is is left to other clients; then none is taken in.
    pub fn enter(
        &mut self,
        completions: usize,
        priority: i32,
        client: ClientKey,
    ) -> Result<Vec<Turn>, QueueFull> {
        let own = self.queue.completions(client);
        self.admission.enter(completions, own)?;
        let turns = (0..completions).map(|_| self.queue.request(priority, client));
        Ok(turns.collect())
    }

    /// A completion that was not placed, or is parked, has left.
    pub fn handle_left(&mut self, turn: Turn) {
        self.admission.handle_left();
        self.stop_waiting(turn);
        self.queue.handle_over(turn);
    }

    /// A completion that was placed by this turn gives its reservations up and does not run any more. It is placed again
    /// by [`Fleet::replace_target`].
    pub fn handle_parked(&mut self) {
        self.admission.handle_parked();
        self.changes.vacancy = true;
    }

    /// A completion that was placed by this turn has ended, `ran` later.
    pub fn handle_ended(&mut self, turn: Turn, ran: Time) {
        self.admission.handle_ended(ran);
        self.queue.handle_over(turn);
        self.changes.vacancy = true;
    }

    /// From now on later turns leave it what it could use, until [`Fleet::stop_waiting`].
    pub fn wait(&mut self, turn: Turn, need: TargetNeed) {
        self.queue.wait(turn, need);
    }

    /// It no longer waits.
    pub fn stop_waiting(&mut self, turn: Turn) {
        self.changes.vacancy |= self.queue.leave(turn);
    }

    fn reserve(&mut self, session: SessionId, key: WorkerKey, positions: u32) -> Reservation {
        let worker = (self.workers.get_mut(&key)).expect("only workers of the fleet are chosen");
        let profile = worker
            .open()
            .expect("only workers that take sessions are chosen");
        let (pages, context) = (profile.pages_of(positions), profile.max_context);
        worker.reservations.insert(session, pages);
        Reservation {
            session,
            worker: key,
            role: worker.role.expect("workers are chosen by their roles"),
            incarnation: worker.incarnation,
            context,
            mode: worker.mode,
            is_shared: false,
        }
    }

    /// The session has left the worker. What belonged to an older stream of the worker is gone already.
    pub fn release(&mut self, reservation: Reservation) {
        let Reservation {
            session,
            worker: key,
            incarnation,
            ..
        } = reservation;
        if let Some(worker) = self.workers.get_mut(&key)
            && worker.incarnation == incarnation
            && worker.reservations.remove(&session).is_some()
        {
            self.changes.vacancy = true;
            self.forget_if_done(key);
        }
    }

    /// The workers of a role that take sessions, least loaded first; among equals in the order of their keys.
    fn open(&self, role: Role) -> Vec<(WorkerKey, &Worker, &Profile)> {
        let mut open: Vec<_> = (self.workers.iter())
            .filter(|(_, worker)| worker.role == Some(role))
            .filter_map(|(&key, worker)| Some((key, worker, worker.open()?)))
            .collect();
        open.sort_by_key(|(_, worker, _)| worker.reservations.len());
        open
    }

    /// Whether a request of this turn could be placed on a target now.
    fn could_place(&self, turn: Turn, need: &TargetNeed) -> bool {
        (self.open(Role::Target).iter()).any(|(key, worker, profile)| {
            let (numerics, context) = (&profile.numerics_id, profile.max_context);
            need.could_use(*key, numerics, context)
                && worker.has_room(profile, need.positions)
                && self.queue.may_take(turn, *key, numerics, context)
        })
    }

    /// Whether one more completion may run, and those of earlier turns that could be placed now leave room for it.
    fn may_run(&self, turn: Turn) -> bool {
        let vacant = self.admission.vacant();
        let before = (self.queue.earlier_requests(turn))
            .filter(|(earlier, need)| self.could_place(*earlier, need))
            .take(vacant)
            .count();
        before < vacant
    }

    /// Gives a completion its reservations: the target first. It runs then, and waits no longer.
    ///
    /// # Errors
    /// When it gets no target; it has no reservation then.
    pub fn place(
        &mut self,
        session: SessionId,
        need: &Need<'_>,
    ) -> Result<Vec<Reservation>, NoPlace> {
        let targets = self.open(Role::Target);
        let mut fitting: Vec<_> = (targets.iter())
            .filter(|(.., profile)| need.numerics.is_none_or(|id| profile.numerics_id == id))
            .collect();
        let longest = (fitting.iter()).max_by_key(|(.., profile)| profile.max_context);
        let too_long = (longest.filter(|(.., profile)| profile.max_context <= need.tokens))
            .map(|(key, _, profile)| (profile.max_context, *key));
        fitting.retain(|(.., profile)| profile.max_context > need.tokens);
        let may_run = self.may_run(need.turn);
        let free = fitting.iter().find(|(key, worker, profile)| {
            may_run
                && worker.has_room(profile, need.positions)
                && (self.queue).may_take(need.turn, *key, &profile.numerics_id, profile.max_context)
        });
        let (target, context) = match free {
            Some((key, _, profile)) => (*key, profile.max_context),
            None if !fitting.is_empty() || self.is_a_target_returning() => {
                return Err(NoPlace::Busy);
            }
            None if targets.is_empty() => return Err(NoPlace::Missing),
            None => {
                return Err(match too_long {
                    Some((context, target)) => NoPlace::TooLong { context, target },
                    None => NoPlace::OtherNumerics(
                        (targets.iter())
                            .map(|(.., profile)| profile.numerics_id.clone())
                            .collect(),
                    ),
                });
            }
        };
        self.admission.handle_placed();
        self.queue.handle_placed(need.turn);
        self.stop_waiting(need.turn);
        let mut target = self.reserve(session, target, need.positions);
        let text = Text {
            tokens: need.tokens,
            positions: need.positions.min(context),
        };
        let contributors = self.place_contributors(session, need.wanted, text, &[target.worker]);
        target.is_shared = contributors.iter().any(|one| one.is_shared);
        Ok(core::iter::once(target).chain(contributors).collect())
    }

    /// Gives a session reservations on drafts and qualifiers, as many as it still wants; `present` are the workers that it
    /// has, its target among them. Those whose context holds the whole text are taken first; one with a shorter context
    /// serves as far as it reaches.
    pub fn place_contributors(
        &mut self,
        session: SessionId,
        wanted: Wanted,
        text: Text,
        present: &[WorkerKey],
    ) -> Vec<Reservation> {
        let positions = text.positions;
        let free = |role, most: usize| {
            let mut free: Vec<_> = (self.open(role).into_iter())
                .filter(|(key, worker, profile)| {
                    profile.max_context > text.tokens
                        && worker.has_room(profile, positions)
                        && !present.contains(key)
                })
                .collect();
            free.sort_by_key(|(.., profile)| profile.max_context < positions);
            free.into_iter().map(|(key, ..)| key).take(most)
        };
        let chosen: Vec<WorkerKey> = free(Role::Qualifier, wanted.qualifiers)
            .chain(free(Role::Draft, wanted.drafts.min(MAX_DRAFTS)))
            .collect();
        let target = present
            .iter()
            .copied()
            .find(|&key| self.role(key) == Some(Role::Target));
        let mut reserved = Vec::with_capacity(chosen.len());
        for key in chosen {
            let is_shared = target.is_some_and(|target| self.is_one_device(target, key));
            reserved.push(Reservation {
                is_shared,
                ..self.reserve(session, key, positions)
            });
        }
        reserved
    }

    fn role(&self, key: WorkerKey) -> Option<Role> {
        self.workers.get(&key)?.role
    }

    /// Whether two workers compute on the same device, as far as they say.
    fn is_one_device(&self, one: WorkerKey, other: WorkerKey) -> bool {
        let device = |key| match &self.workers.get(&key)?.state {
            State::Ready(profile) | State::Draining(profile) => Some(&profile.device),
            State::Connecting(_) | State::Lost(_) | State::Refused(_) => None,
        };
        device(one).is_some_and(|name| !name.is_empty() && device(other) == Some(name))
    }

    /// A target has said what it has drafts and qualifiers do; new sessions begin with that.
    pub fn handle_mode(&mut self, target: Reservation, mode: Mode) {
        if let Some(worker) = self.workers.get_mut(&target.worker)
            && worker.incarnation == target.incarnation
        {
            worker.mode = mode;
        }
    }

    /// Gives a session that has lost its target another reservation: on the same worker if it is back, otherwise on
    /// another of equal numerics, once the lost one does not come back at once. When there is no room it waits, by
    /// `turns.waiting`, which is set then; [`Fleet::stop_waiting`] ends that. One that was parked waits like a new
    /// completion of its client and, as that, runs when it gets one.
    ///
    /// # Errors
    /// When there is none for it now.
    pub fn replace_target(
        &mut self,
        session: SessionId,
        lost: LostTarget,
        mut need: TargetNeed,
        turns: &mut Turns,
    ) -> Result<Reservation, NoTarget> {
        if lost.expectation == Expectation::Refuses {
            need.not = Some(lost.worker);
        }
        let is_parked = lost.expectation == Expectation::Parked;
        let turn = match turns.waiting {
            Some(turn) => turn,
            None if is_parked => self.queue.again(turns.own),
            None => self.queue.running(),
        };
        let may_run = !is_parked || self.may_run(turn);
        let usable: Vec<_> = (self.open(Role::Target).into_iter())
            .filter(|(key, _, profile)| {
                need.could_use(*key, &profile.numerics_id, profile.max_context)
            })
            .collect();
        let none = match usable.is_empty() {
            true => NoTarget::Missing,
            false => NoTarget::Busy,
        };
        let mut free: Vec<WorkerKey> = (usable.into_iter())
            .filter(|(key, worker, profile)| {
                let (numerics, context) = (&profile.numerics_id, profile.max_context);
                may_run
                    && worker.has_room(profile, need.positions)
                    && self.queue.may_take(turn, *key, numerics, context)
            })
            .map(|(key, ..)| key)
            .collect();
        let own = free.iter().position(|&key| key == lost.worker);
        let own = own.map(|at| free.remove(at));
        let returns = self.returns(lost.worker);
        let chosen = (lost.expectation).choose(own, free.first().copied(), returns);
        let Some(chosen) = chosen else {
            // Who waits for a target that is about to return is in nobody's way.
            let waits = own.is_none() && free.is_empty() || lost.expectation == Expectation::Full;
            if waits && turns.waiting.is_none() {
                self.queue.wait(turn, need);
                turns.waiting = Some(turn);
            }
            return Err(none);
        };
        if is_parked {
            self.admission.handle_placed();
            self.queue.handle_placed(turn);
        }
        Ok(self.reserve(session, chosen, need.positions))
    }

    /// The text of a session has come to need this many positions.
    pub fn grow(&mut self, reservation: Reservation, positions: u32) {
        if let Some(worker) = self.workers.get_mut(&reservation.worker)
            && worker.incarnation == reservation.incarnation
            && let State::Ready(profile) | State::Draining(profile) = &worker.state
            && let Some(pages) = worker.reservations.get_mut(&reservation.session)
        {
            *pages = (*pages).max(profile.pages_of(positions));
        }
    }

    /// Whether a lost worker may be back in a moment.
    pub fn returns(&self, key: WorkerKey) -> Returns {
        let is_soon = (self.workers.get(&key)).is_some_and(Worker::is_about_to_return);
        if is_soon {
            Returns::Soon
        } else {
            Returns::Unknown
        }
    }

    /// The longest context of all targets that take sessions, and the target that has it; `None` if there is none, or one
    /// may be there in a moment.
    pub fn longest_context(&self) -> Option<(u32, WorkerKey)> {
        if self.is_a_target_returning() {
            return None;
        }
        (self.open(Role::Target).into_iter())
            .map(|(key, _, profile)| (profile.max_context, key))
            .max_by_key(|(context, _)| *context)
    }

    fn is_a_target_returning(&self) -> bool {
        (self.workers.values()).any(|worker| worker.may_be_target() && worker.is_about_to_return())
    }

    /// The state of a worker.
    pub fn state(&self, key: WorkerKey) -> Option<&State> {
        self.workers.get(&key).map(|worker| &worker.state)
    }

    /// Sessions that have a reservation on a worker.
    pub fn sessions(&self, key: WorkerKey) -> usize {
        (self.workers.get(&key)).map_or(0, |worker| worker.reservations.len())
    }

    /// All reservations, for checks that none is left behind.
    pub fn reserved(&self) -> impl Iterator<Item = (WorkerKey, SessionId)> {
        (self.workers.iter()).flat_map(|(&key, worker)| {
            (worker.reservations.keys()).map(move |&session| (key, session))
        })
    }

    /// Targets that are ready or draining.
    pub fn targets_up(&self) -> usize {
        (self.workers.values())
            .filter(|worker| worker.role == Some(Role::Target))
            .filter(|worker| matches!(worker.state, State::Ready(_) | State::Draining(_)))
            .count()
    }

    /// What each target, or worker of unknown role, is doing instead of being ready; `name` gives the name of a worker.
    pub fn missing_targets(&self, name: impl Fn(WorkerKey) -> String) -> String {
        let missing = (self.workers.iter()).filter(|(_, worker)| worker.may_be_target());
        let more = missing.clone().count().saturating_sub(MOST_NAMED);
        let mut each: Vec<String> = missing
            .take(MOST_NAMED)
            .map(|(&key, worker)| {
                let name = name(key);
                match &worker.state {
                    State::Connecting(Some(reason)) => {
                        format!("{name} is not connected ({reason})")
                    }
                    State::Connecting(None) => format!("{name} is being connected"),
                    State::Lost(reason) => format!("{name} was just lost ({reason})"),
                    State::Refused(reason) => format!("{name} is refused: {reason}"),
                    State::Draining(_) => format!("{name} is shutting down"),
                    State::Ready(_) if worker.membership == Membership::Retired => {
                        format!("{name} is no longer listed")
                    }
                    State::Ready(_) => format!("{name} is ready"),
                }
            })
            .collect();
        if more > 0 {
            each.push(format!("and {more} more"));
        }
        each.join("; ")
    }
}

#[cfg(test)]
mod tests;

//! Who may run and who gets a reservation at a simulated coordinator: the real [`Fleet`] with its admission and its queue,
//! and beside it what is true, kept a second time, so that every answer can be checked.

use std::collections::BTreeMap;

use control::admission::Admission;
use control::failover::{Expectation, LostTarget, NoTarget};
use control::fleet::{
    Changes, Fleet, Need, NoPlace, Profile, Reservation, State, Text, Turns, Wanted,
};
use control::placement::{ClientKey, TargetNeed, Turn};
use speculation::Time;
use speculation::bypass::Mode;
use speculation::duty::Role;
use speculation::message::SessionId;
use speculation::relay::WorkerKey;

use crate::coordinator::numerics_id;
use crate::request::Task;
use crate::scenario::{Numerics, Request, Scenario, WorkerPlan};

/// When somebody's turn is, kept a second time: rank, then the round of its client, then arrival.
pub(crate) type Order = (i64, u64, u64);

/// Sessions that have lost their target go before all requests.
const RUNNING: i64 = i64::MIN;

/// A turn as the fleet knows it and as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) turn: Turn,
    pub(crate) order: Order,
    identity: u64,
}

/// What somebody needs of a target.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Requester {
    pub(crate) session: SessionId,
    pub(crate) numerics: Option<Numerics>,
    /// Positions that the context has to hold.
    pub(crate) context: u32,
    /// Positions that are reserved, where the context holds them.
    pub(crate) positions: u32,
    /// For a session that has lost its target.
    pub(crate) lost: Option<LostTarget>,
}

/// Whether a coordinator has a worker in its fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    Listed,
    /// No source lists it any more, and it has sessions.
    Retired,
    /// The fleet has forgotten it.
    Absent,
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It may be there again in no time.
    Returning,
    Unreachable,
    Ready,
    Draining,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Placement {
    fleet: Fleet,
    max_running: usize,
    max_queued: usize,
    /// Requests that run.
    running: usize,
    plans: Vec<WorkerPlan>,
    standings: Vec<Standing>,
    memberships: Vec<Membership>,
    /// How often each worker was added anew.
    generations: Vec<u32>,
    /// Of every reservation the stream that it is on, and its pages.
    reserved: BTreeMap<(WorkerKey, SessionId), (u64, u32)>,
    waiting: BTreeMap<Order, Requester>,
    arrivals: u64,
    /// The newest round of which something was placed.
    round: u64,
    /// The next round of each client that has requests here, and how many.
    clients: BTreeMap<u64, (u64, usize)>,
}

impl Placement {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let admission = Admission::new(scenario.max_running, scenario.max_queued);
        let mut fleet = Fleet::new(admission);
        for (worker, plan) in scenario.workers.iter().enumerate() {
            fleet.add_worker(WorkerKey(worker as u32), Some(plan.role));
        }
        Placement {
            fleet,
            max_running: scenario.max_running,
            max_queued: scenario.max_queued,
            running: 0,
            standings: vec![Standing::Returning; scenario.workers.len()],
            memberships: vec![Membership::Listed; scenario.workers.len()],
            generations: vec![0; scenario.workers.len()],
            plans: scenario.workers.clone(),
            reserved: BTreeMap::new(),
            waiting: BTreeMap::new(),
            arrivals: 0,
            round: 0,
            clients: BTreeMap::new(),
        }
    }

    pub(crate) fn check_empty(&self) {
        let admission = self.fleet.admission();
        let counts = (admission.running(), admission.waiting());
        assert_eq!(counts, (0, 0), "admission leaks");
        assert!(self.fleet.queue().is_empty(), "a turn is left");
        let reserved: Vec<_> = self.fleet.reserved().collect();
        assert!(reserved.is_empty(), "reservations are left: {reserved:?}");
    }

    // Admission.

    /// Takes a request in, or says when to come again.
    pub(crate) fn enter(
        &mut self,
        request: &Request,
        tasks: &BTreeMap<SessionId, Box<Task>>,
    ) -> Result<Place, Time> {
        let (priority, identity) = (request.priority, request.identity);
        let room = self.max_running + self.max_queued - tasks.len();
        let own = self
            .clients
            .get(&identity)
            .map_or(0, |(_, requests)| *requests);
        // A client with many leaves what is left to others.
        let is_full = own + 1 > 8 * room;
        match self.fleet.enter(1, priority, ClientKey(identity)) {
            Ok(turns) => {
                assert!(!is_full, "more are taken in than allowed");
                let round = self.next_round(identity);
                self.clients.entry(identity).or_default().1 += 1;
                Ok(Place {
                    turn: turns[0],
                    order: (priority.into(), round, self.arrive()),
                    identity,
                })
            }
            Err(full) => {
                assert!(is_full, "refused where there is room");
                Err(full.retry)
            }
        }
    }

    /// The round of a client's next request.
    fn next_round(&mut self, identity: u64) -> u64 {
        let next = &mut self.clients.entry(identity).or_default().0;
        let round = self.round.max(*next);
        *next = round + 1;
        round
    }

    fn handle_over(&mut self, identity: u64) {
        let (_, requests) = self.clients.entry(identity).or_default();
        *requests -= 1;
        if *requests == 0 {
            self.clients.remove(&identity);
        }
    }

    /// A request that was not placed, or is parked, has gone.
    pub(crate) fn handle_left(&mut self, place: Place) {
        self.waiting.remove(&place.order);
        self.fleet.handle_left(place.turn);
        self.handle_over(place.identity);
    }

    /// A request that runs has given its workers up.
    pub(crate) fn handle_parked(&mut self) {
        self.running -= 1;
        self.fleet.handle_parked();
    }

    /// A request that ran for so long has ended.
    pub(crate) fn handle_ended(&mut self, place: Place, ran: Time) {
        self.running -= 1;
        self.fleet.handle_ended(place.turn, ran);
        self.handle_over(place.identity);
    }

    // Workers.

    /// The newest key of a worker. A worker that was forgotten gets another one when it comes back.
    pub(crate) fn key(&self, worker: usize) -> WorkerKey {
        let count = self.plans.len() as u32;
        WorkerKey(worker as u32 + self.generations[worker] * count)
    }

    /// The worker that has, or had, this key.
    pub(crate) fn worker_of(&self, key: WorkerKey) -> usize {
        key.0 as usize % self.plans.len()
    }

    /// Whether the fleet knows a worker.
    pub(crate) fn is_member(&self, worker: usize) -> bool {
        self.memberships[worker] != Membership::Absent
    }

    /// No source lists a worker any more.
    pub(crate) fn retire(&mut self, worker: usize) {
        if self.memberships[worker] == Membership::Listed {
            self.memberships[worker] = Membership::Retired;
            self.fleet.retire_worker(self.key(worker));
        }
    }

    /// A worker is listed again. Whether it is a new one, which has to be connected.
    pub(crate) fn list(&mut self, worker: usize) -> bool {
        let was = std::mem::replace(&mut self.memberships[worker], Membership::Listed);
        if was != Membership::Listed {
            let is_known = self.fleet.restore_worker(self.key(worker));
            assert_eq!(is_known, was == Membership::Retired, "who is forgotten");
        }
        let is_new = was == Membership::Absent;
        if is_new {
            self.generations[worker] += 1;
            self.standings[worker] = Standing::Returning;
            // A draft's role is expected, a target's is not: both are found out by the handshake.
            let role = Some(self.plans[worker].role).filter(|&role| role == Role::Draft);
            self.fleet.add_worker(self.key(worker), role);
        }
        is_new
    }

    /// A worker that the fleet has forgotten.
    pub(crate) fn poll_forgotten(&mut self) -> Option<usize> {
        let key = self.fleet.poll_forgotten()?;
        let worker = self.worker_of(key);
        let was = std::mem::replace(&mut self.memberships[worker], Membership::Absent);
        assert_eq!((was, key), (Membership::Retired, self.key(worker)));
        let is_used = self.reserved.keys().any(|&(reserved, _)| reserved == key);
        assert!(!is_used, "worker {worker} is forgotten with its sessions");
        Some(worker)
    }

    /// The stream to a worker is up. Gives its number.
    pub(crate) fn handle_ready(&mut self, worker: usize) -> u64 {
        self.standings[worker] = Standing::Ready;
        self.forget(worker);
        let plan = &self.plans[worker];
        let profile = Profile {
            numerics_id: numerics_id(plan.numerics).to_owned(),
            max_context: plan.max_context,
            max_sessions: plan.max_sessions,
            pages: plan.pages,
            page: plan.page,
            device: plan
                .device
                .map_or(String::new(), |device| device.to_string()),
        };
        let key = self.key(worker);
        self.fleet.handle_ready(key, plan.role, profile)
    }

    /// There is no stream to a worker.
    pub(crate) fn handle_down(&mut self, worker: usize, state: State) {
        self.standings[worker] = match state {
            State::Lost(_) | State::Connecting(None) => Standing::Returning,
            _ => Standing::Unreachable,
        };
        self.forget(worker);
        self.fleet.handle_down(self.key(worker), state);
    }

    fn forget(&mut self, worker: usize) {
        let key = self.key(worker);
        (self.reserved).retain(|&(reserved, _), _| reserved != key);
    }

    /// A worker, whose stream this is, takes no new sessions.
    pub(crate) fn handle_draining(&mut self, worker: usize, incarnation: u64) {
        self.standings[worker] = Standing::Draining;
        self.fleet.handle_draining(self.key(worker), incarnation);
    }

    pub(crate) fn poll_changes(&mut self) -> Changes {
        self.fleet.poll_changes()
    }

    // Reservations.

    fn arrive(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    /// Gives a request its reservations. While it has none it waits, if waiting can help.
    pub(crate) fn place(
        &mut self,
        place: Place,
        requester: Requester,
        wanted: Wanted,
    ) -> Result<Vec<Reservation>, NoPlace> {
        let need = Need {
            wanted,
            numerics: requester.numerics.map(numerics_id),
            turn: place.turn,
            tokens: requester.context - 1,
            positions: requester.positions,
        };
        let placed = self.fleet.place(requester.session, &need);
        match &placed {
            Ok(reservations) => {
                assert!(self.may_run(place.order), "{requester:?} runs too early");
                let (target, contributors) = reservations.split_first().expect("a target");
                self.note_target(place.order, &requester, *target);
                self.running += 1;
                self.round = self.round.max(place.order.1);
                self.waiting.remove(&place.order);
                let context = self.plans[self.worker_of(target.worker)].max_context;
                let text = Text {
                    tokens: requester.context - 1,
                    positions: requester.positions.min(context),
                };
                self.note_contributors(contributors, text, wanted, &[]);
            }
            Err(NoPlace::Busy) => {
                self.check_nothing_fits(place.order, &requester);
                if self.waiting.insert(place.order, requester).is_none() {
                    let need = TargetNeed {
                        numerics: requester.numerics.map(|id| numerics_id(id).to_owned()),
                        not: None,
                        context: requester.context,
                        positions: requester.positions,
                    };
                    self.fleet.wait(place.turn, need);
                }
            }
            Err(NoPlace::Missing | NoPlace::OtherNumerics(_) | NoPlace::TooLong { .. }) => {
                self.check_nothing_fits(place.order, &requester);
            }
        }
        placed
    }

    /// Gives a session another target. While it gets none it may wait, by `place`, which is set then; `own` is the place of
    /// its request.
    pub(crate) fn replace_target(
        &mut self,
        requester: Requester,
        own: Place,
        place: &mut Option<Place>,
    ) -> Result<Reservation, NoTarget> {
        let lost = requester.lost.expect("it has lost its target");
        let numerics = requester.numerics.expect("its text has numerics");
        let is_parked = lost.expectation == Expectation::Parked;
        let mut turns = Turns {
            own: own.turn,
            waiting: place.map(|place| place.turn),
        };
        let order = match place {
            Some(place) => place.order,
            None if is_parked => (own.order.0, self.next_round(own.identity), self.arrive()),
            None => (RUNNING, 0, self.arrive()),
        };
        let may_run = self.may_run(order);
        let found = self.fleet.replace_target(
            requester.session,
            lost,
            TargetNeed {
                numerics: Some(numerics_id(numerics).to_owned()),
                not: None,
                context: requester.context,
                positions: requester.positions,
            },
            &mut turns,
        );
        if let (None, Some(turn)) = (&place, turns.waiting) {
            *place = Some(Place { turn, order, ..own });
        }
        match found {
            Ok(reservation) => {
                self.note_target(order, &requester, reservation);
                if is_parked {
                    assert!(may_run, "{requester:?} runs too early");
                    self.running += 1;
                    self.round = self.round.max(order.1);
                }
                if let Some(place) = place.take() {
                    self.stop_waiting(place);
                }
            }
            Err(why) => {
                self.check_nothing_fits(order, &requester);
                let is_there = (0..self.plans.len()).any(|worker| {
                    self.takes_sessions(worker) && self.could_use(&requester, worker)
                });
                assert_eq!(why == NoTarget::Busy, is_there, "{requester:?}");
                if place.is_some() {
                    self.waiting.insert(order, requester);
                }
            }
        }
        found
    }

    /// It waits no more, if it did.
    pub(crate) fn stop_waiting(&mut self, place: Place) {
        if self.waiting.remove(&place.order).is_some() {
            self.fleet.stop_waiting(place.turn);
        }
    }

    /// Gives a session more drafts and qualifiers.
    pub(crate) fn place_contributors(
        &mut self,
        session: SessionId,
        wanted: Wanted,
        text: Text,
        present: &[WorkerKey],
    ) -> Vec<Reservation> {
        let placed = (self.fleet).place_contributors(session, wanted, text, present);
        self.note_contributors(&placed, text, wanted, present);
        placed
    }

    /// The text of a session needs more positions than were reserved.
    pub(crate) fn grow(&mut self, reservation: Reservation, positions: u32) {
        let pages = self.pages_of(self.worker_of(reservation.worker), positions);
        let at = (reservation.worker, reservation.session);
        if let Some((incarnation, held)) = self.reserved.get_mut(&at)
            && *incarnation == reservation.incarnation
        {
            *held = (*held).max(pages);
        }
        self.fleet.grow(reservation, positions);
    }

    /// A target has said what it has others do.
    pub(crate) fn set_mode(&mut self, target: Reservation, mode: Mode) {
        self.fleet.handle_mode(target, mode);
    }

    /// The session has left the worker. What was on an older stream is gone already.
    pub(crate) fn release(&mut self, reservation: Reservation) {
        let at = (reservation.worker, reservation.session);
        (self.reserved).retain(|key, held| *key != at || held.0 != reservation.incarnation);
        self.fleet.release(reservation);
    }

    // What is true.

    fn pages_of(&self, worker: usize, positions: u32) -> u32 {
        let plan = &self.plans[worker];
        positions.min(plan.max_context).div_ceil(plan.page)
    }

    fn takes_sessions(&self, worker: usize) -> bool {
        self.standings[worker] == Standing::Ready && self.memberships[worker] == Membership::Listed
    }

    fn has_room(&self, worker: usize, positions: u32) -> bool {
        let plan = &self.plans[worker];
        let key = self.key(worker);
        let held = (self.reserved.iter()).filter(|((reserved, _), _)| *reserved == key);
        let pages: u32 = held.clone().map(|(_, (_, pages))| pages).sum();
        self.takes_sessions(worker)
            && held.count() < plan.max_sessions
            && pages + self.pages_of(worker, positions) <= plan.pages
    }

    fn could_use(&self, requester: &Requester, worker: usize) -> bool {
        let plan = &self.plans[worker];
        let refuses = |lost: LostTarget| {
            lost.worker == self.key(worker) && lost.expectation == Expectation::Refuses
        };
        plan.role == Role::Target
            && plan.max_context >= requester.context
            && requester.numerics.is_none_or(|id| id == plan.numerics)
            && !requester.lost.is_some_and(refuses)
    }

    /// Somebody of an earlier turn who could use this target.
    fn earlier(&self, order: Order, worker: usize) -> Option<&Requester> {
        let mut earlier = self.waiting.range(..order);
        (earlier.find(|(_, requester)| self.could_use(requester, worker)))
            .map(|(_, requester)| requester)
    }

    /// The targets that a requester could have now, by its turn.
    fn fits(&self, order: Order, requester: &Requester) -> impl Iterator<Item = usize> {
        (0..self.plans.len()).filter(move |&worker| {
            self.could_use(requester, worker)
                && self.has_room(worker, requester.positions)
                && self.earlier(order, worker).is_none()
        })
    }

    /// Whether a request may run, and those before it that could be placed now leave room for it.
    fn may_run(&self, order: Order) -> bool {
        let before = (self.waiting.range(..order))
            .filter(|((rank, ..), _)| *rank != RUNNING)
            .filter(|(earlier, requester)| self.fits(**earlier, requester).next().is_some());
        self.running + before.count() < self.max_running
    }

    /// Whoever gets no target could have none, may not run, or waits for its own to return or to have room.
    fn check_nothing_fits(&self, order: Order, requester: &Requester) {
        let returns = |lost: LostTarget| {
            let worker = self.worker_of(lost.worker);
            lost.expectation == Expectation::Returns
                && lost.worker == self.key(worker)
                && self.memberships[worker] == Membership::Listed
                && self.standings[worker] == Standing::Returning
        };
        let has_refused = |worker: &usize| {
            requester.lost.is_some_and(|lost| {
                lost.expectation == Expectation::Full && lost.worker == self.key(*worker)
            })
        };
        let mut fits = self
            .fits(order, requester)
            .filter(|worker| !has_refused(worker));
        let Some(worker) = fits.next() else {
            return;
        };
        if order.0 != RUNNING && !self.may_run(order) {
            return;
        }
        assert!(
            requester.lost.is_some_and(returns),
            "{:?} could have target {worker}, and nobody earlier wants it",
            requester.session
        );
    }

    fn note_target(&mut self, order: Order, requester: &Requester, reservation: Reservation) {
        let worker = self.worker_of(reservation.worker);
        assert!(
            self.could_use(requester, worker) && self.has_room(worker, requester.positions),
            "{reservation:?} is of no use to {requester:?}"
        );
        if let Some(earlier) = self.earlier(order, worker) {
            panic!(
                "{reservation:?} is taken before the turn of {:?}",
                earlier.session
            );
        }
        self.note(reservation, requester.positions);
    }

    fn note_contributors(
        &mut self,
        reservations: &[Reservation],
        text: Text,
        wanted: Wanted,
        present: &[WorkerKey],
    ) {
        let count = |role| (reservations.iter()).filter(|one| one.role == role).count();
        assert!(count(Role::Draft) <= wanted.drafts && count(Role::Target) == 0);
        assert!(count(Role::Qualifier) <= wanted.qualifiers);
        for &reservation in reservations {
            let worker = self.worker_of(reservation.worker);
            assert!(
                !present.contains(&reservation.worker),
                "it has that already"
            );
            assert!(
                self.has_room(worker, text.positions)
                    && self.plans[worker].max_context > text.tokens,
                "{reservation:?} has no room"
            );
            self.note(reservation, text.positions);
        }
    }

    fn note(&mut self, reservation: Reservation, positions: u32) {
        let worker = self.worker_of(reservation.worker);
        assert_eq!(reservation.worker, self.key(worker), "it was forgotten");
        assert_eq!(reservation.context, self.plans[worker].max_context);
        let pages = self.pages_of(worker, positions);
        let at = (reservation.worker, reservation.session);
        let before = self.reserved.insert(at, (reservation.incarnation, pages));
        assert_eq!(before, None, "one reservation on a worker");
    }

    /// Compares what the real ones say with what is true. Whoever waits and is not about to look could have nothing.
    pub(crate) fn check(&self, tasks: &BTreeMap<SessionId, Box<Task>>) {
        let running = tasks.values().filter(|task| task.is_running()).count();
        let admission = self.fleet.admission();
        let counts = (admission.running(), admission.waiting());
        assert_eq!(
            counts,
            (running, tasks.len() - running),
            "admission miscounts"
        );
        assert_eq!(self.running, running, "who runs");
        assert!(running <= self.max_running, "too many run");
        assert!(
            (self.fleet.reserved()).eq(self.reserved.keys().copied()),
            "reservations differ: {:?} are held, {:?} known",
            self.reserved,
            self.fleet.reserved().collect::<Vec<_>>()
        );
        for (worker, membership) in self.memberships.iter().enumerate() {
            let key = self.key(worker);
            let is_used = self.reserved.keys().any(|&(reserved, _)| reserved == key);
            let expected = match membership {
                Membership::Listed => Some(false),
                Membership::Retired => Some(true),
                Membership::Absent => None,
            };
            let state = self.fleet.state(key).map(|_| self.fleet.is_retired(key));
            assert_eq!(state, expected, "worker {worker} in the fleet");
            assert!(
                is_used || *membership != Membership::Retired,
                "worker {worker} is kept although it has no session"
            );
        }
        for (&order, requester) in &self.waiting {
            if !tasks[&requester.session].is_woken {
                self.check_nothing_fits(order, requester);
            }
        }
    }
}

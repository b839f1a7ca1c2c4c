//! A worker process: one model thread, its links and its sessions. The loop is that of the `worker` crate, told as
//! events; what a session is and who may say what about it are the real state machines.

use std::collections::{BTreeMap, VecDeque};

use speculation::Time;
use speculation::cost::CostModel;
use speculation::lease::{Grant, Hold, reusable};
use speculation::message::{Activity, Relayed, SessionId, SessionSpec, Task, Term};
use speculation::relay::Role;
use speculation::replica::Poll;

use crate::air::{Air, Answer, Down, Event, Said, StreamId, Up, note};
use crate::cache::Cache;
use crate::hosted::{Guessed, Hosted};
use crate::reference::{Language, Speaker};
use crate::scenario::WorkerPlan;

/// Sessions of one frame, at most; small, so that frames are often full.
const FRAME: usize = 2;

/// Words of older terms that are kept to be said again.
const ECHOES: usize = 12;

/// What has arrived for the model thread.
#[derive(Clone, Debug)]
enum Arrived {
    Open {
        stream: StreamId,
        call: u64,
        spec: Box<SessionSpec>,
    },
    Linked(StreamId, u64),
    Relayed(StreamId, Relayed),
    Lost(StreamId),
}

/// The slots of one link.
#[derive(Debug)]
struct Link {
    coordinator: u64,
    slots: BTreeMap<SessionId, Said>,
    /// The writer is about to look.
    writes: bool,
}

#[derive(Debug)]
struct Served {
    hosted: Hosted,
    grant: Grant,
    /// What the grant has to know, kept a second time.
    truth: (u64, Term, Option<StreamId>),
    pages: u32,
    opened: Time,
    steps: u64,
}

#[derive(Debug)]
struct Step {
    number: u64,
    batch: Vec<SessionId>,
    useless: Vec<bool>,
    took: Time,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) at: usize,
    pub(crate) plan: WorkerPlan,
    /// Counts its starts; what was meant for an older life does not reach it.
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    /// It stands still until then.
    pub(crate) hangs_until: Time,
    /// Steps last so many times as long, until then.
    pub(crate) lags: (u32, Time),
    /// It ends when it has no session, and is started again after so long.
    pub(crate) drains: Option<Time>,
    links: BTreeMap<StreamId, Link>,
    sessions: BTreeMap<SessionId, Served>,
    free_pages: u32,
    arrived: VecDeque<Arrived>,
    step: Option<Step>,
    steps: u64,
    turn: SessionId,
    cost: CostModel,
    tick: Option<Time>,
    guessed: Guessed,
    /// What sessions were told and said, to be repeated under later terms.
    told: VecDeque<(SessionId, Term, Relayed)>,
    said: VecDeque<Said>,
    /// How often a session was taken back with something in its cache, for coverage.
    pub(crate) takebacks: u64,
}

impl Worker {
    pub(crate) fn new(at: usize, plan: WorkerPlan) -> Self {
        Worker {
            at,
            life: 0,
            is_up: true,
            hangs_until: Time::ZERO,
            lags: (1, Time::ZERO),
            drains: None,
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            free_pages: plan.pages,
            plan,
            arrived: VecDeque::new(),
            step: None,
            steps: 0,
            turn: SessionId(0),
            cost: CostModel::new(Time::ZERO),
            tick: None,
            guessed: Guessed::new(),
            told: VecDeque::new(),
            said: VecDeque::new(),
            takebacks: 0,
        }
    }

    /// The process is gone, with everything it had.
    pub(crate) fn crash(&mut self) {
        let fresh = Worker::new(self.at, self.plan.clone());
        *self = Worker {
            life: self.life + 1,
            is_up: false,
            takebacks: self.takebacks,
            ..fresh
        };
    }

    /// Nothing of any session is left.
    pub(crate) fn check_empty(&self) {
        let at = self.at;
        let held: Vec<_> = (self.sessions.iter())
            .map(|(id, served)| (id, served.grant))
            .collect();
        assert!(held.is_empty(), "worker {at} still holds {held:?}");
        assert_eq!(self.free_pages, self.plan.pages, "worker {at} leaks pages");
        for link in self.links.values() {
            assert!(
                link.slots.is_empty(),
                "worker {at} still has something to say"
            );
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.sessions.is_empty()
    }

    /// Something arrives on the process's sockets. The model thread hears of it when it has time.
    pub(crate) fn receive(
        &mut self,
        air: &mut Air,
        coordinator: u64,
        stream: StreamId,
        what: Down,
        languages: &dyn Fn(SessionId) -> Language,
    ) {
        match what {
            Down::Connect => {
                // Before the stream is accepted: an open call may follow at once.
                self.arrived.push_back(Arrived::Linked(stream, coordinator));
                air.up(stream, Up::Accepted);
            }
            Down::Open { call, .. } if self.drains.is_some() => {
                let answer = Answer::Draining;
                air.answer(stream, Up::Answered { call, answer });
            }
            Down::Open { call, spec } => {
                (self.arrived).push_back(Arrived::Open { stream, call, spec });
            }
            Down::Frame(relayed) => {
                self.judge(&relayed);
                self.arrived.push_back(Arrived::Relayed(stream, relayed));
                self.interrupt(air);
            }
            Down::Closed => self.arrived.push_back(Arrived::Lost(stream)),
        }
        self.run(air, languages);
    }

    /// A stream is found broken at this end.
    pub(crate) fn notice(
        &mut self,
        air: &mut Air,
        stream: StreamId,
        languages: &dyn Fn(SessionId) -> Language,
    ) {
        if self.is_up {
            air.up(stream, Up::Closed);
            self.arrived.push_back(Arrived::Lost(stream));
            self.run(air, languages);
        }
    }

    /// Goes on where it stands.
    pub(crate) fn run(&mut self, air: &mut Air, languages: &dyn Fn(SessionId) -> Language) {
        if self.step.is_some() {
            return;
        }
        while let Some(arrived) = self.arrived.pop_front() {
            self.handle(air, arrived, languages);
        }
        let wake = self.expire(air);
        let (batch, wake) = self.gather(air, wake);
        if batch.is_empty() {
            self.report(air);
            if let Some(at) = wake
                && self.tick.is_none_or(|tick| tick <= air.now || tick > at)
            {
                self.tick = Some(at);
                air.at(at, Event::Tick(self.at, self.life));
            }
            return;
        }
        let rows: usize = (batch.iter())
            .filter_map(|id| self.sessions[id].hosted.flight.as_ref())
            .map(|flight| flight.plan.rows())
            .sum();
        let (times, until) = self.lags;
        let times = if until > air.now { times } else { 1 };
        let took = Time::from_micros(self.plan.step_us + self.plan.row_us * rows as u64) * times;
        self.steps += 1;
        self.step = Some(Step {
            number: self.steps,
            useless: vec![false; batch.len()],
            batch,
            took,
        });
        air.at(
            air.now + took,
            Event::StepEnds(self.at, self.life, self.steps),
        );
    }

    /// The step in flight has been computed.
    pub(crate) fn step_ends(
        &mut self,
        air: &mut Air,
        number: u64,
        languages: &dyn Fn(SessionId) -> Language,
    ) {
        let Some(step) = self.step.take_if(|step| step.number == number) else {
            return;
        };
        let mut rows = 0;
        for id in &step.batch {
            let served = self
                .sessions
                .get_mut(id)
                .expect("a step holds its sessions");
            rows += (served.hosted.flight.as_ref()).map_or(0, |flight| flight.plan.rows());
            served.steps += 1;
            (served.hosted).finish(air.now, step.took, &mut self.guessed);
        }
        self.cost.observe(rows, step.took);
        self.report(air);
        self.run(air, languages);
    }

    /// What an update that arrives during a step makes of it.
    fn judge(&mut self, relayed: &Relayed) {
        let Some(step) = &mut self.step else { return };
        let mut mark = |id: SessionId| {
            if let Some(at) = step.batch.iter().position(|&other| other == id) {
                step.useless[at] = true;
            }
        };
        for update in &relayed.updates {
            if let Some(served) = self.sessions.get(&update.session)
                && served.grant.term() == update.term
                && served.hosted.is_obsolete(&update.message)
            {
                mark(update.session);
            }
        }
        for &(closed, _) in &relayed.closed {
            mark(closed);
        }
    }

    /// Gives up the step in flight if nothing of it is of use.
    fn interrupt(&mut self, air: &mut Air) {
        let worthless = |step: &mut Step| step.useless.iter().all(|&useless| useless);
        let Some(step) = self.step.take_if(worthless) else {
            return;
        };
        note!(air, "worker {} gives up a step", self.at);
        for id in step.batch {
            if let Some(served) = self.sessions.get_mut(&id) {
                served.hosted.flight = None;
            }
        }
    }

    fn handle(
        &mut self,
        air: &mut Air,
        arrived: Arrived,
        languages: &dyn Fn(SessionId) -> Language,
    ) {
        match arrived {
            Arrived::Open { stream, call, spec } => {
                let answer = self.open(air, stream, &spec, languages);
                if answer == Answer::Opened && spec.term > Term(1) && air.dice.percent(20) {
                    self.repeat(air, stream);
                }
                note!(
                    air,
                    "worker {} opens {:?} {:?}: {answer:?}",
                    self.at,
                    spec.session,
                    spec.term
                );
                air.answer(stream, Up::Answered { call, answer });
            }
            Arrived::Linked(stream, coordinator) => {
                let link = Link {
                    coordinator,
                    slots: BTreeMap::new(),
                    writes: false,
                };
                self.links.insert(stream, link);
            }
            Arrived::Relayed(stream, relayed) => self.relayed(air, stream, relayed),
            Arrived::Lost(stream) => {
                note!(air, "worker {} lost {stream:?}", self.at);
                self.links.remove(&stream);
                for served in self.sessions.values_mut() {
                    let meant = served.truth.2 == Some(stream);
                    assert_eq!(served.grant.handle_lost(stream.0 as u64, air.now), meant);
                    if meant {
                        served.truth.2 = None;
                    }
                }
            }
        }
    }

    fn open(
        &mut self,
        air: &mut Air,
        stream: StreamId,
        spec: &SessionSpec,
        languages: &dyn Fn(SessionId) -> Language,
    ) -> Answer {
        // The call names the stream it belongs to.
        let Some(coordinator) = self.links.get(&stream).map(|link| link.coordinator) else {
            return Answer::NotLinked;
        };
        let spec = SessionSpec {
            task: spec.task.within(self.plan.scratch_rows),
            ..spec.clone()
        };
        let held = match self.sessions.get(&spec.session) {
            None => None,
            Some(held) => {
                let yields = held.grant.yields_to(coordinator, spec.term);
                assert_eq!(yields, held.truth.1 < spec.term, "who takes a session back");
                if !yields {
                    return Answer::Duplicate;
                }
                self.take_back(&spec)
            }
        };
        let (cache, pages) = match held {
            Some(held) => held,
            None => {
                let pages = spec.stopping.max_len.div_ceil(self.plan.page);
                if pages > self.free_pages || self.sessions.len() >= self.plan.max_sessions {
                    return Answer::Full;
                }
                self.free_pages -= pages;
                (Cache::default(), pages)
            }
        };
        let language = languages(spec.session);
        let speaker = match self.plan.role {
            Role::Target => Speaker::target(language),
            Role::Draft | Role::Qualifier => Speaker {
                language,
                salt: self.plan.salt,
                agreement: self.plan.agreement,
            },
        };
        let fits = match spec.task {
            Task::Grow { .. } => self.plan.role == Role::Draft,
            Task::Commit(_) => self.plan.role == Role::Target,
            Task::Advise(..) => self.plan.role == Role::Qualifier,
        };
        assert!(fits, "a session is opened for what the worker does");
        let served = Served {
            hosted: Hosted::open(self.plan.role, &spec, air.now, speaker, cache),
            grant: Grant::new(coordinator, spec.term, stream.0 as u64),
            truth: (coordinator, spec.term, Some(stream)),
            pages,
            opened: air.now,
            steps: 0,
        };
        self.sessions.insert(spec.session, served);
        Answer::Opened
    }

    /// Ends a session that is opened anew; gives what its cache holds of the text, and its pages.
    fn take_back(&mut self, spec: &SessionSpec) -> Option<(Cache, u32)> {
        let mut held = self.sessions.remove(&spec.session)?;
        self.silence(spec.session, &held);
        held.hosted.settle();
        let same = reusable(held.hosted.cached_text(), spec);
        if held.hosted.max_len != spec.stopping.max_len as usize {
            self.free_pages += held.pages;
            return None;
        }
        let mut cache = held.hosted.cache;
        cache.truncate(same);
        self.takebacks += u64::from(same > 0);
        Some((cache, held.pages))
    }

    fn close(&mut self, id: SessionId) {
        if let Some(served) = self.sessions.remove(&id) {
            self.free_pages += served.pages;
            self.silence(id, &served);
        }
    }

    /// What the session still had to say is not said.
    fn silence(&mut self, id: SessionId, served: &Served) {
        if let Hold::Link(link) = served.grant.hold()
            && let Some(link) = self.links.get_mut(&StreamId(link as usize))
        {
            link.slots.remove(&id);
        }
    }

    fn expire(&mut self, air: &mut Air) -> Option<Time> {
        let leases = |(&id, served): (&SessionId, &Served)| match served.grant.hold() {
            Hold::Lease(until) => Some((until, id)),
            Hold::Link(_) => None,
        };
        let leases: Vec<_> = self.sessions.iter().filter_map(leases).collect();
        let now = air.now;
        for &(_, id) in leases.iter().filter(|(until, _)| *until <= now) {
            note!(air, "worker {}: the lease of {id:?} ends", self.at);
            self.close(id);
        }
        (leases.iter().map(|&(until, _)| until))
            .filter(|&until| until > air.now)
            .min()
    }

    fn relayed(&mut self, air: &mut Air, stream: StreamId, relayed: Relayed) {
        for update in relayed.updates {
            let Some(served) = self.sessions.get_mut(&update.session) else {
                continue;
            };
            let hears = served.grant.hears(stream.0 as u64, update.term);
            let meant = served.truth.1 == update.term && served.truth.2 == Some(stream);
            assert_eq!(
                hears, meant,
                "an update of {:?} {:?} on {stream:?}, where {:?} is held",
                update.session, update.term, served.truth
            );
            if !hears {
                continue;
            }
            let taken = served.hosted.take(air.now, &update.message);
            assert_eq!(taken, Ok(()), "an honest update is taken");
            if self.told.len() >= ECHOES {
                self.told.pop_front();
            }
            let echo = Relayed {
                updates: vec![update.clone()],
                closed: if air.dice.percent(20) {
                    vec![(update.session, update.term)]
                } else {
                    Vec::new()
                },
            };
            self.told.push_back((update.session, update.term, echo));
        }
        let Some(coordinator) = self.links.get(&stream).map(|link| link.coordinator) else {
            return;
        };
        for (id, term) in relayed.closed {
            let Some(served) = self.sessions.get(&id) else {
                continue;
            };
            let meant = served.truth.0 == coordinator && served.truth.1 <= term;
            assert_eq!(served.grant.ends_by(coordinator, term), meant, "who closes");
            if meant {
                note!(air, "worker {} closes {id:?} {term:?}", self.at);
                self.close(id);
            }
        }
    }

    /// What every session wants of the next step, and when to ask again if nothing.
    fn gather(&mut self, air: &mut Air, mut wake: Option<Time>) -> (Vec<SessionId>, Option<Time>) {
        let mut batch = Vec::new();
        let mut room = self.plan.max_rows;
        let order: Vec<SessionId> = (self.sessions.range(self.turn..))
            .chain(self.sessions.range(..self.turn))
            .filter(|(_, served)| matches!(served.grant.hold(), Hold::Link(_)))
            .map(|(&id, _)| id)
            .collect();
        for id in order {
            let Some(served) = self.sessions.get_mut(&id) else {
                continue;
            };
            served.hosted.settle();
            let vacant = usize::from(self.plan.scratch_rows) - served.hosted.cache.rows();
            let space = room.min(vacant);
            if space == 0 {
                continue;
            }
            match served.hosted.start(air.now, &self.cost, space, None) {
                None => {
                    let flight = served.hosted.flight.as_ref();
                    room -= flight.map_or(0, |flight| flight.plan.rows());
                    batch.push(id);
                }
                Some(Poll::Wait(until)) => wake = wake.into_iter().chain(until).min(),
                Some(Poll::Parked | Poll::Done | Poll::Step(_)) => {}
            }
        }
        if let Some(first) = batch.first() {
            self.turn = SessionId(first.0.wrapping_add(1));
        }
        (batch, wake)
    }

    /// Fills every vacant slot whose session has something new.
    fn report(&mut self, air: &mut Air) {
        for (&session, served) in &mut self.sessions {
            let Hold::Link(link) = served.grant.hold() else {
                continue;
            };
            let stream = StreamId(link as usize);
            let Some(link) = self.links.get_mut(&stream) else {
                continue;
            };
            if link.slots.contains_key(&session) {
                continue;
            }
            let life = air.now.saturating_sub(served.opened);
            let activity = Activity {
                steps: served.steps,
                life_us: life.as_micros() as u64,
                ..Activity::default()
            };
            if let Some(report) = served.hosted.report(activity) {
                let term = served.grant.term();
                let said = Said {
                    session,
                    term,
                    report,
                };
                link.slots.insert(session, said);
                if !std::mem::replace(&mut link.writes, true) {
                    let after = air.dice.roll() % self.plan.writer_us;
                    air.after_us(after, Event::WorkerWrites(self.at, self.life, stream));
                }
            }
        }
    }

    /// The writer of a link takes what is there.
    pub(crate) fn write(
        &mut self,
        air: &mut Air,
        stream: StreamId,
        languages: &dyn Fn(SessionId) -> Language,
    ) {
        let Some(link) = self.links.get_mut(&stream) else {
            return;
        };
        let mut frame = Vec::new();
        while frame.len() < FRAME
            && let Some((_, said)) = link.slots.pop_first()
        {
            frame.push(said);
        }
        link.writes = !link.slots.is_empty();
        if link.writes {
            let after = air.dice.roll() % self.plan.writer_us;
            air.after_us(after, Event::WorkerWrites(self.at, self.life, stream));
        }
        for said in &frame {
            if self.said.len() >= ECHOES {
                self.said.pop_front();
            }
            self.said.push_back(said.clone());
        }
        air.up(stream, Up::Frame(frame));
        // The slots are vacant again.
        self.run(air, languages);
    }

    /// Says again, on the newest link of a coordinator, what was said and told under older terms.
    pub(crate) fn echo(
        &mut self,
        air: &mut Air,
        coordinator: u64,
        languages: &dyn Fn(SessionId) -> Language,
    ) {
        let newest = (self.links.iter()).rev();
        let Some((&stream, _)) = newest
            .into_iter()
            .find(|(_, link)| link.coordinator == coordinator)
        else {
            return;
        };
        self.repeat(air, stream);
        self.run(air, languages);
    }

    /// What was said and told under older terms comes once more on this link, and so do their closes.
    fn repeat(&mut self, air: &mut Air, stream: StreamId) {
        let older = |id: &SessionId, term: Term| {
            (self.sessions.get(id)).is_some_and(|served| term < served.grant.term())
        };
        let said: Vec<Said> = (self.said.iter())
            .filter(|said| older(&said.session, said.term))
            .cloned()
            .collect();
        let told: Vec<Relayed> = (self.told.iter())
            .filter(|(session, term, _)| older(session, *term))
            .map(|(_, _, relayed)| relayed.clone())
            .collect();
        note!(
            air,
            "worker {} echoes {} and {}",
            self.at,
            said.len(),
            told.len()
        );
        if !said.is_empty() {
            air.up(stream, Up::Frame(said));
        }
        for relayed in told {
            self.arrived.push_back(Arrived::Relayed(stream, relayed));
        }
    }
}

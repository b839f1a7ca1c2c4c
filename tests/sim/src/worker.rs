//! A worker process: one model thread, its links and its sessions. The loop is that of the `worker` crate, told as
//! events; what a session is and who may say what about it are the real state machines.

use std::collections::{BTreeMap, VecDeque};

use speculation::Time;
use speculation::cost::CostModel;
use speculation::holdings::{self, Holdings, Refusal};
use speculation::lease::reusable;
use speculation::message::{Activity, LinkName, Relayed, SessionId, SessionSpec, Task, Term};
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
#[derive(Debug, Default)]
struct Slots {
    said: BTreeMap<SessionId, Said>,
    /// The writer is about to look.
    writes: bool,
}

impl holdings::Slots for Slots {
    fn discard(&mut self, session: SessionId) {
        self.said.remove(&session);
    }
}

/// A stream as coordinators name it.
fn link_name(coordinator: u64, stream: StreamId) -> LinkName {
    LinkName {
        coordinator,
        incarnation: stream.0 as u64 + 1,
    }
}

#[derive(Debug)]
struct Served {
    hosted: Hosted,
    /// Who may say what about it, kept a second time.
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
    held: Holdings<Slots, Served>,
    free_pages: u32,
    arrived: VecDeque<Arrived>,
    step: Option<Step>,
    steps: u64,
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
            held: Holdings::default(),
            free_pages: plan.pages,
            plan,
            arrived: VecDeque::new(),
            step: None,
            steps: 0,
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
        let held: Vec<_> = (self.held.iter())
            .map(|(id, served)| (id, served.truth))
            .collect();
        assert!(held.is_empty(), "worker {at} still holds {held:?}");
        assert_eq!(self.free_pages, self.plan.pages, "worker {at} leaks pages");
        for slots in self.held.slots() {
            assert!(
                slots.said.is_empty(),
                "worker {at} still has something to say"
            );
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.held.is_empty()
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
            .filter_map(|&id| self.held.get(id)?.hosted.flight.as_ref())
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
        for &id in &step.batch {
            let served = (self.held.get_mut(id)).expect("a step holds its sessions");
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
            if let Some(served) = self.held.get(update.session)
                && self.held.term(update.session) == Some(update.term)
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
            if let Some(served) = self.held.get_mut(id) {
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
                let name = link_name(coordinator, stream);
                (self.held).handle_linked(stream.0 as u64, name, Slots::default());
            }
            Arrived::Relayed(stream, relayed) => self.relayed(air, stream, relayed),
            Arrived::Lost(stream) => {
                note!(air, "worker {} lost {stream:?}", self.at);
                let meant = |served: &Served| served.truth.2 == Some(stream);
                let mut on_it = (self.held.iter())
                    .filter(|(_, served)| meant(served))
                    .count();
                self.held.handle_lost(stream.0 as u64, air.now, |served| {
                    assert!(meant(served), "only sessions of a lost link rest");
                    served.truth.2 = None;
                    on_it -= 1;
                });
                assert_eq!(on_it, 0, "all sessions of a lost link rest");
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
        let coordinator = spec.session.0 >> 32;
        let spec = SessionSpec {
            task: spec.task.within(self.plan.scratch_rows),
            ..spec.clone()
        };
        let older = (self.held.get(spec.session)).is_none_or(|held| held.truth.1 < spec.term);
        let name = link_name(coordinator, stream);
        let opening = self.held.handle_open(name, spec.session, spec.term);
        let (grant, before) = match opening {
            Err(Refusal::NotLinked) => return Answer::NotLinked,
            Err(Refusal::Duplicate) => {
                assert!(!older, "who takes a session back");
                return Answer::Duplicate;
            }
            Ok(opening) => opening,
        };
        assert!(older, "who takes a session back");
        let held = before.and_then(|before| self.take_back(before, &spec));
        let (cache, pages) = match held {
            Some(held) => held,
            None => {
                let pages = spec.stopping.max_len.div_ceil(self.plan.page);
                if pages > self.free_pages || self.held.len() >= self.plan.max_sessions {
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
            truth: (coordinator, spec.term, Some(stream)),
            pages,
            opened: air.now,
            steps: 0,
        };
        self.held.hold(spec.session, grant, served);
        Answer::Opened
    }

    /// Ends a session that is opened anew; gives what its cache holds of the text, and its pages.
    fn take_back(&mut self, mut held: Served, spec: &SessionSpec) -> Option<(Cache, u32)> {
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

    fn expire(&mut self, air: &mut Air) -> Option<Time> {
        while let Some((id, served)) = self.held.poll_expired(air.now) {
            note!(air, "worker {}: the lease of {id:?} ends", self.at);
            self.free_pages += served.pages;
        }
        self.held.wake()
    }

    fn relayed(&mut self, air: &mut Air, stream: StreamId, relayed: Relayed) {
        for update in relayed.updates {
            let Some(truth) = self.held.get(update.session).map(|served| served.truth) else {
                continue;
            };
            let meant = truth.1 == update.term && truth.2 == Some(stream);
            let hears = (self.held).hears(stream.0 as u64, update.session, update.term);
            assert_eq!(
                hears.is_some(),
                meant,
                "an update of {:?} {:?} on {stream:?}, where {truth:?} is held",
                update.session,
                update.term
            );
            let Some(served) = hears else {
                continue;
            };
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
        for (id, term) in relayed.closed {
            // An older stream may have been lost before what it carried is looked at.
            let is_up = self.held.slots_of(stream.0 as u64).is_some();
            let meant = |served: &Served| served.truth.0 == id.0 >> 32 && served.truth.1 <= term;
            let meant = is_up && self.held.get(id).is_some_and(meant);
            let closed = self.held.handle_close(stream.0 as u64, id, term);
            assert_eq!(closed.is_some(), meant, "who closes");
            if let Some(served) = closed {
                note!(air, "worker {} closes {id:?} {term:?}", self.at);
                self.free_pages += served.pages;
            }
        }
    }

    /// What every session wants of the next step, and when to ask again if nothing.
    fn gather(&mut self, air: &mut Air, mut wake: Option<Time>) -> (Vec<SessionId>, Option<Time>) {
        let mut batch = Vec::new();
        let mut room = self.plan.max_rows;
        for id in self.held.in_turn() {
            let Some(served) = self.held.get_mut(id) else {
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
        if let Some(&first) = batch.first() {
            self.held.pass_turn(first);
        }
        (batch, wake)
    }

    /// Fills every vacant slot whose session has something new.
    fn report(&mut self, air: &mut Air) {
        let (at, life, writer_us) = (self.at, self.life, self.plan.writer_us);
        self.held.speakers(|session, term, link, slots, served| {
            if slots.said.contains_key(&session) {
                return;
            }
            let lives = air.now.saturating_sub(served.opened);
            let activity = Activity {
                steps: served.steps,
                life_us: lives.as_micros() as u64,
                ..Activity::default()
            };
            if let Some(report) = served.hosted.report(activity) {
                let said = Said {
                    session,
                    term,
                    report,
                };
                slots.said.insert(session, said);
                if !std::mem::replace(&mut slots.writes, true) {
                    let after = air.dice.roll() % writer_us;
                    let stream = StreamId(link as usize);
                    air.after_us(after, Event::WorkerWrites(at, life, stream));
                }
            }
        });
    }

    /// The writer of a link takes what is there.
    pub(crate) fn write(
        &mut self,
        air: &mut Air,
        stream: StreamId,
        languages: &dyn Fn(SessionId) -> Language,
    ) {
        let Some(slots) = self.held.slots_of(stream.0 as u64) else {
            return;
        };
        let mut frame = Vec::new();
        while frame.len() < FRAME
            && let Some((_, said)) = slots.said.pop_first()
        {
            frame.push(said);
        }
        slots.writes = !slots.said.is_empty();
        if slots.writes {
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
        let Some(link) = self.held.newest(coordinator) else {
            return;
        };
        self.repeat(air, StreamId(link as usize));
        self.run(air, languages);
    }

    /// What was said and told under older terms comes once more on this link, and so do their closes.
    fn repeat(&mut self, air: &mut Air, stream: StreamId) {
        let older =
            |id: &SessionId, term: Term| (self.held.term(*id)).is_some_and(|held| term < held);
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

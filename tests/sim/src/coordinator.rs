//! A coordinator process: its links to the workers, and who gets a seat. The rules are those of the `coordinator`
//! crate, told as events; see [`crate::task`] for one session.

use std::collections::BTreeMap;

use speculation::Time;
use speculation::message::{Addressed, Relayed, ReplicaUpdate, SessionId, SessionSpec, Term};
use speculation::relay::{LinkKey, Role};
use speculation::replay::{Hope, Returns};

use crate::air::{Air, Answer, Down, Event, Said, StreamId, Up, note};
use crate::client::{Wish, Word};
use crate::scenario::{Request, Scenario, WorkerPlan};
use crate::task::{Place, Task};

/// How long a worker may take to accept a stream.
const ANSWER_LIMIT_US: u64 = 5_000_000;
/// Pauses between attempts, the first and the longest.
const PAUSES_US: [u64; 2] = [100_000, 2_000_000];
/// A stream that lived no longer than this is no reason to hurry back.
const SHORT_LIFE: Time = Time::from_secs(1);
/// Pauses before an open that found the worker full is tried again.
const FULL_PAUSES_US: [u64; 3] = [10_000, 40_000, 160_000];
/// Sessions of one frame, at most; small, so that frames are often full.
const FRAME: usize = 2;

/// What a worker is told about one session.
#[derive(Debug)]
pub(crate) enum Told {
    Update(Term, ReplicaUpdate),
    Close(Term),
}

/// A stream that is up, or was.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) worker: usize,
    pub(crate) is_lost: bool,
    pub(crate) is_retired: bool,
    /// Pages that each session needs.
    seats: BTreeMap<SessionId, u32>,
    pub(crate) slots: BTreeMap<SessionId, Told>,
    writes: bool,
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is no stream, and none was tried for yet.
    New,
    /// The last attempt has failed.
    Unreachable,
    /// The stream broke, and the first attempt to have it back is under way.
    Lost,
    Ready(StreamId),
}

#[derive(Debug)]
struct Post {
    state: State,
    dials: Option<StreamId>,
    pause_us: u64,
    begun: Time,
}

/// An open call under way.
#[derive(Debug)]
struct Call {
    session: SessionId,
    worker: usize,
    stream: StreamId,
    term: Term,
    spec: Box<SessionSpec>,
    tries: usize,
}

/// A request that waits for a seat.
#[derive(Clone, Debug)]
struct Waiting {
    client: usize,
    attempt: u32,
    request: Request,
    text: Vec<u32>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Coordinator {
    pub(crate) at: usize,
    pub(crate) life: u32,
    pub(crate) is_up: bool,
    pub(crate) replay_wait: Time,
    task_us: u64,
    pub(crate) inbox: usize,
    plans: Vec<WorkerPlan>,
    posts: Vec<Post>,
    links: BTreeMap<StreamId, Link>,
    tasks: BTreeMap<SessionId, Task>,
    calls: BTreeMap<u64, Call>,
    waiting: Vec<Waiting>,
    sessions: u32,
    /// Sessions that are new, with their clients.
    pub(crate) born: Vec<(SessionId, usize)>,
    /// A seat became free, or a worker came or went.
    vacancy: bool,
    /// A worker has become ready.
    arrival: bool,
    /// Targets replaced, for coverage.
    pub(crate) replays: u64,
}

impl Coordinator {
    pub(crate) fn new(at: usize, life: u32, scenario: &Scenario) -> Self {
        let post = |_: &WorkerPlan| Post {
            state: State::New,
            dials: None,
            pause_us: PAUSES_US[0],
            begun: Time::ZERO,
        };
        Coordinator {
            at,
            life,
            is_up: true,
            replay_wait: scenario.replay_wait,
            task_us: scenario.task_us,
            inbox: scenario.inbox,
            posts: scenario.workers.iter().map(post).collect(),
            plans: scenario.workers.clone(),
            links: BTreeMap::new(),
            tasks: BTreeMap::new(),
            calls: BTreeMap::new(),
            waiting: Vec::new(),
            sessions: 0,
            born: Vec::new(),
            vacancy: false,
            arrival: false,
            replays: 0,
        }
    }

    /// Names this life of the process.
    pub(crate) fn name(&self) -> u64 {
        name(self.at, self.life)
    }

    pub(crate) fn check_empty(&self) {
        let at = self.at;
        assert!(self.tasks.is_empty(), "coordinator {at} still has sessions");
        assert!(
            self.waiting.is_empty(),
            "coordinator {at} still has requests"
        );
        assert!(self.calls.is_empty(), "coordinator {at} still calls");
        for link in self.links.values() {
            assert!(link.seats.is_empty(), "coordinator {at} leaks a seat");
            assert!(
                link.is_lost || link.slots.is_empty(),
                "{at} still has to say something"
            );
        }
    }

    /// Connects to a worker.
    pub(crate) fn dial(&mut self, air: &mut Air, worker: usize) {
        let stream = air.stream(self.at, self.life, worker);
        self.posts[worker].dials = Some(stream);
        air.down(stream, Down::Connect);
        air.after_us(ANSWER_LIMIT_US, Event::Silent(stream));
    }

    fn redial(&mut self, air: &mut Air, worker: usize, after_us: u64) {
        air.after_us(after_us, Event::Dial(self.at, self.life, worker));
    }

    /// The attempt has failed; there is another one after a pause.
    fn unreachable(&mut self, air: &mut Air, worker: usize) {
        let post = &mut self.posts[worker];
        post.dials = None;
        post.state = State::Unreachable;
        post.pause_us = (post.pause_us * 2).min(PAUSES_US[1]);
        let pause = post.pause_us;
        self.redial(air, worker, pause);
        self.vacancy = true;
    }

    /// A stream was not accepted in time.
    pub(crate) fn silent(&mut self, air: &mut Air, stream: StreamId, worker: usize) {
        if self.posts[worker].dials == Some(stream) {
            air.down(stream, Down::Closed);
            self.unreachable(air, worker);
        }
    }

    /// Something arrives from a worker.
    pub(crate) fn receive(&mut self, air: &mut Air, stream: StreamId, worker: usize, what: Up) {
        match what {
            Up::Accepted if self.posts[worker].dials == Some(stream) => {
                note!(
                    air,
                    "coordinator {} has {stream:?} to worker {worker}",
                    self.at
                );
                let post = &mut self.posts[worker];
                post.dials = None;
                post.state = State::Ready(stream);
                post.begun = air.now;
                let link = Link {
                    worker,
                    is_lost: false,
                    is_retired: false,
                    seats: BTreeMap::new(),
                    slots: BTreeMap::new(),
                    writes: false,
                };
                self.links.insert(stream, link);
                self.arrival = true;
                self.vacancy = true;
            }
            Up::Refused if self.posts[worker].dials == Some(stream) => {
                self.unreachable(air, worker);
            }
            Up::Accepted | Up::Refused => {}
            Up::Closed => self.lose(air, stream),
            Up::Answered { call, answer } => self.answered(air, call, answer),
            Up::Frame(frame) => {
                for said in frame {
                    self.hear(air, stream, said);
                }
            }
        }
    }

    /// A stream is gone, for every session.
    pub(crate) fn lose(&mut self, air: &mut Air, stream: StreamId) {
        let Some(link) = self.links.get_mut(&stream).filter(|link| !link.is_lost) else {
            // It breaks before it was accepted.
            if let Some(worker) = (self.posts.iter()).position(|post| post.dials == Some(stream)) {
                self.unreachable(air, worker);
            }
            return;
        };
        note!(
            air,
            "coordinator {} lost {stream:?} to worker {}",
            self.at,
            link.worker
        );
        link.is_lost = true;
        let (worker, seats): (_, Vec<_>) = (link.worker, link.seats.keys().copied().collect());
        air.down(stream, Down::Closed);
        for session in seats {
            self.wake(air, session);
        }
        let broken: Vec<u64> = (self.calls.iter())
            .filter(|(_, call)| call.stream == stream)
            .map(|(&number, _)| number)
            .collect();
        for call in broken {
            self.answered(air, call, Answer::Broken);
        }
        let post = &mut self.posts[worker];
        post.state = State::Lost;
        let after = if air.now.saturating_sub(post.begun) < SHORT_LIFE {
            post.pause_us = (post.pause_us * 2).min(PAUSES_US[1]);
            post.pause_us
        } else {
            post.pause_us = PAUSES_US[0];
            0
        };
        self.redial(air, worker, after);
        self.vacancy = true;
    }

    fn hear(&mut self, air: &mut Air, stream: StreamId, said: Said) {
        let session = said.session;
        let is_seated =
            (self.links.get(&stream)).is_some_and(|link| link.seats.contains_key(&session));
        let inbox = self.inbox;
        if is_seated && let Some(task) = self.tasks.get_mut(&session) {
            task.hear(stream, said, inbox);
            self.wake(air, session);
        }
    }

    /// An open call is answered.
    fn answered(&mut self, air: &mut Air, number: u64, answer: Answer) {
        let Some(call) = self.calls.get_mut(&number) else {
            return;
        };
        let stream = call.stream;
        if answer == Answer::Full && call.tries < FULL_PAUSES_US.len() {
            let pause = FULL_PAUSES_US[call.tries];
            call.tries += 1;
            air.after_us(pause, Event::Again(self.at, self.life, number));
            return;
        }
        let Some(call) = self.calls.remove(&number) else {
            return;
        };
        if answer == Answer::NotLinked {
            // The worker knows of no link: whatever this side still holds is not one.
            self.lose(air, stream);
        }
        match self.tasks.get_mut(&call.session) {
            Some(task) => {
                task.answers
                    .push_back((call.worker, stream, call.term, answer));
                self.wake(air, call.session);
            }
            // The call was carried out behind the close.
            None => self.put(air, stream, call.session, Told::Close(call.term)),
        }
    }

    /// Makes an open call again that found the worker full.
    pub(crate) fn again(&mut self, air: &mut Air, number: u64) {
        if let Some(call) = self.calls.get(&number) {
            let spec = call.spec.clone();
            air.call(call.stream, Down::Open { call: number, spec });
        }
    }

    /// Fills a slot.
    pub(crate) fn put(&mut self, air: &mut Air, stream: StreamId, id: SessionId, told: Told) {
        let Some(link) = self.links.get_mut(&stream).filter(|link| !link.is_lost) else {
            return;
        };
        link.slots.insert(id, told);
        if !std::mem::replace(&mut link.writes, true) {
            let after = air.dice.roll() % self.plans[link.worker].writer_us;
            air.after_us(after, Event::CoordinatorWrites(stream));
        }
    }

    /// The writer of a link takes what is there.
    pub(crate) fn write(&mut self, air: &mut Air, stream: StreamId) {
        let Some(link) = self.links.get_mut(&stream).filter(|link| !link.is_lost) else {
            return;
        };
        let mut relayed = Relayed::default();
        let mut taken = Vec::new();
        while taken.len() < FRAME
            && let Some((session, told)) = link.slots.pop_first()
        {
            taken.push(session);
            match told {
                Told::Close(term) => relayed.closed.push((session, term)),
                Told::Update(term, message) => relayed.updates.push(Addressed {
                    session,
                    term,
                    message,
                }),
            }
        }
        link.writes = !link.slots.is_empty();
        if link.writes {
            let after = air.dice.roll() % self.plans[link.worker].writer_us;
            air.after_us(after, Event::CoordinatorWrites(stream));
        }
        for session in taken {
            if let Some(task) = self.tasks.get_mut(&session)
                && task.slot_taken(stream)
            {
                self.wake(air, session);
            }
        }
        air.down(stream, Down::Frame(relayed));
    }

    /// A session's task is to be scheduled.
    pub(crate) fn wake(&mut self, air: &mut Air, session: SessionId) {
        let task_us = self.task_us;
        if let Some(task) = self.tasks.get_mut(&session)
            && !std::mem::replace(&mut task.is_woken, true)
        {
            let after = air.dice.roll() % task_us;
            air.after_us(after, Event::Run(self.at, self.life, session));
        }
    }

    /// A session's task runs.
    pub(crate) fn run(&mut self, air: &mut Air, session: SessionId) {
        if let Some(mut task) = self.tasks.remove(&session) {
            task.is_woken = false;
            if task.drive(air, self) {
                self.tasks.insert(session, task);
            }
        }
    }

    /// Tells everybody who waits for a seat, or for a worker, what has changed. To be called after everything else.
    pub(crate) fn settle(&mut self, air: &mut Air) {
        if std::mem::take(&mut self.arrival) {
            let all: Vec<SessionId> = self.tasks.keys().copied().collect();
            for session in all {
                if let Some(task) = self.tasks.get_mut(&session) {
                    task.arrivals = true;
                }
                self.wake(air, session);
            }
        }
        while std::mem::take(&mut self.vacancy) {
            let seeking: Vec<SessionId> = (self.tasks.iter())
                .filter(|(_, task)| task.is_seeking())
                .map(|(&id, _)| id)
                .collect();
            for session in seeking {
                self.wake(air, session);
            }
            for waiting in std::mem::take(&mut self.waiting) {
                self.place(air, waiting);
            }
        }
    }

    /// A client asks for the text behind what it has.
    pub(crate) fn submit(
        &mut self,
        air: &mut Air,
        (client, attempt): (usize, u32),
        request: &Request,
        text: &[u32],
    ) {
        let waiting = Waiting {
            client,
            attempt,
            request: request.clone(),
            text: text.to_vec(),
        };
        self.place(air, waiting);
    }

    /// A client has gone, or has taken a message.
    pub(crate) fn wish(&mut self, air: &mut Air, from: (usize, u32), wish: Wish) {
        if wish == Wish::Gone {
            (self.waiting).retain(|waiting| (waiting.client, waiting.attempt) != from);
        }
        let task = self.tasks.iter_mut().find(|(_, task)| task.serves(from));
        if let Some((&session, task)) = task {
            task.wish(wish);
            self.wake(air, session);
        }
    }

    fn place(&mut self, air: &mut Air, waiting: Waiting) {
        let need = waiting.request.stopping.max_len;
        let targets = self.open_links(Role::Target);
        let room = targets.iter().copied().find(|&at| self.has_room(at, need));
        let Some(target) = room else {
            let returning = (0..self.plans.len()).any(|worker| {
                self.plans[worker].role == Role::Target && self.returns(worker) == Returns::Soon
            });
            if targets.is_empty() && !returning {
                let word = Word::Failed("no target is ready");
                self.say(air, waiting.client, waiting.attempt, word);
            } else {
                self.waiting.push(waiting);
            }
            return;
        };
        self.sessions += 1;
        let id = SessionId((self.name() << 32) | u64::from(self.sessions));
        let Waiting {
            client,
            attempt,
            request,
            text,
        } = waiting;
        note!(
            air,
            "coordinator {} takes client {client} in as {id:?}",
            self.at
        );
        self.born.push((id, client));
        let mut task = Task::new(id, client, attempt, &request, text);
        let (drafts, qualifiers) = (request.drafts, request.qualifiers);
        let mut places = vec![target];
        for (role, most) in [(Role::Qualifier, qualifiers), (Role::Draft, drafts)] {
            let open = self.open_links(role).into_iter();
            places.extend(open.filter(|&at| self.has_room(at, need)).take(most));
        }
        for &stream in &places {
            self.take_seat(id, stream, need);
        }
        for stream in places {
            task.open_on(air, self, stream);
        }
        self.tasks.insert(id, task);
        self.wake(air, id);
    }

    /// Says something to a client.
    pub(crate) fn say(&self, air: &mut Air, client: usize, attempt: u32, word: Word) {
        air.say(self.at, (client, attempt), word);
    }

    /// The workers of a role that take sessions, least loaded first.
    pub(crate) fn open_links(&self, role: Role) -> Vec<StreamId> {
        let mut open: Vec<StreamId> = (self.posts.iter().zip(&self.plans))
            .filter(|(_, plan)| plan.role == role)
            .filter_map(|(post, _)| match post.state {
                State::Ready(stream) => Some(stream),
                State::New | State::Unreachable | State::Lost => None,
            })
            .filter(|stream| {
                let link = &self.links[stream];
                !link.is_lost && !link.is_retired
            })
            .collect();
        open.sort_by_key(|stream| self.links[stream].seats.len());
        open
    }

    pub(crate) fn has_room(&self, stream: StreamId, positions: u32) -> bool {
        let link = &self.links[&stream];
        let plan = &self.plans[link.worker];
        let pages = link.seats.values().sum::<u32>() + positions.div_ceil(plan.page);
        link.seats.len() < plan.max_sessions && pages <= plan.pages
    }

    pub(crate) fn take_seat(&mut self, session: SessionId, stream: StreamId, positions: u32) {
        if let Some(link) = self.links.get_mut(&stream) {
            let pages = positions.div_ceil(self.plans[link.worker].page);
            link.seats.insert(session, pages);
        }
    }

    /// The session hears this worker no more, and the worker is told to free everything.
    pub(crate) fn leave(&mut self, air: &mut Air, id: SessionId, stream: StreamId, term: Term) {
        let left = (self.links.get_mut(&stream)).and_then(|link| link.seats.remove(&id));
        if left.is_some() {
            self.put(air, stream, id, Told::Close(term));
            self.vacancy = true;
        }
    }

    /// The worker takes no new sessions.
    pub(crate) fn retire(&mut self, stream: StreamId) {
        if let Some(link) = self.links.get_mut(&stream) {
            link.is_retired = true;
            self.vacancy = true;
        }
    }

    pub(crate) fn link(&self, stream: StreamId) -> &Link {
        &self.links[&stream]
    }

    pub(crate) fn role(&self, stream: StreamId) -> Role {
        self.plans[self.links[&stream].worker].role
    }

    pub(crate) fn returns(&self, worker: usize) -> Returns {
        match self.posts[worker].state {
            State::New | State::Lost => Returns::Soon,
            State::Ready(stream) if self.links[&stream].is_lost => Returns::Soon,
            State::Unreachable | State::Ready(_) => Returns::Unknown,
        }
    }

    /// Seats a session that has lost its target.
    pub(crate) fn replace_target(
        &mut self,
        session: SessionId,
        (lost, hope): (LinkKey, Hope),
        positions: u32,
    ) -> Option<StreamId> {
        let lost = lost.0 as usize;
        let mut open = self.open_links(Role::Target);
        open.retain(|&stream| self.has_room(stream, positions));
        let own = (open.iter()).position(|stream| self.links[stream].worker == lost);
        let own = own.map(|at| open.remove(at));
        let other = open.first().copied();
        let stream = hope.choose(own, other, self.returns(lost))?;
        self.take_seat(session, stream, positions);
        self.replays += 1;
        Some(stream)
    }

    /// Opens a session on a worker where it has a seat.
    pub(crate) fn call(
        &mut self,
        air: &mut Air,
        session: SessionId,
        place: &Place,
        spec: SessionSpec,
    ) {
        let number = air.dice.roll();
        let spec = Box::new(spec);
        let call = Call {
            session,
            worker: place.worker,
            stream: place.stream,
            term: place.term,
            spec: spec.clone(),
            tries: 0,
        };
        self.calls.insert(number, call);
        air.call(place.stream, Down::Open { call: number, spec });
    }
}

/// The name of one life of a coordinator.
pub(crate) fn name(at: usize, life: u32) -> u64 {
    (at as u64 + 1) * 1000 + u64::from(life)
}

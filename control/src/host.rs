//! A worker's host of sessions: everything a worker decides that is not arithmetic. Its owner has a model, streams and a
//! clock.
//!
//! The loop: pass what has arrived to the host (`handle_*`), let it plan the next step ([`Host::poll_batch`]), compute
//! that, pass the answers back ([`Host::handle_answers`]), and let it fill the slots with what is new
//! ([`Host::report`]). `X` is what the owner keeps for a session, `L` the slots of a stream.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use decode::{Answer, CacheOp, StepPlan};
use speculation::Time;
use speculation::allocation::{PROMPT, Room, Work, allocate};
use speculation::bypass::{Plan, Step};
use speculation::history::HistoryCache;
use speculation::learned::Learned;
use speculation::message::{
    Activity, Addressed, CoordinatorFrame, FromWorker, ReplicaUpdate, SessionId, SessionSpec,
    StreamName, Term,
};
use speculation::replica::Poll;
use speculation::session::{Capacity, Session, SessionError, Trail};
use speculation::strategy::Registry;

use crate::activity::{Account, Status};
use crate::ownership::{Ownership, reusable};
use crate::table::{Refusal, SessionTable, Slots};

/// What a worker can do at one time.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of one session.
    pub capacity: Capacity,
    /// Of one step.
    pub room: Room,
    /// Of the cache of all texts.
    pub cache: Cache,
    /// How it is found out whether guesses pay.
    pub bypass: Plan,
    /// Tokens of completed texts that are kept for requests that share them, at most; 0: none is kept.
    pub history: usize,
}

/// The cache of all texts. A session takes pages as its text grows, and gives them back at its end.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// Pages of all sessions.
    pub pages: u32,
    /// Positions of one page.
    pub page: u32,
}

impl Cache {
    fn pages_of(self, positions: usize) -> u32 {
        (positions as u32).div_ceil(self.page)
    }
}

/// A session as its worker holds it.
#[derive(Debug)]
struct Hosted<X> {
    session: Session,
    /// Positions that its sequence in the model's cache may grow to.
    max_len: u32,
    /// Pages that it has.
    pages: u32,
    /// Counts the sessions that were opened.
    opened: u64,
    account: Account,
    own: X,
}

/// One session's part of a step.
#[derive(Debug)]
pub struct Part {
    /// The session.
    pub session: SessionId,
    /// What to compute.
    pub plan: StepPlan,
}

/// The next step, and what has to be done before it.
#[derive(Debug, Default)]
pub struct Batch {
    /// What the caches of sessions have to do first, also of sessions that have no part in the step.
    pub cache_ops: Vec<(SessionId, Vec<CacheOp>)>,
    /// Everything that is computed together; empty when there is nothing to do.
    pub parts: Vec<Part>,
    /// When to ask again although nothing has arrived.
    pub wake: Option<Time>,
}

impl Batch {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.plan.len()).sum()
    }
}

/// Which parts of a step that is being computed are of no use any more.
#[derive(Clone, Debug)]
pub struct Usefulness {
    useless: Vec<bool>,
}

impl Usefulness {
    /// All parts of this batch are of use.
    pub fn of(batch: &Batch) -> Self {
        Usefulness {
            useless: alloc::vec![false; batch.parts.len()],
        }
    }

    /// Whether no part is.
    pub fn is_gone(&self) -> bool {
        self.useless.iter().all(|&useless| useless)
    }

    fn mark(&mut self, batch: &Batch, session: SessionId) {
        let parts = batch.parts.iter().zip(&mut self.useless);
        for (_, useless) in parts.filter(|(part, _)| part.session == session) {
            *useless = true;
        }
    }
}

/// A session that is about to be opened: [`Host::hold`] opens it. If it is dropped instead, nothing was opened.
#[derive(Debug)]
#[must_use = "the session is held by `Host::hold`"]
pub struct Opening<X> {
    owned: Ownership,
    /// The session that it takes the place of, which is over.
    pub before: Option<Before<X>>,
}

/// What is left of a session that was opened anew.
#[derive(Debug)]
pub struct Before<X> {
    /// What the owner kept for it.
    pub own: X,
    /// What its cache has to do first.
    pub cache_ops: Vec<CacheOp>,
    /// How many positions of its cache are of use to the new session; `None`: its cache is of another size.
    pub reusable: Option<u32>,
    /// Its totals.
    pub totals: Activity,
}

/// A session that is over; its owner frees what it had.
#[derive(Debug)]
pub struct Released<X> {
    /// Which one.
    pub session: SessionId,
    /// What the owner kept for it.
    pub own: X,
    /// Its totals.
    pub totals: Activity,
    /// Why it is over.
    pub why: Why,
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its coordinator has closed it.
    Closed,
    /// Its coordinator has not come back in time.
    Expired,
    /// It cannot be served any more, which is reported to its coordinator.
    Fault(String),
    /// The cache is full, which is reported to its coordinator; sessions that were opened earlier go on.
    Preempted,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its rows were computed and used.
    Done,
    /// A commit had made it useless.
    Abandoned,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Host<L, X> {
    table: SessionTable<L, Hosted<X>>,
    learned: Learned,
    registry: Registry,
    limits: Limits,
    opened: u64,
}

impl<L: Slots, X> Host<L, X> {
    /// A host without sessions. No step takes less than `pace`.
    pub fn new(limits: Limits, registry: Registry, pace: Time) -> Self {
        let mut learned = Learned::new(pace, limits.bypass);
        learned.history = HistoryCache::new(limits.history);
        Host {
            table: SessionTable::default(),
            learned,
            registry,
            limits,
            opened: 0,
        }
    }

    /// A stream is up; the owner gives it a number that it never uses again.
    pub fn handle_stream(&mut self, stream: u64, name: StreamName, slots: L) {
        self.table.handle_stream(stream, name, slots);
    }

    /// A stream is lost. Its sessions rest until their coordinator takes them back or their lease ends.
    pub fn handle_stream_lost(&mut self, now: Time, stream: u64) {
        for hosted in self.table.handle_lost(stream, now) {
            hosted.account.rest();
        }
    }

    /// A coordinator opens a session.
    ///
    /// # Errors
    /// When the call is not to be carried out; nothing has changed then.
    pub fn handle_open(
        &mut self,
        now: Time,
        name: StreamName,
        spec: &SessionSpec,
    ) -> Result<Opening<X>, Refusal> {
        if !self.has_room(spec) {
            return Err(Refusal::Full);
        }
        let (owned, before) = self.table.handle_open(name, spec.session, spec.term)?;
        let before = before.map(|mut hosted| {
            let cache_ops = hosted.session.poll_cache_ops();
            let is_same_size = hosted.max_len == spec.stopping.max_len;
            let same = reusable(hosted.session.cached_text(), spec);
            Before {
                cache_ops,
                reusable: is_same_size.then_some(same as u32),
                totals: hosted.account.read(now),
                own: hosted.own,
            }
        });
        Ok(Opening { owned, before })
    }

    /// Whether the cache holds the text of a session that is opened, beside those that are there.
    fn has_room(&self, spec: &SessionSpec) -> bool {
        let needed = self.limits.cache.pages_of(spec.text.len());
        let own = self.table.get(spec.session);
        let others = self.pages() - own.map_or(0, |hosted| hosted.pages);
        others + needed <= self.limits.cache.pages
    }

    /// Pages that all sessions have.
    pub fn pages(&self) -> u32 {
        self.table.iter().map(|(_, hosted)| hosted.pages).sum()
    }

    /// Opens a session whose cache holds the first `cached` tokens of its text.
    ///
    /// # Errors
    /// When this worker cannot serve it; it is not held then.
    pub fn hold(
        &mut self,
        now: Time,
        opening: Opening<X>,
        spec: &SessionSpec,
        cached: u32,
        own: X,
    ) -> Result<(), (SessionError, X)> {
        let session = Session::new(now, spec, &self.registry, self.limits.capacity, cached);
        match session {
            Ok(session) => {
                if session.may_rest() {
                    self.learned.bypass.opened(session.is_shared());
                }
                self.opened += 1;
                let hosted = Hosted {
                    session,
                    max_len: spec.stopping.max_len,
                    pages: self.limits.cache.pages_of(spec.text.len()),
                    opened: self.opened,
                    account: Account::new(now),
                    own,
                };
                self.table.hold(spec.session, opening.owned, hosted);
                Ok(())
            }
            Err(error) => Err((error, own)),
        }
    }

    /// A frame from a coordinator has arrived on a stream. Returns the sessions that end with it.
    pub fn handle_frame(
        &mut self,
        now: Time,
        stream: u64,
        frame: CoordinatorFrame,
    ) -> Vec<Released<X>> {
        let mut released = Vec::new();
        for update in frame.updates {
            let Addressed {
                session,
                term,
                message,
            } = update;
            let Some(hosted) = self.table.accepts(stream, session, term) else {
                continue;
            };
            let taken = (hosted.session).handle_update(now, &message, &mut self.learned);
            if let Err(error) = taken {
                released.extend(self.fault(now, session, error.to_string()));
            }
        }
        for (session, term) in frame.closed {
            let closed = self.table.handle_close(stream, session, term);
            released.extend(closed.map(|mut hosted| {
                hosted.session.handle_closed(&mut self.learned);
                over(now, session, hosted, Why::Closed)
            }));
        }
        released
    }

    /// Closes a session whose open call was given up by its caller.
    pub fn close(&mut self, now: Time, session: SessionId) -> Option<Released<X>> {
        let hosted = self.table.remove(session)?;
        Some(over(now, session, hosted, Why::Closed))
    }

    /// Closes one session after the other; `None` when there is none left.
    pub fn close_any(&mut self, now: Time) -> Option<Released<X>> {
        let (session, _) = self.table.iter().next()?;
        self.close(now, session)
    }

    /// Gives up a session, and reports that to its coordinator.
    pub fn fault(&mut self, now: Time, session: SessionId, why: String) -> Option<Released<X>> {
        let hosted = (self.table).give_up(session, FromWorker::Fault(why.clone()))?;
        Some(over(now, session, hosted, Why::Fault(why)))
    }

    /// Takes the pages that texts have grown into. A session that is given up because there are not enough: one whose
    /// stream is lost, or the last one that was opened. To be called before [`poll_batch`](Self::poll_batch), until there
    /// is none.
    pub fn poll_preempted(&mut self, now: Time) -> Option<Released<X>> {
        let cache = self.limits.cache;
        for hosted in self.table.iter_mut() {
            let needed = cache.pages_of(hosted.session.text().len());
            hosted.pages = hosted.pages.max(needed);
        }
        if self.pages() <= cache.pages {
            return None;
        }
        let (session, _) = (self.table.iter())
            .max_by_key(|&(id, hosted)| (!self.table.is_on_stream(id), hosted.opened))?;
        let hosted = self.table.give_up(session, FromWorker::Preempted)?;
        Some(over(now, session, hosted, Why::Preempted))
    }

    /// A session whose coordinator has not come back in time.
    pub fn poll_expired(&mut self, now: Time) -> Option<Released<X>> {
        let (session, hosted) = self.table.poll_expired(now)?;
        Some(over(now, session, hosted, Why::Expired))
    }

    /// Plans the next step: every session offers work, and the rows of the step are divided among them.
    pub fn poll_batch(&mut self, now: Time) -> Batch {
        let mut batch = Batch {
            wake: self.table.wake(),
            ..Batch::default()
        };
        let mut offers: Vec<(SessionId, Work)> = Vec::new();
        let mut joining: Vec<(SessionId, Work)> = Vec::new();
        for id in self.table.in_turn() {
            let Some(hosted) = self.table.get_mut(id) else {
                continue;
            };
            let held = hosted.session.rows_held();
            let vacant = usize::from(self.limits.capacity.rows).saturating_sub(held);
            let space = self.limits.room.rows.min(vacant);
            let poll = if space == 0 {
                Poll::Parked
            } else {
                (hosted.session).poll_step(now, space, &mut self.learned)
            };
            let ops = hosted.session.poll_cache_ops();
            if !ops.is_empty() {
                batch.cache_ops.push((id, ops));
            }
            match poll {
                Poll::Work(work) => offers.push((id, work)),
                Poll::Wait(until, work) => {
                    hosted.account.set(Status::Waiting);
                    batch.wake = batch.wake.into_iter().chain(until).min();
                    joining.extend(work.map(|work| (id, work)));
                }
                Poll::Parked => hosted.account.set(Status::Parked),
                Poll::Done => hosted.account.finish(now),
            }
        }
        if let Some(&(first, _)) = offers.first() {
            offers.append(&mut joining);
            self.table.pass_turn(first);
        }
        let works: Vec<&Work> = offers.iter().map(|(_, work)| work).collect();
        let shares = allocate(&self.learned.cost, self.limits.room, &works);
        for ((id, work), share) in offers.iter().zip(shares) {
            let id = *id;
            let Some(hosted) = self.table.get_mut(id) else {
                continue;
            };
            hosted.account.set(match share.rows() {
                // Its guesses are worth less than those of others.
                0 if work.base == 0 => Status::Parked,
                // Without a row, it has its turn soon.
                _ => Status::Working,
            });
            if share.rows() > 0 {
                let plan = hosted.session.plan_step(share);
                batch.parts.push(Part { session: id, plan });
            }
        }
        batch
    }

    /// Looks at a frame that arrives while a step is being computed: parts of the step may have become useless. The
    /// frame itself is handled after the step.
    pub fn judge(&self, batch: &Batch, frame: &CoordinatorFrame, useful: &mut Usefulness) {
        for update in &frame.updates {
            if self.makes_useless(batch, update) {
                useful.mark(batch, update.session);
            }
        }
        for &(session, _) in &frame.closed {
            useful.mark(batch, session);
        }
    }

    fn makes_useless(&self, batch: &Batch, update: &Addressed<ReplicaUpdate>) -> bool {
        let part = (batch.parts.iter()).find(|part| part.session == update.session);
        let (Some(part), Some(hosted)) = (part, self.table.get(update.session)) else {
            return false;
        };
        self.table.term(update.session) == Some(update.term)
            && (hosted.session).is_obsolete(&part.plan, &update.message)
    }

    /// A step was computed: one list of answers for each part, in the order of [`StepPlan::asked`]. It was computed in
    /// `computed`, and lasts for `took`, pace included.
    pub fn handle_answers(
        &mut self,
        now: Time,
        batch: &Batch,
        answers: &[Vec<Answer>],
        computed: Time,
        took: Time,
    ) {
        for (part, answers) in batch.parts.iter().zip(answers) {
            if let Some(hosted) = self.table.get_mut(part.session) {
                (hosted.session).handle_step(now, took, &part.plan, answers, &mut self.learned);
            }
        }
        self.learned.cost.observe(batch.rows(), computed);
    }

    /// A step has ended at `now` after `took`; the time is charged to the sessions that had a part in it.
    pub fn handle_ended(&mut self, now: Time, batch: &Batch, took: Time, outcome: Outcome) {
        for part in &batch.parts {
            if let Some(hosted) = self.table.get_mut(part.session) {
                match outcome {
                    Outcome::Done => hosted.account.stepped(part.plan.len(), took),
                    Outcome::Abandoned => hosted.account.abandoned(took),
                }
            }
        }
        let of_prompts = (batch.parts.iter().map(|part| part.plan.append.len()))
            .filter(|&rows| rows >= PROMPT)
            .sum();
        if outcome == Outcome::Abandoned {
            self.learned.bypass.skipped();
            return;
        }
        if of_prompts > 0 {
            let share = (self.learned.cost).share_of(of_prompts, batch.rows());
            self.learned.bypass.prompted(took, share);
            return;
        }
        let sessions: Vec<&Session> = (batch.parts.iter())
            .filter_map(|part| self.session(part.session))
            .filter(|session| session.may_rest())
            .collect();
        let times = self.limits.bypass.slowed_by;
        let step = Step {
            sessions: sessions.len(),
            took,
            least_us: (self.learned.cost).least_us(batch.parts.len(), times),
            is_shared: sessions.iter().any(|session| session.is_shared()),
        };
        (self.learned.bypass).stepped(now, step);
    }

    /// The worker had nothing to compute for this long; the time is charged to the sessions that were waiting. Returns
    /// what they were doing.
    pub fn handle_idle(&mut self, time: Time) -> impl Iterator<Item = Status> + '_ {
        // Before anything is returned: all sessions are charged, however few entries the caller reads.
        let mut is_waiting = false;
        for hosted in self.table.iter_mut() {
            hosted.account.idled(time);
            is_waiting |= hosted.account.status() == Status::Waiting && hosted.session.may_rest();
        }
        if is_waiting {
            self.learned.bypass.idled(time);
        }
        (self.table.iter()).map(|(_, hosted)| hosted.account.status())
    }

    /// Fills every vacant slot whose session has something new.
    pub fn report(&mut self, now: Time) {
        (self.table).on_streams(|id, term, slots, hosted| {
            if !slots.is_vacant(id) {
                return;
            }
            let activity = hosted.account.read(now);
            if let Some(report) = hosted.session.poll_report(activity) {
                slots.put(id, term, FromWorker::Report(report));
            }
        });
    }

    /// What the owner keeps for a session, with its committed text and how much of that is the prompt.
    pub fn get_mut(&mut self, session: SessionId) -> Option<(&mut X, &[u32], u32)> {
        let hosted = self.table.get_mut(session)?;
        let prompt_len = hosted.session.prompt_len();
        Some((&mut hosted.own, hosted.session.text(), prompt_len))
    }

    /// What the owner keeps for a session.
    pub fn own(&self, session: SessionId) -> Option<&X> {
        self.table.get(session).map(|hosted| &hosted.own)
    }

    /// The texts that were completed here, of requests that share them.
    pub fn history(&self) -> &HistoryCache {
        &self.learned.history
    }

    /// What the owner keeps for each session.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, &X)> {
        (self.table.iter()).map(|(id, hosted)| (id, &hosted.own))
    }

    /// The term that a session was opened under.
    pub fn term(&self, session: SessionId) -> Option<Term> {
        self.table.term(session)
    }

    /// The state machine of a session.
    pub fn session(&self, session: SessionId) -> Option<&Session> {
        self.table.get(session).map(|hosted| &hosted.session)
    }

    /// What the steps of a session have made of guesses since this was last asked.
    pub fn take_trail(&mut self, session: SessionId) -> Option<Trail> {
        (self.table.get_mut(session)).map(|hosted| hosted.session.take_trail())
    }

    /// What a session is doing, as the last [`poll_batch`](Self::poll_batch) found it.
    pub fn status(&self, session: SessionId) -> Option<Status> {
        (self.table.get(session)).map(|hosted| hosted.account.status())
    }

    /// How many sessions there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no session.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The slots of a stream.
    pub fn slots_of(&mut self, stream: u64) -> Option<&mut L> {
        self.table.slots_of(stream)
    }

    /// The slots of every stream.
    pub fn slots(&self) -> impl Iterator<Item = &L> {
        self.table.slots()
    }

    /// The newest stream of a coordinator.
    pub fn newest_stream(&self, coordinator: u64) -> Option<u64> {
        self.table.newest(coordinator)
    }
}

fn over<X>(now: Time, session: SessionId, hosted: Hosted<X>, why: Why) -> Released<X> {
    Released {
        session,
        totals: hosted.account.read(now),
        own: hosted.own,
        why,
    }
}

//! The model thread: it owns the engine and the sessions, and does nothing but steps.
//!
//! The loop: take what has arrived, let every session say what it wants of the next step, compute all of it as one
//! batch, hand each session its logits, fill the slots with what is new. Idle time is charged to the sessions that
//! were waiting.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use engine::sampling::Recipe;
use engine::{AppendLogits, Engine, SeqId, SeqRows, StepEnd, StepOutput, TreeRow};
use runtime::TraceContext;
use speculation::Time;
use speculation::cost::CostModel;
use speculation::lease::{Grant, Hold, reusable};
use speculation::message::{LinkName, Relayed, SessionId, SessionSpec};
use speculation::replica::{Poll, StepPlan, TailLogits};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::activity::{Account, Mood};
use crate::handle::{Event, LinkOutbox, OpenError, Up, WorkerHandle};
use crate::kind::{Computed, Kind, Logits};
use crate::metrics::WorkerMetrics;
use crate::model::Loaded;
use crate::rows::ScratchRows;
use crate::trace::{Outcome, SessionTrace};
use crate::watch::Watch;
use crate::watchdog::StepClock;

/// Events that may wait for the model thread; a link that has more to say is held up.
pub(crate) const INBOX: usize = 1024;

/// Starts the model thread. It ends when told to, or when every handle is gone.
pub fn start<K: Kind>(model: Loaded, kind: K) -> std::io::Result<WorkerHandle<K::Report>> {
    let (sender, events) = crossbeam_channel::bounded(INBOX);
    let (open, sessions) = watch::channel(0);
    let dead = CancellationToken::new();
    let handle = WorkerHandle::new(sender, sessions, dead.clone(), model.info.clone());
    std::thread::Builder::new()
        .name("model".to_owned())
        .spawn(move || {
            // However the thread ends, by a panic too, its links end with it instead of falling silent.
            let _dead = dead.drop_guard();
            if let Some(cpu) = model.pin
                && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
            {
                tracing::warn!(cpu, "the model thread could not be pinned to this CPU");
            }
            ModelThread::new(model, kind, events, open).run();
        })?;
    Ok(handle)
}

pub(crate) struct Served<S> {
    pub(crate) session: S,
    seq: SeqId,
    rows: ScratchRows,
    recipe: Recipe,
    pub(crate) grant: Grant,
    /// Positions reserved in the cache.
    max_len: u32,
    account: Account,
    trace: SessionTrace,
}

struct Link<R> {
    name: LinkName,
    outbox: LinkOutbox<R>,
}

pub(crate) struct Stepping {
    pub(crate) id: SessionId,
    pub(crate) plan: StepPlan,
    rows: Vec<TreeRow>,
}

struct ModelThread<K: Kind> {
    kind: K,
    role: &'static str,
    metrics: WorkerMetrics,
    clock: Arc<StepClock>,
    engine: Engine,
    output: StepOutput,
    cost: CostModel,
    pace: Duration,
    scratch_rows: u16,
    max_rows: usize,
    started: Instant,
    events: Receiver<Event<K::Report>>,
    /// Events that arrived while a step was computed.
    pending: VecDeque<Event<K::Report>>,
    links: BTreeMap<u64, Link<K::Report>>,
    sessions: BTreeMap<SessionId, Served<K::Session>>,
    /// How many they are, for who waits for the last one to end.
    open: watch::Sender<usize>,
    /// The session that goes first into the next step, so that none is always last.
    turn: SessionId,
}

/// Whether the thread goes on.
pub(crate) type Going = ControlFlow<()>;

impl<K: Kind> ModelThread<K> {
    fn new(
        model: Loaded,
        kind: K,
        events: Receiver<Event<K::Report>>,
        open: watch::Sender<usize>,
    ) -> Self {
        model.metrics.pages(&model.engine);
        ModelThread {
            kind,
            role: model.role,
            metrics: model.metrics,
            clock: model.clock,
            engine: model.engine,
            output: StepOutput::new(),
            cost: CostModel::new(model.pace),
            pace: model.pace,
            scratch_rows: model.scratch_rows,
            max_rows: model.max_rows,
            started: Instant::now(),
            events,
            pending: VecDeque::new(),
            links: BTreeMap::new(),
            sessions: BTreeMap::new(),
            open,
            turn: SessionId(0),
        }
    }

    fn now(&self) -> Time {
        self.started.elapsed()
    }

    fn run(mut self) {
        loop {
            if self.take_events().is_break() {
                return;
            }
            let begun = Instant::now();
            let (batch, wake) = self.gather();
            let going = if batch.is_empty() {
                self.report();
                self.idle(wake)
            } else {
                self.clock.begin();
                self.step(batch, begun);
                self.clock.end();
                self.report();
                ControlFlow::Continue(())
            };
            if going.is_break() {
                return;
            }
        }
    }

    fn take_events(&mut self) -> Going {
        while let Some(event) = self.pending.pop_front() {
            self.handle(event)?;
        }
        while let Ok(event) = self.events.try_recv() {
            self.handle(event)?;
        }
        ControlFlow::Continue(())
    }

    /// Waits for something to happen, and charges the time to who was waiting.
    fn idle(&mut self, wake: Option<Time>) -> Going {
        let since = self.now();
        let event = match wake {
            None => self
                .events
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self.events.recv_timeout(at.saturating_sub(since)),
        };
        let idle = self.now().saturating_sub(since);
        for served in self.sessions.values_mut() {
            served.account.idled(idle);
        }
        let moods = self.sessions.values().map(|served| served.account.mood);
        self.metrics.idled(idle, moods);
        match event {
            Ok(event) => self.handle(event),
            Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
            Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
        }
    }

    fn handle(&mut self, event: Event<K::Report>) -> Going {
        match event {
            Event::Open {
                name,
                spec,
                recipe,
                trace,
                reply,
            } => {
                // A call that was given up while it waited here, for example because this thread or the network hung,
                // opens nothing: nobody would ever close it.
                if reply.is_closed() {
                    return ControlFlow::Continue(());
                }
                let answer = self.open(name, &spec, *recipe, &trace);
                self.metrics.answered(&answer);
                let opened = answer.is_ok();
                if reply.send(answer).is_err() && opened {
                    self.close(spec.session);
                }
            }
            Event::Linked { name, link, outbox } => {
                self.links.insert(link, Link { name, outbox });
            }
            Event::Relayed { link, relayed } => self.relayed(link, relayed),
            Event::Taken => {}
            Event::Lost { link } => {
                self.links.remove(&link);
                let now = self.now();
                for served in self.sessions.values_mut() {
                    if served.grant.handle_lost(link, now) {
                        served.account.mood = Mood::Parked;
                    }
                }
            }
            Event::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn open(
        &mut self,
        name: LinkName,
        spec: &SessionSpec,
        recipe: Recipe,
        trace: &TraceContext,
    ) -> Result<(), OpenError> {
        let link = (self.links.iter())
            .rev()
            .find(|(_, link)| link.name == name)
            .map(|(&id, _)| id)
            .ok_or(OpenError::NotLinked(name))?;
        let coordinator = name.coordinator;
        let now = self.now();
        // What a session may hold is this worker's to say.
        let spec = SessionSpec {
            task: spec.task.within(self.scratch_rows),
            ..spec.clone()
        };
        let held = match self.sessions.get(&spec.session) {
            None => None,
            Some(held) if held.grant.yields_to(coordinator, spec.term) => self.take_back(&spec),
            Some(_) => return Err(OpenError::Duplicate(spec.session)),
        };
        let (seq, cached) = match held {
            Some(held) => held,
            None => (self.engine.open(spec.stopping.max_len as usize)?, 0),
        };
        let session = match self.kind.open(now, &spec, cached) {
            Ok(session) => session,
            Err(error) => {
                self.engine.release(seq);
                return Err(error.into());
            }
        };
        let served = Served {
            session,
            seq,
            rows: ScratchRows::new(self.scratch_rows),
            recipe,
            grant: Grant::new(coordinator, spec.term, link),
            max_len: spec.stopping.max_len,
            account: Account::new(now),
            trace: SessionTrace::start(self.role, trace, &spec),
        };
        self.metrics.pages(&self.engine);
        self.sessions.insert(spec.session, served);
        self.open.send_replace(self.sessions.len());
        Ok(())
    }

    /// Ends a session that is opened anew, and keeps what its cache holds of the text: the sequence and how many
    /// tokens that are. Nothing else of it is kept, so that what it had not yet told makes no difference.
    fn take_back(&mut self, spec: &SessionSpec) -> Option<(SeqId, u32)> {
        let mut held = self.sessions.remove(&spec.session)?;
        held.trace.close(&held.account.totals);
        self.open.send_replace(self.sessions.len());
        self.silence(&held, spec.session);
        let settled = (self.kind.poll_cache_ops(&mut held.session).into_iter())
            .try_for_each(|op| held.rows.apply(&mut self.engine, held.seq, op));
        let same = reusable(self.kind.cached_text(&held.session), spec);
        let kept = settled.and_then(|()| self.engine.truncate(held.seq, same));
        if kept.is_err() || held.max_len != spec.stopping.max_len {
            self.engine.release(held.seq);
            return None;
        }
        Some((held.seq, same as u32))
    }

    fn close(&mut self, id: SessionId) {
        if let Some(mut served) = self.sessions.remove(&id) {
            self.engine.release(served.seq);
            self.metrics.pages(&self.engine);
            served.trace.close(&served.account.totals);
            self.open.send_replace(self.sessions.len());
            self.silence(&served, id);
        }
    }

    /// What the session still had to say is not said.
    fn silence(&self, served: &Served<K::Session>, id: SessionId) {
        if let Hold::Link(link) = served.grant.hold()
            && let Some(link) = self.links.get(&link)
        {
            link.outbox.discard(id);
        }
    }

    /// Closes the sessions whose coordinator has not come back; gives the time at which the next lease ends.
    fn expire(&mut self, now: Time) -> Option<Time> {
        let leases = |(&id, served): (&SessionId, &Served<K::Session>)| match served.grant.hold() {
            Hold::Lease(until) => Some((until, id)),
            Hold::Link(_) => None,
        };
        let leases: Vec<(Time, SessionId)> = self.sessions.iter().filter_map(leases).collect();
        for &(_, id) in leases.iter().filter(|(until, _)| *until <= now) {
            tracing::debug!(session = id.0, "its coordinator has not come back");
            self.close(id);
        }
        (leases.iter().map(|&(until, _)| until))
            .filter(|&until| until > now)
            .min()
    }

    fn relayed(&mut self, link: u64, relayed: Relayed) {
        let now = self.now();
        for update in relayed.updates {
            let Some(served) = self.sessions.get_mut(&update.session) else {
                continue;
            };
            if !served.grant.hears(link, update.term) {
                continue;
            }
            let message = &update.message;
            if let Err(error) = (self.kind).handle_update(&mut served.session, now, message) {
                self.fault(update.session, error.to_string());
            }
        }
        let Some(coordinator) = self.links.get(&link).map(|link| link.name.coordinator) else {
            return;
        };
        for (id, term) in relayed.closed {
            // Also one that was opened on an earlier link of the same coordinator.
            let meant = |served: &Served<K::Session>| served.grant.ends_by(coordinator, term);
            if self.sessions.get(&id).is_some_and(meant) {
                self.close(id);
            }
        }
    }

    /// Gives up a session, and says so.
    fn fault(&mut self, id: SessionId, why: String) {
        tracing::warn!(session = id.0, why, "session given up");
        self.metrics.fault();
        let Some(served) = self.sessions.get(&id) else {
            return;
        };
        let (hold, term) = (served.grant.hold(), served.grant.term());
        self.close(id);
        if let Hold::Link(link) = hold
            && let Some(link) = self.links.get(&link)
        {
            link.outbox.put(id, Up::Fault(term, why));
        }
    }

    /// What every session wants of the next step, within the row budget, and when to ask again if nothing.
    fn gather(&mut self) -> (Vec<Stepping>, Option<Time>) {
        let now = self.now();
        let mut batch: Vec<Stepping> = Vec::new();
        let mut wake = self.expire(now);
        let mut room = self.max_rows;
        let turn = self.turn;
        let order: Vec<SessionId> = (self.sessions.range(turn..))
            .chain(self.sessions.range(..turn))
            .filter(|(_, served)| matches!(served.grant.hold(), Hold::Link(_)))
            .map(|(&id, _)| id)
            .collect();
        for id in order {
            match self.poll(id, now, room) {
                Ok(Poll::Step(plan)) => {
                    room -= plan.rows();
                    let rows = self
                        .sessions
                        .get_mut(&id)
                        .and_then(|served| served.rows.place(&plan.rows));
                    match rows {
                        Some(rows) => batch.push(Stepping { id, plan, rows }),
                        None => {
                            self.fault(id, "a planned row has no parent in the cache".to_owned())
                        }
                    }
                }
                Ok(Poll::Wait(until)) => wake = wake.into_iter().chain(until).min(),
                Ok(Poll::Parked | Poll::Done) => {}
                // A cache that disagrees with the tree could give wrong text: rather none.
                Err(why) => self.fault(id, why),
            }
        }
        if let Some(first) = batch.first() {
            self.turn = SessionId(first.id.0.wrapping_add(1));
        }
        (batch, wake)
    }

    /// What one session wants, with its cache brought up to date before and after.
    fn poll(&mut self, id: SessionId, now: Time, room: usize) -> Result<Poll, String> {
        let Some(served) = self.sessions.get_mut(&id) else {
            return Ok(Poll::Done);
        };
        let mut settle = |kind: &mut K, served: &mut Served<K::Session>| {
            (kind.poll_cache_ops(&mut served.session).into_iter())
                .try_for_each(|op| served.rows.apply(&mut self.engine, served.seq, op))
                .map_err(|error| format!("the cache and the tree disagree: {error}"))
        };
        settle(&mut self.kind, served)?;
        let space = room.min(served.rows.vacant());
        if space == 0 {
            return Ok(Poll::Parked);
        }
        let poll = (self.kind).poll_step(&mut served.session, now, &self.cost, space);
        settle(&mut self.kind, served)?;
        served.account.mood = match &poll {
            Poll::Step(plan) if plan.rows() > space => {
                return Err(format!(
                    "{} rows were planned where {space} fit",
                    plan.rows()
                ));
            }
            Poll::Step(_) => Mood::Working,
            Poll::Wait(_) => Mood::Waiting,
            Poll::Parked => Mood::Parked,
            Poll::Done => {
                served.account.finish(now);
                Mood::Done
            }
        };
        Ok(poll)
    }

    fn step(&mut self, batch: Vec<Stepping>, begun: Instant) {
        let mut rows = 0;
        let mut seqs: Vec<SeqRows<'_>> = Vec::with_capacity(batch.len());
        for part in &batch {
            let Some(served) = self.sessions.get(&part.id) else {
                continue;
            };
            rows += part.plan.rows();
            seqs.push(SeqRows {
                seq: served.seq,
                append: &part.plan.append,
                append_logits: match part.plan.tail {
                    TailLogits::Keep => AppendLogits::Last,
                    TailLogits::Skip => AppendLogits::None,
                    TailLogits::All => AppendLogits::All,
                },
                tree: &part.rows,
            });
        }
        let mut watch = Watch {
            kind: &self.kind,
            sessions: &self.sessions,
            batch: &batch,
            useless: vec![false; batch.len()],
            events: &self.events,
            pending: &mut self.pending,
        };
        let end = self
            .engine
            .step(&seqs, &mut self.output, &mut |_| watch.look());
        let useless = watch.useless;
        match end {
            Ok(StepEnd::Done) => {
                // The answer is told when the step has lasted as long as it should; working it out is part of that.
                self.finish(&batch, begun.elapsed().max(self.pace));
                self.cost.observe(rows, begun.elapsed());
                self.pad(&batch, useless, begun);
            }
            Ok(StepEnd::Interrupted) => self.give_up(&batch, begun),
            Err(error) => {
                tracing::error!(%error, "a planned step was refused");
                for part in &batch {
                    self.fault(part.id, error.to_string());
                }
            }
        }
    }

    /// Lets a paced step last as long as it should, unless nothing it did is of use any more.
    fn pad(&mut self, batch: &[Stepping], useless: Vec<bool>, begun: Instant) {
        let mut watch = Watch {
            kind: &self.kind,
            sessions: &self.sessions,
            batch,
            useless,
            events: &self.events,
            pending: &mut self.pending,
        };
        let worthless = watch.pad(begun, self.pace).is_break();
        let took = begun.elapsed();
        let outcome = if worthless {
            self.metrics.abandoned(took);
            Outcome::Abandoned
        } else {
            let rows = batch.iter().map(|part| part.plan.rows()).sum();
            self.metrics.stepped(rows, took);
            Outcome::Done
        };
        for part in batch {
            let Some(served) = self.sessions.get_mut(&part.id) else {
                continue;
            };
            match outcome {
                Outcome::Abandoned => served.account.abandoned(took),
                Outcome::Done => served.account.stepped(part.plan.rows(), took),
            }
            served.trace.step(begun, took, &part.plan, outcome);
        }
    }

    fn give_up(&mut self, batch: &[Stepping], begun: Instant) {
        let took = begun.elapsed();
        self.metrics.abandoned(took);
        for part in batch {
            if let Some(served) = self.sessions.get_mut(&part.id) {
                let slots = served.rows.forget(&part.plan.rows);
                self.engine.free(served.seq, &slots);
                served.account.abandoned(took);
                served
                    .trace
                    .step(begun, took, &part.plan, Outcome::Abandoned);
            }
        }
    }

    /// Hands every session its logits; the step counts as having ended when it has lasted as long as it should.
    fn finish(&mut self, batch: &[Stepping], took: Time) {
        let now = self.now();
        let mut first = 0;
        for part in batch {
            let appended = part.plan.kept_appends();
            if let Some(served) = self.sessions.get_mut(&part.id) {
                let computed = Computed {
                    now,
                    took,
                    plan: &part.plan,
                    logits: Logits {
                        output: &self.output,
                        first,
                        appended,
                    },
                };
                (self.kind).handle_step(&mut served.session, &mut served.recipe, computed);
            }
            first += appended + part.rows.len();
        }
    }

    /// Fills every vacant slot whose session has something new.
    fn report(&mut self) {
        let now = self.now();
        for (&id, served) in &mut self.sessions {
            let Hold::Link(link) = served.grant.hold() else {
                continue;
            };
            let Some(link) = self.links.get(&link) else {
                continue;
            };
            if link.outbox.is_vacant(id) {
                let activity = served.account.read(now);
                if let Some(report) = self.kind.poll_report(&mut served.session, activity) {
                    link.outbox.put(id, Up::Report(served.grant.term(), report));
                }
            }
        }
    }
}

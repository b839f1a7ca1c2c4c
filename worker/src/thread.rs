//! The model thread: it owns the engine and the sessions, and does nothing but steps.
//!
//! The loop: take what has arrived, let every session say what it wants of the next step, compute all of it as one
//! batch, hand each session its logits, fill the slots with what is new. Idle time is charged to the sessions that
//! were waiting.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use engine::sampling::Recipe;
use engine::{AppendLogits, Engine, SeqId, SeqRows, StepEnd, StepOutput, TreeRow};
use runtime::TraceContext;
use speculation::Time;
use speculation::cost::CostModel;
use speculation::holdings::{Holdings, Refusal, Slots};
use speculation::lease::reusable;
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
    /// Positions reserved in the cache.
    max_len: u32,
    account: Account,
    trace: SessionTrace,
}

/// What the writer of a link has not taken yet.
pub(crate) struct Unsaid<R>(LinkOutbox<R>);

impl<R> Slots for Unsaid<R> {
    fn discard(&mut self, session: SessionId) {
        self.0.discard(session);
    }
}

/// What a model thread holds.
pub(crate) type Held<K> = Holdings<Unsaid<<K as Kind>::Report>, Served<<K as Kind>::Session>>;

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
    held: Held<K>,
    /// How many they are, for who waits for the last one to end.
    open: watch::Sender<usize>,
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
            held: Holdings::default(),
            open,
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
        for served in self.held.iter_mut() {
            served.account.idled(idle);
        }
        let moods = self.held.iter().map(|(_, served)| served.account.mood);
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
                self.held.handle_linked(link, name, Unsaid(outbox));
            }
            Event::Relayed { link, relayed } => self.relayed(link, relayed),
            Event::Taken => {}
            Event::Lost { link } => {
                let now = self.now();
                let rests = |served: &mut Served<_>| served.account.mood = Mood::Parked;
                self.held.handle_lost(link, now, rests);
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
        let now = self.now();
        // What a session may hold is this worker's to say.
        let spec = SessionSpec {
            task: spec.task.within(self.scratch_rows),
            ..spec.clone()
        };
        let opening = self.held.handle_open(name, spec.session, spec.term);
        let (grant, before) = opening.map_err(|refusal| match refusal {
            Refusal::NotLinked => OpenError::NotLinked(name),
            Refusal::Duplicate => OpenError::Duplicate(spec.session),
        })?;
        let kept = before.and_then(|before| self.take_back(before, &spec));
        let (seq, cached) = match kept {
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
            max_len: spec.stopping.max_len,
            account: Account::new(now),
            trace: SessionTrace::start(self.role, trace, &spec),
        };
        self.metrics.pages(&self.engine);
        self.held.hold(spec.session, grant, served);
        self.open.send_replace(self.held.len());
        Ok(())
    }

    /// Ends a session that is opened anew, and keeps what its cache holds of the text: the sequence and how many
    /// tokens that are. Nothing else of it is kept, so that what it had not yet told makes no difference.
    fn take_back(
        &mut self,
        mut held: Served<K::Session>,
        spec: &SessionSpec,
    ) -> Option<(SeqId, u32)> {
        held.trace.close(&held.account.totals);
        self.open.send_replace(self.held.len());
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
        if let Some(served) = self.held.remove(id) {
            self.release(served);
        }
    }

    /// Frees what a session had.
    fn release(&mut self, mut served: Served<K::Session>) {
        self.engine.release(served.seq);
        self.metrics.pages(&self.engine);
        served.trace.close(&served.account.totals);
        self.open.send_replace(self.held.len());
    }

    /// Closes the sessions whose coordinator has not come back; gives the time at which the next lease ends.
    fn expire(&mut self, now: Time) -> Option<Time> {
        while let Some((id, served)) = self.held.poll_expired(now) {
            tracing::debug!(session = id.0, "its coordinator has not come back");
            self.release(served);
        }
        self.held.wake()
    }

    fn relayed(&mut self, link: u64, relayed: Relayed) {
        let now = self.now();
        for update in relayed.updates {
            let Some(served) = self.held.hears(link, update.session, update.term) else {
                continue;
            };
            let message = &update.message;
            if let Err(error) = (self.kind).handle_update(&mut served.session, now, message) {
                self.fault(update.session, error.to_string());
            }
        }
        for (id, term) in relayed.closed {
            if let Some(served) = self.held.handle_close(link, id, term) {
                self.release(served);
            }
        }
    }

    /// Gives up a session, and says so.
    fn fault(&mut self, id: SessionId, why: String) {
        tracing::warn!(session = id.0, why, "session given up");
        self.metrics.fault();
        let Some((served, told)) = self.held.give_up(id) else {
            return;
        };
        if let Some((term, unsaid)) = told {
            unsaid.0.put(id, Up::Fault(term, why));
        }
        self.release(served);
    }

    /// What every session wants of the next step, within the row budget, and when to ask again if nothing.
    fn gather(&mut self) -> (Vec<Stepping>, Option<Time>) {
        let now = self.now();
        let mut batch: Vec<Stepping> = Vec::new();
        let mut wake = self.expire(now);
        let mut room = self.max_rows;
        for id in self.held.in_turn() {
            match self.poll(id, now, room) {
                Ok(Poll::Step(plan)) => {
                    room -= plan.rows();
                    let served = self.held.get_mut(id);
                    let rows = served.and_then(|served| served.rows.place(&plan.rows));
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
            self.held.pass_turn(first.id);
        }
        (batch, wake)
    }

    /// What one session wants, with its cache brought up to date before and after.
    fn poll(&mut self, id: SessionId, now: Time, room: usize) -> Result<Poll, String> {
        let Some(served) = self.held.get_mut(id) else {
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
            let Some(served) = self.held.get(part.id) else {
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
            held: &self.held,
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
            held: &self.held,
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
            let Some(served) = self.held.get_mut(part.id) else {
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
            if let Some(served) = self.held.get_mut(part.id) {
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
            if let Some(served) = self.held.get_mut(part.id) {
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
        self.held.speakers(|id, term, _, unsaid, served| {
            if !unsaid.0.is_vacant(id) {
                return;
            }
            let activity = served.account.read(now);
            if let Some(report) = self.kind.poll_report(&mut served.session, activity) {
                unsaid.0.put(id, Up::Report(term, report));
            }
        });
    }
}

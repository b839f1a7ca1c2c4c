//! The model thread: it owns the backend and the sessions, and does nothing but steps.
//!
//! The loop: handle the events that have arrived, let every session plan its part of the next step, compute all parts as
//! one batch, hand each session its answers, fill the slots with new reports. Every decision is [`Host`]'s; here are the
//! model, the clock and the inbox that it needs. Idle time is charged to the sessions that were waiting.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use control::host::{Before, Cache, Host, Limits, Released, Why};
use control::table::Refusal;
use decode::{CacheOp, SamplerState};
use engine::{Backend, PAGE, SeqId};
use flume::RecvTimeoutError;
use speculation::Time;
use speculation::allocation::Room;
use speculation::bypass::Plan;
use speculation::duty::Role;
use speculation::message::SessionId;
use speculation::session::Capacity;
use speculation::strategy::Registry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::error::OpenError;
use crate::event::{Event, INBOX, Inbox, OpenCall};
use crate::handle::WorkerHandle;
use crate::metrics::WorkerMetrics;
use crate::model::Loaded;
use crate::step_times::Pace;
use crate::stream::StreamSlots;
use crate::trace::SessionTrace;
use crate::watchdog::StepClock;

/// Starts the model thread, which decodes by the strategies of `registry`. It ends on [`WorkerHandle::stop`], or when every
/// handle is dropped.
///
/// # Errors
/// When the operating system gives no thread.
pub fn start(model: Loaded, registry: Registry) -> std::io::Result<WorkerHandle> {
    let (sender, events) = flume::bounded(INBOX);
    let (open, sessions) = watch::channel(0);
    let ended = CancellationToken::new();
    let handle = WorkerHandle::new(sender, sessions, ended.clone(), model.info.clone());
    std::thread::Builder::new()
        .name("model".to_owned())
        .spawn(move || {
            // However the thread ends, by a panic too, its streams end with it instead of falling silent.
            let _ended = ended.drop_guard();
            if let Some(cpu) = model.pin
                && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
            {
                tracing::warn!(cpu, "could not pin the model thread to this CPU");
            }
            if let Err(error) = lower_priority(model.nice) {
                tracing::warn!(%error, "could not lower the priority of the model thread");
            }
            ModelThread::new(model, registry, Inbox::new(events), open).run();
        })?;
    Ok(handle)
}

/// Lowers the priority of the calling thread.
#[cfg(unix)]
fn lower_priority(by: i32) -> std::io::Result<()> {
    if by > 0 {
        // On Linux priorities belong to threads, and no process means the calling one.
        rustix::process::setpriority_process(None, by)?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn lower_priority(_: i32) -> std::io::Result<()> {
    Ok(())
}

/// What the thread keeps for a session besides its state machine.
#[derive(Debug)]
pub(crate) struct Own {
    /// Its sequence in the backend.
    pub(crate) seq: SeqId,
    /// How it samples.
    pub(crate) sampler: SamplerState,
    /// Set once the session is held.
    pub(crate) trace: Option<SessionTrace>,
}

pub(crate) struct ModelThread {
    role: Role,
    pub(crate) metrics: WorkerMetrics,
    clock: Arc<StepClock>,
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) pace: Pace,
    started: Instant,
    pub(crate) inbox: Inbox,
    pub(crate) host: Host<StreamSlots, Own>,
    /// Number of sessions, for whoever waits until there is none.
    open: watch::Sender<usize>,
}

impl ModelThread {
    fn new(model: Loaded, registry: Registry, inbox: Inbox, open: watch::Sender<usize>) -> Self {
        model.metrics.pages(&*model.backend);
        let limits = Limits {
            capacity: Capacity {
                vocab: model.info.vocabulary_len,
                rows: model.tree_rows,
                source: model.source,
            },
            room: Room {
                rows: model.backend.facts().max_rows,
                prompt_stretch: model.prompt_stretch,
            },
            cache: Cache {
                pages: model.backend.facts().total_pages as u32,
                page: PAGE as u32,
            },
            bypass: Plan::default(),
            history: model.history_tokens,
        };
        ModelThread {
            role: model.info.role,
            metrics: model.metrics,
            clock: model.clock,
            backend: model.backend,
            host: Host::new(limits, registry, model.pace.least()),
            pace: model.pace,
            started: Instant::now(),
            inbox,
            open,
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.started.elapsed()
    }

    fn run(mut self) {
        while self.turn().is_continue() {}
        // What is left ends as well: its spans have totals.
        while let Some(released) = self.host.close_any(self.now()) {
            self.release(released);
        }
    }

    /// One round of the loop. `Break`: the thread ends.
    fn turn(&mut self) -> ControlFlow<()> {
        while let Some(event) = self.inbox.next() {
            self.handle(event)?;
        }
        self.expire();
        self.preempt();
        let begun = Instant::now();
        let mut batch = self.host.poll_batch(self.now());
        self.settle(&mut batch);
        if batch.parts.is_empty() {
            self.host.report(self.now());
            return self.idle(batch.wake);
        }
        self.clock.begin();
        self.step(batch, begun)?;
        self.clock.end();
        self.host.report(self.now());
        ControlFlow::Continue(())
    }

    /// Waits for the next event, and charges the time to the sessions that were waiting.
    fn idle(&mut self, wake: Option<Time>) -> ControlFlow<()> {
        let since = self.now();
        let event = (self.inbox).wait(wake.map(|at| at.saturating_sub(since)));
        let idle = self.now().saturating_sub(since);
        self.metrics.idled(idle, self.host.handle_idle(idle));
        match event {
            Ok(event) => self.handle(event),
            Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
            Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
        }
    }

    fn handle(&mut self, event: Event) -> ControlFlow<()> {
        let now = self.now();
        match event {
            Event::Open(call) => self.answer(*call),
            Event::Stream {
                name,
                stream,
                outbox,
            } => self.host.handle_stream(stream, name, StreamSlots(outbox)),
            Event::Frame { stream, frame, at } => {
                self.metrics.queued(at.elapsed());
                for released in self.host.handle_frame(now, stream, frame) {
                    self.release(released);
                }
            }
            Event::Taken => {}
            Event::Lost { stream } => self.host.handle_stream_lost(now, stream),
            Event::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn answer(&mut self, call: OpenCall) {
        // A call that was given up while it waited here, for example because this thread or the network hung, opens
        // nothing: nobody would ever close it.
        if call.reply.is_closed() {
            return;
        }
        let answer = self.open(&call);
        self.count();
        self.metrics.answered(&answer);
        let opened = answer.is_ok();
        if call.reply.send(answer).is_err()
            && opened
            && let Some(released) = self.host.close(self.now(), call.spec.session)
        {
            self.release(released);
        }
    }

    fn open(&mut self, call: &OpenCall) -> Result<(), OpenError> {
        let (now, spec) = (self.now(), &call.spec);
        let opening = self.host.handle_open(now, call.name, spec);
        let mut opening = opening.map_err(|refusal| match refusal {
            Refusal::NoStream => OpenError::NoStream(call.name),
            Refusal::Duplicate => OpenError::Duplicate(spec.session),
            Refusal::Full => OpenError::Full("the cache has too few free pages".to_owned()),
        })?;
        let kept = opening.before.take();
        let (seq, cached) = match kept.and_then(|before| self.take_back(before)) {
            Some(kept) => kept,
            None => (self.backend.open(spec.stopping.max_len as usize)?, 0),
        };
        let own = Own {
            seq,
            sampler: call.sampling.clone().into(),
            trace: None,
        };
        if let Err((error, own)) = self.host.hold(now, opening, spec, cached, own) {
            self.backend.release(own.seq);
            return Err(error.into());
        }
        if let Some((own, ..)) = self.host.get_mut(spec.session) {
            own.trace = Some(SessionTrace::start(self.role, &call.trace, spec));
        }
        Ok(())
    }

    /// Ends a session that is opened anew. Returns its sequence and how many tokens of the text the cache holds. Nothing
    /// else is kept, so that what it had not yet reported makes no difference.
    fn take_back(&mut self, before: Before<Own>) -> Option<(SeqId, u32)> {
        let Own { seq, trace, .. } = before.own;
        if let Some(mut trace) = trace {
            trace.close(&before.totals);
        }
        let kept = before.reusable.filter(|&cached| {
            (before.cache_ops.iter())
                .chain([&CacheOp::Shorten(cached)])
                .all(|op| self.backend.apply(seq, op).is_ok())
        });
        if kept.is_none() {
            self.backend.release(seq);
        }
        kept.map(|cached| (seq, cached))
    }

    /// Closes the sessions whose coordinator has not come back.
    fn expire(&mut self) {
        while let Some(released) = self.host.poll_expired(self.now()) {
            self.release(released);
        }
    }

    /// Gives up sessions until the texts of the others fit the cache.
    fn preempt(&mut self) {
        while let Some(released) = self.host.poll_preempted(self.now()) {
            self.release(released);
        }
    }

    /// Ends a session that cannot be served any more, and reports why.
    pub(crate) fn fault(&mut self, session: SessionId, why: String) {
        if let Some(released) = self.host.fault(self.now(), session, why) {
            self.release(released);
        }
    }

    /// Frees what a session had.
    fn release(&mut self, released: Released<Own>) {
        let session = released.session.0;
        match released.why {
            Why::Closed => {}
            Why::Expired => tracing::debug!(
                session,
                "session expired: its coordinator did not come back"
            ),
            Why::Preempted => {
                tracing::debug!(session, "session preempted: the cache is full");
                self.metrics.preempted();
            }
            Why::Fault(why) => {
                tracing::warn!(session, why, "session failed");
                self.metrics.fault();
            }
        }
        self.backend.release(released.own.seq);
        if let Some(mut trace) = released.own.trace {
            trace.close(&released.totals);
        }
        self.count();
    }

    /// Publishes how many sessions and cache pages are in use.
    fn count(&self) {
        self.metrics.pages(&*self.backend);
        self.metrics.history(self.host.history());
        self.open.send_replace(self.host.len());
    }
}

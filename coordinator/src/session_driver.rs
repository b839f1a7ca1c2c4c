//! The driver of one session: it owns the pure [`SessionMachine`] and the io around it. It feeds the machine what happens
//! and carries out what the machine decides. Nothing it does waits for one worker, or for the client, on behalf of another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use control::failover::{Expectation, LostTarget};
use control::fleet::{Text, Wanted};
use control::placement::TargetNeed;
use control::session::{
    self, Action, Ended, Fresh, Parting, Refused, RefusedKind, SessionMachine, TargetLoss,
};
use decode::Sampling;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use proto::{outward, v1};
use runtime::TraceContext;
use speculation::duty::Role;
use speculation::message::{Finish, SessionId, SessionSpec, Term};
use speculation::recording::Recording;
use speculation::relay::{Relay, WorkerKey};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::cluster::Cluster;
use crate::delivery::Delivery;
use crate::failure::Failure;
use crate::fleet_handle::{Entry, Waiting};
use crate::mailbox::{MailboxMaker, Received};
use crate::open::{self, Opened, Opening};
use crate::registry::Requester;
use crate::request_metrics::RequestMetrics;
use crate::reservation::{Loss, ReservedWorker};
use crate::worker_stream::ToWorker;

/// Messages handled before the workers are told: what has arrived together is answered together.
const BATCH: usize = 64;

/// Positions that are reserved at a time for a text that is longer than was expected.
const GROWTH: u32 = 64;

/// A session with its io. Dropping it closes the session on every worker.
pub(crate) struct SessionDriver {
    id: SessionId,
    machine: SessionMachine,
    /// The workers that have the session or are asked to take it.
    workers: BTreeMap<WorkerKey, ReservedWorker>,
    /// The worker that it has left last, and what people call it.
    left: Option<(WorkerKey, Arc<str>)>,
    opens: FuturesUnordered<Opening>,
    mailboxes: MailboxMaker,
    /// What the workers say.
    inbox: mpsc::Receiver<Received>,
    /// Notified when a slot was taken or a stream is lost.
    wake: Arc<Notify>,
    delivery: Delivery,
    /// Its place among the completions that run and wait.
    entry: Entry,
    /// Sent to the client once the target serves the session.
    started: Option<v1::Started>,
    /// Its entry in the placement queue, while it waits for a target.
    waiting: Option<Waiting>,
    sampling: Sampling,
    /// Only a target of these numerics goes on with the same text.
    numerics_id: String,
    is_open_ended: bool,
    /// Tokens that the text may have.
    max_len: u32,
    /// Positions that are reserved for it.
    positions: u32,
    /// The newest target, for people.
    target: String,
    /// What workers do for the session belongs to this trace.
    trace: TraceContext,
    /// When the client stops waiting.
    deadline: Option<Instant>,
    /// The epoch of its times.
    begun: Instant,
}

/// What a session begins with.
pub(crate) struct Beginning {
    pub(crate) id: SessionId,
    pub(crate) machine: SessionMachine,
    pub(crate) mailboxes: MailboxMaker,
    pub(crate) inbox: mpsc::Receiver<Received>,
    pub(crate) delivery: Delivery,
    pub(crate) entry: Entry,
    pub(crate) started: v1::Started,
    pub(crate) sampling: Sampling,
    /// Nobody has said how long the text may get.
    pub(crate) is_open_ended: bool,
    pub(crate) max_len: u32,
    pub(crate) positions: u32,
    pub(crate) trace: TraceContext,
    pub(crate) deadline: Option<Instant>,
}

/// How a session ends when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The text is complete.
    Finished(Finish),
    /// The client has disconnected.
    Left,
}

impl SessionDriver {
    /// A session with its reservations, of which the target's comes first.
    pub(crate) fn new(beginning: Beginning, reserved: Vec<ReservedWorker>) -> Self {
        let Beginning {
            id,
            machine,
            mailboxes,
            inbox,
            delivery,
            entry,
            started,
            sampling,
            is_open_ended,
            max_len,
            positions,
            trace,
            deadline,
        } = beginning;
        let mut driver = SessionDriver {
            id,
            machine,
            workers: BTreeMap::new(),
            left: None,
            opens: FuturesUnordered::new(),
            wake: Arc::clone(&mailboxes.wake),
            mailboxes,
            inbox,
            delivery,
            entry,
            numerics_id: started.system_fingerprint.clone(),
            started: Some(started),
            waiting: None,
            sampling,
            is_open_ended,
            max_len,
            positions,
            target: String::new(),
            trace,
            deadline,
            begun: Instant::now(),
        };
        for reserved in reserved {
            driver.handle_reserved(reserved);
        }
        // A resumed completion may have its stop text already.
        if driver.delivery.is_stopped() {
            driver.satisfy();
        }
        driver
    }

    /// The merged state.
    pub(crate) fn relay(&self) -> &Relay {
        self.machine.relay()
    }

    /// Ends the recording of how the models agree, if there is one; with the temperature.
    pub(crate) fn take_recording(&mut self) -> Option<(f32, Recording)> {
        let recording = self.machine.take_recording()?;
        Some((self.sampling.params.temperature, recording))
    }

    /// Whether nobody has said how long the text may get.
    pub(crate) fn is_open_ended(&self) -> bool {
        self.is_open_ended
    }

    /// Generated tokens of the text.
    pub(crate) fn generated(&self) -> usize {
        self.machine.generated()
    }

    /// The term under which the session is closed where an open call is carried out behind its close.
    pub(crate) fn closing_term(&self) -> Term {
        self.machine.closing_term()
    }

    /// Ends the session: leaves every worker, and gives what is left to do about the client and the open calls.
    pub(crate) fn end(self) -> (Delivery, Entry, FuturesUnordered<Opening>) {
        (self.delivery, self.entry, self.opens)
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Runs until the text ends, the client leaves or the target is lost for good.
    pub(crate) async fn drive(
        &mut self,
        cluster: &Cluster,
        metrics: &mut RequestMetrics,
    ) -> Result<End, Failure> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut arrivals = cluster.registry.arrivals();
        let mut vacancies = cluster.registry.vacancies();
        loop {
            self.look_at_workers();
            self.flush();
            metrics.text_has(self.machine.generated());
            if let Some(ended) = self.carry_out(cluster, metrics) {
                return self.ended(ended);
            }
            let wake = self.machine.wake(self.now());
            let wake = wake.map(|at| self.begun + at);
            // The inbox comes last of what workers do, because it alone can be ready all the time.
            tokio::select! {
                biased;
                () = self.delivery.disconnected() => return Ok(End::Left),
                () = cluster.cut.cancelled() => return Err(Failure::Stopping),
                () = until(self.deadline) => {
                    let tokens = self.machine.generated();
                    return Err(Failure::Deadline { tokens });
                }
                Some(opened) = self.opens.next() => self.handle_opened(cluster, opened),
                () = self.wake.notified() => {}
                () = arrivals.changed() => self.machine.handle_arrivals(),
                () = vacancies.changed(), if self.machine.is_seeking() => {
                    self.machine.handle_vacancy();
                }
                () = until(wake) => {}
                _ = self.inbox.recv_many(&mut batch, BATCH) => {
                    let now = self.now();
                    for Received { key, term, message } in batch.drain(..) {
                        self.machine.handle_message(now, key, term, message);
                    }
                }
                Some(room) = self.delivery.room(), if self.delivery.is_pending() => {
                    self.delivery.take_room(room);
                }
                unread = self.delivery.stalled() => return Err(unread),
            }
        }
    }

    /// Tells the machine which streams are lost and which slots were taken.
    fn look_at_workers(&mut self) {
        let now = self.now();
        let lost = |worker: &ReservedWorker| Some((worker.stream.key, worker.loss()?));
        let lost: Vec<_> = self.workers.values().filter_map(lost).collect();
        for (key, why) in lost {
            match why {
                Loss::Stream => self
                    .machine
                    .handle_lost(now, key, "the stream broke".to_owned()),
                Loss::Behind => self.machine.handle_behind(now, key),
            }
        }
        let awaited: Vec<_> = self.machine.awaited().collect();
        for key in awaited {
            if self.is_vacant(key) {
                self.machine.handle_taken(key);
            }
        }
    }

    /// Whether the session's slot on the stream to a worker is vacant.
    fn is_vacant(&self, key: WorkerKey) -> bool {
        let worker = self.workers.get(&key);
        worker.is_some_and(|worker| worker.stream.outbox.is_vacant(self.id))
    }

    /// Carries out what the machine decides, until it has nothing to do or the session has ended.
    fn carry_out(&mut self, cluster: &Cluster, metrics: &mut RequestMetrics) -> Option<Ended> {
        loop {
            let now = self.now();
            match self.machine.poll(now)? {
                Action::Open(key, spec) => self.open(key, *spec),
                Action::Tell(key, term, update) => {
                    if let Some(worker) = self.workers.get(&key) {
                        let message = ToWorker::Update(term, update);
                        worker.stream.outbox.put(self.id, message);
                    }
                }
                Action::AwaitTaken(key) => self.await_taken(key),
                Action::Leave(key, term) => {
                    let left = self.workers.remove(&key);
                    if let Some(worker) = &left {
                        worker.mailbox.set_term(term);
                    }
                    self.left = left.map(|worker| (key, Arc::clone(&worker.stream.address)));
                }
                Action::Served(_, Role::Target) => {
                    self.begin();
                    self.flush();
                }
                Action::Served(_, Role::Draft | Role::Qualifier) => {}
                Action::SetMode(key, mode) => {
                    if let Some(worker) = self.workers.get(&key) {
                        cluster.registry.set_mode(worker, mode);
                    }
                }
                Action::Deliver(fresh) => {
                    self.deliver(*fresh);
                    self.grow(cluster);
                }
                Action::FindTarget(lost) => self.find_target(cluster, lost),
                Action::FindContributors(wanted) => self.find_contributors(cluster, wanted),
                Action::Bypassed(key, role, why) => {
                    self.note_bypass(&self.name(cluster, key), role, why, metrics);
                }
                Action::Park => self.park(cluster),
                Action::TargetLost(loss) => self.note_loss(&self.name(cluster, loss.worker), &loss),
                Action::End(ended) => return Some(ended),
            }
        }
    }

    fn handle_reserved(&mut self, reserved: ReservedWorker) {
        if reserved.stream.role == Role::Target {
            self.target = reserved.stream.address.to_string();
        }
        let reservation = *reserved.reserved.reservation();
        self.workers.insert(reservation.worker, reserved);
        self.machine.handle_reserved(&reservation);
    }

    fn open(&mut self, key: WorkerKey, spec: SessionSpec) {
        let Some(worker) = self.workers.get(&key) else {
            return;
        };
        worker.mailbox.set_term(spec.term);
        let (sampling, trace) = (self.sampling.clone(), self.trace.clone());
        let opening = open::open(Arc::clone(&worker.stream), spec, sampling, trace);
        self.opens.push(opening);
    }

    fn await_taken(&mut self, key: WorkerKey) {
        if let Some(worker) = self.workers.get(&key) {
            worker.mailbox.await_taken();
        }
        // The writer may have been there just before.
        if self.is_vacant(key) {
            self.machine.handle_taken(key);
        }
    }

    fn handle_opened(&mut self, cluster: &Cluster, opened: Opened) {
        let Opened {
            stream,
            term,
            answer,
        } = opened;
        let key = stream.key;
        match answer {
            Ok(()) => {
                if self.machine.handle_opened(key, term) == session::Opened::CloseAgain {
                    let term = self.machine.closing_term();
                    stream.outbox.put(self.id, ToWorker::Close(term));
                }
            }
            Err(status) => {
                let is_broken = runtime::client::broken(&status).is_some();
                if status.code() == Code::FailedPrecondition && !is_broken {
                    // The worker knows of no such stream: whatever this side still holds is lost.
                    cluster.registry.lose(&stream, status.message());
                }
                let now = self.now();
                // Not an answer of the worker's: the call broke with the connection.
                let is_lost = is_broken || stream.lost.is_cancelled();
                // Its stream may be up although it takes no new connection, as of a server that has said goodbye.
                let worker = self.workers.get(&key);
                if (status.code() == Code::Unavailable || is_broken)
                    && let Some(worker) = worker.filter(|worker| worker.mailbox.term() == term)
                {
                    cluster.registry.set_draining(worker);
                }
                let why = if is_lost {
                    Parting::Lost(status.message().to_owned())
                } else {
                    Parting::Refused(refused(&status))
                };
                self.machine.handle_refused(now, key, term, why);
            }
        }
    }

    /// The client learns that the session has begun.
    fn begin(&mut self) {
        if let Some(started) = self.started.take() {
            self.delivery.start(started);
        }
    }

    fn deliver(&mut self, fresh: Fresh) {
        // The first picks may be here before the answer to the open call is.
        self.begin();
        let Fresh {
            tokens,
            scores,
            prompt,
        } = fresh;
        if let Some(prompt) = prompt {
            self.delivery.push_prompt(prompt);
        }
        if !tokens.is_empty() {
            self.delivery.push(&tokens, scores);
        }
        self.flush();
        if self.delivery.is_stopped() {
            self.satisfy();
        }
    }

    /// A stop text has come: the client has all it wants.
    fn satisfy(&mut self) {
        self.begin();
        self.machine.handle_satisfied();
    }

    /// Hands the client what there is room for.
    fn flush(&mut self) {
        let taken = self.delivery.flush();
        self.machine.handle_consumed(taken);
    }

    /// Reserves more positions when the text is longer than was expected.
    fn grow(&mut self, cluster: &Cluster) {
        let len = self.relay().text().len() as u32;
        if len > self.positions {
            self.positions = len.saturating_add(GROWTH).min(self.max_len);
            (cluster.registry).grow(self.workers.values(), self.positions);
        }
    }

    fn find_target(&mut self, cluster: &Cluster, lost: LostTarget) {
        let requester = Requester {
            session: self.id,
            mailboxes: &self.mailboxes,
        };
        let found = cluster.registry.replace_target(
            requester,
            lost,
            TargetNeed {
                numerics: Some(self.numerics_id.clone()),
                not: None,
                context: self.max_len,
                positions: self.positions,
            },
            (self.entry.turn(), &mut self.waiting),
        );
        let found = match found {
            Ok(found) => found,
            Err(why) => {
                let now = self.now();
                return self.machine.handle_none(now, why);
            }
        };
        self.waiting = None;
        let (session, target) = (self.id.0, &found.stream.address);
        match lost.expectation {
            Expectation::Parked => {
                self.entry.placed();
                tracing::debug!(session, %target, "the client reads again; the session goes on");
            }
            // Asked again and again: that is no news.
            Expectation::Full | Expectation::WasFull => {
                tracing::debug!(session, %target, "the session asks a target again that may have room");
            }
            Expectation::Returns
            | Expectation::Gone
            | Expectation::Stops
            | Expectation::Lives
            | Expectation::Preempted
            | Expectation::Refuses => {
                cluster.metrics.migrations.inc();
                tracing::info!(session, %target, "the session goes to another target");
            }
        }
        self.handle_reserved(found);
    }

    /// The client takes nothing: nobody else has to wait for it.
    fn park(&mut self, cluster: &Cluster) {
        self.waiting = None;
        self.entry.park();
        cluster.metrics.parked.inc();
        tracing::debug!(
            session = self.id.0,
            tokens = self.machine.generated(),
            "the client takes nothing; the session gives its workers up until it does"
        );
    }

    fn find_contributors(&mut self, cluster: &Cluster, wanted: Wanted) {
        let requester = Requester {
            session: self.id,
            mailboxes: &self.mailboxes,
        };
        let present: Vec<WorkerKey> = self.machine.workers().collect();
        let text = Text {
            tokens: self.relay().text().len() as u32,
            positions: self.positions,
        };
        let found = (cluster.registry).place_contributors(requester, wanted, text, &present);
        for reserved in found {
            self.handle_reserved(reserved);
        }
    }

    /// What people call a worker, also one that the registry has forgotten since the session left it.
    fn name(&self, cluster: &Cluster, key: WorkerKey) -> String {
        match &self.left {
            Some((left, address)) if *left == key => address.to_string(),
            Some(_) | None => cluster.registry.address(key),
        }
    }

    fn note_bypass(&self, worker: &str, role: Role, why: Parting, metrics: &mut RequestMetrics) {
        let reason = match why {
            Parting::Lost(reason) | Parting::Broken(reason) => reason,
            Parting::Refused(refused) => refused.message,
            Parting::Preempted => "its cache is full".to_owned(),
            Parting::Behind => "the session fell behind its reports".to_owned(),
            Parting::Outgrown => {
                let session = self.id.0;
                tracing::debug!(
                    session,
                    worker,
                    "the text is longer than the worker's context"
                );
                return;
            }
        };
        metrics.bypassed(role, worker);
        tracing::warn!(
            session = self.id.0,
            worker,
            role = role.name(),
            reason,
            "the session continues without a worker"
        );
    }

    fn note_loss(&self, target: &str, loss: &TargetLoss) {
        let (session, tokens, reason) = (self.id.0, loss.tokens, &loss.reason);
        if loss.expectation == Expectation::Full {
            tracing::debug!(
                session,
                target,
                reason,
                "the target has no room; waiting for some"
            );
            return;
        }
        tracing::warn!(
            session,
            target,
            tokens,
            reason,
            "the session has lost its target; looking for another"
        );
    }

    /// What the machine's end means for the client.
    fn ended(&mut self, ended: Ended) -> Result<End, Failure> {
        let target = std::mem::take(&mut self.target);
        if matches!(ended, Ended::Finished(_)) {
            self.begin();
        }
        match ended {
            Ended::Finished(Finish::NotFinite) => Err(Failure::NotFinite {
                target,
                tokens: self.machine.generated(),
            }),
            Ended::Finished(finish) => Ok(End::Finished(finish)),
            Ended::Fruitless(lost, loss) => Err(Failure::Fruitless {
                lost,
                target,
                tokens: loss.tokens,
                reason: loss.reason,
            }),
            Ended::Abandoned(loss) => Err(Failure::TargetLost {
                target,
                tokens: loss.tokens,
                reason: loss.reason,
            }),
            Ended::Invalid(_, message) => Err(Failure::TargetRefused {
                target,
                code: Code::InvalidArgument,
                message,
            }),
        }
    }

    /// The client's last message.
    pub(crate) fn finished(&self, finish: Finish) -> v1::Finished {
        v1::Finished {
            reason: outward::finish(Some(finish)).into(),
            text: String::new(),
            completion_tokens: self.delivery.tokens() as u32,
            statistics: Some(outward::statistics(self.relay().stats())),
            stop_text: None,
        }
    }
}

/// What a worker's answer to an open call means.
fn refused(status: &Status) -> Refused {
    let (code, message) = (status.code(), status.message());
    let kind = match code {
        // The words go to the client as they are.
        Code::InvalidArgument => {
            return Refused {
                kind: RefusedKind::Invalid,
                message: message.to_owned(),
            };
        }
        Code::ResourceExhausted => RefusedKind::Full,
        Code::Unavailable | Code::FailedPrecondition => RefusedKind::Stopping,
        _ => RefusedKind::Other,
    };
    Refused {
        kind,
        message: format!("{code}: {message}"),
    }
}

/// Resolves then, or never.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

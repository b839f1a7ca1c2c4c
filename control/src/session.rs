//! The session machine: what a coordinator decides for one request. Which workers serve it, what each of them is sent
//! and when, and what happens when one is lost.
//!
//! Its owner has the streams, the open calls, the fleet, the client and the clock. It feeds the machine with `handle_*`
//! and carries out what [`SessionMachine::poll`] gives, until that is nothing; [`SessionMachine::wake`] says when to poll
//! although nothing has happened.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use speculation::Time;
use speculation::bypass::Mode;
use speculation::duty::Role;
use speculation::limits::{MAX_COMMIT, MAX_NODES_PER_UPDATE};
use speculation::message::{
    Addressed, Finish, FromWorker, PromptScores, ReplicaUpdate, Scores, SessionSpec, Term,
};
use speculation::recording::Recording;
use speculation::relay::{Candidate, Relay, WorkerKey};

use crate::failover::{Expectation, Failover, LostTarget, NoTarget};
use crate::fleet::{Reservation, Wanted};
use crate::parking::{Parking, Verdict};

/// What is new for the client.
#[derive(Clone, Debug, PartialEq)]
pub struct Fresh {
    /// Committed tokens.
    pub tokens: Vec<u32>,
    /// Their scores, if they were asked for.
    pub scores: Option<Scores>,
    /// Scores of the prompt.
    pub prompt: Option<PromptScores>,
}

/// Why a session leaves a worker before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parting {
    /// It, or the connection to it, is lost.
    Lost(String),
    /// The session fell so far behind its reports that one was dropped.
    Behind,
    /// Its cache is full, and others that were opened earlier go on there.
    Preempted,
    /// It sent what no correct worker sends.
    Broken(String),
    /// It does not take the session.
    Refused(Refused),
    /// The text is longer than its context.
    Outgrown,
}

/// A worker does not take a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What that means.
    pub kind: RefusedKind,
    /// The worker's message.
    pub message: String,
}

/// What a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedKind {
    /// The request itself is invalid; no target would take it.
    Invalid,
    /// It has no room.
    Full,
    /// It is shutting down, or does not know the stream.
    Stopping,
    /// It will not take it.
    Other,
}

/// How a session lost its last target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetLoss {
    /// The target.
    pub worker: WorkerKey,
    /// Generated tokens then.
    pub tokens: usize,
    /// What was to be expected of it.
    pub expectation: Expectation,
    /// Why it was lost, for logs and errors.
    pub reason: String,
}

/// How a session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The text is complete.
    Finished(Finish),
    /// This many targets were lost one after the other without a new token.
    Fruitless(u32, TargetLoss),
    /// No target took over in time.
    Abandoned(TargetLoss),
    /// The target says that the request itself is invalid.
    Invalid(WorkerKey, String),
}

/// What the owner is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make the open call; its answer goes to [`SessionMachine::handle_opened`] or
    /// [`SessionMachine::handle_refused`].
    Open(WorkerKey, Box<SessionSpec>),
    /// Fill the session's slot on the stream to a worker.
    Tell(WorkerKey, Term, Box<ReplicaUpdate>),
    /// Call [`SessionMachine::handle_taken`] as soon as the slot is vacant, at once if it is.
    AwaitTaken(WorkerKey),
    /// Leave the worker: close the session there under this term, and give the reservation back.
    Leave(WorkerKey, Term),
    /// A worker serves the session.
    Served(WorkerKey, Role),
    /// The target has said what it has drafts and qualifiers do: [`Fleet::handle_mode`](crate::fleet::Fleet::handle_mode)
    /// is to be told.
    SetMode(WorkerKey, Mode),
    /// Hand this to the client; what it has taken goes to [`SessionMachine::handle_consumed`].
    Deliver(Box<Fresh>),
    /// Look for a reservation on another target; the answer goes to [`SessionMachine::handle_reserved`], or to
    /// [`SessionMachine::handle_none`].
    FindTarget(LostTarget),
    /// All workers were left, because the client takes nothing, and no target is looked for any more: the session does
    /// not run, until it is given a target that [`Expectation::Parked`] asked for.
    Park,
    /// Look for reservations on other drafts and qualifiers.
    FindContributors(Wanted),
    /// For the log: the session goes on without a draft or qualifier.
    Bypassed(WorkerKey, Role, Parting),
    /// For the log: the target is lost, and another is looked for.
    TargetLost(TargetLoss),
    /// Nothing more is to be done. All workers were left.
    End(Ended),
}

/// A worker that has the session, or is asked to take it.
#[derive(Debug)]
struct Member {
    key: WorkerKey,
    role: Role,
    term: Term,
    slot: Slot,
    /// It is not asked to take the session yet.
    deferred: Option<Candidate>,
}

/// The session's slot on the stream to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    Vacant,
    Filled,
    /// It is filled, and the owner reports when it no longer is.
    Awaited,
}

/// See the module documentation.
#[derive(Debug)]
pub struct SessionMachine {
    relay: Relay,
    /// The target comes first, so that it is served first.
    members: Vec<Member>,
    failover: Failover<TargetLoss>,
    parking: Parking,
    wanted: Wanted,
    prompt_len: usize,
    /// How long a target is waited for while there is none.
    patience: Time,
    actions: VecDeque<Action>,
    /// Something has happened since the machine last looked around.
    is_stirred: bool,
    /// There may be workers that it still wants.
    has_arrivals: bool,
    /// The client needs no more although the text could go on.
    is_satisfied: bool,
    has_ended: bool,
    /// When a target is looked for again, if one is.
    search_at: Time,
    /// The length of the text that the target computes before it picks its first token.
    target_from: usize,
    /// What the target has drafts and qualifiers do, as far as the owner knows.
    mode: Mode,
}

/// How long a session waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For another target, when its own is lost and none that would do is there.
    pub failover: Time,
    /// For a client that takes nothing, until it gives its workers up.
    pub client: Time,
}

impl SessionMachine {
    /// A session without any worker; `prompt_len` tokens of its text are not generated.
    pub fn new(relay: Relay, wanted: Wanted, prompt_len: usize, patience: Patience) -> Self {
        SessionMachine {
            relay,
            members: Vec::new(),
            failover: Failover::default(),
            parking: Parking::new(patience.client),
            wanted,
            prompt_len,
            patience: patience.failover,
            actions: VecDeque::new(),
            is_stirred: true,
            has_arrivals: false,
            is_satisfied: false,
            has_ended: false,
            search_at: Time::ZERO,
            target_from: 0,
            mode: Mode::default(),
        }
    }

    /// The merged state.
    pub fn relay(&self) -> &Relay {
        &self.relay
    }

    /// Ends the recording of how the models agree, if there is one.
    pub fn take_recording(&mut self) -> Option<Recording> {
        self.relay.take_recording()
    }

    /// The term under which the session is closed on a worker that carried out an open call behind the session's close:
    /// the last one that was given out. The term of the call itself may be older than that of a close which is still to
    /// be sent, whose slot it would take.
    pub fn closing_term(&self) -> Term {
        self.relay.last_term()
    }

    /// Tokens behind the prompt, a stop token included.
    pub fn generated(&self) -> usize {
        self.relay.text().len() - self.prompt_len
    }

    /// The workers that have the session or are asked to take it; the target first.
    pub fn workers(&self) -> impl Iterator<Item = WorkerKey> + '_ {
        self.members.iter().map(|member| member.key)
    }

    /// The target, if there is one.
    pub fn target(&self) -> Option<WorkerKey> {
        let mut targets = (self.members.iter()).filter(|member| member.role == Role::Target);
        targets.next().map(|member| member.key)
    }

    /// The workers whose slots are filled, as far as the machine knows.
    pub fn awaited(&self) -> impl Iterator<Item = WorkerKey> + '_ {
        (self.members.iter())
            .filter(|member| member.slot == Slot::Awaited)
            .map(|member| member.key)
    }

    /// Whether a target is looked for, so that every vacancy in the fleet is a reason to call
    /// [`SessionMachine::handle_vacancy`].
    pub fn is_seeking(&self) -> bool {
        self.failover.is_seeking()
    }

    /// Whether it has given its workers up because its client takes nothing.
    pub fn is_parked(&self) -> bool {
        self.parking.is_parked()
    }

    /// When to poll although nothing has happened.
    pub fn wake(&self, now: Time) -> Option<Time> {
        let search = self.failover.wake(now, self.patience);
        search.into_iter().chain(self.parking.wake(now)).min()
    }

    /// What to do next; nothing until something happens.
    pub fn poll(&mut self, now: Time) -> Option<Action> {
        if self.actions.is_empty() && !self.has_ended {
            self.look_at_client(now);
            if let Some(lost) = self.poll_search(now) {
                return Some(Action::FindTarget(lost));
            }
            if let Some(loss) = self.failover.poll_failure(now, self.patience) {
                self.end(Ended::Abandoned(loss));
            } else if core::mem::take(&mut self.is_stirred) {
                self.look_around();
            }
        }
        self.actions.pop_front()
    }

    /// What to look for, if a target is to be looked for now: at once, when a place may have become free, and when more
    /// is known of the lost one.
    fn poll_search(&mut self, now: Time) -> Option<LostTarget> {
        let is_due = self.failover.is_seeking() && now >= self.search_at;
        if !is_due {
            return None;
        }
        self.search_at = (self.failover.wake(now, self.patience)).unwrap_or(Time::MAX);
        self.failover.poll_wanted(now)
    }

    /// Gives the workers up when the client has taken nothing for too long, and looks for others when it has.
    fn look_at_client(&mut self, now: Time) {
        let is_standing = self.relay.is_left_standing() && self.relay.finish().is_none();
        match self.parking.look(now, is_standing && !self.is_satisfied) {
            Verdict::Stay => {}
            Verdict::Park => self.park(),
            Verdict::Resume(target) => {
                let loss = TargetLoss {
                    worker: target,
                    tokens: self.generated(),
                    expectation: Expectation::Parked,
                    reason: "its client took nothing for a while".to_string(),
                };
                self.failover.seek(now, target, Expectation::Parked, loss);
                self.search_at = Time::ZERO;
                // It has left its drafts and qualifiers, too.
                self.has_arrivals = true;
            }
        }
    }

    fn park(&mut self) {
        let sought = self.failover.give_up();
        let Some(target) = self.target().or(sought) else {
            return;
        };
        for member in core::mem::take(&mut self.members) {
            self.relay.handle_lost(member.key);
            self.leave(&member);
        }
        self.parking.handle_parked(target);
        self.actions.push_back(Action::Park);
    }

    /// Decides everything there is to decide but for the search.
    fn look_around(&mut self) {
        if self.hand_out() {
            // What the client makes of it comes first: it may be satisfied, and its credit goes out with the commit.
            self.is_stirred = true;
            return;
        }
        if self.is_satisfied && self.relay.is_prompt_done() {
            return self.end(Ended::Finished(Finish::Stop));
        }
        if let Some(finish) = self.relay.finish() {
            return self.end(Ended::Finished(finish));
        }
        self.leave_outgrown();
        self.open_deferred();
        self.tell_mode();
        if self.target().is_some() && core::mem::take(&mut self.has_arrivals) {
            let wanted = (self.wanted).besides(self.members.iter().map(|member| member.role));
            if !wanted.is_nothing() {
                self.actions.push_back(Action::FindContributors(wanted));
            }
        }
        self.tell();
    }

    /// A reservation in the fleet has become free, or a worker has come or gone.
    pub fn handle_vacancy(&mut self) {
        self.search_at = Time::ZERO;
    }

    /// Leaves a worker. One that was never asked to take the session may still have to close it from before: under a term
    /// that takes no other close's slot.
    fn leave(&mut self, member: &Member) {
        let term = match member.deferred {
            Some(_) => self.closing_term(),
            None => member.term,
        };
        self.actions.push_back(Action::Leave(member.key, term));
    }

    /// Leaves all workers.
    pub fn leave_all(&mut self) {
        for member in core::mem::take(&mut self.members) {
            self.leave(&member);
        }
        self.has_ended = true;
    }

    fn end(&mut self, ended: Ended) {
        // What was committed reaches the client whatever happens.
        self.hand_out();
        self.leave_all();
        self.actions.push_back(Action::End(ended));
    }

    /// Leaves the drafts and qualifiers whose context is full; others may reach further.
    fn leave_outgrown(&mut self) {
        let relay = &self.relay;
        let outgrown: Vec<Member> = (self.members)
            .extract_if(.., |member| relay.is_outgrown(member.key))
            .collect();
        for member in outgrown {
            self.relay.handle_lost(member.key);
            self.has_arrivals = true;
            self.actions.extend([
                Action::Leave(member.key, member.term),
                Action::Bypassed(member.key, member.role, Parting::Outgrown),
            ]);
        }
    }

    /// There is no target for the session now.
    pub fn handle_none(&mut self, now: Time, why: NoTarget) {
        self.failover.handle_none(now, why);
        self.search_at = (self.failover.wake(now, self.patience)).unwrap_or(Time::MAX);
    }

    /// The session has a reservation on a worker: opens it there, if the strategy has a use for that. A draft or qualifier
    /// is asked when the target makes use of it, and if it would slow the target down, when that has computed the text.
    pub fn handle_reserved(&mut self, reservation: &Reservation) {
        let Reservation {
            worker: key,
            role,
            context,
            is_shared,
            mode,
            ..
        } = *reservation;
        if role == Role::Target {
            self.failover.handle_reserved();
            self.is_stirred = true;
            self.target_from = self.relay.text().len();
            self.relay.set_mode(mode);
            self.mode = mode;
        }
        let candidate = Candidate {
            role,
            context,
            is_shared,
        };
        let waits = role != Role::Target && !self.is_time_for(candidate);
        let member = Member {
            key,
            role,
            term: Term::default(),
            slot: Slot::Vacant,
            deferred: waits.then_some(candidate),
        };
        match role {
            Role::Target => self.members.insert(0, member),
            Role::Draft | Role::Qualifier => self.members.push(member),
        }
        if !waits {
            self.open(key, candidate);
        }
    }

    /// Whether a draft or qualifier is to be asked to take the session: at once where the text would be another one without it.
    fn is_time_for(&self, candidate: Candidate) -> bool {
        if self.relay.awaits_everybody() {
            return true;
        }
        let is_text_computed =
            self.target().is_some() && self.relay.text().len() > self.target_from;
        let is_wanted = match self.relay.mode() {
            Mode::Speculate => true,
            Mode::Turns => candidate.role == Role::Draft,
            Mode::Rest => false,
        };
        is_wanted && (is_text_computed || !candidate.is_shared)
    }

    /// Asks a member to take the session, or leaves it if that is of no use.
    fn open(&mut self, key: WorkerKey, candidate: Candidate) {
        match self.relay.add_worker(key, candidate) {
            None => {
                self.members.retain(|member| member.key != key);
                self.actions
                    .push_back(Action::Leave(key, self.closing_term()));
            }
            Some(spec) => {
                for member in self.members.iter_mut().filter(|member| member.key == key) {
                    member.term = spec.term;
                }
                self.actions.push_back(Action::Open(key, Box::new(spec)));
            }
        }
    }

    fn open_deferred(&mut self) {
        let deferred: Vec<_> = (self.members.iter())
            .filter_map(|member| Some((member.key, member.deferred?)))
            .filter(|(_, candidate)| self.is_time_for(*candidate))
            .collect();
        for (key, candidate) in deferred {
            for member in self.members.iter_mut().filter(|member| member.key == key) {
                member.deferred = None;
            }
            self.open(key, candidate);
        }
    }

    fn tell_mode(&mut self) {
        let mode = self.relay.mode();
        if let Some(target) = self.target().filter(|_| mode != self.mode) {
            self.mode = mode;
            self.actions.push_back(Action::SetMode(target, mode));
        }
    }

    /// Workers have become ready.
    pub fn handle_arrivals(&mut self) {
        self.has_arrivals = true;
        self.is_stirred = true;
    }

    /// An open call that was made under this term was carried out. Whether it still counts; if not, and the session has
    /// left that worker since, it is to be closed there again.
    #[must_use]
    pub fn handle_opened(&mut self, key: WorkerKey, term: Term) -> Opened {
        let role = (self.members.iter()).find(|member| member.key == key);
        let role = role.map(|member| member.role);
        if self.relay.term_of(key) != Some(term) {
            // An answer from before the session parted with that worker. It says nothing of a call made since.
            return match role {
                None => Opened::CloseAgain,
                Some(_) => Opened::Noted,
            };
        }
        if let Some(role) = role {
            if role == Role::Target {
                self.failover.handle_served();
            }
            self.relay.handle_opened(key);
            self.actions.push_back(Action::Served(key, role));
            self.is_stirred = true;
        }
        Opened::Noted
    }

    /// An open call that was made under this term was not carried out.
    pub fn handle_refused(&mut self, now: Time, key: WorkerKey, term: Term, why: Parting) {
        if self.relay.term_of(key) == Some(term) {
            self.part(now, key, why);
        }
    }

    /// A message from a worker. Under another term than the worker's own it changes nothing.
    pub fn handle_message(&mut self, now: Time, key: WorkerKey, term: Term, message: FromWorker) {
        if self.has_ended || self.members.iter().all(|member| member.key != key) {
            return;
        }
        self.is_stirred = true;
        match message {
            FromWorker::Report(report) => {
                if let Err(error) = self.relay.handle_report(key, term, &report) {
                    self.part(now, key, Parting::Broken(error.to_string()));
                }
            }
            FromWorker::Preempted => {
                if self.relay.term_of(key) == Some(term) {
                    self.part(now, key, Parting::Preempted);
                }
            }
            FromWorker::Fault(why) => {
                if self.relay.term_of(key) == Some(term) {
                    self.part(now, key, Parting::Lost(why));
                }
            }
        }
    }

    /// A report of a worker was dropped because the session had not taken those before it. Reports are differences, so
    /// it has to start over there.
    pub fn handle_behind(&mut self, now: Time, key: WorkerKey) {
        self.part(now, key, Parting::Behind);
    }

    /// The stream to a worker is lost.
    pub fn handle_lost(&mut self, now: Time, key: WorkerKey, why: String) {
        self.part(now, key, Parting::Lost(why));
    }

    /// The slot of a worker is vacant again.
    pub fn handle_taken(&mut self, key: WorkerKey) {
        if let Some(member) = self.members.iter_mut().find(|member| member.key == key) {
            member.slot = Slot::Vacant;
            self.is_stirred = true;
        }
    }

    /// The client has taken this many more tokens.
    pub fn handle_consumed(&mut self, tokens: u32) {
        if tokens > 0 {
            self.relay.handle_consumed(tokens);
            self.parking.handle_taken();
            self.is_stirred = true;
        }
    }

    /// The client needs no more although the text could go on.
    pub fn handle_satisfied(&mut self) {
        self.is_satisfied = true;
        self.is_stirred = true;
    }

    /// Continues without this worker; if it is the target, with another one.
    fn part(&mut self, now: Time, key: WorkerKey, why: Parting) {
        self.relay.handle_lost(key);
        let Some(at) = self.members.iter().position(|member| member.key == key) else {
            return;
        };
        let member = self.members.remove(at);
        self.is_stirred = true;
        self.leave(&member);
        match member.role {
            Role::Target => self.lose_target(now, key, why),
            role @ (Role::Draft | Role::Qualifier) => {
                self.actions.push_back(Action::Bypassed(key, role, why));
            }
        }
    }

    fn lose_target(&mut self, now: Time, worker: WorkerKey, why: Parting) {
        let (expectation, reason) = match why {
            Parting::Lost(reason) => (Expectation::Returns, reason),
            Parting::Behind => (Expectation::Lives, "the session fell behind it".to_string()),
            Parting::Preempted => (Expectation::Preempted, "its cache is full".to_string()),
            Parting::Outgrown => (Expectation::Refuses, "its context is full".to_string()),
            Parting::Broken(reason) => {
                let reason = alloc::format!("it broke the protocol: {reason}");
                (Expectation::Gone, reason)
            }
            Parting::Refused(Refused { kind, message }) => match kind {
                RefusedKind::Invalid => return self.end(Ended::Invalid(worker, message)),
                RefusedKind::Full => (Expectation::Full, message),
                RefusedKind::Stopping => (Expectation::Stops, message),
                RefusedKind::Other => (Expectation::Refuses, message),
            },
        };
        let tokens = self.generated();
        let loss = TargetLoss {
            worker,
            tokens,
            expectation,
            reason,
        };
        if let Err(lost) = self.failover.handle_lost(tokens, expectation) {
            return self.end(Ended::Fruitless(lost, loss));
        }
        self.actions.push_back(Action::TargetLost(loss.clone()));
        self.failover.seek(now, worker, expectation, loss);
        self.search_at = Time::ZERO;
    }

    /// Hands the client what is new; whether anything was.
    fn hand_out(&mut self) -> bool {
        let (tokens, scores) = self.relay.poll_text();
        let prompt = self.relay.poll_prompt_scores();
        let is_new = !tokens.is_empty() || prompt.is_some();
        if is_new {
            let fresh = Fresh {
                tokens,
                scores,
                prompt,
            };
            self.actions.push_back(Action::Deliver(Box::new(fresh)));
        }
        is_new
    }

    /// Sends what is new to every worker whose slot is vacant.
    fn tell(&mut self) {
        for member in &mut self.members {
            match member.slot {
                Slot::Awaited => {}
                Slot::Filled => {
                    member.slot = Slot::Awaited;
                    self.actions.push_back(Action::AwaitTaken(member.key));
                }
                Slot::Vacant => {
                    let Some(update) = self.relay.poll_update(member.key) else {
                        continue;
                    };
                    let Addressed { term, message, .. } = update;
                    // The rest of an update that was full is sent when it was taken.
                    let goes_on = may_go_on(&message);
                    let update = Action::Tell(member.key, term, Box::new(message));
                    self.actions.push_back(update);
                    member.slot = Slot::Filled;
                    if goes_on {
                        member.slot = Slot::Awaited;
                        self.actions.push_back(Action::AwaitTaken(member.key));
                    }
                }
            }
        }
    }
}

/// What the answer to an open call asks of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing.
    Noted,
    /// It was carried out although the session has left that worker since: it is to be closed again, under
    /// [`SessionMachine::closing_term`].
    CloseAgain,
}

/// Whether an update may have left something out because it was full.
fn may_go_on(update: &ReplicaUpdate) -> bool {
    update.commit.len() >= MAX_COMMIT || update.nodes.len() >= MAX_NODES_PER_UPDATE / 2
}

#[cfg(test)]
mod tests;

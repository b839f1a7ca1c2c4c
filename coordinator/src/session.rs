//! The task of one request: it owns the pure [`Relay`] and only ferries. Nothing it does waits for one worker, or for
//! the client, on behalf of another.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use proto::{Sampling, outward, v1};
use runtime::TraceContext;
use speculation::limits::{MAX_COMMIT, MAX_NODES_PER_UPDATE};
use speculation::message::{Addressed, Finish, ReplicaUpdate, SessionId, Stopping};
use speculation::relay::{LinkKey, Relay, Role};
use speculation::replay::Replays;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::delivery::Delivery;
use crate::failure::Failure;
use crate::hello::role_name;
use crate::link::Down;
use crate::open::{Opened, Opening};
use crate::registry::{Place, Wanted};
use crate::replay::Loss;
use crate::seat::{Heard, Said, SeatMaker};
use crate::start::Cluster;
use crate::watched::Watched;

/// Messages handled before the workers are told: what has arrived together is answered together.
const BATCH: usize = 64;

/// The seats of a session. Dropping them closes the session on every worker, whatever ended it.
#[derive(Debug)]
pub(crate) struct Places {
    session: SessionId,
    /// The target first, so that it is told first.
    places: Vec<Place>,
}

impl Places {
    pub(crate) fn new(session: SessionId) -> Self {
        Places {
            session,
            places: Vec::new(),
        }
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Place> {
        self.places.iter()
    }

    fn get(&self, key: LinkKey) -> Option<&Place> {
        self.places.iter().find(|place| place.link.key == key)
    }

    /// The session has a seat more; a target's goes first.
    pub(crate) fn add(&mut self, place: Place) {
        match place.link.role {
            Role::Target => self.places.insert(0, place),
            Role::Draft | Role::Qualifier => self.places.push(place),
        }
    }

    /// The session is no longer on this worker.
    pub(crate) fn leave(&mut self, key: LinkKey) -> Option<Place> {
        let at = self.places.iter().position(|place| place.link.key == key)?;
        let place = self.places.remove(at);
        place.link.leave(self.session);
        Some(place)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for place in &self.places {
            place.link.leave(self.session);
        }
    }
}

/// A session that was seated, with its open calls under way.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) relay: Relay,
    pub(crate) places: Places,
    /// Workers it uses besides the target, when there are any.
    pub(crate) wanted: Wanted,
    pub(crate) seats: SeatMaker,
    pub(crate) sampling: Sampling,
    pub(crate) stopping: Stopping,
    /// What workers do for it belongs here.
    pub(crate) trace: TraceContext,
    /// Workers besides the target that it has let go, until that was noted.
    pub(crate) parted: Vec<(Role, Arc<str>)>,
    /// The epoch of its times.
    pub(crate) begun: Instant,
    pub(crate) replays: Replays<Loss>,
    /// When the client stops waiting.
    pub(crate) deadline: Option<Instant>,
    /// What the workers say.
    pub(crate) inbox: mpsc::Receiver<Heard>,
    /// Told when a slot was taken or a link is gone.
    pub(crate) wake: Arc<Notify>,
    pub(crate) opens: FuturesUnordered<Opening>,
    pub(crate) delivery: Delivery,
    /// Sent once the target has accepted.
    pub(crate) started: Option<v1::Started>,
}

/// How a session ends when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The target has ended the text.
    Finished(Finish),
    /// The client has gone.
    Gone,
}

/// Why a worker is let go before the end.
pub(crate) enum Parting {
    /// It, or the way to it, is gone.
    Lost(String),
    /// It said what no correct worker says.
    Broken(String),
    /// It does not take the session.
    Refused(Status),
}

impl Session {
    /// Ferries until the text ends, the client goes or the target is lost for good.
    pub(crate) async fn drive(
        &mut self,
        cluster: &Cluster,
        watched: &mut Watched,
    ) -> Result<End, Failure> {
        let mut heard = Vec::with_capacity(BATCH);
        let mut arrivals = cluster.registry.arrivals();
        let mut vacancies = cluster.registry.vacancies();
        loop {
            self.part_with_lost()?;
            self.seek_target(cluster)?;
            self.hand_out();
            watched.text_has(self.generated());
            for (role, worker) in self.parted.drain(..) {
                watched.bypassed(role, &worker);
            }
            match self.relay.finish() {
                _ if self.delivery.is_stopped() => return Ok(End::Finished(Finish::Stop)),
                Some(Finish::NotFinite) => {
                    return Err(Failure::NotFinite {
                        target: self.target(),
                        tokens: self.generated(),
                    });
                }
                Some(finish) => return Ok(End::Finished(finish)),
                None => {}
            }
            self.tell();
            let again = self.look_again(cluster);
            // The inbox comes last, because it alone can be ready all the time.
            tokio::select! {
                biased;
                () = self.delivery.gone() => return Ok(End::Gone),
                () = cluster.cut.cancelled() => return Err(Failure::Stopping),
                () = until(self.deadline) => {
                    let tokens = self.generated();
                    return Err(Failure::Deadline { tokens });
                }
                Some(opened) = self.opens.next() => self.opened(opened)?,
                () = self.wake.notified() => {}
                () = arrivals.heard() => self.welcome(cluster),
                () = vacancies.heard(), if self.replays.is_seeking() => {}
                () = until(again) => {}
                _ = self.inbox.recv_many(&mut heard, BATCH) => {
                    for heard in heard.drain(..) {
                        self.hear(heard)?;
                    }
                }
                () = self.delivery.room(), if self.delivery.is_pending() => {}
            }
        }
    }

    /// When to look for a target again although nothing has changed.
    fn look_again(&self, cluster: &Cluster) -> Option<Instant> {
        let wake = (self.replays).wake(self.begun.elapsed(), cluster.replay_wait);
        wake.map(|at| self.begun + at)
    }

    /// Hands the client what is new, and the relay what the client has taken.
    fn hand_out(&mut self) {
        let (fresh, scores) = self.relay.poll_text();
        let prompt = self.relay.poll_prompt_scores();
        let ended = self.relay.finish().is_some() || self.delivery.is_stopped();
        if ended || !fresh.is_empty() || prompt.is_some() {
            // The first picks may be here before the answer to the open call is.
            self.begin();
        }
        if let Some(prompt) = prompt {
            self.delivery.push_prompt(prompt);
        }
        if !fresh.is_empty() {
            self.delivery.push(&fresh, scores);
        }
        let taken = self.delivery.flush();
        self.relay.handle_consumed(taken);
    }

    /// The target serves the session, and the client learns it.
    fn begin(&mut self) {
        if let Some(started) = self.started.take() {
            self.delivery.start(started);
        }
    }

    /// Tells every worker whose slot is vacant what is new to it.
    fn tell(&mut self) {
        for Place { link, seat } in self.places.iter() {
            if !link.outbox.is_vacant(self.id) {
                seat.wait();
                if !link.outbox.is_vacant(self.id) {
                    continue;
                }
            }
            if let Some(Addressed { term, message, .. }) = self.relay.poll_update(link.key) {
                if may_go_on(&message) {
                    seat.wait();
                }
                link.outbox.put(self.id, Down::Update(term, message));
            }
        }
    }

    fn hear(&mut self, heard: Heard) -> Result<(), Failure> {
        let Heard { key, term, said } = heard;
        if self.places.get(key).is_none() {
            return Ok(());
        }
        let taken = match said {
            Said::Drafted(report) => self.relay.handle_draft(key, term, &report),
            Said::Verified(report) => self.relay.handle_verify(key, term, &report),
            Said::Fault(_) if self.relay.term_of(key) != Some(term) => Ok(()),
            Said::Fault(message) => return self.part(key, Parting::Lost(message)),
        };
        match taken {
            Ok(()) => Ok(()),
            Err(error) => self.part(key, Parting::Broken(error.to_string())),
        }
    }

    fn opened(&mut self, opened: Opened) -> Result<(), Failure> {
        let Opened { link, term, answer } = opened;
        let key = link.key;
        let place = self.places.get(key);
        if self.relay.term_of(key) != Some(term) {
            // An answer from before the session parted with that worker. It says nothing of a call that was made
            // since, and what was carried out behind the close is closed once more.
            if answer.is_ok() && place.is_none() {
                link.outbox.put(self.id, Down::Close(term));
            }
            return Ok(());
        }
        let Some(place) = place else {
            return Ok(());
        };
        match answer {
            Ok(()) => {
                if place.link.role == Role::Target {
                    self.replays.handle_served();
                    self.begin();
                }
                self.relay.handle_opened(key);
                Ok(())
            }
            // Not an answer of the worker's: the call broke with the stream.
            Err(status) if place.link.lost.is_cancelled() => {
                self.part(key, Parting::Lost(status.message().to_owned()))
            }
            Err(status) => {
                if status.code() == Code::Unavailable {
                    place.link.retire();
                }
                self.part(key, Parting::Refused(status))
            }
        }
    }

    fn part_with_lost(&mut self) -> Result<(), Failure> {
        while let Some(place) = self.places.iter().find(|place| place.seat.is_gone()) {
            let key = place.link.key;
            let reason = if place.link.lost.is_cancelled() {
                "its stream broke"
            } else {
                "the session fell behind its reports"
            };
            self.part(key, Parting::Lost(reason.to_owned()))?;
        }
        Ok(())
    }

    /// Goes on without this worker; if it is the target, with another one.
    fn part(&mut self, key: LinkKey, parting: Parting) -> Result<(), Failure> {
        self.relay.handle_lost(key);
        let Some(Place { link, .. }) = self.places.leave(key) else {
            return Ok(());
        };
        if link.role == Role::Target {
            let numerics_id = link.hello.numerics_id.clone();
            return self.lose_target(key, numerics_id, link.address.to_string(), parting);
        }
        self.parted.push((link.role, Arc::clone(&link.address)));
        let reason = match parting {
            Parting::Lost(reason) | Parting::Broken(reason) => reason,
            Parting::Refused(status) => format!("{}: {}", status.code(), status.message()),
        };
        tracing::warn!(
            session = self.id.0,
            worker = %link.address,
            role = role_name(link.role),
            reason,
            "the session goes on without a worker"
        );
        Ok(())
    }

    fn target(&self) -> String {
        let target = self
            .places
            .iter()
            .find(|place| place.link.role == Role::Target);
        target.map_or(String::new(), |place| place.link.address.to_string())
    }

    /// Tokens of the text behind the prompt, the stop token included.
    pub(crate) fn generated(&self) -> usize {
        self.relay.text().len() - self.stopping.prompt_len as usize
    }

    /// The client's last message.
    pub(crate) fn finished(&self, finish: Finish) -> v1::Finished {
        v1::Finished {
            reason: outward::finish(Some(finish)).into(),
            text: String::new(),
            completion_tokens: self.delivery.tokens() as u32,
            statistics: Some(outward::statistics(self.relay.stats())),
            stop_text: None,
        }
    }
}

/// Resolves then, or never.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether an update may have left something out because it was full. The rest is told when it was taken.
fn may_go_on(update: &ReplicaUpdate) -> bool {
    update.commit.len() >= MAX_COMMIT || update.nodes.len() >= MAX_NODES_PER_UPDATE / 2
}

//! The task of one request: it owns the pure [`Relay`] and only ferries. Nothing it does waits for one worker, or for
//! the client, on behalf of another.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use proto::{outward, v1};
use speculation::limits::{MAX_COMMIT, MAX_NODES_PER_UPDATE};
use speculation::message::{Finish, ReplicaUpdate, SessionId};
use speculation::relay::{LinkKey, Relay, Role};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use crate::delivery::Delivery;
use crate::failure::Failure;
use crate::hello::role_name;
use crate::link::Down;
use crate::open::Opening;
use crate::registry::Place;
use crate::seat::{Heard, Said};
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
    pub(crate) fn new(session: SessionId, places: Vec<Place>) -> Self {
        Places { session, places }
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, Place> {
        self.places.iter()
    }

    fn get(&self, key: LinkKey) -> Option<&Place> {
        self.places.iter().find(|place| place.link.key == key)
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
    /// What the workers say.
    pub(crate) inbox: mpsc::Receiver<Heard>,
    /// Told when a slot was taken or a link is gone.
    pub(crate) wake: Arc<Notify>,
    pub(crate) opens: FuturesUnordered<Opening>,
    pub(crate) delivery: Delivery,
    /// Sent once the target has accepted.
    pub(crate) started: Option<v1::Started>,
    pub(crate) prompt_len: usize,
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
enum Parting {
    /// It, or the way to it, is gone.
    Lost(String),
    /// It said what no correct worker says.
    Broken(String),
    /// It does not take the session.
    Refused(Status),
}

impl Session {
    /// Ferries until the text ends, the client goes or the target is lost. `cut` ends it early.
    pub(crate) async fn drive(
        &mut self,
        cut: &CancellationToken,
        watched: &mut Watched,
    ) -> Result<End, Failure> {
        let mut heard = Vec::with_capacity(BATCH);
        loop {
            self.part_with_lost(watched)?;
            let fresh = self.relay.poll_text();
            watched.committed(fresh.len(), self.relay.term());
            if !fresh.is_empty() {
                // The first picks may be here before the answer to the open call is.
                self.begin();
                self.delivery.push(&fresh);
            }
            let taken = self.delivery.flush();
            self.relay.handle_consumed(taken);
            match self.relay.finish() {
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
            // The inbox comes last, because it alone can be ready all the time.
            tokio::select! {
                biased;
                () = self.delivery.gone() => return Ok(End::Gone),
                () = cut.cancelled() => return Err(Failure::Stopping),
                Some((key, answer)) = self.opens.next() => self.opened(key, answer, watched)?,
                () = self.wake.notified() => {}
                _ = self.inbox.recv_many(&mut heard, BATCH) => {
                    for heard in heard.drain(..) {
                        self.hear(heard, watched)?;
                    }
                }
                () = self.delivery.room(), if self.delivery.is_pending() => {}
            }
        }
    }

    /// The target serves the session, and the client learns it.
    fn begin(&mut self) {
        if let Some(started) = self.started.take() {
            self.delivery.start(started);
        }
    }

    /// Tells every worker whose slot is vacant what is new to it.
    fn tell(&mut self) {
        let term = self.relay.term();
        for Place { link, seat } in self.places.iter() {
            if !link.outbox.is_vacant(self.id) {
                seat.wait();
                if !link.outbox.is_vacant(self.id) {
                    continue;
                }
            }
            if let Some(update) = self.relay.poll_update(link.key) {
                if may_go_on(&update) {
                    seat.wait();
                }
                link.outbox.put(self.id, Down::Update(term, update));
            }
        }
    }

    fn hear(&mut self, heard: Heard, watched: &mut Watched) -> Result<(), Failure> {
        let Heard { key, term, said } = heard;
        if self.places.get(key).is_none() {
            return Ok(());
        }
        let taken = match said {
            Said::Drafted(report) => self.relay.handle_draft(key, term, &report),
            Said::Verified(report) => self.relay.handle_verify(key, term, &report),
            Said::Fault(_) if term != self.relay.term() => Ok(()),
            Said::Fault(message) => return self.part(key, Parting::Lost(message), watched),
        };
        match taken {
            Ok(()) => Ok(()),
            Err(error) => self.part(key, Parting::Broken(error.to_string()), watched),
        }
    }

    fn opened(
        &mut self,
        key: LinkKey,
        answer: Result<(), Status>,
        watched: &mut Watched,
    ) -> Result<(), Failure> {
        let Some(place) = self.places.get(key) else {
            return Ok(());
        };
        match answer {
            Ok(()) => {
                if place.link.role == Role::Target {
                    self.begin();
                }
                self.relay.handle_opened(key);
                Ok(())
            }
            Err(status) => self.part(key, Parting::Refused(status), watched),
        }
    }

    fn part_with_lost(&mut self, watched: &mut Watched) -> Result<(), Failure> {
        while let Some(place) = self.places.iter().find(|place| place.seat.is_gone()) {
            let key = place.link.key;
            let reason = if place.link.lost.is_cancelled() {
                "its stream broke"
            } else {
                "the session fell behind its reports"
            };
            self.part(key, Parting::Lost(reason.to_owned()), watched)?;
        }
        Ok(())
    }

    /// Goes on without this worker, or ends if it is the target.
    fn part(
        &mut self,
        key: LinkKey,
        parting: Parting,
        watched: &mut Watched,
    ) -> Result<(), Failure> {
        self.relay.handle_lost(key);
        let Some(Place { link, .. }) = self.places.leave(key) else {
            return Ok(());
        };
        if link.role != Role::Target {
            watched.bypassed(link.role, &link.address);
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
            return Ok(());
        }
        let target = link.address.to_string();
        let tokens = self.generated();
        Err(match parting {
            Parting::Broken(reason) => Failure::TargetBroken { target, reason },
            Parting::Lost(reason) => Failure::TargetLost {
                target,
                tokens,
                reason,
            },
            Parting::Refused(status) => match status.code() {
                code @ (Code::InvalidArgument | Code::ResourceExhausted) => {
                    Failure::TargetRefused {
                        target,
                        code,
                        message: status.message().to_owned(),
                    }
                }
                code => Failure::TargetLost {
                    target,
                    tokens,
                    reason: format!("{code}: {}", status.message()),
                },
            },
        })
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
        self.relay.text().len() - self.prompt_len
    }

    /// The client's last message.
    pub(crate) fn finished(&self, finish: Finish) -> v1::Finished {
        v1::Finished {
            reason: outward::finish(Some(finish)).into(),
            text: String::new(),
            completion_tokens: self.generated() as u32,
            statistics: Some(outward::statistics(self.relay.stats())),
        }
    }
}

/// Whether an update may have left something out because it was full. The rest is told when it was taken.
fn may_go_on(update: &ReplicaUpdate) -> bool {
    update.commit.len() >= MAX_COMMIT || update.nodes.len() >= MAX_NODES_PER_UPDATE / 2
}

//! The task of one request: it owns the pure [`Ferry`] and is its shore. Nothing it does waits for one worker, or for the
//! client, on behalf of another.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use proto::{Sampling, outward, v1};
use runtime::TraceContext;
use speculation::ferry::{Answered, Ferry};
use speculation::message::{Finish, SessionId};
use speculation::relay::Role;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::delivery::Delivery;
use crate::failure::Failure;
use crate::link::Down;
use crate::open::{Opened, Opening};
use crate::registry::Place;
use crate::seat::{Heard, SeatMaker};
use crate::seekers::Waiting;
use crate::shore::{Aboard, Loss};
use crate::start::Cluster;
use crate::watched::Watched;

/// Messages handled before the workers are told: what has arrived together is answered together.
const BATCH: usize = 64;

/// A session that was seated, with its open calls under way. Dropping it closes it on every worker.
pub(crate) struct Session {
    pub(crate) ferry: Ferry<Place, Loss>,
    pub(crate) own: Own,
    /// When the client stops waiting.
    pub(crate) deadline: Option<Instant>,
    /// What the workers say.
    pub(crate) inbox: mpsc::Receiver<Heard>,
    /// Told when a slot was taken or a link is gone.
    pub(crate) wake: Arc<Notify>,
}

/// What a session needs to act for its ferry.
pub(crate) struct Own {
    pub(crate) id: SessionId,
    pub(crate) seats: SeatMaker,
    pub(crate) sampling: Sampling,
    /// Positions that the text may take.
    pub(crate) positions: u32,
    /// What workers do for it belongs here.
    pub(crate) trace: TraceContext,
    /// The epoch of its times.
    pub(crate) begun: Instant,
    pub(crate) opens: FuturesUnordered<Opening>,
    pub(crate) delivery: Delivery,
    /// Sent once the target has accepted.
    pub(crate) started: Option<v1::Started>,
    /// Its place among those that wait for a target.
    pub(crate) waiting: Option<Waiting>,
    /// Workers besides the target that it has let go, until that was noted.
    pub(crate) parted: Vec<(Role, Arc<str>)>,
}

/// How a session ends when nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The target has ended the text.
    Finished(Finish),
    /// The client has gone.
    Gone,
}

impl Session {
    /// The session has a seat: opens it there, if the strategy has a use for it.
    pub(crate) fn sit(&mut self, cluster: &Cluster, place: Place) {
        (self.ferry).handle_seat(&mut self.own.aboard(cluster), place);
    }

    /// Ferries until the text ends, the client goes or the target is lost for good.
    pub(crate) async fn drive(
        &mut self,
        cluster: &Cluster,
        watched: &mut Watched,
    ) -> Result<End, Failure> {
        let mut heard = Vec::with_capacity(BATCH);
        let mut arrivals = cluster.registry.arrivals();
        let mut vacancies = cluster.registry.vacancies();
        let patience = cluster.replay_wait;
        loop {
            let now = self.own.begun.elapsed();
            let polled = (self.ferry).poll(&mut self.own.aboard(cluster), now, patience);
            watched.text_has(self.ferry.generated());
            for (role, worker) in self.own.parted.drain(..) {
                watched.bypassed(role, &worker);
            }
            match polled? {
                Some(Finish::NotFinite) => {
                    return Err(Failure::NotFinite {
                        target: self.target(),
                        tokens: self.ferry.generated(),
                    });
                }
                Some(finish) => return Ok(End::Finished(finish)),
                None => {}
            }
            let again = self.ferry.wake(self.own.begun.elapsed(), patience);
            let again = again.map(|at| self.own.begun + at);
            // The inbox comes last, because it alone can be ready all the time.
            tokio::select! {
                biased;
                () = self.own.delivery.gone() => return Ok(End::Gone),
                () = cluster.cut.cancelled() => return Err(Failure::Stopping),
                () = until(self.deadline) => {
                    let tokens = self.ferry.generated();
                    return Err(Failure::Deadline { tokens });
                }
                Some(opened) = self.own.opens.next() => self.opened(cluster, opened)?,
                () = self.wake.notified() => {}
                () = arrivals.heard() => {
                    (self.ferry).handle_arrivals(&mut self.own.aboard(cluster));
                }
                () = vacancies.heard(), if self.ferry.is_seeking() => {}
                () = until(again) => {}
                _ = self.inbox.recv_many(&mut heard, BATCH) => {
                    for Heard { key, term, said } in heard.drain(..) {
                        let now = self.own.begun.elapsed();
                        let mut aboard = self.own.aboard(cluster);
                        (self.ferry).handle_said(&mut aboard, now, (key, term), said)?;
                    }
                }
                () = self.own.delivery.room(), if self.own.delivery.is_pending() => {}
            }
        }
    }

    fn opened(&mut self, cluster: &Cluster, opened: Opened) -> Result<(), Failure> {
        let Opened { link, term, answer } = opened;
        let now = self.own.begun.elapsed();
        let mut aboard = self.own.aboard(cluster);
        let answer =
            answer.map_err(|status| move |_: &mut Aboard<'_>, place: &Place| place.refused(status));
        let answered = (self.ferry).handle_answer(&mut aboard, now, (link.key, term), answer)?;
        if answered == Answered::CloseAgain {
            link.outbox.put(self.own.id, Down::Close(term));
        }
        Ok(())
    }

    fn target(&self) -> String {
        let mut seats = self.ferry.seats().iter();
        let target = seats.find(|place| place.link.role == Role::Target);
        target.map_or(String::new(), |place| place.link.address.to_string())
    }

    /// The client's last message.
    pub(crate) fn finished(&self, finish: Finish) -> v1::Finished {
        v1::Finished {
            reason: outward::finish(Some(finish)).into(),
            text: String::new(),
            completion_tokens: self.own.delivery.tokens() as u32,
            statistics: Some(outward::statistics(self.ferry.relay().stats())),
            stop_text: None,
        }
    }
}

impl Own {
    fn aboard<'a>(&'a mut self, cluster: &'a Cluster) -> Aboard<'a> {
        Aboard { own: self, cluster }
    }

    /// The target serves the session, and the client learns it.
    pub(crate) fn begin(&mut self) {
        if let Some(started) = self.started.take() {
            self.delivery.start(started);
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

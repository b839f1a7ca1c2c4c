//! What a session does for its ferry: the links, the registry and the client are reached from here.

use std::sync::Arc;

use speculation::ferry::{self, Fresh, Seat as _, Shore, Wanted};
use speculation::message::{ReplicaUpdate, SessionSpec, Term};
use speculation::relay::{LinkKey, RelayError, Role};
use speculation::replay::{Hope, Wish};
use tonic::{Code, Status};

use crate::failure::Failure;
use crate::hello::role_name;
use crate::link::Down;
use crate::open;
use crate::registry::{LostTarget, Place};
use crate::session::Own;
use crate::start::Cluster;

/// A session and its cluster.
pub(crate) struct Aboard<'a> {
    pub(crate) own: &'a mut Own,
    pub(crate) cluster: &'a Cluster,
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

/// Why a session lost its last target, and what another one has to be.
#[derive(Debug)]
pub(crate) struct Loss {
    /// Only a target of equal numerics goes on with the same text.
    numerics_id: String,
    target: String,
    /// Generated tokens then.
    tokens: usize,
    hope: Hope,
    reason: String,
}

impl Place {
    /// What a worker means that does not take the session.
    pub(crate) fn refused(&self, status: Status) -> Parting {
        // Not an answer of the worker's: the call broke with the connection, of which the link may not know yet.
        if self.link.lost.is_cancelled() || runtime::client::broken(&status).is_some() {
            return Parting::Lost(status.message().to_owned());
        }
        if status.code() == Code::Unavailable {
            self.link.retire();
        }
        Parting::Refused(status)
    }
}

impl ferry::Seat for Place {
    fn key(&self) -> LinkKey {
        self.link.key
    }

    fn role(&self) -> Role {
        self.link.role
    }
}

impl Shore for Aboard<'_> {
    type Seat = Place;
    type Parting = Parting;
    type Loss = Loss;
    type Failure = Failure;

    fn gone(&self, place: &Place) -> Option<Parting> {
        let reason = if place.link.lost.is_cancelled() {
            "its stream broke"
        } else {
            "the session fell behind its reports"
        };
        (place.seat.is_gone()).then(|| Parting::Lost(reason.to_owned()))
    }

    fn broken(&self, error: RelayError) -> Parting {
        Parting::Broken(error.to_string())
    }

    fn fault(&self, message: String) -> Parting {
        Parting::Lost(message)
    }

    fn is_vacant(&mut self, place: &Place) -> bool {
        let outbox = &place.link.outbox;
        if outbox.is_vacant(self.own.id) {
            return true;
        }
        place.seat.wait();
        outbox.is_vacant(self.own.id)
    }

    fn tell(&mut self, place: &Place, term: Term, update: ReplicaUpdate, goes_on: bool) {
        if goes_on {
            place.seat.wait();
        }
        (place.link.outbox).put(self.own.id, Down::Update(term, update));
    }

    fn open(&mut self, place: &mut Place, spec: SessionSpec) {
        place.seat.set_term(spec.term);
        let (sampling, trace) = (self.own.sampling.clone(), self.own.trace.clone());
        let opening = open::open(Arc::clone(&place.link), spec, sampling, trace);
        self.own.opens.push(opening);
    }

    fn leave(&mut self, place: Place) {
        drop(place);
    }

    fn serves(&mut self, role: Role) {
        if role == Role::Target {
            self.own.begin();
        }
    }

    fn deliver(&mut self, fresh: Fresh) -> u32 {
        let ended = fresh.is_last || self.own.delivery.is_stopped();
        if ended || !fresh.tokens.is_empty() || fresh.prompt.is_some() {
            // The first picks may be here before the answer to the open call is.
            self.own.begin();
        }
        let delivery = &mut self.own.delivery;
        if let Some(prompt) = fresh.prompt {
            delivery.push_prompt(prompt);
        }
        if !fresh.tokens.is_empty() {
            delivery.push(&fresh.tokens, fresh.scores);
        }
        delivery.flush()
    }

    fn is_satisfied(&self) -> bool {
        self.own.delivery.is_stopped()
    }

    fn find_target(&mut self, wish: &Wish<'_, Loss>) -> Option<Place> {
        let lost = LostTarget {
            key: wish.key,
            numerics_id: &wish.reason.numerics_id,
            hope: wish.hope,
        };
        let (registry, own) = (&self.cluster.registry, &mut *self.own);
        let (need, seats) = (own.positions, &own.seats);
        let place = registry.replace_target(own.id, &lost, need, seats, &mut own.waiting)?;
        own.waiting = None;
        self.cluster.metrics.migrations.inc();
        tracing::info!(
            session = own.id.0,
            target = %place.link.address,
            "the session is given to a target"
        );
        Some(place)
    }

    fn find_contributors(&mut self, wanted: Wanted, present: &[Place]) -> Vec<Place> {
        let present: Vec<LinkKey> = present.iter().map(|place| place.key()).collect();
        let (registry, own) = (&self.cluster.registry, &*self.own);
        registry.place_contributors(own.id, wanted, own.positions, &present, &own.seats)
    }

    fn bypassed(&mut self, place: &Place, why: Parting) {
        let link = &place.link;
        self.own.parted.push((link.role, Arc::clone(&link.address)));
        let reason = match why {
            Parting::Lost(reason) | Parting::Broken(reason) => reason,
            Parting::Refused(status) => format!("{}: {}", status.code(), status.message()),
        };
        tracing::warn!(
            session = self.own.id.0,
            worker = %link.address,
            role = role_name(link.role),
            reason,
            "the session goes on without a worker"
        );
    }

    fn lost(
        &mut self,
        place: &Place,
        why: Parting,
        tokens: usize,
    ) -> Result<(Hope, Loss), Failure> {
        let target = place.link.address.to_string();
        let (reason, hope) = match why {
            Parting::Lost(reason) => (reason, Hope::Returns),
            Parting::Broken(reason) => (format!("it broke the protocol: {reason}"), Hope::Gone),
            Parting::Refused(status) => {
                let (code, message) = (status.code(), status.message().to_owned());
                let hope = match code {
                    Code::InvalidArgument => {
                        return Err(Failure::TargetRefused {
                            target,
                            code,
                            message,
                        });
                    }
                    Code::ResourceExhausted => Hope::Full,
                    Code::Unavailable | Code::FailedPrecondition => Hope::Stops,
                    _ => Hope::Refuses,
                };
                (format!("{code}: {message}"), hope)
            }
        };
        tracing::warn!(
            session = self.own.id.0,
            target,
            tokens,
            reason,
            "the session looks for another target"
        );
        let loss = Loss {
            numerics_id: place.link.hello.numerics_id.clone(),
            target,
            tokens,
            hope,
            reason,
        };
        Ok((hope, loss))
    }

    fn fruitless(&self, lost: u32, loss: Loss) -> Failure {
        Failure::Fruitless {
            lost,
            target: loss.target,
            tokens: loss.tokens,
            reason: loss.reason,
        }
    }

    fn abandoned(&self, loss: Loss) -> Failure {
        match loss.hope {
            Hope::Full => Failure::TargetRefused {
                target: loss.target,
                code: Code::ResourceExhausted,
                message: loss.reason,
            },
            Hope::Returns | Hope::Gone | Hope::Stops | Hope::Refuses => Failure::TargetLost {
                target: loss.target,
                tokens: loss.tokens,
                reason: loss.reason,
            },
        }
    }
}

//! A session whose target was lost: another one of equal numerics goes on with prompt and committed tokens.

use std::sync::Arc;

use speculation::relay::LinkKey;
use speculation::replay::Hope;
use tonic::Code;

use crate::failure::Failure;
use crate::open;
use crate::registry::{LostTarget, Place};
use crate::session::{Parting, Session};
use crate::start::Cluster;

/// Why a session lost its last target, and what another one has to be.
#[derive(Debug)]
pub(crate) struct Loss {
    /// Only a target of equal numerics goes on with the same text.
    numerics_id: String,
    reason: Failure,
}

impl Session {
    /// The target is gone: notes why and that another is sought.
    pub(crate) fn lose_target(
        &mut self,
        key: LinkKey,
        numerics_id: String,
        target: String,
        parting: Parting,
    ) -> Result<(), Failure> {
        let tokens = self.generated();
        let (reason, hope) = match parting {
            Parting::Lost(reason) => (reason, Hope::Returns),
            Parting::Broken(reason) => (format!("it broke the protocol: {reason}"), Hope::Gone),
            Parting::Refused(status) => {
                let message = status.message().to_owned();
                let code = status.code();
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
        if let Err(lost) = self.replays.handle_lost(tokens, hope) {
            return Err(Failure::Fruitless {
                lost,
                target,
                tokens,
                reason,
            });
        }
        tracing::warn!(
            session = self.id.0,
            target,
            tokens,
            reason,
            "the session looks for another target"
        );
        let reason = if hope == Hope::Full {
            Failure::TargetRefused {
                target,
                code: Code::ResourceExhausted,
                message: reason,
            }
        } else {
            Failure::TargetLost {
                target,
                tokens,
                reason,
            }
        };
        let loss = Loss {
            numerics_id,
            reason,
        };
        self.replays.seek(self.begun.elapsed(), key, hope, loss);
        Ok(())
    }

    /// Gives the session to another target, if one is sought and there is one; fails when it was sought for too long.
    pub(crate) fn seek_target(&mut self, cluster: &Cluster) -> Result<(), Failure> {
        let (now, wait) = (self.begun.elapsed(), cluster.replay_wait);
        let need = self.stopping.max_len;
        let found = self.replays.poll_wish(now, wait).and_then(|wish| {
            let lost = LostTarget {
                key: wish.key,
                numerics_id: &wish.reason.numerics_id,
                hope: wish.hope,
            };
            (cluster.registry).replace_target(self.id, &lost, need, &self.seats)
        });
        if let Some(place) = found {
            self.replays.handle_seated();
            cluster.metrics.migrations.inc();
            tracing::info!(
                session = self.id.0,
                target = %place.link.address,
                tokens = self.generated(),
                "the session is given to a target"
            );
            self.open_on(place);
            return Ok(());
        }
        match self.replays.poll_failure(now, wait) {
            Some(loss) => Err(loss.reason),
            None => Ok(()),
        }
    }

    /// Takes workers that have become ready and that the session still wants.
    pub(crate) fn welcome(&mut self, cluster: &Cluster) {
        let present: Vec<LinkKey> = self.places.iter().map(|place| place.link.key).collect();
        let roles = self.places.iter().map(|place| place.link.role);
        let wanted = self.wanted.besides(roles);
        let need = self.stopping.max_len;
        let places =
            (cluster.registry).place_contributors(self.id, wanted, need, &present, &self.seats);
        for place in places {
            self.open_on(place);
        }
    }

    /// Opens the session on a worker where it has a seat, if the strategy has a use for it.
    pub(crate) fn open_on(&mut self, place: Place) {
        let link = Arc::clone(&place.link);
        match self.relay.add_link(link.key, link.role) {
            None => link.leave(self.id),
            Some(spec) => {
                place.seat.set_term(spec.term);
                self.places.add(place);
                let sampling = self.sampling.clone();
                let trace = self.trace.clone();
                self.opens.push(open::open(link, spec, sampling, trace));
            }
        }
    }
}

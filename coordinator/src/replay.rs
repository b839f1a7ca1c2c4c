//! A session whose target was lost: another one of equal numerics goes on with prompt and committed tokens.

use std::sync::Arc;
use std::time::Duration;

use speculation::relay::LinkKey;
use tokio::time::Instant;
use tonic::Code;

use crate::failure::Failure;
use crate::open;
use crate::registry::{Hope, LostTarget, Place};
use crate::session::{Parting, Session};
use crate::start::Cluster;

/// How long a lost target may take to come back before the session goes to another. A broken stream to a living
/// process is there again much sooner, and then its cache still holds the session.
const RETURN_PATIENCE: Duration = Duration::from_millis(300);

/// Targets that may be lost one after the other without a new token: what ends its worker may be the request itself.
const MAX_FRUITLESS: u32 = 2;

/// What a session remembers of the targets it has lost.
#[derive(Debug, Default)]
pub(crate) struct Replays {
    /// Tokens of the text when the last one was lost.
    tokens: usize,
    /// Targets lost since the text was shorter than that.
    fruitless: u32,
    search: Option<Search>,
}

/// The search for another target, until one has taken the session.
#[derive(Debug)]
struct Search {
    lost: LostTarget,
    since: Instant,
    /// The session has a seat, and its open call is under way.
    seated: bool,
    /// Why the last one is not the target any more.
    reason: Failure,
}

impl Replays {
    /// A target serves the session.
    pub(crate) fn settled(&mut self) {
        self.search = None;
    }

    /// Whether a seat is to be looked for.
    pub(crate) fn is_seeking(&self) -> bool {
        (self.search.as_ref()).is_some_and(|search| !search.seated)
    }

    /// When to look again although nothing has changed; `None` while there is nothing to look for.
    pub(crate) fn wake(&self, patience: Duration) -> Option<Instant> {
        let search = self.search.as_ref().filter(|search| !search.seated)?;
        let now = Instant::now();
        [RETURN_PATIENCE, patience]
            .map(|after| search.since + after)
            .into_iter()
            .find(|&at| at > now)
    }
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
        // Who had no room or is about to stop has not been lost to the request.
        if !matches!(hope, Hope::Full | Hope::Stops) {
            if tokens > self.replays.tokens {
                self.replays.fruitless = 0;
            }
            self.replays.tokens = tokens;
            self.replays.fruitless += 1;
            if self.replays.fruitless > MAX_FRUITLESS {
                return Err(Failure::Fruitless {
                    lost: self.replays.fruitless,
                    target,
                    tokens,
                    reason,
                });
            }
        }
        tracing::warn!(
            session = self.id.0,
            target,
            tokens,
            reason,
            "the session looks for another target"
        );
        let since = (self.replays.search.take()).map_or_else(Instant::now, |search| search.since);
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
        self.replays.search = Some(Search {
            lost: LostTarget {
                key,
                numerics_id,
                hope,
            },
            since,
            seated: false,
            reason,
        });
        Ok(())
    }

    /// Gives the session to another target, if one is sought and there is one; fails when it was sought for too long.
    pub(crate) fn seek_target(&mut self, cluster: &Cluster) -> Result<(), Failure> {
        let Some(search) = self.replays.search.as_mut().filter(|search| !search.seated) else {
            return Ok(());
        };
        let sought = search.since.elapsed();
        if search.lost.hope == Hope::Returns && sought >= RETURN_PATIENCE {
            search.lost.hope = Hope::Gone;
        }
        // Whoever was full is asked again and again, but not for ever.
        let asks = search.lost.hope != Hope::Full || sought < cluster.replay_wait;
        let need = self.stopping.max_len;
        let found = asks
            .then(|| (cluster.registry).replace_target(self.id, &search.lost, need, &self.seats))
            .flatten();
        match found {
            Some(place) => {
                search.seated = true;
                tracing::info!(
                    session = self.id.0,
                    target = %place.link.address,
                    tokens = self.generated(),
                    "the session is given to a target"
                );
                self.open_on(cluster, place);
                Ok(())
            }
            None if sought >= cluster.replay_wait => {
                let search = self.replays.search.take();
                Err(search.expect("it was there above").reason)
            }
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
            self.open_on(cluster, place);
        }
    }

    /// Opens the session on a worker where it has a seat, if the strategy has a use for it.
    pub(crate) fn open_on(&mut self, cluster: &Cluster, place: Place) {
        let link = Arc::clone(&place.link);
        match self.relay.add_link(link.key, link.role) {
            None => link.leave(self.id),
            Some(spec) => {
                place.seat.set_term(spec.term);
                self.places.add(place);
                let coordinator = cluster.registry.coordinator();
                let sampling = self.sampling.clone();
                self.opens
                    .push(open::open(link, coordinator, spec, sampling));
            }
        }
    }
}

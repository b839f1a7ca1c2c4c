//! Who may control a session that a worker holds: the coordinator that opened it, under the term it was opened with,
//! over the stream it was opened on; and for how long a session outlives that stream.

use speculation::Time;
use speculation::message::{SessionSpec, Term};

/// How long a session outlives its stream, so that a stream that breaks and comes back costs no second prefill.
pub const LEASE: Time = Time::from_secs(2);

/// What keeps a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The stream on which it gets updates and reports.
    Stream(u64),
    /// Its stream was lost. Until then it rests here, and its coordinator may open it again.
    Lease(Time),
}

/// A worker's side of the agreement to hold a session. Lives as long as the session is held.
#[derive(Clone, Copy, Debug)]
pub struct Ownership {
    coordinator: u64,
    term: Term,
    hold: Hold,
}

impl Ownership {
    /// A session that was opened by this coordinator under this term, and is kept by this stream.
    pub fn new(coordinator: u64, term: Term, stream: u64) -> Self {
        Ownership {
            coordinator,
            term,
            hold: Hold::Stream(stream),
        }
    }

    /// The term it was opened under.
    pub fn term(&self) -> Term {
        self.term
    }

    /// What keeps it.
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// Whether an open call takes the session's place: only its own coordinator's may, under a later term.
    pub fn yields_to(&self, coordinator: u64, term: Term) -> bool {
        self.coordinator == coordinator && self.term < term
    }

    /// Whether a message on this stream under this term is for it.
    pub fn accepts(&self, stream: u64, term: Term) -> bool {
        self.hold == Hold::Stream(stream) && self.term == term
    }

    /// Whether it ends when this coordinator closes it under this term, even if that arrives on a later stream.
    pub fn ends_by(&self, coordinator: u64, term: Term) -> bool {
        self.coordinator == coordinator && self.term <= term
    }

    /// A stream is lost. Whether it was the one that keeps the session, which now rests for the time of the lease.
    pub fn handle_lost(&mut self, stream: u64, now: Time) -> bool {
        let meant = self.hold == Hold::Stream(stream);
        if meant {
            self.hold = Hold::Lease(now + LEASE);
        }
        meant
    }
}

/// How many tokens of a session's cache, which holds `cached`, can be reused when it is opened again as in `spec`.
pub fn reusable(cached: &[u32], spec: &SessionSpec) -> usize {
    (cached.iter())
        .zip(&spec.text)
        .take_while(|(held, known)| held == known)
        .count()
        // The last token is computed again, because a step has to give its logits.
        .min(spec.text.len().saturating_sub(1))
        // Scores of the prompt that are still missing need the rows before them computed again.
        .min(
            (spec.scoring.prompt.filter(|prompt| prompt.first < spec.stopping.prompt_len))
                .map_or(usize::MAX, |prompt| prompt.first as usize - 1),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_own_coordinator_takes_a_session_back_and_only_later() {
        let owned = Ownership::new(1, Term(3), 7);
        assert!(owned.yields_to(1, Term(4)));
        assert!(!owned.yields_to(1, Term(3)) && !owned.yields_to(2, Term(4)));
        assert!(owned.accepts(7, Term(3)));
        assert!(
            !owned.accepts(7, Term(2)) && !owned.accepts(7, Term(4)) && !owned.accepts(8, Term(3))
        );
        assert!(owned.ends_by(1, Term(3)) && owned.ends_by(1, Term(9)));
        assert!(!owned.ends_by(1, Term(2)) && !owned.ends_by(2, Term(3)));
    }

    #[test]
    fn a_lost_stream_leaves_a_lease_that_accepts_nothing() {
        let mut owned = Ownership::new(1, Term(3), 7);
        let now = Time::from_secs(5);
        assert!(!owned.handle_lost(6, now));
        assert!(owned.handle_lost(7, now) && !owned.handle_lost(7, now + LEASE));
        assert_eq!(owned.hold(), Hold::Lease(now + LEASE));
        assert!(!owned.accepts(7, Term(3)) && owned.yields_to(1, Term(4)));
    }
}

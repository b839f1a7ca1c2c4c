//! Who waits for a seat on a target, in the order of their turns. A seat that becomes free is not for whoever is quickest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use speculation::relay::LinkKey;

use crate::link::Link;
use crate::news::News;

/// When somebody's turn is: sessions that have lost their target, then requests by priority, each in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    rank: Rank,
    arrival: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Running,
    /// By priority; lower goes first.
    New(i32),
}

/// What a seeker needs of a target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seeker {
    /// Only one of this numerics_id will do.
    pub(crate) numerics: Option<String>,
    /// Not this one: it has refused.
    pub(crate) not: Option<LinkKey>,
    /// Positions that its context has to hold.
    pub(crate) context: u32,
}

impl Seeker {
    fn could_use(&self, key: LinkKey, numerics: &str, context: u32) -> bool {
        self.not != Some(key)
            && self.context <= context
            && self
                .numerics
                .as_deref()
                .is_none_or(|wanted| wanted == numerics)
    }
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Seekers {
    waiting: Mutex<BTreeMap<Turn, Seeker>>,
    arrivals: AtomicU64,
    /// Told when somebody's turn may have come.
    vacancies: News,
}

/// A place in the order; dropping it leaves the order.
#[derive(Debug)]
pub(crate) struct Waiting {
    seekers: Arc<Seekers>,
    pub(crate) turn: Turn,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut waiting = self.seekers.waiting.lock();
        waiting.remove(&self.turn);
        if !waiting.is_empty() {
            self.seekers.vacancies.tell();
        }
    }
}

impl Seekers {
    pub(crate) fn new(vacancies: News) -> Arc<Self> {
        Arc::new(Seekers {
            waiting: Mutex::default(),
            arrivals: AtomicU64::new(0),
            vacancies,
        })
    }

    fn turn(&self, rank: Rank) -> Turn {
        let arrival = self.arrivals.fetch_add(1, Ordering::Relaxed);
        Turn { rank, arrival }
    }

    /// The turn of a request that has just arrived.
    pub(crate) fn request(&self, priority: i32) -> Turn {
        self.turn(Rank::New(priority))
    }

    /// The turn of a session that has lost its target.
    pub(crate) fn orphan(&self) -> Turn {
        self.turn(Rank::Running)
    }

    /// From now on those of later turns leave it what it could use.
    pub(crate) fn wait(self: &Arc<Self>, turn: Turn, seeker: Seeker) -> Waiting {
        self.waiting.lock().insert(turn, seeker);
        Waiting {
            seekers: Arc::clone(self),
            turn,
        }
    }

    /// Whether nobody of an earlier turn could use this target.
    pub(crate) fn may_take(&self, turn: Turn, link: &Link) -> bool {
        self.is_first(
            turn,
            link.key,
            &link.hello.numerics_id,
            link.hello.max_context,
        )
    }

    fn is_first(&self, turn: Turn, key: LinkKey, numerics: &str, context: u32) -> bool {
        let waiting = self.waiting.lock();
        let mut earlier = waiting.range(..turn);
        !earlier.any(|(_, seeker)| seeker.could_use(key, numerics, context))
    }

    /// All that wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Requests that wait.
    pub(crate) fn requests(&self) -> usize {
        let waiting = self.waiting.lock();
        (waiting.keys())
            .filter(|turn| matches!(turn.rank, Rank::New(_)))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const HERE: LinkKey = LinkKey(0);

    #[test]
    fn sessions_go_before_requests_and_these_by_priority_then_arrival() {
        let vacancies = News::new();
        let seekers = Seekers::new(vacancies.clone());
        let turns = [5, -1, 5].map(|priority| seekers.request(priority));
        let waits: Vec<_> = turns
            .map(|turn| seekers.wait(turn, Seeker::default()))
            .into();
        let orphan = seekers.wait(seekers.orphan(), Seeker::default());
        let first = |turn| seekers.is_first(turn, HERE, "a", 8);
        assert!(first(orphan.turn) && !turns.iter().any(|&turn| first(turn)));
        assert_eq!(seekers.requests(), 3);
        let mut listener = vacancies.listen();
        drop(orphan);
        assert!(listener.heard().now_or_never().is_some(), "nobody was told");
        assert!(first(turns[1]) && !first(turns[0]) && !first(turns[2]));
        drop(waits);
        assert!(first(turns[2]) && seekers.requests() == 0);
    }

    #[test]
    fn only_those_who_could_use_a_target_are_waited_for() {
        let seekers = Seekers::new(News::new());
        let turn = seekers.orphan();
        let seeker = Seeker {
            numerics: Some("a".to_owned()),
            not: Some(HERE),
            context: 8,
        };
        let _waits = seekers.wait(turn, seeker);
        let late = seekers.request(0);
        assert!(seekers.is_first(late, HERE, "a", 8), "it has refused");
        assert!(seekers.is_first(late, LinkKey(1), "b", 8), "other numerics");
        assert!(seekers.is_first(late, LinkKey(1), "a", 7), "too small");
        assert!(!seekers.is_first(late, LinkKey(1), "a", 8));
    }
}

//! Failover: when a session waits for its lost target, when it looks for another one, and when it gives up.

use speculation::Time;
use speculation::relay::WorkerKey;

/// How long a lost target may take to come back before the session goes to another. A broken stream to a living process
/// is back much sooner, and then its cache still holds the session.
pub const RETURN_PATIENCE: Time = Time::from_millis(300);

/// Targets that may be lost one after the other without a new token: the request itself may be what ends them.
pub const MAX_FRUITLESS: u32 = 2;

/// What is to be expected of a lost target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Perhaps only the stream broke: it still has the session, and going back costs nothing.
    Returns,
    /// It has been away for too long; perhaps it is started again.
    Gone,
    /// It is shutting down; perhaps it is started again.
    Stops,
    /// Nothing is wrong with it: the session fell behind its reports and has to start over there.
    Lives,
    /// It gave the session up because its cache is full; the session goes on when there is room.
    Preempted,
    /// It had no room for the session.
    Full,
    /// It does not take the session, and will not.
    Refuses,
}

impl Expectation {
    /// How long another target is looked for, where a lost one is replaced within `patience`: who was preempted waits for
    /// the texts of others to end.
    pub fn patience(self, patience: Time) -> Time {
        match self {
            Expectation::Preempted => patience * 10,
            Expectation::Returns
            | Expectation::Gone
            | Expectation::Stops
            | Expectation::Lives
            | Expectation::Full
            | Expectation::Refuses => patience,
        }
    }

    /// Which target a session goes to: `own`, the lost one if it takes sessions; `other`, the best of the rest; or none
    /// for now. `returns` says whether the lost one may be back in a moment.
    pub fn choose<T>(self, own: Option<T>, other: Option<T>, returns: Returns) -> Option<T> {
        match (self, own, other) {
            (
                Expectation::Returns | Expectation::Gone | Expectation::Stops | Expectation::Lives,
                Some(own),
                _,
            ) => Some(own),
            (Expectation::Full | Expectation::Preempted, own, other) => other.or(own),
            (Expectation::Refuses, _, other) => other,
            (Expectation::Returns, None, _) if returns == Returns::Soon => None,
            (
                Expectation::Returns | Expectation::Gone | Expectation::Stops | Expectation::Lives,
                None,
                other,
            ) => other,
        }
    }
}

/// Whether a lost target may be back in a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// The first attempt to reach it again is under way.
    Soon,
    /// It could not be reached, or is not being tried.
    Unknown,
}

/// What a session knows of the targets it has lost. `R` is why the last one was.
#[derive(Clone, Debug)]
pub struct Failover<R> {
    /// Tokens of the text when the last one was lost.
    tokens: usize,
    /// Targets lost since the text was shorter than that.
    fruitless: u32,
    search: Option<Search<R>>,
}

/// The search for another target, until one has taken the session.
#[derive(Clone, Debug)]
struct Search<R> {
    key: WorkerKey,
    expectation: Expectation,
    since: Time,
    /// The session has a reservation, and its open call is under way.
    is_reserved: bool,
    reason: R,
}

/// The target that a session has lost and wants replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostTarget {
    /// Which one.
    pub worker: WorkerKey,
    /// What is to be expected of it.
    pub expectation: Expectation,
}

impl<R> Default for Failover<R> {
    fn default() -> Self {
        Failover {
            tokens: 0,
            fruitless: 0,
            search: None,
        }
    }
}

impl<R> Failover<R> {
    /// A target was lost, or did not take the session, when the text had `tokens` tokens.
    ///
    /// # Errors
    /// With the number of targets that were lost in a row without a new token, when they are too many.
    pub fn handle_lost(&mut self, tokens: usize, expectation: Expectation) -> Result<(), u32> {
        // None of these is the fault of the request.
        if matches!(
            expectation,
            Expectation::Full | Expectation::Stops | Expectation::Lives | Expectation::Preempted
        ) {
            return Ok(());
        }
        if tokens > self.tokens {
            self.fruitless = 0;
        }
        self.tokens = tokens;
        self.fruitless += 1;
        if self.fruitless > MAX_FRUITLESS {
            return Err(self.fruitless);
        }
        Ok(())
    }

    /// Begins the search for another target at `now`; a search that is under way goes on.
    pub fn seek(&mut self, now: Time, key: WorkerKey, expectation: Expectation, reason: R) {
        let since = self.search.as_ref().map_or(now, |search| search.since);
        self.search = Some(Search {
            key,
            expectation,
            since,
            is_reserved: false,
            reason,
        });
    }

    /// A target serves the session.
    pub fn handle_served(&mut self) {
        self.search = None;
    }

    /// The session was given a reservation, and its open call is under way.
    pub fn handle_reserved(&mut self) {
        if let Some(search) = &mut self.search {
            search.is_reserved = true;
        }
    }

    /// Whether a target is to be looked for.
    pub fn is_seeking(&self) -> bool {
        (self.search.as_ref()).is_some_and(|search| !search.is_reserved)
    }

    /// When to look again although nothing has changed; `None` while there is nothing to look for.
    pub fn wake(&self, now: Time, patience: Time) -> Option<Time> {
        let search = self.search.as_ref().filter(|search| !search.is_reserved)?;
        [RETURN_PATIENCE, search.expectation.patience(patience)]
            .map(|after| search.since + after)
            .into_iter()
            .find(|&at| at > now)
    }

    /// What to look for now, if anything.
    pub fn poll_wanted(&mut self, now: Time, patience: Time) -> Option<LostTarget> {
        let search = self.search.as_mut().filter(|search| !search.is_reserved)?;
        let sought = now.saturating_sub(search.since);
        if search.expectation == Expectation::Returns && sought >= RETURN_PATIENCE {
            search.expectation = Expectation::Gone;
        }
        // A full target is asked again and again, but not forever.
        let asks = search.expectation != Expectation::Full || sought < patience;
        asks.then_some(LostTarget {
            worker: search.key,
            expectation: search.expectation,
        })
    }

    /// Why the session fails, if a target was looked for too long and none was found.
    pub fn poll_failure(&mut self, now: Time, patience: Time) -> Option<R> {
        let overdue = |search: &mut Search<R>| {
            let patience = search.expectation.patience(patience);
            !search.is_reserved && now.saturating_sub(search.since) >= patience
        };
        self.search.take_if(overdue).map(|search| search.reason)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    const PATIENCE: Time = Time::from_secs(10);

    #[test]
    fn a_request_that_ends_every_target_is_given_up_and_progress_forgives() {
        let mut failover = Failover::<()>::default();
        for tokens in [3, 3, 4, 4] {
            assert_eq!(failover.handle_lost(tokens, Expectation::Returns), Ok(()));
        }
        assert_eq!(failover.handle_lost(4, Expectation::Full), Ok(()));
        for _ in 0..9 {
            assert_eq!(failover.handle_lost(4, Expectation::Lives), Ok(()));
        }
        assert_eq!(failover.handle_lost(4, Expectation::Returns), Err(3));
    }

    #[test]
    fn the_lost_target_is_waited_for_then_anybody_will_do_then_it_fails() {
        let mut failover = Failover::default();
        let since = Time::from_secs(1);
        failover.seek(since, WorkerKey(2), Expectation::Returns, "why");
        assert_eq!(
            failover.poll_wanted(since, PATIENCE).unwrap().expectation,
            Expectation::Returns
        );
        let later = failover.wake(since, PATIENCE).unwrap();
        assert_eq!(later, since + RETURN_PATIENCE);
        assert_eq!(
            failover.poll_wanted(later, PATIENCE).unwrap().expectation,
            Expectation::Gone
        );
        assert!(failover.poll_failure(later, PATIENCE).is_none());
        failover.handle_reserved();
        assert!(!failover.is_seeking() && failover.wake(later, PATIENCE).is_none());
        assert!(failover.poll_failure(since + PATIENCE, PATIENCE).is_none());
        // The next one did not take it either: the search goes on.
        failover.seek(later, WorkerKey(3), Expectation::Full, "no room");
        assert!(failover.poll_wanted(since + PATIENCE, PATIENCE).is_none());
        assert_eq!(
            failover.poll_failure(since + PATIENCE, PATIENCE),
            Some("no room")
        );
        assert!(!failover.is_seeking());
    }

    #[test]
    fn who_is_chosen() {
        let choose = |expectation: Expectation, own, returns| {
            expectation.choose(own, Some("other"), returns)
        };
        assert_eq!(
            choose(Expectation::Returns, Some("own"), Returns::Unknown),
            Some("own")
        );
        assert_eq!(choose(Expectation::Returns, None, Returns::Soon), None);
        assert_eq!(
            choose(Expectation::Returns, None, Returns::Unknown),
            Some("other")
        );
        assert_eq!(
            choose(Expectation::Gone, None, Returns::Soon),
            Some("other")
        );
        assert_eq!(
            choose(Expectation::Full, Some("own"), Returns::Unknown),
            Some("other")
        );
        assert_eq!(
            choose(Expectation::Refuses, Some("own"), Returns::Unknown),
            Some("other")
        );
        assert_eq!(
            Expectation::Refuses.choose(Some("own"), None, Returns::Soon),
            None
        );
    }
}

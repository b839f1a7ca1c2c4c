//! Failover: when a session waits for its lost target, when it looks for another one, and when it gives up.

use speculation::Time;
use speculation::relay::WorkerKey;

/// How long a lost target may take to come back before the session goes to another. A broken stream to a living process
/// is back much sooner, and then its cache still holds the session.
pub const RETURN_PATIENCE: Time = Time::from_millis(300);

/// How long a target that had no room is left in peace: after its first refusal, and at most. Each refusal behind another
/// one doubles it.
pub const FULL_PAUSE: (Time, Time) = (Time::from_millis(50), Time::from_millis(800));

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
    /// It had no room for the session a moment ago: others may have.
    Full,
    /// It had no room for the session, and may have some by now.
    WasFull,
    /// The session has left it because its client took nothing.
    Parked,
    /// It does not take the session, and will not.
    Refuses,
}

impl Expectation {
    /// Which target a session goes to: `own`, the lost one if it takes sessions; `other`, the best of the rest; or none
    /// for now. `returns` says whether the lost one may be back in a moment.
    pub fn choose<T>(self, own: Option<T>, other: Option<T>, returns: Returns) -> Option<T> {
        match (self, own, other) {
            (
                Expectation::Returns
                | Expectation::Gone
                | Expectation::Stops
                | Expectation::Lives
                | Expectation::Parked,
                Some(own),
                _,
            ) => Some(own),
            (Expectation::WasFull | Expectation::Preempted, own, other) => other.or(own),
            (Expectation::Full | Expectation::Refuses, _, other) => other,
            (Expectation::Returns, None, _) if returns == Returns::Soon => None,
            (
                Expectation::Returns
                | Expectation::Gone
                | Expectation::Stops
                | Expectation::Lives
                | Expectation::Parked,
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

/// Why there is no target for a session that looks for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTarget {
    /// Those that would do have no room, or it goes to somebody of an earlier turn: it waits as long as that takes.
    Busy,
    /// None that would do takes sessions. It waits as long as its patience says.
    Missing,
}

/// What a session knows of the targets it has lost. `R` is why the last one was.
#[derive(Clone, Debug)]
pub struct Failover<R> {
    /// Tokens of the text when the last one was lost.
    tokens: usize,
    /// Targets lost since the text was shorter than that.
    fruitless: u32,
    /// Targets without room that were asked one after the other.
    refusals: u32,
    search: Option<Search<R>>,
}

/// The search for another target, until one has taken the session.
#[derive(Clone, Debug)]
struct Search<R> {
    key: WorkerKey,
    expectation: Expectation,
    /// When that target was lost.
    since: Time,
    /// Since when there is none that would do, as far as is known.
    missing: Option<Time>,
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
            refusals: 0,
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
            Expectation::Full
                | Expectation::WasFull
                | Expectation::Stops
                | Expectation::Lives
                | Expectation::Preempted
                | Expectation::Parked
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
        let missing = match &self.search {
            Some(search) => search.missing,
            None => Some(now),
        };
        self.refusals = match expectation {
            Expectation::Full => self.refusals.saturating_add(1),
            _ => 0,
        };
        self.search = Some(Search {
            key,
            expectation,
            since: now,
            missing,
            is_reserved: false,
            reason,
        });
    }

    /// The search is over without a target. Gives the one that was lost, if there was a search.
    pub fn give_up(&mut self) -> Option<WorkerKey> {
        self.search.take().map(|search| search.key)
    }

    /// None was found now.
    pub fn handle_none(&mut self, now: Time, why: NoTarget) {
        if let Some(search) = &mut self.search {
            search.missing = match why {
                NoTarget::Busy => None,
                NoTarget::Missing => search.missing.or(Some(now)),
            };
        }
    }

    /// A target serves the session.
    pub fn handle_served(&mut self) {
        self.search = None;
        self.refusals = 0;
    }

    /// The session was given a reservation, and its open call is under way.
    pub fn handle_reserved(&mut self) {
        if let Some(search) = &mut self.search {
            search.is_reserved = true;
            search.missing = None;
        }
    }

    /// Whether a target is to be looked for.
    pub fn is_seeking(&self) -> bool {
        (self.search.as_ref()).is_some_and(|search| !search.is_reserved)
    }

    /// When to look again although nothing has changed; `None` while there is nothing to look for.
    pub fn wake(&self, now: Time, patience: Time) -> Option<Time> {
        let search = self.search.as_ref().filter(|search| !search.is_reserved)?;
        [
            self.changes_at(search),
            search.missing.map(|since| since + patience),
        ]
        .into_iter()
        .flatten()
        .filter(|&at| at > now)
        .min()
    }

    /// When something else is to be expected of the lost target, although nothing was heard of it.
    fn changes_at(&self, search: &Search<R>) -> Option<Time> {
        match search.expectation {
            Expectation::Returns => Some(search.since + RETURN_PATIENCE),
            Expectation::Full => {
                let doubled = FULL_PAUSE.0 * (1 << (self.refusals.clamp(1, 16) - 1));
                Some(search.since + doubled.min(FULL_PAUSE.1))
            }
            Expectation::Gone
            | Expectation::Stops
            | Expectation::Lives
            | Expectation::Preempted
            | Expectation::WasFull
            | Expectation::Parked
            | Expectation::Refuses => None,
        }
    }

    /// What to look for now, if anything.
    pub fn poll_wanted(&mut self, now: Time) -> Option<LostTarget> {
        let changes_at = self.search.as_ref().map(|search| self.changes_at(search))?;
        let search = self.search.as_mut().filter(|search| !search.is_reserved)?;
        if changes_at.is_some_and(|at| now >= at) {
            search.expectation = match search.expectation {
                Expectation::Returns => Expectation::Gone,
                Expectation::Full => Expectation::WasFull,
                other => other,
            };
        }
        Some(LostTarget {
            worker: search.key,
            expectation: search.expectation,
        })
    }

    /// Why the session fails, if there was none that would do for too long.
    pub fn poll_failure(&mut self, now: Time, patience: Time) -> Option<R> {
        let overdue = |search: &mut Search<R>| {
            let missing = search.missing.map(|since| now.saturating_sub(since));
            !search.is_reserved && missing.is_some_and(|missing| missing >= patience)
        };
        self.search.take_if(overdue).map(|search| search.reason)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use alloc::vec::Vec;

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
            failover.poll_wanted(since).unwrap().expectation,
            Expectation::Returns
        );
        let later = failover.wake(since, PATIENCE).unwrap();
        assert_eq!(later, since + RETURN_PATIENCE);
        assert_eq!(
            failover.poll_wanted(later).unwrap().expectation,
            Expectation::Gone
        );
        assert!(failover.poll_failure(later, PATIENCE).is_none());
        failover.handle_reserved();
        assert!(!failover.is_seeking() && failover.wake(later, PATIENCE).is_none());
        assert!(failover.poll_failure(since + PATIENCE, PATIENCE).is_none());
        // The next one did not take it either: the search goes on, and the time begins when there is none any more.
        failover.seek(later, WorkerKey(3), Expectation::Refuses, "why not");
        assert!(failover.poll_failure(later + PATIENCE, PATIENCE).is_none());
        let missing = later + Time::from_secs(60);
        failover.handle_none(missing, NoTarget::Missing);
        failover.handle_none(missing + PATIENCE / 2, NoTarget::Missing);
        assert_eq!(failover.wake(missing, PATIENCE), Some(missing + PATIENCE));
        let failure = |failover: &mut Failover<_>, at| failover.poll_failure(at, PATIENCE);
        assert_eq!(failure(&mut failover, missing + PATIENCE / 2), None);
        assert_eq!(failure(&mut failover, missing + PATIENCE), Some("why not"));
        assert!(!failover.is_seeking());
    }

    #[test]
    fn a_full_target_is_left_in_peace_for_longer_and_longer_and_waited_for_as_long_as_it_takes() {
        let mut failover = Failover::default();
        let mut now = Time::from_secs(1);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            failover.seek(now, WorkerKey(2), Expectation::Full, "no room");
            let wanted = failover.poll_wanted(now).unwrap();
            assert_eq!(wanted.expectation, Expectation::Full);
            failover.handle_none(now, NoTarget::Busy);
            let asks = failover.wake(now, PATIENCE).unwrap();
            pauses.push(asks - now);
            now = asks;
            let wanted = failover.poll_wanted(now).unwrap();
            assert_eq!(wanted.expectation, Expectation::WasFull);
            failover.handle_reserved();
        }
        let pauses: Vec<u128> = pauses.iter().map(Time::as_millis).collect();
        assert_eq!(pauses, [50, 100, 200, 400, 800, 800, 800]);
        failover.seek(now, WorkerKey(2), Expectation::Full, "no room");
        failover.handle_none(now, NoTarget::Busy);
        assert!(
            failover
                .poll_failure(now + 99 * PATIENCE, PATIENCE)
                .is_none()
        );
        failover.handle_served();
        failover.seek(now, WorkerKey(2), Expectation::Full, "no room");
        assert_eq!(failover.wake(now, PATIENCE), Some(now + FULL_PAUSE.0));
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
            choose(Expectation::WasFull, Some("own"), Returns::Unknown),
            Some("other")
        );
        let alone =
            |expectation: Expectation| expectation.choose(Some("own"), None, Returns::Unknown);
        assert_eq!(alone(Expectation::WasFull), Some("own"));
        assert_eq!(alone(Expectation::Full), None);
        assert_eq!(
            choose(Expectation::Parked, Some("own"), Returns::Unknown),
            Some("own")
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

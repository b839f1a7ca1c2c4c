//! A session whose target was lost: when to wait for that target, when to look for another one, and when to give up.

use crate::Time;
use crate::relay::LinkKey;

/// How long a lost target may take to come back before the session goes to another. A broken stream to a living
/// process is there again much sooner, and then its cache still holds the session.
pub const RETURN_PATIENCE: Time = Time::from_millis(300);

/// Targets that may be lost one after the other without a new token: what ends its worker may be the request itself.
pub const MAX_FRUITLESS: u32 = 2;

/// What is to be expected of a lost target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hope {
    /// Perhaps only the stream broke: it still has the session, and going back costs nothing.
    Returns,
    /// It has been away for too long; perhaps it is started again.
    Gone,
    /// It is shutting down; perhaps it is started again.
    Stops,
    /// It had no room for the session.
    Full,
    /// It does not take the session, and will not.
    Refuses,
}

impl Hope {
    /// Which target a session goes to: `own`, the lost one if it takes sessions; `other`, the best of the rest; or
    /// nobody for now. `returns` says whether the lost one may be there again in no time.
    pub fn choose<T>(self, own: Option<T>, other: Option<T>, returns: Returns) -> Option<T> {
        match (self, own, other) {
            (Hope::Returns | Hope::Gone | Hope::Stops, Some(own), _) => Some(own),
            (Hope::Full, own, other) => other.or(own),
            (Hope::Refuses, _, other) => other,
            (Hope::Returns, None, _) if returns == Returns::Soon => None,
            (Hope::Returns | Hope::Gone | Hope::Stops, None, other) => other,
        }
    }
}

/// Whether a lost target may be there again in no time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// The first attempt to reach it again is under way.
    Soon,
    /// It was tried and is not there, or nobody tries.
    Unknown,
}

/// What a session remembers of the targets it has lost. `R` is why the last one was.
#[derive(Debug)]
pub struct Replays<R> {
    /// Tokens of the text when the last one was lost.
    tokens: usize,
    /// Targets lost since the text was shorter than that.
    fruitless: u32,
    search: Option<Search<R>>,
}

/// The search for another target, until one has taken the session.
#[derive(Debug)]
struct Search<R> {
    key: LinkKey,
    hope: Hope,
    since: Time,
    /// The session has a seat, and its open call is under way.
    seated: bool,
    reason: R,
}

/// What to look for.
#[derive(Debug)]
pub struct Wish<'a, R> {
    /// The target that was lost.
    pub key: LinkKey,
    /// What is to be expected of it.
    pub hope: Hope,
    /// Why it was lost.
    pub reason: &'a R,
}

impl<R> Default for Replays<R> {
    fn default() -> Self {
        Replays {
            tokens: 0,
            fruitless: 0,
            search: None,
        }
    }
}

impl<R> Replays<R> {
    /// A target was lost, or did not take the session, when the text had `tokens` tokens.
    ///
    /// # Errors
    /// With the number of targets that were lost in a row without a new token, when they are too many.
    pub fn handle_lost(&mut self, tokens: usize, hope: Hope) -> Result<(), u32> {
        // Who had no room or is about to stop has not been lost to the request.
        if matches!(hope, Hope::Full | Hope::Stops) {
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

    /// Another target is sought from `now` on; one that was sought already is sought since then.
    pub fn seek(&mut self, now: Time, key: LinkKey, hope: Hope, reason: R) {
        let since = self.search.as_ref().map_or(now, |search| search.since);
        self.search = Some(Search {
            key,
            hope,
            since,
            seated: false,
            reason,
        });
    }

    /// A target serves the session.
    pub fn handle_served(&mut self) {
        self.search = None;
    }

    /// The session was given a seat, and its open call is under way.
    pub fn handle_seated(&mut self) {
        if let Some(search) = &mut self.search {
            search.seated = true;
        }
    }

    /// Whether a seat is to be looked for.
    pub fn is_seeking(&self) -> bool {
        (self.search.as_ref()).is_some_and(|search| !search.seated)
    }

    /// When to look again although nothing has changed; `None` while there is nothing to look for.
    pub fn wake(&self, now: Time, patience: Time) -> Option<Time> {
        let search = self.search.as_ref().filter(|search| !search.seated)?;
        [RETURN_PATIENCE, patience]
            .map(|after| search.since + after)
            .into_iter()
            .find(|&at| at > now)
    }

    /// What to look for now, if anything.
    pub fn poll_wish(&mut self, now: Time, patience: Time) -> Option<Wish<'_, R>> {
        let search = self.search.as_mut().filter(|search| !search.seated)?;
        let sought = now.saturating_sub(search.since);
        if search.hope == Hope::Returns && sought >= RETURN_PATIENCE {
            search.hope = Hope::Gone;
        }
        // Whoever was full is asked again and again, but not for ever.
        let asks = search.hope != Hope::Full || sought < patience;
        asks.then_some(Wish {
            key: search.key,
            hope: search.hope,
            reason: &search.reason,
        })
    }

    /// Why the session fails, if a seat was looked for too long and none was found.
    pub fn poll_failure(&mut self, now: Time, patience: Time) -> Option<R> {
        let overdue =
            |search: &mut Search<R>| !search.seated && now.saturating_sub(search.since) >= patience;
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
        let mut replays = Replays::<()>::default();
        for tokens in [3, 3, 4, 4] {
            assert_eq!(replays.handle_lost(tokens, Hope::Returns), Ok(()));
        }
        assert_eq!(replays.handle_lost(4, Hope::Full), Ok(()));
        assert_eq!(replays.handle_lost(4, Hope::Returns), Err(3));
    }

    #[test]
    fn the_lost_target_is_waited_for_then_anybody_will_do_then_it_fails() {
        let mut replays = Replays::default();
        let since = Time::from_secs(1);
        replays.seek(since, LinkKey(2), Hope::Returns, "why");
        assert_eq!(
            replays.poll_wish(since, PATIENCE).unwrap().hope,
            Hope::Returns
        );
        let later = replays.wake(since, PATIENCE).unwrap();
        assert_eq!(later, since + RETURN_PATIENCE);
        assert_eq!(replays.poll_wish(later, PATIENCE).unwrap().hope, Hope::Gone);
        assert!(replays.poll_failure(later, PATIENCE).is_none());
        replays.handle_seated();
        assert!(!replays.is_seeking() && replays.wake(later, PATIENCE).is_none());
        assert!(replays.poll_failure(since + PATIENCE, PATIENCE).is_none());
        // The next one did not take it either: the time it has been sought for goes on.
        replays.seek(later, LinkKey(3), Hope::Full, "no room");
        assert!(replays.poll_wish(since + PATIENCE, PATIENCE).is_none());
        assert_eq!(
            replays.poll_failure(since + PATIENCE, PATIENCE),
            Some("no room")
        );
        assert!(!replays.is_seeking());
    }

    #[test]
    fn who_is_chosen() {
        let choose = |hope: Hope, own, returns| hope.choose(own, Some("other"), returns);
        assert_eq!(
            choose(Hope::Returns, Some("own"), Returns::Unknown),
            Some("own")
        );
        assert_eq!(choose(Hope::Returns, None, Returns::Soon), None);
        assert_eq!(choose(Hope::Returns, None, Returns::Unknown), Some("other"));
        assert_eq!(choose(Hope::Gone, None, Returns::Soon), Some("other"));
        assert_eq!(
            choose(Hope::Full, Some("own"), Returns::Unknown),
            Some("other")
        );
        assert_eq!(
            choose(Hope::Refuses, Some("own"), Returns::Unknown),
            Some("other")
        );
        assert_eq!(Hope::Refuses.choose(Some("own"), None, Returns::Soon), None);
    }
}

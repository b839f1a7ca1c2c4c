//! Says the same thing only now and then: what a peer can cause as often as it likes must not fill a log.

use std::time::{Duration, Instant};

/// How long after a line the next one of its kind is held back.
const INTERVAL: Duration = Duration::from_secs(10);

/// How often something has happened that was not said yet.
#[derive(Debug)]
pub(crate) struct Rarely {
    /// Lines in an interval.
    most: u32,
    begun: Option<Instant>,
    said: u32,
    since: u64,
}

impl Default for Rarely {
    fn default() -> Self {
        Rarely::at_most(1)
    }
}

impl Rarely {
    /// So many lines in an interval, where they may say different things.
    pub(crate) fn at_most(most: u32) -> Self {
        Rarely {
            most,
            begun: None,
            said: 0,
            since: 0,
        }
    }

    /// It has happened. If it is to be said now: how often it happened since it was said last, this time included.
    pub(crate) fn handle(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        if (self.begun).is_none_or(|begun| now.duration_since(begun) >= INTERVAL) {
            (self.begun, self.said) = (Some(now), 0);
        }
        (self.said < self.most).then(|| {
            self.said += 1;
            std::mem::take(&mut self.since)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_at_once_and_the_rest_is_counted() {
        let mut rarely = Rarely::default();
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        assert_eq!(rarely.handle(at(0)), Some(1));
        for tenth in 1..100 {
            assert_eq!(rarely.handle(at(tenth * 100)), None);
        }
        assert_eq!(rarely.handle(at(10_000)), Some(100));
        assert_eq!(rarely.handle(at(10_001)), None);
        assert_eq!(rarely.handle(at(60_000)), Some(2));
    }

    #[test]
    fn several_may_be_said_in_an_interval() {
        let mut rarely = Rarely::at_most(3);
        let begun = Instant::now();
        let said = |rarely: &mut Rarely, at: u64| rarely.handle(begun + Duration::from_secs(at));
        let first: Vec<_> = (0..5).map(|_| said(&mut rarely, 1)).collect();
        assert_eq!(first, [Some(1), Some(1), Some(1), None, None]);
        assert_eq!(said(&mut rarely, 11), Some(3));
    }
}

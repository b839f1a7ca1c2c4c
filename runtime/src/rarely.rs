//! Says the same thing only now and then: what a peer can cause as often as it likes must not fill a log.

use std::time::{Duration, Instant};

/// How long after a line the next one of its kind is held back.
const INTERVAL: Duration = Duration::from_secs(10);

/// How often something has happened that was not said yet.
#[derive(Debug, Default)]
pub(crate) struct Rarely {
    said: Option<Instant>,
    since: u64,
}

impl Rarely {
    /// It has happened. If it is to be said now: how often it happened since it was said last, this time included.
    pub(crate) fn handle(&mut self, now: Instant) -> Option<u64> {
        self.since += 1;
        let is_due = (self.said).is_none_or(|said| now.duration_since(said) >= INTERVAL);
        is_due.then(|| {
            self.said = Some(now);
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
}

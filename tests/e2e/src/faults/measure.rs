//! The arithmetic of the fault table: rates, gaps and recovery from the times at which tokens arrived.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Over how long the speed is taken when it is compared with the speed before a fault.
pub const WINDOW: Duration = Duration::from_millis(500);
/// Full speed is this share of the speed before, or of the speed of the cluster that is left.
pub const FULL: f64 = 0.8;

/// A token that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// When.
    pub at: Instant,
    /// Index of its client.
    pub client: usize,
}

/// Tokens that arrived, all clients together.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// In chronological order.
    tokens: Vec<Arrival>,
}

impl Arrivals {
    /// Sorts by time, because clients run independently.
    #[must_use]
    pub fn new(mut tokens: Vec<Arrival>) -> Self {
        tokens.sort_by_key(|token| token.at);
        Arrivals { tokens }
    }

    fn between(&self, from: Instant, to: Instant) -> &[Arrival] {
        let start = self.tokens.partition_point(|token| token.at < from);
        let end = self.tokens.partition_point(|token| token.at < to);
        &self.tokens[start..end.max(start)]
    }

    /// Tokens per second from `from` to `to`.
    #[must_use]
    pub fn rate(&self, from: Instant, to: Instant) -> f64 {
        let seconds = to.saturating_duration_since(from).as_secs_f64();
        if seconds > 0.0 {
            self.between(from, to).len() as f64 / seconds
        } else {
            0.0
        }
    }

    /// How long after `fault` the first [`WINDOW`] begins in which the speed is at least [`FULL`] of `full.rate` and
    /// every client gets a token. Zero if the fault does not slow anything down; `None` if there is no such window until
    /// `now`.
    #[must_use]
    pub fn recovery(&self, fault: Instant, full: Full, now: Instant) -> Option<Duration> {
        let first = self.tokens.partition_point(|token| token.at < fault);
        let starts = self.tokens[first..].iter().map(|token| token.at);
        std::iter::once(fault)
            .chain(starts)
            .take_while(|&start| start + WINDOW <= now)
            .find(|&start| {
                let end = start + WINDOW;
                self.rate(start, end) >= FULL * full.rate
                    && self.clients(start, end) >= full.clients
            })
            .map(|start| start.duration_since(fault))
    }

    /// How many clients got a token from `from` to `to`.
    #[must_use]
    pub fn clients(&self, from: Instant, to: Instant) -> usize {
        let served: BTreeSet<_> = (self.between(from, to).iter())
            .map(|token| token.client)
            .collect();
        served.len()
    }
}

/// What full speed is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Full {
    /// Tokens per second, of all clients together.
    pub rate: f64,
    /// How many clients there are. The others may be fast while one still waits.
    pub clients: usize,
}

/// The longest time between two moments, of those intervals that end after `since`.
#[must_use]
pub fn longest_gap(moments: &[Instant], since: Instant) -> Duration {
    let gaps = moments.windows(2).filter(|pair| pair[1] > since);
    gaps.map(|pair| pair[1].saturating_duration_since(pair[0]))
        .max()
        .unwrap_or_default()
}

/// The middle of some values, the upper one of two; `None` of none.
#[must_use]
pub fn median<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn ms(at: u64) -> Duration {
        Duration::from_millis(at)
    }

    /// One token every 10 ms in each of the spans, given in milliseconds; all of one client.
    fn steady(zero: Instant, client: usize, spans: &[(u64, u64)]) -> Vec<Arrival> {
        let times = spans.iter().flat_map(|&(from, to)| (from..to).step_by(10));
        times
            .map(|at| Arrival {
                at: zero + ms(at),
                client,
            })
            .collect()
    }

    fn one(zero: Instant, spans: &[(u64, u64)]) -> Arrivals {
        Arrivals::new(steady(zero, 0, spans))
    }

    fn full(rate: f64) -> Full {
        Full { rate, clients: 1 }
    }

    #[test]
    fn rates_are_tokens_per_second() {
        let zero = Instant::now();
        let arrivals = one(zero, &[(0, 1000)]);
        assert_eq!(arrivals.rate(zero, zero + ms(1000)), 100.0);
        assert_eq!(arrivals.rate(zero + ms(500), zero + ms(1500)), 50.0);
        assert_eq!(arrivals.rate(zero, zero), 0.0);
    }

    #[test]
    fn recovery_is_when_the_first_fast_window_begins() {
        let zero = Instant::now();
        let fault = zero + ms(1000);
        let end = zero + ms(5000);
        let untouched = one(zero, &[(0, 5000)]);
        assert_eq!(untouched.recovery(fault, full(100.0), end), Some(ms(0)));
        let stopped = one(zero, &[(0, 1000), (2200, 5000)]);
        assert_eq!(stopped.recovery(fault, full(100.0), end), Some(ms(1200)));
        let lost = one(zero, &[(0, 1000)]);
        assert_eq!(lost.recovery(fault, full(100.0), end), None);
        // A window that is not over yet proves nothing.
        assert_eq!(stopped.recovery(fault, full(100.0), zero + ms(2600)), None);
        assert_eq!(untouched.recovery(fault, full(130.0), end), None);
        assert_eq!(untouched.recovery(fault, full(120.0), end), Some(ms(0)));
    }

    #[test]
    fn nobody_is_left_out_of_full_speed() {
        let zero = Instant::now();
        let mut tokens = steady(zero, 0, &[(0, 5000)]);
        tokens.extend(steady(zero, 1, &[(0, 1000), (3000, 5000)]));
        let both = Full {
            rate: 100.0,
            clients: 2,
        };
        let recovery = Arrivals::new(tokens).recovery(zero + ms(1000), both, zero + ms(5000));
        // The first window with a token of the one that waited begins just less than its length before that token.
        assert_eq!(recovery, Some(ms(1510)));
    }

    #[test]
    fn gaps_count_when_they_end_after_the_fault() {
        let zero = Instant::now();
        let moments: Vec<_> = [0, 900, 1000, 1400, 1500].map(|at| zero + ms(at)).to_vec();
        assert_eq!(longest_gap(&moments, zero), ms(900));
        assert_eq!(longest_gap(&moments, zero + ms(950)), ms(400));
        assert_eq!(longest_gap(&moments, zero + ms(1500)), ms(0));
        assert_eq!(longest_gap(&[], zero), ms(0));
    }

    #[test]
    fn the_middle_is_the_upper_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4, 1]), Some(4));
        assert_eq!(median::<f64>(&[]), None);
    }
}

//! What was measured, as a client and the product's own statistics would have it.

use std::collections::BTreeMap;

use speculation::Time;
use speculation::duty::Role;
use speculation::recording::Recording;
use speculation::stats::SessionStats;

/// A request that was answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its number; equal numbers are the same request in every experiment of the same load.
    pub number: usize,
    /// When it was sent.
    pub asked: Time,
    /// When it got its workers.
    pub began: Time,
    /// The text.
    pub tokens: Vec<u32>,
    /// When tokens arrived, and how many.
    pub arrivals: Vec<(Time, usize)>,
    /// How it went.
    pub stats: SessionStats,
    /// How the models agreed, as the coordinator saw it.
    pub recording: Option<Recording>,
}

impl Request {
    pub(crate) fn new(number: usize, asked: Time, began: Time) -> Self {
        Request {
            number,
            asked,
            began,
            tokens: Vec::new(),
            arrivals: Vec::new(),
            stats: SessionStats::default(),
            recording: None,
        }
    }

    pub(crate) fn arrive(&mut self, now: Time, tokens: Vec<u32>) {
        if !tokens.is_empty() {
            self.arrivals.push((now, tokens.len()));
            self.tokens.extend(tokens);
        }
    }

    /// Tokens per second from the first arrival to the last; `None` if everything arrived at once.
    #[must_use]
    pub fn speed(&self) -> Option<f64> {
        let (&(first, _), rest) = self.arrivals.split_first()?;
        let elapsed = (rest.last()?.0 - first).as_secs_f64();
        let tokens: usize = rest.iter().map(|&(_, tokens)| tokens).sum();
        (elapsed > 0.0).then(|| tokens as f64 / elapsed)
    }
}

/// A step that was noted down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it began.
    pub begun: Time,
    /// When it ended, or was given up.
    pub ended: Time,
    /// Its rows, of all sessions.
    pub rows: usize,
    /// A commit had made it useless.
    pub is_abandoned: bool,
}

/// What a worker did in the time that was noted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Noted {
    /// What it is.
    pub role: Role,
    /// Its steps, in order.
    pub steps: Vec<Step>,
}

/// What an experiment has given.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// All requests, in their order.
    pub requests: Vec<Request>,
    /// From the first request to the last token.
    pub took: Time,
    /// Workers that had a session: the devices that this way of decoding uses.
    pub devices: usize,
    /// Events that happened.
    pub events: u64,
    /// The steps of each of those workers, targets first; without any if no time was noted.
    pub noted: Vec<Noted>,
    /// The time that the workers of each role were in steps, all of them together, and how many workers there are.
    pub busy: BTreeMap<Role, (Time, usize)>,
}

impl Outcome {
    /// Tokens of all requests.
    #[must_use]
    pub fn tokens(&self) -> usize {
        (self.requests.iter())
            .map(|request| request.tokens.len())
            .sum()
    }

    /// Tokens of all requests over the whole time, per second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        let took = self.took.as_secs_f64();
        if took > 0.0 {
            self.tokens() as f64 / took
        } else {
            0.0
        }
    }

    /// The share of its time that a worker of this role was in a step, on average.
    #[must_use]
    pub fn utilisation(&self, role: Role) -> f64 {
        let Some(&(busy, workers)) = self.busy.get(&role) else {
            return 0.0;
        };
        let all = self.took.as_secs_f64() * workers as f64;
        if all > 0.0 {
            busy.as_secs_f64() / all
        } else {
            0.0
        }
    }

    /// The median speed of a request; 0 where none has one.
    #[must_use]
    pub fn speed(&self) -> f64 {
        let speeds = self.requests.iter().filter_map(Request::speed);
        let mut speeds: Vec<f64> = speeds.collect();
        speeds.sort_by(f64::total_cmp);
        let middle = speeds.len() / 2;
        match (speeds.get(middle), middle.checked_sub(1)) {
            (Some(&upper), Some(lower)) if speeds.len().is_multiple_of(2) => {
                f64::midpoint(speeds[lower], upper)
            }
            (Some(&upper), _) => upper,
            (None, _) => 0.0,
        }
    }

    /// Tokens that were generated behind the first of each request, over the time that took: the mean speed of a request,
    /// in which every token counts the same.
    #[must_use]
    pub fn mean_speed(&self) -> f64 {
        let (mut tokens, mut time) = (0, 0.0);
        for request in &self.requests {
            if let ([(first, head), ..], Some((last, _))) =
                (request.arrivals.as_slice(), request.arrivals.last())
            {
                tokens += request.tokens.len() - head;
                time += (*last - *first).as_secs_f64();
            }
        }
        if time > 0.0 {
            tokens as f64 / time
        } else {
            0.0
        }
    }
}

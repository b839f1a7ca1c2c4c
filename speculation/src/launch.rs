//! When to start a target step: the marginal value theorem.
//!
//! A step that starts now earns its own token plus the guesses that will be accepted. Waiting for the next guesses
//! raises the second part and costs time that is worth what the target earns on average. So wait exactly while the
//! next arrival is expected to bring more tokens per microsecond than the long-run rate, and never longer than a
//! share of a step. What arrivals bring, and when, is learned from the waits themselves.

use crate::Time;

/// The rule for one session. Time and gains are given; it has no clock.
#[derive(Clone, Debug)]
pub struct LaunchRule {
    classes: [Class; CLASSES],
    rate: Rate,
    waiting: Option<Waiting>,
}

/// Arrivals are expected by how much is there already: the first guesses after a miss bring most.
const CLASSES: usize = 5;

#[derive(Clone, Copy, Debug)]
struct Class {
    gain: f64,
    delay_us: f64,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    since: Time,
    first: Time,
    gain: f64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    tokens: f64,
    us: f64,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start the step.
    Go,
    /// Ask again when something arrives, or at this time.
    WaitUntil(Time),
}

/// Weight of the newest observation.
const LEARN: f64 = 0.15;

/// Longest wait, as a share of a step.
const LONGEST: f64 = 0.6;

impl Default for LaunchRule {
    fn default() -> Self {
        LaunchRule {
            classes: [0.8, 0.4, 0.3, 0.2, 0.1].map(|gain| Class {
                gain,
                delay_us: 2500.0,
            }),
            rate: Rate::default(),
            waiting: None,
        }
    }
}

impl LaunchRule {
    /// Whether to start a step that is expected to accept `gain` guesses and to take `step_us`.
    pub fn decide(&mut self, now: Time, gain: f64, step_us: f64) -> Decision {
        let waiting = match self.waiting {
            None => Waiting {
                since: now,
                first: now,
                gain,
            },
            Some(waiting) if gain > waiting.gain + 1e-3 => {
                let class = &mut self.classes[class_of(waiting.gain)];
                let delay_us = micros(now.saturating_sub(waiting.since));
                class.gain += LEARN * (gain - waiting.gain - class.gain);
                class.delay_us += LEARN * (delay_us - class.delay_us);
                Waiting {
                    since: now,
                    first: waiting.first,
                    gain,
                }
            }
            Some(waiting) => waiting,
        };
        self.waiting = Some(waiting);
        let class = self.classes[class_of(gain)];
        // Before anything was measured: the value of a step over its cost.
        let rate = if self.rate.us > 0.0 {
            self.rate.tokens / self.rate.us
        } else {
            (1.0 + gain) / step_us
        };
        let pays = class.gain > rate * class.delay_us;
        let patience_us = (class.delay_us * 1.5 + 500.0).min(step_us * LONGEST);
        let until = (waiting.since + Time::from_secs_f64(patience_us * 1e-6))
            .min(waiting.first + Time::from_secs_f64(step_us * LONGEST * 1e-6));
        if pays && now < until {
            Decision::WaitUntil(until)
        } else {
            if pays {
                // Nothing came in time: such guesses take longer than was thought.
                let class = &mut self.classes[class_of(gain)];
                let waited_us = micros(now.saturating_sub(waiting.since));
                class.delay_us += LEARN * (2.0 * waited_us - class.delay_us).max(0.0);
                // And fewer: the delay is capped by the patience, so that it alone could never forbid a wait.
                class.gain -= LEARN * class.gain;
            } else {
                // An estimate that forbids waiting is never checked again by itself.
                let class = &mut self.classes[class_of(gain)];
                class.delay_us *= 0.998;
            }
            Decision::Go
        }
    }

    /// A step ended that earned `tokens`; `spent` is the time since the previous one ended.
    pub fn stepped(&mut self, tokens: usize, spent: Time) {
        self.waiting = None;
        self.rate.tokens = self.rate.tokens * 0.97 + tokens as f64;
        self.rate.us = self.rate.us * 0.97 + micros(spent);
    }
}

fn micros(time: Time) -> f64 {
    time.as_secs_f64() * 1e6
}

fn class_of(gain: f64) -> usize {
    match gain {
        g if g < 0.05 => 0,
        g if g < 0.7 => 1,
        g if g < 1.3 => 2,
        g if g < 2.0 => 3,
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Time = Time::from_millis(1);

    #[test]
    fn a_starved_step_waits_a_little_and_a_rich_one_does_not() {
        let mut rule = LaunchRule::default();
        rule.stepped(3, 20 * MS);
        assert!(matches!(
            rule.decide(100 * MS, 0.0, 20_000.0),
            Decision::WaitUntil(_)
        ));
        let mut rule = LaunchRule::default();
        rule.stepped(3, 20 * MS);
        assert_eq!(rule.decide(100 * MS, 2.5, 20_000.0), Decision::Go);
    }

    #[test]
    fn no_wait_outlasts_its_bound_and_failures_teach() {
        let mut rule = LaunchRule::default();
        rule.stepped(2, 20 * MS);
        let mut waits = 0;
        for round in 1..200u32 {
            let start = round * 100 * MS;
            if let Decision::WaitUntil(until) = rule.decide(start, 0.0, 20_000.0) {
                waits += 1;
                assert!(until <= start + 12 * MS);
                assert_eq!(rule.decide(until, 0.0, 20_000.0), Decision::Go);
            }
            rule.stepped(1, 20 * MS);
        }
        assert!(
            waits < 100,
            "guesses never come, yet it waited {waits} times"
        );
    }
}

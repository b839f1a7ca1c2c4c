//! When to start a verifier's step: what a worker has learned about waiting, and the two rules that use it.
//!
//! *While it pays* is the marginal value theorem. A step that starts now earns its own token plus the guesses that will
//! be accepted. Waiting for the next guesses raises the second part and costs time that is worth what the target earns
//! on average. So wait exactly while the next arrival is expected to bring more tokens per microsecond than the long-run
//! rate, and never longer than a share of a step. What it brings is a learned share of what is *open*: the probability that the
//! text goes on behind a guess that drafts grow next. Not all of that is lost without the wait, since drafts go on during the step.
//!
//! *For a round* is for drafts that take turns with the target: wait until they have finished, and not for a draft that
//! is much later than drafts have been so far.
//!
//! What was learned belongs to the worker and outlives a session; a session only remembers since when it waits.

use crate::Time;
use crate::strategy::NextStep;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Start the step.
    Now,
    /// Ask again when something arrives, or at this time.
    WaitUntil(Time),
    /// The same while the worker has nothing else to compute; a step that another session starts is joined, since waiting for
    /// the end of that would cost more.
    WaitAlone(Time),
}

/// What a worker has learned about waiting, from all its sessions.
#[derive(Clone, Debug)]
pub struct WaitModel {
    /// The first guesses behind a text that has none.
    first: Arrivals,
    /// More of them.
    more: Arrivals,
    rate: Rate,
    /// Duration of one step of a draft's round, microseconds, network included; `None` before the first round.
    draft_step_us: Option<f64>,
}

/// Guesses that arrive together.
#[derive(Clone, Copy, Debug)]
struct Arrivals {
    /// What they add, as a share of what is open.
    share: f64,
    /// The part of it that a step without them would miss for good.
    lost: f64,
    /// How long it takes until they are there.
    delay_us: f64,
    /// Decisions in a row not to wait for them.
    refused: u32,
}

impl Arrivals {
    /// Before any has been seen.
    fn new(share: f64, lost: f64) -> Self {
        Arrivals {
            share,
            lost,
            delay_us: 2500.0,
            refused: 0,
        }
    }

    fn observe(&mut self, share: f64, delay: Time) {
        // What was believed before a trial is old.
        let learn = if self.refused < TRIAL { LEARN } else { 0.5 };
        self.share += learn * (share.min(1.0) - self.share);
        self.delay_us += learn * (micros(delay) - self.delay_us);
        self.refused = 0;
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    tokens: f64,
    us: f64,
}

/// Since when one session waits.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Since the last arrival.
    since: Time,
    /// Since the step could have started.
    first: Time,
    gain: f64,
    open: f64,
}

/// Weight of the newest observation.
const LEARN: f64 = 0.15;

/// After so many decisions in a row not to wait for guesses, it waits once: they may come sooner by now.
const TRIAL: u32 = 50;

/// Longest wait for guesses, as a share of a step.
const LONGEST: f64 = 0.6;

/// A round may last this many times as long as rounds have taken so far, and [`ROUND_SLACK_US`] more.
const ROUND_TIMES: f64 = 4.0;
const ROUND_SLACK_US: f64 = 2_000.0;

/// What a step of a draft is taken to last at least once a round was late, microseconds: rounds that had been drafted before their
/// commit came may have taken no time at all.
const LEAST_STEP_US: f64 = 100.0;

/// The longest wait for a round, also before the first round was seen, microseconds.
const LONGEST_ROUND_US: f64 = 1e6;

impl Default for WaitModel {
    fn default() -> Self {
        WaitModel {
            first: Arrivals::new(0.8, 0.85),
            more: Arrivals::new(0.6, 0.65),
            rate: Rate::default(),
            draft_step_us: None,
        }
    }
}

impl WaitModel {
    /// A step of one session ended that earned `tokens`; `spent` is the time since its previous one ended.
    pub fn stepped(&mut self, tokens: usize, spent: Time) {
        self.rate.tokens = self.rate.tokens * 0.97 + tokens as f64;
        self.rate.us = self.rate.us * 0.97 + micros(spent);
    }

    /// The drafts of one session have finished a round of this many steps, this long after the commit that began it.
    pub fn round_took(&mut self, steps: u16, took: Time) {
        let step_us = micros(took) / f64::from(steps.max(1));
        self.draft_step_us = Some(match self.draft_step_us {
            None => step_us,
            Some(known) => known + LEARN * (step_us - known),
        });
    }

    /// What is waited for where guesses of this gain are there.
    fn arrivals(&mut self, gain: f64) -> &mut Arrivals {
        if gain < 0.05 {
            &mut self.first
        } else {
            &mut self.more
        }
    }

    /// The longest that a round of this many steps is waited for, microseconds.
    fn round_limit_us(&self, steps: u16) -> f64 {
        self.draft_step_us.map_or(LONGEST_ROUND_US, |step_us| {
            (ROUND_TIMES * step_us * f64::from(steps) + ROUND_SLACK_US).min(LONGEST_ROUND_US)
        })
    }
}

/// The rules, for one session on one worker.
#[derive(Debug)]
pub struct Waits<'a> {
    /// What the worker knows.
    pub model: &'a mut WaitModel,
    /// What the session knows; `None` while it does not wait.
    pub waiting: &'a mut Option<Waiting>,
}

impl Waits<'_> {
    /// Waits for guesses while the next ones are expected to be worth it.
    pub fn while_it_pays(&mut self, next: &NextStep) -> Start {
        // A step that has a prompt to compute never waits: the first token is worth more than the next few.
        if next.base_rows > 1 {
            return Start::Now;
        }
        let (now, gain, step_us) = (next.now, next.gain, next.step_us);
        let model = &mut *self.model;
        let begun = Waiting {
            since: now,
            first: now,
            gain,
            open: next.open,
        };
        let waiting = match *self.waiting {
            None => begun,
            Some(before) if gain > before.gain + 1e-3 => {
                let share = (gain - before.gain) / before.open.max(1e-3);
                let delay = now.saturating_sub(before.since);
                model.arrivals(before.gain).observe(share, delay);
                Waiting {
                    first: before.first,
                    ..begun
                }
            }
            Some(waiting) => waiting,
        };
        *self.waiting = Some(waiting);
        // Before anything was measured: the value of a step over its cost.
        let rate = if model.rate.us > 0.0 {
            model.rate.tokens / model.rate.us
        } else {
            (1.0 + gain) / step_us
        };
        let arrivals = model.arrivals(gain);
        let pays = arrivals.lost * arrivals.share * next.open > rate * arrivals.delay_us;
        let patience_us = (arrivals.delay_us * 1.5 + 500.0).min(step_us * LONGEST);
        let until = (waiting.since + Time::from_secs_f64(patience_us * 1e-6))
            .min(waiting.first + Time::from_secs_f64(step_us * LONGEST * 1e-6));
        let waits = pays || arrivals.refused >= TRIAL;
        if waits && now < until {
            return Start::WaitAlone(until);
        }
        if waits {
            // Nothing came in time: such guesses take longer than was thought.
            let waited_us = micros(now.saturating_sub(waiting.since));
            arrivals.delay_us += LEARN * (2.0 * waited_us - arrivals.delay_us).max(0.0);
            arrivals.refused = 0;
        } else {
            arrivals.refused += 1;
        }
        Start::Now
    }

    /// Waits until every draft has finished its round, but not for a draft that is much later than drafts have been.
    pub fn for_round(&mut self, next: &NextStep) -> Start {
        let Some(steps) = next.round.filter(|_| !next.is_round_done) else {
            return Start::Now;
        };
        let limit_us = self.model.round_limit_us(steps);
        let until = next.base_since + Time::from_secs_f64(limit_us * 1e-6);
        if next.now < until {
            return Start::WaitUntil(until);
        }
        // Drafts may have become slower for good: the next round gets more time.
        if let Some(step_us) = &mut self.model.draft_step_us {
            *step_us = (*step_us * 1.5).max(LEAST_STEP_US);
        }
        Start::Now
    }
}

fn micros(time: Time) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duty::Duty;

    const MS: Time = Time::from_millis(1);

    fn next(now: Time, gain: f64) -> NextStep {
        NextStep {
            duty: Duty::Commit,
            now,
            base_since: now,
            is_round_done: false,
            is_after_miss: false,
            base_rows: 1,
            guesses: 0,
            held: 0,
            gain,
            open: 1.0,
            step_us: 20_000.0,
            round: Some(4),
        }
    }

    fn decide(model: &mut WaitModel, waiting: &mut Option<Waiting>, now: Time, gain: f64) -> Start {
        Waits { model, waiting }.while_it_pays(&next(now, gain))
    }

    #[test]
    fn a_starved_step_waits_a_little_and_a_rich_one_does_not() {
        let mut model = WaitModel::default();
        model.stepped(3, 20 * MS);
        let waits = decide(&mut model.clone(), &mut None, 100 * MS, 0.0);
        assert!(matches!(waits, Start::WaitAlone(_)));
        let rich = NextStep {
            open: 0.1,
            ..next(100 * MS, 2.5)
        };
        let mut waits = Waits {
            model: &mut model,
            waiting: &mut None,
        };
        assert_eq!(waits.while_it_pays(&rich), Start::Now);
    }

    #[test]
    fn it_waits_again_while_enough_is_open() {
        let mut model = WaitModel::default();
        for _ in 0..100 {
            model.stepped(3, 20 * MS);
        }
        let mut now = Time::ZERO;
        // Guesses come each millisecond and add half of what is open.
        for _ in 0..200 {
            let mut waiting = None;
            decide(&mut model, &mut waiting, now, 0.0);
            for gain in [0.5, 1.0, 1.5] {
                now += MS;
                decide(&mut model, &mut waiting, now, gain);
            }
            now += 20 * MS;
        }
        let mut ask = |open: f64| {
            let next = NextStep {
                open,
                ..next(now, 1.5)
            };
            Waits {
                model: &mut model,
                waiting: &mut None,
            }
            .while_it_pays(&next)
        };
        // A step earns 0.15 tokens per millisecond; of half of what is open a part comes for nothing.
        assert!(matches!(ask(0.8), Start::WaitAlone(_)));
        assert_eq!(ask(0.2), Start::Now);
    }

    #[test]
    fn it_looks_now_and_then_whether_guesses_have_become_faster() {
        let mut model = WaitModel::default();
        for _ in 0..100 {
            model.stepped(3, 20 * MS);
        }
        model.first.delay_us = 20_000.0;
        let waits = (0..300)
            .filter(|&step| {
                let now = step * 30 * MS;
                let mut waiting = None;
                let waits = decide(&mut model, &mut waiting, now, 0.0) != Start::Now;
                if waits {
                    decide(&mut model, &mut waiting, now + MS, 0.9);
                }
                waits
            })
            .collect::<alloc::vec::Vec<_>>();
        let most = waits.iter().filter(|&&step| step >= 200).count();
        assert!(waits.len() < 270 && most > 90, "{waits:?}");
    }

    #[test]
    fn no_wait_outlasts_its_bound_and_failures_teach_every_later_session() {
        let mut model = WaitModel::default();
        model.stepped(2, 20 * MS);
        let mut waits = 0;
        for round in 1..200u32 {
            // Each one is another session.
            let mut waiting = None;
            let start = round * 100 * MS;
            if let Start::WaitAlone(until) = decide(&mut model, &mut waiting, start, 0.0) {
                waits += 1;
                assert!(until <= start + 12 * MS);
                assert_eq!(decide(&mut model, &mut waiting, until, 0.0), Start::Now);
            }
            model.stepped(1, 20 * MS);
        }
        assert!(
            waits < 100,
            "guesses never come, yet it waited {waits} times"
        );
    }

    #[test]
    fn a_round_is_waited_for_as_long_as_rounds_take_and_then_some() {
        let mut model = WaitModel::default();
        let ask = |model: &mut WaitModel, now| {
            let next = NextStep {
                base_since: Time::ZERO,
                ..next(now, 0.0)
            };
            Waits {
                model,
                waiting: &mut None,
            }
            .for_round(&next)
        };
        assert_eq!(ask(&mut model, MS), Start::WaitUntil(1000 * MS));
        model.round_took(4, 8 * MS);
        assert_eq!(ask(&mut model, MS), Start::WaitUntil(34 * MS));
        assert_eq!(ask(&mut model, 34 * MS), Start::Now);
        let Start::WaitUntil(longer) = ask(&mut model, MS) else {
            panic!("it waits again");
        };
        assert!(longer > 34 * MS, "a draft that was late gets more time");
    }

    #[test]
    fn rounds_that_took_no_time_are_forgotten_when_others_are_late() {
        let mut model = WaitModel::default();
        model.round_took(4, Time::ZERO);
        let mut limit = Time::ZERO;
        for _ in 0..20 {
            let next = NextStep {
                base_since: Time::ZERO,
                ..next(1000 * MS, 0.0)
            };
            let mut waits = Waits {
                model: &mut model,
                waiting: &mut None,
            };
            assert_eq!(waits.for_round(&next), Start::Now);
            let now = NextStep {
                now: Time::ZERO,
                ..next
            };
            if let Start::WaitUntil(until) = waits.for_round(&now) {
                limit = until;
            }
        }
        assert!(limit > 100 * MS, "{limit:?}");
    }
}

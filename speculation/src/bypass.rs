//! When a target goes on without guesses: what it has measured of both ways of decoding, under each load.
//!
//! Speculation costs time that no model of rows sees: drafts and qualifiers may share the machine with the target, and
//! guesses may be waited for. So a target compares what it measures, tokens per time with guesses and without, for each
//! number of running sessions (in powers of two). While it *rests*, no guess is computed and none is asked for: drafts
//! and qualifiers stop. Once in a while it tries the other way again, for a few steps; the more that lost, the later the next
//! trial comes.

use crate::Time;

/// How a target decodes now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Guesses are verified.
    #[default]
    Speculate,
    /// No guess is computed or asked for.
    Rest,
}

/// How much is measured, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Steps after a change that are not counted: guesses made before it are still around.
    pub settle: u32,
    /// Steps of a trial that are counted.
    pub trial: u32,
    /// Steps that are counted before the first trial of resting.
    pub first: u32,
    /// The shortest time from one trial to the next; the longest is 60 times that.
    pub pause: Time,
    /// Without a trial, steps are thought to be at most this many times as long as they were if nobody made guesses.
    pub slowed_by: f64,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            settle: 4,
            trial: 12,
            first: 24,
            pause: Time::from_secs(5),
            slowed_by: 2.0,
        }
    }
}

/// The other way has to be this many times better before it is taken.
const CLEARLY: f64 = 1.03;

/// A trial that loses more than this share ends early.
const LOST: f64 = 0.75;

/// Weight of what was measured before when a step is added: about the last 60 steps count.
const DECAY: f64 = 0.984;

/// Loads are counted in powers of two: 1, 2, 3 to 4, 5 to 8, ..., up to 1024 sessions.
const LOADS: usize = 11;

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Bypass {
    plan: Plan,
    mode: Mode,
    loads: [Load; LOADS],
    /// The load of the last step.
    load: usize,
    /// Steps since the mode changed.
    steps: u32,
    is_trial: bool,
    /// Tokens that were picked since the last step ended.
    picked: usize,
    /// Time without a step since the last one ended.
    waited: Time,
}

#[derive(Clone, Copy, Debug, Default)]
struct Load {
    speculating: Rate,
    resting: Rate,
    /// The better way, as the last trial has shown.
    best: Option<Mode>,
    /// When the way that is not taken is tried again.
    trial_at: Time,
    trials_lost: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    tokens: f64,
    us: f64,
    steps: f64,
}

impl Rate {
    fn add(&mut self, tokens: usize, time: Time) {
        self.tokens = self.tokens * DECAY + tokens as f64;
        self.us = self.us * DECAY + time.as_secs_f64() * 1e6;
        self.steps = self.steps * DECAY + 1.0;
    }

    /// Tokens per microsecond; `None` before `steps` steps.
    fn known(&self, steps: u32) -> Option<f64> {
        // The decay makes `steps` steps weigh a little less than their number.
        let enough = self.steps >= f64::from(steps) * 0.8;
        (enough && self.us > 0.0).then(|| self.tokens / self.us)
    }
}

impl Load {
    fn rate(&mut self, mode: Mode) -> &mut Rate {
        match mode {
            Mode::Speculate => &mut self.speculating,
            Mode::Rest => &mut self.resting,
        }
    }
}

fn other(mode: Mode) -> Mode {
    match mode {
        Mode::Speculate => Mode::Rest,
        Mode::Rest => Mode::Speculate,
    }
}

fn load_of(sessions: usize) -> usize {
    (sessions.max(1).next_power_of_two().trailing_zeros() as usize).min(LOADS - 1)
}

impl Bypass {
    /// Nothing measured yet: it speculates.
    pub fn new(plan: Plan) -> Self {
        Bypass {
            plan,
            mode: Mode::default(),
            loads: [Load::default(); LOADS],
            load: 0,
            steps: 0,
            is_trial: false,
            picked: 0,
            waited: Time::ZERO,
        }
    }

    /// How to decode now.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A session that may rest has picked this many tokens in the step that is about to end.
    pub fn picked(&mut self, tokens: usize) {
        self.picked += tokens;
    }

    /// Nothing was computed for this long although a session was running.
    pub fn idled(&mut self, time: Time) {
        self.waited += time;
    }

    /// A step of `sessions` running sessions that may rest has ended at `now` after `took`; without guesses it would take
    /// `least_us` microseconds at least. A step that also computed prompts says nothing, and is not reported here.
    pub fn stepped(&mut self, now: Time, sessions: usize, took: Time, least_us: f64) {
        let tokens = core::mem::take(&mut self.picked);
        let time = took + core::mem::take(&mut self.waited);
        if sessions == 0 {
            return;
        }
        let load = load_of(sessions);
        if load != self.load {
            self.enter(load);
        }
        self.steps = self.steps.saturating_add(1);
        if self.steps <= self.plan.settle {
            return;
        }
        self.loads[load].rate(self.mode).add(tokens, time);
        self.decide(now, sessions as f64 / least_us.max(1.0));
    }

    /// A step that says nothing has ended.
    pub fn skipped(&mut self) {
        self.picked = 0;
        self.waited = Time::ZERO;
    }

    /// Another load than before: goes on as it did unless it knows better.
    fn enter(&mut self, load: usize) {
        self.load = load;
        self.is_trial = false;
        if let Some(best) = self.loads[load].best {
            self.change(best);
        }
    }

    fn change(&mut self, mode: Mode) {
        if mode != self.mode {
            self.mode = mode;
            self.steps = 0;
        }
    }

    fn decide(&mut self, now: Time, most: f64) {
        let plan = self.plan;
        let mode = self.mode;
        let steps = if self.is_trial {
            plan.trial
        } else {
            plan.first
        };
        let load = &mut self.loads[self.load];
        let here = load.rate(mode).known(steps);
        let there = load.rate(other(mode)).known(plan.trial);
        if self.is_trial {
            let early = load.rate(mode).known(plan.trial / 2);
            let is_lost = early.zip(there).is_some_and(|(e, t)| e < t * LOST);
            let Some(here) = here.or(early.filter(|_| is_lost)) else {
                return;
            };
            self.is_trial = false;
            if here > there.unwrap_or(0.0) * CLEARLY {
                load.best = Some(mode);
                load.trials_lost = 0;
                load.trial_at = now + plan.pause;
            } else {
                load.best = Some(other(mode));
                // A clear loss is not soon repeated.
                load.trials_lost += if is_lost { 2 } else { 1 };
                let times = 3_u32.saturating_pow(load.trials_lost).min(60);
                load.trial_at = now + plan.pause * times;
                self.change(other(mode));
            }
            return;
        }
        let Some(here) = here else {
            return;
        };
        let is_due = now >= load.trial_at;
        // Resting cannot beat this: then it is not tried.
        let is_plausible = mode == Mode::Rest || here < most;
        if is_due && is_plausible {
            *load.rate(other(mode)) = Rate::default();
            self.is_trial = true;
            self.change(other(mode));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Time = Time::from_millis(1);

    /// A target whose steps take `speculating` and yield `tokens` for each session, or take `resting` and yield one.
    struct Target {
        bypass: Bypass,
        now: Time,
        sessions: usize,
        speculating: Time,
        tokens: f64,
        resting: Time,
        /// Steps in each mode.
        steps: [u32; 2],
    }

    impl Target {
        fn new(speculating: Time, tokens: f64, resting: Time) -> Target {
            Target {
                bypass: Bypass::new(Plan::default()),
                now: Time::ZERO,
                sessions: 8,
                speculating,
                tokens,
                resting,
                steps: [0; 2],
            }
        }

        fn run(&mut self, time: Time) {
            let until = self.now + time;
            self.steps = [0; 2];
            while self.now < until {
                let (took, tokens) = match self.bypass.mode() {
                    Mode::Speculate => (self.speculating, self.tokens * self.sessions as f64),
                    Mode::Rest => (self.resting, self.sessions as f64),
                };
                self.steps[self.bypass.mode() as usize] += 1;
                self.now += took;
                self.bypass.picked(tokens as usize);
                let least_us = took.as_secs_f64() * 1e6 / Plan::default().slowed_by;
                (self.bypass).stepped(self.now, self.sessions, took, least_us);
            }
        }

        fn resting_share(&self) -> f64 {
            f64::from(self.steps[1]) / f64::from(self.steps[0] + self.steps[1])
        }
    }

    #[test]
    fn where_guesses_cost_more_than_they_yield_it_rests_after_the_first_trial() {
        let mut target = Target::new(25 * MS, 1.9, 10 * MS);
        target.run(Time::from_secs(2));
        assert_eq!(target.bypass.mode(), Mode::Rest);
        target.run(Time::from_secs(600));
        assert!(target.resting_share() > 0.99, "{:?}", target.steps);
    }

    #[test]
    fn where_guesses_pay_resting_is_tried_ever_more_rarely() {
        let mut target = Target::new(12 * MS, 1.9, 10 * MS);
        target.run(Time::from_secs(600));
        assert!(target.resting_share() < 0.01, "{:?}", target.steps);
        assert!(target.steps[1] > 0, "it was tried");
    }

    #[test]
    fn what_cannot_win_is_not_tried() {
        let mut target = Target::new(20 * MS, 3.0, 20 * MS);
        target.run(Time::from_secs(600));
        assert_eq!(target.steps[1], 0);
    }

    #[test]
    fn it_speculates_again_when_the_load_falls_and_remembers_each_load() {
        let mut target = Target::new(25 * MS, 1.9, 10 * MS);
        target.run(Time::from_secs(2));
        assert_eq!(target.bypass.mode(), Mode::Rest);
        (target.sessions, target.speculating, target.tokens) = (1, 12 * MS, 2.0);
        target.run(Time::from_secs(2));
        assert_eq!(target.bypass.mode(), Mode::Speculate);
        (target.sessions, target.speculating, target.tokens) = (8, 25 * MS, 1.9);
        target.run(100 * MS);
        assert_eq!(target.bypass.mode(), Mode::Rest, "known from before");
    }

    #[test]
    fn two_ways_that_are_worth_the_same_do_not_alternate() {
        let mut target = Target::new(20 * MS, 2.0, 10 * MS);
        let mut changes = 0;
        let mut mode = target.bypass.mode();
        for _ in 0..60_000 {
            target.run(10 * MS);
            changes += u32::from(target.bypass.mode() != mode);
            mode = target.bypass.mode();
        }
        assert!(changes < 30, "{changes} changes in ten minutes");
    }

    #[test]
    fn loads_are_powers_of_two() {
        let loads = [1, 2, 3, 4, 5, 8, 9, 1024, 1_000_000].map(load_of);
        assert_eq!(loads, [0, 1, 2, 2, 3, 3, 4, 10, 10]);
    }
}

//! Which guesses a target verifies: what it has measured of each way of decoding, under each load.
//!
//! Speculation costs time that no model of rows sees: drafts and qualifiers may share the machine with the target, and
//! guesses may be waited for. So a target compares what it measures, tokens per time with all guesses, with those that it
//! looks up itself, and with none, for each number of running sessions (in powers of two). Where drafts compute on its device, or
//! only one session is running, it also compares taking turns with them: then neither slows the other down, be it because a host
//! is short of cores. [`Way::Alone`] and [`Way::Plain`] let drafts
//! and qualifiers *rest*: nothing is asked of them. Once in a while it tries another way, for a few steps; the more that lost,
//! the later the next trial comes.
//!
//! Steps that compute prompts are not counted: their lengths would hide everything else. But the time that prompts take is: a
//! way that makes texts faster gains nothing in it, and where the gain of both together is small, fewer guesses are better, since they
//! leave more to prompts and pauses between tokens are even. What others cost in those steps is not seen, so that the more
//! sessions share a device with drafts, the more clearly these have to win.

use crate::Time;

/// Which guesses a target verifies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// Those of drafts and qualifiers, and its own.
    #[default]
    Together,
    /// Those of drafts, which stop while the target computes, as it does while they do, and its own.
    Turns,
    /// Those that it looks up itself.
    Alone,
    /// None.
    Plain,
}

impl Way {
    /// In the order in which they are tried if nothing is known.
    const ALL: [Way; 4] = [Way::Turns, Way::Together, Way::Alone, Way::Plain];

    /// Whether others make guesses.
    pub fn has_others(self) -> bool {
        self.mode() != Mode::Rest
    }

    /// What drafts and qualifiers do then.
    pub fn mode(self) -> Mode {
        match self {
            Way::Together => Mode::Speculate,
            Way::Turns => Mode::Turns,
            Way::Alone | Way::Plain => Mode::Rest,
        }
    }
}

/// What drafts and qualifiers do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They make guesses.
    #[default]
    Speculate,
    /// Drafts make a round of guesses behind each commit, and the target waits for it. Nothing is asked of qualifiers.
    Turns,
    /// Nothing is asked of them.
    Rest,
}

/// How much is measured, and how often.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Steps after a change that are not counted: guesses made before it are still around.
    pub settle: u32,
    /// Steps of a trial that are counted.
    pub trial: u32,
    /// The shortest time of a trial: one pause of a busy machine must not decide it.
    pub trial_time: Time,
    /// Steps that are counted before the first trial.
    pub first: u32,
    /// The shortest time from one trial of a way to its next; the longest is 60 times that.
    pub pause: Time,
    /// Without a trial, steps are thought to be at most this many times as long as they were if nobody made guesses.
    pub slowed_by: f64,
}

impl Default for Plan {
    fn default() -> Self {
        Plan {
            settle: 4,
            trial: 12,
            trial_time: Time::from_millis(250),
            first: 24,
            pause: Time::from_secs(5),
            slowed_by: 2.0,
        }
    }
}

/// A step of running sessions, as it was measured.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Running sessions that may go on without guesses.
    pub sessions: usize,
    /// How long it lasted.
    pub took: Time,
    /// How long it would last without guesses at least, in microseconds.
    pub least_us: f64,
    /// Whether drafts or qualifiers compute on the target's device.
    pub is_shared: bool,
}

/// A way with more guesses has to be this many times better before it is taken, prompts included.
const CLEARLY: f64 = 1.03;

/// A way with fewer guesses is taken if it is at least this good: none is better for its own sake.
const AS_GOOD: f64 = 0.99;

/// What it has to be better in addition where drafts compute on the target's device, for each doubling of the sessions.
const CROWDED: f64 = 0.1;

/// Trials in a row that a way with more guesses has to win where drafts compute on the target's device, and turns in any case.
const WINS: u32 = 2;

/// Steps beside drafts have to be this many times as long as in turns before turns are taken on a device that nobody shares.
const SLOWED: f64 = 1.15;

/// A trial that loses more than this share ends early.
const LOST: f64 = 0.75;

/// Weight of what was measured before when a step is added: about the last 120 steps count.
const DECAY: f64 = 0.992;

/// Loads are counted in powers of two: 1, 2, 3 to 4, 5 to 8, ..., up to 1024 sessions.
const LOADS: usize = 11;

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Bypass {
    plan: Plan,
    way: Way,
    loads: [Load; LOADS],
    /// The load of the last step.
    load: usize,
    /// Steps since the way changed.
    steps: u32,
    /// While another way is tried: the one that it is compared with.
    trial_of: Option<Way>,
    /// Tokens that were picked since the last step ended.
    picked: usize,
    /// Time without a step since the last one ended.
    waited: Time,
}

/// What is known under one load.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    records: [Record; 4],
    /// The best way, as the last trial has shown.
    best: Option<Way>,
    /// Microseconds that texts and prompts took of late.
    texts_us: f64,
    prompts_us: f64,
}

/// What is known of one way.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    rate: Rate,
    /// When it is tried again, if it is not the one that is taken.
    trial_at: Time,
    trials_lost: u32,
    /// Trials won in a row, while it is not taken yet.
    wins: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    tokens: f64,
    /// All time, and that of steps alone.
    us: f64,
    step_us: f64,
    steps: f64,
}

impl Rate {
    /// The mean length of a step, microseconds.
    fn step_length(&self) -> f64 {
        self.step_us / self.steps.max(1.0)
    }

    fn add(&mut self, tokens: usize, time: Time, took: Time) {
        self.tokens = self.tokens * DECAY + tokens as f64;
        self.us = self.us * DECAY + time.as_secs_f64() * 1e6;
        self.step_us = self.step_us * DECAY + took.as_secs_f64() * 1e6;
        self.steps = self.steps * DECAY + 1.0;
    }

    /// Tokens per microsecond; `None` before `steps` steps.
    fn known(&self, steps: u32) -> Option<f64> {
        // The decay makes `steps` steps weigh a little less than their number.
        let enough = self.steps >= f64::from(steps) * 0.8;
        (enough && self.us > 0.0).then(|| self.tokens / self.us)
    }

    /// The same of a trial, as a share of a whole one.
    fn tried(&self, plan: &Plan, share: f64) -> Option<f64> {
        let steps = (f64::from(plan.trial) * share) as u32;
        let us = plan.trial_time.as_secs_f64() * 1e6 * share;
        self.known(steps).filter(|_| self.us >= us * 0.8)
    }
}

impl Load {
    fn of(&mut self, way: Way) -> &mut Record {
        &mut self.records[way as usize]
    }

    fn took(&mut self, texts: Time, prompts: Time) {
        for (all, time) in [(&mut self.texts_us, texts), (&mut self.prompts_us, prompts)] {
            *all = *all * DECAY + time.as_secs_f64() * 1e6;
        }
    }

    /// How many times faster all is if texts are this many times faster.
    fn gain(&self, of_texts: f64) -> f64 {
        let all = self.texts_us + self.prompts_us;
        all / (self.texts_us / of_texts + self.prompts_us)
    }
}

fn load_of(sessions: usize) -> usize {
    (sessions.max(1).next_power_of_two().trailing_zeros() as usize).min(LOADS - 1)
}

impl Bypass {
    /// Nothing measured yet: it verifies all guesses.
    pub fn new(plan: Plan) -> Self {
        Bypass {
            plan,
            way: Way::default(),
            loads: [Load::default(); LOADS],
            load: 0,
            steps: 0,
            trial_of: None,
            picked: 0,
            waited: Time::ZERO,
        }
    }

    /// How to decode now.
    pub fn way(&self) -> Way {
        self.way
    }

    /// A session that may rest begins, whose drafts or qualifiers may compute on the target's device. While nothing is
    /// known, those of a shared device are left out: what they yield is tried soon, what they cost nobody should find out
    /// from a first request.
    pub fn opened(&mut self, is_shared: bool) {
        let mut records = self.loads.iter().flat_map(|load| &load.records);
        if records.all(|record| record.rate.steps == 0.0) {
            self.change(if is_shared { Way::Alone } else { Way::Together });
        }
    }

    /// A step has ended that computed prompts too: how long it lasted, and for what share of that for the sake of prompts.
    pub fn prompted(&mut self, took: Time, share: f64) {
        let prompts = Time::from_secs_f64(took.as_secs_f64() * share.clamp(0.0, 1.0));
        self.loads[self.load].took(took.saturating_sub(prompts), prompts);
        self.skipped();
    }

    /// A session that may rest has picked this many tokens in the step that is about to end.
    pub fn picked(&mut self, tokens: usize) {
        self.picked += tokens;
    }

    /// Nothing was computed for this long although a session was running.
    pub fn idled(&mut self, time: Time) {
        self.waited += time;
    }

    /// A step has ended at `now`. One that also computed prompts says nothing, and is not reported here.
    pub fn stepped(&mut self, now: Time, step: Step) {
        let tokens = core::mem::take(&mut self.picked);
        let time = step.took + core::mem::take(&mut self.waited);
        if step.sessions == 0 {
            return;
        }
        let load = load_of(step.sessions);
        if load != self.load {
            self.enter(load, step.is_shared);
        }
        self.loads[load].took(time, Time::ZERO);
        self.steps = self.steps.saturating_add(1);
        if self.steps <= self.plan.settle {
            return;
        }
        self.loads[load]
            .of(self.way)
            .rate
            .add(tokens, time, step.took);
        match self.trial_of {
            Some(before) => self.judge(now, step, before),
            None => self.look_for_trial(now, step),
        }
    }

    /// A step that says nothing has ended.
    pub fn skipped(&mut self) {
        self.picked = 0;
        self.waited = Time::ZERO;
    }

    /// Another load than before: goes on as it did unless it knows better. Where nothing is known, several sessions that share
    /// the target's device with drafts begin plainly: its rows are likely to cost what they are worth.
    fn enter(&mut self, load: usize, is_shared: bool) {
        self.load = load;
        if let Some(before) = self.trial_of.take() {
            self.change(before);
        }
        if self.loads[load].best.is_none() {
            self.foresee(load, is_shared);
        }
        if let Some(best) = self.loads[load].best {
            self.change(best);
        } else if is_shared && load > 0 && self.way == Way::Alone {
            self.change(Way::Plain);
        }
    }

    /// Under a load that is new it begins as under the nearest one that is known. The more sessions, the less guesses
    /// pay: what did not under a lower load is tried here no sooner, and plain decoding likewise if it lost under a higher
    /// one.
    fn foresee(&mut self, load: usize, is_shared: bool) {
        let is_known = |known: &&Load| known.best.is_some();
        let lower = self.loads[..load].iter().rev().find(is_known);
        let higher = self.loads[load + 1..].iter().find(is_known);
        let (known, ways) = match (lower, higher) {
            (Some(lower), _) => (*lower, &[Way::Together, Way::Turns, Way::Alone][..]),
            (None, Some(higher)) => (*higher, &[Way::Plain][..]),
            (None, None) => return,
        };
        let here = &mut self.loads[load];
        // Several sessions fill the time of a turn with each other's steps.
        here.best = match known.best {
            Some(Way::Turns) if !is_shared && load > 0 => Some(Way::Together),
            best => best,
        };
        for &way in ways {
            let Record {
                trial_at,
                trials_lost,
                ..
            } = known.records[way as usize];
            let record = here.of(way);
            (record.trial_at, record.trials_lost) = (trial_at, trials_lost);
        }
    }

    fn change(&mut self, way: Way) {
        if way != self.way {
            self.way = way;
            self.steps = 0;
        }
    }

    /// Ends the trial if enough is known.
    fn judge(&mut self, now: Time, step: Step, before: Way) {
        let plan = self.plan;
        let way = self.way;
        let load = &mut self.loads[self.load];
        let there = load.of(before).rate.known(plan.trial);
        let rate = load.of(way).rate;
        let early = rate.tried(&plan, 0.5);
        let is_lost = early.zip(there).is_some_and(|(e, t)| e < t * LOST);
        let Some(here) = rate.tried(&plan, 1.0).or(early.filter(|_| is_lost)) else {
            return;
        };
        self.trial_of = None;
        let is_more = (way as usize) < before as usize;
        // What one lucky trial shows is not enough there.
        let is_doubted = is_more && (step.is_shared || way == Way::Turns);
        let is_crowding = step.is_shared && is_more;
        let needed = match (is_more, is_crowding && way.has_others()) {
            (true, true) => CLEARLY + CROWDED * self.load as f64,
            (true, false) => CLEARLY,
            (false, _) => AS_GOOD,
        };
        let is_faster = there.is_none_or(|there| load.gain(here / there) > needed);
        // On a device of its own a target gains by turns only what others take from it all the same.
        let is_slowed = load.of(before).rate.step_length() > rate.step_length() * SLOWED;
        let is_won = is_faster && (step.is_shared || way != Way::Turns || is_slowed);
        load.of(way).wins = if is_won { load.of(way).wins + 1 } else { 0 };
        if is_won && is_doubted && load.of(way).wins < WINS {
            load.of(way).trial_at = now;
            return self.change(before);
        }
        let (loser, lost) = if is_won {
            load.best = Some(way);
            load.of(way).trials_lost = 0;
            (before, 0)
        } else {
            load.best = Some(before);
            // A clear loss is not soon repeated.
            let more = if is_lost { 2 } else { 1 };
            (way, load.of(way).trials_lost + more)
        };
        let record = load.of(loser);
        record.trials_lost = lost;
        record.trial_at = now + plan.pause * 3_u32.saturating_pow(lost).min(60);
        self.change(if loser == way { before } else { way });
    }

    /// Begins a trial of the way that has been due for the longest time, if any is.
    fn look_for_trial(&mut self, now: Time, step: Step) {
        let load = &mut self.loads[self.load];
        let here = load.of(self.way).rate.known(self.plan.first);
        let since = self.steps.saturating_sub(self.plan.settle);
        let Some(here) = here.filter(|_| since >= self.plan.first) else {
            return;
        };
        let most = step.sessions as f64 / step.least_us.max(1.0);
        let is_plausible = |way: Way| match way {
            Way::Together => true,
            Way::Turns => step.is_shared || self.load == 0,
            // What is gained is the time that others take from the target.
            Way::Alone => step.is_shared || self.way == Way::Plain,
            Way::Plain => here < most,
        };
        // Where they share a device, the first trial with others comes the later, the more sessions there are: each of
        // them has to be opened there first, and it pays less. Where they do not, turns are not likely to pay.
        let pauses = if step.is_shared { self.load as u32 } else { 1 };
        for way in [Way::Turns, Way::Together] {
            let others = load.of(way);
            if others.trial_at == Time::ZERO && (step.is_shared || way == Way::Turns) {
                others.trial_at = now + self.plan.pause * pauses;
            }
        }
        let due = Way::ALL
            .into_iter()
            .filter(|&way| way != self.way && is_plausible(way))
            .filter(|&way| now >= load.records[way as usize].trial_at)
            .min_by_key(|&way| load.records[way as usize].trial_at);
        if let Some(way) = due {
            load.of(way).rate = Rate::default();
            self.trial_of = Some(self.way);
            self.change(way);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Time = Time::from_millis(1);

    /// A target whose steps take `speculating` and yield `tokens` for each session, or take `alone` and yield `looked_up`,
    /// or take `resting` and yield one.
    struct Target {
        bypass: Bypass,
        now: Time,
        sessions: usize,
        speculating: Time,
        tokens: f64,
        /// The same where they take turns.
        in_turns: (Time, f64),
        alone: Time,
        looked_up: f64,
        resting: Time,
        is_shared: bool,
        /// Steps in each way.
        steps: [u32; 4],
    }

    impl Target {
        fn new(speculating: Time, tokens: f64, resting: Time) -> Target {
            Target {
                bypass: Bypass::new(Plan::default()),
                now: Time::ZERO,
                sessions: 8,
                speculating,
                tokens,
                in_turns: (speculating + resting, 1.0),
                alone: resting,
                looked_up: 1.0,
                resting,
                is_shared: false,
                steps: [0; 4],
            }
        }

        fn run(&mut self, time: Time) {
            let until = self.now + time;
            self.steps = [0; 4];
            while self.now < until {
                let (took, tokens) = match self.bypass.way() {
                    Way::Together => (self.speculating, self.tokens * self.sessions as f64),
                    Way::Turns => (self.in_turns.0, self.in_turns.1 * self.sessions as f64),
                    Way::Alone => (self.alone, self.looked_up * self.sessions as f64),
                    Way::Plain => (self.resting, self.sessions as f64),
                };
                self.steps[self.bypass.way() as usize] += 1;
                self.now += took;
                self.bypass.picked(tokens as usize);
                let least_us = took.as_secs_f64() * 1e6 / Plan::default().slowed_by;
                let step = Step {
                    sessions: self.sessions,
                    took,
                    least_us,
                    is_shared: self.is_shared,
                };
                (self.bypass).stepped(self.now, step);
            }
        }

        fn resting_share(&self) -> f64 {
            let all: u32 = self.steps.iter().sum();
            f64::from(all - self.steps[0] - self.steps[1]) / f64::from(all)
        }
    }

    #[test]
    fn where_guesses_cost_more_than_they_yield_it_rests_after_the_first_trial() {
        let mut target = Target::new(25 * MS, 1.9, 10 * MS);
        target.run(Time::from_secs(2));
        assert_eq!(target.bypass.way(), Way::Plain);
        target.run(Time::from_secs(600));
        assert!(target.resting_share() > 0.99, "{:?}", target.steps);
    }

    #[test]
    fn where_guesses_pay_resting_is_tried_ever_more_rarely() {
        let mut target = Target::new(12 * MS, 1.9, 10 * MS);
        target.run(Time::from_secs(600));
        assert!(target.resting_share() < 0.01, "{:?}", target.steps);
        assert!(target.steps[3] > 0, "it was tried");
    }

    #[test]
    fn what_cannot_win_is_not_tried() {
        let mut target = Target::new(20 * MS, 3.0, 20 * MS);
        target.run(Time::from_secs(600));
        assert_eq!(target.steps[1..], [0, 0, 0]);
    }

    #[test]
    fn it_speculates_again_when_the_load_falls_and_remembers_each_load() {
        let mut target = Target::new(25 * MS, 1.9, 10 * MS);
        target.run(Time::from_secs(2));
        assert_eq!(target.bypass.way(), Way::Plain);
        (target.sessions, target.speculating, target.tokens) = (1, 12 * MS, 2.0);
        target.run(Time::from_secs(2));
        assert_eq!(target.bypass.way(), Way::Together);
        (target.sessions, target.speculating, target.tokens) = (8, 25 * MS, 1.9);
        target.run(100 * MS);
        assert_eq!(target.bypass.way(), Way::Plain, "known from before");
    }

    #[test]
    fn where_drafts_slow_the_target_down_its_own_guesses_are_tried_without_them() {
        let mut target = Target::new(25 * MS, 3.0, 10 * MS);
        (target.alone, target.looked_up) = (11 * MS, 1.8);
        target.run(Time::from_secs(5));
        assert_eq!(
            target.bypass.way(),
            Way::Together,
            "nobody shares its device"
        );
        assert_eq!(target.steps[1..=2], [0, 0]);
        target.is_shared = true;
        target.bypass.opened(true);
        assert_ne!(target.bypass.way(), Way::Alone, "something is known");
        target.run(Time::from_secs(10));
        assert_eq!(target.bypass.way(), Way::Alone);
        target.run(Time::from_secs(600));
        assert!(target.steps[2] > target.steps[0] * 50, "{:?}", target.steps);
        (target.speculating, target.tokens) = (12 * MS, 3.0);
        target.run(Time::from_secs(600));
        assert_eq!(target.bypass.way(), Way::Together);
    }

    #[test]
    fn on_a_shared_device_it_begins_alone_and_tries_the_others_soon() {
        let mut target = Target::new(12 * MS, 3.0, 10 * MS);
        (target.alone, target.looked_up, target.is_shared) = (11 * MS, 1.8, true);
        target.bypass.opened(true);
        assert_eq!(target.bypass.way(), Way::Alone);
        target.run(Time::from_secs(10));
        assert_eq!(target.steps[..2], [0, 0], "with eight sessions not at once");
        target.run(Time::from_secs(10));
        assert_eq!(target.bypass.way(), Way::Together);
    }

    /// A small draft on the card of a large target: what it reads from memory, the target cannot.
    #[test]
    fn where_they_would_slow_each_other_down_they_take_turns() {
        let mut target = Target::new(11 * MS, 3.0, 6 * MS);
        (target.in_turns, target.is_shared) = ((10 * MS, 3.2), true);
        target.sessions = 1;
        target.bypass.opened(true);
        target.run(Time::from_secs(10));
        assert_eq!(target.bypass.way(), Way::Turns);
        target.run(Time::from_secs(600));
        let others = target.steps[0] + target.steps[2] + target.steps[3];
        assert!(target.steps[1] > others * 20, "{:?}", target.steps);
        // On a device of their own they need not, unless something else slows them down.
        let mut target = Target::new(11 * MS, 3.0, 6 * MS);
        (target.in_turns, target.sessions) = ((14 * MS, 3.2), 1);
        target.run(Time::from_secs(600));
        assert!(target.steps[1] * 50 < target.steps[0], "{:?}", target.steps);
        target.in_turns.0 = 9 * MS;
        target.run(Time::from_secs(600));
        assert!(target.steps[1] > target.steps[0], "{:?}", target.steps);
        target.sessions = 8;
        target.run(Time::from_secs(600));
        assert!(target.steps[1] <= 1, "others fill the time of a turn");
        // Steps are as long without drafts: what was gained was luck.
        let mut target = Target::new(11 * MS, 3.0, 6 * MS);
        (target.in_turns, target.sessions) = ((11 * MS, 4.0), 1);
        target.run(Time::from_secs(600));
        assert!(target.steps[1] * 50 < target.steps[0], "{:?}", target.steps);
    }

    #[test]
    fn one_lucky_trial_is_not_enough_where_they_share_a_device() {
        let mut target = Target::new(12 * MS, 3.0, 10 * MS);
        (target.alone, target.is_shared) = (12 * MS, true);
        target.bypass.opened(true);
        let tries_together = |target: &mut Target| {
            let mut steps = 0;
            while steps == 0 {
                target.run(10 * MS);
                steps = target.steps[Way::Together as usize];
            }
        };
        tries_together(&mut target);
        target.run(400 * MS);
        assert_ne!(target.bypass.way(), Way::Together, "it has won once");
        target.tokens = 0.9;
        tries_together(&mut target);
        target.run(Time::from_secs(60));
        assert!(target.steps[0] * 20 < target.steps[3], "{:?}", target.steps);
    }

    /// Texts that are decoded a tenth faster are no gain where nearly all time goes to prompts.
    #[test]
    fn what_texts_gain_counts_by_the_share_of_time_that_they_have() {
        for (prompts, way) in [(Time::ZERO, Way::Together), (200 * MS, Way::Plain)] {
            let mut target = Target::new(18 * MS, 2.0, 10 * MS);
            let mut steps = [0; 4];
            for _ in 0..30_000 {
                target.run(10 * MS);
                target.bypass.prompted(prompts, 1.0);
                steps[target.bypass.way() as usize] += 1;
            }
            assert!(steps[way as usize] > 29_000, "{way:?}: {steps:?}");
        }
    }

    #[test]
    fn two_ways_that_are_worth_the_same_do_not_alternate() {
        let mut target = Target::new(20 * MS, 2.0, 10 * MS);
        let mut changes = 0;
        let mut way = target.bypass.way();
        for _ in 0..60_000 {
            target.run(10 * MS);
            changes += u32::from(target.bypass.way() != way);
            way = target.bypass.way();
        }
        assert!(changes < 30, "{changes} changes in ten minutes");
    }

    #[test]
    fn a_new_load_begins_with_what_the_nearest_one_has_shown() {
        let mut target = Target::new(25 * MS, 1.9, 10 * MS);
        target.sessions = 2;
        target.run(Time::from_secs(2));
        assert_eq!(target.bypass.way(), Way::Plain);
        target.sessions = 8;
        target.run(Time::from_secs(2));
        assert_eq!(target.steps[..3], [0, 0, 0], "guesses pay even less");
        // Down again, to where they may pay.
        (target.sessions, target.speculating, target.tokens) = (1, 12 * MS, 2.0);
        target.run(Time::from_secs(2));
        assert_eq!(target.bypass.way(), Way::Together);
    }

    #[test]
    fn loads_are_powers_of_two() {
        let loads = [1, 2, 3, 4, 5, 8, 9, 1024, 1_000_000].map(load_of);
        assert_eq!(loads, [0, 1, 2, 2, 3, 3, 4, 10, 10]);
    }
}

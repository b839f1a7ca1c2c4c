//! Where the life of a session goes: computing, waiting for others (a bubble), or parked.

use speculation::Time;
use speculation::message::Activity;

/// What a session was doing since the last time anyone looked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It has work in a step or ready for the next one.
    Working,
    /// It waits for others.
    Waiting,
    /// More work has no value for now.
    Parked,
    /// Its text is complete.
    Done,
}

/// The account of one session.
#[derive(Debug)]
pub(crate) struct Account {
    opened: Time,
    ended: Option<Time>,
    pub(crate) mood: Mood,
    pub(crate) totals: Activity,
}

impl Account {
    pub(crate) fn new(now: Time) -> Self {
        Account {
            opened: now,
            ended: None,
            mood: Mood::Working,
            totals: Activity::default(),
        }
    }

    /// The worker was idle for this long.
    pub(crate) fn idled(&mut self, time: Time) {
        match self.mood {
            Mood::Waiting | Mood::Working => self.totals.bubble_us += micros(time),
            Mood::Parked => self.totals.parked_us += micros(time),
            Mood::Done => {}
        }
    }

    /// A step with `rows` rows of this session took this long.
    pub(crate) fn stepped(&mut self, rows: usize, time: Time) {
        self.totals.steps += 1;
        self.totals.rows += rows as u64;
        self.totals.busy_us += micros(time);
    }

    /// A step was given up after this long.
    pub(crate) fn abandoned(&mut self, time: Time) {
        self.totals.abandoned_steps += 1;
        self.totals.busy_us += micros(time);
    }

    pub(crate) fn finish(&mut self, now: Time) {
        self.mood = Mood::Done;
        self.ended.get_or_insert(now);
    }

    pub(crate) fn read(&self, now: Time) -> Activity {
        Activity {
            life_us: micros(self.ended.unwrap_or(now).saturating_sub(self.opened)),
            ..self.totals
        }
    }
}

fn micros(time: Time) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

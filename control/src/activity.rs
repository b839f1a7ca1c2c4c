//! Where the time of a session on a worker goes: computing, waiting for others (a bubble), or parked.

use speculation::Time;
use speculation::message::Activity;

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
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
pub struct Account {
    opened: Time,
    ended: Option<Time>,
    status: Status,
    totals: Activity,
}

impl Account {
    /// A session that is opened now.
    pub fn new(now: Time) -> Self {
        Account {
            opened: now,
            ended: None,
            status: Status::Working,
            totals: Activity::default(),
        }
    }

    /// The worker was idle for this long.
    pub fn idled(&mut self, time: Time) {
        match self.status {
            Status::Waiting | Status::Working => self.totals.bubble_us += micros(time),
            Status::Parked => self.totals.parked_us += micros(time),
            Status::Done => {}
        }
    }

    /// A step with `rows` rows of this session took this long.
    pub fn stepped(&mut self, rows: usize, time: Time) {
        self.totals.steps += 1;
        self.totals.rows += rows as u64;
        self.totals.busy_us += micros(time);
    }

    /// A step was given up after this long.
    pub fn abandoned(&mut self, time: Time) {
        self.totals.abandoned_steps += 1;
        self.totals.busy_us += micros(time);
    }

    /// Its text is complete.
    pub fn finish(&mut self, now: Time) {
        self.status = Status::Done;
        self.ended.get_or_insert(now);
    }

    /// What it is doing.
    pub fn status(&self) -> Status {
        self.status
    }

    /// What it does from now on.
    pub fn set(&mut self, status: Status) {
        self.status = status;
    }

    /// The totals up to now.
    pub fn read(&self, now: Time) -> Activity {
        Activity {
            life_us: micros(self.ended.unwrap_or(now).saturating_sub(self.opened)),
            ..self.totals
        }
    }
}

fn micros(time: Time) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

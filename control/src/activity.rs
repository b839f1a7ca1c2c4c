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

    /// What it does from now on. A text that was complete for an advisor may go on.
    pub fn set(&mut self, status: Status) {
        self.status = status;
        self.ended = None;
    }

    /// Its stream is lost: it rests, unless its text is complete.
    pub fn rest(&mut self) {
        if self.status != Status::Done {
            self.status = Status::Parked;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Time = Time::from_millis(1);

    /// No session accounts for more time than it has lived.
    fn is_sound(account: &Account, now: Time) -> bool {
        let totals = account.read(now);
        totals.busy_us + totals.bubble_us + totals.parked_us <= totals.life_us
    }

    #[test]
    fn a_complete_session_that_loses_its_stream_is_not_parked() {
        let mut account = Account::new(Time::ZERO);
        account.finish(MS);
        account.rest();
        account.idled(5 * MS);
        assert!(is_sound(&account, 6 * MS) && account.status() == Status::Done);
    }

    #[test]
    fn a_session_that_goes_on_lives_on() {
        let mut account = Account::new(Time::ZERO);
        account.finish(MS);
        account.set(Status::Working);
        account.stepped(1, 5 * MS);
        assert!(is_sound(&account, 6 * MS));
        account.finish(6 * MS);
        assert_eq!(account.read(9 * MS).life_us, 6000);
    }
}

//! Parking: when a session gives its workers up because its client takes nothing of the text, and when it goes on. The text
//! is safe meanwhile: it goes on by replay, as behind a lost target.

use speculation::Time;
use speculation::relay::WorkerKey;

/// What a session knows of a client that takes nothing.
#[derive(Clone, Debug)]
pub struct Parking {
    /// How long workers are kept for such a client.
    patience: Time,
    /// Since when the text stands because of it.
    since: Option<Time>,
    /// The session is parked; this was its target.
    target: Option<WorkerKey>,
}

/// What is to be done about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Stay,
    /// Every worker is to be left.
    Park,
    /// The text may go on; this was its target.
    Resume(WorkerKey),
}

impl Parking {
    /// Workers are kept this long for a client that takes nothing.
    pub fn new(patience: Time) -> Self {
        Parking {
            patience,
            since: None,
            target: None,
        }
    }

    /// Whether the session is parked.
    pub fn is_parked(&self) -> bool {
        self.target.is_some()
    }

    /// The client has taken something.
    pub fn handle_taken(&mut self) {
        self.since = None;
    }

    /// A look at the text: whether it stands because of its client.
    pub fn look(&mut self, now: Time, is_standing: bool) -> Verdict {
        if !is_standing {
            self.since = None;
            return (self.target.take()).map_or(Verdict::Stay, Verdict::Resume);
        }
        let since = *self.since.get_or_insert(now);
        if self.is_parked() || now.saturating_sub(since) < self.patience {
            Verdict::Stay
        } else {
            Verdict::Park
        }
    }

    /// The session has left its workers, of which this was the target.
    pub fn handle_parked(&mut self, target: WorkerKey) {
        self.target = Some(target);
    }

    /// When to look again although nothing has happened.
    pub fn wake(&self, now: Time) -> Option<Time> {
        let since = self.since.filter(|_| !self.is_parked())?;
        Some(since + self.patience).filter(|&at| at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: WorkerKey = WorkerKey(3);
    const PATIENCE: Time = Time::from_secs(5);

    #[test]
    fn a_client_has_its_time_each_time_it_has_taken_something() {
        let mut parking = Parking::new(PATIENCE);
        let start = Time::from_secs(1);
        assert_eq!(parking.look(start, false), Verdict::Stay);
        assert_eq!(parking.wake(start), None);
        assert_eq!(parking.look(start, true), Verdict::Stay);
        assert_eq!(parking.wake(start), Some(start + PATIENCE));
        let later = start + PATIENCE / 2;
        parking.handle_taken();
        assert_eq!(parking.look(later, true), Verdict::Stay);
        assert_eq!(parking.look(start + PATIENCE, true), Verdict::Stay);
        assert_eq!(parking.look(later + PATIENCE, true), Verdict::Park);
    }

    #[test]
    fn who_is_parked_stays_so_until_the_client_has_taken_enough() {
        let mut parking = Parking::new(PATIENCE);
        assert_eq!(parking.look(Time::ZERO, true), Verdict::Stay);
        assert_eq!(parking.look(PATIENCE, true), Verdict::Park);
        parking.handle_parked(KEY);
        parking.handle_taken();
        for at in [PATIENCE, 9 * PATIENCE] {
            assert_eq!(parking.look(at, true), Verdict::Stay);
            assert_eq!(parking.wake(at), None);
        }
        assert_eq!(parking.look(10 * PATIENCE, false), Verdict::Resume(KEY));
        assert_eq!(parking.look(10 * PATIENCE, false), Verdict::Stay);
    }
}

//! Admission: how many completions of a coordinator run and wait, and when requests are refused. Which of those that
//! wait is next is decided by the one queue, [`crate::placement`].

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use speculation::Time;

/// The shortest and the longest time after which a refused client may try again.
const RETRY: (Time, Time) = (Time::from_millis(100), Time::from_secs(30));

/// A client may have this many times as many places as are free, so that it cannot have all of them (dynamic thresholds,
/// Choudhury and Hahne 1998). One client alone gets eight ninths.
const SHARE: usize = 8;

/// So many of the newest completions say how long one runs.
const NEWEST: usize = 16;

/// There is no room for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull {
    /// Completions that run.
    pub running: usize,
    /// Completions that wait.
    pub queued: usize,
    /// When there may be room again.
    pub retry: Time,
    /// There is room for so many, and it is left to clients that have less.
    pub left: usize,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Admission {
    max_running: usize,
    max_queued: usize,
    running: usize,
    waiting: usize,
    /// How long the newest completions ran, the oldest first.
    ran: VecDeque<Time>,
}

impl Admission {
    /// At most `max_running` run, and `max_queued` more wait.
    pub fn new(max_running: usize, max_queued: usize) -> Self {
        Admission {
            max_running,
            max_queued,
            running: 0,
            waiting: 0,
            ran: VecDeque::with_capacity(NEWEST),
        }
    }

    /// Takes all completions of a request in, whose client has `own` here. Each waits, until [`Admission::handle_placed`]
    /// or [`Admission::handle_left`].
    ///
    /// # Errors
    /// When there is no room for all of them; then none is taken in.
    pub(crate) fn enter(&mut self, completions: usize, own: usize) -> Result<(), QueueFull> {
        let room = self.room();
        let has_much = own + completions > SHARE.saturating_mul(room);
        if completions > room || has_much {
            return Err(self.refusal());
        }
        self.waiting += completions;
        Ok(())
    }

    /// Completions that would be taken in now.
    pub fn room(&self) -> usize {
        (self.max_running + self.max_queued) - (self.running + self.waiting)
    }

    fn refusal(&self) -> QueueFull {
        // The queue moves on by one whenever one of those that run ends.
        let ahead = (self.waiting + 1) as f64 / self.max_running as f64;
        let retry_s = ahead * self.usual().as_secs_f64();
        let retry = Time::from_secs_f64(retry_s.min(RETRY.1.as_secs_f64()));
        QueueFull {
            running: self.running,
            queued: self.waiting,
            retry: retry.max(RETRY.0),
            left: self.room(),
        }
    }

    /// One that waited has its reservations, and runs.
    pub(crate) fn handle_placed(&mut self) {
        self.waiting -= 1;
        self.running += 1;
    }

    /// One that ran has given its reservations up, and waits.
    pub(crate) fn handle_parked(&mut self) {
        self.running -= 1;
        self.waiting += 1;
    }

    /// One that waited has left.
    pub(crate) fn handle_left(&mut self) {
        self.waiting -= 1;
    }

    /// One that ran for `ran` has ended.
    pub(crate) fn handle_ended(&mut self, ran: Time) {
        if self.ran.len() == NEWEST {
            self.ran.pop_front();
        }
        self.ran.push_back(ran);
        self.running -= 1;
    }

    /// The median of how long completions run, the lower one of two; 0 until the first has ended. One that a fault held up
    /// for half a minute does not keep those away that come after it, as it would by a mean.
    fn usual(&self) -> Time {
        let mut ran: Vec<Time> = self.ran.iter().copied().collect();
        ran.sort_unstable();
        match ran.len() {
            0 => Time::ZERO,
            len => ran[(len - 1) / 2],
        }
    }

    /// How many more may run now.
    pub fn vacant(&self) -> usize {
        self.max_running - self.running
    }

    /// Completions that run.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Completions that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn one_runs_one_waits_and_the_third_is_refused() {
        let mut admission = Admission::new(1, 1);
        admission.enter(2, 0).unwrap();
        admission.handle_placed();
        assert_eq!((admission.running(), admission.waiting()), (1, 1));
        assert_eq!(admission.vacant(), 0);
        assert!(admission.enter(1, 2).is_err());
        admission.handle_left();
        admission.enter(1, 1).unwrap();
        admission.handle_ended(Time::ZERO);
        assert_eq!((admission.running(), admission.waiting()), (0, 1));
    }

    #[test]
    fn a_request_is_taken_in_whole_or_not_at_all() {
        let mut admission = Admission::new(2, 1);
        assert!(admission.enter(4, 0).is_err());
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
        admission.enter(3, 0).unwrap();
        assert_eq!((admission.running(), admission.waiting()), (0, 3));
    }

    #[test]
    fn a_client_with_much_leaves_room_to_others() {
        let mut admission = Admission::new(64, 256);
        let mut own = 0;
        while admission.enter(1, own).is_ok() {
            own += 1;
        }
        assert_eq!(own, 285);
        let left = admission.enter(1, own).unwrap_err().left;
        assert_eq!(left, 35);
        admission.enter(16, 0).unwrap();
        assert!(admission.enter(20, 16).is_err(), "more than there is");
        admission.enter(1, 16).unwrap();
    }

    #[test]
    fn the_hint_grows_with_what_is_ahead() {
        let mut admission = Admission::new(1, 2);
        admission.enter(1, 0).unwrap();
        admission.handle_placed();
        admission.handle_ended(Time::from_secs(4));
        admission.enter(3, 0).unwrap();
        admission.handle_placed();
        let refused = admission.enter(1, 0).unwrap_err();
        assert_eq!((refused.running, refused.queued), (1, 2));
        assert_eq!(refused.retry, Time::from_secs(12));
    }

    #[test]
    fn one_that_was_held_up_does_not_keep_others_away() {
        let mut admission = Admission::new(1, 0);
        let mut hint_after = |ran: Time| {
            admission.enter(1, 0).unwrap();
            admission.handle_placed();
            admission.handle_ended(ran);
            admission.enter(1, 0).unwrap();
            admission.handle_placed();
            let retry = admission.enter(1, 0).unwrap_err().retry;
            admission.handle_ended(ran);
            retry
        };
        assert_eq!(hint_after(Time::from_secs(30)), RETRY.1);
        let quick = Time::from_millis(300);
        assert_eq!(hint_after(quick), RETRY.1, "two of each by the next");
        assert_eq!(hint_after(quick), quick);
    }
}

//! Admission: how many completions run, how many wait and in which order, and when requests are refused.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use speculation::Time;

/// The shortest and the longest time after which a refused client may try again.
const RETRY: (Time, Time) = (Time::from_millis(100), Time::from_secs(30));

/// Weight of the newest completion in the mean running time.
const NEWEST: f64 = 0.1;

/// Names a completion that waits: the lower priority value goes first, then the earlier arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket {
    priority: i32,
    arrival: u64,
}

/// An admitted completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It may run; when it ends, [`Admission::handle_ended`] is to be called.
    Running,
    /// It waits until [`Admission::handle_ended`] returns its ticket.
    Waiting(Ticket),
}

/// There is no room for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull {
    /// Completions that run.
    pub running: usize,
    /// Completions that wait.
    pub queued: usize,
    /// When there may be room again.
    pub retry: Time,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Admission {
    max_running: usize,
    max_queued: usize,
    running: usize,
    arrivals: u64,
    waiting: BTreeSet<Ticket>,
    /// How long completions run, in seconds; 0 until the first has ended.
    mean_s: f64,
}

impl Admission {
    /// At most `max_running` run, and `max_queued` more wait.
    pub fn new(max_running: usize, max_queued: usize) -> Self {
        Admission {
            max_running,
            max_queued,
            running: 0,
            arrivals: 0,
            waiting: BTreeSet::new(),
            mean_s: 0.0,
        }
    }

    /// Admits all completions of a request.
    ///
    /// # Errors
    /// When there is no room for all of them; then none is admitted.
    pub fn enter(&mut self, completions: usize, priority: i32) -> Result<Vec<Entered>, QueueFull> {
        let vacant = self.max_running - self.running;
        let room = vacant + self.max_queued - self.waiting.len();
        if completions > room {
            return Err(self.refusal());
        }
        let mut entered = Vec::with_capacity(completions);
        for at in 0..completions {
            if at < vacant {
                self.running += 1;
                entered.push(Entered::Running);
                continue;
            }
            let ticket = Ticket {
                priority,
                arrival: self.arrivals,
            };
            self.arrivals += 1;
            self.waiting.insert(ticket);
            entered.push(Entered::Waiting(ticket));
        }
        Ok(entered)
    }

    fn refusal(&self) -> QueueFull {
        // The queue moves on by one whenever one of those that run ends.
        let ahead = (self.waiting.len() + 1) as f64 / self.max_running as f64;
        let retry = Time::from_secs_f64((ahead * self.mean_s).min(RETRY.1.as_secs_f64()));
        QueueFull {
            running: self.max_running,
            queued: self.max_queued,
            retry: retry.max(RETRY.0),
        }
    }

    /// A completion that waited has left; whether it was still waiting.
    pub fn handle_left(&mut self, ticket: Ticket) -> bool {
        self.waiting.remove(&ticket)
    }

    /// A completion that ran for `ran` has ended. Returns the one that runs in its place.
    pub fn handle_ended(&mut self, ran: Time) -> Option<Ticket> {
        let ran_s = ran.as_secs_f64();
        self.mean_s = match self.mean_s {
            0.0 => ran_s,
            mean_s => mean_s + NEWEST * (ran_s - mean_s),
        };
        self.next()
    }

    /// A completion that was about to run has left. Returns the one that runs in its place.
    #[expect(
        clippy::should_implement_trait,
        reason = "it frees a place and names who gets it; nobody iterates over an admission"
    )]
    pub fn next(&mut self) -> Option<Ticket> {
        let next = self.waiting.pop_first();
        if next.is_none() {
            self.running -= 1;
        }
        next
    }

    /// Completions that run.
    pub fn running(&self) -> usize {
        self.running
    }

    /// Completions that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn one(admission: &mut Admission, priority: i32) -> Entered {
        admission.enter(1, priority).unwrap()[0]
    }

    fn ticket(entered: Entered) -> Ticket {
        match entered {
            Entered::Waiting(ticket) => ticket,
            Entered::Running => panic!("it runs"),
        }
    }

    #[test]
    fn one_runs_one_waits_and_the_third_is_refused() {
        let mut admission = Admission::new(1, 1);
        assert_eq!(one(&mut admission, 0), Entered::Running);
        let second = ticket(one(&mut admission, 0));
        assert!(admission.enter(1, 0).is_err());
        assert_eq!(admission.handle_ended(Time::ZERO), Some(second));
        assert_eq!((admission.running(), admission.waiting()), (1, 0));
        assert!(matches!(one(&mut admission, 0), Entered::Waiting(_)));
    }

    #[test]
    fn lower_values_go_first_and_among_equals_who_came_first() {
        let mut admission = Admission::new(1, 9);
        one(&mut admission, 0);
        let waiting = [5, -1, 5, 0].map(|priority| ticket(one(&mut admission, priority)));
        for next in [1, 3, 0, 2] {
            assert_eq!(admission.handle_ended(Time::ZERO), Some(waiting[next]));
        }
        assert_eq!(admission.handle_ended(Time::ZERO), None);
        assert_eq!(admission.running(), 0);
    }

    #[test]
    fn who_leaves_the_queue_holds_up_nobody() {
        let mut admission = Admission::new(1, 9);
        one(&mut admission, 0);
        let [second, third] = [0, 0].map(|priority| ticket(one(&mut admission, priority)));
        assert!(admission.handle_left(second) && !admission.handle_left(second));
        assert_eq!(admission.handle_ended(Time::ZERO), Some(third));
        // The third leaves without having looked.
        assert_eq!(admission.next(), None);
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }

    #[test]
    fn a_request_is_taken_in_whole_or_not_at_all() {
        let mut admission = Admission::new(2, 1);
        assert!(admission.enter(4, 0).is_err());
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
        admission.enter(3, 0).unwrap();
        assert_eq!((admission.running(), admission.waiting()), (2, 1));
    }

    #[test]
    fn the_hint_grows_with_what_is_ahead() {
        let mut admission = Admission::new(1, 2);
        one(&mut admission, 0);
        admission.handle_ended(Time::from_secs(4));
        admission.enter(3, 0).unwrap();
        let refused = admission.enter(1, 0).unwrap_err();
        assert_eq!(refused.retry, Time::from_secs(12));
    }
}

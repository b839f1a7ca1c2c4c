//! How many requests run, how many wait and in which order, and that no more are taken in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::failure::Failure;

/// The shortest and the longest time after which a refused client is told to try again.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

/// Weight of the newest request in the mean running time.
const NEWEST: f64 = 0.1;

/// The places of a coordinator. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    max_sessions: usize,
    max_queued: usize,
    state: Mutex<State>,
}

/// Who comes first: the lower priority value, then the earlier arrival.
type Turn = (i32, u64);

#[derive(Debug, Default)]
struct State {
    running: usize,
    arrivals: u64,
    waiting: BTreeMap<Turn, oneshot::Sender<Running>>,
    /// How long completions run, in seconds; 0 until the first has ended.
    mean_s: f64,
}

/// A completion that was taken in; dropping it frees its place.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// It may run.
    Running(Running),
    /// It waits its turn.
    Waiting(Waiting),
}

/// A place in the queue; dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    inner: Arc<Inner>,
    turn: Turn,
    admitted: oneshot::Receiver<Running>,
}

/// The right to run; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Running {
    /// `None` once the place was handed on.
    inner: Option<Arc<Inner>>,
    since: Instant,
}

impl Admission {
    pub(crate) fn new(max_sessions: usize, max_queued: usize) -> Self {
        Admission {
            inner: Arc::new(Inner {
                max_sessions,
                max_queued,
                state: Mutex::default(),
            }),
        }
    }

    /// Takes all completions of a request in, or refuses it at once.
    pub(crate) fn enter(&self, completions: usize, priority: i32) -> Result<Vec<Ticket>, Failure> {
        let mut state = self.inner.state.lock();
        let vacant = self.inner.max_sessions - state.running;
        let room = vacant + self.inner.max_queued - state.waiting.len();
        if completions > room {
            return Err(self.refusal(&state));
        }
        let mut tickets = Vec::with_capacity(completions);
        for at in 0..completions {
            if at < vacant {
                state.running += 1;
                tickets.push(Ticket::Running(Running::new(&self.inner)));
                continue;
            }
            let (admit, admitted) = oneshot::channel();
            let turn = (priority, state.arrivals);
            state.arrivals += 1;
            state.waiting.insert(turn, admit);
            tickets.push(Ticket::Waiting(Waiting {
                inner: Arc::clone(&self.inner),
                turn,
                admitted,
            }));
        }
        Ok(tickets)
    }

    fn refusal(&self, state: &State) -> Failure {
        let Inner {
            max_sessions,
            max_queued,
            ..
        } = *self.inner;
        // The queue moves on by one whenever one of those that run ends.
        let ahead = (state.waiting.len() + 1) as f64 / max_sessions as f64;
        let retry = Duration::from_secs_f64((ahead * state.mean_s).min(RETRY.1.as_secs_f64()));
        Failure::QueueFull {
            running: max_sessions,
            queued: max_queued,
            retry: retry.max(RETRY.0),
        }
    }

    /// Completions that run now.
    pub(crate) fn running(&self) -> usize {
        self.inner.state.lock().running
    }

    /// Completions that wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.inner.state.lock().waiting.len()
    }
}

impl Ticket {
    /// Waits until the completion may run.
    pub(crate) async fn admitted(self) -> Running {
        match self {
            Ticket::Running(running) => running,
            Ticket::Waiting(mut waiting) => (&mut waiting.admitted)
                .await
                .expect("the queue outlives who waits in it and drops nobody"),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // If it was admitted in this moment, that right is dropped with the receiver.
        self.inner.state.lock().waiting.remove(&self.turn);
    }
}

impl Running {
    fn new(inner: &Arc<Inner>) -> Self {
        Running {
            inner: Some(Arc::clone(inner)),
            since: Instant::now(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(inner) = self.inner.take() else {
            return;
        };
        {
            let mut state = inner.state.lock();
            let ran_s = self.since.elapsed().as_secs_f64();
            state.mean_s = match state.mean_s {
                0.0 => ran_s,
                mean_s => mean_s + NEWEST * (ran_s - mean_s),
            };
        }
        inner.hand_on();
    }
}

impl Inner {
    /// A place is free: whoever is next gets it.
    fn hand_on(self: Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state.lock();
                let next = state.waiting.pop_first();
                if next.is_none() {
                    state.running -= 1;
                }
                next
            };
            let Some((_, admit)) = next else { return };
            match admit.send(Running::new(&self)) {
                Ok(()) => return,
                // Gone in this moment; the place is still to be given.
                Err(mut refused) => refused.inner = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use futures::FutureExt;

    fn one(admission: &Admission, priority: i32) -> Ticket {
        admission.enter(1, priority).unwrap().pop().unwrap()
    }

    #[tokio::test]
    async fn one_runs_one_waits_and_the_third_is_refused() {
        let admission = Admission::new(1, 1);
        let first = one(&admission, 0);
        let second = one(&admission, 0);
        assert!(matches!(first, Ticket::Running(_)));
        assert!(matches!(second, Ticket::Waiting(_)));
        let refused = admission.enter(1, 0).unwrap_err().to_string();
        assert!(refused.contains("try again"), "{refused}");
        drop(first);
        let running = second.admitted().await;
        assert_eq!((admission.running(), admission.waiting()), (1, 0));
        assert!(matches!(one(&admission, 0), Ticket::Waiting(_)));
        drop(running);
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn lower_values_go_first_and_among_equals_who_came_first() {
        let admission = Admission::new(1, 9);
        let mut running = one(&admission, 0).admitted().await;
        let mut waiting: Vec<_> = [5, -1, 5, 0]
            .into_iter()
            .map(|priority| Box::pin(one(&admission, priority).admitted()))
            .collect();
        for next in [1, 3, 0, 2] {
            drop(running);
            running = waiting[next].as_mut().now_or_never().unwrap();
        }
        drop(running);
        assert_eq!(admission.running(), 0);
    }

    #[tokio::test]
    async fn who_leaves_the_queue_holds_up_nobody() {
        let admission = Admission::new(1, 9);
        let first = one(&admission, 0);
        let (second, third) = (one(&admission, 0), one(&admission, 0));
        let fourth = one(&admission, 0);
        drop(second);
        drop(first);
        // The third was admitted and leaves without having looked.
        drop(third);
        let fourth = fourth.admitted().now_or_never().unwrap();
        drop(fourth);
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn a_request_is_taken_in_whole_or_not_at_all() {
        let admission = Admission::new(2, 1);
        assert!(admission.enter(4, 0).is_err());
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
        let all = admission.enter(3, 0).unwrap();
        assert_eq!((admission.running(), admission.waiting()), (2, 1));
        drop(all);
        assert_eq!((admission.running(), admission.waiting()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_hint_grows_with_what_is_ahead() {
        let admission = Admission::new(1, 2);
        let running = one(&admission, 0).admitted().await;
        tokio::time::advance(Duration::from_secs(4)).await;
        drop(running);
        let _all = admission.enter(3, 0).unwrap();
        let Err(Failure::QueueFull { retry, .. }) = admission.enter(1, 0) else {
            panic!("taken in");
        };
        assert_eq!(retry, Duration::from_secs(12));
    }
}

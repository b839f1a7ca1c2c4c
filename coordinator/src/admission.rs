//! Admission of requests: the completions that run and wait, as guards around the pure
//! [`Admission`](control::admission::Admission).

use std::collections::BTreeMap;
use std::sync::Arc;

use control::admission::{Admission as Decisions, Entered, QueueFull, Ticket as Number};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::failure::Failure;

/// The running and waiting completions of a coordinator. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Admission {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    decisions: Decisions,
    /// How those that wait are let in.
    waiting: BTreeMap<Number, oneshot::Sender<Running>>,
}

/// A completion that was taken in; dropping it makes room for another.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// It may run.
    Running(Running),
    /// It waits its turn.
    Waiting(Waiting),
}

/// An entry of the queue; dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Waiting {
    inner: Arc<Inner>,
    number: Number,
    admitted: oneshot::Receiver<Running>,
}

/// The right to run; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Running {
    /// `None` once the right was handed on.
    inner: Option<Arc<Inner>>,
    since: Instant,
}

impl Admission {
    /// At most so many completions run, and so many more wait.
    pub(crate) fn new(max_running: usize, max_queued: usize) -> Self {
        let state = State {
            decisions: Decisions::new(max_running, max_queued),
            waiting: BTreeMap::new(),
        };
        Admission {
            inner: Arc::new(Inner {
                state: Mutex::new(state),
            }),
        }
    }

    /// Takes all completions of a request in, or refuses it at once.
    pub(crate) fn enter(&self, completions: usize, priority: i32) -> Result<Vec<Ticket>, Failure> {
        let mut state = self.inner.state.lock();
        let entered = state.decisions.enter(completions, priority)?;
        let tickets = entered.into_iter().map(|entered| match entered {
            Entered::Running => Ticket::Running(Running::new(&self.inner)),
            Entered::Waiting(number) => {
                let (admit, admitted) = oneshot::channel();
                state.waiting.insert(number, admit);
                Ticket::Waiting(Waiting {
                    inner: Arc::clone(&self.inner),
                    number,
                    admitted,
                })
            }
        });
        Ok(tickets.collect())
    }

    /// Completions that run now.
    pub(crate) fn running(&self) -> usize {
        self.inner.state.lock().decisions.running()
    }

    /// Completions that wait now.
    pub(crate) fn waiting(&self) -> usize {
        self.inner.state.lock().decisions.waiting()
    }
}

impl From<QueueFull> for Failure {
    fn from(full: QueueFull) -> Self {
        let QueueFull {
            running,
            queued,
            retry,
        } = full;
        Failure::QueueFull {
            running,
            queued,
            retry,
        }
    }
}

impl Ticket {
    /// Waits until the completion may run.
    pub(crate) async fn admitted(self) -> Running {
        match self {
            Ticket::Running(running) => running,
            Ticket::Waiting(mut waiting) => (&mut waiting.admitted)
                .await
                .expect("the sender is dropped only after it was used, or with this receiver"),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // If it was admitted just now, that right is dropped with the receiver.
        let mut state = self.inner.state.lock();
        state.waiting.remove(&self.number);
        state.decisions.handle_left(self.number);
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
        let ran = self.since.elapsed();
        let next = inner.state.lock().decisions.handle_ended(ran);
        inner.admit(next);
    }
}

impl Inner {
    /// Lets this completion in; where it has left in the meantime, the one after it.
    fn admit(self: Arc<Self>, mut next: Option<Number>) {
        while let Some(number) = next {
            let admit = self.state.lock().waiting.remove(&number);
            if let Some(admit) = admit {
                match admit.send(Running::new(&self)) {
                    Ok(()) => return,
                    // It has left just now; the right is still to be given.
                    Err(mut unused) => unused.inner = None,
                }
            }
            next = self.state.lock().decisions.next();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use std::time::Duration;

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

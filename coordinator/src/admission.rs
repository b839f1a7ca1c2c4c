//! How many requests run, how many wait, and that no more are taken in.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Failure;

/// The places of a coordinator.
#[derive(Debug)]
pub(crate) struct Admission {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    max_sessions: usize,
    max_queued: usize,
}

/// A request that was taken in; dropping it frees its place.
#[derive(Debug)]
pub(crate) enum Ticket {
    /// It may run.
    Running(Running),
    /// It waits its turn.
    Waiting(OwnedSemaphorePermit),
}

/// The right to run; dropping it lets the next one in.
#[derive(Debug)]
pub(crate) struct Running {
    _permit: OwnedSemaphorePermit,
}

impl Admission {
    pub(crate) fn new(max_sessions: usize, max_queued: usize) -> Self {
        Admission {
            running: Arc::new(Semaphore::new(max_sessions)),
            waiting: Arc::new(Semaphore::new(max_queued)),
            max_sessions,
            max_queued,
        }
    }

    /// Takes a request in, or refuses it at once.
    pub(crate) fn enter(&self) -> Result<Ticket, Failure> {
        if let Ok(permit) = Arc::clone(&self.running).try_acquire_owned() {
            return Ok(Ticket::Running(Running { _permit: permit }));
        }
        match Arc::clone(&self.waiting).try_acquire_owned() {
            Ok(place) => Ok(Ticket::Waiting(place)),
            Err(_) => Err(Failure::QueueFull {
                running: self.max_sessions,
                queued: self.max_queued,
            }),
        }
    }

    /// Waits until the request may run; first come, first served.
    pub(crate) async fn admit(&self, ticket: Ticket) -> Running {
        match ticket {
            Ticket::Running(running) => running,
            Ticket::Waiting(_place) => {
                let permit = Arc::clone(&self.running)
                    .acquire_owned()
                    .await
                    .expect("the semaphore is never closed");
                Running { _permit: permit }
            }
        }
    }

    /// Requests that wait for their turn.
    pub(crate) fn queued(&self) -> usize {
        self.max_queued - self.waiting.available_permits()
    }

    /// Requests that run now.
    pub(crate) fn running(&self) -> usize {
        self.max_sessions - self.running.available_permits()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[tokio::test]
    async fn one_runs_one_waits_and_the_third_is_refused() {
        let admission = Admission::new(1, 1);
        let first = admission.enter().unwrap();
        let second = admission.enter().unwrap();
        assert!(matches!(first, Ticket::Running(_)));
        assert!(matches!(second, Ticket::Waiting(_)));
        assert_eq!((admission.running(), admission.queued()), (1, 1));
        let refused = admission.enter().unwrap_err().to_string();
        assert!(refused.contains("try again later"), "{refused}");
        drop(first);
        let running = admission.admit(second).await;
        assert_eq!(admission.running(), 1);
        assert!(matches!(admission.enter().unwrap(), Ticket::Waiting(_)));
        drop(running);
        assert_eq!((admission.running(), admission.queued()), (0, 0));
    }
}

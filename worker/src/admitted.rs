//! Whether a coordinator has admitted this worker, as far as readiness is concerned.
//!
//! A coordinator calls `Hello` first and opens its stream if it can use the worker. So one that says hello and opens none has
//! refused it, for another vocabulary or another role than it expects, and says hello again every few seconds. While that
//! is all that coordinators do, the worker is not ready: in a rolling update no worker that still serves is replaced by
//! one that nobody can use. Where no coordinator has asked for a while, the worker is ready: it could be admitted.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use runtime::{Drain, Latch, Readiness};

/// How long a hello without a stream counts as a refusal. A coordinator that refuses asks again well within it.
const REFUSAL: Duration = Duration::from_secs(10);

/// See the module documentation. Clones share the state.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    readiness: Readiness,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Streams of coordinators that are up.
    streams: usize,
    /// Hellos so far.
    hellos: u64,
    /// Held while the worker counts as refused.
    refused: Option<Latch>,
}

/// A stream that is up; dropping it says that it is over.
#[derive(Debug)]
pub(crate) struct Admission(Admitted);

impl Admitted {
    pub(crate) fn new(readiness: &Readiness) -> Self {
        Admitted {
            readiness: readiness.clone(),
            state: Arc::default(),
        }
    }

    /// A coordinator has said hello.
    pub(crate) fn handle_hello(&self, drain: &Drain) {
        let hello = {
            let mut state = self.state.lock();
            state.hellos += 1;
            if state.streams > 0 {
                return;
            }
            if state.refused.is_none() {
                state.refused = Some(self.readiness.latch());
            }
            state.hellos
        };
        let (admitted, stopping) = (self.clone(), drain.stopping());
        drain.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(REFUSAL) => admitted.handle_silence(hello),
                () = stopping => {}
            }
        });
    }

    /// Nobody has said hello since this one.
    fn handle_silence(&self, hello: u64) {
        let mut state = self.state.lock();
        if state.hellos == hello {
            state.refused = None;
        }
    }

    /// A coordinator's stream is up.
    pub(crate) fn handle_stream(&self) -> Admission {
        let mut state = self.state.lock();
        state.streams += 1;
        state.refused = None;
        Admission(self.clone())
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.state.lock().streams -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets time pass, and the tasks that are due then run.
    async fn pass(time: Duration) {
        tokio::task::yield_now().await;
        tokio::time::advance(time).await;
        tokio::task::yield_now().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_is_ready_when_it_was_admitted_or_nobody_has_refused_it() {
        let (readiness, drain) = (Readiness::new(), Drain::new());
        let admitted = Admitted::new(&readiness);
        assert!(readiness.is_ready(), "it could be admitted");
        admitted.handle_hello(&drain);
        assert!(!readiness.is_ready());
        let first = admitted.handle_stream();
        assert!(readiness.is_ready());
        // Another coordinator has no use for it, which takes nothing from the first one.
        admitted.handle_hello(&drain);
        assert!(readiness.is_ready());
        drop(first);
        assert!(readiness.is_ready(), "it could be admitted again");
        admitted.handle_hello(&drain);
        assert!(!readiness.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_lasts_as_long_as_it_is_repeated() {
        let (readiness, drain) = (Readiness::new(), Drain::new());
        let admitted = Admitted::new(&readiness);
        for _ in 0..4 {
            admitted.handle_hello(&drain);
            pass(REFUSAL / 2).await;
            assert!(!readiness.is_ready());
        }
        pass(REFUSAL).await;
        assert!(readiness.is_ready(), "the coordinator has gone");
        admitted.handle_hello(&drain);
        drain.shutdown(REFUSAL).await;
        assert!(drain.tracker().is_empty(), "nothing holds up the drain");
    }
}

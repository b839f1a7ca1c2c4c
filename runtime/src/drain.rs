//! Graceful shutdown: one token says that the process is stopping, and one tracker knows every task that has yet to
//! finish.
//!
//! The first SIGTERM or SIGINT (Ctrl-C) begins the drain, at once or, for a process that others have to stop using first,
//! after a delay ([`Drain::on_signals_after`]). Until that is over the process *leaves*: it is not ready any more and
//! serves as before. A second signal ends the process at once.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Exit status after a second signal: 128 + SIGINT, as shells report an interrupted process.
pub const FORCED_EXIT: i32 = 130;

/// The stop token and the tracked tasks of a process. Clones share both.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// Cancelled once: from then on the process is not ready. At the latest when the drain begins.
    leave: CancellationToken,
    /// Cancelled once, by a signal, by the exit of the parent or by [`Drain::begin`]; never reset.
    stop: CancellationToken,
    /// Every task that shutdown has to wait for.
    tasks: TaskTracker,
}

/// How a shutdown ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every tracked task finished.
    Clean,
    /// The grace period ended with tasks still running.
    TimedOut {
        /// How many tasks were abandoned.
        tasks: usize,
    },
}

impl Drain {
    /// A drain that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the drain on SIGTERM or SIGINT, and ends the process with [`FORCED_EXIT`] on the next one. Call it inside
    /// a tokio runtime.
    ///
    /// # Errors
    /// When the signal handlers cannot be installed.
    pub fn on_signals(&self) -> io::Result<()> {
        self.on_signals_after(Duration::ZERO)
    }

    /// As [`Drain::on_signals`], but between the signal and the drain the process serves as before for as long as `delay`
    /// says and is not ready: whoever routes requests to it gets time to notice.
    ///
    /// # Errors
    /// As [`Drain::on_signals`].
    pub fn on_signals_after(&self, delay: Duration) -> io::Result<()> {
        let mut signals = Signals::install()?;
        let drain = self.clone();
        // Not tracked: this task outlives the drain to catch the second signal, so waiting for it would never end.
        tokio::spawn(async move {
            signals.next().await;
            tracing::info!(?delay, "shutting down; a second signal exits immediately");
            drain.leave.cancel();
            let second = signals.next();
            tokio::pin!(second);
            if tokio::time::timeout(delay, &mut second).await.is_err() {
                drain.begin();
                second.await;
            }
            tracing::warn!("second signal: exiting without draining");
            std::process::exit(FORCED_EXIT);
        });
        Ok(())
    }

    /// Begins the drain. Further calls have no effect.
    pub fn begin(&self) {
        self.leave.cancel();
        self.stop.cancel();
    }

    /// Whether the process is about to drain or has begun to: it is not ready.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.leave.is_cancelled()
    }

    /// Resolves when the process begins to leave. The future borrows nothing.
    pub fn leaving(&self) -> impl Future<Output = ()> + Send + 'static {
        self.leave.clone().cancelled_owned()
    }

    /// Whether the drain has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Resolves when the drain begins. The future borrows nothing.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + 'static {
        self.stop.clone().cancelled_owned()
    }

    /// A token that is cancelled when the drain begins. Cancelling it does not begin the drain, so a session can hold
    /// and cancel its own.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.stop.child_token()
    }

    /// Spawns a task that shutdown waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// The tracker, for tasks that are spawned elsewhere.
    #[must_use]
    pub fn tracker(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Begins the drain if it has not begun, then waits for the tracked tasks, but no longer than `grace`.
    pub async fn shutdown(&self, grace: Duration) -> Drained {
        self.begin();
        self.tasks.close();
        match tokio::time::timeout(grace, self.tasks.wait()).await {
            Ok(()) => Drained::Clean,
            Err(_) => {
                let tasks = self.tasks.len();
                tracing::warn!(
                    tasks,
                    ?grace,
                    "the grace period is over; abandoning the remaining tasks"
                );
                Drained::TimedOut { tasks }
            }
        }
    }
}

/// The signals that ask a process to stop.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn install() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(not(unix))]
impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {})
    }

    async fn next(&mut self) {
        // If the handler cannot be installed, there is no signal to wait for, and the process must not stop.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[tokio::test]
    async fn shutdown_waits_for_tasks_that_watch_the_token() {
        let drain = Drain::new();
        let token = drain.token();
        let task = drain.spawn(async move {
            token.cancelled().await;
            7
        });
        assert!(!drain.is_stopping());
        assert_eq!(
            drain.shutdown(Duration::from_secs(60)).await,
            Drained::Clean
        );
        assert!(drain.is_stopping());
        assert_eq!(task.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn shutdown_gives_up_after_the_grace_period() {
        let drain = Drain::new();
        let stuck = drain.spawn(std::future::pending::<()>());
        let ended = drain.shutdown(Duration::from_millis(1)).await;
        assert_eq!(ended, Drained::TimedOut { tasks: 1 });
        assert!(!stuck.is_finished(), "an abandoned task had ended");
        stuck.abort();
    }

    #[tokio::test]
    async fn a_session_token_does_not_stop_the_process() {
        let drain = Drain::new();
        drain.token().cancel();
        assert!(!drain.is_stopping());
        drain.begin();
        drain.stopping().await;
        assert!(drain.token().is_cancelled());
    }
}

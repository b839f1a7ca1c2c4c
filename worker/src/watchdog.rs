//! Detects a model that hangs: how long the step in progress has lasted, seen from outside the model thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by the model thread, which notes when steps begin and end, and the process, which checks it.
#[derive(Debug)]
pub(crate) struct StepClock {
    origin: Instant,
    /// Microseconds from `origin` to the beginning of the step in progress, and one more; 0 while there is none.
    begun: AtomicU64,
}

/// How many times within its limit a step is checked.
const LOOKS: u32 = 4;

impl StepClock {
    pub(crate) fn new() -> Self {
        StepClock {
            origin: Instant::now(),
            begun: AtomicU64::new(0),
        }
    }

    /// A step begins.
    pub(crate) fn begin(&self) {
        self.begun.store(self.now() + 1, Ordering::Release);
    }

    /// The step is over.
    pub(crate) fn end(&self) {
        self.begun.store(0, Ordering::Release);
    }

    /// Resolves when a step has lasted longer than `limit`; never while none does.
    pub(crate) async fn outlasts(&self, limit: Duration) {
        loop {
            tokio::time::sleep(limit / LOOKS).await;
            let begun = self.begun.load(Ordering::Acquire);
            let lasted = Duration::from_micros((self.now() + 1).saturating_sub(begun));
            if begun != 0 && lasted > limit {
                return;
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(120);

    #[tokio::test(start_paused = true)]
    async fn only_a_step_that_does_not_end_is_noticed() {
        let clock = StepClock::new();
        let patience = 10 * LIMIT;
        let idle = tokio::time::timeout(patience, clock.outlasts(LIMIT)).await;
        assert!(idle.is_err(), "no step was in progress");
        clock.begin();
        clock.end();
        let ended = tokio::time::timeout(patience, clock.outlasts(LIMIT)).await;
        assert!(ended.is_err(), "the step had ended");
        clock.begin();
        let begun = Instant::now();
        clock.outlasts(LIMIT).await;
        let noticed = begun.elapsed();
        assert!(noticed > LIMIT && noticed <= LIMIT * (LOOKS + 1) / LOOKS);
    }
}

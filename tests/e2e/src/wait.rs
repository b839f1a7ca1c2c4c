//! Waiting for a condition that only asking reveals, with a deadline.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

/// Time between two checks.
const INTERVAL: Duration = Duration::from_millis(10);

/// Calls `check` until it returns `Ok`, and returns what is in it. What it returns otherwise says what is missing.
///
/// # Errors
/// When `check` fails, or does not return `Ok` within `limit`; the error says what was missing last.
pub async fn until<T>(
    limit: Duration,
    mut check: impl AsyncFnMut() -> anyhow::Result<Result<T, String>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut missing = "nothing was found out".to_owned();
    loop {
        tick.tick().await;
        let checked = match timeout_at(deadline, check()).await {
            Ok(checked) => checked?,
            Err(_) => Err(missing),
        };
        missing = match checked {
            Ok(found) => return Ok(found),
            Err(missing) if Instant::now() >= deadline => {
                return Err(anyhow::Error::msg(missing))
                    .with_context(|| format!("not within {} s", limit.as_secs()));
            }
            Err(missing) => missing,
        };
    }
}

/// What a check for [`until`] returns about a condition.
///
/// # Errors
/// When it is not met: `missing`.
pub fn met(is_met: bool, missing: &str) -> Result<(), String> {
    if is_met {
        Ok(())
    } else {
        Err(missing.to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_returns_what_is_found_and_reports_what_was_missing() {
        let limit = Duration::from_secs(5);
        let mut checks = 0;
        let found = until(limit, async || {
            checks += 1;
            Ok(if checks == 3 {
                Ok(checks)
            } else {
                Err(format!("check {checks}"))
            })
        });
        assert_eq!(found.await.unwrap(), 3);
        let never = until(limit, async || Ok(met(false, "no worker"))).await;
        let error = format!("{:#}", never.unwrap_err());
        assert_eq!(error, "not within 5 s: no worker");
        let hangs = until::<()>(limit, async || std::future::pending().await);
        assert!(hangs.await.is_err());
        let fails = until::<()>(limit, async || anyhow::bail!("broken")).await;
        assert_eq!(fails.unwrap_err().to_string(), "broken");
    }
}

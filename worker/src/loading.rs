//! Saying how far a model is that takes long to load.

use std::time::{Duration, Instant};

use engine::Progress;

/// Models that are loaded sooner are not worth a line.
const WORTH_A_LINE: Duration = Duration::from_secs(1);
/// Time between two lines.
const BETWEEN: Duration = Duration::from_secs(5);

/// Writes a line into the log after a second, one every few seconds, and one at the end if there was any. The target of the lines
/// is `loading`, so that a filter can let them through alone.
pub(crate) fn watch(name: &str) -> impl FnMut(Progress) {
    let (begun, name) = (Instant::now(), name.to_owned());
    let mut next = begun + WORTH_A_LINE;
    let mut told = false;
    move |Progress { done, total }| {
        let (now, ends) = (Instant::now(), done == total);
        if now < next && !(told && ends) {
            return;
        }
        (next, told) = (now + BETWEEN, true);
        let percent = done as u128 * 100 / (total as u128).max(1);
        let (mb, seconds) = (total / 1_000_000, (now - begun).as_secs_f64());
        tracing::info!(target: "loading", "{name}: {percent} % of {mb} MB after {seconds:.1} s");
    }
}

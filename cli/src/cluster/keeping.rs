//! Starting a process again that has exited by itself: at the same address, after a pause that grows as long as it keeps
//! exiting, and not for ever.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::process::{ChildSpec, Process};
use crate::console::Progress;

/// The pause before the first attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A process that has run for so long has not exited because of how it was started.
const STEADY: Duration = Duration::from_secs(60);
/// Starts in a row that are tried.
const ATTEMPTS: u32 = 5;

/// A process that is started again when it exits.
pub(super) struct Kept {
    pub(super) process: Process,
    spec: ChildSpec,
    progress: Progress,
}

/// How often in a row a process has exited soon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Exits(u32);

impl Exits {
    /// It has exited, after this time: the pause before it is started again, or nothing if it has done so too often.
    fn another(&mut self, after: Duration) -> Option<Duration> {
        if after >= STEADY {
            self.0 = 0;
        }
        self.0 += 1;
        (self.0 <= ATTEMPTS).then(|| FIRST_PAUSE * 2_u32.pow(self.0 - 1))
    }
}

impl Kept {
    /// Starts a process.
    ///
    /// # Errors
    /// See [`Process::start`].
    pub(super) async fn start(spec: ChildSpec, progress: &Progress) -> Result<Kept> {
        let process = Process::start(spec.clone(), progress).await?;
        Ok(Kept {
            spec: spec.at(process.addr(), process.admin()),
            process,
            progress: progress.clone(),
        })
    }

    /// Starts it again whenever it exits, and tells `say`. Returns why when it is given up.
    pub(super) async fn keep(&mut self, say: &impl Fn(&str)) -> String {
        let mut exits = Exits::default();
        let (mut why, mut ran) = self.exit().await;
        loop {
            let Some(pause) = exits.another(ran) else {
                return format!(
                    "{why}; it was started again {ATTEMPTS} times in a row, and is given up"
                );
            };
            let seconds = pause.as_secs_f64();
            say(&format!(
                "warning: {why}; it is started again in {seconds} s"
            ));
            tokio::time::sleep(pause).await;
            (why, ran) = match Process::start(self.spec.clone(), &self.progress).await {
                Ok(process) => {
                    self.process = process;
                    let pid = self.process.pid();
                    let pid = pid.map_or_else(String::new, |pid| format!(", process id {pid}"));
                    say(&format!("the {} process runs again{pid}", self.spec.name));
                    self.exit().await
                }
                // However long the attempt took.
                Err(error) => (format!("{error:#}"), Duration::ZERO),
            };
        }
    }

    /// Waits until it exits: how it did, and how long it ran since this was called.
    async fn exit(&mut self) -> (String, Duration) {
        let begun = Instant::now();
        let how = self.process.end().await;
        let why = format!("the {} process exited ({how})", self.spec.name);
        (why, begun.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_there_are_not_many_in_a_row() {
        let mut exits = Exits::default();
        let mut pauses: Vec<_> = std::iter::from_fn(|| exits.another(Duration::ZERO)).collect();
        let expected = [250, 500, 1000, 2000, 4000].map(Duration::from_millis);
        assert_eq!(pauses, expected);
        let mut exits = Exits::default();
        pauses = (0..3)
            .filter_map(|_| exits.another(Duration::ZERO))
            .collect();
        assert_eq!(pauses.last(), Some(&expected[2]));
        // One that has run for a while begins anew.
        assert_eq!(exits.another(STEADY), Some(FIRST_PAUSE));
        assert_eq!(exits.another(Duration::ZERO), Some(expected[1]));
    }
}

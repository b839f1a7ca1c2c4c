//! Terminal output: the result of a command goes to standard output, everything else to standard error.
//!
//! Nothing here panics when a stream is closed. A closed standard output ends the command without an error, because its
//! reader has read enough; a closed standard error is ignored.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};

/// Writes one line to standard error.
pub(crate) fn say(line: &str) {
    // There is nowhere else to report that this failed.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes text to standard output and flushes it, so that streamed text appears at once.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Whether standard output is a terminal.
pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Whether the error means that standard output was closed by its reader.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// A progress bar on standard error, if that is a terminal. Clones share the bar; it disappears with the last one.
#[derive(Clone)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A spinner, for work of unknown length.
    pub(crate) fn spinner(message: &'static str) -> Progress {
        let bar = ProgressBar::new_spinner()
            .with_message(message)
            .with_finish(ProgressFinish::AndClear);
        bar.enable_steady_tick(Duration::from_millis(100));
        Progress { bar }
    }

    /// A bar for `len` items.
    pub(crate) fn counted(len: usize, message: impl Into<String>) -> Progress {
        let bar = ProgressBar::new(len as u64)
            .with_message(message.into())
            .with_finish(ProgressFinish::AndClear);
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}, {eta} left")
            .expect("the template is a constant that parses");
        bar.set_style(style);
        Progress { bar }
    }

    /// Counts one item.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    /// Says what is going on: beside the spinner, or in a line where there is none to be seen.
    pub(crate) fn tell(&self, message: &str) {
        if self.bar.is_hidden() {
            say(message);
        } else {
            self.bar.set_message(message.to_owned());
        }
    }

    /// Writes a line above the bar.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| say(line));
    }

    /// Removes the bar.
    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_broken_pipe_is_recognised_behind_its_context() {
        let broken = io::Error::from(io::ErrorKind::BrokenPipe);
        let error = Err::<(), _>(broken)
            .context("writing the completion")
            .expect_err("it was an error");
        assert!(is_broken_pipe(&error));
        let other = anyhow::Error::from(io::Error::from(io::ErrorKind::NotFound));
        assert!(!is_broken_pipe(&other));
    }
}

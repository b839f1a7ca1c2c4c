//! An error in one line.

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// The message of an error and those of its causes, outermost first, each once: many messages contain the cause already,
/// so that a plain chain would say twice what the operating system said.
#[must_use]
pub fn report(error: &(dyn Error + 'static)) -> String {
    let innermost = crate::client::cause(error);
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next
        && !text.contains(&innermost)
    {
        let message = source.to_string();
        if !text.contains(&message) {
            text.push_str(": ");
            text.push_str(&message);
        }
        next = source.source();
    }
    text
}

/// The exit status of a process whose work has ended so. An error goes to standard error, in one line.
pub fn ended<E: AsRef<dyn Error + 'static>>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even standard error is closed, the exit status still reports the failure.
            let _ = writeln!(io::stderr(), "error: {}", report(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("cannot read a: {source}; check it")]
        Within { source: io::Error },
        #[error("cannot read a")]
        Beside { source: io::Error },
        #[error("starting")]
        Above { source: Box<Outer> },
    }

    #[test]
    fn what_the_system_said_is_printed_once() {
        let missing = || io::Error::from_raw_os_error(2);
        let said = missing().to_string();
        let within = Outer::Within { source: missing() };
        assert_eq!(report(&within), format!("cannot read a: {said}; check it"));
        let beside = Outer::Beside { source: missing() };
        assert_eq!(report(&beside), format!("cannot read a: {said}"));
        let above = Outer::Above {
            source: Box::new(Outer::Within { source: missing() }),
        };
        assert_eq!(
            report(&above),
            format!("starting: cannot read a: {said}; check it")
        );
    }
}

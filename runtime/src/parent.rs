//! Child processes that exit when their parent does, however the parent ended.
//!
//! The parent holds the write end of the child's standard input and never writes to it. When the parent exits, even by
//! SIGKILL, the system closes the pipe; the child reads end-of-file and drains. That is portable and needs no `unsafe`,
//! unlike a parent-death signal (`PR_SET_PDEATHSIG`), which is also sent when the parent's *thread* ends.
//!
//! A parent must therefore start such a child with a piped standard input and keep the handle; with `/dev/null` the
//! child would stop at once.

use std::io::{self, Read};
use std::time::Duration;

use clap::Args;

use crate::Drain;

/// How long an orphaned child may drain before it is forced to exit. It is longer than a usual grace period, and also
/// limits a child that hangs before it starts to drain.
pub const ORPHAN_LIMIT: Duration = Duration::from_secs(30);

/// Whether to exit when the parent does.
#[derive(Args, Clone, Debug, Default)]
pub struct ParentArgs {
    /// Exit when standard input is closed, that is, when the parent has exited.
    #[arg(long)]
    pub exit_with_parent: bool,
}

/// If `args` ask for it, begins `drain` when standard input is closed, and ends the process after [`ORPHAN_LIMIT`] if
/// it is still running.
///
/// # Errors
/// When the thread that reads standard input cannot be started.
pub fn exit_with_parent(args: &ParentArgs, drain: &Drain) -> io::Result<()> {
    if !args.exit_with_parent {
        return Ok(());
    }
    let drain = drain.clone();
    // A plain thread: a pending read of tokio's standard input would keep the runtime from shutting down.
    std::thread::Builder::new()
        .name("parent-watch".to_owned())
        .spawn(move || {
            wait_for_end(io::stdin().lock());
            tracing::info!("the parent process has exited; shutting down");
            drain.begin();
            std::thread::sleep(ORPHAN_LIMIT);
            std::process::exit(1);
        })?;
    Ok(())
}

/// Reads and discards everything until the end of the input or an error other than an interruption, both of which mean
/// that the other end is closed.
fn wait_for_end(mut input: impl Read) {
    let mut ignored = [0_u8; 64];
    loop {
        match input.read(&mut ignored) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns scripted results, one per read.
    struct Script(Vec<io::Result<usize>>);

    impl Read for Script {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            self.0.remove(0)
        }
    }

    #[test]
    fn waits_through_data_and_interruptions_until_the_end() {
        let mut script = Script(vec![
            Ok(5),
            Err(io::ErrorKind::Interrupted.into()),
            Ok(64),
            Ok(0),
            Ok(1),
        ]);
        wait_for_end(&mut script);
        assert_eq!(script.0.len(), 1, "it stopped before or after the end");
    }

    #[test]
    fn a_broken_input_is_an_end() {
        let mut script = Script(vec![Err(io::ErrorKind::BrokenPipe.into()), Ok(1)]);
        wait_for_end(&mut script);
        assert_eq!(script.0.len(), 1);
    }
}

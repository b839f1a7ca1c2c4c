//! A child that ends when its parent does, whatever killed the parent.
//!
//! The parent holds the write end of the child's standard input and never
//! writes to it. When the parent dies, even by SIGKILL, the system closes the
//! pipe, the child reads end-of-file and drains. That is portable and needs no
//! `unsafe`, unlike a death signal, which also follows the parent's *thread*.
//!
//! A parent must therefore start such a child with a piped standard input and
//! keep the handle; with a null one the child would stop at once.

use std::io::{self, Read};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;

use crate::Drain;

/// How long an orphan may drain before it is ended. Longer than any usual
/// grace time; it bounds a child that hangs before it comes to its own drain.
pub const ORPHAN_LIMIT: Duration = Duration::from_secs(30);

/// Whether to end when the parent does.
#[derive(Args, Clone, Debug, Default)]
pub struct ParentArgs {
    /// Stop when standard input closes, that is, when the parent is gone.
    #[arg(long)]
    pub exit_with_parent: bool,
}

/// Begins `drain` when standard input closes, if `args` ask for it, and ends
/// the process [`ORPHAN_LIMIT`] later if it is still there.
///
/// # Errors
/// When the watching thread cannot be started.
pub fn exit_with_parent(args: &ParentArgs, drain: &Drain) -> io::Result<()> {
    if !args.exit_with_parent {
        return Ok(());
    }
    let drain = drain.clone();
    // A plain thread: tokio's standard input would keep the runtime from
    // shutting down for as long as the read is pending.
    std::thread::Builder::new()
        .name("parent-watch".to_owned())
        .spawn(move || {
            wait_for_end(io::stdin().lock());
            tracing::info!("the parent is gone; stopping");
            drain.begin();
            // A channel whose sender is kept: the wait always lasts its time.
            let (_keep, never) = mpsc::channel::<()>();
            let _ = never.recv_timeout(ORPHAN_LIMIT);
            std::process::exit(1);
        })?;
    Ok(())
}

/// Reads and ignores everything until the end of the input or an error other
/// than an interruption, both of which mean that nobody holds the other end.
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

    /// Plays a script of read results and counts what was taken.
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
        assert_eq!(script.0.len(), 1, "stopped before or after the end");
    }

    #[test]
    fn a_broken_input_is_an_end() {
        let mut script = Script(vec![Err(io::ErrorKind::BrokenPipe.into()), Ok(1)]);
        wait_for_end(&mut script);
        assert_eq!(script.0.len(), 1);
    }
}

//! `offshoot-draft-worker`: the draft worker as a binary of its own.
//!
//! The same as `offshoot draft-worker`; see the crate's documentation.
//! It parses the flags and runs; everything else is the library's.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

/// Run a draft worker (proposes tokens)
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    args: offshoot_draft_worker::Args,
}

#[tokio::main]
async fn main() -> ExitCode {
    offshoot_draft_worker::install_crypto();
    let cli: Cli = worker::parse();
    match offshoot_draft_worker::run(cli.args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where even standard error is closed, the exit status still reports the failure.
            let _ = writeln!(
                std::io::stderr(),
                "error: {}",
                worker::report(error.as_ref())
            );
            ExitCode::FAILURE
        }
    }
}

//! `offshoot-draft-worker`: the draft worker as a binary of its own.
//!
//! The same as `offshoot draft-worker`; see the crate's documentation.
//! It parses the flags and runs; everything else is the library's.

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
    worker::ended(offshoot_draft_worker::run(cli.args).await)
}

//! `offshoot-target-worker`: the target or qualifier worker as a binary of its own.
//!
//! The same as `offshoot target-worker`; see the crate's documentation.
//! It parses the flags and runs; everything else is the library's.

use std::process::ExitCode;

use clap::Parser;

/// Run a target worker (verifies and commits tokens), or a qualifier (gives advice)
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(flatten)]
    args: offshoot_target_worker::Args,
}

#[tokio::main]
async fn main() -> ExitCode {
    offshoot_target_worker::install_crypto();
    let cli: Cli = worker::parse();
    worker::ended(offshoot_target_worker::run(cli.args).await)
}

//! The coordinator as a process of its own: flags in, exit status out.
//!
//! Everything it does is in the library, which the `offshoot` binary runs as a subcommand as well. This file knows
//! nothing of sessions or workers.

use std::process::ExitCode;

use clap::Parser;

/// Serves clients over a cluster of draft, qualifier and target workers.
#[derive(Parser)]
#[command(name = "offshoot-coordinator", version)]
struct Cli {
    #[command(flatten)]
    args: offshoot_coordinator::Args,
}

fn main() -> ExitCode {
    offshoot_coordinator::install_crypto();
    let cli: Cli = runtime::parse();
    runtime::ended(offshoot_coordinator::run(cli.args))
}

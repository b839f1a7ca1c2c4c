//! The coordinator as a process of its own.

use clap::Parser;

/// Serves clients over a cluster of draft, qualifier and target workers.
#[derive(Parser)]
#[command(name = "offshoot-coordinator", version)]
struct Cli {
    #[command(flatten)]
    args: offshoot_coordinator::Args,
}

fn main() -> anyhow::Result<()> {
    offshoot_coordinator::run(Cli::parse().args)
}

//! An hour of mixed traffic under random faults on real processes, and the judgement on it.
//!
//! `cargo build --release --workspace && target/release/soak --minutes 60`; see docs/faults.md.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing the tables is the purpose of this program"
)]

use std::time::Duration;

use clap::Parser;
use offshoot_e2e::soak::report::Bounds;
use offshoot_e2e::soak::{Plan, run};

/// Mixed traffic under random faults, for as long as it is asked to
#[derive(Debug, Parser)]
struct Args {
    /// Minutes of traffic, rests not counted.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Seconds of traffic between two rests.
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u32).range(10..))]
    between_rests: u32,
    /// Clients at one time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// Different requests.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Decides requests, manners of clients and faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// MiB by which the memory of a process may grow from the second third of the looks at it to the last.
    #[arg(long, default_value_t = 4.0)]
    memory: f64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let plan = Plan {
        time: Duration::from_secs(u64::from(args.minutes) * 60),
        between_rests: Duration::from_secs(args.between_rests.into()),
        clients: args.clients as usize,
        requests: args.requests as usize,
        seed: args.seed,
    };
    let bounds = Bounds {
        memory: args.memory,
        acceptance: Some(0.1),
    };
    let findings = run(plan, |so_far| eprintln!("{}", so_far.tables())).await?;
    println!("{}", findings.tables());
    let found = findings.faults_found(bounds);
    anyhow::ensure!(
        found.is_empty(),
        "not as it has to be: {}",
        found.join("; ")
    );
    println!("Nothing failed, nothing differed, everything is flat.");
    Ok(())
}

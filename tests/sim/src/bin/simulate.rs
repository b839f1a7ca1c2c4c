//! Runs many schedules of the simulated cluster, or one of them with a log of what happens.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's results go to standard output"
)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use simulation::Coverage;
use speculation::strategy::Registry;

/// Runs seeded schedules of a simulated cluster and stops at the first that fails.
#[derive(Debug, Parser)]
struct Args {
    /// Schedules to run.
    #[arg(long, default_value_t = 10_000)]
    schedules: u64,
    /// Threads that share them.
    #[arg(long, default_value_t = 1)]
    threads: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Run only this seed, and print what happens.
    #[arg(long)]
    seed: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // A failed check is a result here: it is printed once, with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    match args.seed {
        Some(seed) => one(seed),
        None => many(&args),
    }
}

fn one(seed: u64) -> ExitCode {
    let (log, result) = simulation::replay(seed, &Registry::default());
    for line in log {
        println!("{line}");
    }
    match result {
        Ok(coverage) => {
            println!("seed {seed} holds: {coverage:?}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("seed {seed} FAILS: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn many(args: &Args) -> ExitCode {
    let begun = Instant::now();
    let next = AtomicU64::new(args.first);
    let end = args.first.saturating_add(args.schedules);
    let stop = AtomicBool::new(false);
    let registry = Registry::default();
    let work = || {
        let mut total = Coverage::default();
        while !stop.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                break;
            }
            match simulation::check(seed, &registry) {
                Ok(coverage) => total = total.plus(coverage),
                Err(reason) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err((seed, reason));
                }
            }
        }
        Ok(total)
    };
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads.max(1))
            .map(|_| scope.spawn(work))
            .collect();
        (threads.into_iter())
            .map(|thread| thread.join().expect("failed checks are caught"))
            .collect()
    });
    let mut total = Coverage::default();
    for result in results {
        match result {
            Ok(coverage) => total = total.plus(coverage),
            Err((seed, reason)) => {
                let after = seed - args.first + 1;
                println!("seed {seed} FAILS, after {after} schedules: {reason}");
                println!(
                    "replay: cargo run --release -p offshoot-sim --bin simulate -- --seed {seed}"
                );
                return ExitCode::FAILURE;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} schedules hold, {seconds:.1} s: {total:?}",
        args.schedules
    );
    ExitCode::SUCCESS
}

//! Prints a table of what users notice of lost processes and disturbed connections.
//!
//! `cargo build --release --workspace && target/release/faults --repetitions 20`; see docs/faults.md.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing the table is the purpose of this program"
)]

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use offshoot_e2e::faults::load::Jobs;
use offshoot_e2e::faults::rig::{Layout, Pace, Rig};
use offshoot_e2e::faults::row::Fault;
use offshoot_e2e::faults::table;
use offshoot_e2e::faults::trial::{Plan, Timing, series};
use speculation::strategy::DEFAULT;

/// Measure faults on a cluster of real processes
#[derive(Debug, Parser)]
struct Args {
    /// Repetitions of each fault.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: u32,
    /// Only rows that contain this text; can be repeated.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// List the rows and exit.
    #[arg(long)]
    list: bool,
    /// Write all figures to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Concurrent requests.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    clients: u32,
    /// Number of prompts, each at two temperatures.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=64))]
    prompts: u32,
    /// Tokens per request.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// A strategy of the requests; repeated, they have them in turn.
    #[arg(long, value_name = "NAME", default_value = DEFAULT)]
    strategy: Vec<String>,
    /// Minimum milliseconds of a target step.
    #[arg(long, default_value_t = 80.0, value_name = "MS")]
    pace_target: f64,
    /// Minimum milliseconds of a qualifier step.
    #[arg(long, default_value_t = 28.0, value_name = "MS")]
    pace_qualifier: f64,
    /// Minimum milliseconds of a draft step.
    #[arg(long, default_value_t = 8.0, value_name = "MS")]
    pace_draft: f64,
    /// Seed of the jitter.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn rows(only: &[String]) -> Vec<Fault> {
    let mut rows = Fault::all();
    rows.retain(|row| {
        let name = format!("{}, {}", row.name(), row.place());
        only.is_empty() || only.iter().any(|text| name.contains(text))
    });
    rows
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let rows = rows(&args.only);
    anyhow::ensure!(
        !rows.is_empty(),
        "no row contains that text; --list shows all rows"
    );
    if args.list {
        for row in rows {
            println!("{}, {}", row.name(), row.place());
        }
        return Ok(());
    }
    let layout = Layout {
        drafts: 2,
        qualifiers: 1,
        targets: 2,
        coordinators: 2,
        pace: Pace {
            draft: args.pace_draft,
            qualifier: args.pace_qualifier,
            target: args.pace_target,
        },
        seed: args.seed,
    };
    eprintln!("plain decoding of the prompts");
    let strategies: Vec<&str> = args.strategy.iter().map(String::as_str).collect();
    let plan = Plan {
        layout,
        clients: args.clients as usize,
        jobs: Jobs::new(args.prompts as usize, args.max_tokens, &strategies).await?,
        repetitions: args.repetitions as usize,
        timing: Timing::FULL,
    };
    let mut rig = Rig::start(layout).await?;
    let mut done = Vec::new();
    for fault in rows {
        eprintln!("{}, {}", fault.name(), fault.place());
        let report = |one: &_| eprintln!("  {one:?}");
        done.push(series(&plan, &mut rig, fault, report).await?);
        // Written after each row, so that a long run that is stopped has results.
        if let Some(path) = &args.json {
            let text = serde_json::to_string_pretty(&table::json(&done))?;
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    println!(
        "*Paced* (target {} ms, qualifier {} ms, draft {} ms); 2 drafts, 1 qualifier, 2 targets, 2 coordinators; \
         {} clients, {} tokens per request, strategy {}.\n",
        args.pace_target,
        args.pace_qualifier,
        args.pace_draft,
        args.clients,
        args.max_tokens,
        strategies.join(", ")
    );
    println!("{}", table::HEAD);
    done.iter()
        .for_each(|series| println!("{}", table::line(series)));
    println!();
    table::notes(&done)
        .iter()
        .for_each(|note| println!("{note}"));
    Ok(())
}

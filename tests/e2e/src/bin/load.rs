//! Clients of a running cluster that check every token, for tests that disturb it from outside (`tests/kubernetes`).
//!
//! `load run --connect HOST:PORT --until FILE` first decodes its prompts with plain decoding, prints `ready`, then sends
//! request after request until the file exists, and prints one line of JSON. `load stop FILE` makes that file, for containers
//! without a shell.

#![allow(
    clippy::print_stdout,
    reason = "printing the result is the purpose of this program"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use offshoot_e2e::client::Client;
use offshoot_e2e::faults::load::{Jobs, Load, Outcome, Record};
use runtime::{Caller, Purpose, TlsArgs};
use speculation::strategy::DEFAULT;

/// The prompts of the tests.
const PROMPTS: &str = include_str!("../../../prompts/rust.jsonl");
/// How often it is looked whether to stop.
const LOOK: Duration = Duration::from_millis(200);
/// Failures that are told in words.
const TOLD: usize = 5;

/// Send requests to a cluster and check every token
#[derive(Debug, Parser)]
enum Args {
    /// Send requests until a file exists.
    Run(Run),
    /// Make that file.
    Stop {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// A coordinator; when one fails, its clients go on with the next one.
    #[arg(long, value_name = "HOST:PORT", required = true, value_delimiter = ',')]
    connect: Vec<String>,
    /// Stops once this file exists.
    #[arg(long, value_name = "FILE")]
    until: PathBuf,
    /// Concurrent requests.
    #[arg(long, default_value_t = 3)]
    clients: usize,
    /// Prompts, each at two temperatures.
    #[arg(long, default_value_t = 4)]
    prompts: usize,
    /// Tokens of a request.
    #[arg(long, default_value_t = 80)]
    max_tokens: u32,
    /// Seconds without an event after which a client tries the next coordinator.
    #[arg(long, default_value_t = 40)]
    patience: u64,
    #[command(flatten)]
    tls: TlsArgs,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    runtime::tls::install_provider();
    match Args::parse() {
        Args::Run(args) => run(args).await,
        Args::Stop { file } => {
            std::fs::write(&file, "").with_context(|| format!("writing {}", file.display()))
        }
    }
}

async fn run(args: Run) -> anyhow::Result<()> {
    let caller = Caller::new(args.tls.load(Purpose::Call)?);
    let first = args.connect.first().context("no coordinator")?;
    let client = Client::connect_ready(&caller, first).await?;
    let jobs = Jobs::decode(
        &client,
        &prompts(args.prompts)?,
        args.max_tokens,
        &[DEFAULT],
    )
    .await?;
    let load = Load {
        clients: args.clients,
        jobs,
        first: 0,
        coordinators: args.connect,
        caller,
        patience: Duration::from_secs(args.patience),
    };
    println!("ready");
    let begun = Instant::now();
    let running = load.start();
    let mut looks = tokio::time::interval(LOOK);
    while !exists(&args.until) {
        looks.tick().await;
    }
    let lasted = begun.elapsed();
    println!("{}", summary(&running.finish().await?, begun, lasted));
    Ok(())
}

fn exists(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}

fn prompts(most: usize) -> anyhow::Result<Vec<String>> {
    let prompt = |line: &str| -> anyhow::Result<String> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        Ok(value["prompt"].as_str().context("no prompt")?.to_owned())
    };
    PROMPTS.lines().take(most).map(prompt).collect()
}

fn summary(records: &[Record], begun: Instant, lasted: Duration) -> serde_json::Value {
    let failures: Vec<_> = (records.iter())
        .filter_map(|record| match &record.outcome {
            Outcome::Complete => None,
            Outcome::Failed(why) => Some(why.as_str()),
        })
        .collect();
    let interruptions: Vec<_> = (records.iter())
        .flat_map(|record| record.interruptions.iter().map(String::as_str))
        .collect();
    let longest = records.iter().map(|record| record.longest_gap(begun)).max();
    serde_json::json!({
        "seconds": lasted.as_secs_f64(),
        "requests": records.len(),
        "failed": failures.len(),
        "interrupted": records.iter().filter(|record| !record.interruptions.is_empty()).count(),
        "differing": records.iter().map(|record| record.differing).sum::<usize>(),
        "longest_gap_ms": longest.unwrap_or_default().as_millis() as u64,
        "failures": failures.iter().take(TOLD).collect::<Vec<_>>(),
        "interruptions": interruptions.iter().take(TOLD).collect::<Vec<_>>(),
    })
}

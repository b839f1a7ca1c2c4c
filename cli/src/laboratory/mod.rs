//! `offshoot simulate` and `offshoot advise`: how fast a cluster would be, computed in virtual time by the crate
//! `laboratory`.
//!
//! No process is started and no model is read. Figures are neither measured nor of models, and every table says so.

mod advise;
mod against;
mod args;
mod record;
mod replay;
mod report;
mod runs;
mod timeline;

pub(crate) use advise::{AdviseArgs, advise};
pub(crate) use record::{RecordArgs, record};

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use laboratory::Counts;
use speculation::Time;
use speculation::strategy::Registry;

use crate::End;
use crate::bench::{self, Contender};
use crate::console;
use args::{LoadArgs, NetworkArgs, TrafficArgs};
use report::Report;
use timeline::Drawing;

/// Arguments of `offshoot simulate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot simulate --profile nano --step-ms target=20,draft=2 --strategies ar,serial,auto
  offshoot simulate --accept 0.8 --step-ms target=20,draft=2 --strategies serial:gamma=4,parallel:gamma=8
  offshoot simulate --accept-beta 0.7,4,0.4 --step-ms target=20,draft=2 --strategies serial,branch:hrad=0,auto
  offshoot simulate --targets 4 --drafts 12 --concurrency 32 --requests 320 --strategies ar,auto
  offshoot simulate --targets 4 --drafts 4 --concurrency 64 --requests 100000 --arrivals day:6 --strategies ar,auto
  offshoot simulate --strategies serial,auto --timeline timeline.svg
  offshoot simulate --delay-ms 5 --jitter-ms 1 --strategies serial,auto
  offshoot simulate --against bench.json --prompts prompts.jsonl   # of a bench with --synthetic and --step-ms
  offshoot simulate --replay traffic.json                          # of offshoot record: the very steps of the cluster

Everything happens in virtual time: strategies, sessions, relay and hosts are those of the product, answers are drawn from
the profile, steps last as long as the tables say. The table goes to stdout.")]
pub(crate) struct SimulateArgs {
    /// Strategies to compare, with knobs as in a bench [default: all]
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "NAME,...",
        default_values_t = Contender::all(),
        hide_default_value = true
    )]
    strategies: Vec<Contender>,
    /// Targets
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    targets: u16,
    /// Qualifiers
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    qualifiers: u16,
    /// Drafts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1024))]
    drafts: u16,
    #[command(flatten)]
    traffic: TrafficArgs,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    network: NetworkArgs,
    /// Also draw what every worker does, strategy by strategy, as an SVG
    #[arg(long, value_name = "OUT.svg", conflicts_with = "against")]
    timeline: Option<PathBuf>,
    /// With --timeline: which time, from and until, milliseconds
    #[arg(long, value_name = "MS,MS", default_value = "2000,2300", value_parser = args::window, requires = "timeline")]
    timeline_ms: (Time, Time),
    /// Predict what was measured instead, and compare: the JSON of a bench with --synthetic and --step-ms, whose profile,
    /// step times, workers, strategies and load are taken
    #[arg(long, value_name = "BENCH.json", conflicts_with_all = ["strategies", "targets", "qualifiers", "drafts"])]
    against: Option<PathBuf>,
    /// With --against: the prompt file of the bench. Then the very texts of the bench are predicted, and compared
    #[arg(long, value_name = "FILE.jsonl", requires = "against")]
    prompts: Option<PathBuf>,
    /// With --prompts: the target's tokenizer.json and config.json [default: the bundled one]
    #[arg(long, value_name = "DIR", requires = "prompts")]
    target: Option<PathBuf>,
    /// With --against: by how much a prediction may differ, percent; beyond that the command fails
    #[arg(
        long,
        value_name = "PERCENT",
        default_value_t = 10.0,
        value_parser = args::percent,
        requires = "against"
    )]
    within: f64,
    /// Take the steps of a recorded cluster again instead, one by one: the file of `offshoot record`. The command fails when one of
    /// them commits something else than it did
    #[arg(
        long,
        value_name = "RECORDING",
        conflicts_with_all = ["strategies", "targets", "qualifiers", "drafts", "against", "timeline", "profile"]
    )]
    replay: Option<PathBuf>,
    /// Also write all results to this file, as JSON
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// Simulates every strategy and prints the table.
///
/// # Errors
/// When an input is invalid, or predictions differ too much from what was measured.
pub(crate) fn simulate(args: &SimulateArgs) -> Result<End> {
    if let Some(path) = &args.json {
        bench::check_writable(path)?;
    }
    if let Some(measured) = &args.against {
        return against::run(measured, args);
    }
    if let Some(recording) = &args.replay {
        return replay::run(recording, args.json.as_deref());
    }
    let counts = Counts {
        targets: args.targets.into(),
        qualifiers: args.qualifiers.into(),
        drafts: args.drafts.into(),
    };
    let cluster = args.traffic.cluster(counts, &args.network)?;
    let (mut load, registry) = (args.load.load()?, Registry::default());
    load.watch = args.timeline.as_ref().map(|_| args.timeline_ms);
    let mut drawing = Drawing::new(args.timeline_ms);
    let mut report = Report::new(&cluster, &load, &args.traffic)?;
    let (begun, mut tokens) = (Instant::now(), 0);
    for contender in &args.strategies {
        let progress = console::Progress::counted(1, format!("simulating {contender}"));
        let outcome = args::run(&cluster, &load, contender, &registry);
        progress.clear();
        let outcome = outcome?;
        tokens += outcome.tokens();
        drawing.add(contender, &outcome);
        report.add(contender, outcome);
    }
    let took = begun.elapsed().as_secs_f64();
    console::say(&format!(
        "{tokens} tokens in {took:.1} s of this machine's time, {:.0} a second",
        tokens as f64 / took
    ));
    console::put(&report.table())?;
    if let Some(path) = &args.timeline {
        fs::write(path, drawing.svg())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string(&report).context("cannot write the report as JSON")?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(End::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        simulate: SimulateArgs,
    }

    #[test]
    fn a_table_says_what_it_is_and_names_devices() {
        let flags = "probe --strategies ar,serial:gamma=3 --requests 2 --max-tokens 40";
        let args = Probe::parse_from(flags.split(' ')).simulate;
        let counts = Counts {
            targets: 1,
            qualifiers: 1,
            drafts: 1,
        };
        let cluster = args.traffic.cluster(counts, &args.network).unwrap();
        let (load, registry) = (args.load.load().unwrap(), Registry::default());
        let mut report = Report::new(&cluster, &load, &args.traffic).unwrap();
        for contender in &args.strategies {
            let outcome = args::run(&cluster, &load, contender, &registry).unwrap();
            report.add(contender, outcome);
        }
        let table = report.table();
        assert!(table.starts_with("SIMULATED"), "{table}");
        let devices = |name: &str| {
            let row = table.lines().find(|line| line.starts_with(name)).unwrap();
            row.split_whitespace().nth(1).unwrap().to_owned()
        };
        assert_eq!((devices("ar"), devices("serial")), ("1".into(), "2".into()));
        assert!(table.contains("differ"), "{table}");
    }
}

//! `offshoot bench-engine`: step time by number of rows, against what the machine can do.
//!
//! Beside each step stand the time to read the weights once at the bandwidth measured in the same run, the roofline
//! (that, or the arithmetic at the measured peak, whichever is longer), and if asked for the stock candle matmul over the same
//! weight shapes. Row counts and both implementations take turns, so that drift of the machine hits all alike.

mod report;
mod shapes;
#[cfg_attr(not(feature = "candle"), path = "stock_missing.rs")]
mod stock;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use decode::{Ask, CacheOp, NodeId, Row, StepPlan};
use engine::{Backend, CpuEngine, EngineOptions, ModelConfig, SeqId, WeightDtype};

use crate::bench::{check_writable, machine};
use crate::console::{self, Progress};
use crate::models;
use crate::statistics::{median, milliseconds};
use report::{Report, RowReport};
use stock::Stock;

/// Arguments of `offshoot bench-engine`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot bench-engine --model models/target
  offshoot models deepen --layers 64 --out deep && offshoot bench-engine --model deep --dtype f32 --threads 2

The stock column times candle_core's f32 matmul over the same weight shapes, nothing else of a step.")]
pub(crate) struct EngineBenchArgs {
    /// Model in the Hugging Face layout [default: the bundled target]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of the bundled models
    #[arg(long, env = "OFFSHOOT_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
    /// Rows of a step
    #[arg(long, value_delimiter = ',', value_name = "N,...", default_value = "1,2,4,8,16,32",
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    rows: Vec<u16>,
    /// How weights are held in memory [default: as in the checkpoint]
    #[arg(long, value_enum)]
    dtype: Option<DtypeName>,
    /// Threads of a step
    #[arg(long, value_name = "N", default_value = "1")]
    threads: NonZeroUsize,
    /// Steps per row count; the median counts
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
    /// Tokens in the cache before the first step
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    prefix: u32,
    /// Shape of the rows
    #[arg(long, value_enum, default_value_t)]
    shape: Shape,
    /// Time the stock matmul of candle too (in a build with --features candle)
    #[arg(long)]
    stock: bool,
    /// Also write everything as JSON
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// How weights are held.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum DtypeName {
    /// 4 bytes a weight
    F32,
    /// 2 bytes a weight
    Bf16,
    /// 34 bytes for 32 weights
    #[value(name = "q8_0")]
    Q8_0,
    /// 18 bytes for 32 weights
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<DtypeName> for WeightDtype {
    fn from(name: DtypeName) -> WeightDtype {
        match name {
            DtypeName::F32 => WeightDtype::F32,
            DtypeName::Bf16 => WeightDtype::Bf16,
            DtypeName::Q8_0 => WeightDtype::Q8_0,
            DtypeName::Q4_0 => WeightDtype::Q4_0,
        }
    }
}

/// What the rows of a step are to each other.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Shape {
    /// Each row has two children
    #[default]
    Tree,
    /// Each row has one child
    Chain,
}

impl Shape {
    /// The row that row `index` hangs from; `None` for the first.
    fn parent(self, index: u16) -> Option<u16> {
        let before = index.checked_sub(1)?;
        Some(match self {
            Shape::Tree => before / 2,
            Shape::Chain => before,
        })
    }

    /// A step of `rows` rows, parents first, all of whose logits are computed.
    fn plan(self, rows: u16, vocab: usize) -> StepPlan {
        let row = |index| Row {
            node: node(index),
            parent: self.parent(index).map(node),
            token: token(usize::from(index), vocab),
            path: Vec::new(),
            ask: SHOWN,
        };
        StepPlan {
            rows: (0..rows).map(row).collect(),
            ..StepPlan::default()
        }
    }
}

/// What each row is asked, so that its logits are computed. They are read and dropped: drawing a token from them is no
/// part of the figures.
const SHOWN: Ask = Ask::Guesses(0);

fn node(index: u16) -> NodeId {
    NodeId {
        index: index.into(),
        generation: 0,
    }
}

/// Some token of the vocabulary; which one does not change the time of a step.
fn token(index: usize, vocab: usize) -> u32 {
    u32::try_from(index.wrapping_mul(31) % vocab.max(1)).unwrap_or(0)
}

/// Measures and reports.
///
/// # Errors
/// When the model does not load or is too short for the steps, or the result cannot be written.
pub(crate) fn run(args: &EngineBenchArgs) -> Result<()> {
    if let Some(path) = &args.json {
        check_writable(path)?;
    }
    let dir = match &args.model {
        Some(dir) => models::checked(dir.clone())?,
        None => models::checked(models::bundled(args.models.as_deref())?.join("target"))?,
    };
    let progress = Progress::spinner("loading the model");
    let mut bench = Bench::load(args, &dir)?;
    progress.clear();
    let progress = Progress::spinner("measuring the machine");
    let bandwidth =
        engine::cpu::bench::read_bandwidth(args.threads).context("cannot start threads")?;
    let flops = engine::cpu::bench::peak_flops(args.threads).context("cannot start threads")?;
    let stock = (args.stock)
        .then(|| Stock::new(bench.engine.config(), args.threads))
        .transpose()?;
    progress.clear();
    let times = bench.measure(args, stock.as_ref())?;

    let weight_bytes = bench.engine.weight_bytes();
    let weights = shapes::weights(bench.engine.config());
    let floor_ms = weight_bytes as f64 / bandwidth * 1e3;
    let report = Report {
        model: dir.display().to_string(),
        dtype: dtype_name(weight_bytes, weights),
        threads: args.threads.get(),
        machine: machine(),
        prefix: args.prefix,
        repeats: args.repeats,
        weight_bytes,
        bandwidth_gb_s: bandwidth / 1e9,
        peak_gflops: flops / 1e9,
        floor_ms,
        stock_share: stock.as_ref().map(Stock::share),
        rows: times
            .into_iter()
            .map(|times| times.report(floor_ms, weights, flops))
            .collect(),
    };
    console::put(&report.table())?;
    if let Some(path) = &args.json {
        let text =
            serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// The type in which the engine holds that many weights in that many bytes; padding of the packs is below a half.
fn dtype_name(bytes: usize, weights: usize) -> &'static str {
    if bytes < weights.saturating_mul(3) / 2 {
        "blocks"
    } else if bytes < weights.saturating_mul(3) {
        WeightDtype::Bf16.name()
    } else {
        WeightDtype::F32.name()
    }
}

/// A loaded model with one sequence in its cache.
struct Bench {
    engine: CpuEngine,
    sequence: SeqId,
}

impl Bench {
    fn load(args: &EngineBenchArgs, dir: &std::path::Path) -> Result<Bench> {
        let most_rows = args
            .rows
            .iter()
            .copied()
            .max()
            .context("--rows names no row count")?;
        let config = ModelConfig::read(dir)?;
        let prefix = args.prefix as usize;
        let deepest = prefix.saturating_add(usize::from(most_rows));
        if deepest > config.max_positions {
            bail!(
                "a prefix of {prefix} and {most_rows} rows do not fit in the model's context of {}; lower --prefix or \
                 --rows",
                config.max_positions
            );
        }
        let options = EngineOptions {
            dtype: args.dtype.map(WeightDtype::from),
            threads: args.threads,
            scratch_rows: most_rows,
            max_rows: usize::from(most_rows).max(prefix),
            ..EngineOptions::for_sequences(deepest, 1)
        };
        let mut engine = CpuEngine::load(dir, &options)?;
        let sequence = engine.open(prefix)?;
        let mut bench = Bench { engine, sequence };
        let tokens: Vec<_> = (0..prefix)
            .map(|index| token(index, config.vocab_size))
            .collect();
        let mut prompt = StepPlan::append(&tokens);
        prompt.asks = vec![SHOWN];
        bench.step(&prompt)?;
        Ok(bench)
    }

    /// Runs one step and takes its rows out of the cache again.
    fn step(&mut self, plan: &StepPlan) -> Result<Duration> {
        let begun = Instant::now();
        self.engine
            .read_logits(&[(self.sequence, plan)], &mut |_, _, _| {})?;
        let elapsed = begun.elapsed();
        let nodes = plan.rows.iter().map(|row| row.node).collect();
        self.engine.apply(self.sequence, &CacheOp::Drop(nodes))?;
        Ok(elapsed)
    }

    fn measure(&mut self, args: &EngineBenchArgs, stock: Option<&Stock>) -> Result<Vec<Times>> {
        let vocab = self.engine.config().vocab_size;
        let mut all: Vec<_> = args
            .rows
            .iter()
            .map(|&rows| Times {
                rows,
                step: Vec::new(),
                stock: Vec::new(),
            })
            .collect();
        let plans: Vec<_> = args
            .rows
            .iter()
            .map(|&rows| args.shape.plan(rows, vocab))
            .collect();
        let progress = Progress::counted((args.repeats as usize + 1) * all.len(), "measuring");
        for repeat in 0..=args.repeats {
            for (times, plan) in all.iter_mut().zip(&plans) {
                let step = self.step(plan)?;
                let stock = stock
                    .map(|stock| stock.pass(usize::from(times.rows)))
                    .transpose()?;
                // The first round warms up.
                if repeat > 0 {
                    times.step.push(milliseconds(step));
                    times.stock.extend(stock.map(milliseconds));
                }
                progress.step();
            }
        }
        progress.clear();
        Ok(all)
    }
}

/// What was measured for one row count, in milliseconds.
struct Times {
    rows: u16,
    step: Vec<f64>,
    stock: Vec<f64>,
}

impl Times {
    fn report(self, floor_ms: f64, weights: usize, flops: f64) -> RowReport {
        let step_ms = median(self.step).unwrap_or(f64::NAN);
        // Each weight is multiplied and added once for each row.
        let arithmetic_ms = 2.0 * weights as f64 * f64::from(self.rows) / flops * 1e3;
        let roofline_ms = floor_ms.max(arithmetic_ms);
        RowReport {
            rows: self.rows,
            step_ms,
            stock_candle_ms: median(self.stock),
            over_floor: step_ms / floor_ms,
            roofline_ms,
            over_roofline: step_ms / roofline_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        bench: EngineBenchArgs,
    }

    fn parse(flags: &[&str]) -> Result<EngineBenchArgs, clap::Error> {
        Probe::try_parse_from(["probe"].iter().chain(flags)).map(|probe| probe.bench)
    }

    #[test]
    fn flags_are_understood() {
        let args = parse(&["--rows", "1,8", "--dtype", "bf16", "--threads", "2"]).unwrap();
        assert_eq!(
            (args.rows, args.dtype, args.threads.get()),
            (vec![1, 8], Some(DtypeName::Bf16), 2)
        );
        assert_eq!(parse(&[]).unwrap().rows, [1, 2, 4, 8, 16, 32]);
        for bad in [
            ["--rows", "0"],
            ["--rows", "x"],
            ["--threads", "0"],
            ["--dtype", "f64"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn parents_come_before_children() {
        for shape in [Shape::Tree, Shape::Chain] {
            let rows = shape.plan(9, 100).rows;
            assert_eq!(rows[0].parent, None);
            for (index, row) in rows.iter().enumerate().skip(1) {
                let parent = row.parent.unwrap();
                assert!(rows[..index].iter().any(|above| above.node == parent));
            }
        }
        assert_eq!(Shape::Tree.parent(5), Some(2));
        assert_eq!(Shape::Chain.parent(5), Some(4));
    }

    #[test]
    fn the_roofline_is_the_longer_of_both_sides() {
        let times = |rows| Times {
            rows,
            step: vec![3.0, 2.0, 4.0],
            stock: Vec::new(),
        };
        // 1000 weights at 10^6 operations a second: 2 ms a row.
        let one = times(1).report(2.5, 1000, 1e6);
        assert_eq!(
            (one.step_ms, one.roofline_ms, one.over_roofline),
            (3.0, 2.5, 1.2)
        );
        assert_eq!(one.stock_candle_ms, None);
        let two = times(2).report(2.5, 1000, 1e6);
        assert_eq!((two.roofline_ms, two.over_roofline), (4.0, 0.75));
    }

    #[test]
    fn the_bundled_draft_is_measured() {
        let models = models::bundled(None).unwrap();
        let args = parse(&["--rows", "1,3", "--repeats", "2"]).unwrap();
        let mut bench = Bench::load(&args, &models.join("draft")).unwrap();
        let times = bench.measure(&args, None).unwrap();
        assert!(
            times
                .iter()
                .all(|times| times.step.len() == 2 && times.step.iter().all(|&ms| ms > 0.0))
        );
        assert_eq!(
            bench.engine.len(bench.sequence),
            64,
            "steps leave the prefix as it is"
        );
        let long = parse(&["--prefix", "100000"]).unwrap();
        let error = Bench::load(&long, &models.join("draft"))
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("--prefix"), "{error}");
    }
}

//! `offshoot trace`: a small trace collector, and drawings of what it received.
//!
//! [`receive`] takes spans from any OTLP exporter and writes them as the OpenTelemetry Collector's file exporter does;
//! [`timeline`] reads such files, [`svg`] and [`chrome`] draw one trace of them: a track for each process, on one time
//! line. [`collect`] is a collector inside a command that traces its own requests. Apart from the order of the roles, nothing here is specific to Offshoot's spans.

mod chrome;
mod collect;
mod receive;
mod svg;
mod timeline;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::{End, console, roles};
pub(crate) use chrome::draw as draw_chrome;
pub(crate) use collect::Collector;
pub(crate) use svg::{draw as draw_svg, escape, ticks};
pub(crate) use timeline::{Bar, NOBODY, Timeline, Track, guessers};

/// Traces without further software.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum TraceCommand {
    /// Receive spans over OTLP/gRPC and write them to a file until Ctrl-C
    Receive(receive::ReceiveArgs),
    /// Draw one trace as an SVG timeline, or convert it for Chrome and Perfetto
    Draw(DrawArgs),
}

/// Arguments of `offshoot trace draw`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot trace receive --port 4317 --out trace.jsonl &
  offshoot generate --otlp-traces-endpoint http://127.0.0.1:4317 --max-tokens 24 \"fn main() {\"
  offshoot trace draw trace.jsonl --svg trace.svg --chrome trace.json

The JSON opens in ui.perfetto.dev and chrome://tracing.")]
pub(crate) struct DrawArgs {
    /// File written by `trace receive` or a collector's file exporter: OTLP JSON, one export per line
    file: PathBuf,
    /// Prefix of the trace id [default: the trace with the most spans]
    #[arg(long, value_name = "HEX")]
    trace: Option<String>,
    /// Write a self-contained SVG to this file
    #[arg(long, value_name = "FILE", required_unless_present = "chrome")]
    svg: Option<PathBuf>,
    /// Write the trace to this file in Chrome's format
    #[arg(long, value_name = "FILE")]
    chrome: Option<PathBuf>,
}

/// Runs one of the commands.
///
/// # Errors
/// When a file cannot be read or written, or the address cannot be bound.
pub(crate) fn run(command: TraceCommand) -> Result<End> {
    match command {
        TraceCommand::Receive(args) => roles::block_on(receive::run(args)),
        TraceCommand::Draw(args) => draw(&args).map(|()| End::Done),
    }
}

fn draw(args: &DrawArgs) -> Result<()> {
    let path = args.file.display();
    let text = fs::read_to_string(&args.file).with_context(|| format!("cannot read {path}"))?;
    let spans = timeline::parse(&text).with_context(|| format!("cannot read {path}"))?;
    let wanted = args.trace.as_deref().unwrap_or_default();
    let Some(timeline) = Timeline::of(spans, wanted) else {
        bail!("{path} has no trace with an id that starts with {wanted:?}");
    };
    let write = |path: &PathBuf, content: String| {
        fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &args.svg {
        write(path, svg::draw(&timeline))?;
    }
    if let Some(path) = &args.chrome {
        write(path, chrome::draw([("", &timeline)]))?;
    }
    console::say(&format!(
        "trace {}: {} spans of {} processes over {:.1} ms",
        timeline.trace,
        timeline
            .tracks
            .iter()
            .map(|track| track.bars.len())
            .sum::<usize>(),
        timeline.tracks.len(),
        timeline.length_ns as f64 / 1e6,
    ));
    Ok(())
}

//! The steps of recorded completions in the file of a recording.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use proto::{inward, v1};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use speculation::journal::Run;

use crate::bench::Contender;

/// The version of a profile that has steps.
const VERSION: u32 = 2;
/// Files beyond this many bytes are not read, as profiles are not.
const MOST_BYTES: u64 = 16 << 20;

/// The part of the file that is read here.
#[derive(Deserialize)]
struct Content {
    format: String,
    version: u32,
    #[serde(default)]
    runs: Vec<Steps>,
}

/// The steps of one target for one text, described in docs/laboratory.md.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Steps {
    strategy: String,
    room: u32,
    node_counts: Vec<u32>,
    rescored_counts: Vec<u32>,
    pick_counts: Vec<u32>,
    rooms: Vec<u32>,
    submitted: Vec<u32>,
    ended_us: Vec<u64>,
    took_us: Vec<u64>,
    forecasts: Vec<u8>,
    parents: Vec<u32>,
    /// The bits of each number, so that it is the same again.
    edges: Vec<u32>,
    sources: Vec<u8>,
    rescored: Vec<u32>,
    rescored_edges: Vec<u32>,
    picks: Vec<u32>,
}

impl Steps {
    fn of(strategy: String, run: v1::RecordedRun) -> Steps {
        let journal = run.journal.unwrap_or_default();
        let bits = |edges: Vec<f32>| edges.into_iter().map(f32::to_bits).collect();
        Steps {
            strategy,
            room: run.room,
            node_counts: journal.node_counts,
            rescored_counts: journal.rescored_counts,
            pick_counts: journal.pick_counts,
            rooms: journal.rooms,
            submitted: journal.submitted,
            ended_us: journal.ended_us,
            took_us: journal.took_us,
            forecasts: journal.forecasts,
            parents: journal.parents,
            edges: bits(journal.edges),
            sources: journal.sources,
            rescored: journal.rescored,
            rescored_edges: bits(journal.rescored_edges),
            picks: journal.picks,
        }
    }

    fn run(self) -> Result<Run> {
        let contender: Contender = self.strategy.parse().map_err(anyhow::Error::msg)?;
        let edges = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect();
        let run = inward::run(v1::RecordedRun {
            strategy: String::new(),
            knobs: Default::default(),
            room: self.room,
            journal: Some(v1::Journal {
                node_counts: self.node_counts,
                rescored_counts: self.rescored_counts,
                pick_counts: self.pick_counts,
                rooms: self.rooms,
                submitted: self.submitted,
                ended_us: self.ended_us,
                took_us: self.took_us,
                forecasts: self.forecasts,
                parents: self.parents,
                edges: edges(self.edges),
                sources: self.sources,
                rescored: self.rescored,
                rescored_edges: edges(self.rescored_edges),
                picks: self.picks,
            }),
        })?;
        Ok(Run {
            strategy: contender.settings,
            ..run
        })
    }
}

/// The file of a recording: that of its profile, with the steps of its completions if there are any.
///
/// # Errors
/// When a run is none.
pub(super) fn write(profile: String, runs: Vec<v1::RecordedRun>) -> Result<String> {
    if runs.is_empty() {
        return Ok(profile);
    }
    let mut steps = Vec::with_capacity(runs.len());
    for run in runs {
        let settings = inward::settings(run.strategy.clone(), run.knobs.clone())?;
        let strategy = Contender::of(settings).to_string();
        steps.push(Steps::of(strategy, run));
    }
    let mut content: Value = serde_json::from_str(&profile).context("the profile is not JSON")?;
    content["version"] = VERSION.into();
    content["runs"] = serde_json::to_value(steps).context("the steps cannot be written")?;
    let mut text = serde_json::to_string(&content).context("the recording cannot be written")?;
    text.push('\n');
    Ok(text)
}

/// The steps in a recording.
///
/// # Errors
/// When the file cannot be read, is no recording, or has no steps.
pub(super) fn read(path: &Path) -> Result<Vec<Run>> {
    let place = path.display();
    let file = File::open(path).with_context(|| format!("cannot read {place}"))?;
    let mut text = Vec::new();
    (file.take(MOST_BYTES + 1).read_to_end(&mut text))
        .with_context(|| format!("cannot read {place}"))?;
    if text.len() as u64 > MOST_BYTES {
        bail!("{place} is larger than {MOST_BYTES} bytes");
    }
    let content: Content =
        serde_json::from_slice(&text).with_context(|| format!("{place} is not a recording"))?;
    if content.format != "offshoot-profile" || content.version > VERSION {
        bail!("{place} is not a recording of version {VERSION} or older");
    }
    if content.runs.is_empty() {
        bail!(
            "{place} has no steps: it is a profile, or a recording of targets of an older version"
        );
    }
    let runs = (1..).zip(content.runs);
    runs.map(|(number, steps)| {
        (steps.run()).with_context(|| format!("{place}: the run number {number}"))
    })
    .collect()
}

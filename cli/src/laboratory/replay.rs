//! `offshoot simulate --replay`: the steps of a real run, taken again by the session machine that took them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use laboratory::replay::{Replayed, replay};
use serde::Serialize;
use speculation::strategy::Registry;

use super::runs;
use crate::End;
use crate::bench::{Contender, align};
use crate::console;

/// One run, for the JSON.
#[derive(Serialize)]
struct Row {
    strategy: String,
    /// Tokens that each step committed when it was recorded, and when it was taken again.
    recorded: Vec<usize>,
    replayed: Vec<usize>,
    /// Guesses that each step submitted, as recorded.
    submitted: Vec<usize>,
    acceptance_length: f64,
    /// The same had every guess that was there been in the step.
    possible_acceptance_length: f64,
    tok_s: f64,
    is_same: bool,
}

impl Row {
    fn of(strategy: String, run: &Replayed) -> Row {
        let tokens = |steps: &[speculation::replay::Again]| -> Vec<usize> {
            steps.iter().map(|step| step.tokens).collect()
        };
        let per_step = |count: usize| match run.recorded.len() {
            0 => 0.0,
            steps => count as f64 / steps as f64,
        };
        let recorded = tokens(&run.recorded);
        let all: usize = recorded.iter().sum();
        let took = run.took.as_secs_f64();
        let behind_first = all - recorded.first().copied().unwrap_or(0);
        Row {
            strategy,
            replayed: tokens(&run.steps),
            submitted: run.recorded.iter().map(|step| step.submitted).collect(),
            acceptance_length: per_step(all),
            possible_acceptance_length: per_step(run.possible.iter().sum()),
            tok_s: if took > 0.0 {
                behind_first as f64 / took
            } else {
                0.0
            },
            is_same: run.first_difference().is_none(),
            recorded,
        }
    }

    fn cells(&self) -> Vec<String> {
        let rows: usize = self.submitted.iter().sum();
        let same = (self.recorded.iter().zip(&self.replayed))
            .filter(|(a, b)| a == b)
            .count();
        vec![
            self.strategy.clone(),
            self.recorded.len().to_string(),
            self.recorded.iter().sum::<usize>().to_string(),
            format!("{:.1}", self.tok_s),
            format!("{:.1}", rows as f64 / self.recorded.len().max(1) as f64),
            format!("{:.2}", self.acceptance_length),
            format!("{:.2}", self.possible_acceptance_length),
            format!("{same} of {}", self.recorded.len()),
        ]
    }
}

const HEADINGS: [&str; 8] = [
    "run",
    "steps",
    "tokens",
    "tok/s",
    "guesses a step",
    "M",
    "M with all guesses",
    "steps as recorded",
];

/// Takes the steps of every run again.
///
/// # Errors
/// When the file has none, or a step does something else than was recorded.
pub(super) fn run(file: &Path, json: Option<&Path>) -> Result<End> {
    let registry = Registry::default();
    let mut rows = Vec::new();
    let mut differing = 0;
    for (number, run) in (1..).zip(runs::read(file)?) {
        let replayed = replay(&run, &registry)
            .with_context(|| format!("{}: the run number {number}", file.display()))?;
        if let Some(step) = replayed.first_difference() {
            console::say(&format!(
                "run {number} differs in step {}: recorded {:?}, taken again {:?}",
                step + 1,
                replayed.recorded.get(step),
                replayed.steps.get(step)
            ));
            differing += 1;
        }
        rows.push(Row::of(Contender::of(run.strategy).to_string(), &replayed));
    }
    let mut out = String::new();
    let _ = writeln!(
        out,
        "REPLAYED from {}: as it was measured, step by step",
        file.display()
    );
    let table = rows.iter().map(Row::cells);
    let table: Vec<_> = [HEADINGS.map(str::to_owned).to_vec()]
        .into_iter()
        .chain(table)
        .collect();
    align(&mut out, &table);
    console::put(&out)?;
    if let Some(path) = json {
        let text = serde_json::to_string(&rows).context("cannot write the report as JSON")?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if differing > 0 {
        bail!(
            "{differing} of {} runs were not taken again as they were recorded",
            rows.len()
        );
    }
    Ok(End::Done)
}

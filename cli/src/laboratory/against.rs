//! `offshoot simulate --against`: what the laboratory would have predicted of a bench that was measured.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use engine::ModelConfig;
use laboratory::{Cluster, Counts, Load, Prompts, Vocabulary};
use serde::Deserialize;
use speculation::strategy::Registry;
use text::{Special, Tokenizer};

use super::SimulateArgs;
use super::args::{LoadArgs, NetworkArgs, TrafficArgs, When, run as simulate};
use super::report::Row;
use crate::End;
use crate::bench::{self, Contender, align};
use crate::cluster::step_ms;
use crate::console;
use crate::models;

/// Files beyond this many bytes are not read.
const MOST_BYTES: u64 = 256 << 20;

/// What is read of the JSON of a bench.
#[derive(Deserialize)]
struct Measured {
    step_ms: Option<BTreeMap<String, String>>,
    synthetic: Option<Synthetic>,
    models: BTreeMap<String, String>,
    drafts: u16,
    prompts: u32,
    repeats: u32,
    concurrency: u32,
    max_tokens: u32,
    temperature: f32,
    seed: u64,
    strategies: Vec<Strategy>,
}

#[derive(Deserialize)]
struct Synthetic {
    profile: String,
}

#[derive(Deserialize)]
struct Strategy {
    label: String,
    tok_s: Option<f64>,
    acceptance_length: f64,
    hit_rate: f64,
    token_ids: Vec<Vec<u32>>,
}

/// Compares predictions with what was measured.
///
/// # Errors
/// When the file is not that of a bench with step times and a profile, or a prediction is too far from the measurement.
pub(super) fn run(file: &Path, args: &SimulateArgs) -> Result<End> {
    let measured = read(file)?;
    let Some(tables) = &measured.step_ms else {
        bail!(
            "{} is of a bench without --step-ms: nothing says how long steps last",
            file.display()
        );
    };
    let Some(synthetic) = &measured.synthetic else {
        bail!(
            "{} is of a bench without --synthetic: nothing says how the models agree",
            file.display()
        );
    };
    let tables: Vec<String> = (tables.iter())
        .map(|(role, table)| format!("{role}={table}"))
        .collect();
    let traffic = TrafficArgs {
        // What is given on the command line is the file of the profile whose name the bench knows.
        profile: match args.traffic.profile.is_file() {
            true => args.traffic.profile.clone(),
            false => PathBuf::from(&synthetic.profile),
        },
        accept: Vec::new(),
        accept_beta: Vec::new(),
        step_ms: step_ms(&tables.join(","))
            .map_err(anyhow::Error::msg)
            .with_context(|| format!("step_ms of {}", file.display()))?,
        ..args.traffic.clone()
    };
    let counts = Counts {
        targets: 1,
        qualifiers: usize::from(measured.models.contains_key("qualifier")),
        drafts: measured.drafts.into(),
    };
    let network = NetworkArgs {
        answers: args.network.answers.or(Some(When::Beginning)),
        ..args.network
    };
    let mut cluster = traffic.cluster(counts, &network)?;
    if cluster.profile.name() != synthetic.profile {
        bail!(
            "the bench was drawn from the profile {}, and this is {}; name its file with --profile",
            synthetic.profile,
            cluster.profile.name()
        );
    }
    let mut load = LoadArgs {
        requests: measured.prompts.saturating_mul(measured.repeats),
        concurrency: measured.concurrency,
        max_tokens: measured.max_tokens,
        temperature: measured.temperature,
        arrivals: None,
        ..args.load
    }
    .load()?;
    if let Some(prompts) = &args.prompts {
        take_texts(
            &mut cluster,
            &mut load,
            &measured,
            prompts,
            args.target.as_deref(),
        )?;
    }
    let registry = Registry::default();
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    let mut far = 0;
    for strategy in &measured.strategies {
        let contender: Contender = (strategy.label.parse()).map_err(anyhow::Error::msg)?;
        let outcome = simulate(&cluster, &load, &contender, &registry)?;
        let predicted = Row::of(&contender, &outcome);
        let texts = strategy.token_ids.iter().zip(&outcome.requests);
        let same = texts.filter(|(ids, request)| **ids == request.tokens);
        let Some(speed) = strategy.tok_s.filter(|&speed| speed > 0.0) else {
            continue;
        };
        let ratio = predicted.tok_s / speed;
        far += usize::from((ratio - 1.0).abs() * 100.0 > args.within);
        rows.push(vec![
            strategy.label.clone(),
            predicted.devices.to_string(),
            format!("{speed:.1}"),
            format!("{:.1}", predicted.tok_s),
            format!("{ratio:.3}"),
            format!("{:.2}", strategy.acceptance_length),
            format!("{:.2}", predicted.acceptance_length),
            format!("{:.1}%", 100.0 * strategy.hit_rate),
            format!("{:.1}%", 100.0 * predicted.hit_rate),
            format!("{} of {}", same.count(), outcome.requests.len()),
        ]);
    }
    let mut out = String::new();
    let _ = writeln!(
        out,
        "SIMULATED against {}: profile {}, T = {}, steps {}, workers {counts}, {} at a time",
        file.display(),
        synthetic.profile,
        measured.temperature,
        tables.join(" "),
        measured.concurrency
    );
    align(&mut out, &rows);
    console::put(&out)?;
    if far > 0 {
        bail!(
            "{far} of {} predictions differ by more than {} %",
            rows.len() - 1,
            args.within
        );
    }
    Ok(End::Done)
}

const HEADINGS: [&str; 10] = [
    "strategy",
    "devices",
    "measured tok/s",
    "predicted",
    "ratio",
    "measured M",
    "predicted",
    "measured hits",
    "predicted",
    "same text",
];

fn read(file: &Path) -> Result<Measured> {
    let size = fs::metadata(file)
        .with_context(|| format!("cannot read {}", file.display()))?
        .len();
    if size > MOST_BYTES {
        bail!("{} is larger than {MOST_BYTES} bytes", file.display());
    }
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not the JSON of a bench", file.display()))
}

/// Takes the very requests of the bench: its prompts, its seeds and the tokens of its tokenizer, so that the same texts are drawn.
fn take_texts(
    cluster: &mut Cluster,
    load: &mut Load,
    measured: &Measured,
    prompts: &Path,
    target: Option<&Path>,
) -> Result<()> {
    let dir = match target {
        Some(dir) => dir.to_owned(),
        None => models::bundled(None)?.join("target"),
    };
    let tokenizer = Tokenizer::load(&dir)?;
    cluster.vocabulary = Vocabulary {
        size: tokenizer.vocabulary().len() as u32,
        tokens: tokenizer.printable_ids(),
        eos: ModelConfig::read(&dir)?.eos,
    };
    let mut texts = bench::read_prompts(prompts)?;
    texts.truncate(measured.prompts as usize);
    if texts.len() < measured.prompts as usize {
        bail!(
            "{} has {} prompts, and the bench had {}",
            prompts.display(),
            texts.len(),
            measured.prompts
        );
    }
    let given = texts.iter().enumerate().map(|(number, text)| {
        let tokens = tokenizer.encode(text, Special::Add)?;
        Ok::<_, anyhow::Error>((tokens, bench::seed(measured.seed, number)))
    });
    load.prompts = Prompts::Given(given.collect::<Result<Vec<_>>>()?);
    Ok(())
}

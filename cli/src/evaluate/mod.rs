//! `offshoot models evaluate`: what a family of models is worth, measured with the engine and the sampler that serve
//! it.
//!
//! Text that no model was trained on goes through all three models in step, teacher-forced, and three things are
//! counted: what each model's next tokens cost, how often the smaller model's guesses hold the larger one's token,
//! and how much of a function's second half parses when a model writes it. With `--profile` something else is recorded
//! instead: what the synthetic backend needs to answer like the family.

mod agreement;
mod completion;
mod family;
mod function;
mod page;
mod profile;
mod report;
mod score;
mod text_file;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::{console, models};
use family::{Family, Folders};
use report::{Evaluation, FamilyReport};
use text_file::Document;

/// Arguments of `offshoot models evaluate`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot models evaluate --text models/train/heldout.jsonl
  offshoot models evaluate --text models/train/heldout.jsonl --target new/target --qualifier new/qualifier \\
      --draft new/draft --against old --json evaluation.json --page samples.md
  offshoot models evaluate --text tests/prompts/heldout.jsonl --profile nano.json --profile-name nano

The tables, in Markdown, go to stdout.")]
pub(crate) struct EvaluateArgs {
    /// Held-out text, one {"text": "...", "source": "..."} a line; "prompt" may stand for "text"
    #[arg(long, value_name = "FILE.jsonl")]
    text: PathBuf,
    /// Target model [default: the bundled one]
    #[arg(long, value_name = "DIR")]
    target: Option<PathBuf>,
    /// Qualifier model [default: the bundled one]
    #[arg(long, value_name = "DIR")]
    qualifier: Option<PathBuf>,
    /// Draft model [default: the bundled one]
    #[arg(long, value_name = "DIR")]
    draft: Option<PathBuf>,
    /// Folder of another family (draft, qualifier, target) to put beside this one
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Folder of the bundled models
    #[arg(long, env = "OFFSHOOT_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
    /// Tokens that a model sees at most; the text is cut into windows of this length
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=65_536))]
    window: u32,
    /// Tokens to score at most
    #[arg(long, value_name = "N", default_value_t = 1 << 16, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Functions to complete at most; 0 for none
    #[arg(long, value_name = "N", default_value_t = 128)]
    functions: u32,
    /// Tokens that a completion may take
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_tokens: u32,
    /// Seed of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads of each step
    #[arg(long, value_name = "N", default_value = "1")]
    threads: NonZeroUsize,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a page of sample completions to a file
    #[arg(long, value_name = "FILE.md")]
    page: Option<PathBuf>,
    /// Instead of all that, record a profile for --synthetic and write it to a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["against", "json", "page"])]
    profile: Option<PathBuf>,
    /// Name of the profile; reports say synthetic-NAME
    #[arg(
        long,
        value_name = "NAME",
        default_value = "recorded",
        requires = "profile"
    )]
    profile_name: String,
    /// Texts that the target continues for the profile, at each temperature
    #[arg(long, value_name = "N", default_value_t = 32, requires = "profile", value_parser = clap::value_parser!(u32).range(1..=1024))]
    profile_texts: u32,
    /// Temperatures that the profile is recorded at, ascending
    #[arg(
        long,
        value_name = "T,...",
        value_delimiter = ',',
        default_values_t = [0.0_f32, 1.0],
        requires = "profile"
    )]
    profile_temperatures: Vec<f32>,
    /// What the draft knows of the target's noise: all of it, as under the rule exact, or nothing, as under rejection
    #[arg(
        long,
        value_name = "NOISE",
        default_value = "shared",
        requires = "profile"
    )]
    profile_noise: profile::DraftNoise,
}

/// What every measurement needs to know.
#[derive(Clone, Copy, Debug)]
struct Settings {
    window: usize,
    tokens: usize,
    functions: usize,
    max_tokens: usize,
    seed: u64,
    threads: NonZeroUsize,
}

/// Runs the evaluation.
///
/// # Errors
/// When a model or the text cannot be read, the models' vocabularies differ, or a file cannot be written.
pub(crate) fn run(args: &EvaluateArgs) -> Result<()> {
    let settings = Settings {
        window: args.window as usize,
        tokens: args.tokens as usize,
        functions: args.functions as usize,
        max_tokens: args.max_tokens as usize,
        seed: args.seed,
        threads: args.threads,
    };
    let documents = text_file::read(&args.text)?;
    if let Some(file) = &args.profile {
        return record(args, file, &documents, settings);
    }
    let mut columns = Vec::new();
    if let Some(dir) = &args.against {
        columns.push(("before", Folders::under(dir)?));
    }
    columns.push(("now", folders(args)?));
    let mut families = Vec::new();
    for (label, folders) in columns {
        let mut family = Family::load(&folders, settings)?;
        let scores = score::score(&mut family, &documents, settings)?;
        let completions = completion::complete(&mut family, &documents, settings)?;
        families.push(FamilyReport {
            label,
            scores,
            completions,
        });
    }
    let evaluation = Evaluation {
        window: args.window,
        max_tokens: args.max_tokens,
        seed: args.seed,
        families,
    };
    console::put(&evaluation.tables())?;
    if let Some(path) = &args.json {
        let mut json = serde_json::to_string_pretty(&evaluation).context("cannot write JSON")?;
        json.push('\n');
        fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.page {
        fs::write(path, page::page(&evaluation))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Records a profile instead of evaluating.
fn record(
    args: &EvaluateArgs,
    file: &Path,
    documents: &[Document],
    settings: Settings,
) -> Result<()> {
    let mut family = Family::load(&folders(args)?, settings)?;
    let source = args.text.file_name().unwrap_or_default().to_string_lossy();
    let what = profile::Recorded {
        name: &args.profile_name,
        source: source.into_owned(),
        texts: args.profile_texts as usize,
        temperatures: &args.profile_temperatures,
        noise: args.profile_noise,
    };
    let profile = profile::record(&mut family, documents, settings, &what)?;
    fs::write(file, profile.to_json())
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(console::put(&profile::table(&profile))?)
}

/// The models that were named, and the bundled ones for the rest.
fn folders(args: &EvaluateArgs) -> Result<Folders> {
    let named = (&args.target, &args.qualifier, &args.draft);
    if let (Some(target), Some(qualifier), Some(draft)) = named {
        return Ok(Folders {
            target: models::checked(target.clone())?,
            qualifier: models::checked(qualifier.clone())?,
            draft: models::checked(draft.clone())?,
        });
    }
    let bundled = models::bundled(args.models.as_deref())?;
    let one = |given: &Option<PathBuf>, name: &str| {
        models::checked(given.clone().unwrap_or_else(|| bundled.join(name)))
    };
    Ok(Folders {
        target: one(&args.target, "target")?,
        qualifier: one(&args.qualifier, "qualifier")?,
        draft: one(&args.draft, "draft")?,
    })
}

//! `offshoot models`: work on model folders.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use crate::evaluate::{self, EvaluateArgs};
use crate::sources::{self, InspectArgs, ListArgs, PullArgs};
use crate::{console, models};

/// What can be done to a model folder.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum ModelsCommand {
    /// List the models that are there: bundled ones, and those of the cache of Hugging Face's tools
    List(ListArgs),
    /// Fetch a model from a hub into the cache
    Pull(PullArgs),
    /// Say what a model is, what it takes, and why it would be refused
    Inspect(InspectArgs),
    /// Write a checkpoint that computes the same function with more layers
    Deepen(DeepenArgs),
    /// Measure a family of models on held-out text
    Evaluate(Box<EvaluateArgs>),
}

/// Arguments of `offshoot models deepen`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Example:
  offshoot models deepen --layers 64 --out deep
  offshoot bench-engine --model deep --rows 1,2,4,8,16,32

The added layers have zero output projections and sit below the last four real ones, so that engine benchmarks reach
the memory footprint of large models while every logit stays the same.")]
pub(crate) struct DeepenArgs {
    /// Layers of the result; more than the model has
    #[arg(long, value_name = "N")]
    layers: usize,
    /// Folder to write; it must not hold a checkpoint yet
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Model to start from [default: the bundled target]
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Folder of the bundled models
    #[arg(long, env = "OFFSHOOT_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
}

/// Runs a command on model folders.
///
/// # Errors
/// When the source is no model, or the result cannot be written.
pub(crate) fn run(command: &ModelsCommand) -> Result<()> {
    match command {
        ModelsCommand::List(args) => sources::list(args),
        ModelsCommand::Pull(args) => sources::pull(args),
        ModelsCommand::Inspect(args) => sources::inspect(args),
        ModelsCommand::Deepen(args) => deepen(args),
        ModelsCommand::Evaluate(args) => evaluate::run(args),
    }
}

fn deepen(args: &DeepenArgs) -> Result<()> {
    let model = match &args.model {
        Some(dir) => models::checked(dir.clone())?,
        None => models::checked(models::bundled(args.models.as_deref())?.join("target"))?,
    };
    if engine::is_gguf(&model) {
        bail!(
            "{} is a GGUF file; only a folder in the Hugging Face layout can be deepened",
            model.display()
        );
    }
    let report = engine::deepen(&model, &args.out, args.layers)?;
    console::put(&format!(
        "{}: {} layers instead of {}, {:.1} MiB of tensors in {} file(s)\n",
        args.out.display(),
        report.layers,
        report.from_layers,
        report.bytes as f64 / f64::from(1 << 20),
        report.files
    ))?;
    Ok(())
}

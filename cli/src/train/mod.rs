//! `offshoot train-heads` and `offshoot train-hrad`: train what is evaluated beside a target (Medusa heads, the classifier of
//! H-RAD) on texts that the target itself generates from prompts out of a folder of sources.
//!
//! What is reported comes from other texts: prompts of files that were set aside, of crates that give no prompt for training.
//! Training needs a build with the feature `candle`; serving does not.

#[cfg(feature = "candle")]
mod collect;
#[cfg(feature = "candle")]
mod heads;
#[cfg(feature = "candle")]
mod hrad;
#[cfg(feature = "candle")]
mod sources;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

/// What texts are generated, and where the result goes.
#[derive(Args, Clone, Debug)]
pub(crate) struct TextArgs {
    /// Target model [default: the bundled one]
    #[arg(long, value_name = "DIR")]
    pub(crate) target: Option<PathBuf>,
    /// Folder of the bundled models
    #[arg(long, env = "OFFSHOOT_MODELS", value_name = "DIR")]
    pub(crate) models: Option<PathBuf>,
    /// Folder whose .rs files give the prompts for training, such as ~/.cargo/registry/src
    #[arg(long, value_name = "DIR")]
    pub(crate) sources: PathBuf,
    /// Prompts to evaluate on, one {"prompt": "...", "source": "crate-version/path"} a line; their crates give no prompt for
    /// training
    #[arg(long, value_name = "FILE")]
    pub(crate) held_out: PathBuf,
    /// Texts to generate for training
    #[arg(long, value_name = "N", default_value_t = 1500)]
    pub(crate) texts: usize,
    /// Tokens of a text behind its prompt
    #[arg(long, value_name = "N", default_value_t = 160)]
    pub(crate) tokens: usize,
    /// Seed of the choice of prompts, the texts and the training
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Threads
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) threads: NonZeroUsize,
    /// Folder to write
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
}

/// Arguments of `offshoot train-heads`.
#[derive(Args, Clone, Debug)]
pub(crate) struct HeadsArgs {
    #[command(flatten)]
    pub(crate) texts: TextArgs,
    /// Heads
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub(crate) heads: u8,
    /// Residual blocks of a head
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    pub(crate) layers: u8,
    /// Passes over the texts
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) epochs: usize,
}

/// Arguments of `offshoot train-hrad`.
#[derive(Args, Clone, Debug)]
pub(crate) struct HradArgs {
    #[command(flatten)]
    pub(crate) texts: TextArgs,
    /// Draft model [default: the bundled one]
    #[arg(long, value_name = "DIR")]
    pub(crate) draft: Option<PathBuf>,
    /// Length of the chain of guesses whose fate is learned
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) gamma: u8,
    /// Passes over the texts
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) epochs: usize,
}

/// Trains Medusa heads.
///
/// # Errors
/// When something cannot be read, computed or written, or this build cannot train.
#[cfg(feature = "candle")]
pub(crate) fn heads(args: &HeadsArgs) -> anyhow::Result<()> {
    heads::run(args)
}

/// Trains the classifier of H-RAD.
///
/// # Errors
/// As [`heads`].
#[cfg(feature = "candle")]
pub(crate) fn hrad(args: &HradArgs) -> anyhow::Result<()> {
    hrad::run(args)
}

#[cfg(not(feature = "candle"))]
const MISSING: &str = "this build cannot train: build it with --features candle";

/// # Errors
/// Always.
#[cfg(not(feature = "candle"))]
pub(crate) fn heads(_: &HeadsArgs) -> anyhow::Result<()> {
    anyhow::bail!(MISSING)
}

/// # Errors
/// Always.
#[cfg(not(feature = "candle"))]
pub(crate) fn hrad(_: &HradArgs) -> anyhow::Result<()> {
    anyhow::bail!(MISSING)
}

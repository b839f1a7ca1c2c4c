//! Three models with one vocabulary, loaded side by side.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use decode::{Ask, StepPlan};
use engine::{CpuEngine, EngineOptions, SeqId};
use text::Tokenizer;

use super::Settings;
use crate::models;

/// Rows of one step; their logits stay in the processor's last cache.
pub(super) const CHUNK: usize = 128;
/// Completions that are written side by side.
pub(super) const SIDE_BY_SIDE: usize = 16;

/// Where three models are.
pub(super) struct Folders {
    pub(super) target: PathBuf,
    pub(super) qualifier: PathBuf,
    pub(super) draft: PathBuf,
}

impl Folders {
    /// The folders of a family that lies in one folder.
    pub(super) fn under(dir: &Path) -> Result<Folders> {
        Ok(Folders {
            target: models::checked(dir.join("target"))?,
            qualifier: models::checked(dir.join("qualifier"))?,
            draft: models::checked(dir.join("draft"))?,
        })
    }
}

/// A loaded model.
pub(super) struct Model {
    /// Its role: `target`, `qualifier` or `draft`.
    pub(super) name: &'static str,
    pub(super) engine: CpuEngine,
    /// The last step's logits, row after row.
    pub(super) output: Vec<Vec<f32>>,
}

/// Appended tokens, the last `shown` of which have their logits read.
pub(super) fn append(tokens: &[u32], shown: usize) -> StepPlan {
    StepPlan {
        append: tokens.to_vec(),
        // The logits are read instead of an answer, so that it makes no difference what is asked.
        asks: vec![Ask::Guesses(0); shown],
        ..StepPlan::default()
    }
}

impl Model {
    fn load(name: &'static str, dir: &Path, settings: Settings) -> Result<Model> {
        let mut options = EngineOptions::for_sequences(settings.window, SIDE_BY_SIDE);
        options.threads = settings.threads;
        let engine = CpuEngine::load(dir, &options)
            .with_context(|| format!("cannot load the model in {}", dir.display()))?;
        let positions = engine.config().max_positions;
        if settings.window > positions {
            bail!(
                "the {name} in {} has {positions} positions; ask for a --window of at most that",
                dir.display()
            );
        }
        Ok(Model {
            name,
            engine,
            output: Vec::new(),
        })
    }

    /// Appends tokens to a sequence; their logits are the rows of `output`.
    pub(super) fn append(&mut self, seq: SeqId, tokens: &[u32]) -> Result<()> {
        self.compute(&[(seq, &append(tokens, tokens.len()))])
    }

    /// Computes a step; the logits that are read are the rows of `output`.
    pub(super) fn compute(&mut self, batch: &[(SeqId, &StepPlan)]) -> Result<()> {
        self.output.clear();
        let output = &mut self.output;
        self.engine
            .read_logits(batch, &mut |_, _, logits| output.push(logits.to_vec()))
            .with_context(|| format!("the {} failed", self.name))
    }
}

/// A family: the target, the qualifier and the draft, in this order.
pub(super) struct Family {
    pub(super) models: [Model; 3],
    pub(super) tokenizer: Tokenizer,
    /// Ids below this one are tokens; what logits there may be beyond it is padding.
    pub(super) vocabulary: u32,
    /// What stands before a document.
    pub(super) separator: u32,
}

impl Family {
    /// Loads three models and checks that they speak of the same tokens.
    ///
    /// # Errors
    /// When one cannot be loaded, its context is shorter than a window, or the vocabularies differ.
    pub(super) fn load(folders: &Folders, settings: Settings) -> Result<Family> {
        let tokenizer = Tokenizer::load(&folders.target)?;
        for dir in [&folders.qualifier, &folders.draft] {
            Tokenizer::load(dir)?
                .vocabulary()
                .agrees_with(tokenizer.vocabulary())
                .with_context(|| format!("the vocabulary of {} differs", dir.display()))?;
        }
        let models = [
            Model::load("target", &folders.target, settings)?,
            Model::load("qualifier", &folders.qualifier, settings)?,
            Model::load("draft", &folders.draft, settings)?,
        ];
        let vocabulary = u32::try_from(tokenizer.vocabulary().len())
            .context("the vocabulary has more than 2^32 tokens")?;
        let separator = models[0].engine.config().eos.first().copied();
        Ok(Family {
            models,
            tokenizer,
            vocabulary,
            separator: separator.unwrap_or(0),
        })
    }
}

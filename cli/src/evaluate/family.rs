//! Three models with one vocabulary, loaded side by side.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use engine::{AppendLogits, Engine, EngineOptions, SeqId, SeqRows, StepOutput};
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
    pub(super) engine: Engine,
    /// The last step's logits.
    pub(super) output: StepOutput,
}

impl Model {
    fn load(name: &'static str, dir: &Path, settings: Settings) -> Result<Model> {
        let mut options = EngineOptions::for_sequences(settings.window, SIDE_BY_SIDE);
        options.threads = settings.threads;
        let engine = Engine::load(dir, &options)
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
            output: StepOutput::new(),
        })
    }

    /// Appends tokens to a sequence; their logits are the rows of `output`.
    pub(super) fn append(&mut self, seq: SeqId, tokens: &[u32]) -> Result<()> {
        let rows = SeqRows {
            seq,
            append: tokens,
            append_logits: AppendLogits::All,
            tree: &[],
        };
        self.engine
            .step(
                &[rows],
                &mut self.output,
                &mut |_| ControlFlow::Continue(()),
            )
            .with_context(|| format!("the {} failed", self.name))?;
        Ok(())
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

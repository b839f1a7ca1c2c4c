//! What every device does alike when it loads a model: the folder is opened and checked, and sizes follow from the options.

use std::path::Path;

use crate::backend::Facts;
use crate::config::ModelConfig;
use crate::load::{Checkpoint, LoadError};
use crate::options::EngineOptions;
use crate::sequence::{PAGE, Sequences, scratch_pages};
use crate::step::Limits;

/// A checkpoint, mapped: a folder or a GGUF file.
pub(crate) struct Opened {
    pub(crate) config: ModelConfig,
    pub(crate) checkpoint: Checkpoint,
    /// Token ids that are answered lie below it.
    pub(crate) vocab: u32,
}

impl Opened {
    /// Opens a folder or a GGUF file. The options have been checked.
    pub(crate) fn open(dir: &Path, options: &EngineOptions) -> Result<Opened, LoadError> {
        let is_gguf = gguf::is_gguf(dir);
        if !is_gguf && !dir.join("config.json").is_file() {
            return Err(LoadError::NotAModel {
                path: dir.to_owned(),
            });
        }
        let config = ModelConfig::read(dir)?;
        // Every dimension of a configuration that was read fits.
        let logits = config.vocab_size as u32;
        let vocab = options.vocab.unwrap_or(logits);
        if vocab > logits {
            return Err(LoadError::Option {
                name: "vocab",
                reason: format!("is {vocab}, but the model has {logits} logits"),
            });
        }
        let checkpoint = if is_gguf {
            Checkpoint::of_gguf(dir, &config)?
        } else {
            Checkpoint::open(dir)?
        };
        checkpoint.refuse_unexpected(&config)?;
        Ok(Opened {
            config,
            checkpoint,
            vocab,
        })
    }
}

/// The sizes of a backend.
pub(crate) struct Sizes {
    pub(crate) sequences: Sequences,
    pub(crate) limits: Limits,
    pub(crate) facts: Facts,
    /// Pages of the cache, those of trees included.
    pub(crate) pages: usize,
}

impl Sizes {
    /// Those that a model has with these options.
    pub(crate) fn of(
        config: &ModelConfig,
        vocab: u32,
        options: &EngineOptions,
        numerics_id: String,
    ) -> Sizes {
        let sequences = Sequences::new(
            options.max_sequences,
            options.scratch_rows,
            options.kv_pages,
        );
        let facts = Facts {
            numerics_id,
            vocab,
            max_positions: config.max_positions,
            eos: config.eos.clone(),
            max_rows: options.max_rows,
            total_pages: sequences.total_pages(),
        };
        Sizes {
            sequences,
            limits: Limits {
                vocab: config.vocab_size,
                answered: vocab,
                positions: positions(config, options),
                rows: options.max_rows,
            },
            facts,
            pages: pages(options),
        }
    }
}

/// Pages of a cache, those of trees included.
pub(crate) fn pages(options: &EngineOptions) -> usize {
    options.kv_pages + scratch_pages(options.scratch_rows) * options.max_sequences
}

/// Positions that a row can have.
pub(crate) fn positions(config: &ModelConfig, options: &EngineOptions) -> usize {
    let reachable = options.kv_pages * PAGE + usize::from(options.scratch_rows);
    config.max_positions.min(reachable)
}

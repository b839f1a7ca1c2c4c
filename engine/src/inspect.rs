//! What a checkpoint is, and what would come of loading it, without loading it.

use std::collections::BTreeMap;
use std::path::Path;

use gguf::Gguf;
use safetensors::Dtype;

use crate::config::{ModelConfig, Tied};
use crate::load::{Checkpoint, LoadError};
use crate::options::WeightDtype;

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct Inspection {
    /// What the checkpoint calls its family: `model_type`, or `general.architecture`.
    pub architecture: Option<String>,
    /// Its configuration, if that is of a model that can be run.
    pub config: Option<ModelConfig>,
    /// Its tensors by the type of their elements, in the order of names.
    pub tensors: Vec<TensorType>,
    /// Bytes that the weights would take in memory, where that is known; kernels pad them by a few.
    pub weight_bytes: Option<u64>,
    /// Why it would be refused, in words that say what to do; empty for one that can be loaded.
    pub refused: Vec<String>,
}

/// The tensors of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// The type, as the format has it.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// Bytes that they have in the file.
    pub bytes: u64,
}

impl Inspection {
    /// Looks into a folder or a GGUF file. `dtype` is what would be asked for, as in
    /// [`EngineOptions`](crate::EngineOptions::dtype). No weight is read.
    #[must_use]
    pub fn of(model: &Path, dtype: Option<WeightDtype>) -> Inspection {
        let mut seen = Inspection::default();
        let config = ModelConfig::read(model);
        let opened = match crate::is_gguf(model) {
            true => seen.gguf(model, config),
            false => seen.folder(model, config),
        };
        if let Some(checkpoint) = opened {
            seen.weights(&checkpoint, dtype);
        }
        seen
    }

    fn folder(
        &mut self,
        model: &Path,
        config: Result<ModelConfig, LoadError>,
    ) -> Option<Checkpoint> {
        let raw: Result<serde_json::Value, _> = crate::config::parse(&model.join("config.json"));
        self.architecture = raw
            .ok()
            .and_then(|raw| Some(raw["model_type"].as_str()?.to_owned()));
        self.config = self.noted(config);
        let checkpoint = self.noted(Checkpoint::open(model))?;
        let types = checkpoint
            .entries()
            .map(|(_, entry, bytes)| (format!("{:?}", entry.dtype), bytes.len()));
        self.tensors = by_type(types);
        Some(checkpoint)
    }

    fn gguf(&mut self, model: &Path, config: Result<ModelConfig, LoadError>) -> Option<Checkpoint> {
        let file = match Gguf::open(model) {
            Ok(file) => file,
            Err(error) => {
                self.refused.push(error.to_string());
                return None;
            }
        };
        self.architecture = file
            .text("general.architecture")
            .ok()
            .flatten()
            .map(str::to_owned);
        let types = file
            .tensors()
            .iter()
            .map(|tensor| (tensor.element.name().to_owned(), tensor.range.len()));
        self.tensors = by_type(types);
        self.config = self.noted(config);
        let config = self.config.clone()?;
        self.noted(Checkpoint::of_gguf(model, &config))
    }

    /// Adds up what the weights take, and notes what of them could not be used.
    fn weights(&mut self, checkpoint: &Checkpoint, dtype: Option<WeightDtype>) {
        let Some(config) = self.config.clone() else {
            return;
        };
        if let Err(error) = checkpoint.refuse_unexpected(&config) {
            self.refused.push(error.to_string());
        }
        let dtype = dtype.unwrap_or_else(|| checkpoint.dtype());
        let mut total = 0_u64;
        for (name, entry, bytes) in checkpoint.entries() {
            // A copy of the embedding is not loaded.
            if name == "lm_head.weight" && config.tied == Tied::Shared {
                continue;
            }
            let known = matches!(entry.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16);
            if entry.blocks.is_none() && !known {
                let found = format!("{:?}", entry.dtype);
                let name = name.to_owned();
                self.refused
                    .push(LoadError::TensorDtype { name, found }.to_string());
                return;
            }
            let elements = entry
                .shape
                .iter()
                .fold(1_u64, |all, &n| all.saturating_mul(n as u64));
            let of_blocks = |inputs: u64, size: u64| elements / inputs * size;
            total += match (entry.shape.len(), dtype, entry.blocks) {
                (2, WeightDtype::Q8_0, _) => of_blocks(32, 34),
                (2, WeightDtype::Q4_0, _) => of_blocks(32, 18),
                (2, WeightDtype::AsStored, Some(_)) => bytes.len() as u64,
                (2, WeightDtype::Bf16, _) => elements * 2,
                (2, WeightDtype::AsStored, None) if entry.dtype == Dtype::BF16 => elements * 2,
                _ => elements * 4,
            };
        }
        self.weight_bytes = Some(total);
    }

    fn noted<T>(&mut self, found: Result<T, LoadError>) -> Option<T> {
        match found {
            Ok(found) => Some(found),
            Err(error) => {
                self.refused.push(error.to_string());
                None
            }
        }
    }
}

fn by_type(tensors: impl Iterator<Item = (String, usize)>) -> Vec<TensorType> {
    let mut types: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for (name, bytes) in tensors {
        let sum = types.entry(name).or_default();
        *sum = (sum.0 + 1, sum.1 + bytes as u64);
    }
    let named = types
        .into_iter()
        .map(|(name, (count, bytes))| TensorType { name, count, bytes });
    named.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    fn root(path: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
    }

    #[test]
    fn what_can_be_loaded_is_described() {
        let seen = Inspection::of(&root("models/draft"), None);
        assert!(seen.refused.is_empty(), "{:?}", seen.refused);
        assert_eq!(seen.architecture.as_deref(), Some("llama"));
        let bytes: u64 = seen.tensors.iter().map(|one| one.bytes).sum();
        let weights = seen.weight_bytes.unwrap();
        // Vectors become f32, matrices stay as they are.
        assert!(
            (bytes..bytes * 11 / 10).contains(&weights),
            "{weights} of {bytes}"
        );
        let wider = Inspection::of(&root("models/draft"), Some(WeightDtype::F32));
        assert!(wider.weight_bytes.unwrap() > weights * 3 / 2);
        let file = Inspection::of(&root("tests/gguf/llama.gguf"), None);
        assert!(file.refused.is_empty(), "{:?}", file.refused);
        assert!(file.tensors.len() > 1, "{:?}", file.tensors);
    }

    #[test]
    fn what_cannot_be_loaded_says_why() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
        let seen = Inspection::of(dir.path(), None);
        assert_eq!(seen.architecture.as_deref(), Some("mamba"));
        assert_eq!(seen.refused.len(), 2, "{:?}", seen.refused);
        assert!(seen.refused[0].contains("mamba"));
        assert!(Inspection::of(Path::new("/none"), None).refused.len() > 1);
        let blocks = Inspection::of(&root("tests/gguf/blocks.gguf"), None);
        assert!(!blocks.refused.is_empty());
    }
}

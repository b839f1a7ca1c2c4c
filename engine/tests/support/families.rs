//! The checkpoints of every family that `tests/oracle/make.py` writes.

use std::path::{Path, PathBuf};

use engine::EngineOptions;
use offshoot_engine as engine;
use serde_json::Value;

/// All folders.
pub(crate) const FOLDERS: [&str; 9] = [
    "llama",
    "mistral",
    "mistral-full",
    "qwen2",
    "qwen3",
    "smollm3",
    "phi3",
    "gemma2",
    "gemma3",
];

/// All GGUF files. A Mistral is a Llama there.
pub(crate) const FILES: [&str; 7] = [
    "llama.gguf",
    "mistral.gguf",
    "qwen3.gguf",
    "smollm3.gguf",
    "phi3.gguf",
    "gemma2.gguf",
    "gemma3.gguf",
];

/// Where a checkpoint is.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/oracle")
        .join(name)
}

/// Sizes that random schedules over three sequences fit in.
pub(crate) fn options() -> EngineOptions {
    EngineOptions {
        scratch_rows: 40,
        max_rows: 3 * (40 + 24),
        ..EngineOptions::for_sequences(96, 4)
    }
}

/// What transformers computed with a checkpoint.
pub(crate) struct Expected {
    pub(crate) ids: Vec<u32>,
    /// Positions whose logits there are.
    pub(crate) rows: Vec<usize>,
    pub(crate) logits: Vec<Vec<f32>>,
    /// The greedy continuation of all ids.
    pub(crate) greedy: Vec<u32>,
}

/// What transformers computed with a checkpoint.
pub(crate) fn expected(name: &str) -> Expected {
    let content = std::fs::read(path("expected.json")).unwrap();
    let all: Value = serde_json::from_slice(&content).unwrap();
    let field = |field: &str| all[name][field].clone();
    Expected {
        ids: serde_json::from_value(field("ids")).unwrap(),
        rows: serde_json::from_value(field("rows")).unwrap(),
        logits: serde_json::from_value(field("logits")).unwrap(),
        greedy: serde_json::from_value(field("greedy")).unwrap(),
    }
}

//! What the engine's tests share: the bundled models, prompts, a plain decoder.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod schedule;
pub(crate) mod synthetic;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use engine::{AppendLogits, Engine, EngineOptions, SeqId, SeqRows, StepEnd, StepOutput, TreeRow};
use offshoot_engine as engine;

/// The folder of a bundled model.
pub(crate) fn model(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../models")
        .join(name)
}

/// Small sizes that every test fits in.
pub(crate) fn options() -> EngineOptions {
    EngineOptions {
        scratch_rows: 48,
        max_rows: 96,
        ..EngineOptions::for_sequences(256, 4)
    }
}

/// Token ids of the test prompts, at most `most` each.
pub(crate) fn prompts(most: usize) -> Vec<Vec<u32>> {
    let tokenizer =
        tokenizers::Tokenizer::from_file(model("target").join("tokenizer.json")).unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/prompts/rust.jsonl");
    std::fs::read_to_string(file)
        .unwrap()
        .lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let ids = tokenizer
                .encode(line["prompt"].as_str().unwrap(), false)
                .unwrap();
            ids.get_ids().iter().copied().take(most).collect()
        })
        .collect()
}

/// One step that has to succeed and is not interrupted.
pub(crate) fn step(engine: &mut Engine, batch: &[SeqRows<'_>], output: &mut StepOutput) {
    let end = engine
        .step(batch, output, &mut |_| ControlFlow::Continue(()))
        .unwrap();
    assert_eq!(end, StepEnd::Done);
}

/// An append without tree rows.
pub(crate) fn append(seq: SeqId, tokens: &[u32], append_logits: AppendLogits) -> SeqRows<'_> {
    SeqRows {
        seq,
        append: tokens,
        append_logits,
        tree: &[],
    }
}

/// Tree rows without an append.
pub(crate) fn tree(seq: SeqId, rows: &[TreeRow]) -> SeqRows<'_> {
    SeqRows {
        seq,
        append: &[],
        append_logits: AppendLogits::None,
        tree: rows,
    }
}

/// The bits of a row of logits: equality that tells 0 from -0.
pub(crate) fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Index of the largest logit, the lowest of equals.
pub(crate) fn argmax(row: &[f32]) -> u32 {
    let mut best = 0;
    for (i, x) in row.iter().enumerate() {
        if *x > row[best] {
            best = i;
        }
    }
    best as u32
}

//! What the engine's tests share: the bundled models, prompts, plans, a plain decoder.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod answers;
pub(crate) mod drawn;
pub(crate) mod families;
pub(crate) mod plain;
pub(crate) mod schedule;
pub(crate) mod steps;
pub(crate) mod synthetic;

use std::path::{Path, PathBuf};

use decode::{Ask, NodeId, Row, StepPlan};
use engine::{CpuEngine, EngineError, EngineOptions, SeqId};
use offshoot_engine as engine;

use plain::Dice;

/// The folder of a bundled model.
pub(crate) fn model(name: &str) -> PathBuf {
    folder("OFFSHOOT_TEST_MODELS", "../models").join(name)
}

/// A GGUF file that tests have made.
pub(crate) fn gguf(name: &str) -> PathBuf {
    folder("OFFSHOOT_TEST_GGUF", "../tests/gguf").join(name)
}

/// A folder of the repository; what a variable says where the tests run on another machine than they were built on.
fn folder(variable: &str, within: &str) -> PathBuf {
    let given = std::env::var_os(variable).map(PathBuf::from);
    given.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(within))
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
    let file = folder("OFFSHOOT_TEST_PROMPTS", "../tests/prompts").join("rust.jsonl");
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

/// What a row is asked whose logits are to be read.
pub(crate) const SHOWN: Ask = Ask::Pick { score: None };

/// Which of the appended tokens are asked for something.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked {
    None,
    Last,
    All,
}

impl Asked {
    /// How many of `appended` tokens.
    pub(crate) fn of(self, appended: usize) -> usize {
        match self {
            Asked::None => 0,
            Asked::Last => appended.min(1),
            Asked::All => appended,
        }
    }
}

/// An append without tree rows.
pub(crate) fn append(tokens: &[u32], asked: Asked) -> StepPlan {
    StepPlan {
        append: tokens.to_vec(),
        asks: vec![SHOWN; asked.of(tokens.len())],
        ..StepPlan::default()
    }
}

/// Tree rows without an append.
pub(crate) fn tree(rows: &[Row]) -> StepPlan {
    StepPlan {
        rows: rows.to_vec(),
        ..StepPlan::default()
    }
}

/// A random tree of so many rows behind a prompt, with each row's path from the prompt's beginning. It has a few tokens only:
/// a plain decoder remembers paths, and many rows then share them.
pub(crate) fn random_tree(
    dice: &mut Dice,
    prompt: &[u32],
    rows: usize,
) -> (Vec<Row>, Vec<Vec<u32>>) {
    let (mut tree, mut paths) = (Vec::new(), Vec::<Vec<u32>>::new());
    for i in 0..rows {
        let token = 300 + dice.below(2) as u32;
        let (parent, mut path) = match dice.below(i + 1).min(6) {
            0 => (None, prompt.to_vec()),
            back => (Some((i - back) as u32), paths[i - back].clone()),
        };
        path.push(token);
        paths.push(path);
        tree.push(row(token, parent, i as u32));
    }
    (tree, paths)
}

pub(crate) fn node(index: u32) -> NodeId {
    NodeId {
        index,
        generation: 0,
    }
}

/// A row whose logits are read; such a row needs no path.
pub(crate) fn row(token: u32, parent: Option<u32>, index: u32) -> Row {
    Row {
        node: node(index),
        parent: parent.map(node),
        token,
        path: Vec::new(),
        ask: SHOWN,
    }
}

/// Computes a batch and gives the logits of every asked row, entry after entry.
pub(crate) fn logits(engine: &mut CpuEngine, batch: &[(SeqId, &StepPlan)]) -> Vec<Vec<f32>> {
    logits_by(batch, |read| engine.read_logits(batch, read))
}

/// Shows the logits of rows: entry, place among its asked rows, logits.
pub(crate) type Read<'a> = &'a mut dyn FnMut(usize, usize, &[f32]);

/// The logits of every asked row of a batch, which `compute` shows.
pub(crate) fn logits_by(
    batch: &[(SeqId, &StepPlan)],
    compute: impl FnOnce(Read<'_>) -> Result<(), EngineError>,
) -> Vec<Vec<f32>> {
    let mut found = Vec::new();
    let mut places = Vec::new();
    compute(&mut |entry, place, logits| {
        places.push((entry, place));
        found.push(logits.to_vec());
    })
    .unwrap();
    let asked = batch.iter().enumerate().flat_map(|(entry, (_, plan))| {
        let places = 0..plan.asked().count();
        places.map(move |place| (entry, place))
    });
    assert!(asked.eq(places), "every asked row once, in order");
    found
}

/// Appends tokens to a sequence and gives the logits of those that are asked.
pub(crate) fn append_to(
    engine: &mut CpuEngine,
    seq: SeqId,
    tokens: &[u32],
    asked: Asked,
) -> Vec<Vec<f32>> {
    logits(engine, &[(seq, &append(tokens, asked))])
}

/// Computes tree rows of a sequence and gives their logits.
pub(crate) fn grow(engine: &mut CpuEngine, seq: SeqId, rows: &[Row]) -> Vec<Vec<f32>> {
    logits(engine, &[(seq, &tree(rows))])
}

/// The bits of a row of logits: equality that tells 0 from -0.
pub(crate) fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|x| x.to_bits()).collect()
}

/// Whether every logit of a row is a number.
pub(crate) fn healthy(row: &[f32]) -> bool {
    row.iter().all(|x| x.is_finite())
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

//! A GGUF file that somebody downloaded: its structure, its tokenizer, its model, and one step of it.

use std::fs;

use decode::{Ask, StepPlan};
use engine::{Backend, CpuEngine, EngineOptions};
use gguf::Gguf;
use text::{Special, Tokenizer};

/// What tokenizers that load are asked to encode.
const TEXT: &str = "The year 1234, naïve\n\n  日本 <s></s>";

/// The input is the file.
pub fn run(input: &[u8]) {
    let Ok(file) = Gguf::from_bytes(input.to_vec()) else {
        return;
    };
    for tensor in file.tensors() {
        assert_eq!(file.data(tensor).len(), tensor.range.len(), "{tensor:?}");
    }
    if let Ok(tokenizer) = Tokenizer::from_gguf(&file)
        && let Ok(ids) = tokenizer.encode(TEXT, Special::Add)
    {
        let most = tokenizer.vocabulary().len();
        assert!(ids.iter().all(|&id| (id as usize) < most), "{ids:?}");
        let _ = tokenizer.decode(&ids);
    }
    model(input);
}

/// Loads the model and computes one token with it.
fn model(input: &[u8]) {
    let dir = tempfile::tempdir().expect("a folder for the file");
    let path = dir.path().join("model.gguf");
    fs::write(&path, input).expect("room for the file");
    let options = EngineOptions {
        scratch_rows: 2,
        max_rows: 4,
        ..EngineOptions::for_sequences(16, 1)
    };
    let Ok(mut engine) = CpuEngine::load(&path, &options) else {
        return;
    };
    let vocab = engine.facts().vocab as usize;
    let seq = engine.open(4).expect("room for one sequence");
    let mut plan = StepPlan::append(&[0]);
    plan.asks = vec![Ask::Guesses(0)];
    let mut shown = 0;
    let step = engine.read_logits(&[(seq, &plan)], &mut |_, _, logits| {
        assert_eq!(logits.len(), vocab);
        shown += 1;
    });
    assert!(step.is_ok() && shown == 1, "{step:?}");
}

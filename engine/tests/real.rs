//! Models that people really run, against what transformers decodes greedily with the same weights in f32.
//!
//! `tests/real/fetch.py` fetches the models; those that are not there are skipped. `tests/real/reference.py` wrote what is expected.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};

use engine::{Backend, CpuEngine, EngineOptions};
use offshoot_engine as engine;
use serde::Deserialize;
use support::{Asked, append_to, argmax};

/// Where the best logit is ahead by less than this, in hundredths, quantised arithmetic may decide otherwise: activations of
/// matrices in blocks have 8 bits here and 32 in the reference.
const CLOSE: i64 = 75;

#[derive(Deserialize)]
struct Reference {
    completions: Vec<Completion>,
}

#[derive(Deserialize)]
struct Completion {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    /// By how much the best logit was ahead of the second, in hundredths.
    ahead: Vec<i64>,
}

fn at(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Tokens that are equal up to the first that differs, and by how much the reference was ahead there.
fn compare(engine: &mut CpuEngine, wanted: &Completion) -> (usize, Option<i64>) {
    let seq = engine
        .open(wanted.prompt.len() + wanted.tokens.len())
        .unwrap();
    let mut logits = append_to(engine, seq, &wanted.prompt, Asked::Last);
    let mut equal = 0;
    let mut differs = None;
    for (token, ahead) in wanted.tokens.iter().zip(&wanted.ahead) {
        if argmax(&logits[0]) != *token {
            differs = Some(*ahead);
            break;
        }
        equal += 1;
        logits = append_to(engine, seq, &[*token], Asked::Last);
    }
    engine.release(seq);
    (equal, differs)
}

#[test]
fn greedy_tokens_are_those_of_transformers() {
    let mut wrong = Vec::new();
    for model in ["smollm2", "gemma3", "qwen2.5-coder-0.5b"] {
        let file = at("target/real").join(format!("{model}.gguf"));
        if !file.is_file() {
            println!("skipped: {model}, which tests/real/fetch.py fetches");
            continue;
        }
        let reference = at("tests/real").join(format!("{model}.json"));
        let reference: Reference =
            serde_json::from_slice(&std::fs::read(reference).unwrap()).unwrap();
        assert_eq!(reference.completions.len(), 32);
        let mut engine = CpuEngine::load(&file, &EngineOptions::for_sequences(256, 1)).unwrap();
        let (mut tokens, mut whole, mut close) = (0, 0, Vec::new());
        for (number, completion) in reference.completions.iter().enumerate() {
            let (equal, differs) = compare(&mut engine, completion);
            tokens += equal;
            match differs {
                None => whole += 1,
                Some(ahead) if ahead < CLOSE => close.push(ahead),
                Some(ahead) => wrong.push(format!(
                    "{model}, prompt {number}, token {equal}: ahead by {ahead} hundredths"
                )),
            }
        }
        println!(
            "{model}: {tokens} tokens equal, {whole} of 32 texts to their end; the others differ first where the best logit was \
             ahead by {close:?} hundredths"
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

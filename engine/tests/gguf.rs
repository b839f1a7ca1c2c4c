//! GGUF files: what they compute, that their rows are independent of each other, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use engine::cpu::kernels::Isa;
use engine::{Backend, CpuEngine, EngineOptions, LoadError, ModelConfig, Tied, WeightDtype};
use offshoot_engine as engine;
use serde_json::Value;
use support::plain::Plain;
use support::schedule::{Schedule, run};
use support::{Asked, append_to, argmax, bits};
use tempfile::TempDir;

/// All files with a model, and what the results of the script call it.
const FILES: [(&str, &str); 3] = [
    ("llama.gguf", "llama"),
    ("tied.gguf", "tied"),
    ("qwen2.gguf", "qwen2"),
];

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/gguf")
        .join(name)
}

fn options(dtype: Option<WeightDtype>) -> EngineOptions {
    EngineOptions {
        dtype,
        scratch_rows: 40,
        max_rows: 3 * (40 + 24),
        ..EngineOptions::for_sequences(96, 4)
    }
}

fn load(name: &str, dtype: Option<WeightDtype>) -> CpuEngine {
    CpuEngine::load(&file(name), &options(dtype)).unwrap()
}

/// What the script beside the files has computed for a model.
struct Expected {
    ids: Vec<u32>,
    rows: Vec<usize>,
    logits: Vec<Vec<f32>>,
    greedy: Vec<u32>,
}

fn expected(model: &str) -> Expected {
    let content = std::fs::read(file("expected.json")).unwrap();
    let all: Value = serde_json::from_slice(&content).unwrap();
    let field = |name: &str| all[model][name].clone();
    Expected {
        ids: serde_json::from_value(field("ids")).unwrap(),
        rows: serde_json::from_value(field("rows")).unwrap(),
        logits: serde_json::from_value(field("logits")).unwrap(),
        greedy: serde_json::from_value(field("greedy")).unwrap(),
    }
}

/// Logits of all tokens, each appended alone.
fn probe(engine: &mut CpuEngine, ids: &[u32]) -> Vec<Vec<f32>> {
    let seq = engine.open(64).unwrap();
    let found = ids
        .iter()
        .flat_map(|id| append_to(engine, seq, &[*id], Asked::All))
        .collect();
    engine.release(seq);
    found
}

#[test]
fn models_compute_what_they_should() {
    for (name, model) in FILES {
        let Expected {
            ids,
            rows,
            logits,
            greedy,
        } = expected(model);
        let mut engine = load(name, None);
        let found = probe(&mut engine, &ids);
        for (row, logits) in rows.iter().zip(&logits) {
            assert_eq!(found[*row].len(), logits.len());
            for (found, logit) in found[*row].iter().zip(logits) {
                assert!(
                    (found - logit).abs() < 2e-4,
                    "{name}: {found} is not {logit}"
                );
            }
        }
        let mut text = ids.clone();
        for token in greedy {
            let logits = probe(&mut engine, &text).pop().unwrap();
            assert_eq!(argmax(&logits), token, "{name} behind {text:?}");
            text.push(token);
        }
    }
}

#[test]
fn blocks_give_the_bits_of_the_same_weights_as_f32() {
    for (name, _) in FILES {
        let ids = [3, 17, 42, 99, 200, 3, 0];
        let mut wide = load(name, Some(WeightDtype::F32));
        let wanted: Vec<_> = probe(&mut wide, &ids).iter().map(|row| bits(row)).collect();
        for threads in [1, 2, 3] {
            for isa in Isa::available() {
                let options = EngineOptions {
                    threads: NonZeroUsize::new(threads).unwrap(),
                    ..options(None)
                };
                let mut engine = CpuEngine::load(&file(name), &options).unwrap();
                engine.set_isa(isa);
                let found: Vec<_> = probe(&mut engine, &ids)
                    .iter()
                    .map(|row| bits(row))
                    .collect();
                assert_eq!(found, wanted, "{name}, {isa:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn weights_stay_in_their_blocks() {
    let quantised = load("llama.gguf", None).weight_bytes();
    let wide = load("llama.gguf", Some(WeightDtype::F32)).weight_bytes();
    assert!(quantised * 4 < wide, "{quantised} of {wide} bytes");
}

#[test]
fn other_models_are_quantised_on_demand() {
    let target = support::model("target");
    let load = |dtype| CpuEngine::load(&target, &options(dtype)).unwrap();
    let ids: Vec<u32> = (0..12).map(|i| 7 + i * 31 % 2000).collect();
    let wide = probe(&mut load(None), &ids);
    let mut distances = Vec::new();
    for dtype in [WeightDtype::Q8_0, WeightDtype::Q4_0] {
        let mut engine = load(Some(dtype));
        assert!(engine.weight_bytes() * 3 < load(Some(WeightDtype::F32)).weight_bytes());
        let found = probe(&mut engine, &ids);
        let far = |(a, b): (&Vec<f32>, &Vec<f32>)| {
            let squares = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b));
            (squares.sum::<f32>() / a.len() as f32).sqrt()
        };
        distances.push(found.iter().zip(&wide).map(far).fold(0.0, f32::max));
        let mut plain = Plain::new(load(Some(dtype)));
        let schedule = Schedule {
            operations: 12,
            ..Schedule::small(3)
        };
        run(&mut load(Some(dtype)), &mut plain, &schedule).unwrap();
    }
    // Logits are of the order of 10; 8 bits move them a little, 4 bits more.
    assert!(distances[0] > 0.0 && distances[0] < 0.3, "{distances:?}");
    assert!(
        distances[1] > distances[0] && distances[1] < 3.0,
        "{distances:?}"
    );
}

#[test]
fn rows_do_not_see_each_other() {
    for (name, _) in FILES {
        let mut plain = Plain::new(load(name, None));
        for seed in 0..8 {
            let schedule = Schedule::small(seed);
            run(&mut load(name, None), &mut plain, &schedule).unwrap();
        }
    }
}

#[test]
fn a_file_says_what_a_folder_says() {
    let config = ModelConfig::read(&file("llama.gguf")).unwrap();
    assert_eq!((config.hidden, config.layers, config.heads), (256, 2, 4));
    assert_eq!(
        (config.kv_heads, config.head_dim, config.max_positions),
        (1, 16, 512)
    );
    assert_eq!(
        (config.tied, config.bos, &config.eos[..]),
        (Tied::Separate, Some(1), &[2][..])
    );
    assert_eq!(
        ModelConfig::read(&file("tied.gguf")).unwrap().tied,
        Tied::Shared
    );
}

#[test]
fn the_identity_knows_the_storage() {
    let id = |name: &str, dtype| load(name, dtype).facts().numerics_id.clone();
    let found = id("llama.gguf", None);
    assert_eq!(found, id("llama.gguf", None));
    assert_ne!(found, id("llama.gguf", Some(WeightDtype::F32)));
    let dir = TempDir::new().unwrap();
    let path = altered(&dir, "llama.gguf", |bytes| {
        let last = bytes.len() - 40;
        bytes[last] ^= 1;
    });
    let other = CpuEngine::load(&path, &options(None)).unwrap();
    assert_ne!(other.facts().numerics_id, found);
}

/// A changed copy of a file.
fn altered(dir: &TempDir, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(file(name)).unwrap();
    change(&mut bytes);
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Why a copy is refused that has one text in place of another of the same length.
fn refusal(name: &str, from: &str, to: &str) -> LoadError {
    assert_eq!(from.len(), to.len());
    let dir = TempDir::new().unwrap();
    let path = altered(&dir, name, |bytes| {
        let at = (0..bytes.len() - from.len()).find(|&at| bytes[at..].starts_with(from.as_bytes()));
        let at = at.unwrap_or_else(|| panic!("{from} is not in {name}"));
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    });
    match CpuEngine::load(&path, &options(None)) {
        Ok(_) => panic!("{name} with {to} is taken"),
        Err(error) => error,
    }
}

#[test]
fn what_cannot_be_run_is_named() {
    for (from, to, part) in [
        (
            "llama.block_count",
            "llama.block_counx",
            "block_count is missing",
        ),
        (
            "llama.attention.head_count",
            "llama.attention.head_counx",
            "head_count is missing",
        ),
        (
            "general.architecture",
            "general.architecturx",
            "general.architecture is missing",
        ),
        (
            "blk.1.ffn_up.weight",
            "blk.1.ffn_ux.weight",
            "blk.1.ffn_ux.weight",
        ),
        (
            "blk.1.ffn_up.weight",
            "blk.2.ffn_up.weight",
            "blk.2.ffn_up.weight",
        ),
        (
            "blk.1.ffn_up.weight",
            "blk.1.ffn_up.biasxx",
            "blk.1.ffn_up.biasxx",
        ),
        (
            "token_embd.weight",
            "token_embx.weight",
            "token_embd.weight",
        ),
        (
            "output_norm.weight",
            "output_norx.weight",
            "output_norx.weight",
        ),
        (
            "rope_freqs.weight",
            "rope_freqx.weight",
            "rope_freqx.weight",
        ),
    ] {
        let error = refusal("llama.gguf", from, to).to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
    let error = refusal("llama.gguf", "llama", "mamba");
    assert!(
        error.to_string().contains(
            "general.architecture is \"mamba\", which needs layers with a recurrent state"
        ),
        "{error}"
    );
    assert!(matches!(error, LoadError::Gguf(_)));
    for (from, to) in [
        ("attn_q.bias", "attn_x.bias"),
        ("ffn_up.weight", "ffn_xp.weight"),
    ] {
        let error = refusal("qwen2.gguf", from, to).to_string();
        assert!(error.contains(to), "{error}");
    }
    let missing = CpuEngine::load(&file("none.gguf"), &options(None)).map(|_| ());
    assert!(matches!(missing, Err(LoadError::NotAModel { .. })));
}

#[test]
fn a_scale_that_is_no_number_is_refused() {
    let dir = TempDir::new().unwrap();
    let path = altered(&dir, "tied.gguf", |bytes| {
        let file = gguf::Gguf::from_bytes(bytes.clone()).unwrap();
        let tensor = file
            .tensors()
            .iter()
            .find(|tensor| tensor.name == "blk.0.ffn_up.weight");
        let at = tensor.unwrap().range.start;
        bytes[at..at + 2].copy_from_slice(&0x7c00_u16.to_le_bytes());
    });
    let error = CpuEngine::load(&path, &options(None))
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(&error, LoadError::Scale { name } if name.contains("up_proj")),
        "{error}"
    );
}

//! Loading: every storage gives the same model, and whatever is wrong with a checkpoint is a typed error.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;

use engine::{Backend, CpuEngine, EngineOptions, LoadError, WeightDtype, deepen};
use offshoot_engine as engine;
use proptest::prelude::*;
use safetensors::Dtype;
use serde_json::json;
use support::{Asked, append_to, bits, model, synthetic};
use tempfile::TempDir;

fn options(dtype: Option<WeightDtype>) -> EngineOptions {
    EngineOptions {
        dtype,
        scratch_rows: 8,
        max_rows: 32,
        ..EngineOptions::for_sequences(64, 2)
    }
}

/// Bits of the logits of a few tokens.
fn probe(engine: &mut CpuEngine) -> Vec<Vec<u32>> {
    let seq = engine.open(32).unwrap();
    let found = append_to(engine, seq, &[1, 17, 42, 99, 3, 3, 0], Asked::All);
    engine.release(seq);
    found.iter().map(|row| bits(row)).collect()
}

fn load(dir: &Path) -> CpuEngine {
    CpuEngine::load(dir, &options(None)).unwrap()
}

fn load_error(dir: &Path) -> LoadError {
    match CpuEngine::load(dir, &options(None)) {
        Ok(_) => panic!("the checkpoint loads"),
        Err(error) => error,
    }
}

#[test]
fn all_storage_types_hold_the_same_model() {
    // The synthetic weights are exact in every type, so the logits have to be equal to the last bit.
    let expected = probe(&mut load(synthetic::checkpoint(Dtype::F32, 2).path()));
    for dtype in [Dtype::BF16, Dtype::F16] {
        let dir = synthetic::checkpoint(dtype, 2);
        assert_eq!(probe(&mut load(dir.path())), expected, "{dtype:?}");
        for stored in [WeightDtype::F32, WeightDtype::Bf16] {
            let mut engine = CpuEngine::load(dir.path(), &options(Some(stored))).unwrap();
            assert_eq!(probe(&mut engine), expected, "{dtype:?} as {stored:?}");
        }
    }
}

/// Spreads a checkpoint over three files behind an index.
fn shard(dir: &Path, tensors: &std::collections::BTreeMap<String, synthetic::Tensor>) {
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for i in 0..3 {
        let file = format!("model-{i}.safetensors");
        let part: Vec<_> = tensors
            .iter()
            .enumerate()
            .filter(|(n, _)| n % 3 == i)
            .map(|(_, t)| t)
            .collect();
        map.extend(part.iter().map(|(name, _)| ((*name).clone(), json!(file))));
        safetensors::serialize_to_file(part, None, &dir.join(&file)).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn shards_load_like_one_file_and_share_its_identity() {
    let dir = synthetic::checkpoint(Dtype::BF16, 2);
    let mut whole = load(dir.path());
    shard(dir.path(), &synthetic::tensors(Dtype::BF16, 2));
    let mut sharded = load(dir.path());
    assert_eq!(probe(&mut sharded), probe(&mut whole));
    assert_eq!(sharded.facts().numerics_id, whole.facts().numerics_id);
}

#[test]
fn the_identity_follows_what_results_depend_on() {
    let dir = synthetic::checkpoint(Dtype::BF16, 2);
    let id = load(dir.path()).facts().numerics_id.clone();
    assert_eq!(id.len(), 64);
    assert_eq!(load(dir.path()).facts().numerics_id, id);
    let other = CpuEngine::load(dir.path(), &options(Some(WeightDtype::F32))).unwrap();
    assert_ne!(other.facts().numerics_id, id);
    let mut tensors = synthetic::tensors(Dtype::BF16, 2);
    tensors.get_mut("model.norm.weight").unwrap().bytes[0] ^= 1;
    synthetic::write(dir.path(), &synthetic::config(2), &tensors);
    assert_ne!(load(dir.path()).facts().numerics_id, id);
    let mut config = synthetic::config(2);
    config["rope_theta"] = json!(20000.0);
    synthetic::write(dir.path(), &config, &synthetic::tensors(Dtype::BF16, 2));
    assert_ne!(load(dir.path()).facts().numerics_id, id);
}

#[test]
fn end_tokens_come_from_generation_config_first() {
    let dir = synthetic::checkpoint(Dtype::F32, 1);
    assert_eq!(load(dir.path()).facts().eos, [3, 5]);
    std::fs::write(
        dir.path().join("generation_config.json"),
        r#"{"eos_token_id": 9}"#,
    )
    .unwrap();
    assert_eq!(load(dir.path()).facts().eos, [9]);
}

#[test]
fn whatever_is_wrong_is_named() {
    let dir = synthetic::checkpoint(Dtype::F32, 1);
    let path = dir.path();
    let (config, tensors) = (synthetic::config(1), synthetic::tensors(Dtype::F32, 1));
    let name = "model.layers.0.self_attn.k_proj.weight";

    assert!(matches!(
        load_error(&path.join("absent")),
        LoadError::NotAModel { .. }
    ));
    let mut bad = tensors.clone();
    bad.remove(name);
    synthetic::write(path, &config, &bad);
    assert!(matches!(load_error(path), LoadError::MissingTensor { name: n } if n == name));
    let mut bad = tensors.clone();
    bad.get_mut(name).unwrap().shape.reverse();
    synthetic::write(path, &config, &bad);
    assert!(matches!(load_error(path), LoadError::Shape { name: n, .. } if n == name));
    let mut bad = tensors.clone();
    bad.get_mut(name).unwrap().dtype = Dtype::I32;
    synthetic::write(path, &config, &bad);
    assert!(matches!(load_error(path), LoadError::TensorDtype { name: n, .. } if n == name));
    let mut bad = tensors.clone();
    bad.insert(
        name.replace("weight", "bias"),
        tensors["model.norm.weight"].clone(),
    );
    synthetic::write(path, &config, &bad);
    assert!(matches!(
        load_error(path),
        LoadError::UnexpectedTensor { .. }
    ));

    for (field, value) in [
        ("hidden_size", json!(16_777_216)),
        ("vocab_size", json!(16_000_000)),
        ("num_hidden_layers", json!(10_000_000)),
        ("intermediate_size", json!(u64::MAX)),
        ("head_dim", json!(-1)),
        ("max_position_embeddings", json!("many")),
    ] {
        let mut bad = config.clone();
        bad[field] = value;
        synthetic::write(path, &bad, &tensors);
        let error = load_error(path).to_string();
        assert!(!error.is_empty(), "{field}");
    }
    synthetic::write(path, &config, &tensors);
    let huge = EngineOptions {
        kv_pages: 1 << 28,
        ..options(None)
    };
    assert!(
        CpuEngine::load(
            path,
            &EngineOptions {
                max_rows: 0,
                ..options(None)
            }
        )
        .is_err()
    );
    // Whether this much address space exists is the machine's business; that it never panics is ours.
    let _ = CpuEngine::load(path, &huge).map(|_| ());
}

#[test]
fn an_index_cannot_leave_its_folder() {
    let dir = synthetic::checkpoint(Dtype::F32, 1);
    std::fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let index = json!({ "weight_map": { "model.norm.weight": "../model.safetensors" } });
    std::fs::write(
        dir.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    let error = load_error(dir.path());
    assert!(matches!(&error, LoadError::Config { .. }), "{error}");
    assert!(error.to_string().contains("../model.safetensors"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
                                 cut in prop::option::of(any::<prop::sample::Index>()), header in any::<bool>()) {
        let dir = synthetic::checkpoint(Dtype::BF16, 1);
        let file = dir.path().join("model.safetensors");
        let mut bytes = std::fs::read(&file).unwrap();
        // Half of the cases hit the header, where the structure is.
        let reach = if header { 512.min(bytes.len()) } else { bytes.len() };
        for (at, value) in flips {
            bytes[at.index(reach)] ^= value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(reach));
            std::fs::write(&file, &bytes).unwrap();
            let error = load_error(dir.path());
            prop_assert!(matches!(error, LoadError::Corrupt { .. } | LoadError::Io { .. }), "{error}");
        } else {
            std::fs::write(&file, &bytes).unwrap();
            let _ = CpuEngine::load(dir.path(), &options(None)).map(|_| ());
        }
    }

    #[test]
    fn damaged_configurations_never_panic(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let dir = synthetic::checkpoint(Dtype::BF16, 1);
        let file = dir.path().join("config.json");
        let mut bytes = std::fs::read(&file).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = value;
        std::fs::write(&file, &bytes).unwrap();
        let _ = CpuEngine::load(dir.path(), &options(None)).map(|_| ());
    }
}

#[test]
fn a_deepened_model_computes_the_same_bits() {
    let out = TempDir::new().unwrap();
    let deep = out.path().join("deep");
    let report = deepen(&model("target"), &deep, 20).unwrap();
    assert_eq!(
        (report.from_layers, report.layers, report.files),
        (8, 20, 1)
    );
    let mut engine = load(&deep);
    assert_eq!(engine.config().layers, 20);
    assert_eq!(engine.facts().eos, load(&model("target")).facts().eos);
    assert_eq!(probe(&mut engine), probe(&mut load(&model("target"))));
    assert!(deep.join("tokenizer.json").is_file());

    assert!(matches!(
        deepen(&model("target"), &deep, 30),
        Err(engine::DeepenError::Occupied { .. })
    ));
    let other = out.path().join("other");
    assert!(matches!(
        deepen(&model("target"), &other, 8),
        Err(engine::DeepenError::Layers { from: 8, .. })
    ));
    assert!(!other.exists());
}

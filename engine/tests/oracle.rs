//! The engine against candle-transformers' Llama on the same weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use engine::{Backend, CpuEngine};
use offshoot_engine as engine;
use safetensors::Dtype;
use serde_json::json;
use support::{Asked, append_to, argmax, healthy, model, options, prompts, synthetic};

/// candle's model in f32, from the same folder.
struct Oracle {
    llama: Llama,
    config: Config,
}

impl Oracle {
    fn load(dir: &Path) -> Oracle {
        let config: LlamaConfig =
            serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
        let config = config.into_config(false);
        let files = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let tensors = files
            .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
            .flat_map(|path| candle_core::safetensors::load(path, &Device::Cpu).unwrap())
            .map(|(name, tensor)| (name, tensor.to_dtype(DType::F32).unwrap()))
            .collect();
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        Oracle {
            llama: Llama::load(weights, &config).unwrap(),
            config,
        }
    }

    /// Last-position logits after each of `tokens`, teacher-forced behind `prompt`.
    fn logits(&self, prompt: &[u32], tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut cache = Cache::new(true, DType::F32, &self.config, &Device::Cpu).unwrap();
        let mut at = 0;
        let mut forward = |ids: &[u32]| {
            let input = Tensor::new(ids, &Device::Cpu)
                .unwrap()
                .unsqueeze(0)
                .unwrap();
            let logits = self.llama.forward(&input, at, &mut cache).unwrap();
            at += ids.len();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let mut all = vec![forward(prompt)];
        all.extend(tokens.iter().map(|token| forward(&[*token])));
        all
    }
}

/// The engine's greedy continuation of `prompt` and the logits it was read from.
fn greedy(engine: &mut CpuEngine, prompt: &[u32], count: usize) -> (Vec<u32>, Vec<Vec<f32>>) {
    let seq = engine.open(prompt.len() + count).unwrap();
    let mut logits = append_to(engine, seq, prompt, Asked::Last);
    let mut tokens = vec![argmax(&logits[0])];
    while tokens.len() < count {
        let last = &tokens[tokens.len() - 1..];
        let found = append_to(engine, seq, last, Asked::Last).remove(0);
        assert!(healthy(&found));
        tokens.push(argmax(&found));
        logits.push(found);
    }
    engine.release(seq);
    (tokens, logits)
}

/// max |a - b| over max |b|.
fn error(a: &[f32], b: &[f32]) -> f32 {
    let most = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0_f32, f32::max);
    most(&mut a.iter().zip(b).map(|(a, b)| (a - b).abs())) / most(&mut b.iter().map(|b| b.abs()))
}

fn compare(name: &str, count: usize, dir: &Path) {
    let oracle = Oracle::load(dir);
    let mut engine = CpuEngine::load(dir, &options()).unwrap();
    let mut worst = 0.0_f32;
    for (i, prompt) in prompts(96).iter().take(count).enumerate() {
        let (tokens, logits) = greedy(&mut engine, prompt, 48);
        let expected = oracle.logits(prompt, &tokens[..47]);
        for (t, (ours, theirs)) in logits.iter().zip(&expected).enumerate() {
            worst = worst.max(error(ours, theirs));
            // Sums in another order, which depends on the processor, may decide between two that are as likely.
            let (best, ours) = (argmax(theirs) as usize, tokens[t] as usize);
            let behind = theirs[best] - theirs[ours];
            assert!(
                behind <= 1e-4 * theirs[best].abs(),
                "{name}: greedy token {t} of prompt {i} is {ours}, expected {best}"
            );
        }
    }
    assert!(worst <= 1e-4, "{name}: error {worst} of the largest logit");
    assert!(
        worst > 0.0,
        "{name}: two implementations that agree to the last bit are one"
    );
}

#[test]
fn the_bundled_target_matches_candle_on_32_prompts() {
    compare("target", 32, &model("target"));
}

#[test]
fn the_bundled_draft_and_qualifier_match_candle() {
    compare("draft", 8, &model("draft"));
    compare("qualifier", 8, &model("qualifier"));
}

/// Grouped queries, a separate head and an odd head width, with rotary frequencies as `rope` says: every position of
/// a context that reaches far into the stretched range.
fn compare_synthetic(rope: serde_json::Value) -> Vec<f32> {
    let dir = tempfile::TempDir::new().unwrap();
    let mut config = synthetic::config(2);
    config["hidden_size"] = json!(synthetic::FULL_WIDTH);
    config["rope_scaling"] = rope;
    synthetic::write(
        dir.path(),
        &config,
        &synthetic::tensors_of_width(Dtype::F32, 2, synthetic::FULL_WIDTH),
    );
    let oracle = Oracle::load(dir.path());
    let mut engine = CpuEngine::load(dir.path(), &options()).unwrap();
    let tokens: Vec<u32> = (0..200)
        .map(|i| (i * i * 31 + 7 * i) % synthetic::VOCAB as u32)
        .collect();
    let seq = engine.open(200).unwrap();
    let mut worst = 0.0_f32;
    let mut last = Vec::new();
    let expected = oracle.logits(&tokens[..1], &tokens[1..]);
    for (token, theirs) in tokens.iter().zip(&expected) {
        last = append_to(&mut engine, seq, &[*token], Asked::Last).remove(0);
        worst = worst.max(error(&last, theirs));
    }
    assert!(worst <= 1e-4, "error {worst} of the largest logit");
    last
}

#[test]
fn grouped_queries_and_llama3_rope_scaling_match_candle() {
    let plain = compare_synthetic(json!(null));
    let stretched = compare_synthetic(json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }));
    assert!(
        error(&stretched, &plain) > 1e-3,
        "the scaling has to matter for this to test it"
    );
}

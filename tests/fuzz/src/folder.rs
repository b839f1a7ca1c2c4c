//! A model of a few hundred bytes in the layout of Hugging Face, of which a target replaces a part by its input.

use std::fs;
use std::path::Path;

use decode::{Ask, StepPlan};
use engine::{Backend, CpuEngine, EngineOptions};
use tempfile::TempDir;

/// A Llama of one layer, four numbers wide, with eight tokens.
pub(crate) const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1,
"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 8, "max_position_embeddings": 32, "rms_norm_eps": 1e-5,
"tie_word_embeddings": true, "eos_token_id": 1}"#;

/// Its tensors, by shape.
const TENSORS: [(&str, &[usize]); 11] = [
    ("model.embed_tokens.weight", &[8, 4]),
    ("model.layers.0.input_layernorm.weight", &[4]),
    ("model.layers.0.mlp.down_proj.weight", &[4, 4]),
    ("model.layers.0.mlp.gate_proj.weight", &[4, 4]),
    ("model.layers.0.mlp.up_proj.weight", &[4, 4]),
    ("model.layers.0.post_attention_layernorm.weight", &[4]),
    ("model.layers.0.self_attn.k_proj.weight", &[2, 4]),
    ("model.layers.0.self_attn.o_proj.weight", &[4, 4]),
    ("model.layers.0.self_attn.q_proj.weight", &[4, 4]),
    ("model.layers.0.self_attn.v_proj.weight", &[2, 4]),
    ("model.norm.weight", &[4]),
];

/// A tokenizer of bytes, with a few control tokens.
pub(crate) const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [
{"id": 3, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
"normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
"post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
"model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
"fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}"#;

/// A folder with these files.
pub(crate) fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder for files");
    for (name, content) in files {
        fs::write(dir.path().join(name), content).expect("room for a file");
    }
    dir
}

/// A file with those of the tensors that `has` names, whose numbers are small.
pub(crate) fn weights(has: impl Fn(&str) -> bool) -> Vec<u8> {
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for (name, shape) in TENSORS.into_iter().filter(|(name, _)| has(name)) {
        let begin = data.len();
        for n in 0..shape.iter().product::<usize>() {
            data.extend_from_slice(&((n % 5) as f32 / 4.0).to_le_bytes());
        }
        entries.push(format!(
            r#""{name}": {{"dtype": "F32", "shape": {shape:?}, "data_offsets": [{begin}, {}]}}"#,
            data.len()
        ));
    }
    let header = format!("{{{}}}", entries.join(", "));
    let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(&data);
    file
}

/// Loads the model of a folder or file, and computes one token with it.
pub(crate) fn compute(model: &Path) {
    let options = EngineOptions {
        scratch_rows: 2,
        max_rows: 4,
        ..EngineOptions::for_sequences(16, 1)
    };
    let Ok(mut engine) = CpuEngine::load(model, &options) else {
        return;
    };
    let vocab = engine.facts().vocab as usize;
    let Ok(seq) = engine.open(engine.facts().max_positions.min(4)) else {
        return;
    };
    let mut plan = StepPlan::append(&[0]);
    plan.asks = vec![Ask::Guesses(0)];
    let mut shown = 0;
    let step = engine.read_logits(&[(seq, &plan)], &mut |_, _, logits| {
        assert_eq!(logits.len(), vocab);
        shown += 1;
    });
    assert!(step.is_ok() && shown == 1, "{step:?}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;
    use text::{Message, Tokenizer};

    /// Without this the targets would only ever see refusals.
    #[test]
    fn what_targets_start_from_is_a_model() {
        let dir = folder(&[
            ("config.json", CONFIG.as_bytes()),
            ("model.safetensors", &weights(|_| true)),
            ("tokenizer.json", TOKENIZER.as_bytes()),
            ("chat_template.jinja", b"{{ messages[0].content }}"),
        ]);
        let options = EngineOptions::for_sequences(16, 1);
        assert!(CpuEngine::load(dir.path(), &options).is_ok());
        compute(dir.path());
        let hi = Message {
            role: "user".to_owned(),
            content: "ab".to_owned(),
        };
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        assert_eq!(tokenizer.render_chat(&[hi]).unwrap(), ["ab"]);
    }
}

//! Qwen 2 and 2.5 (arXiv 2407.10671): a Llama with a bias of queries, keys and values.

use crate::config::{self, Bias, Fields, ModelConfig};
use crate::gguf::Metadata;
use crate::load::LoadError;
use crate::model::family::Traits;
use crate::model::llama;

pub(super) use crate::model::llama::layer;

pub(super) const TRAITS: Traits = Traits {
    model_type: "qwen2",
    architecture: "qwen2",
    tensors: &[&llama::TENSORS, &BIASES],
    neighbours: false,
    ..llama::TRAITS
};

const BIASES: [(&str, &str); 3] = [
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
];

pub(super) fn of_folder(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.bias = Bias::Qkv;
    config.rope = config::rope(fields, TRAITS.theta)?;
    windows(fields, config)
}

/// The upper layers look at a window where `use_sliding_window` says so.
pub(super) fn windows(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    if fields.get("use_sliding_window")? != Some(true) {
        return Ok(());
    }
    let Some(window) = config::window(fields)? else {
        return Ok(());
    };
    let below = fields.count("max_window_layers")?.unwrap_or(28);
    let windowed = config::windowed(fields, config.layers, |i| i >= below)?;
    for (layer, is_windowed) in config.attention.iter_mut().zip(windowed) {
        layer.window = Some(window).filter(|_| is_windowed);
    }
    Ok(())
}

pub(super) fn of_gguf(file: &Metadata<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    config.bias = Bias::Qkv;
    file.no_window()
}

//! Gemma 3 (arXiv 2503.19786), text: Gemma 2 with normalised queries and keys in place of bounded scores, and with rotary
//! frequencies of their own for the layers that look at a window.

use decode::math;

use crate::config::{self, Fields, ModelConfig, Rope, RopeScaling, Turn};
use crate::device::Device;
use crate::gguf::Metadata;
use crate::load::LoadError;
use crate::model::decoder::Layer;
use crate::model::family::{Source, Traits};
use crate::model::gemma2::{self, GemmaLayer, QUERY_SCALAR, WINDOW};
use crate::model::qwen3::{HEAD_NORMS, HeadNorms};

pub(super) const TRAITS: Traits = Traits {
    model_type: "gemma3_text",
    architecture: "gemma3",
    tensors: &[&gemma2::TENSORS, &HEAD_NORMS],
    theta: 1_000_000.0,
    head_norms: true,
    ..gemma2::TRAITS
};

/// Base of the frequencies of layers that look at a window, unless a file says otherwise.
const LOCAL_THETA: f32 = 10_000.0;
/// One layer of so many sees everything, the last of them.
const PATTERN: usize = 6;
/// Layers of the largest model, whose scores are scaled in another way.
const LARGEST: usize = 62;

pub(super) fn of_folder(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    if fields.get("use_bidirectional_attention")? == Some(true) {
        return Err("use_bidirectional_attention is not supported".to_owned());
    }
    let kinds = ["full_attention", "sliding_attention"]
        .map(|kind| config::rope_of_kind(fields, kind, TRAITS.theta));
    let [full, local] = kinds;
    config.rope = match full? {
        Some(rope) => rope,
        None => config::rope(fields, TRAITS.theta)?,
    };
    let theta = fields.positive("rope_local_base_freq")?;
    config.local_rope = Some(local?.unwrap_or(Rope {
        theta: theta.unwrap_or(LOCAL_THETA),
        scaling: RopeScaling::None,
    }));
    let scalar = fields.positive("query_pre_attn_scalar")?;
    config.attention_scale = math::rsqrt(scalar.unwrap_or(QUERY_SCALAR));
    config.attention_cap = fields.positive("attn_logit_softcapping")?;
    config.logits_cap = fields.positive("final_logit_softcapping")?;
    let window = config::window(fields)?.unwrap_or(WINDOW);
    let pattern = match fields.count("sliding_window_pattern")? {
        Some(pattern) => Some(pattern),
        None => fields.count("_sliding_window_pattern")?,
    };
    let pattern = pattern.unwrap_or(PATTERN).max(1);
    let windowed = config::windowed(fields, config.layers, |i| !(i + 1).is_multiple_of(pattern))?;
    set(config, window, &windowed);
    Ok(())
}

pub(super) fn of_gguf(file: &Metadata<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    config.attention_scale = gemma2::scale(config, LARGEST);
    config.logits_cap = file.positive("final_logit_softcapping")?;
    config.local_rope = Some(Rope {
        theta: file.theta("rope.freq_base_swa", LOCAL_THETA)?,
        scaling: RopeScaling::None,
    });
    let pattern = file
        .optional("attention.sliding_window_pattern")?
        .unwrap_or(PATTERN);
    let windowed: Vec<bool> = (1..=config.layers)
        .map(|n| !n.is_multiple_of(pattern))
        .collect();
    if let Some(window) = file.window()? {
        set(config, window, &windowed);
    }
    Ok(())
}

fn set(config: &mut ModelConfig, window: usize, windowed: &[bool]) {
    for (layer, is_windowed) in config.attention.iter_mut().zip(windowed) {
        if *is_windowed {
            layer.window = Some(window);
            layer.turn = Turn::LocalRope;
        }
    }
}

pub(super) fn layer<D: Device>(
    from: &Source<'_, D>,
    i: usize,
) -> Result<Box<dyn Layer<D>>, LoadError> {
    let head_norms = HeadNorms::load(from, i)?;
    Ok(Box::new(GemmaLayer::load(from, i, Some(head_norms))?))
}

//! Phi 3 (arXiv 2404.14219): a Llama whose matrices are stored fused, which may turn a part of each head only.

use crate::config::{self, Fields, ModelConfig};
use crate::device::Device;
use crate::gguf::Metadata;
use crate::load::LoadError;
use crate::model::decoder::Layer;
use crate::model::family::{Source, Traits};
use crate::model::llama::{self, Attention, LlamaLayer, Mlp};

pub(super) const TRAITS: Traits = Traits {
    model_type: "phi3",
    architecture: "phi3",
    tensors: &[&TENSORS],
    neighbours: false,
    fused: true,
    ..llama::TRAITS
};

const TENSORS: [(&str, &str); 6] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_qkv.weight", "self_attn.qkv_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_up.weight", "mlp.gate_up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

pub(super) fn of_folder(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.rope = config::rope(fields, TRAITS.theta)?;
    let share = config::share_turned(fields)?;
    config.rotary_dim = (config.head_dim as f32 * share) as usize;
    if config.rotary_dim == 0 || !config.rotary_dim.is_multiple_of(2) {
        return Err("partial_rotary_factor has to leave pairs of a head to turn".to_owned());
    }
    let window = config::window(fields)?;
    let windowed = config::windowed(fields, config.layers, |_| true)?;
    for (layer, is_windowed) in config.attention.iter_mut().zip(windowed) {
        layer.window = window.filter(|_| is_windowed);
    }
    Ok(())
}

pub(super) fn of_gguf(file: &Metadata<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    config.rotary_dim = file
        .optional("rope.dimension_count")?
        .unwrap_or(config.head_dim);
    llama::of_gguf(file, config)
}

pub(super) fn layer<D: Device>(
    from: &Source<'_, D>,
    i: usize,
) -> Result<Box<dyn Layer<D>>, LoadError> {
    let tensors = from.layer(i);
    let [qkv, gate_up] = tensors.fused()?;
    Ok(Box::new(LlamaLayer {
        attention: Attention {
            norm: from.gain(tensors.vector("input_layernorm")?),
            qkv: from.weight(&[qkv])?,
            bias: None,
            output: from.weight(&[tensors.output()?])?,
        },
        mlp: Mlp {
            norm: from.gain(tensors.vector("post_attention_layernorm")?),
            gate_up: from.weight(&[gate_up])?,
            down: from.weight(&[tensors.down()?])?,
        },
    }))
}

//! Qwen 3 (arXiv 2505.09388), dense: a Llama whose queries and keys are normalised, head by head, before they are turned.

use crate::config::{self, Fields, ModelConfig};
use crate::device::Device;
use crate::gguf::Metadata;
use crate::load::LoadError;
use crate::model::decoder::{Layer, Step};
use crate::model::family::{Source, Traits};
use crate::model::llama::{self, Mlp};
use crate::model::qwen2;

pub(super) const TRAITS: Traits = Traits {
    model_type: "qwen3",
    architecture: "qwen3",
    tensors: &[&llama::TENSORS, &HEAD_NORMS],
    neighbours: false,
    head_dim: Some(128),
    head_norms: true,
    ..llama::TRAITS
};

pub(super) const HEAD_NORMS: [(&str, &str); 2] = [
    ("attn_q_norm.weight", "self_attn.q_norm.weight"),
    ("attn_k_norm.weight", "self_attn.k_norm.weight"),
];

pub(super) fn of_folder(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.rope = config::rope(fields, TRAITS.theta)?;
    qwen2::windows(fields, config)
}

pub(super) fn of_gguf(file: &Metadata<'_>, _: &mut ModelConfig) -> Result<(), LoadError> {
    file.no_window()
}

/// RMSNorm of each query and of each key.
pub(super) struct HeadNorms<D: Device> {
    /// `[head_dim]`
    queries: D::Vector,
    /// `[head_dim]`
    keys: D::Vector,
}

impl<D: Device> HeadNorms<D> {
    pub(super) fn load(from: &Source<'_, D>, i: usize) -> Result<HeadNorms<D>, LoadError> {
        let tensors = from.layer(i);
        Ok(HeadNorms {
            queries: from.gain(tensors.head_vector("self_attn.q_norm")?),
            keys: from.gain(tensors.head_vector("self_attn.k_norm")?),
        })
    }

    pub(super) fn forward(&self, step: &mut Step<'_, D>) {
        let shape = step.shape;
        let (queries, keys) = (0..shape.heads, shape.heads..shape.heads + shape.kv_heads);
        let norm = |heads, gain, qkv: &mut D::Tensor| {
            step.device.norm_heads(qkv, heads, gain, step.eps);
        };
        norm(queries, &self.queries, &mut step.x.qkv);
        norm(keys, &self.keys, &mut step.x.qkv);
    }
}

/// A decoder layer.
struct Qwen3Layer<D: Device> {
    /// `[hidden]`
    norm: D::Vector,
    /// `hidden -> [query heads | key heads | value heads] * head_dim`
    qkv: D::Weight,
    head_norms: HeadNorms<D>,
    /// `heads * head_dim -> hidden`
    output: D::Weight,
    mlp: Mlp<D>,
}

pub(super) fn layer<D: Device>(
    from: &Source<'_, D>,
    i: usize,
) -> Result<Box<dyn Layer<D>>, LoadError> {
    let tensors = from.layer(i);
    Ok(Box::new(Qwen3Layer {
        norm: from.gain(tensors.vector("input_layernorm")?),
        qkv: from.weight(&tensors.qkv()?)?,
        head_norms: HeadNorms::load(from, i)?,
        output: from.weight(&[tensors.output()?])?,
        mlp: Mlp::load(from, i)?,
    }))
}

impl<D: Device> Layer<D> for Qwen3Layer<D> {
    fn forward(&self, step: &mut Step<'_, D>) {
        let device = step.device;
        device.norm(&step.x.hidden, &self.norm, step.eps, &mut step.x.normed);
        device.matmul(&step.x.normed, &self.qkv, &mut step.x.qkv);
        self.head_norms.forward(step);
        step.attend();
        device.matmul(&step.x.attended, &self.output, &mut step.x.delta);
        device.add(&mut step.x.hidden, &step.x.delta);
        self.mlp.forward(step);
    }

    fn weights(&self) -> Vec<&D::Weight> {
        vec![&self.qkv, &self.output, &self.mlp.gate_up, &self.mlp.down]
    }
}

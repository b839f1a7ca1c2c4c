//! Llama (arXiv 2302.13971): RMSNorm, rotary attention with grouped queries, SwiGLU.

use crate::config::{self, Bias, Fields, ModelConfig, Tied};
use crate::device::Device;
use crate::gguf::Metadata;
use crate::load::LoadError;
use crate::model::decoder::{Layer, Step};
use crate::model::family::{Source, Traits};

pub(super) const TRAITS: Traits = Traits {
    model_type: "llama",
    architecture: "llama",
    tensors: &[&TENSORS],
    neighbours: true,
    activation: "silu",
    head_dim: None,
    theta: 10_000.0,
    tied: Tied::Separate,
    gain_above_one: false,
    scaled_embedding: false,
    head_norms: false,
    fused: false,
};

pub(super) const TENSORS: [(&str, &str); 9] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

pub(super) fn of_folder(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.rope = config::rope(fields, TRAITS.theta)?;
    Ok(())
}

/// GGUF files call Mistral a Llama too.
pub(super) fn of_gguf(file: &Metadata<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    let window = file.window()?;
    for layer in &mut config.attention {
        layer.window = window;
    }
    Ok(())
}

/// Grouped-query attention (arXiv 2305.13245).
pub(super) struct Attention<D: Device> {
    /// `[hidden]`
    pub(super) norm: D::Vector,
    /// `hidden -> [query heads | key heads | value heads] * head_dim`
    pub(super) qkv: D::Weight,
    /// `[(query heads + key heads + value heads) * head_dim]`, where the family has one.
    pub(super) bias: Option<D::Vector>,
    /// `heads * head_dim -> hidden`
    pub(super) output: D::Weight,
}

impl<D: Device> Attention<D> {
    fn load(from: &Source<'_, D>, i: usize) -> Result<Attention<D>, LoadError> {
        let tensors = from.layer(i);
        Ok(Attention {
            norm: from.gain(tensors.vector("input_layernorm")?),
            qkv: from.weight(&tensors.qkv()?)?,
            bias: match from.config.bias {
                Bias::None => None,
                Bias::Qkv => Some(from.vectors(&tensors.qkv_bias()?)),
            },
            output: from.weight(&[tensors.output()?])?,
        })
    }

    pub(super) fn forward(&self, step: &mut Step<'_, D>) {
        let (device, eps) = (step.device, step.eps);
        device.norm(&step.x.hidden, &self.norm, eps, &mut step.x.normed);
        device.matmul(&step.x.normed, &self.qkv, &mut step.x.qkv);
        if let Some(bias) = &self.bias {
            device.add_vector(&mut step.x.qkv, bias);
        }
        step.attend();
        device.matmul(&step.x.attended, &self.output, &mut step.x.delta);
        device.add(&mut step.x.hidden, &step.x.delta);
    }
}

/// SwiGLU (arXiv 2002.05202).
pub(super) struct Mlp<D: Device> {
    /// `[hidden]`
    pub(super) norm: D::Vector,
    /// `hidden -> [gate | up] * intermediate`
    pub(super) gate_up: D::Weight,
    /// `intermediate -> hidden`
    pub(super) down: D::Weight,
}

impl<D: Device> Mlp<D> {
    pub(super) fn load(from: &Source<'_, D>, i: usize) -> Result<Mlp<D>, LoadError> {
        let tensors = from.layer(i);
        Ok(Mlp {
            norm: from.gain(tensors.vector("post_attention_layernorm")?),
            gate_up: from.weight(&tensors.gate_up()?)?,
            down: from.weight(&[tensors.down()?])?,
        })
    }

    pub(super) fn forward(&self, step: &mut Step<'_, D>) {
        let (device, x) = (step.device, &mut *step.x);
        device.norm(&x.hidden, &self.norm, step.eps, &mut x.normed);
        device.matmul(&x.normed, &self.gate_up, &mut x.gate_up);
        device.swiglu(&x.gate_up, &mut x.inner);
        device.matmul(&x.inner, &self.down, &mut x.delta);
        device.add(&mut x.hidden, &x.delta);
    }
}

/// A decoder layer.
pub(super) struct LlamaLayer<D: Device> {
    pub(super) attention: Attention<D>,
    pub(super) mlp: Mlp<D>,
}

pub(super) fn layer<D: Device>(
    from: &Source<'_, D>,
    i: usize,
) -> Result<Box<dyn Layer<D>>, LoadError> {
    Ok(Box::new(LlamaLayer {
        attention: Attention::load(from, i)?,
        mlp: Mlp::load(from, i)?,
    }))
}

impl<D: Device> Layer<D> for LlamaLayer<D> {
    fn forward(&self, step: &mut Step<'_, D>) {
        self.attention.forward(step);
        self.mlp.forward(step);
    }

    fn weights(&self) -> Vec<&D::Weight> {
        let Self { attention, mlp } = self;
        vec![&attention.qkv, &attention.output, &mlp.gate_up, &mlp.down]
    }
}

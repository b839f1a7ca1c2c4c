//! Gemma 2 (arXiv 2408.00118): norms on both sides of every block, GeGLU, layers that look at a window between layers that see
//! everything, bounded scores and logits.

use decode::math;

use crate::config::{self, Fields, ModelConfig, Tied};
use crate::device::Device;
use crate::gguf::Metadata;
use crate::load::LoadError;
use crate::model::decoder::{Layer, Step};
use crate::model::family::{Source, Traits};
use crate::model::qwen3::HeadNorms;

pub(super) const TRAITS: Traits = Traits {
    model_type: "gemma2",
    architecture: "gemma2",
    tensors: &[&TENSORS],
    neighbours: false,
    activation: "gelu_pytorch_tanh",
    head_dim: Some(256),
    theta: 10_000.0,
    tied: Tied::Shared,
    gain_above_one: true,
    scaled_embedding: true,
    head_norms: false,
    fused: false,
};

pub(super) const TENSORS: [(&str, &str); 11] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    (
        "post_attention_norm.weight",
        "post_attention_layernorm.weight",
    ),
    ("ffn_norm.weight", "pre_feedforward_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
    ("post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
];

/// The window where `config.json` does not say.
pub(super) const WINDOW: usize = 4096;
/// `query_pre_attn_scalar` where `config.json` does not say.
pub(super) const QUERY_SCALAR: f32 = 256.0;
/// Bounds of scores and logits where a file does not have the fields.
const CAPS: [f32; 2] = [50.0, 30.0];
/// Layers of the largest model, whose scores are scaled in another way.
const LARGEST: usize = 46;

pub(super) fn of_folder(fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
    config.rope = config::rope(fields, TRAITS.theta)?;
    let scalar = fields.positive("query_pre_attn_scalar")?;
    config.attention_scale = math::rsqrt(scalar.unwrap_or(QUERY_SCALAR));
    let cap = |name: &str, default: f32| match fields.has(name) {
        true => fields.positive(name),
        false => Ok(Some(default)),
    };
    config.attention_cap = cap("attn_logit_softcapping", CAPS[0])?;
    config.logits_cap = cap("final_logit_softcapping", CAPS[1])?;
    let window = config::window(fields)?.unwrap_or(WINDOW);
    let windowed = config::windowed(fields, config.layers, |i| i.is_multiple_of(2))?;
    for (layer, is_windowed) in config.attention.iter_mut().zip(windowed) {
        layer.window = Some(window).filter(|_| is_windowed);
    }
    Ok(())
}

pub(super) fn of_gguf(file: &Metadata<'_>, config: &mut ModelConfig) -> Result<(), LoadError> {
    config.attention_scale = scale(config, LARGEST);
    config.attention_cap = file.positive("attn_logit_softcapping")?.or(Some(CAPS[0]));
    config.logits_cap = file.positive("final_logit_softcapping")?.or(Some(CAPS[1]));
    let window = file.window()?.unwrap_or(WINDOW);
    for layer in config.attention.iter_mut().step_by(2) {
        layer.window = Some(window);
    }
    Ok(())
}

/// What scores are multiplied by, which GGUF files do not say. The largest models count the residual stream's share of a head,
/// all others the head's width.
pub(super) fn scale(config: &ModelConfig, largest: usize) -> f32 {
    let width = match config.layers == largest {
        true => config.hidden / config.heads,
        false => config.head_dim,
    };
    math::rsqrt(width as f32)
}

/// A decoder layer.
pub(super) struct GemmaLayer<D: Device> {
    /// `[hidden]`
    attention_norm: D::Vector,
    /// `hidden -> [query heads | key heads | value heads] * head_dim`
    qkv: D::Weight,
    /// Where the family has them.
    head_norms: Option<HeadNorms<D>>,
    /// `heads * head_dim -> hidden`
    output: D::Weight,
    /// `[hidden]`
    attended_norm: D::Vector,
    /// `[hidden]`
    mlp_norm: D::Vector,
    /// `hidden -> [gate | up] * intermediate`
    gate_up: D::Weight,
    /// `intermediate -> hidden`
    down: D::Weight,
    /// `[hidden]`
    mlp_end_norm: D::Vector,
}

impl<D: Device> GemmaLayer<D> {
    pub(super) fn load(
        from: &Source<'_, D>,
        i: usize,
        head_norms: Option<HeadNorms<D>>,
    ) -> Result<GemmaLayer<D>, LoadError> {
        let tensors = from.layer(i);
        Ok(GemmaLayer {
            attention_norm: from.gain(tensors.vector("input_layernorm")?),
            qkv: from.weight(&tensors.qkv()?)?,
            head_norms,
            output: from.weight(&[tensors.output()?])?,
            attended_norm: from.gain(tensors.vector("post_attention_layernorm")?),
            mlp_norm: from.gain(tensors.vector("pre_feedforward_layernorm")?),
            gate_up: from.weight(&tensors.gate_up()?)?,
            down: from.weight(&[tensors.down()?])?,
            mlp_end_norm: from.gain(tensors.vector("post_feedforward_layernorm")?),
        })
    }
}

pub(super) fn layer<D: Device>(
    from: &Source<'_, D>,
    i: usize,
) -> Result<Box<dyn Layer<D>>, LoadError> {
    Ok(Box::new(GemmaLayer::load(from, i, None)?))
}

impl<D: Device> Layer<D> for GemmaLayer<D> {
    fn forward(&self, step: &mut Step<'_, D>) {
        let (device, eps) = (step.device, step.eps);
        device.norm(
            &step.x.hidden,
            &self.attention_norm,
            eps,
            &mut step.x.normed,
        );
        device.matmul(&step.x.normed, &self.qkv, &mut step.x.qkv);
        if let Some(head_norms) = &self.head_norms {
            head_norms.forward(step);
        }
        step.attend();
        let x = &mut *step.x;
        device.matmul(&x.attended, &self.output, &mut x.delta);
        device.norm(&x.delta, &self.attended_norm, eps, &mut x.normed);
        device.add(&mut x.hidden, &x.normed);

        device.norm(&x.hidden, &self.mlp_norm, eps, &mut x.normed);
        device.matmul(&x.normed, &self.gate_up, &mut x.gate_up);
        device.geglu(&x.gate_up, &mut x.inner);
        device.matmul(&x.inner, &self.down, &mut x.delta);
        device.norm(&x.delta, &self.mlp_end_norm, eps, &mut x.normed);
        device.add(&mut x.hidden, &x.normed);
    }

    fn weights(&self) -> Vec<&D::Weight> {
        vec![&self.qkv, &self.output, &self.gate_up, &self.down]
    }
}

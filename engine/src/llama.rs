//! A Llama decoder (arXiv 2302.13971): RMSNorm, rotary attention with grouped queries, SwiGLU.
//!
//! Weights only, and the row-wise functions between the matmuls; caches and row bookkeeping live elsewhere.

use half::{bf16, f16};

use crate::config::{ModelConfig, Tied};
use crate::kernels::isa::per_isa;
use crate::kernels::{PackedWeight, WeightDtype};
use crate::load::{Checkpoint, LoadError, Stored, TensorData};
use crate::{attention, math};

/// One decoder layer. Fused projections lie side by side in one packed matrix.
pub(crate) struct Layer {
    /// `[hidden]`
    pub(crate) attention_norm: Vec<f32>,
    /// `hidden -> [query heads | key heads | value heads] * head_dim`
    pub(crate) qkv: PackedWeight,
    /// `heads * head_dim -> hidden`
    pub(crate) output: PackedWeight,
    /// `[hidden]`
    pub(crate) mlp_norm: Vec<f32>,
    /// `hidden -> [gate | up] * intermediate`
    pub(crate) gate_up: PackedWeight,
    /// `intermediate -> hidden`
    pub(crate) down: PackedWeight,
}

/// The embedding table where it is not the head.
enum Table {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

/// All weights of a model.
pub(crate) struct Model {
    pub(crate) config: ModelConfig,
    pub(crate) layers: Vec<Layer>,
    /// `[hidden]`
    pub(crate) final_norm: Vec<f32>,
    /// `hidden -> vocab`
    pub(crate) head: PackedWeight,
    /// `[vocab][hidden]`; none when the head's columns serve as the embedding.
    embedding: Option<Table>,
}

impl Model {
    /// Builds the model from checked tensors of `checkpoint`, storing matmul weights as `dtype`.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        config: ModelConfig,
        dtype: WeightDtype,
    ) -> Result<Model, LoadError> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let (query, key) = (
            config.heads * config.head_dim,
            config.kv_heads * config.head_dim,
        );
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let name = |part: &str| format!("model.layers.{i}.{part}.weight");
            let pack =
                |parts: &[(&str, usize)], inputs: usize| -> Result<PackedWeight, LoadError> {
                    let mut tensors = Vec::new();
                    for (part, outputs) in parts {
                        tensors.push((
                            checkpoint.tensor(&name(part), &[*outputs, inputs])?,
                            *outputs,
                        ));
                    }
                    pack(&tensors, inputs, dtype)
                };
            let norm = |part: &str| {
                Ok::<_, LoadError>(checkpoint.tensor(&name(part), &[hidden])?.to_vec())
            };
            layers.push(Layer {
                attention_norm: norm("input_layernorm")?,
                qkv: pack(
                    &[
                        ("self_attn.q_proj", query),
                        ("self_attn.k_proj", key),
                        ("self_attn.v_proj", key),
                    ],
                    hidden,
                )?,
                output: pack(&[("self_attn.o_proj", hidden)], query)?,
                mlp_norm: norm("post_attention_layernorm")?,
                gate_up: pack(&[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], hidden)?,
                down: pack(&[("mlp.down_proj", hidden)], inner)?,
            });
        }
        let vocab = config.vocab_size;
        let embedding = checkpoint.tensor("model.embed_tokens.weight", &[vocab, hidden])?;
        let final_norm = checkpoint.tensor("model.norm.weight", &[hidden])?.to_vec();
        let (head, embedding) = match config.tied {
            Tied::Shared => (pack(&[(embedding, vocab)], hidden, dtype)?, None),
            Tied::Separate => {
                let head = checkpoint.tensor("lm_head.weight", &[vocab, hidden])?;
                let table = match dtype {
                    WeightDtype::F32 => Table::F32(embedding.to_vec()),
                    WeightDtype::Bf16 => Table::Bf16(
                        embedding
                            .to_vec()
                            .iter()
                            .map(|x| bf16::from_f32(*x))
                            .collect(),
                    ),
                };
                (pack(&[(head, vocab)], hidden, dtype)?, Some(table))
            }
        };
        Ok(Model {
            config,
            layers,
            final_norm,
            head,
            embedding,
        })
    }

    /// Writes the embedding of `token` into `row[..hidden]`.
    pub(crate) fn embed(&self, token: u32, row: &mut [f32]) {
        let (token, hidden) = (token as usize, self.config.hidden);
        let range = token * hidden..(token + 1) * hidden;
        match &self.embedding {
            None => {
                for (k, x) in row[..hidden].iter_mut().enumerate() {
                    *x = self.head.at(token, k);
                }
            }
            Some(Table::F32(table)) => row[..hidden].copy_from_slice(&table[range]),
            Some(Table::Bf16(table)) => {
                for (x, stored) in row[..hidden].iter_mut().zip(&table[range]) {
                    *x = stored.to_f32();
                }
            }
        }
    }

    /// Bytes of weights that one step reads, head included.
    pub(crate) fn weight_bytes(&self) -> usize {
        let layer =
            |l: &Layer| l.qkv.bytes() + l.output.bytes() + l.gate_up.bytes() + l.down.bytes();
        self.layers.iter().map(layer).sum::<usize>() + self.head.bytes()
    }
}

/// Packs row-major `[outputs][inputs]` tensors side by side.
fn pack(
    parts: &[(TensorData<'_>, usize)],
    inputs: usize,
    dtype: WeightDtype,
) -> Result<PackedWeight, LoadError> {
    let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
    let mut packed = PackedWeight::zeros(dtype, inputs, outputs)?;
    let mut first = 0;
    for (tensor, outputs) in parts {
        match tensor.stored {
            Stored::F32 => {
                let (words, _) = tensor.bytes.as_chunks::<4>();
                packed.set_outputs(first, *outputs, |n, k| {
                    f32::from_le_bytes(words[n * inputs + k])
                });
            }
            Stored::Bf16 => {
                let (words, _) = tensor.bytes.as_chunks::<2>();
                packed.set_outputs(first, *outputs, |n, k| {
                    bf16::from_le_bytes(words[n * inputs + k]).to_f32()
                });
            }
            Stored::F16 => {
                let (words, _) = tensor.bytes.as_chunks::<2>();
                packed.set_outputs(first, *outputs, |n, k| {
                    f16::from_le_bytes(words[n * inputs + k]).to_f32()
                });
            }
        }
        first += outputs;
    }
    Ok(packed)
}

per_isa! {
    /// RMSNorm (arXiv 1910.07467): `out = x / sqrt(mean(x^2) + eps) * weight`, all three of one length.
    ///
    /// The squares are summed in 16 lanes by index and reduced in one fixed tree.
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body;
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mut lanes = [0.0_f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for l in 0..16 {
            lanes[l] = chunk[l].mul_add(chunk[l], lanes[l]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.mul_add(*x, *lane);
    }
    let scale = math::rsqrt(attention::reduce(lanes) / x.len() as f32 + eps);
    for ((y, x), w) in out.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

per_isa! {
    /// SwiGLU's middle: `out = silu(gate) * up`, element by element.
    pub(crate) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_body;
}

#[inline(always)]
fn swiglu_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((y, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *y = math::silu(*gate) * up;
    }
}

per_isa! {
    /// The residual connection: `x += y`.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) = add_body;
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

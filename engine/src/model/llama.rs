//! A Llama decoder (arXiv 2302.13971): RMSNorm, rotary attention with grouped queries, SwiGLU; with a bias of queries, keys and
//! values it is a Qwen 2 (arXiv 2407.10671).

use std::ops::ControlFlow;

use crate::config::ModelConfig;
use crate::device::Device;
use crate::load::{Checkpoint, LoadError};
use crate::model::tensors::{EndTensors, LayerTensors};
use crate::options::WeightDtype;
use crate::step::Plan;

/// How many of the last layers can be tapped.
const TAPPED_LAYERS: usize = super::hrad::LAYERS;

/// Attention of one layer.
struct Attention<D: Device> {
    /// `[hidden]`
    norm: D::Vector,
    /// `hidden -> [query heads | key heads | value heads] * head_dim`
    qkv: D::Weight,
    /// `[(query heads + key heads + value heads) * head_dim]`, where the family has one.
    bias: Option<D::Vector>,
    /// `heads * head_dim -> hidden`
    output: D::Weight,
}

/// The multilayer perceptron of one layer.
struct Mlp<D: Device> {
    /// `[hidden]`
    norm: D::Vector,
    /// `hidden -> [gate | up] * intermediate`
    gate_up: D::Weight,
    /// `intermediate -> hidden`
    down: D::Weight,
}

/// One decoder layer.
struct Layer<D: Device> {
    attention: Attention<D>,
    mlp: Mlp<D>,
}

/// Activations of a step, reserved at load.
struct Activations<D: Device> {
    /// The residual stream, `[rows][hidden]`.
    hidden: D::Tensor,
    /// `[rows][hidden]`
    normed: D::Tensor,
    /// `[rows][(heads + 2 * kv_heads) * head_dim]`
    qkv: D::Tensor,
    /// `[rows][heads * head_dim]`
    attended: D::Tensor,
    /// `[rows][2 * intermediate]`
    gate_up: D::Tensor,
    /// `[rows][intermediate]`
    inner: D::Tensor,
    /// What a block adds to the residual stream, `[rows][hidden]`.
    delta: D::Tensor,
    /// `[asked rows][vocab]`
    logits: D::Tensor,
    /// The residual stream behind each of the last layers but the very last, `[asked rows][hidden]`.
    taps: Vec<D::Tensor>,
}

/// Whether a step leaves the hidden states of the last layers to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tapped {
    No,
    Yes,
}

/// A model with its weights and activations; keys and values lie in a cache beside it.
pub(crate) struct Llama<D: Device> {
    pub(crate) config: ModelConfig,
    /// `[vocab][hidden]`; none where the head serves as the embedding.
    embedding: Option<D::Table>,
    layers: Vec<Layer<D>>,
    /// `[hidden]`
    norm: D::Vector,
    /// `hidden -> vocab`
    head: D::Weight,
    activations: Activations<D>,
    /// Set where somebody reads [`Llama::tap`].
    pub(crate) tapped: Tapped,
}

impl<D: Device> Llama<D> {
    /// Loads the model from checked tensors of `checkpoint`, with matmul weights stored as `dtype`.
    pub(crate) fn load(
        device: &D,
        checkpoint: &Checkpoint,
        config: ModelConfig,
        dtype: WeightDtype,
    ) -> Result<Llama<D>, LoadError> {
        let mut layers = Vec::new();
        for i in 0..config.layers {
            let tensors = LayerTensors::of(checkpoint, &config, i)?;
            let attention = Attention {
                norm: device.vector(&[tensors.attention_norm]),
                qkv: device.weight(&tensors.qkv, dtype)?,
                bias: tensors.qkv_bias.map(|bias| device.vector(&bias)),
                output: device.weight(&[tensors.output], dtype)?,
            };
            let mlp = Mlp {
                norm: device.vector(&[tensors.mlp_norm]),
                gate_up: device.weight(&tensors.gate_up, dtype)?,
                down: device.weight(&[tensors.down], dtype)?,
            };
            layers.push(Layer { attention, mlp });
        }
        let EndTensors { table, norm, head } = EndTensors::of(checkpoint, &config)?;
        let norm = device.vector(&[norm]);
        let (head, embedding) = match head {
            None => (device.weight(&[table], dtype)?, None),
            Some(head) => {
                let embedding = device.table(table, dtype)?;
                (device.weight(&[head], dtype)?, Some(embedding))
            }
        };
        let (hidden, inner) = (config.hidden, config.intermediate);
        let activations = Activations {
            hidden: device.tensor(hidden),
            normed: device.tensor(hidden),
            qkv: device.tensor(config.qkv_width()),
            attended: device.tensor(config.heads * config.head_dim),
            gate_up: device.tensor(2 * inner),
            inner: device.tensor(inner),
            delta: device.tensor(hidden),
            logits: device.tensor(config.vocab_size),
            taps: (1..TAPPED_LAYERS.min(config.layers))
                .map(|_| device.tensor(hidden))
                .collect(),
        };
        Ok(Llama {
            config,
            embedding,
            layers,
            norm,
            head,
            activations,
            tapped: Tapped::No,
        })
    }

    /// Computes a step: stores the keys and values of all its rows, and leaves the logits of the asked ones to be read.
    /// `at_layer` may give it up before any layer.
    pub(crate) fn forward(
        &mut self,
        device: &D,
        cache: &mut D::Cache,
        plan: &Plan,
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let eps = self.config.norm_eps;
        let Activations {
            hidden,
            normed,
            qkv,
            attended,
            gate_up,
            inner,
            delta,
            logits,
            taps,
        } = &mut self.activations;
        let first_tapped = self.layers.len() - 1 - taps.len();
        match &self.embedding {
            Some(table) => device.embed(table, plan, hidden),
            None => device.embed_from_head(&self.head, plan, hidden),
        }
        let mut queries = &plan.every_query;
        for (i, Layer { attention, mlp }) in self.layers.iter().enumerate() {
            at_layer(i)?;
            device.norm(hidden, &attention.norm, eps, normed);
            device.matmul(normed, &attention.qkv, qkv);
            if let Some(bias) = &attention.bias {
                device.add_vector(qkv, bias);
            }
            device.rotate_and_store(qkv, plan, cache, i);
            if i + 1 == self.layers.len() {
                // With the last keys and values stored, rows that are asked for nothing have done their part.
                device.keep_asked(hidden, plan);
                device.keep_asked(qkv, plan);
                queries = &plan.asked_queries;
            }
            device.attend(qkv, (plan, queries), cache, i, attended);
            device.matmul(attended, &attention.output, delta);
            device.add(hidden, delta);

            device.norm(hidden, &mlp.norm, eps, normed);
            device.matmul(normed, &mlp.gate_up, gate_up);
            device.swiglu(gate_up, inner);
            device.matmul(inner, &mlp.down, delta);
            device.add(hidden, delta);
            if self.tapped == Tapped::Yes
                && let Some(tap) = (i.checked_sub(first_tapped)).and_then(|tap| taps.get_mut(tap))
            {
                device.copy_asked(hidden, plan, tap);
            }
        }
        device.norm(hidden, &self.norm, eps, normed);
        device.matmul(normed, &self.head, logits);
        ControlFlow::Continue(())
    }

    /// The logits of the last step, `[asked rows][vocab]`.
    pub(crate) fn logits(&self) -> &D::Tensor {
        &self.activations.logits
    }

    /// What the head has read in the last step, `[asked rows][hidden]`: the last layer behind the final norm.
    pub(crate) fn normed(&self) -> &D::Tensor {
        &self.activations.normed
    }

    /// The hidden states of the last layers in the last step, which was [`Tapped`], at the asked row `place`: the residual
    /// stream behind each of them, that of the last one behind the final norm. End to end, `[layers * hidden]`.
    pub(crate) fn tap(&self, device: &D, place: usize) -> Vec<f32> {
        let Activations { taps, normed, .. } = &self.activations;
        let layers = taps.iter().chain([normed]);
        layers
            .flat_map(|layer| device.row(layer, place).iter().copied())
            .collect()
    }

    /// The model's own head.
    pub(crate) fn head(&self) -> &D::Weight {
        &self.head
    }

    /// The embedding of a token, `[hidden]`.
    pub(crate) fn embedding(&self, device: &D, token: u32) -> Vec<f32> {
        match &self.embedding {
            Some(table) => device.table_row(table, token as usize),
            None => device.weight_row(&self.head, token as usize),
        }
    }

    /// Bytes of matmul weights that one step reads, head included.
    pub(crate) fn weight_bytes(&self, device: &D) -> usize {
        let layer = |Layer { attention, mlp }: &Layer<D>| {
            [&attention.qkv, &attention.output, &mlp.gate_up, &mlp.down]
                .map(|weight| device.weight_bytes(weight))
                .iter()
                .sum::<usize>()
        };
        self.layers.iter().map(layer).sum::<usize>() + device.weight_bytes(&self.head)
    }
}

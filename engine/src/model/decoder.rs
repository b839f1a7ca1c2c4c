//! What all decoders are alike in: an embedding, layers one after the other, a norm and a head.

use std::ops::ControlFlow;

use half::bf16;

use crate::config::ModelConfig;
use crate::device::{Attends, Device};
use crate::load::{Checkpoint, LoadError, Progress};
use crate::model::AttentionShape;
use crate::model::family::Source;
use crate::model::tensors::EndTensors;
use crate::options::WeightDtype;
use crate::step::Plan;

/// How many of the last layers can be tapped.
const TAPPED_LAYERS: usize = super::hrad::LAYERS;

/// One decoder layer of some family.
pub(crate) trait Layer<D: Device>: Send {
    /// Adds to the residual stream what the layer adds. It has to call [`Step::attend`] once, between its query, key and value
    /// projections and whatever reads the attended rows.
    fn forward(&self, step: &mut Step<'_, D>);

    /// The weights of its matrices.
    fn weights(&self) -> Vec<&D::Weight>;
}

/// Activations of a step, reserved at load.
pub(crate) struct Activations<D: Device> {
    /// The residual stream, `[rows][hidden]`.
    pub(crate) hidden: D::Tensor,
    /// `[rows][hidden]`
    pub(crate) normed: D::Tensor,
    /// `[rows][(heads + 2 * kv_heads) * head_dim]`
    pub(crate) qkv: D::Tensor,
    /// `[rows][heads * head_dim]`
    pub(crate) attended: D::Tensor,
    /// `[rows][2 * intermediate]`
    pub(crate) gate_up: D::Tensor,
    /// `[rows][intermediate]`
    pub(crate) inner: D::Tensor,
    /// What a block adds to the residual stream, `[rows][hidden]`.
    pub(crate) delta: D::Tensor,
}

impl<D: Device> Activations<D> {
    fn new(device: &D, config: &ModelConfig) -> Activations<D> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        Activations {
            hidden: device.tensor(hidden),
            normed: device.tensor(hidden),
            qkv: device.tensor(config.qkv_width()),
            attended: device.tensor(config.heads * config.head_dim),
            gate_up: device.tensor(2 * inner),
            inner: device.tensor(inner),
            delta: device.tensor(hidden),
        }
    }
}

/// One layer of a step.
pub(crate) struct Step<'a, D: Device> {
    pub(crate) device: &'a D,
    pub(crate) x: &'a mut Activations<D>,
    pub(crate) shape: AttentionShape,
    /// Epsilon of RMSNorm.
    pub(crate) eps: f32,
    plan: &'a Plan,
    cache: &'a mut D::Cache,
    how: &'a Attends,
    /// The last layer of the model.
    is_last: bool,
}

impl<D: Device> Step<'_, D> {
    /// Attention of `qkv`, which gets its positions and is stored, into `attended`.
    pub(crate) fn attend(&mut self) {
        let (device, plan, how, x) = (self.device, self.plan, self.how, &mut *self.x);
        device.rotate_and_store(&mut x.qkv, plan, self.cache, how);
        let mut queries = &plan.every_query;
        if self.is_last {
            // With the last keys and values stored, rows that are asked for nothing have done their part.
            device.keep_asked(&mut x.hidden, plan);
            device.keep_asked(&mut x.qkv, plan);
            queries = &plan.asked_queries;
        }
        device.attend(&x.qkv, (plan, queries), self.cache, how, &mut x.attended);
    }
}

/// Whether a step leaves the hidden states of the last layers to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tapped {
    No,
    Yes,
}

/// A model with its weights and activations; keys and values lie in a cache beside it.
pub(crate) struct Decoder<D: Device> {
    pub(crate) config: ModelConfig,
    /// `[vocab][hidden]`; none where the head serves as the embedding.
    embedding: Option<D::Table>,
    /// What embeddings are multiplied by, where they are.
    embedding_scale: Option<f32>,
    layers: Vec<(Attends, Box<dyn Layer<D>>)>,
    /// `[hidden]`
    norm: D::Vector,
    /// `hidden -> vocab`
    head: D::Weight,
    activations: Activations<D>,
    /// `[asked rows][vocab]`
    logits: D::Tensor,
    /// The residual stream behind each of the last layers but the very last, `[asked rows][hidden]`.
    taps: Vec<D::Tensor>,
    /// Set where somebody reads [`Decoder::tap`].
    pub(crate) tapped: Tapped,
}

impl<D: Device> Decoder<D> {
    /// Loads the model from checked tensors of `checkpoint`, with matmul weights stored as `dtype`.
    pub(crate) fn load(
        device: &D,
        checkpoint: &Checkpoint,
        config: ModelConfig,
        dtype: WeightDtype,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<Decoder<D>, LoadError> {
        let from = Source {
            device,
            checkpoint,
            config: &config,
            dtype,
        };
        let mut progress = Progress {
            done: 0,
            total: checkpoint.bytes_of(""),
        };
        let mut layers = Vec::new();
        for i in 0..config.layers {
            layers.push((Attends::of(&config, i), config.family.layer(&from, i)?));
            progress.done += checkpoint.bytes_of(&format!("model.layers.{i}."));
            watch(progress);
        }
        let EndTensors { table, norm, head } = EndTensors::of(checkpoint, &config)?;
        let norm = from.gain(norm);
        let (head, embedding) = match head {
            None => (device.weight(&[table], dtype)?, None),
            Some(head) => {
                let embedding = device.table(table, dtype)?;
                (device.weight(&[head], dtype)?, Some(embedding))
            }
        };
        watch(Progress {
            done: progress.total,
            ..progress
        });
        Ok(Decoder {
            embedding,
            embedding_scale: embedding_scale(&config, dtype),
            layers,
            norm,
            head,
            activations: Activations::new(device, &config),
            logits: device.tensor(config.vocab_size),
            taps: (1..TAPPED_LAYERS.min(config.layers))
                .map(|_| device.tensor(config.hidden))
                .collect(),
            config,
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
        let x = &mut self.activations;
        match &self.embedding {
            Some(table) => device.embed(table, plan, &mut x.hidden),
            None => device.embed_from_head(&self.head, plan, &mut x.hidden),
        }
        if let Some(scale) = self.embedding_scale {
            device.scale(&mut x.hidden, scale);
        }
        let (count, taps) = (self.layers.len(), &mut self.taps);
        let first_tapped = count - 1 - taps.len();
        for (i, (how, layer)) in self.layers.iter().enumerate() {
            at_layer(i)?;
            layer.forward(&mut Step {
                device,
                x,
                shape: AttentionShape::of(&self.config),
                eps: self.config.norm_eps,
                plan,
                cache,
                how,
                is_last: i + 1 == count,
            });
            if self.tapped == Tapped::Yes
                && let Some(tap) = (i.checked_sub(first_tapped)).and_then(|tap| taps.get_mut(tap))
            {
                device.copy_asked(&x.hidden, plan, tap);
            }
        }
        device.norm(&x.hidden, &self.norm, self.config.norm_eps, &mut x.normed);
        device.matmul(&x.normed, &self.head, &mut self.logits);
        if let Some(cap) = self.config.logits_cap {
            device.soft_cap(&mut self.logits, cap);
        }
        ControlFlow::Continue(())
    }

    /// The logits of the last step, `[asked rows][vocab]`.
    pub(crate) fn logits(&self) -> &D::Tensor {
        &self.logits
    }

    /// What the head has read in the last step, `[asked rows][hidden]`: the last layer behind the final norm.
    pub(crate) fn normed(&self) -> &D::Tensor {
        &self.activations.normed
    }

    /// The hidden states of the last layers in the last step, which was [`Tapped`], at the asked row `place`: the residual
    /// stream behind each of them, that of the last one behind the final norm. End to end, `[layers * hidden]`.
    pub(crate) fn tap(&self, device: &D, place: usize) -> Vec<f32> {
        let layers = self.taps.iter().chain([&self.activations.normed]);
        layers
            .flat_map(|layer| device.row(layer, place).iter().copied())
            .collect()
    }

    /// The model's own head.
    pub(crate) fn head(&self) -> &D::Weight {
        &self.head
    }

    /// The embedding of a token as the checkpoint has it, `[hidden]`.
    pub(crate) fn embedding(&self, device: &D, token: u32) -> Vec<f32> {
        match &self.embedding {
            Some(table) => device.table_row(table, token as usize),
            None => device.weight_row(&self.head, token as usize),
        }
    }

    /// Bytes of matmul weights that one step reads, head included.
    pub(crate) fn weight_bytes(&self, device: &D) -> usize {
        let weights = self.layers.iter().flat_map(|(_, layer)| layer.weights());
        weights
            .chain([&self.head])
            .map(|weight| device.weight_bytes(weight))
            .sum()
    }
}

/// What embeddings are multiplied by: the root of their width, rounded to the type of the weights as the implementations that
/// the models were trained with round it.
fn embedding_scale(config: &ModelConfig, dtype: WeightDtype) -> Option<f32> {
    let root = (config.hidden as f32).sqrt();
    let traits = config.family.traits();
    traits.scaled_embedding.then(|| match dtype {
        WeightDtype::Bf16 => bf16::from_f32(root).to_f32(),
        _ => root,
    })
}

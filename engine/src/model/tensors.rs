//! Where a checkpoint keeps what: names and shapes of its tensors, checked.

use crate::config::{ModelConfig, Tied};
use crate::device::{Device, Matrix};
use crate::load::{Checkpoint, LoadError, TensorData};
use crate::model::family::Source;

/// The tensors of one decoder layer, by the names that they have in a Hugging Face folder.
#[derive(Clone, Copy)]
pub(crate) struct LayerTensors<'a> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    /// The layer's number.
    i: usize,
}

impl<'a> LayerTensors<'a> {
    /// Those of layer `i`.
    pub(crate) fn of(
        checkpoint: &'a Checkpoint,
        config: &'a ModelConfig,
        i: usize,
    ) -> LayerTensors<'a> {
        LayerTensors {
            checkpoint,
            config,
            i,
        }
    }

    fn name(&self, part: &str) -> String {
        format!("model.layers.{}.{part}", self.i)
    }

    /// `inputs -> outputs`
    pub(crate) fn matrix(
        &self,
        part: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Matrix<'a>, LoadError> {
        let name = self.name(&format!("{part}.weight"));
        self.checkpoint.matrix(&name, outputs, inputs)
    }

    /// `[hidden]`
    pub(crate) fn vector(&self, part: &str) -> Result<TensorData<'a>, LoadError> {
        let name = self.name(&format!("{part}.weight"));
        self.checkpoint.tensor(&name, &[self.config.hidden])
    }

    /// `[head_dim]`
    pub(crate) fn head_vector(&self, part: &str) -> Result<TensorData<'a>, LoadError> {
        let name = self.name(&format!("{part}.weight"));
        self.checkpoint.tensor(&name, &[self.config.head_dim])
    }

    /// Outputs of the projections to queries, keys and values.
    fn widths(&self) -> [(&'static str, usize); 3] {
        let query = self.config.heads * self.config.head_dim;
        let key = self.config.kv_heads * self.config.head_dim;
        [
            ("self_attn.q_proj", query),
            ("self_attn.k_proj", key),
            ("self_attn.v_proj", key),
        ]
    }

    /// `hidden -> query heads`, `hidden -> key heads`, `hidden -> value heads`
    pub(crate) fn qkv(&self) -> Result<[Matrix<'a>; 3], LoadError> {
        let [q, k, v] = self
            .widths()
            .map(|(part, width)| self.matrix(part, width, self.config.hidden));
        Ok([q?, k?, v?])
    }

    /// What is added to them: `[query heads * head_dim]`, and twice `[key heads * head_dim]`.
    pub(crate) fn qkv_bias(&self) -> Result<[TensorData<'a>; 3], LoadError> {
        let [q, k, v] = self.widths().map(|(part, width)| {
            let name = self.name(&format!("{part}.bias"));
            self.checkpoint.tensor(&name, &[width])
        });
        Ok([q?, k?, v?])
    }

    /// Of families that store them fused: `hidden -> query, key and value heads`, `hidden -> 2 * intermediate`
    pub(crate) fn fused(&self) -> Result<[Matrix<'a>; 2], LoadError> {
        let config = self.config;
        Ok([
            self.matrix("self_attn.qkv_proj", config.qkv_width(), config.hidden)?,
            self.matrix("mlp.gate_up_proj", 2 * config.intermediate, config.hidden)?,
        ])
    }

    /// `heads * head_dim -> hidden`
    pub(crate) fn output(&self) -> Result<Matrix<'a>, LoadError> {
        let query = self.config.heads * self.config.head_dim;
        self.matrix("self_attn.o_proj", self.config.hidden, query)
    }

    /// `hidden -> intermediate` each: the gate and what it opens.
    pub(crate) fn gate_up(&self) -> Result<[Matrix<'a>; 2], LoadError> {
        let (hidden, inner) = (self.config.hidden, self.config.intermediate);
        Ok([
            self.matrix("mlp.gate_proj", inner, hidden)?,
            self.matrix("mlp.up_proj", inner, hidden)?,
        ])
    }

    /// `intermediate -> hidden`
    pub(crate) fn down(&self) -> Result<Matrix<'a>, LoadError> {
        let (hidden, inner) = (self.config.hidden, self.config.intermediate);
        self.matrix("mlp.down_proj", hidden, inner)
    }
}

impl<'a, D: Device> Source<'a, D> {
    /// The tensors of layer `i`.
    pub(crate) fn layer(&self, i: usize) -> LayerTensors<'a> {
        LayerTensors::of(self.checkpoint, self.config, i)
    }

    /// Loads matrices of equal inputs, side by side, as one linear layer.
    pub(crate) fn weight(&self, parts: &[Matrix<'_>]) -> Result<D::Weight, LoadError> {
        self.device.weight(parts, self.dtype)
    }

    /// Loads vectors, end to end, as one.
    pub(crate) fn vectors(&self, parts: &[TensorData<'_>]) -> D::Vector {
        let parts: Vec<_> = parts.iter().map(|part| part.to_vec()).collect();
        self.device.vector(&parts.concat())
    }

    /// Loads what a norm multiplies by. Some families store it less one in folders, but not in GGUF files.
    pub(crate) fn gain(&self, stored: TensorData<'_>) -> D::Vector {
        let mut gain = stored.to_vec();
        if self.config.family.traits().gain_above_one && !self.checkpoint.is_gguf() {
            gain.iter_mut().for_each(|gain| *gain += 1.0);
        }
        self.device.vector(&gain)
    }
}

/// The tensors before the first layer and behind the last.
pub(crate) struct EndTensors<'a> {
    /// The embedding, `[vocab][hidden]`.
    pub(crate) table: Matrix<'a>,
    /// `[hidden]`
    pub(crate) norm: TensorData<'a>,
    /// `hidden -> vocab`; none where the embedding serves as the head.
    pub(crate) head: Option<Matrix<'a>>,
}

impl<'a> EndTensors<'a> {
    /// Those of a checkpoint.
    pub(crate) fn of(
        checkpoint: &'a Checkpoint,
        config: &ModelConfig,
    ) -> Result<EndTensors<'a>, LoadError> {
        let whole = |name| checkpoint.matrix(name, config.vocab_size, config.hidden);
        Ok(EndTensors {
            table: whole("model.embed_tokens.weight")?,
            norm: checkpoint.tensor("model.norm.weight", &[config.hidden])?,
            head: match config.tied {
                Tied::Shared => None,
                Tied::Separate => Some(whole("lm_head.weight")?),
            },
        })
    }
}

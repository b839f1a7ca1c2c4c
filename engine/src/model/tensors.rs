//! Where a Llama checkpoint keeps what: names and shapes of its tensors, checked.

use crate::config::{Bias, ModelConfig, Tied};
use crate::device::Matrix;
use crate::load::{Checkpoint, LoadError, TensorData};

/// The tensors of one decoder layer.
pub(crate) struct LayerTensors<'a> {
    /// `[hidden]`
    pub(crate) attention_norm: TensorData<'a>,
    /// `hidden -> query heads`, `hidden -> key heads`, `hidden -> value heads`
    pub(crate) qkv: [Matrix<'a>; 3],
    /// What is added to them, if anything: `[query heads * head_dim]`, and twice `[key heads * head_dim]`.
    pub(crate) qkv_bias: Option<[TensorData<'a>; 3]>,
    /// `heads * head_dim -> hidden`
    pub(crate) output: Matrix<'a>,
    /// `[hidden]`
    pub(crate) mlp_norm: TensorData<'a>,
    /// `hidden -> intermediate` each: the gate and what it opens.
    pub(crate) gate_up: [Matrix<'a>; 2],
    /// `intermediate -> hidden`
    pub(crate) down: Matrix<'a>,
}

impl<'a> LayerTensors<'a> {
    /// Those of layer `i`.
    pub(crate) fn of(
        checkpoint: &'a Checkpoint,
        config: &ModelConfig,
        i: usize,
    ) -> Result<LayerTensors<'a>, LoadError> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let query = config.heads * config.head_dim;
        let key = config.kv_heads * config.head_dim;
        let name = |part: &str| format!("model.layers.{i}.{part}.weight");
        let vector = |part: &str| checkpoint.tensor(&name(part), &[hidden]);
        let bias = |part: &str, width| {
            checkpoint.tensor(&format!("model.layers.{i}.{part}.bias"), &[width])
        };
        let linear = |part: &str, outputs, inputs| checkpoint.matrix(&name(part), outputs, inputs);
        Ok(LayerTensors {
            attention_norm: vector("input_layernorm")?,
            qkv: [
                linear("self_attn.q_proj", query, hidden)?,
                linear("self_attn.k_proj", key, hidden)?,
                linear("self_attn.v_proj", key, hidden)?,
            ],
            qkv_bias: match config.bias {
                Bias::None => None,
                Bias::Qkv => Some([
                    bias("self_attn.q_proj", query)?,
                    bias("self_attn.k_proj", key)?,
                    bias("self_attn.v_proj", key)?,
                ]),
            },
            output: linear("self_attn.o_proj", hidden, query)?,
            mlp_norm: vector("post_attention_layernorm")?,
            gate_up: [
                linear("mlp.gate_proj", inner, hidden)?,
                linear("mlp.up_proj", inner, hidden)?,
            ],
            down: linear("mlp.down_proj", hidden, inner)?,
        })
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

//! The operations that models are written in, and what a device has to offer for them.

use std::ops::Range;

use crate::config::{LayerAttention, ModelConfig, Turn};
use crate::gguf::RowOrder;
use crate::identity::Arithmetic;
use crate::load::{LoadError, TensorData};
use crate::model::{AttentionShape, RopeTable};
use crate::options::WeightDtype;
use crate::sequence::Place;
use crate::step::{Plan, Queries};

/// A matrix of a checkpoint, `[outputs][inputs]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    /// Its name in a Hugging Face folder.
    pub(crate) name: &'a str,
    pub(crate) data: TensorData<'a>,
    /// The order of its rows in `data`.
    pub(crate) order: RowOrder,
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
}

/// How a layer attends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attends {
    /// The layer's number.
    pub(crate) layer: usize,
    /// Which of the cache's rotary tables turns queries and keys; none: no table does.
    pub(crate) rope: Option<usize>,
    /// How many positions a row sees, its own the last of them.
    pub(crate) window: usize,
    /// What products of queries and keys are multiplied by.
    pub(crate) scale: f32,
    /// What bounds scores, as [`Device::soft_cap`] does.
    pub(crate) cap: Option<f32>,
}

impl Attends {
    /// Layer `i` of a model.
    pub(crate) fn of(config: &ModelConfig, i: usize) -> Attends {
        let LayerAttention { window, turn } = config.attention[i];
        Attends {
            layer: i,
            rope: match turn {
                Turn::Rope => Some(0),
                Turn::LocalRope => Some(1),
                Turn::None => None,
            },
            window: window.unwrap_or(usize::MAX),
            scale: config.attention_scale,
            cap: config.attention_cap,
        }
    }
}

/// A device that computes: holds tensors, weights and caches, and knows of no model.
///
/// Every operation takes a row's result from that row alone, in one fixed order of arithmetic, whatever the number of
/// rows: that is what makes a model's rows independent of each other. A tensor has as many rows as were last written to
/// it; operations write as many rows as they read.
pub(crate) trait Device: Send + 'static {
    /// The weights of a linear layer.
    type Weight: Send + 'static;
    /// An embedding table, `[vocab][width]`.
    type Table: Send + 'static;
    /// A vector of weights.
    type Vector: Send + 'static;
    /// Activations, `[rows][width]`.
    type Tensor: Send + 'static;
    /// Keys and values of all layers, in pages, and the rotary tables that keys are turned by.
    type Cache: Send + 'static;

    /// How it computes.
    const ARITHMETIC: Arithmetic<'static>;

    /// Loads matrices of equal inputs, side by side, as one linear layer.
    fn weight(&self, parts: &[Matrix<'_>], dtype: WeightDtype) -> Result<Self::Weight, LoadError>;
    /// Loads an embedding table.
    fn table(&self, table: Matrix<'_>, dtype: WeightDtype) -> Result<Self::Table, LoadError>;
    /// Loads a vector.
    fn vector(&self, numbers: &[f32]) -> Self::Vector;
    /// Reserves activations for as many rows as a step may have.
    fn tensor(&self, width: usize) -> Self::Tensor;
    /// Reserves `pages` pages in each of `layers` layers.
    fn cache(
        &self,
        shape: AttentionShape,
        layers: usize,
        pages: usize,
        ropes: Vec<RopeTable>,
    ) -> Result<Self::Cache, LoadError>;
    /// Bytes that are read to apply a weight once.
    fn weight_bytes(&self, weight: &Self::Weight) -> usize;

    /// `x[r] = table[token of row r]`, for every row of the step.
    fn embed(&self, table: &Self::Table, plan: &Plan, x: &mut Self::Tensor);
    /// The same where the output head serves as the table.
    fn embed_from_head(&self, head: &Self::Weight, plan: &Plan, x: &mut Self::Tensor);
    /// RMSNorm (arXiv 1910.07467): `y = x / sqrt(mean(x^2) + eps) * gain`.
    fn norm(&self, x: &Self::Tensor, gain: &Self::Vector, eps: f32, y: &mut Self::Tensor);
    /// RMSNorm of each of some heads of a row, in place.
    fn norm_heads(&self, x: &mut Self::Tensor, heads: Range<usize>, gain: &Self::Vector, eps: f32);
    /// `x = x * factor`.
    fn scale(&self, x: &mut Self::Tensor, factor: f32);
    /// `x = cap * tanh(x / cap)` (arXiv 2408.00118).
    fn soft_cap(&self, x: &mut Self::Tensor, cap: f32);
    /// `y = x * w^T`.
    fn matmul(&self, x: &Self::Tensor, w: &Self::Weight, y: &mut Self::Tensor);
    /// Turns the queries and keys of `[queries | keys | values]` by their positions (arXiv 2104.09864), if the layer does, and
    /// stores keys and values where the plan says.
    fn rotate_and_store(
        &self,
        qkv: &mut Self::Tensor,
        plan: &Plan,
        cache: &mut Self::Cache,
        how: &Attends,
    );
    /// Attention of the rows of `qkv`, which are the plan's or a part of them, over what each of them sees in this layer: y
    /// `[rows][heads * head_dim]`.
    fn attend(
        &self,
        qkv: &Self::Tensor,
        rows: (&Plan, &Queries),
        cache: &Self::Cache,
        how: &Attends,
        y: &mut Self::Tensor,
    );
    /// The middle of SwiGLU (arXiv 2002.05202): `y = silu(gate) * up` of `[gate | up]`.
    fn swiglu(&self, gate_up: &Self::Tensor, y: &mut Self::Tensor);
    /// The middle of GeGLU (arXiv 2002.05202) with the tanh form of GELU: `y = gelu(gate) * up` of `[gate | up]`.
    fn geglu(&self, gate_up: &Self::Tensor, y: &mut Self::Tensor);
    /// `x += v`, for every row.
    fn add_vector(&self, x: &mut Self::Tensor, v: &Self::Vector);
    /// `x += y`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
    /// Keeps only the rows that are asked for something.
    fn keep_asked(&self, x: &mut Self::Tensor, plan: &Plan);
    /// Copies the rows that are asked for something: `y` has one row for each of them.
    fn copy_asked(&self, x: &Self::Tensor, plan: &Plan, y: &mut Self::Tensor);
    /// Writes rows of the tensor's width.
    fn write(&self, rows: &[Vec<f32>], x: &mut Self::Tensor);
    /// The step of a residual block (arXiv 2401.10774): `x += silu(y + bias)`.
    fn add_silu(&self, x: &mut Self::Tensor, y: &Self::Tensor, bias: &Self::Vector);
    /// The end of a layer of a perceptron: `x = max(x + bias, 0)`.
    fn relu(&self, x: &mut Self::Tensor, bias: &Self::Vector);

    /// Copies one position's keys and values, all layers.
    fn copy(&self, cache: &mut Self::Cache, from: Place, to: Place);
    /// Row `n` of an embedding table, for the host to read.
    fn table_row(&self, table: &Self::Table, n: usize) -> Vec<f32>;
    /// What output `n` of a linear layer multiplies its inputs with, for the host to read.
    fn weight_row(&self, weight: &Self::Weight, n: usize) -> Vec<f32>;
    /// Row `r` of a tensor, for the host to read.
    fn row<'a>(&self, x: &'a Self::Tensor, r: usize) -> &'a [f32];
}

//! A small random model with every awkward shape: grouped queries, a head width that is no multiple of 16, widths
//! and a vocabulary that fill no panel, a separate head.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, View};
use serde_json::json;
use tempfile::TempDir;

/// One tensor to write.
#[derive(Clone)]
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl View for &Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        (&self.bytes).into()
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Vocabulary of the synthetic model.
pub(crate) const VOCAB: usize = 101;
pub(crate) const HIDDEN: usize = 72;
const INNER: usize = 88;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 20;

/// Values a checkpoint of any type holds exactly: multiples of 1/128 below one.
pub(crate) fn weights(count: usize, seed: &mut u64) -> Vec<f32> {
    (0..count)
        .map(|_| {
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            ((*seed >> 58) as f32 - 31.5).trunc() / 128.0
        })
        .collect()
}

/// Encodes values in a checkpoint's type.
pub(crate) fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => values
            .iter()
            .flat_map(|x| half::bf16::from_f32(*x).to_le_bytes())
            .collect(),
        Dtype::F16 => values
            .iter()
            .flat_map(|x| half::f16::from_f32(*x).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// The tensors of a model with `layers` layers, by name.
pub(crate) fn tensors(dtype: Dtype, layers: usize) -> BTreeMap<String, Tensor> {
    tensors_of_width(dtype, layers, HIDDEN)
}

/// As [`tensors`], with a residual stream of `hidden`.
pub(crate) fn tensors_of_width(
    dtype: Dtype,
    layers: usize,
    hidden: usize,
) -> BTreeMap<String, Tensor> {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut tensors = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let mut values = weights(shape.iter().product(), &mut seed);
        if shape.len() == 1 {
            values.iter_mut().for_each(|x| *x += 1.0);
        }
        tensors.insert(
            name,
            Tensor {
                dtype,
                shape: shape.to_vec(),
                bytes: encode(dtype, &values),
            },
        );
    };
    add("model.embed_tokens.weight".to_owned(), &[VOCAB, hidden]);
    add("lm_head.weight".to_owned(), &[VOCAB, hidden]);
    add("model.norm.weight".to_owned(), &[hidden]);
    for i in 0..layers {
        let (query, key) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
        for (part, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![query, hidden]),
            ("self_attn.k_proj", vec![key, hidden]),
            ("self_attn.v_proj", vec![key, hidden]),
            ("self_attn.o_proj", vec![hidden, query]),
            ("mlp.gate_proj", vec![INNER, hidden]),
            ("mlp.up_proj", vec![INNER, hidden]),
            ("mlp.down_proj", vec![hidden, INNER]),
        ] {
            add(format!("model.layers.{i}.{part}.weight"), &shape);
        }
    }
    tensors
}

/// Its `config.json`.
pub(crate) fn config(layers: usize) -> serde_json::Value {
    json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCAB,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "eos_token_id": [3, 5],
    })
}

/// Writes a checkpoint of one file.
pub(crate) fn write(dir: &Path, config: &serde_json::Value, tensors: &BTreeMap<String, Tensor>) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    safetensors::serialize_to_file(tensors, None, &dir.join("model.safetensors")).unwrap();
}

/// The width at which heads fill the residual stream exactly, the only one that some implementations know.
pub(crate) const FULL_WIDTH: usize = HEADS * HEAD_DIM;

/// A checkpoint of `layers` layers in a folder of its own.
pub(crate) fn checkpoint(dtype: Dtype, layers: usize) -> TempDir {
    let dir = TempDir::new().unwrap();
    write(dir.path(), &config(layers), &tensors(dtype, layers));
    dir
}

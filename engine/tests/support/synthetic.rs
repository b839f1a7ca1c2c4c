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

/// A checkpoint of a family in a folder of its own, with `[heads, kv_heads, head_dim]` and what else the family has.
pub(crate) fn of_family(model_type: &str, [heads, kv_heads, head_dim]: [usize; 3]) -> TempDir {
    let layers = 4;
    let (query, key) = (heads * head_dim, kv_heads * head_dim);
    let mut config = config(layers);
    let mut set = |name: &str, value: serde_json::Value| config[name] = value;
    set("model_type", json!(model_type));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(kv_heads));
    set("head_dim", json!(head_dim));
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    if model_type == "smollm3" {
        set("tie_word_embeddings", json!(true));
    } else {
        shapes.push(("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]));
    }
    let mut parts = vec![
        ("input_layernorm.weight", vec![HIDDEN]),
        ("post_attention_layernorm.weight", vec![HIDDEN]),
        ("self_attn.o_proj.weight", vec![HIDDEN, query]),
        ("mlp.down_proj.weight", vec![HIDDEN, INNER]),
    ];
    if model_type == "phi3" {
        // The widths of the original: a turn of three quarters of each head.
        set("partial_rotary_factor", json!(0.75));
        parts.extend([
            ("self_attn.qkv_proj.weight", vec![query + 2 * key, HIDDEN]),
            ("mlp.gate_up_proj.weight", vec![2 * INNER, HIDDEN]),
        ]);
    } else {
        parts.extend([
            ("self_attn.q_proj.weight", vec![query, HIDDEN]),
            ("self_attn.k_proj.weight", vec![key, HIDDEN]),
            ("self_attn.v_proj.weight", vec![key, HIDDEN]),
            ("mlp.gate_proj.weight", vec![INNER, HIDDEN]),
            ("mlp.up_proj.weight", vec![INNER, HIDDEN]),
        ]);
    }
    match model_type {
        "qwen2" => parts.extend([
            ("self_attn.q_proj.bias", vec![query]),
            ("self_attn.k_proj.bias", vec![key]),
            ("self_attn.v_proj.bias", vec![key]),
        ]),
        "qwen3" => parts.extend([
            ("self_attn.q_norm.weight", vec![head_dim]),
            ("self_attn.k_norm.weight", vec![head_dim]),
        ]),
        _ => {}
    }
    for i in 0..layers {
        let of_layer = |(part, shape): &(&str, Vec<usize>)| {
            (format!("model.layers.{i}.{part}"), shape.clone())
        };
        shapes.extend(parts.iter().map(of_layer));
    }
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut tensor = |shape: Vec<usize>| {
        let mut values = weights(shape.iter().product(), &mut seed);
        if shape.len() == 1 {
            values.iter_mut().for_each(|x| *x += 1.0);
        }
        let bytes = encode(Dtype::BF16, &values);
        Tensor {
            dtype: Dtype::BF16,
            shape,
            bytes,
        }
    };
    let tensors = shapes
        .into_iter()
        .map(|(name, shape)| (name, tensor(shape)));
    let dir = TempDir::new().unwrap();
    write(dir.path(), &config, &tensors.collect());
    dir
}

//! GGUF files as checkpoints: the configuration in their metadata, and their tensors under the names of a Hugging Face folder.

use std::path::Path;

use gguf::{Element, Gguf, GgufError};

use crate::config::{Bias, ModelConfig, Rope, RopeScaling, Tied};
use crate::load::LoadError;

/// The largest dimension of a model that is served.
const MOST_DIMENSION: u64 = 1 << 24;

/// The factors by which the frequencies of rotary embedding are divided, `[head_dim / 2]`, in Llama 3.1 and later.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Families that GGUF files are read of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Llama, Mistral, SmolLM2 and what else has their shape.
    Llama,
    /// Qwen 2 and 2.5: Llama with a bias of queries, keys and values.
    Qwen2,
}

/// In which order a matrix has the outputs of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As in a Hugging Face folder: rotary embedding turns the halves of a head against each other.
    Halves,
    /// Rotary embedding turns neighbours, as in the first publication of Llama: output `2 j + a` is output `a head_dim / 2 + j`
    /// of the other order.
    Neighbours {
        /// Outputs of a head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// Where in the file the row is that comes n-th in the order of halves.
    pub(crate) fn stored(self, n: usize) -> usize {
        match self {
            RowOrder::Halves => n,
            RowOrder::Neighbours { head_dim } => {
                let (head, i) = (n / head_dim, n % head_dim);
                let half = head_dim / 2;
                head * head_dim + 2 * (i % half) + i / half
            }
        }
    }
}

/// A tensor of a file, under the name that it has in a Hugging Face folder.
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) order: RowOrder,
}

/// The configuration of the model in a file.
pub(crate) fn config_of(path: &Path) -> Result<ModelConfig, LoadError> {
    config(&Gguf::open(path)?)
}

/// The configuration in a file's metadata, checked.
///
/// # Errors
/// [`LoadError`] that names the key: missing, out of range, or of a model this engine does not run.
fn config(file: &Gguf) -> Result<ModelConfig, LoadError> {
    let metadata = Metadata::of(file)?;
    let heads = metadata.size("attention.head_count")?;
    let kv_heads = (metadata.optional("attention.head_count_kv")?).unwrap_or(heads);
    let hidden = metadata.size("embedding_length")?;
    let head_dim = match metadata.optional("attention.key_length")? {
        Some(width) => width,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            return Err(
                metadata.wrong("embedding_length is not a multiple of attention.head_count")
            );
        }
    };
    if !heads.is_multiple_of(kv_heads) {
        return Err(
            metadata.wrong("attention.head_count is not a multiple of attention.head_count_kv")
        );
    }
    if !head_dim.is_multiple_of(2) || heads.saturating_mul(head_dim) > MOST_DIMENSION as usize {
        return Err(metadata.wrong("the width of a head is odd, or heads are too wide together"));
    }
    for key in ["attention.value_length", "rope.dimension_count"] {
        if metadata
            .optional(key)?
            .is_some_and(|width| width != head_dim)
        {
            return Err(metadata.wrong(&format!("{key} is not the width of a head, {head_dim}")));
        }
    }
    let scaling = file.text(&metadata.key("rope.scaling.type"))?;
    if let Some(kind) = scaling.filter(|kind| *kind != "none") {
        return Err(metadata.wrong(&format!("rope.scaling.type {kind:?} is not supported")));
    }
    let max_positions = metadata.size("context_length")?;
    let window = file.integer(&metadata.key("attention.sliding_window"))?;
    if window.is_some_and(|window| window > 0 && window < max_positions as u64) {
        return Err(metadata.wrong("attention.sliding_window is not supported"));
    }
    if file
        .integer(&metadata.key("expert_count"))?
        .is_some_and(|experts| experts > 0)
    {
        return Err(metadata.wrong("a mixture of experts is not supported"));
    }
    let eps = metadata.float("attention.layer_norm_rms_epsilon")?;
    let norm_eps =
        eps.ok_or_else(|| metadata.wrong("attention.layer_norm_rms_epsilon is missing"))?;
    if !(norm_eps.is_finite() && norm_eps > 0.0) {
        return Err(metadata.wrong("attention.layer_norm_rms_epsilon is not positive"));
    }
    let theta = metadata.float("rope.freq_base")?.unwrap_or(10_000.0);
    if !(theta.is_finite() && theta >= 1.0) {
        return Err(metadata.wrong("rope.freq_base is below 1"));
    }
    let embedding = file
        .tensors()
        .iter()
        .find(|tensor| tensor.name == EMBEDDING);
    let vocab_size = match embedding.map(|tensor| &tensor.shape[..]) {
        Some(&[vocab, _]) if vocab as u64 <= MOST_DIMENSION => vocab,
        _ => return Err(metadata.wrong(&format!("it has no tensor {EMBEDDING} of two dimensions"))),
    };
    let mut eos = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = token(file, &format!("tokenizer.ggml.{key}_token_id"))?;
        eos.extend(id.filter(|id| !eos.contains(id)));
    }
    Ok(ModelConfig {
        vocab_size,
        max_positions,
        hidden,
        intermediate: metadata.size("feed_forward_length")?,
        layers: metadata.size("block_count")?,
        heads,
        kv_heads,
        head_dim,
        norm_eps,
        rope: Rope {
            theta,
            scaling: RopeScaling::None,
        },
        tied: match file.tensors().iter().any(|tensor| tensor.name == HEAD) {
            true => Tied::Separate,
            false => Tied::Shared,
        },
        bias: match metadata.family {
            Family::Llama => Bias::None,
            Family::Qwen2 => Bias::Qkv,
        },
        bos: token(file, "tokenizer.ggml.bos_token_id")?,
        eos,
    })
}

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// A token id; an id that means "none" in a file is none.
fn token(file: &Gguf, key: &str) -> Result<Option<u32>, GgufError> {
    Ok(file.integer(key)?.and_then(|id| u32::try_from(id).ok()))
}

/// The metadata of a model of a family.
struct Metadata<'a> {
    file: &'a Gguf,
    architecture: &'a str,
    family: Family,
}

impl Metadata<'_> {
    fn of(file: &Gguf) -> Result<Metadata<'_>, LoadError> {
        let architecture = file.text("general.architecture")?.unwrap_or_default();
        let family = family(file, architecture)?;
        Ok(Metadata {
            file,
            architecture,
            family,
        })
    }

    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn wrong(&self, reason: &str) -> LoadError {
        let reason = format!("{}: {reason}", self.architecture);
        self.file.invalid(reason).into()
    }

    fn optional(&self, name: &str) -> Result<Option<usize>, LoadError> {
        match self.file.integer(&self.key(name))? {
            Some(n) if n == 0 || n > MOST_DIMENSION => Err(self.wrong(&format!(
                "{name} is {n}, it has to be between 1 and {MOST_DIMENSION}"
            ))),
            n => Ok(n.map(|n| n as usize)),
        }
    }

    fn size(&self, name: &str) -> Result<usize, LoadError> {
        (self.optional(name)?).ok_or_else(|| self.wrong(&format!("{name} is missing")))
    }

    fn float(&self, name: &str) -> Result<Option<f32>, LoadError> {
        Ok(self.file.float(&self.key(name))?)
    }
}

fn family(file: &Gguf, architecture: &str) -> Result<Family, LoadError> {
    match architecture {
        "llama" => Ok(Family::Llama),
        "qwen2" => Ok(Family::Qwen2),
        "" => Err(file
            .invalid("general.architecture is missing".to_owned())
            .into()),
        other => Err(file
            .invalid(format!(
                "general.architecture is {other:?}, which is not supported; llama and qwen2 are"
            ))
            .into()),
    }
}

/// What a tensor of a file is in a Hugging Face folder; none for the factors of rotary embedding, which have no place there.
///
/// # Errors
/// [`LoadError::UnexpectedTensor`] for one that the family does not have.
pub(crate) fn named(
    file: &Gguf,
    config: &ModelConfig,
    name: &str,
) -> Result<Option<Named>, LoadError> {
    let family = family(file, file.text("general.architecture")?.unwrap_or_default())?;
    let halves = |name: String| {
        let order = RowOrder::Halves;
        Ok(Some(Named { name, order }))
    };
    let unexpected = || LoadError::UnexpectedTensor {
        name: name.to_owned(),
    };
    match name {
        EMBEDDING => return halves("model.embed_tokens.weight".to_owned()),
        HEAD => return halves("lm_head.weight".to_owned()),
        "output_norm.weight" => return halves("model.norm.weight".to_owned()),
        ROPE_FACTORS => return Ok(None),
        _ => {}
    }
    let layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    let (layer, part) = layer.ok_or_else(unexpected)?;
    let layer: usize = layer.parse().map_err(|_| unexpected())?;
    let inner = |part: &str| format!("model.layers.{layer}.{part}.weight");
    let bias = |part: &str| format!("model.layers.{layer}.self_attn.{part}.bias");
    // One name has one spelling, or two tensors could have one place.
    if layer >= config.layers || !name.starts_with(&format!("blk.{layer}.")) {
        return Err(unexpected());
    }
    let turned = |part: &str| {
        let order = match family {
            Family::Llama => RowOrder::Neighbours {
                head_dim: config.head_dim,
            },
            Family::Qwen2 => RowOrder::Halves,
        };
        Ok(Some(Named {
            name: inner(part),
            order,
        }))
    };
    match part {
        "attn_q.weight" => turned("self_attn.q_proj"),
        "attn_k.weight" => turned("self_attn.k_proj"),
        "attn_v.weight" => halves(inner("self_attn.v_proj")),
        "attn_output.weight" => halves(inner("self_attn.o_proj")),
        "attn_norm.weight" => halves(inner("input_layernorm")),
        "ffn_norm.weight" => halves(inner("post_attention_layernorm")),
        "ffn_gate.weight" => halves(inner("mlp.gate_proj")),
        "ffn_up.weight" => halves(inner("mlp.up_proj")),
        "ffn_down.weight" => halves(inner("mlp.down_proj")),
        "attn_q.bias" if family == Family::Qwen2 => halves(bias("q_proj")),
        "attn_k.bias" if family == Family::Qwen2 => halves(bias("k_proj")),
        "attn_v.bias" if family == Family::Qwen2 => halves(bias("v_proj")),
        _ => Err(unexpected()),
    }
}

/// The factors of rotary embedding, if the file has any.
pub(crate) fn rope_factors(
    file: &Gguf,
    config: &ModelConfig,
) -> Result<Option<Vec<f32>>, LoadError> {
    let Some(tensor) = file
        .tensors()
        .iter()
        .find(|tensor| tensor.name == ROPE_FACTORS)
    else {
        return Ok(None);
    };
    let wrong = |reason: &str| Err(file.invalid(format!("{ROPE_FACTORS} {reason}")).into());
    if tensor.element != Element::F32 || tensor.shape != [config.head_dim / 2] {
        return wrong("is not one F32 number for each pair of a head");
    }
    let (words, _) = file.data(tensor).as_chunks();
    let factors: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
    if !factors
        .iter()
        .all(|factor| factor.is_finite() && *factor > 0.0)
    {
        return wrong("has a number that is not positive");
    }
    Ok(Some(factors))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_head_are_found_among_neighbours() {
        let order = RowOrder::Neighbours { head_dim: 6 };
        let found: Vec<usize> = (0..12).map(|n| order.stored(n)).collect();
        assert_eq!(found, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}

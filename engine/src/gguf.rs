//! GGUF files as checkpoints: the configuration in their metadata, and their tensors under the names of a Hugging Face folder.

use std::path::Path;

use gguf::{Element, Gguf, GgufError};

use decode::math;

use crate::config::{
    Bias, LayerAttention, MOST_DIMENSION, MOST_LAYERS, ModelConfig, Rope, RopeScaling, Tied,
};
use crate::load::LoadError;
use crate::model::Family;

/// The factors by which the frequencies of rotary embedding are divided, `[head_dim / 2]`, in Llama 3.1 and later.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";

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
    if !head_dim.is_multiple_of(2) || heads.saturating_mul(head_dim) > MOST_DIMENSION {
        return Err(metadata.wrong("the width of a head is odd, or heads are too wide together"));
    }
    if (metadata.optional("attention.value_length")?).is_some_and(|width| width != head_dim) {
        return Err(metadata.wrong(&format!(
            "attention.value_length is not the width of a head, {head_dim}"
        )));
    }
    let layers = metadata.size("block_count")?;
    if layers > MOST_LAYERS {
        return Err(metadata.wrong(&format!(
            "block_count is {layers}, it has to be at most {MOST_LAYERS}"
        )));
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
    let embedding = file
        .tensors()
        .iter()
        .find(|tensor| tensor.name == EMBEDDING);
    let vocab_size = match embedding.map(|tensor| &tensor.shape[..]) {
        Some(&[vocab, _]) if vocab <= MOST_DIMENSION => vocab,
        _ => return Err(metadata.wrong(&format!("it has no tensor {EMBEDDING} of two dimensions"))),
    };
    let mut eos = Vec::new();
    for key in ["eos", "eot", "eom"] {
        let id = token(file, &format!("tokenizer.ggml.{key}_token_id"))?;
        eos.extend(id.filter(|id| !eos.contains(id)));
    }
    let mut config = ModelConfig {
        family: metadata.family,
        vocab_size,
        max_positions: metadata.size("context_length")?,
        hidden,
        intermediate: metadata.size("feed_forward_length")?,
        layers,
        heads,
        kv_heads,
        head_dim,
        rotary_dim: head_dim,
        norm_eps,
        rope: Rope {
            theta: metadata.theta("rope.freq_base", 10_000.0)?,
            scaling: metadata.scaling()?,
        },
        local_rope: None,
        attention: vec![LayerAttention::FULL; layers],
        attention_scale: math::rsqrt(head_dim as f32),
        attention_cap: None,
        logits_cap: None,
        tied: match file.tensors().iter().any(|tensor| tensor.name == HEAD) {
            true => Tied::Separate,
            false => Tied::Shared,
        },
        bias: Bias::None,
        bos: token(file, "tokenizer.ggml.bos_token_id")?,
        eos,
    };
    metadata.family.of_gguf(&metadata, &mut config)?;
    config.forget_wide_windows();
    let turned = metadata.optional("rope.dimension_count")?;
    if turned.is_some_and(|width| width != config.rotary_dim) {
        return Err(metadata.wrong("rope.dimension_count is not the width of a head"));
    }
    if config.rotary_dim > head_dim || !config.rotary_dim.is_multiple_of(2) {
        return Err(
            metadata.wrong("rope.dimension_count has to be even, and at most the width of a head")
        );
    }
    Ok(config)
}

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";

/// A token id; an id that means "none" in a file is none.
fn token(file: &Gguf, key: &str) -> Result<Option<u32>, GgufError> {
    Ok(file.integer(key)?.and_then(|id| u32::try_from(id).ok()))
}

/// The metadata of a model of a family.
pub(crate) struct Metadata<'a> {
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

    /// A size, which is positive if it is there.
    pub(crate) fn optional(&self, name: &str) -> Result<Option<usize>, LoadError> {
        match self.file.integer(&self.key(name))? {
            Some(n) if n == 0 || n > MOST_DIMENSION as u64 => Err(self.wrong(&format!(
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

    /// A number that is positive if it is there.
    pub(crate) fn positive(&self, name: &str) -> Result<Option<f32>, LoadError> {
        match self.float(name)? {
            Some(number) if !(number.is_finite() && number > 0.0) => {
                Err(self.wrong(&format!("{name} is not positive")))
            }
            number => Ok(number),
        }
    }

    /// The base of rotary frequencies.
    pub(crate) fn theta(&self, name: &str, default: f32) -> Result<f32, LoadError> {
        match self.float(name)?.unwrap_or(default) {
            theta if theta.is_finite() && theta >= 1.0 => Ok(theta),
            _ => Err(self.wrong(&format!("{name} is below 1"))),
        }
    }

    fn scaling(&self) -> Result<RopeScaling, LoadError> {
        match self.file.text(&self.key("rope.scaling.type"))? {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => match self.positive("rope.scaling.factor")? {
                Some(factor) if factor != 1.0 => Ok(RopeScaling::Linear { factor }),
                _ => Ok(RopeScaling::None),
            },
            Some(kind) => Err(self.wrong(&format!("rope.scaling.type {kind:?} is not supported"))),
        }
    }

    /// How many positions a row of a layer with a window sees; none where the file says that there is no window.
    pub(crate) fn window(&self) -> Result<Option<usize>, LoadError> {
        let window = self.file.integer(&self.key("attention.sliding_window"))?;
        // Wider than any text is no window.
        Ok(window
            .filter(|window| (1..=MOST_DIMENSION as u64).contains(window))
            .map(|window| window as usize))
    }

    /// Refuses a window where the file does not say which layers have it.
    pub(crate) fn no_window(&self) -> Result<(), LoadError> {
        let positions = self.size("context_length")?;
        match self.window()?.filter(|window| *window < positions) {
            Some(_) => Err(self.wrong("attention.sliding_window is not supported")),
            None => Ok(()),
        }
    }
}

fn family(file: &Gguf, architecture: &str) -> Result<Family, LoadError> {
    match architecture {
        "" => Err(file.invalid("general.architecture is missing".to_owned())),
        name => Family::of_architecture(name).map_err(|reason| file.invalid(reason)),
    }
    .map_err(LoadError::from)
}

/// What a tensor of a file is in a Hugging Face folder; none for the factors of rotary embedding, which have no place there.
///
/// # Errors
/// [`LoadError::UnexpectedTensor`] for one that the family does not have.
pub(crate) fn named(config: &ModelConfig, name: &str) -> Result<Option<Named>, LoadError> {
    let found = |name: String, order| Ok(Some(Named { name, order }));
    let end = |name: &str| found(name.to_owned(), RowOrder::Halves);
    let unexpected = || LoadError::UnexpectedTensor {
        name: name.to_owned(),
    };
    match name {
        EMBEDDING => return end("model.embed_tokens.weight"),
        HEAD => return end("lm_head.weight"),
        "output_norm.weight" => return end("model.norm.weight"),
        ROPE_FACTORS => return Ok(None),
        _ => {}
    }
    let layer = name
        .strip_prefix("blk.")
        .and_then(|rest| rest.split_once('.'));
    let (layer, part) = layer.ok_or_else(unexpected)?;
    let layer: usize = layer.parse().map_err(|_| unexpected())?;
    // One name has one spelling, or two tensors could have one place.
    if layer >= config.layers || !name.starts_with(&format!("blk.{layer}.")) {
        return Err(unexpected());
    }
    let known = config.family.tensors().find(|(known, _)| *known == part);
    let (_, part) = known.ok_or_else(unexpected)?;
    let is_turned = part.contains("q_proj.weight") || part.contains("k_proj.weight");
    let order = match config.family.traits().neighbours && is_turned {
        true => RowOrder::Neighbours {
            head_dim: config.head_dim,
        },
        false => RowOrder::Halves,
    };
    found(format!("model.layers.{layer}.{part}"), order)
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
    if tensor.element != Element::F32 || tensor.shape != [config.rotary_dim / 2] {
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

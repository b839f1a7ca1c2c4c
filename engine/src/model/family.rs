//! The families of models: which there are, by which names files call them, and where each is written down.

use crate::config::{Fields, ModelConfig, Tied};
use crate::device::Device;
use crate::gguf::Metadata;
use crate::load::{Checkpoint, LoadError};
use crate::model::decoder::Layer;
use crate::options::WeightDtype;

/// What the layers of a model are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, SmolLM 2, and what else has their shape.
    Llama,
    /// Mistral 7B and the like: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: Llama with a bias of queries, keys and values.
    Qwen2,
    /// Qwen 3, dense: Llama with normalised queries and keys.
    Qwen3,
    /// SmolLM 3: Llama with layers without positions.
    SmolLm3,
    /// Phi 3, 3.5 and 4 in their small sizes: Llama with fused matrices.
    Phi3,
    /// Gemma 2.
    Gemma2,
    /// Gemma 3, text.
    Gemma3,
}

/// What files call a family, and what it has unless a file says otherwise.
pub(crate) struct Traits {
    /// `model_type` in `config.json`.
    pub(crate) model_type: &'static str,
    /// `general.architecture` of GGUF files; that of Mistral is Llama's.
    pub(crate) architecture: &'static str,
    /// Tensors of a layer, by the names that they have behind `blk.N.` in a GGUF file and behind `model.layers.N.` in a folder.
    pub(crate) tensors: &'static [&'static [(&'static str, &'static str)]],
    /// Whether GGUF files have the outputs of queries and keys in the order of neighbours.
    pub(crate) neighbours: bool,
    /// The name that Hugging Face gives its activation function.
    pub(crate) activation: &'static str,
    /// Width of a head where it is not the residual stream's over the number of heads.
    pub(crate) head_dim: Option<usize>,
    /// Base of the rotary frequencies.
    pub(crate) theta: f32,
    /// Whether the head is the embedding.
    pub(crate) tied: Tied,
    /// Whether folders store what a norm multiplies by less one.
    pub(crate) gain_above_one: bool,
    /// Whether embeddings are multiplied by the root of their width.
    pub(crate) scaled_embedding: bool,
    /// Whether queries and keys are normalised, head by head.
    pub(crate) head_norms: bool,
    /// Whether the projections to queries, keys and values are one matrix, and those of the perceptron another.
    pub(crate) fused: bool,
}

/// Evaluates an expression in which a name stands for the module that a family is written in.
macro_rules! of_family {
    ($family:expr, $module:ident => $value:expr) => {
        match $family {
            Family::Llama => {
                use crate::model::llama as $module;
                $value
            }
            Family::Mistral => {
                use crate::model::mistral as $module;
                $value
            }
            Family::Qwen2 => {
                use crate::model::qwen2 as $module;
                $value
            }
            Family::Qwen3 => {
                use crate::model::qwen3 as $module;
                $value
            }
            Family::SmolLm3 => {
                use crate::model::smollm3 as $module;
                $value
            }
            Family::Phi3 => {
                use crate::model::phi3 as $module;
                $value
            }
            Family::Gemma2 => {
                use crate::model::gemma2 as $module;
                $value
            }
            Family::Gemma3 => {
                use crate::model::gemma3 as $module;
                $value
            }
        }
    };
}

impl Family {
    /// All there are.
    pub const ALL: [Family; 8] = [
        Family::Llama,
        Family::Mistral,
        Family::Qwen2,
        Family::Qwen3,
        Family::SmolLm3,
        Family::Phi3,
        Family::Gemma2,
        Family::Gemma3,
    ];

    /// What `config.json` calls it.
    #[must_use]
    pub fn model_type(self) -> &'static str {
        self.traits().model_type
    }

    pub(crate) fn traits(self) -> &'static Traits {
        of_family!(self, family => &family::TRAITS)
    }

    /// Tensors of a layer: their names in a GGUF file, and in a folder.
    pub(crate) fn tensors(self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.traits().tensors.iter().copied().flatten().copied()
    }

    /// The family that `model_type` names.
    pub(crate) fn of_model_type(name: &str) -> Result<Family, String> {
        let found = Family::ALL
            .into_iter()
            .find(|family| family.traits().model_type == name);
        found.ok_or_else(|| {
            let known = Family::ALL.map(|family| family.traits().model_type);
            refusal("model_type", name, &known)
        })
    }

    /// The family that `general.architecture` names.
    pub(crate) fn of_architecture(name: &str) -> Result<Family, String> {
        let found = Family::ALL
            .into_iter()
            .find(|family| family.traits().architecture == name);
        found.ok_or_else(|| {
            let mut known = Family::ALL
                .map(|family| family.traits().architecture)
                .to_vec();
            known.dedup();
            refusal("general.architecture", name, &known)
        })
    }

    /// Completes a configuration with what `config.json` says of this family alone.
    pub(crate) fn of_folder(self, fields: &Fields, config: &mut ModelConfig) -> Result<(), String> {
        of_family!(self, family => family::of_folder(fields, config))
    }

    /// Completes a configuration with what the metadata of a GGUF file say of this family alone.
    pub(crate) fn of_gguf(
        self,
        file: &Metadata<'_>,
        config: &mut ModelConfig,
    ) -> Result<(), LoadError> {
        of_family!(self, family => family::of_gguf(file, config))
    }

    /// Loads layer `i`.
    pub(crate) fn layer<D: Device>(
        self,
        from: &Source<'_, D>,
        i: usize,
    ) -> Result<Box<dyn Layer<D>>, LoadError> {
        of_family!(self, family => family::layer(from, i))
    }
}

/// What a layer is loaded from, and onto what.
pub(crate) struct Source<'a, D: Device> {
    pub(crate) device: &'a D,
    pub(crate) checkpoint: &'a Checkpoint,
    pub(crate) config: &'a ModelConfig,
    /// How matmul weights are stored.
    pub(crate) dtype: WeightDtype,
}

/// Why a model of another family is refused.
fn refusal(field: &str, name: &str, known: &[&str]) -> String {
    let known = known.join(", ");
    match missing_feature(name) {
        Some(feature) => format!(
            "{field} is {name:?}, which needs {feature}; that is not supported. Supported are {known}"
        ),
        None => format!("{field} is {name:?}, which is not supported; {known} are"),
    }
}

/// What models of well-known other families would need.
fn missing_feature(name: &str) -> Option<&'static str> {
    const FEATURES: [(&str, &[&str]); 6] = [
        (
            "a mixture of experts",
            &[
                "moe", "mixtral", "deepseek", "dbrx", "grok", "gpt_oss", "gpt-oss", "llama4",
                "arctic", "jamba",
            ],
        ),
        (
            "an encoder beside the decoder",
            &[
                "t5", "bart", "pegasus", "marian", "whisper", "m2m_100", "nllb",
            ],
        ),
        ("an encoder in place of the decoder", &["bert", "nomic"]),
        (
            "layers with a recurrent state",
            &[
                "mamba",
                "rwkv",
                "falcon_h1",
                "falcon-h1",
                "recurrent",
                "zamba",
                "nemotron_h",
                "granitehybrid",
                "qwen3_next",
                "lfm2",
            ],
        ),
        (
            "images or sound beside the text",
            &[
                "_vl",
                "vl",
                "llava",
                "mllama",
                "paligemma",
                "idefics",
                "gemma3n",
                "mistral3",
                "pixtral",
                "phi4mm",
            ],
        ),
        (
            "LayerNorm with a bias, or positions that are learned",
            &[
                "gpt2",
                "gpt_neo",
                "gptj",
                "opt",
                "bloom",
                "falcon",
                "mpt",
                "starcoder",
                "phi",
                "stablelm",
                "codegen",
            ],
        ),
    ];
    // The text model of Gemma 3 has a name of its own in folders.
    if name == "gemma3" {
        return Some("images beside the text (its text model alone is \"gemma3_text\")");
    }
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    FEATURES
        .into_iter()
        .find(|(_, words)| has(words))
        .map(|(feature, _)| feature)
}

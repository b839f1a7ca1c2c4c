//! What a checkpoint says about its model: `config.json` and `generation_config.json`, parsed once and checked.

pub(crate) mod features;
mod fields;
mod rope;

use std::path::Path;

use decode::math;

use crate::load::LoadError;
use crate::model::Family;

pub(crate) use features::BIASES;
pub(crate) use fields::{Fields, is_lfs_pointer, parse};
pub(crate) use rope::{rope, rope_of_kind};

/// No dimension of a model this engine serves comes near this.
pub(crate) const MOST_DIMENSION: usize = 1 << 24;
/// More layers than any model has that is served.
pub(crate) const MOST_LAYERS: usize = 100_000;

/// A decoder, as its checkpoint describes it; every combination held here can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What its layers are made of.
    pub family: Family,
    /// Rows of the embedding and the head, padding included.
    pub vocab_size: usize,
    /// Positions the model was trained for.
    pub max_positions: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the hidden layer of the multilayer perceptron.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// How many of a head's elements rotary embedding turns, the first ones; even, at most `head_dim`.
    pub rotary_dim: usize,
    /// Epsilon of RMSNorm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Rotary position embedding of layers that look at a window, where it is another one.
    pub local_rope: Option<Rope>,
    /// How each layer attends.
    pub attention: Vec<LayerAttention>,
    /// What products of queries and keys are multiplied by.
    pub attention_scale: f32,
    /// Bound of scores, which `c * tanh(x / c)` maps into it (Gemma 2, arXiv 2408.00118, section 2).
    pub attention_cap: Option<f32>,
    /// Bound of logits, likewise.
    pub logits_cap: Option<f32>,
    /// The head is the embedding, transposed.
    pub tied: Tied,
    /// What is added to queries, keys and values.
    pub bias: Bias,
    /// First token of a sequence, where the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a text; from `generation_config.json` where that names any, else from `config.json`.
    pub eos: Vec<u32>,
}

/// How one layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerAttention {
    /// How many positions a row sees, the last of them its own; none: all.
    pub window: Option<usize>,
    /// How queries and keys get their positions.
    pub turn: Turn,
}

impl LayerAttention {
    /// A layer that sees everything.
    pub const FULL: LayerAttention = LayerAttention {
        window: None,
        turn: Turn::Rope,
    };
}

/// How queries and keys of a layer get their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// By [`ModelConfig::rope`].
    Rope,
    /// By [`ModelConfig::local_rope`].
    LocalRope,
    /// Not at all (NoPE, arXiv 2305.19466).
    None,
}

/// Which projections of attention have a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bias {
    /// None, as in Llama.
    None,
    /// Those to queries, keys and values, as in Qwen 2.
    Qkv,
}

/// Whether the output head shares the embedding's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tied {
    /// `lm_head` is the embedding.
    Shared,
    /// `lm_head.weight` is a tensor of its own.
    Separate,
}

/// Rotary position embedding (arXiv 2104.09864), halves of a head rotated against each other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// How the frequencies are stretched to a longer context.
    pub scaling: RopeScaling,
}

/// Frequency scaling schemes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// Stretch of all wavelengths.
        factor: f32,
    },
    /// The Llama 3.1 scheme: long wavelengths divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Stretch of the long wavelengths.
        factor: f32,
        /// Wavelengths above `original_positions / low_freq_factor` are long.
        low_freq_factor: f32,
        /// Wavelengths below `original_positions / high_freq_factor` are short.
        high_freq_factor: f32,
        /// Context length before the stretch, in positions.
        original_positions: usize,
    },
}

impl ModelConfig {
    /// Reads and checks `config.json` (required) and `generation_config.json` (optional) of a checkpoint folder, or the metadata
    /// of a GGUF file.
    ///
    /// # Errors
    /// [`LoadError`] naming the file and the field: missing, not JSON, out of range, or a model this engine does
    /// not run.
    pub fn read(dir: &Path) -> Result<ModelConfig, LoadError> {
        if gguf::is_gguf(dir) {
            return crate::gguf::config_of(dir);
        }
        let wrong = |path: &Path, reason| LoadError::Config {
            path: path.to_owned(),
            reason,
        };
        let fields = |path: &Path| -> Result<Fields, LoadError> {
            Ok(Fields {
                object: parse(path)?,
                path: "",
            })
        };
        let path = dir.join("config.json");
        let mut config = check(&fields(&path)?).map_err(|reason| wrong(&path, reason))?;
        let path = dir.join("generation_config.json");
        if path.exists() {
            let ids = fields(&path)?.token_ids("eos_token_id");
            let ids = ids.map_err(|reason| wrong(&path, reason))?;
            if !ids.is_empty() {
                config.eos = ids;
            }
        }
        // An id beyond the logits is never generated, so it ends nothing.
        config.eos.retain(|&id| (id as usize) < config.vocab_size);
        Ok(config)
    }

    /// A window that no text is longer than is none.
    pub(crate) fn forget_wide_windows(&mut self) {
        let positions = self.max_positions;
        for layer in &mut self.attention {
            layer.window = layer.window.filter(|window| *window < positions);
        }
    }

    /// Query heads that share one key/value head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Width of the fused query, key and value projection.
    #[must_use]
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
}

/// Checks `config.json`. What it leaves out has the default of Hugging Face's configuration of that family, unless it is a size.
fn check(fields: &Fields) -> Result<ModelConfig, String> {
    let family = match fields.get::<String>("model_type")? {
        None => Family::Llama,
        Some(name) => Family::of_model_type(&name)?,
    };
    let traits = family.traits();
    for name in ["hidden_act", "hidden_activation"] {
        if let Some(other) = fields.get::<String>(name)?
            && other != traits.activation
        {
            return Err(format!(
                "{name} {other:?} is not supported, only {:?} is",
                traits.activation
            ));
        }
    }
    for name in ["attention_bias", "mlp_bias"] {
        if fields.get(name)? == Some(true) {
            return Err("attention_bias and mlp_bias are not supported".to_owned());
        }
    }
    let hidden = fields.required("hidden_size")?;
    let heads = fields.required("num_attention_heads")?;
    let kv_heads = fields.count("num_key_value_heads")?.unwrap_or(heads);
    let head_dim = match fields.count("head_dim")?.or(traits.head_dim) {
        Some(width) => width,
        None => hidden
            .checked_div(heads)
            .filter(|width| width * heads == hidden)
            .ok_or(
                "hidden_size is not a multiple of num_attention_heads, and there is no head_dim",
            )?,
    };
    let layers = fields.required("num_hidden_layers")?;
    if layers == 0 || layers > MOST_LAYERS {
        return Err(format!(
            "num_hidden_layers is {layers}, it has to be between 1 and {MOST_LAYERS}"
        ));
    }
    let mut config = ModelConfig {
        family,
        vocab_size: fields.required("vocab_size")?,
        max_positions: fields.required("max_position_embeddings")?,
        hidden,
        intermediate: fields.required("intermediate_size")?,
        layers,
        heads,
        kv_heads,
        head_dim,
        rotary_dim: head_dim,
        norm_eps: fields.get("rms_norm_eps")?.unwrap_or(1e-6),
        rope: Rope {
            theta: traits.theta,
            scaling: RopeScaling::None,
        },
        local_rope: None,
        attention: vec![LayerAttention::FULL; layers],
        attention_scale: math::rsqrt(head_dim as f32),
        attention_cap: None,
        logits_cap: None,
        tied: match fields.get("tie_word_embeddings")? {
            Some(true) => Tied::Shared,
            Some(false) => Tied::Separate,
            None => traits.tied,
        },
        bias: Bias::None,
        bos: fields.token_ids("bos_token_id")?.first().copied(),
        eos: fields.token_ids("eos_token_id")?,
    };
    family.of_folder(fields, &mut config)?;
    config.forget_wide_windows();
    for (name, value) in [
        ("hidden_size", config.hidden),
        ("intermediate_size", config.intermediate),
        ("num_attention_heads", config.heads),
        ("num_key_value_heads", config.kv_heads),
        ("head_dim", config.head_dim),
        ("vocab_size", config.vocab_size),
        ("max_position_embeddings", config.max_positions),
    ] {
        if value == 0 || value > MOST_DIMENSION {
            return Err(format!(
                "{name} is {value}, it has to be between 1 and {MOST_DIMENSION}"
            ));
        }
    }
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!(
            "{heads} heads cannot share {kv_heads} key/value heads"
        ));
    }
    if !head_dim.is_multiple_of(2) {
        return Err(format!(
            "head_dim {head_dim} is odd, rotary embedding needs pairs"
        ));
    }
    if head_dim.saturating_mul(heads) > MOST_DIMENSION {
        return Err("num_attention_heads * head_dim is too large".to_owned());
    }
    if !(config.norm_eps.is_finite() && config.norm_eps > 0.0) {
        return Err(format!(
            "rms_norm_eps is {}, it has to be positive",
            config.norm_eps
        ));
    }
    Ok(config)
}

/// The window that `sliding_window` says, in positions.
pub(crate) fn window(fields: &Fields) -> Result<Option<usize>, String> {
    match fields.count("sliding_window")? {
        Some(0) => Err("sliding_window is 0, it has to be positive".to_owned()),
        window => Ok(window),
    }
}

/// What share of a head is turned: `partial_rotary_factor`, which newer files have among the settings of rotary embedding.
pub(crate) fn share_turned(fields: &Fields) -> Result<f32, String> {
    let mut share = fields.get("partial_rotary_factor")?;
    for name in ["rope_scaling", "rope_parameters"] {
        if let Some(within) = fields.object(name)? {
            share = within.get("partial_rotary_factor")?.or(share);
        }
    }
    match share.unwrap_or(1.0) {
        share if share > 0.0 && share <= 1.0 => Ok(share),
        share => Err(format!(
            "partial_rotary_factor is {share}, it has to be above 0 and at most 1"
        )),
    }
}

/// Which layers look at a window only: what `layer_types` says, or what the family has where it says nothing.
pub(crate) fn windowed(
    fields: &Fields,
    layers: usize,
    default: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, String> {
    let Some(types) = fields.get::<Vec<String>>("layer_types")? else {
        return Ok((0..layers).map(default).collect());
    };
    if types.len() != layers {
        return Err(format!(
            "layer_types has {} layers of {layers}",
            types.len()
        ));
    }
    let one = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => Err(format!(
            "layer_types has {other:?}, which is not supported; \"full_attention\" and \"sliding_attention\" are"
        )),
    };
    types.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(extra: &str) -> Result<ModelConfig, String> {
        // The last of two fields of a name counts.
        let text = format!(
            r#"{{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                "vocab_size": 100, "max_position_embeddings": 512, "rms_norm_eps": 1e-5 {extra}}}"#
        );
        let object = serde_json::from_str(&text).map_err(|e| e.to_string())?;
        check(&Fields { object, path: "" })
    }

    #[test]
    fn defaults_are_those_of_hugging_face() {
        let config = read("").unwrap();
        assert_eq!(
            (config.head_dim, config.kv_heads, config.rope.theta),
            (16, 4, 10_000.0)
        );
        assert_eq!(config.tied, Tied::Separate);
        assert_eq!(read(r#", "eos_token_id": [1, 2]"#).unwrap().eos, [1, 2]);
        assert_eq!(read(r#", "eos_token_id": 7"#).unwrap().eos, [7]);
    }

    #[test]
    fn what_cannot_be_run_is_named() {
        for (extra, word) in [
            (r#", "model_type": "gpt2""#, "model_type"),
            (r#", "model_type": "mixtral""#, "a mixture of experts"),
            (r#", "model_type": "t5""#, "an encoder beside the decoder"),
            (r#", "hidden_act": "gelu""#, "hidden_act"),
            (
                r#", "model_type": "mistral", "sliding_window": 0"#,
                "sliding_window",
            ),
            (
                r#", "model_type": "phi3", "rope_scaling": {"type": "longrope"}"#,
                "longrope",
            ),
            (
                r#", "model_type": "phi3", "partial_rotary_factor": 1.5"#,
                "partial_rotary_factor",
            ),
            (
                r#", "model_type": "gemma3_text", "layer_types": ["full_attention"]"#,
                "layer_types",
            ),
            (
                r#", "model_type": "qwen3", "use_sliding_window": true, "sliding_window": 9, "layer_types": ["x", "x"]"#,
                "layer_types",
            ),
            (
                r#", "model_type": "smollm3", "no_rope_layers": [1, 1, 1]"#,
                "no_rope_layers",
            ),
            (r#", "attention_bias": true"#, "attention_bias"),
            (r#", "num_key_value_heads": 3"#, "key/value"),
            (r#", "num_key_value_heads": 0"#, "num_key_value_heads"),
            (r#", "head_dim": 15"#, "odd"),
            (r#", "head_dim": 99999999999"#, "head_dim"),
            (
                r#", "rope_scaling": {"type": "yarn", "factor": 2.0}"#,
                "yarn",
            ),
            (
                r#", "rope_scaling": {"rope_type": "llama3", "factor": 2.0}"#,
                "low_freq_factor",
            ),
            (r#", "rope_theta": -1.0"#, "rope_theta"),
        ] {
            let reason = read(extra).unwrap_err();
            assert!(reason.contains(word), "{extra}: {reason}");
        }
    }

    #[test]
    fn every_spelling_of_one_rope_is_that_rope() {
        let llama3 = r#""factor": 8, "low_freq_factor": 1.0, "high_freq_factor": 4.0"#;
        let original = r#""original_max_position_embeddings": 8192"#;
        let expected = Rope {
            theta: 500_000.0,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_positions: 8192,
            },
        };
        for extra in [
            format!(
                r#", "rope_theta": 500000.0, "rope_scaling": {{"rope_type": "llama3", {llama3}, {original}}}"#
            ),
            format!(
                r#", "rope_theta": 500000, "rope_scaling": {{"type": "llama3", {llama3}, {original}}}"#
            ),
            // Both names, as many converted checkpoints have it.
            format!(
                r#", "rope_theta": 5e5, "rope_scaling": {{"type": "llama3", "rope_type": "llama3", {llama3}, {original}}}"#
            ),
            format!(
                r#", "rope_parameters": {{"rope_theta": 500000.0, "rope_type": "llama3", {llama3}, {original}}}"#
            ),
            format!(
                r#", "rope_scaling": null, "rope_theta": 5e5, "rope_parameters":
                    {{"rope_theta": 5e5, "rope_type": "llama3", "type": null, {llama3},
                      "original_max_position_embeddings": 8192.0}}"#
            ),
            format!(
                r#", "rope_scaling": {{"rope_type": "llama3", {llama3}, {original}}}, "rope_parameters":
                    {{"rope_theta": 5e5, "rope_type": "llama3", {llama3}}}"#
            ),
            format!(
                r#", "rope_theta": 5e5, {original}, "rope_scaling": {{"rope_type": "llama3", {llama3}}}"#
            ),
        ] {
            assert_eq!(read(&extra).unwrap().rope, expected, "{extra}");
        }
        let plain = Rope {
            theta: 10_000.0,
            scaling: RopeScaling::None,
        };
        for extra in [
            r#", "rope_theta": null, "rope_scaling": null, "rope_parameters": null"#,
            r#", "rope_scaling": {}"#,
            r#", "rope_scaling": {"type": null, "factor": null}"#,
            r#", "rope_scaling": {"rope_type": "default"}"#,
            r#", "rope_scaling": {"type": "linear", "factor": 1.0}"#,
            r#", "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}"#,
        ] {
            assert_eq!(read(extra).unwrap().rope, plain, "{extra}");
        }
    }

    #[test]
    fn ids_may_be_one_or_many_or_none() {
        for (extra, expected) in [
            (r#", "eos_token_id": null"#, &[][..]),
            (r#", "eos_token_id": -1"#, &[]),
            (r#", "eos_token_id": []"#, &[]),
            (r#", "eos_token_id": [null]"#, &[]),
            (r#", "eos_token_id": 0"#, &[0]),
            (r#", "eos_token_id": [9, -1, 2, 9]"#, &[9, 2]),
        ] {
            assert_eq!(read(extra).unwrap().eos, expected, "{extra}");
        }
        for (extra, expected) in [
            (r#", "bos_token_id": -1"#, None),
            (r#", "bos_token_id": null"#, None),
            (r#", "bos_token_id": [1]"#, Some(1)),
        ] {
            assert_eq!(read(extra).unwrap().bos, expected, "{extra}");
        }
    }

    #[test]
    fn null_is_not_there_and_what_is_wrong_is_named() {
        let nulls = r#", "head_dim": null, "num_key_value_heads": null, "hidden_act": null, "model_type": null,
            "tie_word_embeddings": null, "attention_bias": null, "mlp_bias": null, "rms_norm_eps": null"#;
        let config = read(nulls).unwrap();
        assert_eq!((config.head_dim, config.kv_heads), (16, 4));
        assert!((config.norm_eps - 1e-6).abs() < 1e-12);
        for (extra, word) in [
            (r#", "hidden_size": null"#, "hidden_size is missing"),
            (r#", "vocab_size": "100""#, "vocab_size is \"100\""),
            (r#", "vocab_size": -3"#, "vocab_size is -3"),
            (r#", "vocab_size": 1.5"#, "vocab_size is 1.5"),
            (r#", "eos_token_id": "</s>""#, "eos_token_id"),
            (r#", "eos_token_id": [1, 5000000000]"#, "5000000000"),
            (r#", "rope_scaling": 2.0"#, "rope_scaling is 2.0"),
            (
                r#", "rope_scaling": {"factor": 2.0}"#,
                "without a rope_type",
            ),
            (
                r#", "rope_scaling": {"type": "linear", "factor": 0.0}"#,
                "rope_scaling.factor",
            ),
            (
                r#", "rope_scaling": {"type": "default", "rope_type": "llama3"}"#,
                "remove one",
            ),
            (
                r#", "rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}"#,
                "in another",
            ),
            (
                r#", "rope_scaling": {"factor": 8.0, "type": "llama3"}, "rope_parameters": {"factor": 4.0}"#,
                "factor differ",
            ),
            (
                r#", "rope_parameters": {"full_attention": {"rope_type": "default"}}"#,
                "kind of layer",
            ),
        ] {
            let reason = read(extra).unwrap_err();
            assert!(reason.contains(word), "{extra}: {reason}");
        }
    }

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    #[test]
    fn generation_settings_name_the_end_of_text_unless_they_name_none() {
        let config = r#"{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 100, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "eos_token_id": 7}"#;
        for (generation, expected) in [
            (r#"{"eos_token_id": [3, 4]}"#, &[3, 4][..]),
            (r#"{"eos_token_id": -1}"#, &[7]),
            (r#"{"eos_token_id": null}"#, &[7]),
            ("{}", &[7]),
            // Beyond the vocabulary there is nothing to stop at.
            (r#"{"eos_token_id": [3, 100]}"#, &[3]),
        ] {
            let dir = folder(&[
                ("config.json", config),
                ("generation_config.json", generation),
            ]);
            let eos = ModelConfig::read(dir.path()).unwrap().eos;
            assert_eq!(eos, expected, "{generation}");
        }
    }

    #[test]
    fn a_pointer_of_git_lfs_is_named_as_such() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        let dir = folder(&[("config.json", pointer)]);
        let error = ModelConfig::read(dir.path()).unwrap_err();
        assert!(matches!(error, LoadError::LfsPointer { .. }), "{error}");
        assert!(error.to_string().contains("git lfs pull"), "{error}");
    }
}

//! What a checkpoint says about its model: `config.json` and `generation_config.json`, parsed once and checked.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::load::LoadError;

/// Configuration files beyond this many bytes are refused before they are parsed.
const MOST_CONFIG_BYTES: u64 = 4 << 20;
/// No dimension of a model this engine serves comes near this.
const MOST_DIMENSION: usize = 1 << 24;

/// A Llama-family decoder, as its checkpoint describes it; every combination held here can be run.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Rows of the embedding and the head, padding included.
    pub vocab_size: usize,
    /// Positions the model was trained for.
    pub max_positions: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the SwiGLU hidden layer.
    pub intermediate: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Epsilon of RMSNorm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// The head is the embedding, transposed.
    pub tied: Tied,
    /// What is added to queries, keys and values.
    pub bias: Bias,
    /// First token of a sequence, where the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a text; from `generation_config.json` where that names any, else from `config.json`.
    pub eos: Vec<u32>,
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

/// A value for a message.
fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

/// The object of a JSON file. A field that is null is a field that is not there, as Hugging Face writes its files.
struct Fields {
    object: Map<String, Value>,
    /// With what the names of its fields begin in messages.
    path: &'static str,
}

impl Fields {
    /// A field of any type.
    fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        match self.object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|error| format!("{}{name} is {}: {error}", self.path, short(value))),
        }
    }

    /// A count, which may be written as a whole number with a decimal point.
    fn count(&self, name: &str) -> Result<Option<usize>, String> {
        let whole = |number: &f64| number.fract() == 0.0 && (0.0..=1e15).contains(number);
        match self.object.get(name).and_then(Value::as_f64).filter(whole) {
            Some(number) => Ok(Some(number as usize)),
            None => self.get(name),
        }
    }

    /// A count that has to be there.
    fn required(&self, name: &str) -> Result<usize, String> {
        let missing = || format!("{}{name} is missing", self.path);
        self.count(name)?.ok_or_else(missing)
    }

    /// An object within, unless it says nothing.
    fn object(&self, name: &'static str) -> Result<Option<Fields>, String> {
        let object: Option<Map<String, Value>> = self.get(name)?;
        let path = match name {
            "rope_scaling" => "rope_scaling.",
            _ => "rope_parameters.",
        };
        Ok(object
            .filter(|object| object.values().any(|value| !value.is_null()))
            .map(|object| Fields { object, path }))
    }

    /// Token ids: one, or a list. What is no id, such as -1 or null, says that there is none.
    fn token_ids(&self, name: &str) -> Result<Vec<u32>, String> {
        let given = match self.get::<Value>(name)? {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(one) => vec![one],
        };
        let mut ids = Vec::new();
        for value in given {
            if value.is_null() || value.as_i64().is_some_and(i64::is_negative) {
                continue;
            }
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let wrong = || {
                format!(
                    "{}{name} has {}, which is no token id",
                    self.path,
                    short(&value)
                )
            };
            let id = id.ok_or_else(wrong)?;
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
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

/// Whether a file is what Git leaves in place of a large one that was not fetched (git-lfs, `docs/spec.md`).
pub(crate) fn is_lfs_pointer(content: &[u8]) -> bool {
    content.starts_with(b"version https://git-lfs.github.com/spec/")
}

/// Reads a small JSON file.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    let io = |source| LoadError::Io {
        path: path.to_owned(),
        source,
    };
    let file = fs::File::open(path).map_err(io)?;
    let mut text = Vec::new();
    file.take(MOST_CONFIG_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(io)?;
    if text.len() as u64 > MOST_CONFIG_BYTES {
        let reason = format!("larger than {MOST_CONFIG_BYTES} bytes");
        return Err(LoadError::Config {
            path: path.to_owned(),
            reason,
        });
    }
    if is_lfs_pointer(&text) {
        return Err(LoadError::LfsPointer {
            path: path.to_owned(),
        });
    }
    serde_json::from_slice(&text).map_err(|e| LoadError::Config {
        path: path.to_owned(),
        reason: format!("not what it should be: {e}"),
    })
}

/// Checks `config.json`. What it leaves out has the default of Hugging Face's `LlamaConfig`, unless it is a size.
fn check(fields: &Fields) -> Result<ModelConfig, String> {
    let bias = match fields.get::<String>("model_type")?.as_deref() {
        None | Some("llama") => Bias::None,
        Some("qwen2") if fields.get("use_sliding_window")? == Some(true) => {
            return Err("use_sliding_window is not supported".to_owned());
        }
        Some("qwen2") => Bias::Qkv,
        Some(other) => {
            return Err(format!(
                "model_type {other:?} is not supported, \"llama\" and \"qwen2\" are"
            ));
        }
    };
    if let Some(other) = fields.get::<String>("hidden_act")?
        && other != "silu"
    {
        return Err(format!(
            "hidden_act {other:?} is not supported, only \"silu\" is"
        ));
    }
    for name in ["attention_bias", "mlp_bias"] {
        if fields.get(name)? == Some(true) {
            return Err("attention_bias and mlp_bias are not supported".to_owned());
        }
    }
    let hidden = fields.required("hidden_size")?;
    let heads = fields.required("num_attention_heads")?;
    let kv_heads = fields.count("num_key_value_heads")?.unwrap_or(heads);
    let head_dim = match fields.count("head_dim")? {
        Some(width) => width,
        None => hidden
            .checked_div(heads)
            .filter(|width| width * heads == hidden)
            .ok_or(
                "hidden_size is not a multiple of num_attention_heads, and there is no head_dim",
            )?,
    };
    let config = ModelConfig {
        vocab_size: fields.required("vocab_size")?,
        max_positions: fields.required("max_position_embeddings")?,
        hidden,
        intermediate: fields.required("intermediate_size")?,
        layers: fields.required("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        norm_eps: fields.get("rms_norm_eps")?.unwrap_or(1e-6),
        rope: rope(fields)?,
        tied: match fields.get("tie_word_embeddings")? {
            Some(true) => Tied::Shared,
            Some(false) | None => Tied::Separate,
        },
        bias,
        bos: fields.token_ids("bos_token_id")?.first().copied(),
        eos: fields.token_ids("eos_token_id")?,
    };
    for (name, value) in [
        ("hidden_size", config.hidden),
        ("intermediate_size", config.intermediate),
        ("num_hidden_layers", config.layers),
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

/// The rotary embedding. Older files have `rope_theta` beside `rope_scaling`, newer ones both in `rope_parameters`; the
/// kind of scaling is called `type` in the oldest, and some have it under both names.
fn rope(fields: &Fields) -> Result<Rope, String> {
    let (older, newer) = (
        fields.object("rope_scaling")?,
        fields.object("rope_parameters")?,
    );
    let raw = match (older, newer) {
        (Some(older), Some(newer)) => Some(merged(older, newer)?),
        (older, newer) => newer.or(older),
    };
    let within = |name: &str| match &raw {
        Some(raw) => raw.get::<f32>(name),
        None => Ok(None),
    };
    let theta = match (fields.get("rope_theta")?, within("rope_theta")?) {
        (Some(outer), Some(inner)) if outer != inner => {
            return Err(format!(
                "rope_theta is {outer} in one place and {inner} in another; remove one"
            ));
        }
        (outer, inner) => outer.or(inner).unwrap_or(10_000.0),
    };
    if !(theta.is_finite() && theta >= 1.0) {
        return Err(format!("rope_theta is {theta}, it has to be at least 1"));
    }
    let scaling = match &raw {
        Some(raw) => scaling(raw, fields)?,
        None => RopeScaling::None,
    };
    Ok(Rope { theta, scaling })
}

/// What both objects say, which must not contradict each other.
fn merged(older: Fields, newer: Fields) -> Result<Fields, String> {
    let mut all = newer;
    for (name, value) in older.object {
        let other = all.object.get(&name).filter(|other| !other.is_null());
        match other {
            Some(other) if !value.is_null() && *other != value => {
                return Err(format!(
                    "rope_scaling.{name} and rope_parameters.{name} differ; remove one"
                ));
            }
            Some(_) => {}
            None => {
                all.object.insert(name, value);
            }
        }
    }
    Ok(all)
}

fn scaling(raw: &Fields, whole: &Fields) -> Result<RopeScaling, String> {
    let path = raw.path;
    if raw.object.values().any(Value::is_object) {
        return Err(format!(
            "{path}{} differs by kind of layer, which is not supported",
            raw.object.keys().next().map_or("", String::as_str)
        ));
    }
    let kind: Option<String> = match (raw.get("rope_type")?, raw.get::<String>("type")?) {
        (Some(newer), Some(older)) if newer != older => {
            return Err(format!(
                "{path}rope_type is {newer:?} and {path}type is {older:?}; remove one"
            ));
        }
        (newer, older) => newer.or(older),
    };
    let factor: Option<f32> = raw.get("factor")?;
    let positive = |name: &str, value: Option<f32>| {
        value
            .filter(|v| v.is_finite() && *v > 0.0)
            .ok_or_else(|| format!("{path}{name} has to be a positive number"))
    };
    match kind.as_deref() {
        // A factor without a kind would be ignored, and the model would be another one.
        None if factor.is_some_and(|factor| factor != 1.0) => Err(format!(
            "{path}factor is there without a rope_type; add \"llama3\" if it is that kind"
        )),
        None | Some("default") => Ok(RopeScaling::None),
        // Positions divided by one.
        Some("linear") if factor == Some(1.0) => Ok(RopeScaling::None),
        Some("llama3") => {
            let low = positive("low_freq_factor", raw.get("low_freq_factor")?)?;
            let high = positive("high_freq_factor", raw.get("high_freq_factor")?)?;
            if low >= high {
                return Err(format!(
                    "{path}low_freq_factor has to be below high_freq_factor"
                ));
            }
            let name = "original_max_position_embeddings";
            let original = match raw.count(name)? {
                Some(original) => Some(original),
                None => whole.count(name)?,
            };
            Ok(RopeScaling::Llama3 {
                factor: positive("factor", factor)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_positions: original
                    .filter(|positions| (1..=MOST_DIMENSION).contains(positions))
                    .ok_or_else(|| format!("{path}{name} has to be a positive number"))?,
            })
        }
        Some(other) => Err(format!(
            "{path}rope_type {other:?} is not supported, only \"llama3\" and \"default\" are"
        )),
    }
}

#[cfg(test)]
mod tests {
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
            (r#", "hidden_act": "gelu""#, "hidden_act"),
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
                r#", "rope_scaling": {"type": "linear", "factor": 2.0}"#,
                "linear",
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

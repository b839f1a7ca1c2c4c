//! What a checkpoint says about its model: `config.json` and `generation_config.json`, parsed once and checked.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

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

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    fn into_vec(self) -> Vec<u32> {
        match self {
            TokenIds::One(id) => vec![id],
            TokenIds::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RawRope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    low_freq_factor: Option<f32>,
    high_freq_factor: Option<f32>,
    original_max_position_embeddings: Option<usize>,
}

#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    use_sliding_window: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    bos_token_id: Option<u32>,
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
struct RawGeneration {
    eos_token_id: Option<TokenIds>,
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
        let path = dir.join("config.json");
        let raw: RawConfig = parse(&path)?;
        let mut config = raw.check().map_err(|reason| LoadError::Config {
            path: path.clone(),
            reason,
        })?;
        let path = dir.join("generation_config.json");
        if path.exists() {
            let generation: RawGeneration = parse(&path)?;
            if let Some(ids) = generation.eos_token_id {
                config.eos = ids.into_vec();
            }
        }
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

/// Reads a small JSON file.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
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
    serde_json::from_slice(&text).map_err(|e| LoadError::Config {
        path: path.to_owned(),
        reason: format!("not what it should be: {e}"),
    })
}

impl RawConfig {
    fn check(self) -> Result<ModelConfig, String> {
        let bias = match self.model_type.as_deref() {
            None | Some("llama") => Bias::None,
            Some("qwen2") if self.use_sliding_window == Some(true) => {
                return Err("use_sliding_window is not supported".to_owned());
            }
            Some("qwen2") => Bias::Qkv,
            Some(other) => {
                return Err(format!(
                    "model_type {other:?} is not supported, \"llama\" and \"qwen2\" are"
                ));
            }
        };
        match self.hidden_act.as_deref() {
            None | Some("silu") => {}
            Some(other) => {
                return Err(format!(
                    "hidden_act {other:?} is not supported, only \"silu\" is"
                ));
            }
        }
        if self.attention_bias == Some(true) || self.mlp_bias == Some(true) {
            return Err("attention_bias and mlp_bias are not supported".to_owned());
        }
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        let head_dim = match self.head_dim {
            Some(width) => width,
            None => self
                .hidden_size
                .checked_div(self.num_attention_heads)
                .filter(|width| width * self.num_attention_heads == self.hidden_size)
                .ok_or("hidden_size is not a multiple of num_attention_heads, and there is no head_dim")?,
        };
        for (name, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", kv_heads),
            ("head_dim", head_dim),
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if value == 0 || value > MOST_DIMENSION {
                return Err(format!(
                    "{name} is {value}, it has to be between 1 and {MOST_DIMENSION}"
                ));
            }
        }
        if !self.num_attention_heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "{} heads cannot share {kv_heads} key/value heads",
                self.num_attention_heads
            ));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(format!(
                "head_dim {head_dim} is odd, rotary embedding needs pairs"
            ));
        }
        if head_dim.saturating_mul(self.num_attention_heads) > MOST_DIMENSION {
            return Err("num_attention_heads * head_dim is too large".to_owned());
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps > 0.0) {
            return Err(format!(
                "rms_norm_eps is {}, it has to be positive",
                self.rms_norm_eps
            ));
        }
        let rope = rope(self.rope_theta, self.rope_scaling.or(self.rope_parameters))?;
        Ok(ModelConfig {
            vocab_size: self.vocab_size,
            max_positions: self.max_position_embeddings,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads,
            head_dim,
            norm_eps: self.rms_norm_eps,
            rope,
            tied: if self.tie_word_embeddings == Some(true) {
                Tied::Shared
            } else {
                Tied::Separate
            },
            bias,
            bos: self.bos_token_id,
            eos: self
                .eos_token_id
                .map(TokenIds::into_vec)
                .unwrap_or_default(),
        })
    }
}

/// Checks the rotary fields, of which newer files keep theta inside the scaling object.
fn rope(theta: Option<f32>, scaling: Option<RawRope>) -> Result<Rope, String> {
    let theta = theta
        .or(scaling.as_ref().and_then(|s| s.rope_theta))
        .unwrap_or(10_000.0);
    if !(theta.is_finite() && theta >= 1.0) {
        return Err(format!("rope_theta is {theta}, it has to be at least 1"));
    }
    let Some(raw) = scaling else {
        return Ok(Rope {
            theta,
            scaling: RopeScaling::None,
        });
    };
    let scaling = match raw.rope_type.as_deref() {
        None | Some("default") => RopeScaling::None,
        Some("llama3") => {
            let positive = |name: &str, value: Option<f32>| {
                value
                    .filter(|v| v.is_finite() && *v > 0.0)
                    .ok_or(format!("rope_scaling.{name} has to be a positive number"))
            };
            let low = positive("low_freq_factor", raw.low_freq_factor)?;
            let high = positive("high_freq_factor", raw.high_freq_factor)?;
            if low >= high {
                return Err(
                    "rope_scaling.low_freq_factor has to be below high_freq_factor".to_owned(),
                );
            }
            RopeScaling::Llama3 {
                factor: positive("factor", raw.factor)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_positions: raw
                    .original_max_position_embeddings
                    .filter(|p| (1..=MOST_DIMENSION).contains(p))
                    .ok_or(
                        "rope_scaling.original_max_position_embeddings has to be a positive number",
                    )?,
            }
        }
        Some(other) => {
            return Err(format!(
                "rope_scaling of type {other:?} is not supported, only \"llama3\" and \"default\" are"
            ));
        }
    };
    Ok(Rope { theta, scaling })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extra: &str) -> Result<ModelConfig, String> {
        let text = format!(
            r#"{{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                "vocab_size": 100, "max_position_embeddings": 512, "rms_norm_eps": 1e-5 {extra}}}"#
        );
        serde_json::from_str::<RawConfig>(&text)
            .map_err(|e| e.to_string())?
            .check()
    }

    #[test]
    fn defaults_are_those_of_hugging_face() {
        let config = check("").unwrap();
        assert_eq!(
            (config.head_dim, config.kv_heads, config.rope.theta),
            (16, 4, 10_000.0)
        );
        assert_eq!(config.tied, Tied::Separate);
        assert_eq!(check(r#", "eos_token_id": [1, 2]"#).unwrap().eos, [1, 2]);
        assert_eq!(check(r#", "eos_token_id": 7"#).unwrap().eos, [7]);
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
            let reason = check(extra).unwrap_err();
            assert!(reason.contains(word), "{extra}: {reason}");
        }
    }
}

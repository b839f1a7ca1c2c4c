//! Checkpoints that compute the same function with more layers, so that engine benchmarks reach the memory
//! footprint of large models on the bundled weights.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::{Dtype, View};
use serde_json::{Value, json};

use crate::config::{self, ModelConfig};
use crate::load::{Checkpoint, LoadError};

/// A file of weights ends once it holds this many bytes.
const SHARD_BYTES: usize = 1 << 30;
/// Added layers sit below this many real ones, or below all there are.
const REAL_ABOVE: usize = 4;
/// The files of a checkpoint that are copied as they are, where they exist.
const COPIED: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// What [`deepen`] wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeepenReport {
    /// Layers of the source.
    pub from_layers: usize,
    /// Layers of the result.
    pub layers: usize,
    /// Bytes of tensors, all files together.
    pub bytes: usize,
    /// Weight files.
    pub files: usize,
}

/// Why a checkpoint could not be deepened.
#[derive(Debug, thiserror::Error)]
pub enum DeepenError {
    /// The source cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Layers are added, never removed.
    #[error("the model has {from} layers; ask for more than that, up to {most}, not {asked}")]
    Layers {
        /// Layers of the source.
        from: usize,
        /// Layers asked for.
        asked: usize,
        /// Most layers written.
        most: usize,
    },
    /// The destination holds a checkpoint already.
    #[error("{path} already holds a checkpoint; choose another folder or remove it")]
    Occupied {
        /// The destination.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
}

/// Most layers that are written.
const MOST_LAYERS: usize = 100_000;

/// A tensor of the result: a view of the source, or made when it is written.
enum Made<'a> {
    Copy(&'a [u8]),
    Zero,
    Random { seed: u64 },
}

struct Tensor<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: usize,
    made: Made<'a>,
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.made {
            Made::Copy(bytes) => Cow::Borrowed(bytes),
            Made::Zero => Cow::Owned(vec![0; self.bytes]),
            Made::Random { seed } => Cow::Owned(random(self.dtype, self.bytes, seed)),
        }
    }

    fn data_len(&self) -> usize {
        self.bytes
    }
}

/// Writes to `dst` the checkpoint `src` with `layers` layers that computes the same function.
///
/// Added layers have the shapes of the first one, small seeded pseudo-random weights, and zero `o_proj` and
/// `down_proj`, so that they add nothing to the residual stream; they are inserted below the last four real ones.
/// Configuration and tokenizer files are copied; weights are cut into files of about 1 GiB.
///
/// # Errors
/// A source that does not load, a layer count that is not above the source's, a destination that already holds a
/// checkpoint, or one that cannot be written.
pub fn deepen(src: &Path, dst: &Path, layers: usize) -> Result<DeepenReport, DeepenError> {
    if !src.join("config.json").is_file() {
        return Err(LoadError::NotAModel {
            path: src.to_owned(),
        }
        .into());
    }
    let from = ModelConfig::read(src)?.layers;
    if layers <= from || layers > MOST_LAYERS {
        return Err(DeepenError::Layers {
            from,
            asked: layers,
            most: MOST_LAYERS,
        });
    }
    if dst.join("config.json").exists() {
        return Err(DeepenError::Occupied {
            path: dst.to_owned(),
        });
    }
    let checkpoint = Checkpoint::open(src)?;
    let tensors = tensors(&checkpoint, from, layers);
    let failed = |path: &Path, reason: String| DeepenError::Write {
        path: path.to_owned(),
        reason,
    };
    fs::create_dir_all(dst).map_err(|e| failed(dst, e.to_string()))?;

    let shards = shards(&tensors);
    let mut weight_map = BTreeMap::new();
    for (i, names) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => "model.safetensors".to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let path = dst.join(&file);
        let views = names.iter().map(|name| (name.as_str(), &tensors[*name]));
        let format = [("format".to_owned(), "pt".to_owned())].into();
        safetensors::serialize_to_file(views, Some(format), &path)
            .map_err(|e| failed(&path, e.to_string()))?;
        weight_map.extend(names.iter().map(|name| ((*name).clone(), file.clone())));
    }
    let bytes = tensors.values().map(|tensor| tensor.bytes).sum();
    if shards.len() > 1 {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
        write_json(&dst.join("model.safetensors.index.json"), &index)?;
    }
    for name in COPIED {
        if src.join(name).is_file() {
            fs::copy(src.join(name), dst.join(name))
                .map_err(|e| failed(&dst.join(name), e.to_string()))?;
        }
    }
    // Last, so that a folder with a configuration is a whole checkpoint.
    let mut config: Value = config::parse(&src.join("config.json"))?;
    config["num_hidden_layers"] = json!(layers);
    write_json(&dst.join("config.json"), &config)?;
    Ok(DeepenReport {
        from_layers: from,
        layers,
        bytes,
        files: shards.len(),
    })
}

fn write_json(path: &Path, value: &Value) -> Result<(), DeepenError> {
    fs::write(path, format!("{value:#}\n")).map_err(|e| DeepenError::Write {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

/// Every tensor of the result, by name.
fn tensors(checkpoint: &Checkpoint, from: usize, layers: usize) -> BTreeMap<String, Tensor<'_>> {
    let added = layers - from;
    let below = from - REAL_ABOVE.min(from);
    let mut tensors = BTreeMap::new();
    for (name, entry, bytes) in checkpoint.entries() {
        let tensor = |made| Tensor {
            dtype: entry.dtype,
            shape: &entry.shape,
            bytes: bytes.len(),
            made,
        };
        let Some((layer, part)) = split(name) else {
            tensors.insert(name.to_owned(), tensor(Made::Copy(bytes)));
            continue;
        };
        let moved = if layer < below { layer } else { layer + added };
        tensors.insert(
            format!("model.layers.{moved}.{part}"),
            tensor(Made::Copy(bytes)),
        );
        if layer != 0 {
            continue;
        }
        for new in below..below + added {
            let made = if part.contains("o_proj") || part.contains("down_proj") {
                Made::Zero
            } else {
                Made::Random {
                    seed: seed(new, part),
                }
            };
            tensors.insert(format!("model.layers.{new}.{part}"), tensor(made));
        }
    }
    tensors
}

/// Splits `model.layers.N.part`.
fn split(name: &str) -> Option<(usize, &str)> {
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, part))
}

/// Cuts the tensors, in order, into files of about [`SHARD_BYTES`].
fn shards<'a>(tensors: &'a BTreeMap<String, Tensor<'_>>) -> Vec<Vec<&'a String>> {
    let mut shards = vec![Vec::new()];
    let mut bytes = 0_usize;
    for (name, tensor) in tensors {
        if bytes >= SHARD_BYTES {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += tensor.bytes;
        shards
            .last_mut()
            .expect("there is a first shard")
            .push(name);
    }
    shards
}

/// A seed that differs by layer and by tensor.
fn seed(layer: usize, part: &str) -> u64 {
    part.bytes().fold(layer as u64 + 1, |h, b| {
        (h ^ u64::from(b))
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23)
    })
}

/// `bytes` bytes of elements in [-0.02, 0.02), the usual initialisation range.
fn random(dtype: Dtype, bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 0.02
    };
    match dtype {
        Dtype::BF16 => (0..bytes / 2)
            .flat_map(|_| bf16::from_f32(next()).to_le_bytes())
            .collect(),
        Dtype::F16 => (0..bytes / 2)
            .flat_map(|_| f16::from_f32(next()).to_le_bytes())
            .collect(),
        Dtype::F32 => (0..bytes / 4).flat_map(|_| next().to_le_bytes()).collect(),
        // The loader refuses any other type; the result then fails as the source does.
        _ => vec![0; bytes],
    }
}

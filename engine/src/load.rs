//! Checkpoints in Hugging Face layout: one `model.safetensors` or shards behind an index, memory-mapped and
//! checked (names, shapes, types, sizes) before anything is allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::config;
use crate::options::WeightDtype;
use crate::synthetic::ProfileError;

/// Why a checkpoint cannot be served, in words that say what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder or its weights are not there.
    #[error(
        "{path} is not a model folder: it needs config.json and model.safetensors (or model.safetensors.index.json)"
    )]
    NotAModel {
        /// What was given.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A JSON file says something this engine cannot do, or nothing it understands.
    #[error("{path}: {reason}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Which field, and what it should be.
        reason: String,
    },
    /// Git left a pointer in place of a large file.
    #[error(
        "{path} is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder, or download the file"
    )]
    LfsPointer {
        /// The file.
        path: PathBuf,
    },
    /// A weight file is damaged.
    #[error("{path} is damaged ({reason}); fetch the checkpoint again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What the safetensors reader found.
        reason: String,
    },
    /// The configuration asks for a tensor that no file holds.
    #[error(
        "tensor {name} is missing; config.json and the weight files do not belong together, or a shard is absent"
    )]
    MissingTensor {
        /// Its full name.
        name: String,
    },
    /// A tensor's shape is not what the configuration says.
    #[error("tensor {name} has shape {found:?} where config.json implies {expected:?}")]
    Shape {
        /// Its full name.
        name: String,
        /// Its shape in the file.
        found: Vec<usize>,
        /// The shape the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor's element type is not one the engine reads.
    #[error("tensor {name} is stored as {found}; convert the checkpoint to F32, BF16 or F16")]
    TensorDtype {
        /// Its full name.
        name: String,
        /// Its type in the file.
        found: String,
    },
    /// A tensor that the engine would have to ignore, so that its results would be wrong.
    #[error(
        "tensor {name} is not part of a Llama decoder without biases; this model is not supported"
    )]
    UnexpectedTensor {
        /// Its full name.
        name: String,
    },
    /// A weight matrix does not fit in memory.
    #[error("a weight matrix of {outputs} x {inputs} does not fit in memory")]
    WeightTooLarge {
        /// Rows of the checkpoint's matrix.
        outputs: usize,
        /// Columns of the checkpoint's matrix.
        inputs: usize,
    },
    /// What is loaded beside a model does not belong to it, or is no such thing.
    #[error("{path}: {reason}")]
    Beside {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The key/value cache does not fit in memory.
    #[error(
        "a key/value cache of {pages} pages does not fit in memory; lower kv_pages, max_sequences or scratch_rows"
    )]
    CacheTooLarge {
        /// Pages asked for.
        pages: usize,
    },
    /// The profile of a synthetic model.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// A GPU cannot be used, or not for this model.
    #[error("cuda:{number}: {reason}")]
    Device {
        /// Its number, from 0.
        number: u32,
        /// What is missing, in one line.
        reason: String,
    },
    /// An engine option is out of range.
    #[error("option {name}: {reason}")]
    Option {
        /// The field of `EngineOptions`.
        name: &'static str,
        /// What it has to be.
        reason: String,
    },
    /// The operating system gave no thread.
    #[error("cannot start the engine's threads: {0}")]
    Threads(std::io::Error),
}

/// Element types of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    Bf16,
    F16,
}

/// A tensor's bytes in the file, little-endian, row-major; their number has been checked against the shape.
#[derive(Clone, Copy)]
pub(crate) struct TensorData<'a> {
    pub(crate) stored: Stored,
    pub(crate) bytes: &'a [u8],
}

impl TensorData<'_> {
    /// All elements, widened to f32.
    pub(crate) fn to_vec(self) -> Vec<f32> {
        match self.stored {
            Stored::F32 => self
                .bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
            Stored::Bf16 => self
                .bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| bf16::from_le_bytes(*b).to_f32())
                .collect(),
            Stored::F16 => self
                .bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f16::from_le_bytes(*b).to_f32())
                .collect(),
        }
    }
}

/// Where a tensor lies: file number, type, shape and byte range in that file.
pub(crate) struct Entry {
    file: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    range: core::ops::Range<usize>,
}

/// The mapped weight files of a checkpoint and their tensors, by name.
pub(crate) struct Checkpoint {
    files: Vec<Mmap>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Maps the weight files of `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Checkpoint, LoadError> {
        let mut checkpoint = Checkpoint {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        let single = dir.join("model.safetensors");
        let index = dir.join("model.safetensors.index.json");
        if single.is_file() {
            checkpoint.map(&single, |_| true)?;
        } else if index.is_file() {
            let map: Index = config::parse(&index)?;
            let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for (tensor, file) in &map.weight_map {
                shards.entry(file).or_default().push(tensor);
            }
            for (file, names) in shards {
                if !is_plain_name(file) {
                    let reason = format!(
                        "weight_map names {file:?}, which is not a .safetensors file of this folder"
                    );
                    return Err(LoadError::Config {
                        path: index,
                        reason,
                    });
                }
                checkpoint.map(&dir.join(file), |name| names.binary_search(&name).is_ok())?;
            }
            if let Some(name) = map
                .weight_map
                .keys()
                .find(|name| !checkpoint.tensors.contains_key(*name))
            {
                return Err(LoadError::MissingTensor { name: name.clone() });
            }
        } else {
            return Err(LoadError::NotAModel {
                path: dir.to_owned(),
            });
        }
        Ok(checkpoint)
    }

    /// Maps a single weight file.
    pub(crate) fn of_file(path: &Path) -> Result<Checkpoint, LoadError> {
        let mut checkpoint = Checkpoint {
            files: Vec::new(),
            tensors: BTreeMap::new(),
        };
        checkpoint.map(path, |_| true)?;
        Ok(checkpoint)
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// How the weights of `tensor` are stored unless the user says otherwise: bf16 stays bf16, all else becomes f32.
    pub(crate) fn dtype_of(&self, tensor: &str) -> WeightDtype {
        match self.tensors.get(tensor).map(|entry| entry.dtype) {
            Some(Dtype::BF16) => WeightDtype::Bf16,
            _ => WeightDtype::F32,
        }
    }

    /// Maps one file and enters those of its tensors that `wanted` accepts.
    fn map(&mut self, path: &Path, wanted: impl Fn(&str) -> bool) -> Result<(), LoadError> {
        let io = |source| LoadError::Io {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(io)?;
        #[expect(
            unsafe_code,
            reason = "a memory map is undefined if the file is changed while it is read"
        )]
        // SAFETY: checkpoints are not written while they are loaded; the map lives only as long as the loading.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let corrupt = |reason: String| LoadError::Corrupt {
            path: path.to_owned(),
            reason,
        };
        if config::is_lfs_pointer(&map) {
            return Err(LoadError::LfsPointer {
                path: path.to_owned(),
            });
        }
        let number = self.files.len();
        let views = SafeTensors::deserialize(&map).map_err(|e| corrupt(e.to_string()))?;
        for (name, view) in views.iter() {
            if !wanted(name) {
                continue;
            }
            let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
            let range = start..start + view.data().len();
            let entry = Entry {
                file: number,
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                range,
            };
            self.tensors.insert(name.to_owned(), entry);
        }
        self.files.push(map);
        Ok(())
    }

    /// The tensor `name`, which has to have this shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorData<'_>, LoadError> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| LoadError::MissingTensor {
                name: name.to_owned(),
            })?;
        if entry.shape != shape {
            return Err(LoadError::Shape {
                name: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        let (stored, size) = match entry.dtype {
            Dtype::F32 => (Stored::F32, 4),
            Dtype::BF16 => (Stored::Bf16, 2),
            Dtype::F16 => (Stored::F16, 2),
            other => {
                return Err(LoadError::TensorDtype {
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        let bytes = self.bytes(entry);
        let elements = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        if elements.and_then(|n| n.checked_mul(size)) != Some(bytes.len()) {
            return Err(LoadError::Shape {
                name: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(TensorData { stored, bytes })
    }

    /// All tensors by name, with their raw bytes.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry, &[u8])> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry, self.bytes(entry)))
    }

    fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file][entry.range.clone()]
    }

    /// How matmul weights of a model are stored unless the user says otherwise.
    pub(crate) fn dtype(&self) -> WeightDtype {
        self.dtype_of("model.embed_tokens.weight")
    }

    /// Refuses tensors that change the result of a model but that this engine would not apply.
    pub(crate) fn refuse_unexpected(&self) -> Result<(), LoadError> {
        let known = |name: &str| {
            !name.ends_with(".bias") && !name.contains("q_norm") && !name.contains("k_norm")
        };
        match self.tensors.keys().find(|name| !known(name)) {
            Some(name) => Err(LoadError::UnexpectedTensor { name: name.clone() }),
            None => Ok(()),
        }
    }
}

/// Whether a shard's name is a plain file name: an index must not reach outside its folder.
fn is_plain_name(file: &str) -> bool {
    let mut parts = Path::new(file).components();
    let plain = matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    );
    plain && file.ends_with(".safetensors") && !file.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_of_git_lfs_is_no_damaged_file() {
        let dir = tempfile::tempdir().unwrap();
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        std::fs::write(dir.path().join("model.safetensors"), pointer).unwrap();
        let error = Checkpoint::open(dir.path()).err().unwrap();
        assert!(matches!(error, LoadError::LfsPointer { .. }), "{error}");
        assert!(error.to_string().contains("model.safetensors"), "{error}");
    }

    #[test]
    fn shards_stay_inside_their_folder() {
        assert!(is_plain_name("model-00001-of-00002.safetensors"));
        for bad in [
            "../x.safetensors",
            "/x.safetensors",
            "a/x.safetensors",
            "x.bin",
            "",
            "..",
            "a\\x.safetensors",
        ] {
            assert!(!is_plain_name(bad), "{bad}");
        }
    }
}

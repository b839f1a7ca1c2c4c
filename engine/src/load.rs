//! Checkpoints in Hugging Face layout: one `model.safetensors` or shards behind an index, memory-mapped and
//! checked (names, shapes, types, sizes) before anything is allocated.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use gguf::{BlockFormat, Element, Gguf, GgufError};
use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::config::{self, ModelConfig};
use crate::device::Matrix;
use crate::gguf::{RowOrder, named, rope_factors};
use crate::options::WeightDtype;
use crate::synthetic::ProfileError;

/// Why a checkpoint cannot be served, in words that say what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The folder or its weights are not there.
    #[error(
        "{path} is no model: it is neither a GGUF file nor a folder with config.json and model.safetensors (or \
         model.safetensors.index.json)"
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
    /// A GGUF file is damaged, or of a kind that is not supported.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A block of quantised weights whose scale is no number.
    #[error("tensor {name} has a scale that is not finite; the file is damaged, fetch it again")]
    Scale {
        /// The tensor's full name.
        name: String,
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
        "tensor {name} is not part of the model that the configuration describes; this model is not supported"
    )]
    UnexpectedTensor {
        /// Its full name.
        name: String,
    },
    /// Weights that cannot be quantised.
    #[error(
        "a weight matrix has numbers that are not finite or too large for {format}; load it as f32 or bf16"
    )]
    Quantise {
        /// The format that was asked for.
        format: &'static str,
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

/// How far the loading of a model is, in bytes of its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Those that are loaded.
    pub done: usize,
    /// All of them.
    pub total: usize,
}

/// Element types of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    Bf16,
    F16,
    Blocks(BlockFormat),
}

/// A tensor's bytes in the file, little-endian, row-major; their number has been checked against the shape.
#[derive(Clone, Copy)]
pub(crate) struct TensorData<'a> {
    pub(crate) stored: Stored,
    pub(crate) bytes: &'a [u8],
    /// The file, and where in it the bytes begin; none where they are held.
    pub(crate) file: Option<(&'a Mapped, usize)>,
}

impl<'a> TensorData<'a> {
    /// All elements, widened to f32.
    pub(crate) fn to_vec(self) -> Vec<f32> {
        let elements = match self.stored {
            Stored::F32 => self.bytes.len() / 4,
            Stored::Bf16 | Stored::F16 => self.bytes.len() / 2,
            Stored::Blocks(format) => self.bytes.len() / format.bytes() * format.shape().inputs,
        };
        let mut all = vec![0.0; elements];
        self.read(0, &mut all);
        self.release(0, elements);
        all
    }

    /// How many bytes `elements` elements have; of blocks they are whole blocks.
    pub(crate) fn bytes_of(self, elements: usize) -> usize {
        match self.stored {
            Stored::F32 => elements * 4,
            Stored::Bf16 | Stored::F16 => elements * 2,
            Stored::Blocks(format) => elements / format.shape().inputs * format.bytes(),
        }
    }

    /// The bytes of `count` elements from `first` on; of blocks both are whole blocks.
    pub(crate) fn part(self, first: usize, count: usize) -> &'a [u8] {
        &self.bytes[self.bytes_of(first)..self.bytes_of(first + count)]
    }

    /// Gives the memory behind elements that were read back, so that a file is never there as a whole beside the weights that are
    /// made of it. They can be read again.
    pub(crate) fn release(self, first: usize, count: usize) {
        if let Some((file, at)) = self.file {
            file.release(at + self.bytes_of(first)..at + self.bytes_of(first + count));
        }
    }

    /// Elements from `first` on, widened to f32; of blocks whole blocks.
    pub(crate) fn read(self, first: usize, to: &mut [f32]) {
        let bytes = self.part(first, to.len());
        match self.stored {
            Stored::F32 => {
                let (words, _) = bytes.as_chunks();
                for (to, word) in to.iter_mut().zip(words) {
                    *to = f32::from_le_bytes(*word);
                }
            }
            Stored::Bf16 => {
                let (words, _) = bytes.as_chunks();
                for (to, word) in to.iter_mut().zip(words) {
                    *to = bf16::from_le_bytes(*word).to_f32();
                }
            }
            Stored::F16 => {
                let (words, _) = bytes.as_chunks();
                for (to, word) in to.iter_mut().zip(words) {
                    *to = f16::from_le_bytes(*word).to_f32();
                }
            }
            Stored::Blocks(format) => format.dequantise(bytes, to),
        }
    }
}

/// Where a tensor lies: file number, type, shape and byte range in that file.
pub(crate) struct Entry {
    file: usize,
    /// The type in the terms of safetensors; bytes where `blocks` says more.
    pub(crate) dtype: Dtype,
    /// The format of quantised weights.
    pub(crate) blocks: Option<BlockFormat>,
    /// The order in which the outputs of heads are stored.
    order: RowOrder,
    pub(crate) shape: Vec<usize>,
    range: Range<usize>,
}

/// The mapped weight files of a checkpoint and their tensors, by name.
pub(crate) struct Checkpoint {
    files: Vec<Mapped>,
    tensors: BTreeMap<String, Entry>,
    /// What frequencies of rotary embedding are divided by, `[head_dim / 2]`, where a file says so with a tensor.
    rope_factors: Option<Vec<f32>>,
}

/// So many bytes of a tensor are read at once where that is enough.
pub(crate) const AT_ONCE: usize = 512 << 10;

/// A mapped weight file.
pub(crate) enum Mapped {
    Safetensors(Mmap),
    Gguf(Gguf),
}

impl Mapped {
    fn bytes(&self) -> &[u8] {
        match self {
            Mapped::Safetensors(map) => map,
            Mapped::Gguf(file) => file.bytes(),
        }
    }

    /// Gives memory behind bytes that were read back; see [`gguf::release`].
    fn release(&self, range: Range<usize>) {
        match self {
            Mapped::Safetensors(map) => gguf::release(map, range),
            Mapped::Gguf(file) => file.release(range),
        }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    fn empty() -> Checkpoint {
        Checkpoint {
            files: Vec::new(),
            tensors: BTreeMap::new(),
            rope_factors: None,
        }
    }

    /// Maps a GGUF file of a model with this configuration. Tensors get the names that they have in a Hugging Face folder.
    pub(crate) fn of_gguf(path: &Path, config: &ModelConfig) -> Result<Checkpoint, LoadError> {
        let file = Gguf::open(path)?;
        let mut checkpoint = Checkpoint::empty();
        checkpoint.rope_factors = rope_factors(&file, config)?;
        for tensor in file.tensors() {
            let Some(named) = named(config, &tensor.name)? else {
                continue;
            };
            let (dtype, blocks) = match tensor.element {
                Element::F32 => (Dtype::F32, None),
                Element::F16 => (Dtype::F16, None),
                Element::Bf16 => (Dtype::BF16, None),
                Element::Blocks(format) => (Dtype::U8, Some(format)),
            };
            let entry = Entry {
                file: 0,
                dtype,
                blocks,
                order: named.order,
                shape: tensor.shape.clone(),
                range: tensor.range.clone(),
            };
            checkpoint.tensors.insert(named.name, entry);
        }
        // Of the metadata, which hold a tokenizer, nothing more is read.
        file.release(0..file.bytes().len());
        checkpoint.files.push(Mapped::Gguf(file));
        Ok(checkpoint)
    }

    /// Maps the weight files of `dir`.
    pub(crate) fn open(dir: &Path) -> Result<Checkpoint, LoadError> {
        let mut checkpoint = Checkpoint::empty();
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
        let mut checkpoint = Checkpoint::empty();
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
                blocks: None,
                order: RowOrder::Halves,
                shape: view.shape().to_vec(),
                range,
            };
            self.tensors.insert(name.to_owned(), entry);
        }
        self.files.push(Mapped::Safetensors(map));
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
        // Blocks lie along the innermost dimension, which is a whole number of them.
        let (stored, per, size) = match (entry.dtype, entry.blocks) {
            (_, Some(format)) => (
                Stored::Blocks(format),
                format.shape().inputs,
                format.bytes(),
            ),
            (Dtype::F32, None) => (Stored::F32, 1, 4),
            (Dtype::BF16, None) => (Stored::Bf16, 1, 2),
            (Dtype::F16, None) => (Stored::F16, 1, 2),
            (other, None) => {
                return Err(LoadError::TensorDtype {
                    name: name.to_owned(),
                    found: format!("{other:?}"),
                });
            }
        };
        let file = &self.files[entry.file];
        let bytes = &file.bytes()[entry.range.clone()];
        let elements = shape.iter().try_fold(1_usize, |n, d| n.checked_mul(*d));
        if elements.and_then(|n| (n / per).checked_mul(size)) != Some(bytes.len()) {
            return Err(LoadError::Shape {
                name: name.to_owned(),
                found: entry.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(TensorData {
            stored,
            bytes,
            file: Some((file, entry.range.start)),
        })
    }

    /// The matrix `name` of `outputs` rows.
    pub(crate) fn matrix(
        &self,
        name: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Matrix<'_>, LoadError> {
        let data = self.tensor(name, &[outputs, inputs])?;
        let entry = self.tensors.get_key_value(name);
        let (name, order) =
            entry.map_or(("", RowOrder::Halves), |(name, entry)| (name, entry.order));
        Ok(Matrix {
            name,
            data,
            order,
            outputs,
            inputs,
        })
    }

    /// What frequencies of rotary embedding are divided by, where the checkpoint says so with a tensor.
    pub(crate) fn rope_factors(&self) -> Option<&[f32]> {
        self.rope_factors.as_deref()
    }

    /// All tensors by name, with their raw bytes.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, &Entry, &[u8])> {
        self.tensors.iter().map(|(name, entry)| {
            let bytes = &self.files[entry.file].bytes()[entry.range.clone()];
            (name.as_str(), entry, bytes)
        })
    }

    /// The BLAKE3 hashes of all tensors, in the order of [`Checkpoint::entries`].
    pub(crate) fn hashes(&self, threads: NonZeroUsize) -> Vec<blake3::Hash> {
        let entries: Vec<(&Entry, OnceLock<blake3::Hash>)> = (self.tensors.values())
            .map(|entry| (entry, OnceLock::new()))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((entry, hash)) = entries.get(next.fetch_add(1, Ordering::Relaxed)) {
                hash.get_or_init(|| self.hash(entry));
            }
        };
        thread::scope(|scope| {
            for _ in 1..threads.get() {
                scope.spawn(work);
            }
            work();
        });
        let hashes = entries.into_iter().map(|(_, hash)| hash.into_inner());
        hashes
            .map(|hash| hash.expect("every entry was taken by a thread"))
            .collect()
    }

    fn hash(&self, entry: &Entry) -> blake3::Hash {
        let file = &self.files[entry.file];
        let mut hasher = blake3::Hasher::new();
        for start in entry.range.clone().step_by(AT_ONCE) {
            let part = start..(start + AT_ONCE).min(entry.range.end);
            hasher.update(&file.bytes()[part.clone()]);
            file.release(part);
        }
        hasher.finalize()
    }

    /// Bytes of the tensors whose names begin like this.
    pub(crate) fn bytes_of(&self, prefix: &str) -> usize {
        let named = self
            .tensors
            .iter()
            .filter(|(name, _)| name.starts_with(prefix));
        named.map(|(_, entry)| entry.range.len()).sum()
    }

    /// Whether it is a GGUF file.
    pub(crate) fn is_gguf(&self) -> bool {
        matches!(self.files.first(), Some(Mapped::Gguf(_)))
    }

    /// How matmul weights of a model are stored unless the user says otherwise.
    pub(crate) fn dtype(&self) -> WeightDtype {
        if self.is_gguf() {
            return WeightDtype::AsStored;
        }
        self.dtype_of("model.embed_tokens.weight")
    }

    /// Refuses tensors that a model of this configuration does not have: it would have to be computed without them.
    pub(crate) fn refuse_unexpected(&self, config: &ModelConfig) -> Result<(), LoadError> {
        let is_known = |name: &str| {
            if ENDS.contains(&name) {
                return true;
            }
            let layer = name
                .strip_prefix("model.layers.")
                .and_then(|rest| rest.split_once('.'));
            let Some((layer, part)) = layer else {
                return false;
            };
            // Old checkpoints store the frequencies that follow from the configuration.
            let is_part = part == "self_attn.rotary_emb.inv_freq"
                || config.family.tensors().any(|(_, known)| known == part);
            is_part
                && layer
                    .parse()
                    .is_ok_and(|layer: usize| layer < config.layers)
        };
        match self.tensors.keys().find(|name| !is_known(name)) {
            Some(name) => Err(LoadError::UnexpectedTensor { name: name.clone() }),
            None => Ok(()),
        }
    }
}

/// Tensors outside of layers. A head beside a tied embedding is a copy of it.
const ENDS: [&str; 3] = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
];

/// Gives freed memory back to the system. Weights are large, and would come on top of what a tokenizer has left behind.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the C library has no other name for it")]
    // SAFETY: it touches nothing that is in use.
    unsafe {
        libc::malloc_trim(0);
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

//! A mapped file, and what can be asked of it.

use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};

use crate::blocks::BlockFormat;
use crate::error::GgufError;
use crate::parse::{self, Header, MAGIC, Value};

/// How the elements of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// Quantised, in blocks along the innermost dimension.
    Blocks(BlockFormat),
}

/// Names of the types that a file may have, by number. Some numbers were given up.
const NAMES: [&str; 40] = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_2",
    "Q4_3",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q8_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ2_S",
    "IQ4_XS",
    "I8",
    "I16",
    "I32",
    "I64",
    "F64",
    "IQ1_M",
    "BF16",
    "Q4_0_4_4",
    "Q4_0_4_8",
    "Q4_0_8_8",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
    "MXFP4",
];

impl Element {
    /// What the format calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
            Element::Blocks(format) => format.name(),
        }
    }

    /// The type that the format has under this number.
    pub(crate) fn of(kind: u32) -> Result<Element, String> {
        Ok(Element::Blocks(match kind {
            0 => return Ok(Element::F32),
            1 => return Ok(Element::F16),
            30 => return Ok(Element::Bf16),
            2 => BlockFormat::Q4_0,
            3 => BlockFormat::Q4_1,
            6 => BlockFormat::Q5_0,
            8 => BlockFormat::Q8_0,
            12 => BlockFormat::Q4K,
            13 => BlockFormat::Q5K,
            14 => BlockFormat::Q6K,
            other => {
                let name = NAMES.get(other as usize).map_or_else(
                    || format!("a type with the number {other}"),
                    |name| (*name).to_owned(),
                );
                return Err(format!(
                    "it is stored as {name}; F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q4_1, Q4_K, Q5_K and Q6_K are read, so \
                     take a file of one of these"
                ));
            }
        }))
    }

    /// Bytes of a tensor of this shape, outermost dimension first.
    pub(crate) fn bytes_of(self, shape: &[usize]) -> Result<u64, String> {
        let (inputs, bytes) = match self {
            Element::F32 => (1, 4),
            Element::F16 | Element::Bf16 => (1, 2),
            Element::Blocks(format) => (format.shape().inputs, format.bytes()),
        };
        let innermost = shape.last().copied().unwrap_or(1);
        if !innermost.is_multiple_of(inputs) {
            return Err(format!(
                "rows of {innermost} elements are no whole number of blocks of {inputs}"
            ));
        }
        let elements = shape
            .iter()
            .try_fold(1_u64, |product, &size| product.checked_mul(size as u64));
        elements
            .and_then(|elements| (elements / inputs as u64).checked_mul(bytes as u64))
            .ok_or_else(|| format!("its dimensions {shape:?} are too large"))
    }
}

/// A tensor of a file. Its bytes lie in the file, and there are as many as its shape and type need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name, unique in the file.
    pub name: String,
    /// How its elements are stored.
    pub element: Element,
    /// Its dimensions, the innermost last; none is 0.
    pub shape: Vec<usize>,
    /// Where in the file its bytes lie.
    pub range: Range<usize>,
}

/// The bytes of a file.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Held(Vec<u8>),
}

/// A checked file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
}

/// Whether this is a file that begins like a GGUF file, or has a name like one.
#[must_use]
pub fn is_gguf(path: &Path) -> bool {
    if !path.is_file() {
        return false;
    }
    let mut magic = [0; 4];
    let begins = fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    (begins.is_ok() && magic == MAGIC) || path.extension().is_some_and(|name| name == "gguf")
}

/// Pages that come along with one that is read, in bytes (Linux, `fault_around_bytes`).
const AROUND: usize = 64 << 10;

/// Gives the pages of a mapped file with these bytes back to the system, which reads them again if need be.
///
/// Pages of a file count as memory of a process for as long as they are mapped. A file that is read once is never there as a
/// whole if what was read is given back.
pub fn release(map: &Mmap, range: Range<usize>) {
    let start = range.start / AROUND * AROUND;
    let end = range.end.next_multiple_of(AROUND).min(map.len());
    #[expect(
        unsafe_code,
        reason = "of other maps than this kind contents would be lost"
    )]
    // SAFETY: the map is of a file and nobody writes to it, so its pages have the same content when they are read again.
    let done = unsafe {
        map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end.saturating_sub(start))
    };
    // Without it the pages stay, which is only a matter of memory.
    drop(done);
}

impl Gguf {
    /// Maps a file and checks its structure.
    ///
    /// # Errors
    /// [`GgufError::Io`] if it cannot be read, [`GgufError::Invalid`] for everything else that is wrong with it: never a panic.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let io = |source| GgufError::Io {
            path: path.to_owned(),
            source,
        };
        let file = fs::File::open(path).map_err(io)?;
        #[expect(
            unsafe_code,
            reason = "a memory map is undefined if the file is changed while it is read"
        )]
        // SAFETY: checkpoints are not written while they are loaded.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Gguf::check(path, Bytes::Mapped(map))
    }

    /// Checks the structure of a file that was read already.
    ///
    /// # Errors
    /// As [`Gguf::open`].
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Gguf, GgufError> {
        Gguf::check(Path::new("memory"), Bytes::Held(bytes))
    }

    /// Gives the pages of the file with these bytes back to the system, which reads them again if need be.
    pub fn release(&self, range: Range<usize>) {
        if let Bytes::Mapped(map) = &self.bytes {
            release(map, range);
        }
    }

    fn check(path: &Path, bytes: Bytes) -> Result<Gguf, GgufError> {
        let invalid = |reason| GgufError::Invalid {
            path: path.to_owned(),
            reason,
        };
        let content: &[u8] = match &bytes {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        };
        let header = parse::header(content).map_err(invalid)?;
        let gguf = Gguf {
            path: path.to_owned(),
            bytes,
            header,
        };
        match gguf.integer("split.count")? {
            Some(parts) if parts > 1 => Err(gguf.invalid(format!(
                "it is one of {parts} parts; merge them into one file (llama-gguf-split --merge)"
            ))),
            _ => Ok(gguf),
        }
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }

    /// Where it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.header.tensors
    }

    /// The bytes of one of its tensors.
    #[must_use]
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        self.bytes().get(tensor.range.clone()).unwrap_or_default()
    }

    /// An error about this file.
    #[must_use]
    pub fn invalid(&self, reason: String) -> GgufError {
        GgufError::Invalid {
            path: self.path.clone(),
            reason,
        }
    }

    /// Whether there is a value under a key, whatever its type.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.header.metadata.contains_key(key)
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// When there is something else under the key.
    pub fn integer(&self, key: &str) -> Result<Option<u64>, GgufError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Integer(n)) if u64::try_from(*n).is_ok() => Ok(u64::try_from(*n).ok()),
            Some(_) => Err(self.invalid(format!("{key} is no whole number"))),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// When there is something else under the key.
    pub fn float(&self, key: &str) -> Result<Option<f32>, GgufError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Float(x)) => Ok(Some(*x as f32)),
            Some(Value::Integer(n)) => Ok(Some(*n as f32)),
            Some(_) => Err(self.invalid(format!("{key} is no number"))),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// When there is something else under the key.
    pub fn truth(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(*truth)),
            Some(_) => Err(self.invalid(format!("{key} is neither true nor false"))),
        }
    }

    /// A text.
    ///
    /// # Errors
    /// When there is something else under the key, or it is not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => std::str::from_utf8(&self.bytes()[range.clone()])
                .map(Some)
                .map_err(|_| self.invalid(format!("{key} is not UTF-8"))),
            Some(_) => Err(self.invalid(format!("{key} is no text"))),
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// When there is something else under the key, or one of them is not UTF-8.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let (count, mut rest) = match self.header.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array {
                of: 8,
                count,
                bytes,
            }) => (*count, &self.bytes()[bytes.clone()]),
            Some(_) => return Err(self.invalid(format!("{key} is no list of texts"))),
        };
        let mut texts = Vec::with_capacity(count);
        for _ in 0..count {
            // The walk through the header has seen that all of them are there.
            let (len, behind) = rest.split_first_chunk().expect("a length");
            let (text, behind) = behind.split_at(u64::from_le_bytes(*len) as usize);
            rest = behind;
            texts.push(
                std::str::from_utf8(text)
                    .map_err(|_| self.invalid(format!("a text of {key} is not UTF-8")))?,
            );
        }
        Ok(Some(texts))
    }

    /// A list of whole numbers.
    ///
    /// # Errors
    /// When there is something else under the key.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, GgufError> {
        let whole = |value| match value {
            Value::Integer(n) => i64::try_from(n).ok(),
            _ => None,
        };
        self.list(key, "whole numbers", whole)
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// When there is something else under the key.
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        let float = |value| match value {
            Value::Float(x) => Some(x as f32),
            _ => None,
        };
        self.list(key, "numbers", float)
    }

    fn list<T>(
        &self,
        key: &str,
        what: &str,
        of: impl Fn(Value) -> Option<T>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let wrong = || self.invalid(format!("{key} is no list of {what}"));
        let (kind, count, bytes) = match self.header.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array { of, count, bytes }) if *of != 8 => (*of, *count, bytes.clone()),
            Some(_) => return Err(wrong()),
        };
        if count == 0 {
            return Ok(Some(Vec::new()));
        }
        let bytes = &self.bytes()[bytes];
        let values = bytes
            .chunks_exact(bytes.len() / count)
            .map(|bytes| parse::number(kind, bytes).ok().and_then(&of));
        let values: Option<Vec<T>> = values.collect();
        values.map(Some).ok_or_else(wrong)
    }
}

//! The structure in front of the weights, walked once and checked.
//!
//! Lengths are compared with what is left of the file before anything of that length is walked or kept. Arrays are not
//! copied: of each only its type, length and place are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::file::{Element, Tensor};

/// What a file begins with.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";
/// The alignment of a file that says nothing about it, in bytes.
const DEFAULT_ALIGNMENT: u64 = 32;
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;
/// The longest key or name of a tensor, in bytes.
const LONGEST_NAME: u64 = u16::MAX as u64;
/// The fewest bytes of a metadata entry: a key's length, a type and one byte.
const LEAST_ENTRY: u64 = 8 + 4 + 1;
/// The fewest bytes that describe a tensor: a name's length, a count, a type and an offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;
/// The number by which the format knows strings.
const STRING: u32 = 8;
/// The number by which the format knows arrays.
const ARRAY: u32 = 9;

/// A value of the metadata. Texts and arrays stay where they are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array {
        of: u32,
        count: usize,
        bytes: Range<usize>,
    },
}

/// What stands in front of the weights.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: BTreeMap<String, Value>,
    pub(crate) tensors: Vec<Tensor>,
}

/// Reads along a file.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], String> {
        if len > self.left() {
            return Err(format!(
                "it ends at byte {}, in the middle of its header",
                self.bytes.len()
            ));
        }
        // No more than what is left, so it fits.
        let range = self.at..self.at + len as usize;
        self.at = range.end;
        Ok(&self.bytes[range])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.take(N as u64)?;
        Ok(bytes.try_into().expect("as many bytes as were taken"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// The place of a text.
    fn text(&mut self) -> Result<Range<usize>, String> {
        let len = self.u64()?;
        let bytes = self.take(len)?;
        Ok(self.at - bytes.len()..self.at)
    }

    fn name(&mut self) -> Result<String, String> {
        let len = self.u64()?;
        if len > LONGEST_NAME {
            return Err(format!("a name of {len} bytes is longer than allowed"));
        }
        let bytes = self.take(len)?;
        let name = std::str::from_utf8(bytes).map_err(|_| "a name is not UTF-8".to_owned())?;
        Ok(name.to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            ARRAY => {
                let (of, count) = (self.u32()?, self.u64()?);
                let start = self.at;
                match (of, width(of)) {
                    (STRING, _) => {
                        // Each has a length in front of it.
                        if count > self.left() / 8 {
                            return Err(format!("an array of {count} texts ends behind the file"));
                        }
                        for _ in 0..count {
                            self.text()?;
                        }
                    }
                    (_, Some(width)) => {
                        let len = count.checked_mul(width);
                        let len = len.filter(|&len| len <= self.left());
                        let Some(len) = len else {
                            return Err(format!(
                                "an array of {count} numbers ends behind the file"
                            ));
                        };
                        self.take(len)?;
                    }
                    _ => return Err(format!("arrays of values of type {of} are not read")),
                }
                let bytes = start..self.at;
                // No more than the bytes it takes.
                let count = count as usize;
                Value::Array { of, count, bytes }
            }
            STRING => Value::Text(self.text()?),
            _ => {
                let width = width(kind).ok_or(format!("values of type {kind} are not known"))?;
                let bytes = self.take(width)?;
                number(kind, bytes)?
            }
        })
    }
}

/// How many bytes a number or truth value takes; none for anything else.
fn width(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

/// A number or truth value out of as many bytes as it takes.
pub(crate) fn number(kind: u32, bytes: &[u8]) -> Result<Value, String> {
    let mut wide = [0; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(wide);
    Ok(match kind {
        0 | 2 | 4 | 10 => Value::Integer(bits.into()),
        1 => Value::Integer((bits as i8).into()),
        3 => Value::Integer((bits as i16).into()),
        5 => Value::Integer((bits as i32).into()),
        11 => Value::Integer((bits as i64).into()),
        6 => Value::Float(f32::from_bits(bits as u32).into()),
        12 => Value::Float(f64::from_bits(bits)),
        7 if bits < 2 => Value::Bool(bits == 1),
        7 => return Err(format!("{bits} is no truth value")),
        _ => return Err(format!("values of type {kind} are not known")),
    })
}

/// Walks the header of a file.
pub(crate) fn header(bytes: &[u8]) -> Result<Header, String> {
    let mut cursor = Cursor { bytes, at: 0 };
    if cursor.take(4).ok() != Some(&MAGIC[..]) {
        return Err("it does not begin with GGUF".to_owned());
    }
    match cursor.u32()? {
        2 | 3 => {}
        version if version.swap_bytes() <= 3 => {
            return Err("it is big-endian; convert it to little-endian".to_owned());
        }
        version => {
            return Err(format!(
                "it has version {version} of the format; 2 and 3 are read"
            ));
        }
    }
    let (tensors, entries) = (cursor.u64()?, cursor.u64()?);
    if tensors > cursor.left() / LEAST_TENSOR || entries > cursor.left() / LEAST_ENTRY {
        return Err(format!(
            "it says that it has {tensors} tensors and {entries} entries, for which it is too short"
        ));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = cursor.name()?;
        let kind = cursor.u32()?;
        let value = cursor
            .value(kind)
            .map_err(|reason| format!("{key}: {reason}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("{key} is there twice"));
        }
        metadata.insert(key, value);
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(&Value::Integer(n)) if (8..=1 << 20).contains(&n) && n.count_ones() == 1 => n as u64,
        Some(_) => {
            return Err("general.alignment is no power of two between 8 and 1048576".to_owned());
        }
    };
    let tensors = described(&mut cursor, tensors, alignment)?;
    Ok(Header { metadata, tensors })
}

/// The tensors, inside the file and beside each other.
fn described(cursor: &mut Cursor<'_>, count: u64, alignment: u64) -> Result<Vec<Tensor>, String> {
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for _ in 0..count {
        let name = cursor.name()?;
        let dimensions = cursor.u32()?;
        if dimensions == 0 || dimensions > MOST_DIMENSIONS {
            return Err(format!("tensor {name} has {dimensions} dimensions"));
        }
        // The file has the innermost first.
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = cursor.u64()?;
            let size = usize::try_from(size).ok().filter(|&size| size > 0);
            shape.insert(
                0,
                size.ok_or(format!("tensor {name} has an impossible dimension"))?,
            );
        }
        let kind = cursor.u32()?;
        let element = Element::of(kind).map_err(|reason| format!("tensor {name}: {reason}"))?;
        let len = element
            .bytes_of(&shape)
            .map_err(|reason| format!("tensor {name}: {reason}"))?;
        let offset = cursor.u64()?;
        if !offset.is_multiple_of(alignment) {
            return Err(format!(
                "tensor {name} lies at {offset}, which is not aligned"
            ));
        }
        if !names.insert(name.clone()) {
            return Err(format!("tensor {name} is there twice"));
        }
        found.push((offset, len, name, shape, element));
    }
    // An empty tail needs no padding.
    let start = (cursor.at as u64).next_multiple_of(alignment);
    let room = (cursor.bytes.len() as u64).saturating_sub(start);
    let mut tensors = Vec::with_capacity(found.len());
    for (offset, len, name, shape, element) in found {
        let end = offset.checked_add(len).filter(|&end| end <= room);
        let Some(end) = end else {
            return Err(format!(
                "tensor {name} ends behind the file, which is cut short or damaged; fetch it again"
            ));
        };
        // Both are within the file.
        let range = (start + offset) as usize..(start + end) as usize;
        tensors.push(Tensor {
            name,
            element,
            shape,
            range,
        });
    }
    let mut by_place: Vec<&Tensor> = tensors.iter().collect();
    by_place.sort_by_key(|tensor| tensor.range.start);
    let shared = by_place
        .windows(2)
        .find(|pair| pair[0].range.end > pair[1].range.start);
    if let Some(pair) = shared {
        return Err(format!(
            "tensors {} and {} overlap",
            pair[0].name, pair[1].name
        ));
    }
    Ok(tensors)
}

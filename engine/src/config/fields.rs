//! JSON files of a checkpoint folder, read field by field.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::load::LoadError;

/// Configuration files beyond this many bytes are refused before they are parsed.
const MOST_CONFIG_BYTES: u64 = 4 << 20;

/// A value for a message.
pub(super) fn short(value: &Value) -> String {
    value.to_string().chars().take(60).collect()
}

/// The object of a JSON file. A field that is null is a field that is not there, as Hugging Face writes its files.
pub(crate) struct Fields {
    pub(super) object: Map<String, Value>,
    /// With what the names of its fields begin in messages.
    pub(super) path: &'static str,
}

impl Fields {
    /// A field of any type.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, String> {
        match self.object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => T::deserialize(value)
                .map(Some)
                .map_err(|error| format!("{}{name} is {}: {error}", self.path, short(value))),
        }
    }

    /// Whether a field is written at all, null or not.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.object.contains_key(name)
    }

    /// A count, which may be written as a whole number with a decimal point.
    pub(crate) fn count(&self, name: &str) -> Result<Option<usize>, String> {
        let whole = |number: &f64| number.fract() == 0.0 && (0.0..=1e15).contains(number);
        match self.object.get(name).and_then(Value::as_f64).filter(whole) {
            Some(number) => Ok(Some(number as usize)),
            None => self.get(name),
        }
    }

    /// A number that is positive, if it is there.
    pub(crate) fn positive(&self, name: &str) -> Result<Option<f32>, String> {
        let wrong = |value: f32| format!("{}{name} is {value}, it has to be positive", self.path);
        match self.get::<f32>(name)? {
            Some(value) if !(value.is_finite() && value > 0.0) => Err(wrong(value)),
            value => Ok(value),
        }
    }

    /// A count that has to be there.
    pub(crate) fn required(&self, name: &str) -> Result<usize, String> {
        let missing = || format!("{}{name} is missing", self.path);
        self.count(name)?.ok_or_else(missing)
    }

    /// An object within, unless it says nothing.
    pub(crate) fn object(&self, name: &'static str) -> Result<Option<Fields>, String> {
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
    pub(crate) fn token_ids(&self, name: &str) -> Result<Vec<u32>, String> {
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

//! Why a model cannot be had, in words that say what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// See the module documentation.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// It begins like the name of a repository.
    #[error("{given} names no repository of a hub: {reason}")]
    Name {
        /// What was given.
        given: String,
        /// What is wrong with it, and what to write.
        reason: String,
    },
    /// A variable of the environment that cannot be used.
    #[error("{variable}: {reason}")]
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub wants to know who asks, or refuses them.
    #[error("{model}: the hub refuses access ({status}): {advice}")]
    Denied {
        /// The model's name.
        model: String,
        /// The status of the answer.
        status: u16,
        /// What to do.
        advice: &'static str,
    },
    /// There is no such repository or revision.
    #[error(
        "{model}: the hub has no such model or revision; check the name. If it is a path, there is nothing at it"
    )]
    Missing {
        /// The model's name.
        model: String,
    },
    /// The repository has nothing that is meant by the name.
    #[error("{model}: {reason}. It has {}", listed(.there))]
    NoFile {
        /// The model's name.
        model: String,
        /// What is missing.
        reason: String,
        /// Files that are there.
        there: Vec<String>,
    },
    /// The network may not be used, and the cache does not have it.
    #[error(
        "{model} is not in the cache {cache}, and HF_HUB_OFFLINE says not to download it: {reason}. Unset the variable once, \
         or name a path"
    )]
    Offline {
        /// The model's name.
        model: String,
        /// The folder that was searched.
        cache: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// No answer, after several tries.
    #[error(
        "cannot fetch {url}: {reason}; check the network, HF_ENDPOINT and HTTPS_PROXY. What was received is kept"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What happened at the last try.
        reason: String,
    },
    /// An answer that is not one of a hub.
    #[error("{url} answers with {reason}; check HF_ENDPOINT")]
    Answer {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A file arrived damaged.
    #[error(
        "{file} of {model} arrived damaged (its checksum is {found}, not {expected}) and was removed; try again"
    )]
    Checksum {
        /// The model's name.
        model: String,
        /// The file.
        file: String,
        /// The checksum that the hub names.
        expected: String,
        /// That of what arrived.
        found: String,
    },
    /// There is not enough room.
    #[error(
        "{folder} has room for {free} more bytes, {needed} are needed; free some, or name another folder with HF_HOME"
    )]
    DiskFull {
        /// Where the file would be.
        folder: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A file of the cache.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl HubError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> HubError {
        move |source| HubError::Io {
            path: path.to_owned(),
            source,
        }
    }
}

/// A few of the files that are there.
fn listed(there: &[String]) -> String {
    const MOST: usize = 24;
    if there.is_empty() {
        return "no files".to_owned();
    }
    let mut text = there[..there.len().min(MOST)].join(", ");
    if there.len() > MOST {
        text.push_str(&format!(" and {} more", there.len() - MOST));
    }
    text
}

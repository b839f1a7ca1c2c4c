//! Why a file cannot be used.

use std::path::PathBuf;

/// A GGUF file that cannot be read, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The structure of the file is broken, or of a kind that is not read.
    #[error("{path} cannot be used: {reason}")]
    Invalid {
        /// The file, or `memory`.
        path: PathBuf,
        /// What was found, and where.
        reason: String,
    },
}

//! Where models come from: a path, or a repository of a Hugging Face hub.
//!
//! [`Source::parse`] reads what users write, and [`resolve`] makes a path of it. What a hub sends is kept in the cache of
//! Hugging Face's own tools, and is taken for hostile: names stay inside their folders, lengths are known before anything is
//! written, contents have the checksum that they were announced with, and the token goes to nobody but the hub.
//!
//! This crate knows nothing of what is in the files. It blocks; it has no async and no threads of its own.

mod cache;
mod client;
mod error;
mod name;
mod pull;
mod select;
mod settings;
mod watch;

use std::path::{Path, PathBuf};

pub use cache::{Entry, entries, repository_at};
pub use error::HubError;
pub use name::{HubName, Source};
pub use pull::Hub;
pub use select::Wanted;
pub use settings::{Settings, Token};
pub use watch::{Console, Log, Watch};

/// The path of a model that a user named, fetched from the hub of the environment if it is one of a hub and not there already.
/// Whether there is anything at a path is not looked at.
///
/// # Errors
/// [`HubError`] says what to do.
pub fn resolve(given: &Path, wanted: Wanted, watch: &mut dyn Watch) -> Result<PathBuf, HubError> {
    match Source::parse(given)? {
        Source::Path(path) => Ok(path),
        Source::Hub(name) => Hub::new(Settings::from_env()?).pull(&name, wanted, watch),
    }
}

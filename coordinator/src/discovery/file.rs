//! A file that lists the addresses of workers, one `HOST:PORT` per line; `#` begins a comment.
//!
//! It is read every second, and what counts is its content: that works on every file system, also where a file is replaced
//! by a link. A file that is missing, or has one invalid line, changes nothing.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use runtime::{AddressError, Caller};
use tokio::fs;
use tokio::io::AsyncReadExt;

use super::{Address, Kind, Source};

/// How often the file is read.
const INTERVAL: Duration = Duration::from_secs(1);

/// Bytes that the file may have.
const MAX_BYTES: u64 = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("it is not a regular file")]
    NotRegular,
    #[error("it has more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("line {line}: {why}")]
    Line { line: usize, why: AddressError },
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct FileSource {
    path: PathBuf,
    caller: Caller,
    /// The content of the last set that it gave.
    given: Option<String>,
}

impl FileSource {
    /// `caller` checks the addresses.
    pub(crate) fn new(path: &Path, caller: &Caller) -> Self {
        FileSource {
            path: path.to_owned(),
            caller: caller.clone(),
            given: None,
        }
    }

    async fn read(&self) -> Result<String, FileError> {
        // Opening something else, such as a pipe, might never end.
        if !fs::metadata(&self.path).await?.is_file() {
            return Err(FileError::NotRegular);
        }
        let mut content = String::new();
        let file = fs::File::open(&self.path).await?;
        let mut file = file.take(MAX_BYTES + 1);
        file.read_to_string(&mut content).await?;
        if content.len() as u64 > MAX_BYTES {
            return Err(FileError::TooLarge);
        }
        Ok(content)
    }
}

impl fmt::Display for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file {}", self.path.display())
    }
}

impl Source for FileSource {
    type Error = FileError;

    fn kind(&self) -> Kind {
        Kind::File
    }

    fn longest_pause(&self) -> Duration {
        INTERVAL
    }

    async fn next(&mut self) -> Result<BTreeSet<Address>, FileError> {
        loop {
            // After a failure the caller has waited, and the set is given again even if it is the same.
            let given = self.given.take();
            if given.is_some() {
                tokio::time::sleep(INTERVAL).await;
            }
            let content = self.read().await?;
            let is_new = given.as_ref() != Some(&content);
            let parsed = if is_new {
                Some(parse(&content, &self.caller)?)
            } else {
                None
            };
            self.given = Some(content);
            if let Some(addresses) = parsed {
                return Ok(addresses);
            }
        }
    }
}

fn parse(content: &str, caller: &Caller) -> Result<BTreeSet<Address>, FileError> {
    let mut addresses = BTreeSet::new();
    for (line, text) in (1..).zip(content.lines()) {
        let text = text.split('#').next().unwrap_or_default().trim();
        if text.is_empty() {
            continue;
        }
        match caller.authority(text) {
            Ok(authority) => addresses.insert(Address::new(authority)),
            Err(why) => return Err(FileError::Line { line, why }),
        };
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    fn addresses(text: &str) -> Result<Vec<String>, String> {
        let parsed = parse(text, &Caller::default()).map_err(|error| error.to_string())?;
        Ok(parsed.iter().map(Address::to_string).collect())
    }

    #[test]
    fn a_line_is_an_address_a_comment_or_nothing() {
        let text = "# drafts\n127.0.0.1:2 # the second\n\n  http://a.b:1/\n127.0.0.1:2\n[::1]:3";
        assert_eq!(
            addresses(text).unwrap(),
            ["127.0.0.1:2", "[::1]:3", "a.b:1"]
        );
        assert!(addresses("").unwrap().is_empty());
        let error = addresses("a:1\n\nb\n").unwrap_err();
        assert!(error.starts_with("line 3: \"b\""), "{error}");
    }

    fn ports(addresses: &BTreeSet<Address>) -> Vec<String> {
        addresses.iter().map(Address::to_string).collect()
    }

    /// Time stands still but for the pauses of the source.
    #[tokio::test(start_paused = true)]
    async fn the_set_follows_the_file_and_outlives_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("workers");
        let mut source = FileSource::new(&path, &Caller::default());
        assert!(matches!(source.next().await, Err(FileError::Read(_))));
        std::fs::write(&path, "a:1\n").unwrap();
        assert_eq!(ports(&source.next().await.unwrap()), ["a:1"]);
        std::fs::write(&path, "a:1\nb:2\n").unwrap();
        assert_eq!(ports(&source.next().await.unwrap()), ["a:1", "b:2"]);
        std::fs::write(&path, "a:1\nb\n").unwrap();
        let error = source.next().await.unwrap_err();
        assert!(matches!(error, FileError::Line { line: 2, .. }), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(source.next().await.is_err());
        std::fs::write(&path, "a:1\nb:2\n").unwrap();
        assert_eq!(ports(&source.next().await.unwrap()), ["a:1", "b:2"]);
        std::fs::write(&path, "#".repeat(MAX_BYTES as usize + 1)).unwrap();
        assert!(matches!(source.next().await, Err(FileError::TooLarge)));
        let mut source = FileSource::new(folder.path(), &Caller::default());
        assert!(matches!(source.next().await, Err(FileError::NotRegular)));
    }
}

//! The held-out text: one `{"text": "...", "source": "..."}` a line.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Text files beyond this many bytes are refused before they are parsed.
const MOST_BYTES: u64 = 64 << 20;

/// One document.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct Document {
    /// What the models are asked to predict, or to continue.
    #[serde(alias = "prompt")]
    pub(super) text: String,
    /// Where it comes from: `crate-version/path`.
    pub(super) source: String,
}

/// Reads the documents of a file.
///
/// # Errors
/// When the file cannot be read, a line is not as promised, or there is no document; the message names the line.
pub(super) fn read(path: &Path) -> Result<Vec<Document>> {
    let place = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the text file {place}"))?;
    let mut content = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut content)
        .with_context(|| format!("cannot read the text file {place}"))?;
    if content.len() as u64 > MOST_BYTES {
        bail!("the text file {place} is larger than {MOST_BYTES} bytes; split it");
    }
    let content = String::from_utf8(content)
        .with_context(|| format!("the text file {place} is not UTF-8"))?;
    let mut documents = Vec::new();
    for (index, line) in content.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let document: Document = serde_json::from_str(line).with_context(|| {
            format!(
                "{place}, line {}: not a JSON object like {{\"text\": \"...\", \"source\": \"...\"}}",
                index + 1
            )
        })?;
        documents.push(document);
    }
    if documents.is_empty() {
        bail!("the text file {place} holds no document");
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn documents_are_read_and_bad_lines_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text.jsonl");
        fs::write(
            &path,
            "{\"text\": \"fn\", \"source\": \"a-1.0/b.rs\", \"more\": 1}\n\n",
        )
        .unwrap();
        let expected = Document {
            text: "fn".to_owned(),
            source: "a-1.0/b.rs".to_owned(),
        };
        assert_eq!(read(&path).unwrap(), [expected]);
        fs::write(&path, "{\"prompt\": \"fn\", \"source\": \"x\"}\n").unwrap();
        assert_eq!(read(&path).unwrap()[0].text, "fn");
        fs::write(
            &path,
            "{\"text\": \"fn\", \"source\": \"x\"}\n{\"text\": 1}\n",
        )
        .unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains("line 2"), "{error}");
        fs::write(&path, "\n").unwrap();
        assert!(read(&path).is_err());
    }
}

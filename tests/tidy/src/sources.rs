//! The text of the repository.

use std::fs;
use std::io;
use std::path::Path;

/// One text file of the repository.
#[derive(Clone, Debug)]
pub struct Source {
    /// Path below the repository's root, with forward slashes.
    pub path: String,
    /// Content; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// Folders that hold no source of ours.
const SKIPPED: [&str; 3] = ["target", ".git", "node_modules"];

/// How the names of text files end.
const ENDINGS: [&str; 12] = [
    ".rs",
    ".toml",
    ".md",
    ".proto",
    ".py",
    ".sh",
    ".yml",
    ".yaml",
    ".jsonl",
    "justfile",
    ".ci/run",
    "Dockerfile",
];

/// Every text file below `root`, sorted by path. Links are not followed.
///
/// # Errors
/// When a folder or file cannot be read.
pub fn walk(root: &Path) -> io::Result<Vec<Source>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let path = entry.path();
            let below = path
                .strip_prefix(root)
                .expect("an entry lies below the root it was found under")
                .to_string_lossy()
                .replace('\\', "/");
            if kind.is_dir() {
                if !SKIPPED.iter().any(|name| entry.file_name() == *name) {
                    folders.push(path);
                }
            } else if kind.is_file() && ENDINGS.iter().any(|end| below.ends_with(end)) {
                let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                found.push(Source { path: below, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

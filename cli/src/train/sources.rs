//! The prompts: pieces of source files for training, and a file of prompts set aside for evaluation.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use decode::sampling::NoiseKey;
use serde::Deserialize;
use text::{Special, Tokenizer};

/// Files beyond this many bytes give no prompt: most are generated.
const MOST_BYTES: u64 = 200_000;
/// Prompts have from the first up to the second of these many tokens.
const PROMPT: (usize, usize) = (16, 96);

/// One line of the file of prompts that were set aside.
#[derive(Deserialize)]
struct Line {
    prompt: String,
    source: String,
}

/// Prompts that were set aside.
pub(super) struct HeldOut {
    pub(super) prompts: Vec<Vec<u32>>,
    /// The names of the crates that they come from, without version.
    crates: BTreeSet<String>,
}

impl HeldOut {
    /// Reads them.
    ///
    /// # Errors
    /// When the file is none of that kind.
    pub(super) fn read(path: &Path, tokenizer: &Tokenizer) -> Result<HeldOut> {
        let place = path.display();
        let content = fs::read_to_string(path).with_context(|| format!("cannot read {place}"))?;
        let mut held_out = HeldOut {
            prompts: Vec::new(),
            crates: BTreeSet::new(),
        };
        for (at, line) in content.lines().enumerate() {
            let line: Line = serde_json::from_str(line).with_context(|| {
                format!("{place}, line {}: needs \"prompt\" and \"source\"", at + 1)
            })?;
            let mut prompt = tokenizer.encode(&line.prompt, Special::Omit)?;
            prompt.truncate(PROMPT.1 * 2);
            if !prompt.is_empty() {
                held_out.prompts.push(prompt);
            }
            let folder = line.source.split('/').next().unwrap_or_default();
            held_out.crates.insert(crate_name(folder).to_owned());
        }
        Ok(held_out)
    }

    fn holds(&self, path: &Path) -> bool {
        let mut parts = path
            .components()
            .map(|part| part.as_os_str().to_string_lossy());
        parts.any(|part| self.crates.contains(crate_name(&part)))
    }
}

/// The name in `name-1.2.3`.
fn crate_name(folder: &str) -> &str {
    let digits = |at: &usize| {
        let version = &folder[at + 1..];
        version.starts_with(|c: char| c.is_ascii_digit()) && version.contains('.')
    };
    let dash = folder.match_indices('-').map(|(at, _)| at).find(digits);
    dash.map_or(folder, |at| &folder[..at])
}

/// `count` prompts from the .rs files under `dir` that `held_out` does not name: each the first tokens of another file, or the
/// tokens from somewhere within it. The same folder and seed give the same prompts.
///
/// # Errors
/// When there are too few files.
pub(super) fn prompts(
    dir: &Path,
    held_out: &HeldOut,
    (count, seed): (usize, u64),
    tokenizer: &Tokenizer,
) -> Result<Vec<Vec<u32>>> {
    let mut files = Vec::new();
    list(dir, &mut files).with_context(|| format!("cannot list {}", dir.display()))?;
    files.retain(|file| !held_out.holds(file));
    files.sort();
    let dice = |at: usize, what: u32| NoiseKey::new(seed, what, at as u32).hash(0);
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by_key(|&at| dice(at, 1));
    let mut prompts = Vec::new();
    for at in order {
        if prompts.len() == count {
            break;
        }
        let Ok(text) = fs::read_to_string(&files[at]) else {
            continue;
        };
        let tokens = tokenizer.encode(&text, Special::Omit)?;
        let room = tokens.len().saturating_sub(PROMPT.1 + 1);
        if room == 0 {
            continue;
        }
        let len = PROMPT.0 + dice(at, 2) as usize % (PROMPT.1 - PROMPT.0);
        let from = match dice(at, 3) % 4 {
            0 => 0,
            _ => dice(at, 4) as usize % room,
        };
        prompts.push(tokens[from..from + len].to_vec());
    }
    if prompts.len() < count {
        bail!(
            "{} has {} files that can give a prompt, {count} are needed; ask for fewer --texts",
            dir.display(),
            prompts.len()
        );
    }
    Ok(prompts)
}

/// All .rs files below a folder.
fn list(dir: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let path = entry.path();
        if kind.is_dir() {
            list(&path, files)?;
        } else if kind.is_file()
            && path.extension().is_some_and(|extension| extension == "rs")
            && entry.metadata()?.len() <= MOST_BYTES
        {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_no_part_of_a_name() {
        assert_eq!(crate_name("allocator-api2-0.4.0"), "allocator-api2");
        assert_eq!(crate_name("x-1"), "x-1");
        assert_eq!(crate_name("tokio-1.40.0-rc.1"), "tokio");
        assert_eq!(crate_name("src"), "src");
    }
}

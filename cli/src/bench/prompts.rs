//! The prompt file: one `{"prompt": "..."}` per line.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Prompt files beyond this many bytes are refused before they are parsed.
const MOST_BYTES: u64 = 64 << 20;

/// One line of the file; other fields are ignored.
#[derive(Deserialize)]
struct Line {
    prompt: String,
}

/// Reads the prompts of a file.
///
/// # Errors
/// When the file cannot be read, a line is invalid, or there is no prompt; the message names the line.
pub(crate) fn read(path: &Path) -> Result<Vec<String>> {
    let place = path.display();
    let file = File::open(path).with_context(|| format!("cannot open the prompt file {place}"))?;
    let mut content = Vec::new();
    file.take(MOST_BYTES + 1)
        .read_to_end(&mut content)
        .with_context(|| format!("cannot read the prompt file {place}"))?;
    if content.len() as u64 > MOST_BYTES {
        bail!("the prompt file {place} is larger than {MOST_BYTES} bytes");
    }
    let content = String::from_utf8(content)
        .with_context(|| format!("the prompt file {place} is not UTF-8"))?;
    let mut prompts = Vec::new();
    for (index, line) in content
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let line: Line = serde_json::from_str(line).with_context(|| {
            format!(
                "{place}, line {}: not a JSON object like {{\"prompt\": \"...\"}}",
                index + 1
            )
        })?;
        prompts.push(line.prompt);
    }
    if prompts.is_empty() {
        bail!(
            "the prompt file {place} contains no prompt; write one {{\"prompt\": \"...\"}} per line"
        );
    }
    Ok(prompts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read_text(text: &str) -> Result<Vec<String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prompts.jsonl");
        fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn each_line_is_a_prompt_and_blank_lines_are_skipped() {
        let text = "{\"prompt\": \"fn main\"}\n\n{\"source\": \"x\", \"prompt\": \"a\\nb\"}\r\n";
        assert_eq!(read_text(text).unwrap(), ["fn main", "a\nb"]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let error = format!(
            "{:#}",
            read_text("{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n").unwrap_err()
        );
        assert!(error.contains("line 2"), "{error}");
        assert!(
            read_text("\n \n")
                .unwrap_err()
                .to_string()
                .contains("no prompt")
        );
        let missing = read(Path::new("no/such/file.jsonl"))
            .unwrap_err()
            .to_string();
        assert!(missing.contains("no/such/file.jsonl"), "{missing}");
    }
}

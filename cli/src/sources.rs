//! `offshoot models list`, `pull` and `inspect`: which models there are, fetching one, and what one is.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use engine::{Computer, Inspection, WeightDtype};
use hub::{Console, Wanted};
use indicatif::HumanBytes;
use serde::Serialize;
use text::{TextError, Tokenizer};

use crate::{console, models};

/// Arguments of `offshoot models list`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Folder of the bundled models
    #[arg(long, env = "OFFSHOOT_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
}

/// Arguments of `offshoot models pull`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot models pull hf://Qwen/Qwen2.5-0.5B-Instruct
  offshoot models pull owner/name:Q4_K_M
  offshoot models pull hf://owner/name@main:folder/model.gguf

Prints the path. What was received is kept when it breaks off. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are those
of Hugging Face's own tools, and so is the cache.")]
pub(crate) struct PullArgs {
    /// hf://owner/name[@revision][:file], or owner/name
    #[arg(value_name = "NAME")]
    name: PathBuf,
}

/// Arguments of `offshoot models inspect`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot models inspect SmolLM2-135M-Instruct.Q4_1.gguf
  offshoot models inspect hf://Qwen/Qwen2.5-0.5B-Instruct --dtype q8_0

Reads what the files say of themselves, and no weights. The exit status is 1 for a model that would be refused.")]
pub(crate) struct InspectArgs {
    /// A folder, a GGUF file, or hf://owner/name[@revision][:file]
    #[arg(value_name = "NAME")]
    name: PathBuf,
    /// Type of the weights in memory [default: as in the checkpoint]
    #[arg(long, value_parser = ["f32", "bf16", "q8_0", "q4_0"])]
    dtype: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    kind: &'static str,
    bytes: u64,
    revision: Option<String>,
    path: PathBuf,
    missing: Option<String>,
}

/// Lists the models of the cache, and those that are bundled.
///
/// # Errors
/// When the environment cannot be used.
pub(crate) fn list(args: &ListArgs) -> Result<()> {
    let settings = hub::Settings::from_env()?;
    let mut all: Vec<Listed> = Vec::new();
    if let Ok(bundled) = models::bundled(args.models.as_deref()) {
        for name in ["target", "qualifier", "draft"] {
            let path = bundled.join(name);
            let seen = Inspection::of(&path, None);
            if seen.config.is_some() {
                all.push(Listed {
                    name: name.to_owned(),
                    kind: "bundled",
                    bytes: seen.tensors.iter().map(|one| one.bytes).sum(),
                    revision: None,
                    path,
                    missing: None,
                });
            }
        }
    }
    for entry in hub::entries(&settings.cache) {
        all.push(Listed {
            kind: match engine::is_gguf(&entry.path) {
                true => "GGUF",
                false => "folder",
            },
            name: entry.name,
            bytes: entry.bytes,
            revision: Some(entry.revision),
            path: entry.path,
            missing: entry.missing,
        });
    }
    if args.json {
        return Ok(console::put(&format!(
            "{}\n",
            serde_json::to_string_pretty(&all)?
        ))?);
    }
    let width = all
        .iter()
        .map(|one| one.name.chars().count())
        .max()
        .unwrap_or_default()
        .max(4);
    let mut text = format!(
        "{:width$}  {:<7}  {:>10}  REVISION\n",
        "NAME", "KIND", "SIZE"
    );
    for one in &all {
        let size = HumanBytes(one.bytes).to_string();
        let revision = one.revision.as_deref().unwrap_or("-");
        text += &format!(
            "{:width$}  {:<7}  {size:>10}  {revision}",
            one.name, one.kind
        );
        if let Some(missing) = &one.missing {
            text += &format!("  incomplete: {missing}");
        }
        text.push('\n');
    }
    console::put(&text)?;
    console::say(&format!("cache: {}", settings.cache.display()));
    Ok(())
}

/// Fetches a model, and prints where it is.
///
/// # Errors
/// When it cannot be had.
pub(crate) fn pull(args: &PullArgs) -> Result<()> {
    let path = hub::resolve(&args.name, Wanted::Model, &mut Console::new())?;
    let path = models::checked(path)?;
    Ok(console::put(&format!("{}\n", path.display()))?)
}

#[derive(Serialize)]
struct Report {
    name: String,
    path: PathBuf,
    architecture: Option<String>,
    layers: Option<usize>,
    hidden: Option<usize>,
    heads: Option<usize>,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    logits: Option<usize>,
    context: Option<usize>,
    tensors: Vec<Tensors>,
    /// In memory.
    weight_bytes: Option<u64>,
    /// Of keys and values, on a CPU.
    cache_bytes_per_1000_tokens: Option<u64>,
    tokens: Option<usize>,
    end_tokens: Vec<EndToken>,
    chat_template: bool,
    refused: Vec<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Tensors {
    r#type: String,
    count: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct EndToken {
    id: u32,
    token: Option<String>,
}

/// Says what a model is, and what would come of loading it.
///
/// # Errors
/// When it cannot be had, or would be refused.
pub(crate) fn inspect(args: &InspectArgs) -> Result<()> {
    let path = hub::resolve(&args.name, Wanted::Model, &mut Console::new())?;
    let report = Report::of(&args.name, path, args.dtype.as_deref())?;
    console::put(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&report)?),
        false => report.text(),
    })?;
    match &report.refused[..] {
        [] => Ok(()),
        [why, ..] => anyhow::bail!("{} would be refused: {why}", args.name.display()),
    }
}

impl Report {
    fn of(name: &Path, path: PathBuf, dtype: Option<&str>) -> Result<Report> {
        let dtype = WeightDtype::NAMES
            .iter()
            .find(|(known, _)| Some(*known) == dtype);
        let seen = Inspection::of(&path, dtype.map(|(_, dtype)| *dtype));
        let cache_bytes = Computer::Cpu.cache_bytes() as u64;
        let config = seen.config.as_ref();
        let mut report = Report {
            name: name.display().to_string(),
            architecture: seen.architecture.clone(),
            layers: config.map(|config| config.layers),
            hidden: config.map(|config| config.hidden),
            heads: config.map(|config| config.heads),
            kv_heads: config.map(|config| config.kv_heads),
            head_dim: config.map(|config| config.head_dim),
            logits: config.map(|config| config.vocab_size),
            context: config.map(|config| config.max_positions),
            tensors: (seen.tensors.iter())
                .map(|one| Tensors {
                    r#type: one.name.clone(),
                    count: one.count,
                    bytes: one.bytes,
                })
                .collect(),
            weight_bytes: seen.weight_bytes,
            cache_bytes_per_1000_tokens: config.map(|config| {
                (config.layers * 2 * config.kv_heads * config.head_dim) as u64 * cache_bytes * 1000
            }),
            tokens: None,
            end_tokens: (config.map_or(&[][..], |config| &config.eos).iter())
                .map(|&id| EndToken { id, token: None })
                .collect(),
            chat_template: false,
            refused: seen.refused.clone(),
            notes: Vec::new(),
            path,
        };
        report.texts();
        Ok(report)
    }

    /// Adds what the tokenizer says.
    fn texts(&mut self) {
        let tokenizer = match Tokenizer::load(&self.path) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                self.refused.push(error.to_string());
                return;
            }
        };
        let vocabulary = tokenizer.vocabulary();
        self.tokens = Some(vocabulary.len());
        if let Some(logits) = self.logits.filter(|&logits| logits < vocabulary.len()) {
            let tokens = vocabulary.len();
            self.refused.push(format!(
                "the tokenizer has {tokens} tokens, but the model has only {logits} logits"
            ));
        }
        for end in &mut self.end_tokens {
            end.token = vocabulary.token(end.id).map(str::to_owned);
        }
        if self.end_tokens.is_empty() {
            self.notes.push(
                "no token ends a text: requests end by their number of tokens or stop texts"
                    .to_owned(),
            );
        }
        match tokenizer.can_chat() {
            Ok(()) => self.chat_template = true,
            Err(TextError::NoChatTemplate) => {}
            Err(error) => self.notes.push(error.to_string()),
        }
    }

    fn text(&self) -> String {
        let mut lines = vec![self.path.display().to_string()];
        let mut line = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                lines.push(format!("  {name:<14} {value}"));
            }
        };
        line("architecture", self.architecture.clone());
        line("layers", self.layers.map(|n| n.to_string()));
        line("hidden", self.hidden.map(|n| n.to_string()));
        if let (Some(heads), Some(kv_heads), Some(dim)) = (self.heads, self.kv_heads, self.head_dim)
        {
            line(
                "heads",
                Some(format!("{heads} of {dim}, {kv_heads} of keys and values")),
            );
        }
        line("context", self.context.map(|n| format!("{n} tokens")));
        if let Some(tokens) = self.tokens {
            let logits = self
                .logits
                .map_or(String::new(), |logits| format!(", {logits} logits"));
            line("vocabulary", Some(format!("{tokens} tokens{logits}")));
        }
        let tensors: Vec<String> = (self.tensors.iter())
            .map(|one| format!("{} {} ({})", one.count, one.r#type, HumanBytes(one.bytes)))
            .collect();
        line("tensors", (!tensors.is_empty()).then(|| tensors.join(", ")));
        line(
            "weights",
            self.weight_bytes
                .map(|bytes| format!("{} in memory", HumanBytes(bytes))),
        );
        line(
            "cache",
            self.cache_bytes_per_1000_tokens
                .map(|bytes| format!("{} for 1000 tokens", HumanBytes(bytes))),
        );
        let ends: Vec<String> = (self.end_tokens.iter())
            .map(|end| format!("{} {}", end.id, end.token.as_deref().unwrap_or("?")))
            .collect();
        line("text ends at", (!ends.is_empty()).then(|| ends.join(", ")));
        let template = match self.chat_template {
            true => "yes",
            false => "no",
        };
        line("chat template", Some(template.to_owned()));
        for note in &self.notes {
            line("note", Some(note.clone()));
        }
        for why in &self.refused {
            line("refused", Some(why.clone()));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    #[test]
    fn a_bundled_model_is_described_whole() {
        let draft = models::bundled(None).unwrap().join("draft");
        let report = Report::of(&draft, draft.clone(), None).unwrap();
        assert!(report.refused.is_empty(), "{:?}", report.refused);
        let text = report.text();
        for word in [
            "architecture",
            "layers",
            "BF16",
            "in memory",
            "1000 tokens",
            "chat template  no",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(report.end_tokens.iter().all(|end| end.token.is_some()));
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["weight_bytes"].as_u64().unwrap() > 1 << 20, "{json}");
    }

    #[test]
    fn what_would_be_refused_says_so() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
        let report = Report::of(dir.path(), dir.path().to_owned(), None).unwrap();
        let text = report.text();
        assert!(text.contains("refused") && text.contains("mamba"), "{text}");
        assert!(report.refused.iter().any(|why| why.contains("tokenizer")));
    }
}

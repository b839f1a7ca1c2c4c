//! The tokenizer in a GGUF file's metadata, as the `tokenizer.json` that its publishers would have written.
//!
//! Two kinds are read. `gpt2` is byte-level BPE with a list of merges; `tokenizer.ggml.pre` names the rule by which text is cut
//! before it is merged, and a file of a rule that is not known is refused, because with another rule the ids would be wrong.
//! `llama` is SentencePiece BPE: pieces with scores, whose merges follow from them as transformers' converter derives them.

use std::borrow::Cow;
use std::collections::HashMap;

use gguf::Gguf;
use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, Tokenizer as Library};

use crate::error::TextError;
use crate::rules;
use crate::vocabulary::{MAX_TOKENS, Vocabulary};

/// The longest SentencePiece piece that is taken apart into merges, in characters. Their number grows with it.
const LONGEST_PIECE: usize = 256;

/// How Llama 3 cuts text.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 cuts text: as Llama 3, but every digit alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a token is for, by the numbers of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The tokens of a file, by id.
struct Tokens<'a> {
    contents: Vec<Cow<'a, str>>,
    kinds: Vec<Kind>,
}

/// A file's tokenizer as the parts of a `tokenizer.json`. The large ones are kept apart: written as JSON and read again they take
/// ten times as long and as much memory.
pub(crate) struct Definition<'a> {
    /// Without tokens and merges.
    rest: Value,
    tokens: Tokens<'a>,
    /// In the order of their ranks.
    merges: Vec<[u32; 2]>,
}

impl Definition<'_> {
    /// What stands behind each id.
    pub(crate) fn vocabulary(&self) -> Result<Vocabulary, String> {
        // Of two ids with one content the later one has it.
        let ids = self.tokens.ids();
        let tokens = ids.iter().map(|(content, id)| (*id, (*content).to_owned()));
        let vocabulary = Vocabulary::collect(tokens).ok_or("a token id is too large")?;
        let definition: rules::Definition =
            serde_json::from_value(self.rest.clone()).map_err(|error| error.to_string())?;
        let rules = rules::hash(definition.with_merges(self.merges()), "BPE");
        Ok(vocabulary.with_rules(&rules))
    }

    /// The library's tokenizer.
    pub(crate) fn library(&self) -> Result<Library, String> {
        let mut library = Library::from_bytes(self.rest.to_string().as_bytes())
            .map_err(|error| error.to_string())?;
        let model = &self.rest["model"];
        let vocabulary: Vocab = (self.tokens.ids().into_iter())
            .map(|(content, id)| (content.to_owned(), id))
            .collect();
        let merges = self.merges();
        let merges = merges.map(|[left, right]| (left.to_owned(), right.to_owned()));
        let mut builder = BPE::builder()
            .vocab_and_merges(vocabulary, merges.collect())
            .fuse_unk(model["fuse_unk"] == true)
            .byte_fallback(model["byte_fallback"] == true)
            .ignore_merges(model["ignore_merges"] == true);
        if let Some(unknown) = model["unk_token"].as_str() {
            builder = builder.unk_token(unknown.to_owned());
        }
        library.with_model(builder.build().map_err(|error| error.to_string())?);
        let added = self.tokens.added();
        (library.add_tokens(added)).map_err(|error| error.to_string())?;
        Ok(library)
    }

    fn merges(&self) -> impl Iterator<Item = [&str; 2]> {
        let content = |id: u32| &*self.tokens.contents[id as usize];
        self.merges.iter().map(move |parts| parts.map(content))
    }
}

/// Reads the tokenizer of a file.
pub(crate) fn definition(file: &Gguf) -> Result<Definition<'_>, TextError> {
    let unsupported = |reason: String| TextError::Unsupported {
        path: file.path().to_owned(),
        reason,
    };
    let model = file
        .text("tokenizer.ggml.model")?
        .ok_or_else(|| unsupported("tokenizer.ggml.model is missing".to_owned()))?;
    let mut tokens = Tokens::of(file)?;
    let (rest, merges) = match model {
        "gpt2" => byte_level(file, &tokens)?,
        "llama" => {
            tokens.mark_spaces();
            sentence_pieces(file, &tokens)?
        }
        other => {
            return Err(unsupported(format!(
                "tokenizer.ggml.model is {other:?}; gpt2 and llama are supported"
            )));
        }
    };
    Ok(Definition {
        rest,
        tokens,
        merges,
    })
}

impl<'a> Tokens<'a> {
    fn of(file: &'a Gguf) -> Result<Tokens<'a>, TextError> {
        let contents = required(
            file,
            "tokenizer.ggml.tokens",
            file.texts("tokenizer.ggml.tokens")?,
        )?;
        if contents.len() > MAX_TOKENS {
            let reason = format!("tokenizer.ggml.tokens has more than {MAX_TOKENS} tokens");
            return Err(file.invalid(reason).into());
        }
        let kinds = match file.integers("tokenizer.ggml.token_type")? {
            None => vec![Kind::Normal; contents.len()],
            Some(types) if types.len() == contents.len() => {
                let kind = |(content, kind): (&&str, &i64)| match kind {
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    _ if content.is_empty() => Kind::Unused,
                    _ => Kind::Normal,
                };
                contents.iter().zip(&types).map(kind).collect()
            }
            Some(_) => {
                let reason =
                    "tokenizer.ggml.token_type has another length than the tokens".to_owned();
                return Err(file.invalid(reason).into());
            }
        };
        let contents = contents.into_iter().map(Cow::Borrowed).collect();
        Ok(Tokens { contents, kinds })
    }

    /// Writes runs of spaces as SentencePiece does. llama.cpp's converter writes those that a user has defined as spaces, as they
    /// stand in a text.
    fn mark_spaces(&mut self) {
        for (content, kind) in self.contents.iter_mut().zip(&self.kinds) {
            if *kind == Kind::UserDefined && is_run(content, ' ') {
                *content = Cow::Owned(content.replace(' ', "▁"));
            }
        }
    }

    /// Ids, contents and kinds. Ids that only pad the model's logits are left out: the tokenizer that the model was published
    /// with does not have them either.
    fn iter(&self) -> impl Iterator<Item = (u32, &str, Kind)> + Clone {
        // There are at most MAX_TOKENS.
        let all = self.contents.iter().zip(&self.kinds).zip(0_u32..);
        all.map(|((content, kind), id)| (id, &**content, *kind))
            .filter(|(_, content, kind)| *kind != Kind::Unused || !is_padding(content))
    }

    /// The ids by content; of two with one content the later one.
    fn ids(&self) -> HashMap<&str, u32> {
        self.iter().map(|(id, content, _)| (content, id)).collect()
    }

    /// What is found in a text before it is cut.
    fn added(&self) -> impl Iterator<Item = AddedToken> {
        let added = self.iter().filter(|(_, content, kind)| {
            let is_added = matches!(kind, Kind::Unknown | Kind::Control | Kind::UserDefined);
            is_added && !content.is_empty()
        });
        added.map(|(_, content, kind)| {
            AddedToken::from(content, kind != Kind::UserDefined).normalized(false)
        })
    }

    fn get(&self, id: u64) -> Option<&str> {
        let id = usize::try_from(id).ok()?;
        self.contents.get(id).map(|content| &**content)
    }
}

/// Whether a token is nothing but repetitions of a character.
fn is_run(content: &str, of: char) -> bool {
    !content.is_empty() && content.chars().all(|c| c == of)
}

/// Whether a token that is not used has a name that converters give to ids without a token.
fn is_padding(content: &str) -> bool {
    content.is_empty() || content.starts_with("[PAD")
}

fn required<T>(file: &Gguf, key: &str, value: Option<T>) -> Result<T, TextError> {
    value.ok_or_else(|| file.invalid(format!("{key} is missing")).into())
}

/// Byte-level BPE.
fn byte_level(file: &Gguf, tokens: &Tokens<'_>) -> Result<(Value, Vec<[u32; 2]>), TextError> {
    let unsupported = |reason: String| TextError::Unsupported {
        path: file.path().to_owned(),
        reason,
    };
    let plain = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let cut = |regex: &str| {
        json!({ "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] })
    };
    let pre = file.text("tokenizer.ggml.pre")?.ok_or_else(|| {
        unsupported(
            "tokenizer.ggml.pre is missing, so how text is cut is not known; convert the model again".to_owned(),
        )
    })?;
    let (pre_tokenizer, normalizer, ignores_merges) = match pre {
        "gpt-2" => (plain, Value::Null, false),
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" => {
            let digits = json!({ "type": "Digits", "individual_digits": true });
            let both = json!({ "type": "Sequence", "pretokenizers": [digits, plain] });
            (both, Value::Null, false)
        }
        "llama-bpe" | "llama3" | "llama-v3" => (cut(LLAMA3), Value::Null, true),
        "qwen2" => (cut(QWEN2), json!({ "type": "NFC" }), false),
        other => {
            return Err(unsupported(format!(
                "tokenizer.ggml.pre is {other:?}; gpt-2, smollm, starcoder, refact, command-r, codeshell, llama-bpe and \
                 qwen2 are supported"
            )));
        }
    };
    let merges = file.texts("tokenizer.ggml.merges")?;
    let merges = required(file, "tokenizer.ggml.merges", merges)?;
    let ids = tokens.ids();
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        let parts = merge.split_once(' ');
        let (left, right) = parts
            .ok_or_else(|| file.invalid("a merge has no space between its parts".to_owned()))?;
        match (ids.get(left), ids.get(right)) {
            (Some(left), Some(right)) => pairs.push([*left, *right]),
            _ => {
                return Err(file
                    .invalid(format!("the parts of the merge {merge:?} are no tokens"))
                    .into());
            }
        }
    }
    let begins = match file.truth("tokenizer.ggml.add_bos_token")? {
        Some(begins) => begins,
        None => ignores_merges,
    };
    let rest = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": template(file, tokens, begins)?,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": ignores_merges, "vocab": {}, "merges": [],
        },
    });
    Ok((rest, pairs))
}

/// SentencePiece BPE, as transformers writes it for Llama 2, Mistral and Gemma.
fn sentence_pieces(file: &Gguf, tokens: &Tokens<'_>) -> Result<(Value, Vec<[u32; 2]>), TextError> {
    let scores = file.floats("tokenizer.ggml.scores")?;
    let scores = required(file, "tokenizer.ggml.scores", scores)?;
    if scores.len() != tokens.contents.len() {
        let reason = "tokenizer.ggml.scores has another length than the tokens".to_owned();
        return Err(file.invalid(reason).into());
    }
    let merges = merges(tokens, &scores).map_err(|reason| file.invalid(reason))?;
    let begins = file.truth("tokenizer.ggml.add_bos_token")?.unwrap_or(true);
    let is_prefixed = file
        .truth("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let unknown = tokens.iter().find(|(_, _, kind)| *kind == Kind::Unknown);
    let unknown = match (unknown, file.integer("tokenizer.ggml.unknown_token_id")?) {
        (Some((_, content, _)), _) => Some(content),
        (None, id) => id.and_then(|id| tokens.get(id)),
    };
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut normalizers = Vec::new();
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if is_prefixed {
        normalizers.push(json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    normalizers.push(spaces);
    let rest = json!({
        "version": "1.0",
        "added_tokens": [],
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "pre_tokenizer": null,
        "post_processor": template(file, tokens, begins)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unknown,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
            "ignore_merges": false, "vocab": {}, "merges": [],
        },
    });
    Ok((rest, merges))
}

/// Every way to make a piece of two others, best score first; of equal scores those with longer parts first. Runs of spaces that a
/// user has defined come before all pieces, whatever their scores: SentencePiece finds them first.
fn merges(tokens: &Tokens<'_>, scores: &[f32]) -> Result<Vec<[u32; 2]>, String> {
    let is_defined = |content: &str, kind| kind == Kind::UserDefined && is_run(content, '▁');
    let normal = tokens
        .iter()
        .filter(|(_, content, kind)| *kind == Kind::Normal || is_defined(content, *kind));
    let ids: HashMap<&str, u32> = normal
        .clone()
        .map(|(id, content, _)| (content, id))
        .collect();
    let mut found = Vec::new();
    for (id, content, kind) in normal {
        if content.chars().nth(LONGEST_PIECE).is_some() {
            return Err(format!(
                "token {id} has more than {LONGEST_PIECE} characters"
            ));
        }
        let score = match kind {
            Kind::UserDefined => f32::INFINITY,
            _ => scores[id as usize],
        };
        if score.is_nan() {
            return Err(format!("the score of token {id} is no number"));
        }
        for (at, _) in content.char_indices().skip(1) {
            let (left, right) = content.split_at(at);
            if let (Some(first), Some(second)) = (ids.get(left), ids.get(right)) {
                let lengths = (left.chars().count(), right.chars().count());
                found.push((score, lengths, [id, *first, *second]));
            }
        }
    }
    found.sort_by(|a, b| {
        let by_score = b.0.total_cmp(&a.0);
        by_score.then(b.1.cmp(&a.1)).then(a.2.cmp(&b.2))
    });
    let pairs = found.into_iter();
    Ok(pairs
        .map(|(_, _, [_, first, second])| [first, second])
        .collect())
}

/// What is put around a whole text: the token that begins one, if the file says so.
fn template(file: &Gguf, tokens: &Tokens<'_>, begins: bool) -> Result<Value, TextError> {
    if !begins {
        return Ok(Value::Null);
    }
    let id = file.integer("tokenizer.ggml.bos_token_id")?;
    let id = required(file, "tokenizer.ggml.bos_token_id", id)?;
    let Some(content) = tokens.get(id) else {
        let reason = format!("tokenizer.ggml.bos_token_id is {id}, which no token has");
        return Err(file.invalid(reason).into());
    };
    let bos = json!({ "SpecialToken": { "id": content, "type_id": 0 } });
    let text = |name: &str, type_id: u8| json!({ "Sequence": { "id": name, "type_id": type_id } });
    Ok(json!({
        "type": "TemplateProcessing",
        "single": [bos, text("A", 0)],
        "pair": [bos, text("A", 0), bos, text("B", 1)],
        "special_tokens": { content: { "id": content, "ids": [id], "tokens": [content] } },
    }))
}

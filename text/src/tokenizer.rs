//! Loading a tokenizer, and the two whole-text directions.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use aho_corasick::AhoCorasick;
use tokenizers::DecoderWrapper;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use crate::bytes::TokenBytes;
use crate::chat::{self, ChatTemplate, Marks, Message};
use crate::detokenizer::Detokenizer;
use crate::error::TextError;
use crate::from_gguf;
use crate::guard::guarded;
use crate::pieces::{Cuts, Encoder, frame};
use crate::rules;
use crate::vocabulary::{MAX_TOKENS, Vocabulary};

/// The largest tokenizer file that is read, in bytes. The largest published
/// ones have about 35 MB.
pub const MAX_TOKENIZER_BYTES: usize = 64 << 20;

/// The longest text that [`Tokenizer::encode`] takes, in bytes: far beyond any
/// context length, and a bound on what one request can make this process hold.
pub const MAX_INPUT_BYTES: usize = 4 << 20;

/// Whether the tokenizer's own template (a start-of-text token, for example)
/// is put around the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Add them: for a plain prompt (`add_special_tokens=True`). What the text
    /// begins with already is not put before it again.
    Add,
    /// Leave them out: for a piece of text, or a chat template that wrote them.
    Omit,
}

/// What becomes of control tokens that a text spells out, such as `<|im_end|>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// They are what they say, text like any other (`split_special_tokens=True`).
    Text,
    /// They are those tokens, as Hugging Face tokenizers have it by default.
    Tokens,
}

/// A tokenizer. Cloning shares it; any number of threads may use it at once.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    inner: tokenizers::Tokenizer,
    vocabulary: Vocabulary,
    /// How a conversation is written for the model, if its files say so, or why that cannot be used.
    chat: Option<Result<ChatTemplate, String>>,
    /// The texts of special tokens.
    control: Vec<String>,
    /// Finds them; `None` if there are none.
    spelled: Option<AhoCorasick>,
    /// The same tokenizer, to which special tokens are text. Made when the
    /// first text spells one out: it takes as much memory again.
    literal: OnceLock<tokenizers::Tokenizer>,
    /// Special tokens that the template puts before a text.
    begins: Vec<u32>,
    /// Present if the decoder is byte-level: streams then need no decoder.
    pub(crate) bytes: Option<TokenBytes>,
    /// Present if long texts are encoded in pieces.
    cuts: Option<Cuts>,
    /// The most bytes of a text that one token stands for, where that is known.
    longest: Option<usize>,
}

impl Tokenizer {
    /// Loads a `tokenizer.json`, the one in a model directory, or the tokenizer
    /// in the metadata of a GGUF file.
    ///
    /// Padding and truncation that the file may configure are switched off: a
    /// prompt is encoded whole or refused, never silently cut or filled up.
    ///
    /// # Errors
    ///
    /// [`TextError::Missing`], [`TextError::Read`], [`TextError::TooLarge`]
    /// beyond [`MAX_TOKENIZER_BYTES`], [`TextError::Invalid`] for what does not
    /// parse, [`TextError::Gguf`] and [`TextError::Unsupported`] for what a GGUF
    /// file may have. Never panics on what the file says.
    pub fn load(dir_or_file: &Path) -> Result<Tokenizer, TextError> {
        if gguf::is_gguf(dir_or_file) {
            return Tokenizer::from_gguf(&gguf::Gguf::open(dir_or_file)?);
        }
        let path = if dir_or_file.is_dir() {
            dir_or_file.join("tokenizer.json")
        } else {
            dir_or_file.to_owned()
        };
        if !path.is_file() {
            return Err(TextError::Missing { path });
        }
        let mut content = Vec::new();
        let read = File::open(&path).and_then(|file| {
            file.take(MAX_TOKENIZER_BYTES as u64 + 1)
                .read_to_end(&mut content)
        });
        if let Err(source) = read {
            return Err(TextError::Read { path, source });
        }
        if content.len() > MAX_TOKENIZER_BYTES {
            return Err(TextError::TooLarge {
                path,
                limit: MAX_TOKENIZER_BYTES,
            });
        }
        // What Git leaves in place of a large file that was not fetched (git-lfs, `docs/spec.md`).
        if content.starts_with(b"version https://git-lfs.github.com/spec/") {
            return Err(TextError::LfsPointer { path });
        }
        let tokenizer = parse(&content, &path.display().to_string())?;
        let dir = path.parent().unwrap_or(Path::new("."));
        Ok(tokenizer.with_chat(chat::of_directory(dir)))
    }

    /// Loads a tokenizer from the content of a `tokenizer.json`, for models
    /// that are embedded in a binary.
    ///
    /// # Errors
    ///
    /// As [`Tokenizer::load`].
    pub fn from_bytes(content: &[u8]) -> Result<Tokenizer, TextError> {
        if content.len() > MAX_TOKENIZER_BYTES {
            return Err(TextError::TooLarge {
                path: "memory".into(),
                limit: MAX_TOKENIZER_BYTES,
            });
        }
        parse(content, "memory")
    }

    /// Takes the tokenizer out of a GGUF file's metadata.
    ///
    /// # Errors
    ///
    /// [`TextError::Unsupported`] for a kind of tokenizer that is not known,
    /// [`TextError::Gguf`] and [`TextError::Invalid`] for metadata that make none.
    pub fn from_gguf(file: &gguf::Gguf) -> Result<Tokenizer, TextError> {
        let definition = from_gguf::definition(file)?;
        let tokenizer = made(&file.path().display().to_string(), || {
            let vocabulary = definition.vocabulary()?;
            assemble(definition.library()?, vocabulary)
        })?;
        drop(definition);
        let Some(source) = file.text("tokenizer.chat_template")? else {
            return Ok(tokenizer);
        };
        let token = |key| -> Result<String, TextError> {
            let id = file.integer(key)?.and_then(|id| u32::try_from(id).ok());
            let token = id.and_then(|id| tokenizer.vocabulary().token(id));
            Ok(token.unwrap_or_default().to_owned())
        };
        let marks = Marks {
            bos: token("tokenizer.ggml.bos_token_id")?,
            eos: token("tokenizer.ggml.eos_token_id")?,
        };
        let template = ChatTemplate::new(source.to_owned(), marks);
        Ok(tokenizer.with_chat(Some(template)))
    }

    /// The same tokenizer with a chat template; only for one that was just made.
    fn with_chat(self, chat: Option<Result<ChatTemplate, String>>) -> Tokenizer {
        let mut shared = Arc::into_inner(self.shared).expect("nobody else has it yet");
        shared.chat = chat;
        Tokenizer {
            shared: Arc::new(shared),
        }
    }

    /// Whether conversations can be encoded.
    ///
    /// # Errors
    ///
    /// [`TextError::NoChatTemplate`], [`TextError::ChatTemplate`] for one that does not parse.
    pub fn can_chat(&self) -> Result<(), TextError> {
        self.chat().map(|_| ())
    }

    fn chat(&self) -> Result<&ChatTemplate, TextError> {
        match &self.shared.chat {
            None => Err(TextError::NoChatTemplate),
            Some(Ok(template)) => Ok(template),
            Some(Err(reason)) => Err(TextError::ChatTemplate {
                reason: reason.clone(),
            }),
        }
    }

    /// A conversation in which the assistant is to speak next, as the model's chat template writes it: texts to encode one
    /// by one, with [`Special::Omit`]. A control token that somebody has spelled out in a message is cut in two between
    /// them, so that it is text and not a token.
    ///
    /// # Errors
    ///
    /// Those of [`Tokenizer::can_chat`]; [`TextError::Chat`] if the template refuses the messages, or they make more than
    /// [`MAX_INPUT_BYTES`] of text.
    pub fn render_chat(&self, messages: &[Message]) -> Result<Vec<String>, TextError> {
        let template = self.chat()?;
        let refused = |reason: &str| TextError::Chat {
            reason: reason.to_owned(),
        };
        // One of the code points that are reserved for use inside a program, and that nobody has written.
        let mark = ('\u{FDD0}'..='\u{FDEF}')
            .find(|&mark| !messages.iter().any(|one| one.content.contains(mark)))
            .ok_or_else(|| refused("they hold every noncharacter of Unicode"))?;
        let broken: Option<Vec<Message>> = (messages.iter())
            .map(|message| {
                let content = chat::break_control(&message.content, &self.shared.control, mark)?;
                Some(Message {
                    role: message.role.clone(),
                    content,
                })
            })
            .collect();
        let broken = broken.ok_or_else(|| refused("one holds a control token of one character"))?;
        let text = match guarded(|| template.render(&broken, MAX_INPUT_BYTES)) {
            Ok(rendered) => rendered.map_err(|reason| TextError::Chat { reason })?,
            Err(reason) => return Err(TextError::Chat { reason }),
        };
        Ok(text.split(mark).map(str::to_owned).collect())
    }

    /// The token ids of a text; control tokens that it spells out are tokens.
    ///
    /// # Errors
    ///
    /// [`TextError::InputTooLong`] beyond [`MAX_INPUT_BYTES`], checked before
    /// any work; [`TextError::Encode`] if the tokenizer cannot encode it.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<u32>, TextError> {
        self.encode_as(text, special, Control::Tokens)
    }

    pub(crate) fn encode_as(
        &self,
        text: &str,
        special: Special,
        control: Control,
    ) -> Result<Vec<u32>, TextError> {
        if text.len() > MAX_INPUT_BYTES {
            return Err(TextError::InputTooLong {
                bytes: text.len(),
                limit: MAX_INPUT_BYTES,
            });
        }
        let add = match special {
            Special::Add => true,
            Special::Omit => false,
        };
        match guarded(|| {
            (self.library(control).encode_fast(text, add))
                .map(|encoding| encoding.get_ids().to_vec())
        }) {
            Ok(Ok(mut ids)) => {
                if add && self.begins_twice(&ids) {
                    ids.drain(..self.shared.begins.len());
                }
                Ok(ids)
            }
            Ok(Err(error)) => Err(TextError::Encode {
                reason: error.to_string(),
            }),
            Err(reason) => Err(TextError::Encode { reason }),
        }
    }

    /// Encodes a text step by step, each of them short: see [`Encoder`].
    pub fn encoder(&self, text: String, special: Special, control: Control) -> Encoder {
        Encoder::new(self.clone(), text, special, control)
    }

    /// Whether a text spells a control token out.
    pub(crate) fn spells_control(&self, text: &str) -> bool {
        let spelled = self.shared.spelled.as_ref();
        spelled.is_some_and(|spelled| spelled.is_match(text))
    }

    /// Whether ids begin with what the template puts before a text, and behind that once more.
    fn begins_twice(&self, ids: &[u32]) -> bool {
        let begins = self.shared.begins.as_slice();
        let rest = ids.strip_prefix(begins);
        !begins.is_empty() && rest.is_some_and(|rest| rest.starts_with(begins))
    }

    /// Whether a text with these ids begins with what the template puts before one.
    pub(crate) fn begins(&self, ids: &[u32]) -> bool {
        let begins = self.shared.begins.as_slice();
        !begins.is_empty() && ids.starts_with(begins)
    }

    /// The control token of exactly this text, if there is one.
    #[must_use]
    pub fn control_id(&self, text: &str) -> Option<u32> {
        let inner = &self.shared.inner;
        let is_control = inner.get_added_vocabulary().is_special_token(text);
        is_control.then(|| inner.token_to_id(text)).flatten()
    }

    /// Tokens that a text of so many bytes has at least, whatever it says; 0 where nothing is known.
    #[must_use]
    pub fn least_tokens(&self, bytes: usize) -> usize {
        (self.shared.longest).map_or(0, |longest| bytes.div_ceil(longest.max(1)))
    }

    pub(crate) fn cuts(&self) -> Option<&Cuts> {
        self.shared.cuts.as_ref()
    }

    pub(crate) fn library(&self, control: Control) -> &tokenizers::Tokenizer {
        match control {
            Control::Tokens => &self.shared.inner,
            Control::Text => self.shared.literal.get_or_init(|| {
                let mut literal = self.shared.inner.clone();
                literal.set_encode_special_tokens(true);
                literal
            }),
        }
    }

    /// The text of token ids, without special tokens; ids that the vocabulary
    /// does not have say nothing either. Bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`TextError::Decode`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        self.shared.decode(ids)
    }

    /// What stands behind each id.
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.shared.vocabulary
    }

    /// The ids, ascending, that stand for whole printable text on their own: whatever they are strung together to is text.
    /// No special tokens, no parts of characters, no control characters but line breaks and tabs.
    #[must_use]
    pub fn printable_ids(&self) -> Vec<u32> {
        let is_plain = |c: char| match c {
            '\n' | '\t' => true,
            char::REPLACEMENT_CHARACTER => false,
            other => !other.is_control(),
        };
        // Ids are below MAX_TOKENS.
        (0..self.vocabulary().len() as u32)
            .filter(|&id| !self.shared.is_silent(id))
            .filter(|&id| {
                let text = self.shared.decode(&[id]);
                text.is_ok_and(|text| !text.is_empty() && text.chars().all(is_plain))
            })
            .collect()
    }

    /// A detokenizer for one stream of ids, at its beginning.
    pub fn stream(&self) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.shared))
    }
}

impl Shared {
    pub(crate) fn decode(&self, ids: &[u32]) -> Result<String, TextError> {
        match guarded(|| self.inner.decode(ids, true)) {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err(TextError::Decode {
                reason: error.to_string(),
            }),
            Err(reason) => Err(TextError::Decode { reason }),
        }
    }

    /// Whether an id leaves no trace in decoded text: a special token, or none.
    pub(crate) fn is_silent(&self, id: u32) -> bool {
        match self.vocabulary.token(id) {
            Some(content) => self.inner.get_added_vocabulary().is_special_token(content),
            None => true,
        }
    }
}

/// What stands behind each id of a model's tokenizer, wherever [`Tokenizer::load`] would load it from. For those who never see a
/// text: of a GGUF file it takes a fraction of the time and memory that the tokenizer does.
///
/// # Errors
///
/// As [`Tokenizer::load`].
pub fn vocabulary(dir_or_file: &Path) -> Result<Vocabulary, TextError> {
    if !gguf::is_gguf(dir_or_file) {
        return Ok(Tokenizer::load(dir_or_file)?.shared.vocabulary.clone());
    }
    let file = gguf::Gguf::open(dir_or_file)?;
    let definition = from_gguf::definition(&file)?;
    let invalid = |reason| TextError::Invalid {
        origin: dir_or_file.display().to_string(),
        reason,
    };
    let vocabulary = definition.vocabulary().map_err(invalid)?;
    match vocabulary.is_empty() {
        true => Err(invalid("it has no tokens".to_owned())),
        false => Ok(vocabulary),
    }
}

fn parse(content: &[u8], origin: &str) -> Result<Tokenizer, TextError> {
    made(origin, || {
        let inner =
            tokenizers::Tokenizer::from_bytes(content).map_err(|error| error.to_string())?;
        let vocabulary = listed(&inner)?;
        let definition: rules::Definition =
            serde_json::from_slice(content).map_err(|error| error.to_string())?;
        let kind = match inner.get_model() {
            ModelWrapper::BPE(_) => "BPE",
            ModelWrapper::WordPiece(_) => "WordPiece",
            ModelWrapper::WordLevel(_) => "WordLevel",
            ModelWrapper::Unigram(_) => "Unigram",
        };
        let vocabulary = vocabulary.with_rules(&rules::hash(definition, kind));
        assemble(inner, vocabulary)
    })
}

fn made(
    origin: &str,
    make: impl FnOnce() -> Result<Shared, String>,
) -> Result<Tokenizer, TextError> {
    match guarded(make) {
        Ok(Ok(shared)) => Ok(Tokenizer {
            shared: Arc::new(shared),
        }),
        Ok(Err(reason)) | Err(reason) => Err(TextError::Invalid {
            origin: origin.to_owned(),
            reason,
        }),
    }
}

/// The tokens of the library's tokenizer.
fn listed(inner: &tokenizers::Tokenizer) -> Result<Vocabulary, String> {
    let model = inner
        .get_vocab(false)
        .into_iter()
        .map(|(content, id)| (id, content));
    // Added tokens come second: where both name an id, the library's own
    // decoding lets them win.
    let added = inner.get_added_tokens_decoder();
    let added = added.into_iter().map(|(id, token)| (id, token.content));
    Vocabulary::collect(model.chain(added))
        .ok_or_else(|| format!("a token id is not below {MAX_TOKENS}"))
}

fn assemble(mut inner: tokenizers::Tokenizer, vocabulary: Vocabulary) -> Result<Shared, String> {
    if vocabulary.is_empty() {
        return Err("it has no tokens".to_owned());
    }
    inner.with_padding(None);
    inner
        .with_truncation(None)
        .map_err(|error| error.to_string())?;

    let added = inner.get_added_tokens_decoder();
    let control: Vec<String> = (added.values())
        .filter(|token| token.special && !token.content.is_empty())
        .map(|token| token.content.clone())
        .collect();
    let spelled = match control.is_empty() {
        true => None,
        false => Some(AhoCorasick::new(&control).map_err(|error| error.to_string())?),
    };
    let bytes = match inner.get_decoder() {
        Some(DecoderWrapper::ByteLevel(_)) => {
            let specials = inner.get_added_vocabulary();
            Some(TokenBytes::collect(&vocabulary, |token| {
                specials.is_special_token(token)
            }))
        }
        _ => None,
    };
    let frame = frame(&inner);
    let cuts = Cuts::of(&inner, frame.as_ref());
    let is_special = |id: &u32| {
        let content = vocabulary.token(*id);
        content.is_some_and(|content| inner.get_added_vocabulary().is_special_token(content))
    };
    let begins = match frame {
        Some([begins, _]) if begins.iter().all(is_special) => begins,
        Some(_) | None => Vec::new(),
    };
    let longest = longest(&inner, cuts.as_ref(), &vocabulary);
    Ok(Shared {
        inner,
        vocabulary,
        chat: None,
        control,
        spelled,
        literal: OnceLock::new(),
        begins,
        bytes,
        cuts,
        longest,
    })
}

/// The most bytes of a text that one token stands for. Known where the tokens' bytes joined together are the text: it is not
/// changed before it is cut into words, and a token is a part of a word.
fn longest(
    inner: &tokenizers::Tokenizer,
    cuts: Option<&Cuts>,
    vocabulary: &Vocabulary,
) -> Option<usize> {
    cuts.filter(|_| inner.get_normalizer().is_none())?;
    // Bytes that no token has would be left out.
    let has = |byte: &char| inner.token_to_id(byte.encode_utf8(&mut [0; 4])).is_some();
    if !ByteLevel::alphabet().iter().all(has) {
        return None;
    }
    // A byte is written as a character of one or two bytes.
    let tokens = (0..vocabulary.len() as u32).filter_map(|id| vocabulary.token(id));
    tokens.map(str::len).max()
}

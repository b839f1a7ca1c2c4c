//! What can go wrong between text and token ids.

use std::path::PathBuf;

/// A tokenizer could not be loaded, or could not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// There is no tokenizer where one was expected.
    #[error(
        "no tokenizer at {path}: name a tokenizer.json, a model directory that holds one \
         (Hugging Face format), or a GGUF file"
    )]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// The file is there and cannot be read.
    #[error("cannot read the tokenizer at {path}: {source}; check the path and its permissions")]
    Read {
        /// The file that was opened.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Git left a pointer in place of the file.
    #[error(
        "the tokenizer at {path} is a Git LFS pointer and not the file itself; run `git lfs pull` in its folder, or \
         download the file"
    )]
    LfsPointer {
        /// The file that was opened.
        path: PathBuf,
    },
    /// The file is larger than any real tokenizer; nothing of it was parsed.
    #[error(
        "the tokenizer at {path} is larger than {limit} bytes, the most that is accepted: \
         check that it is a tokenizer.json"
    )]
    TooLarge {
        /// The file that was refused.
        path: PathBuf,
        /// The limit in bytes, [`crate::MAX_TOKENIZER_BYTES`].
        limit: usize,
    },
    /// The content is not a usable tokenizer.
    #[error(
        "the tokenizer from {origin} is not usable ({reason}): the file is damaged or of a kind \
         that is not supported, fetch it again"
    )]
    Invalid {
        /// The file, or `memory` for one loaded from bytes.
        origin: String,
        /// What the parser said.
        reason: String,
    },
    /// A GGUF file cannot be read.
    #[error(transparent)]
    Gguf(#[from] gguf::GgufError),
    /// A GGUF file has a tokenizer of a kind that is not supported.
    #[error("the tokenizer in {path} cannot be used: {reason}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Which key of its metadata, what it says, and what is supported.
        reason: String,
    },
    /// The text is longer than the limit; nothing of it was encoded.
    #[error("the text has {bytes} bytes, the most that is accepted is {limit}: shorten it")]
    InputTooLong {
        /// The length of the refused text in bytes.
        bytes: usize,
        /// The limit in bytes, [`crate::MAX_INPUT_BYTES`].
        limit: usize,
    },
    /// A word of the text is longer than the limit; nothing of it was encoded.
    #[error(
        "the text has more than {limit} bytes without a place where words end (a space, a line break, a punctuation \
         mark): send it in token ids, or with such places"
    )]
    WordTooLong {
        /// The limit in bytes, [`crate::MAX_WORD_BYTES`].
        limit: usize,
    },
    /// The tokenizer failed on this text.
    #[error("this text cannot be encoded ({reason})")]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
    /// The model's files say nothing of conversations.
    #[error(
        "this model has no chat template, so it takes no messages: send a text, or serve a model that was trained for chat"
    )]
    NoChatTemplate,
    /// The model's chat template cannot be used.
    #[error("the model's chat template cannot be used ({reason}): fix it or send a text")]
    ChatTemplate {
        /// What is wrong with it.
        reason: String,
    },
    /// The chat template does not take this conversation.
    #[error("the model's chat template does not take these messages ({reason})")]
    Chat {
        /// What the template said.
        reason: String,
    },
    /// The tokenizer failed on these ids.
    #[error("these token ids cannot be decoded ({reason})")]
    Decode {
        /// What the tokenizer said.
        reason: String,
    },
}

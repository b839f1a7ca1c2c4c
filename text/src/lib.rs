//! Text in, token ids out, and back again as a stream.
//!
//! A [`Tokenizer`] is loaded once from a Hugging Face `tokenizer.json`, or from
//! the metadata of a GGUF file, and shared. A [`Detokenizer`] turns the ids of one request into text as they
//! arrive: push an id, send what comes back, and call `finish` at the end; the
//! pieces joined together are exactly what decoding all ids at once gives, and
//! no piece ever holds half a character. A [`Vocabulary`] says which token
//! stands behind each id, so that two models can prove that they mean the same
//! thing by the same number before they exchange ids.
//!
//! This crate knows nothing of models, sampling, sockets or async runtimes. It
//! takes files and prompts for hostile: sizes are capped before anything is
//! parsed, and a panic in the tokenizer library ends as a [`TextError`].

mod bytes;
mod chat;
mod detokenizer;
mod error;
mod from_gguf;
mod guard;
mod metered;
mod pieces;
mod rules;
mod tokenizer;
mod vocabulary;

pub use chat::Message;
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use pieces::{Encoder, MAX_WORD_BYTES, Progress};
pub use tokenizer::{
    Control, MAX_INPUT_BYTES, MAX_TOKENIZER_BYTES, Special, Tokenizer, vocabulary,
};
pub use vocabulary::{MAX_TOKENS, Vocabulary, VocabularyMismatch};

//! Ids in, text out, one at a time.

use std::sync::Arc;

use crate::error::TextError;
use crate::tokenizer::Shared;

/// The most tokens that are held back in the hope that they complete a
/// character. A character has at most four bytes, so it is spread over at most
/// four tokens that say anything; what is still broken then stays broken.
const MAX_HELD: usize = 6;

/// The most tokens of a window that says nothing new. Only a decoder that
/// swallows whole tokens gets here; the bound keeps each push constant-time.
const MAX_WINDOW: usize = 32;

/// The text of one stream of token ids, as it grows.
///
/// The pieces from [`push`](Detokenizer::push) and the rest from
/// [`finish`](Detokenizer::finish), joined, are what
/// [`Tokenizer::decode`](crate::Tokenizer::decode) gives for all ids at once.
/// For byte-level tokenizers that holds for any ids; for others it holds
/// wherever the decoder's text only grows as ids are added, which excludes
/// byte-fallback runs that are not UTF-8.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    shared: Arc<Shared>,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    /// The tokens are bytes: up to three that begin a character wait here.
    Bytes(Vec<u8>),
    /// The tokens are pieces of text that depend on their neighbours.
    Window(Window),
}

/// The last tokens that were sent and those that were not yet. A decoder treats
/// the first token of a text apart (it drops its leading space), so new tokens
/// are always decoded behind the ones before them, and the difference is sent.
#[derive(Debug, Clone, Default)]
struct Window {
    ids: Vec<u32>,
    /// How many of `ids` have been sent.
    sent: usize,
    /// The decoded text of `ids[..sent]`.
    sent_text: String,
}

impl Detokenizer {
    pub(crate) fn new(shared: Arc<Shared>) -> Detokenizer {
        let state = match shared.bytes {
            Some(_) => State::Bytes(Vec::new()),
            None => State::Window(Window::default()),
        };
        Detokenizer { shared, state }
    }

    /// Adds a token and returns the text that is now certain: complete
    /// characters only, often the whole token, sometimes nothing. Special
    /// tokens and unknown ids add nothing. Takes constant time.
    ///
    /// # Errors
    ///
    /// [`TextError::Decode`] if the tokenizer's decoder fails; the token is
    /// then not part of the stream.
    pub fn push(&mut self, id: u32) -> Result<String, TextError> {
        match (&mut self.state, &self.shared.bytes) {
            (State::Bytes(held), Some(bytes)) => Ok(push_bytes(held, bytes.of(id))),
            (State::Window(window), _) if !self.shared.is_silent(id) => {
                window.push(&self.shared, id)
            }
            _ => Ok(String::new()),
        }
    }

    /// The text that was held back, with U+FFFD for a character that never got
    /// complete. The detokenizer is at the beginning of a new stream after it.
    pub fn finish(&mut self) -> String {
        match &mut self.state {
            State::Bytes(held) => {
                let rest = String::from_utf8_lossy(held).into_owned();
                held.clear();
                rest
            }
            State::Window(window) => {
                let Window { ids, sent_text, .. } = std::mem::take(window);
                // What a decoder that fails would have said is lost; each token
                // passed it when it was pushed.
                let text = self.shared.decode(&ids).unwrap_or_default();
                behind(&text, &sent_text).to_owned()
            }
        }
    }
}

/// Appends `new` to the held bytes and takes out all that is decided. Equals
/// `String::from_utf8_lossy` over the whole stream: both replace each maximal
/// broken part by one U+FFFD (Unicode standard, section 3.9, "substitution of
/// maximal subparts").
fn push_bytes(held: &mut Vec<u8>, new: &[u8]) -> String {
    held.extend_from_slice(new);
    let mut text = String::new();
    let mut rest: &[u8] = held;
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(error) => {
                let (valid, broken) = rest.split_at(error.valid_up_to());
                text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                rest = broken;
                let Some(length) = error.error_len() else {
                    break;
                };
                text.push(char::REPLACEMENT_CHARACTER);
                rest = &rest[length..];
            }
        }
    }
    *held = rest.to_vec();
    text
}

impl Window {
    fn push(&mut self, shared: &Shared, id: u32) -> Result<String, TextError> {
        self.ids.push(id);
        let text = match shared.decode(&self.ids) {
            Ok(text) => text,
            Err(error) => {
                self.ids.pop();
                return Err(error);
            }
        };
        let held = self.ids.len() - self.sent;
        if held < MAX_HELD && self.is_undecided(&text, held) {
            return Ok(String::new());
        }
        let new = behind(&text, &self.sent_text).to_owned();
        // A window must not begin with tokens that say nothing: the decoder
        // would treat the one behind them as the first of the text.
        if !new.is_empty() || self.ids.len() >= MAX_WINDOW {
            let kept = match shared.decode(&self.ids[self.sent..]) {
                Ok(kept) => kept,
                Err(error) => {
                    self.ids.pop();
                    return Err(error);
                }
            };
            self.ids.drain(..self.sent);
            self.sent_text = kept;
        }
        self.sent = self.ids.len();
        Ok(new)
    }

    /// Whether the text of the window may still change. Byte fallback writes one
    /// replacement character for each byte of a character that is not complete,
    /// and takes whole characters back with it when their bytes came just before;
    /// a replacement character that was meant (three bytes) is shorter than that.
    fn is_undecided(&self, text: &str, held: usize) -> bool {
        let broken = text
            .chars()
            .rev()
            .take_while(|&c| c == char::REPLACEMENT_CHARACTER)
            .count();
        broken >= held || !text.starts_with(&self.sent_text)
    }
}

/// What `text` has behind the part that it shares with `sent`.
fn behind<'a>(text: &'a str, sent: &str) -> &'a str {
    let shared: usize = text
        .chars()
        .zip(sent.chars())
        .take_while(|(ours, theirs)| ours == theirs)
        .map(|(character, _)| character.len_utf8())
        .sum();
    &text[shared..]
}

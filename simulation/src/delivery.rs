//! What a coordinator has for a client and the client has not got.

use control::session::Fresh;
use decode::{PromptScores, Scores};

use crate::client::Tokens;
use crate::scenario::Numerics;

/// What is on its way to the client.
#[derive(Debug)]
pub(crate) struct Unsent {
    /// Tokens that were taken for the client so far, prompt included.
    len: usize,
    /// It wants no more than that.
    wanted: usize,
    tokens: Vec<u32>,
    scores: Option<Scores>,
    prompt: Option<PromptScores>,
}

impl Unsent {
    /// Nothing yet, behind a text of so many tokens.
    pub(crate) fn new(len: usize, wanted: Option<usize>) -> Self {
        Unsent {
            len,
            wanted: wanted.unwrap_or(usize::MAX),
            tokens: Vec::new(),
            scores: None,
            prompt: None,
        }
    }

    /// Takes what is new; tokens behind what the client wants are dropped.
    pub(crate) fn push(&mut self, fresh: Fresh) {
        let take = fresh.tokens.len().min(self.wanted - self.len);
        self.len += take;
        self.tokens.extend(&fresh.tokens[..take]);
        let scores = fresh.scores.map(|scores| scores.slice(0..take));
        match (self.scores.as_mut(), scores) {
            (Some(unsent), Some(scores)) => assert!(unsent.append(&scores), "scores of one form"),
            (_, scores) => self.scores = scores.or(self.scores.take()),
        }
        match (self.prompt.as_mut(), fresh.prompt) {
            (Some(unsent), Some(prompt)) => {
                assert_eq!(unsent.first + unsent.scores.len() as u32, prompt.first);
                assert!(unsent.scores.append(&prompt.scores), "scores of one form");
            }
            (_, prompt) => self.prompt = prompt.or(self.prompt.take()),
        }
    }

    /// Whether the client has all it wants.
    pub(crate) fn is_satisfied(&self) -> bool {
        self.len >= self.wanted
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tokens.is_empty() && self.prompt.is_none()
    }

    /// Tokens that the client has not got.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    pub(crate) fn has_prompt_scores(&self) -> bool {
        self.prompt.is_some()
    }

    /// Everything the client has not got.
    pub(crate) fn take(&mut self, numerics: Numerics) -> Tokens {
        Tokens {
            numerics,
            tokens: std::mem::take(&mut self.tokens),
            scores: self.scores.take(),
            prompt: self.prompt.take(),
        }
    }
}

//! Log-probabilities of tokens: what a session asks of its target, and what the target reports.
//!
//! A score is computed by the target from its own logits, in one fixed order of arithmetic, so it is the same however
//! the token was found. Drafts and qualifiers give none.

use alloc::vec::Vec;

/// How many of the strongest tokens at a position a session may ask for.
pub const MAX_TOP_SCORES: u8 = 20;

/// Prompt tokens whose scores one message may carry for one session.
pub const MAX_PROMPT_SCORES: usize = 256;

/// Which logits a score is taken from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Basis {
    /// The model's own, before anything the request does to them.
    #[default]
    Raw,
    /// What the token was drawn from: after bias, penalties, masks, temperature and filters. A token that was
    /// filtered out has minus infinity. At temperature 0, where nothing is divided or filtered, after bias,
    /// penalties and masks.
    Processed,
    /// After bias, penalties, masks and temperature, before any filter: what [`Guess::q`](crate::Guess::q) is of.
    Tempered,
}

/// Which scores a session reports. Only a session that commits has any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scoring {
    /// Committed tokens: with how many of the strongest tokens at their position, at most [`MAX_TOP_SCORES`]. `None`:
    /// no scores.
    pub picks: Option<u8>,
    /// Where the scores of committed tokens are taken from.
    pub basis: Basis,
    /// Tokens of the prompt; `None`: no scores. Always [`Basis::Raw`], since nothing was drawn there.
    pub prompt: Option<PromptScoring>,
}

/// Scores of the prompt's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptScoring {
    /// With how many of the strongest tokens at their position.
    pub top: u8,
    /// The first position whose score is wanted: 1, as nothing comes before position 0, or the first one that a lost
    /// target had not reported.
    pub first: u32,
}

/// How likely a model found one token at its position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// The token's rank by probability, from 1; ties go to the lowest id.
    pub rank: u32,
    /// The strongest tokens with their log-probabilities, strongest first.
    pub top: Vec<(u32, f32)>,
}

/// Scores of consecutive tokens: parallel arrays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// See [`Score::logprob`].
    pub logprobs: Vec<f32>,
    /// See [`Score::rank`].
    pub ranks: Vec<u32>,
    /// Entries of `top_ids` and `top_logprobs` for each token.
    pub top_n: u8,
    /// The ids of the strongest tokens at each token's position, token after token.
    pub top_ids: Vec<u32>,
    /// Their log-probabilities.
    pub top_logprobs: Vec<f32>,
}

impl Scores {
    /// None yet, with room for `top_n` of the strongest tokens each.
    pub fn new(top_n: u8) -> Scores {
        Scores {
            top_n,
            ..Scores::default()
        }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.logprobs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.logprobs.is_empty()
    }

    /// Adds the score of the next token.
    ///
    /// # Panics
    /// When it does not have `top_n` strongest tokens.
    pub fn push(&mut self, score: &Score) {
        assert_eq!(score.top.len(), usize::from(self.top_n), "as many as asked");
        self.logprobs.push(score.logprob);
        self.ranks.push(score.rank);
        for &(id, logprob) in &score.top {
            self.top_ids.push(id);
            self.top_logprobs.push(logprob);
        }
    }

    /// The score of one token, counted from 0.
    pub fn get(&self, at: usize) -> Option<Score> {
        let top = self.tops(at..at + 1);
        Some(Score {
            logprob: *self.logprobs.get(at)?,
            rank: *self.ranks.get(at)?,
            top: (self.top_ids.get(top.clone())?.iter().copied())
                .zip(self.top_logprobs.get(top)?.iter().copied())
                .collect(),
        })
    }

    /// The scores of some of the tokens; nothing outside them.
    #[must_use]
    pub fn slice(&self, tokens: core::ops::Range<usize>) -> Scores {
        let end = tokens.end.min(self.len());
        let tokens = tokens.start.min(end)..end;
        let top = self.tops(tokens.clone());
        Scores {
            logprobs: self.logprobs[tokens.clone()].to_vec(),
            ranks: self.ranks[tokens].to_vec(),
            top_n: self.top_n,
            top_ids: self.top_ids[top.clone()].to_vec(),
            top_logprobs: self.top_logprobs[top].to_vec(),
        }
    }

    /// Removes the scores of the first tokens; of all, if there are fewer.
    pub fn drop_front(&mut self, tokens: usize) {
        let tokens = tokens.min(self.len());
        let top = self.tops(0..tokens);
        self.logprobs.drain(..tokens);
        self.ranks.drain(..tokens);
        self.top_ids.drain(top.clone());
        self.top_logprobs.drain(top);
    }

    /// Adds the scores of the tokens that follow. `more` has to be of the same `top_n`, unless there are none yet.
    ///
    /// Returns whether it was; if not, nothing has changed.
    #[must_use]
    pub fn append(&mut self, more: &Scores) -> bool {
        if self.is_empty() {
            self.top_n = more.top_n;
        }
        let fits = self.top_n == more.top_n;
        if fits {
            self.logprobs.extend_from_slice(&more.logprobs);
            self.ranks.extend_from_slice(&more.ranks);
            self.top_ids.extend_from_slice(&more.top_ids);
            self.top_logprobs.extend_from_slice(&more.top_logprobs);
        }
        fits
    }

    /// A token id that a vocabulary of `vocab` tokens does not have, if there is one.
    pub fn id_outside(&self, vocab: u32) -> Option<u32> {
        self.top_ids.iter().copied().find(|&id| id >= vocab)
    }

    fn tops(&self, tokens: core::ops::Range<usize>) -> core::ops::Range<usize> {
        let each = usize::from(self.top_n);
        tokens.start * each..tokens.end * each
    }
}

/// Scores of a part of the prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromptScores {
    /// Position of the first token that is scored.
    pub first: u32,
    /// The scores, at most [`MAX_PROMPT_SCORES`] in one message.
    pub scores: Scores,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(rank: u32) -> Score {
        Score {
            logprob: -(rank as f32),
            rank,
            top: vec![(rank * 10, -0.5), (rank * 10 + 1, -0.75)],
        }
    }

    fn of(ranks: core::ops::Range<u32>) -> Scores {
        let mut scores = Scores::new(2);
        for rank in ranks {
            scores.push(&score(rank));
        }
        scores
    }

    #[test]
    fn what_goes_in_comes_out_and_parts_fit_together() {
        let all = of(1..6);
        assert_eq!((all.len(), all.get(3)), (5, Some(score(4))));
        assert_eq!(all.get(5), None);
        assert_eq!(all.slice(1..3), of(2..4));
        assert_eq!(all.slice(4..99), of(5..6));
        assert!(all.slice(7..9).is_empty());
        let mut joined = Scores::default();
        assert!(joined.append(&all.slice(0..2)) && joined.append(&all.slice(2..5)));
        assert_eq!(joined, all);
        assert!(!joined.append(&Scores::new(3)));
        joined.drop_front(2);
        assert_eq!(joined, of(3..6));
        joined.drop_front(9);
        assert!(joined.is_empty() && joined.top_ids.is_empty());
        assert_eq!((all.id_outside(52), all.id_outside(51)), (None, Some(51)));
    }
}

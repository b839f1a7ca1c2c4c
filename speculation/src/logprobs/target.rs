//! What a target has scored and its coordinator has not acknowledged yet.

use alloc::boxed::Box;

use decode::{Ask, PromptScores, Score, Scores, Scoring, StepPlan};

use crate::limits::{MAX_PROMPT_SCORES, MAX_SCORED_LOGITS};
use crate::numbering::len_u32;

/// The scores of one session. Kept until acknowledged, like the picks they belong to.
#[derive(Debug)]
pub(crate) struct TargetScores {
    scoring: Scoring,
    /// Of the text after what the coordinator has.
    picks: Scores,
    /// Of the prompt from position `prompt_first` on.
    prompt: Scores,
    prompt_first: u32,
    prompt_len: u32,
    /// Rows that one step may score.
    rows: usize,
}

impl TargetScores {
    /// Nothing scored yet. A vocabulary of `vocab` tokens has no more strongest tokens than that.
    pub(crate) fn new(mut scoring: Scoring, prompt_len: u32, vocab: u32) -> Self {
        let within = |top: u8| u32::from(top).min(vocab) as u8;
        scoring.picks = scoring.picks.map(within);
        if let Some(prompt) = &mut scoring.prompt {
            prompt.top = within(prompt.top);
        }
        TargetScores {
            scoring,
            picks: Scores::new(scoring.picks.unwrap_or(0)),
            prompt: Scores::new(scoring.prompt.map_or(0, |prompt| prompt.top)),
            prompt_first: scoring.prompt.map_or(prompt_len, |prompt| prompt.first),
            prompt_len,
            rows: (MAX_SCORED_LOGITS / vocab.max(1) as usize).max(1),
        }
    }

    pub(crate) fn scoring(&self) -> Scoring {
        self.scoring
    }

    /// A token was committed here.
    pub(crate) fn picked(&mut self, score: Option<&Score>) {
        if self.scoring.picks.is_some() {
            self.picks
                .push(score.expect("who picks gives the score that the session asks for"));
        }
    }

    /// The coordinator has this many more tokens of the text.
    pub(crate) fn picks_acked(&mut self, tokens: u32) {
        self.picks.drop_front(tokens as usize);
    }

    /// The coordinator has the prompt's scores below this position. Returns whether there are more.
    pub(crate) fn prompt_acked(&mut self, below: u32) -> bool {
        let done = (below.saturating_sub(self.prompt_first)).min(len_u32(&self.prompt.ranks));
        self.prompt.drop_front(done as usize);
        self.prompt_first += done;
        done > 0 && !self.prompt.is_empty()
    }

    /// The next part of the prompt to compute before anything is picked, if tokens of it are still to be scored: what
    /// comes before the first of them, or rows that each answer with a score. The prompt's last row gives the first
    /// pick.
    pub(crate) fn plan(&self, text: &[u32], cached: u32, room: usize) -> Option<StepPlan> {
        let next = self.prompt_first + len_u32(&self.prompt.ranks);
        if next >= self.prompt_len {
            return None;
        }
        let from = cached as usize;
        if cached + 1 < next {
            let until = (next as usize - 1).min(from + room);
            return Some(StepPlan::append(text.get(from..until)?));
        }
        let until = (self.prompt_len as usize - 1).min(from + room.min(self.rows));
        let top = self.scoring.prompt?.top;
        let following = text.get(from + 1..=until)?;
        Some(StepPlan {
            asks: (following.iter())
                .map(|&token| Ask::Score { token, top })
                .collect(),
            ..StepPlan::append(text.get(from..until)?)
        })
    }

    /// The next token of the prompt has this score.
    pub(crate) fn prompt_scored(&mut self, score: &Score) {
        self.prompt.push(score);
    }

    /// For a report: the scores of the `picks` tokens in it. None if some of them were not picked here, which only a
    /// session that is about to be given up can have.
    pub(crate) fn picks(&self, picks: usize) -> Option<Box<Scores>> {
        let whole = self.scoring.picks.is_some() && self.picks.len() == picks;
        whole.then(|| Box::new(self.picks.clone()))
    }

    /// For a report: the scores of the prompt that are known and fit.
    pub(crate) fn prompt(&self) -> Option<Box<PromptScores>> {
        (!self.prompt.is_empty()).then(|| {
            Box::new(PromptScores {
                first: self.prompt_first,
                scores: self.prompt.slice(0..MAX_PROMPT_SCORES),
            })
        })
    }
}

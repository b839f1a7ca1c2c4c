//! What a target has scored and its coordinator has not acknowledged yet.

use crate::limits::{MAX_PROMPT_SCORES, MAX_SCORED_LOGITS};
use crate::link::len_u32;
use crate::replica::{StepPlan, TailLogits};
use crate::score::{PromptScores, Score, Scores, Scoring};

/// The scores of one session. Kept until acknowledged, like the picks they belong to.
#[derive(Debug)]
pub(crate) struct Ledger {
    scoring: Scoring,
    /// Of the text behind what the coordinator has.
    picks: Scores,
    /// Of the prompt from position `prompt_first` on.
    prompt: Scores,
    prompt_first: u32,
    prompt_len: u32,
    /// Rows whose logits may be in memory at the same time.
    rows: usize,
}

impl Ledger {
    /// Nothing scored yet. A vocabulary of `vocab` tokens has no more strongest tokens than that.
    pub(crate) fn new(mut scoring: Scoring, prompt_len: u32, vocab: u32) -> Self {
        let within = |top: u8| u32::from(top).min(vocab) as u8;
        scoring.picks = scoring.picks.map(within);
        if let Some(prompt) = &mut scoring.prompt {
            prompt.top = within(prompt.top);
        }
        Ledger {
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

    /// The coordinator has so many more tokens of the text.
    pub(crate) fn picks_acked(&mut self, tokens: u32) {
        self.picks.drop_front(tokens as usize);
    }

    /// The coordinator has the prompt's scores below this position. Says whether there are more.
    pub(crate) fn prompt_acked(&mut self, below: u32) -> bool {
        let done = (below.saturating_sub(self.prompt_first)).min(len_u32(&self.prompt.ranks));
        self.prompt.drop_front(done as usize);
        self.prompt_first += done;
        done > 0 && !self.prompt.is_empty()
    }

    /// The next part of the prompt to compute before anything is picked, if tokens of it are still to be scored: what
    /// comes before the first of them, or rows with logits each. The prompt's last row gives the first pick.
    pub(crate) fn plan(&self, text: &[u32], cached: u32, room: usize) -> Option<StepPlan> {
        let next = self.prompt_first + len_u32(&self.prompt.ranks);
        if next >= self.prompt_len {
            return None;
        }
        let from = cached as usize;
        let (until, room, tail) = if cached + 1 < next {
            (next - 1, room, TailLogits::Skip)
        } else {
            (self.prompt_len - 1, room.min(self.rows), TailLogits::All)
        };
        let until = (until as usize).min(from + room);
        Some(StepPlan {
            append: text.get(from..until)?.to_vec(),
            tail,
            rows: Vec::new(),
        })
    }

    /// The next token of the prompt has this score.
    pub(crate) fn scored(&mut self, score: &Score) {
        self.prompt.push(score);
    }

    /// For a report: the scores of the `picks` tokens in it. None if some of them were not picked here, which only a
    /// session that is about to be given up can have.
    pub(crate) fn picks(&self, picks: usize) -> Option<Box<Scores>> {
        let whole = self.scoring.picks.is_some() && self.picks.len() == picks;
        whole.then(|| Box::new(self.picks.clone()))
    }

    /// For a report: what of the prompt's scores is known and fits.
    pub(crate) fn prompt(&self) -> Option<Box<PromptScores>> {
        (!self.prompt.is_empty()).then(|| {
            Box::new(PromptScores {
                first: self.prompt_first,
                scores: self.prompt.slice(0..MAX_PROMPT_SCORES),
            })
        })
    }
}

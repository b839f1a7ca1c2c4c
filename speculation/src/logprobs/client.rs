//! The scores of one session on their way from its target to its client.

use decode::{PromptScores, PromptScoring, Scores, Scoring};

use crate::message::Report;
use crate::relay::RelayError;

/// What was asked for, what is still to come, and what waits to be handed out.
#[derive(Debug)]
pub(crate) struct ClientScores {
    asked: Scoring,
    picks: Scores,
    /// Position in the prompt of the next score to come.
    next: u32,
    prompt: Scores,
}

impl ClientScores {
    pub(crate) fn new(asked: Scoring) -> Self {
        ClientScores {
            asked,
            picks: Scores::new(asked.picks.unwrap_or(0)),
            next: asked.prompt.map_or(0, |prompt| prompt.first),
            prompt: Scores::new(asked.prompt.map_or(0, |prompt| prompt.top)),
        }
    }

    /// What a target is to score from now on.
    pub(crate) fn wanted(&self) -> Scoring {
        let prompt = self.asked.prompt.map(|prompt| PromptScoring {
            first: self.next,
            ..prompt
        });
        Scoring {
            prompt,
            ..self.asked
        }
    }

    /// The position up to which the prompt's scores have arrived; 0 when none were asked for.
    pub(crate) fn prompt_next(&self) -> u32 {
        self.next
    }

    /// Whether all scores of a prompt of this length have arrived.
    pub(crate) fn is_prompt_done(&self, prompt_len: u32) -> bool {
        self.asked.prompt.is_none() || self.next >= prompt_len
    }

    /// Takes the scores of a report whose first `known` picks were known before. On an error nothing has changed.
    pub(crate) fn take(
        &mut self,
        report: &Report,
        known: usize,
        prompt_len: u32,
        vocab: u32,
    ) -> Result<(), RelayError> {
        let prompt = self.check_prompt(report, prompt_len, vocab)?;
        if let Some(top) = self.asked.picks
            && known < report.picks.len()
        {
            let scores = match &report.scores {
                Some(scores) if scores.len() == report.picks.len() => scores,
                Some(_) | None => return Err(RelayError::Scores("one for each token")),
            };
            if scores.id_outside(vocab).is_some() {
                return Err(RelayError::Scores("a token outside the vocabulary"));
            }
            if scores.top_n != top || !self.picks.append(&scores.slice(known..scores.len())) {
                return Err(RelayError::Scores("as many of the strongest as asked"));
            }
        }
        if let Some((next, fresh)) = prompt
            && self.prompt.append(&fresh)
        {
            self.next = next;
        }
        Ok(())
    }

    fn check_prompt(
        &self,
        report: &Report,
        prompt_len: u32,
        vocab: u32,
    ) -> Result<Option<(u32, Scores)>, RelayError> {
        let Some(prompt) = &report.prompt_scores else {
            return Ok(None);
        };
        let Some(asked) = self.asked.prompt else {
            return Err(RelayError::Scores("none of the prompt"));
        };
        let end = u64::from(prompt.first) + prompt.scores.len() as u64;
        if prompt.first > self.next || end > u64::from(prompt_len) {
            return Err(RelayError::Scores(
                "those of the prompt, one after the other",
            ));
        }
        if prompt.scores.top_n != asked.top || prompt.scores.id_outside(vocab).is_some() {
            return Err(RelayError::Scores("as many of the strongest as asked"));
        }
        let known = (self.next - prompt.first) as usize;
        let fresh = prompt.scores.slice(known..prompt.scores.len());
        Ok((!fresh.is_empty()).then_some((end as u32, fresh)))
    }

    /// Scores of committed tokens that were not handed out yet; `None` when none were asked for.
    pub(crate) fn poll_picks(&mut self) -> Option<Scores> {
        let top = self.asked.picks?;
        Some(core::mem::replace(&mut self.picks, Scores::new(top)))
    }

    /// Scores of the prompt that were not handed out yet.
    pub(crate) fn poll_prompt(&mut self) -> Option<PromptScores> {
        let asked = self.asked.prompt?;
        if self.prompt.is_empty() {
            return None;
        }
        let scores = core::mem::replace(&mut self.prompt, Scores::new(asked.top));
        Some(PromptScores {
            first: self.next - scores.len() as u32,
            scores,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use alloc::boxed::Box;
    use decode::{Basis, Score};

    fn scores(ranks: core::ops::Range<u32>) -> Scores {
        let mut scores = Scores::new(1);
        for rank in ranks {
            scores.push(&Score {
                logprob: -1.0,
                rank,
                top: alloc::vec![(rank, -0.5)],
            });
        }
        scores
    }

    fn report(first: u32, ranks: core::ops::Range<u32>, picks: core::ops::Range<u32>) -> Report {
        Report {
            picks: picks.clone().collect(),
            scores: Some(Box::new(scores(picks))),
            prompt_scores: Some(Box::new(PromptScores {
                first,
                scores: scores(ranks),
            })),
            ..Report::default()
        }
    }

    fn scored() -> ClientScores {
        ClientScores::new(Scoring {
            picks: Some(1),
            basis: Basis::Raw,
            prompt: Some(PromptScoring { top: 1, first: 1 }),
        })
    }

    #[test]
    fn what_arrives_twice_is_handed_out_once() {
        let mut scored = scored();
        scored.take(&report(1, 11..14, 5..8), 0, 6, 50).unwrap();
        scored.take(&report(2, 12..16, 6..10), 2, 6, 50).unwrap();
        assert_eq!(scored.poll_picks(), Some(scores(5..10)));
        assert_eq!(scored.poll_picks(), Some(scores(0..0)));
        let prompt = scored.poll_prompt().unwrap();
        assert_eq!((prompt.first, prompt.scores), (1, scores(11..16)));
        assert!(scored.is_prompt_done(6) && scored.poll_prompt().is_none());
        assert_eq!(scored.wanted().prompt.unwrap().first, 6);
    }

    #[test]
    fn what_does_not_fit_changes_nothing() {
        let mut scored = scored();
        let missing = Report {
            scores: None,
            ..report(1, 11..12, 5..6)
        };
        for wrong in [
            report(2, 12..13, 5..6),
            report(1, 11..17, 5..6),
            report(1, 11..12, 60..61),
            missing,
        ] {
            assert!(scored.take(&wrong, 0, 6, 50).is_err(), "{wrong:?}");
        }
        assert_eq!(scored.poll_picks(), Some(scores(0..0)));
        assert!(scored.poll_prompt().is_none() && !scored.is_prompt_done(6));
        let mut unasked = ClientScores::new(Scoring::default());
        assert!(unasked.take(&report(1, 1..2, 0..0), 0, 6, 50).is_err());
        assert!(unasked.is_prompt_done(6));
    }
}

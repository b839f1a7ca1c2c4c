//! How one session samples: its parameters, and what they need to remember of its text.

use super::drawn::Drawn;
use super::judge::JudgeNoise;
use super::params::{ParamError, SamplingParams};
use super::sampler::{Guess, NotFinite, Pick, Sampler};
use super::shaping::{Changes, Counts, Shaping};
use crate::rule::Judgement;
use crate::scores::{Basis, Score};
use crate::step::{Answer, Ask, History};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// How the tokens of one request are drawn. Equal settings on equal logits draw equal tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// Temperature, filters and seed.
    pub params: SamplingParams,
    /// Bias, penalties and masks.
    pub shaping: Shaping,
}

impl From<SamplingParams> for Sampling {
    fn from(params: SamplingParams) -> Sampling {
        Sampling {
            params,
            shaping: Shaping::default(),
        }
    }
}

impl Sampling {
    /// Checks every range, for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// The first parameter that is out of range or not a number.
    pub fn validate(&self, vocab: u32) -> Result<(), ParamError> {
        self.params.validate()?;
        self.shaping.validate(vocab)
    }
}

/// The sampling side of one session on one model: its settings, and token counts that follow its text.
///
/// Every answer is a pure function of logits, settings and history: the counts only save recounting.
#[derive(Debug, Clone, Default)]
pub struct SamplerState {
    sampling: Sampling,
    counts: Counts,
}

impl From<Sampling> for SamplerState {
    fn from(sampling: Sampling) -> SamplerState {
        SamplerState {
            sampling,
            counts: Counts::default(),
        }
    }
}

impl From<SamplingParams> for SamplerState {
    fn from(params: SamplingParams) -> SamplerState {
        Sampling::from(params).into()
    }
}

impl SamplerState {
    /// The settings.
    #[must_use]
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// What the session does to the row behind `history`.
    pub fn changes(&mut self, history: &History<'_>) -> Changes<'_> {
        self.counts.changes(&self.sampling.shaping, history)
    }
}

impl Sampler {
    /// Answers what a row was asked for, from its logits. `history` are the tokens down to the row's own.
    /// [`Ask::Nothing`] has no answer, and [`Ask::Judge`] none without its judgement: see [`Sampler::judge`].
    pub fn answer(
        &mut self,
        ask: Ask,
        logits: &[f32],
        state: &mut SamplerState,
        history: &History<'_>,
    ) -> Option<Answer> {
        let answer = match ask {
            Ask::Nothing | Ask::Judge { .. } => return None,
            Ask::Pick { score } => {
                let pick = self.pick_after(logits, state, history);
                pick.and_then(|pick| self.with_score(logits, state, history, (pick, score)))
            }
            Ask::Draw(most) => (self.draw_after(logits, state, history, usize::from(most)))
                .map(|drawn| Answer::Drawn(Box::new(drawn))),
            Ask::Guesses(most) => {
                let mut guesses = Vec::new();
                // The second best gives the first its margin.
                let asked = usize::from(most).max(2);
                self.guesses_after(logits, state, history, asked, &mut guesses)
                    .map(|()| {
                        guesses.truncate(usize::from(most));
                        Answer::Guesses(guesses)
                    })
            }
            Ask::Score { token, top } => self
                .score(logits, &SamplingParams::default(), token, usize::from(top))
                .map(|score| Answer::Score(Box::new(score))),
        };
        Some(answer.unwrap_or(Answer::NotFinite))
    }

    /// Answers [`Ask::Judge`] from the row's logits.
    pub fn judge(
        &mut self,
        (judgement, score): (&Judgement, Option<(Basis, u8)>),
        logits: &[f32],
        state: &mut SamplerState,
        history: &History<'_>,
    ) -> Answer {
        let params = state.sampling.params;
        let position = history.position();
        let pick = self.shaped(logits, state, history, |sampler, row| match judgement {
            Judgement::Rejection(drawn) => {
                let noise = JudgeNoise::at(&params, position);
                sampler.reject(row, &params, position, (drawn, &noise))
            }
            Judgement::Fuzzy { tolerance, guesses } => {
                sampler.tolerate(row, &params, position, (guesses, *tolerance))
            }
        });
        (pick.and_then(|pick| self.with_score(logits, state, history, (pick, score))))
            .unwrap_or(Answer::NotFinite)
    }

    /// The answer with this token, and with its score if one is wanted.
    fn with_score(
        &mut self,
        logits: &[f32],
        state: &mut SamplerState,
        history: &History<'_>,
        (mut pick, score): (Pick, Option<(Basis, u8)>),
    ) -> Result<Answer, NotFinite> {
        if let Some((basis, top)) = score {
            let scored = (basis, usize::from(top));
            let score = self.score_after(logits, state, history, pick.token, scored);
            pick.score = Some(Box::new(score?));
        }
        Ok(Answer::Pick(pick))
    }

    /// Up to `count` siblings that may follow `history`: [`Sampler::draw`] on the row as the session shapes it.
    ///
    /// # Errors
    /// As [`Sampler::draw`].
    pub fn draw_after(
        &mut self,
        logits: &[f32],
        state: &mut SamplerState,
        history: &History<'_>,
        count: usize,
    ) -> Result<Drawn, NotFinite> {
        let params = state.sampling.params;
        self.shaped(logits, state, history, |sampler, row| {
            sampler.draw(row, &params, history.position(), count)
        })
    }

    /// The token that follows `history`: [`Sampler::pick`] on the row as the session shapes it.
    ///
    /// # Errors
    /// As [`Sampler::pick`].
    pub fn pick_after(
        &mut self,
        logits: &[f32],
        state: &mut SamplerState,
        history: &History<'_>,
    ) -> Result<Pick, NotFinite> {
        let params = state.sampling.params;
        self.shaped(logits, state, history, |sampler, row| {
            sampler.pick(row, &params, history.position())
        })
    }

    /// The `k` best guesses at what follows `history`: [`Sampler::guesses`] on the row as the session shapes it.
    ///
    /// # Errors
    /// As [`Sampler::guesses`].
    pub fn guesses_after(
        &mut self,
        logits: &[f32],
        state: &mut SamplerState,
        history: &History<'_>,
        k: usize,
        out: &mut Vec<Guess>,
    ) -> Result<(), NotFinite> {
        let params = state.sampling.params;
        self.shaped(logits, state, history, |sampler, row| {
            sampler.guesses(row, &params, history.position(), k, out)
        })
    }

    /// The score of a token that follows `history`, with the `top` strongest tokens there.
    ///
    /// # Errors
    /// As [`Sampler::score`].
    pub fn score_after(
        &mut self,
        logits: &[f32],
        state: &mut SamplerState,
        history: &History<'_>,
        token: u32,
        (basis, top): (Basis, usize),
    ) -> Result<Score, NotFinite> {
        match basis {
            Basis::Raw => self.score(logits, &SamplingParams::default(), token, top),
            Basis::Processed | Basis::Tempered => {
                let params = match basis {
                    Basis::Tempered => SamplingParams {
                        temperature: state.sampling.params.temperature,
                        ..SamplingParams::default()
                    },
                    _ => state.sampling.params,
                };
                self.shaped(logits, state, history, |sampler, row| {
                    sampler.score(row, &params, token, top)
                })
            }
        }
    }

    fn shaped<T>(
        &mut self,
        logits: &[f32],
        state: &mut SamplerState,
        history: &History<'_>,
        then: impl FnOnce(&mut Sampler, &[f32]) -> T,
    ) -> T {
        // Taken out for the time, so that the sampler is free for the rest.
        let mut row = core::mem::take(&mut self.row);
        let SamplerState { sampling, counts } = state;
        let real = &logits[..logits.len().min(self.vocab())];
        let shaped = counts.shape(&sampling.shaping, history, real, &mut row);
        let result = then(self, shaped);
        self.row = row;
        result
    }
}

#[cfg(test)]
mod tests;

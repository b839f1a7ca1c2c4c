//! How one session samples: its parameters, and what they need to remember of its text.

use super::params::{ParamError, SamplingParams};
use super::sampler::{Guess, NotFinite, Pick, Sampler};
use super::score::{Basis, TokenScore};
use super::shaping::{Past, Shaping, Tally};

/// The sampling side of one session. Belongs to one worker and follows the session's text.
///
/// Every answer is a pure function of logits, parameters and past: the tally inside only spares counting again.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    params: SamplingParams,
    shaping: Shaping,
    tally: Tally,
}

impl From<SamplingParams> for Recipe {
    fn from(params: SamplingParams) -> Recipe {
        Recipe::new(params, Shaping::default())
    }
}

impl Recipe {
    /// A recipe for a session that has not begun.
    #[must_use]
    pub fn new(params: SamplingParams, shaping: Shaping) -> Recipe {
        Recipe {
            params,
            shaping,
            tally: Tally::default(),
        }
    }

    /// Checks every range, for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    ///
    /// The first parameter that is out of range or not a number.
    pub fn validate(&self, vocab: u32) -> Result<(), ParamError> {
        self.params.validate()?;
        self.shaping.validate(vocab)
    }
}

impl Sampler {
    /// The token that follows `past`: [`Sampler::pick`] on the row as the recipe shapes it.
    ///
    /// # Errors
    ///
    /// As [`Sampler::pick`].
    pub fn pick_after(
        &mut self,
        logits: &[f32],
        recipe: &mut Recipe,
        past: &Past<'_>,
    ) -> Result<Pick, NotFinite> {
        let params = recipe.params;
        self.shaped(logits, recipe, past, |sampler, row| {
            sampler.pick(row, &params, past.position())
        })
    }

    /// The `k` best guesses at what follows `past`: [`Sampler::guesses`] on the row as the recipe shapes it.
    ///
    /// # Errors
    ///
    /// As [`Sampler::guesses`].
    pub fn guesses_after(
        &mut self,
        logits: &[f32],
        recipe: &mut Recipe,
        past: &Past<'_>,
        k: usize,
        out: &mut Vec<Guess>,
    ) -> Result<(), NotFinite> {
        let params = recipe.params;
        self.shaped(logits, recipe, past, |sampler, row| {
            sampler.guesses(row, &params, past.position(), k, out)
        })
    }

    /// The score of a token that follows `past`, with the `top` strongest tokens there.
    ///
    /// # Errors
    ///
    /// As [`Sampler::score`].
    pub fn score_after(
        &mut self,
        logits: &[f32],
        recipe: &mut Recipe,
        past: &Past<'_>,
        token: u32,
        (basis, top): (Basis, usize),
    ) -> Result<TokenScore, NotFinite> {
        match basis {
            Basis::Raw => self.score(logits, &SamplingParams::default(), token, top),
            Basis::Processed => {
                let params = recipe.params;
                self.shaped(logits, recipe, past, |sampler, row| {
                    sampler.score(row, &params, token, top)
                })
            }
        }
    }

    fn shaped<T>(
        &mut self,
        logits: &[f32],
        recipe: &mut Recipe,
        past: &Past<'_>,
        then: impl FnOnce(&mut Sampler, &[f32]) -> T,
    ) -> T {
        // Taken out for the time, so that the sampler is free for the rest.
        let mut row = std::mem::take(&mut self.row);
        let Recipe { shaping, tally, .. } = recipe;
        let real = &logits[..logits.len().min(self.vocab())];
        let shaped = tally.shape(shaping, past, real, &mut row);
        let result = then(self, shaped);
        self.row = row;
        result
    }
}

#[cfg(test)]
mod tests;

//! Log-probabilities of tokens under one row of logits.
//!
//! The sum is taken as everywhere here, in sixteen lanes by token id, with `exp` and `ln` of [`math`]: a score has
//! the same bits on every machine and however the row was computed.

use super::filter::Distance;
use super::params::SamplingParams;
use super::sampler::{NotFinite, Sampler};
use super::scan;
use super::strongest;
use crate::math;
use crate::scores::Score;
use alloc::vec::Vec;

impl Sampler {
    /// The log-probability of `token` under the distribution that `params` draw from: the softmax of `l / T` over the
    /// tokens that survive the filters. At `T = 0`, which neither divides nor filters, the softmax of `l`. Together
    /// with those of the `top` strongest tokens, or of all if there are fewer; a token that does not survive has
    /// minus infinity, and masked tokens come last, lowest id first.
    ///
    /// # Errors
    ///
    /// [`NotFinite`] as for [`pick`](Sampler::pick).
    ///
    /// # Panics
    ///
    /// When `token` is outside the vocabulary.
    pub fn score(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        token: u32,
        top: usize,
    ) -> Result<Score, NotFinite> {
        let logits = &logits[..logits.len().min(self.vocab())];
        let params = match params.temperature {
            0.0 => &SamplingParams::default(),
            _ => params,
        };
        let width = self.width;
        let survey = scan::survey(width, logits).ok_or(NotFinite)?;
        let (strongest, _) = survey.strongest();
        let distance = Distance::new(strongest, params);
        let survivors = self.filter.apply(width, logits, &survey, params);
        let kept = self.filter.kept(survivors, distance);
        let mass = (self.filter).mass(width, logits, strongest, params, (survivors, distance));
        let log_mass = math::ln(mass);
        let logprob = |id: u32, logit: f32| {
            if kept.holds(id, logit) {
                (distance.of(logit) - log_mass) as f32
            } else {
                f32::NEG_INFINITY
            }
        };
        let own = logits[token as usize];
        let top = top.min(logits.len());
        let mut entries = Vec::with_capacity(top);
        for &key in (self.filter).strongest_sorted(width, logits, &survey, top) {
            let id = strongest::id(key);
            entries.push((id, logprob(id, logits[id as usize])));
        }
        let masked = (0_u32..)
            .zip(logits)
            .filter(|(_, l)| **l == f32::NEG_INFINITY);
        let missing = top - entries.len();
        entries.extend(masked.take(missing).map(|(id, _)| (id, f32::NEG_INFINITY)));
        Ok(Score {
            logprob: logprob(token, own),
            rank: rank(logits, token, own),
            top: entries,
        })
    }
}

/// One more than the number of tokens ahead of `token`, whose logit is `own`.
fn rank(logits: &[f32], token: u32, own: f32) -> u32 {
    let (before, behind) = logits.split_at(token as usize);
    let count = |found: usize| u32::try_from(found).unwrap_or(u32::MAX);
    let ahead = before.iter().filter(|&&logit| logit >= own).count()
        + behind.iter().filter(|&&logit| logit > own).count();
    count(ahead).saturating_add(1)
}

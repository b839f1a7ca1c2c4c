//! Judging guesses by another rule than equality: what a row answers to [`Ask::Judge`](crate::Ask::Judge).

use alloc::vec::Vec;

use super::drawn::Drawn;
use super::filter::Distance;
use super::noise::{Noise, NoiseKey, gumbel_of, uniform_of};
use super::params::SamplingParams;
use super::sampler::{NotFinite, Pick, Sampler};
use super::scan;
use crate::math;
use crate::rule::Surprisal;

/// The noise of one judgement.
#[derive(Debug, Clone, Copy)]
pub struct JudgeNoise {
    /// Of acceptances: the hash of the number of the draw.
    pub accept: NoiseKey,
    /// Of the draw from the last residual: the hash of 0.
    pub residual: NoiseKey,
}

impl JudgeNoise {
    /// That of an absolute position, which is independent of what a draft draws there.
    #[must_use]
    pub fn at(params: &SamplingParams, position: u32) -> JudgeNoise {
        let key = |noise| NoiseKey::of(noise, params.seed, params.choice, position);
        JudgeNoise {
            accept: key(Noise::Accept),
            residual: key(Noise::Residual),
        }
    }
}

impl Sampler {
    /// The token at absolute position `position`, given the siblings that a draft drew there: multi-round rejection
    /// sampling (SpecInfer, arXiv 2305.09781, algorithm 2; without replacement as in arXiv 2402.14160).
    ///
    /// With r = p at first, the siblings take turns in draw order: x is accepted with probability min(1, r(x)/q(x)); if it
    /// is rejected, r becomes norm(max(0, r - q)), and q goes on without x, normalised again. Behind the last one the token
    /// is drawn from r. p is the distribution that [`pick`](Sampler::pick) draws from, and so is that of the answer. A token
    /// that was rejected has r = 0, so that the answer is one of the siblings exactly if that one was accepted.
    ///
    /// At `T = 0` it is [`pick`](Sampler::pick).
    ///
    /// # Errors
    ///
    /// [`NotFinite`] as for [`pick`](Sampler::pick).
    pub fn reject(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        (drawn, noise): (&Drawn, &JudgeNoise),
    ) -> Result<Pick, NotFinite> {
        if params.temperature == 0.0 {
            return self.pick(logits, params, position);
        }
        let residual = self.distribution(logits, params)?;
        Ok(Pick {
            token: rounds(residual, drawn, noise),
            margin: 0.0,
            score: None,
        })
    }

    /// The probabilities that [`pick`](Sampler::pick) draws with.
    fn distribution(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
    ) -> Result<Vec<f64>, NotFinite> {
        let logits = &logits[..logits.len().min(self.vocab())];
        let survey = scan::survey(self.width, logits).ok_or(NotFinite)?;
        let (strongest, _) = survey.strongest();
        let distance = Distance::new(strongest, params);
        let survivors = (self.filter).apply(self.width, logits, &survey, params);
        let kept = self.filter.kept(survivors, distance);
        let weights = (0_u32..).zip(logits).map(|(id, &logit)| {
            if kept.holds(id, logit) {
                math::exp64(distance.of(logit))
            } else {
                0.0
            }
        });
        let mut all: Vec<f64> = weights.collect();
        let mass: f64 = all.iter().sum();
        for weight in &mut all {
            *weight /= mass;
        }
        Ok(all)
    }

    /// The token at absolute position `position`, given guesses and what their source finds of them (PyramidSD, arXiv
    /// 2510.12966, section 3): the one that [`pick`](Sampler::pick) picks, if that is a guess; otherwise the likeliest guess
    /// that survives the filters and whose log-probability is within `tolerance` of its source's; otherwise the one that is
    /// picked. Log-probabilities are those of [`Guess::q`](super::Guess::q). A guess that was tolerated has a margin below 0.
    ///
    /// # Errors
    ///
    /// [`NotFinite`] as for [`pick`](Sampler::pick).
    pub fn tolerate(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        (guesses, tolerance): (&[(u32, Surprisal)], f32),
    ) -> Result<Pick, NotFinite> {
        let picked = self.pick(logits, params, position)?;
        let is_guessed = guesses.iter().any(|&(id, _)| id == picked.token);
        if is_guessed || tolerance <= 0.0 {
            return Ok(picked);
        }
        let logits = &logits[..logits.len().min(self.vocab())];
        let survey = scan::survey(self.width, logits).ok_or(NotFinite)?;
        let (strongest, _) = survey.strongest();
        let filtered = match params.temperature {
            0.0 => &SamplingParams::default(),
            _ => params,
        };
        let distance = Distance::new(strongest, filtered);
        let survivors = (self.filter).apply(self.width, logits, &survey, filtered);
        let kept = self.filter.kept(survivors, distance);
        let log_mass = math::ln(self.whole_mass(logits, &survey, params));
        let mut best: Option<(u32, f64)> = None;
        for &(id, source) in guesses {
            let Some(&logit) = logits.get(id as usize) else {
                continue;
            };
            let logprob = distance.of(logit) - log_mass;
            let is_near = (logprob - f64::from(source.logprob())).abs() <= f64::from(tolerance);
            let is_better =
                best.is_none_or(|(other, most)| logprob > most || (logprob == most && id < other));
            if is_near && is_better && kept.holds(id, logit) {
                best = Some((id, logprob));
            }
        }
        let Some((token, _)) = best else {
            return Ok(picked);
        };
        let key = NoiseKey::new(params.seed, params.choice, position);
        let score = |id: u32| match params.temperature {
            0.0 => f64::from(logits[id as usize]),
            _ => distance.of(logits[id as usize]) + gumbel_of(key.hash(id)),
        };
        let behind = (score(token) - score(picked.token)) as f32;
        Ok(Pick {
            token,
            margin: behind.min(-f32::MIN_POSITIVE),
            score: None,
        })
    }
}

/// The rounds of [`Sampler::reject`] on the probabilities of the target.
fn rounds(mut r: Vec<f64>, drawn: &Drawn, noise: &JudgeNoise) -> u32 {
    let support: Vec<(u32, u16)> = drawn.support().collect();
    let mut is_out = alloc::vec![false; support.len()];
    let mut left: u32 = support.iter().map(|&(_, weight)| u32::from(weight)).sum();
    for (turn, &place) in (0_u32..).zip(drawn.order()) {
        let place = usize::from(place);
        let (token, weight) = support[place];
        let q = |weight: u16| f64::from(weight) / f64::from(left);
        let own = r.get(token as usize).copied().unwrap_or(0.0);
        if uniform_of(noise.accept.hash(turn)) * q(weight) < own {
            return token;
        }
        for (&(id, weight), _) in support.iter().zip(&is_out).filter(|(_, is_out)| !**is_out) {
            if let Some(r) = r.get_mut(id as usize) {
                *r = (*r - q(weight)).max(0.0);
            }
        }
        let mass: f64 = r.iter().sum();
        if mass <= 0.0 {
            // r and q are equal but for rounding, so that there is nothing to reject.
            return token;
        }
        for r in &mut r {
            *r /= mass;
        }
        is_out[place] = true;
        left -= u32::from(weight);
    }
    let mut rest = uniform_of(noise.residual.hash(0));
    let mut last = 0;
    for (id, &r) in (0_u32..).zip(&r).filter(|&(_, &r)| r > 0.0) {
        last = id;
        rest -= r;
        if rest < 0.0 {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greedy() -> SamplingParams {
        SamplingParams {
            temperature: 0.0,
            ..SamplingParams::default()
        }
    }

    #[test]
    fn at_temperature_zero_the_strongest_token_is_the_answer_whatever_was_drawn() {
        let mut sampler = Sampler::new(3);
        let drawn = Drawn::from_parts(alloc::vec![0, 2], alloc::vec![9, 1], alloc::vec![0, 1]);
        let drawn = drawn.expect("it is in order");
        let noise = JudgeNoise::at(&greedy(), 5);
        let judged = sampler.reject(&[0.1, 0.3, 0.2], &greedy(), 5, (&drawn, &noise));
        assert_eq!(judged.expect("finite").token, 1);
    }

    #[test]
    fn a_token_that_was_rejected_is_never_the_answer() {
        let mut sampler = Sampler::new(4);
        let logits = [0.0, -1.0, -2.0, -0.5];
        // Token 1 has probability 0.174.
        let drawn = Drawn::from_parts(
            alloc::vec![0, 1, 2],
            alloc::vec![1, 65535, 300],
            alloc::vec![1, 2],
        );
        let drawn = drawn.expect("it is in order");
        let mut seen = [0_u32; 4];
        for seed in 0..4000 {
            let params = SamplingParams {
                seed,
                ..SamplingParams::default()
            };
            let noise = JudgeNoise::at(&params, 0);
            let judged = sampler.reject(&logits, &params, 0, (&drawn, &noise));
            let token = judged.expect("finite").token as usize;
            let is_first = uniform_of(noise.accept.hash(0)) * (65535.0 / 65836.0) < 0.1745;
            assert!(token != 1 || is_first, "seed {seed}");
            seen[token] += 1;
        }
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
    }

    #[test]
    fn a_guess_is_tolerated_where_both_models_find_it_about_as_likely() {
        let mut sampler = Sampler::new(3);
        // Log-probabilities of about -0.30, -1.80 and -2.30.
        let logits = [0.0, -1.5, -2.0];
        let mut token = |guesses: &[(u32, f32)], tolerance| {
            let guesses: Vec<_> = (guesses.iter())
                .map(|&(id, logprob)| (id, Surprisal::from_logprob(logprob)))
                .collect();
            let picked = sampler.tolerate(&logits, &greedy(), 0, (&guesses, tolerance));
            let picked = picked.expect("finite");
            (picked.token, picked.margin < 0.0)
        };
        assert_eq!(token(&[(1, -1.9)], 0.2), (1, true));
        assert_eq!(token(&[(1, -1.9)], 0.05), (0, false));
        assert_eq!(token(&[(1, -1.9)], 0.0), (0, false));
        assert_eq!(token(&[(2, -2.3), (1, -1.9)], 0.2), (1, true));
        assert_eq!(token(&[(1, -1.9), (0, -9.0)], 0.2), (0, false));
        assert_eq!(token(&[(9, -1.9)], 50.0), (0, false));
    }
}

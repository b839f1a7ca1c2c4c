//! The one sampler: what the target commits and what drafts guess come from it.

use super::filter::{Distance, Filter, Survivors};
use super::noise::{NoiseKey, gumbel_of};
use super::params::SamplingParams;
use super::ranking::{Change, Ranking, Scored};
use super::scan::{self, BLOCK, Gate, Survey, Width};
use super::strongest;
use crate::math;
use crate::scores::Score;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The sampled token of one row.
#[derive(Debug, Clone, PartialEq)]
pub struct Pick {
    /// The token id.
    pub token: u32,
    /// How far its noisy score lies above the second best one, in units of `l / T`
    /// (at `T = 0` of `l`); infinite if no other token survived. Below 0 for a guess that was
    /// tolerated in the best one's place ([`Fuzzy`](crate::Rule::Fuzzy)); 0 where another
    /// rule than the noisy scores decided.
    pub margin: f32,
    /// How likely the model found it, if that was asked for.
    pub score: Option<Box<Score>>,
}

/// One of a model's best tokens for a position.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// The token id.
    pub token: u32,
    /// The model's probability of it: the softmax of `l / T` over the whole vocabulary
    /// (at `T = 0` of `l`), before any filter.
    pub q: f32,
    /// How far its noisy score lies above the best other one: for the first guess the lead
    /// over the second, for every other one minus its distance to the first. Infinite for an
    /// only guess.
    pub margin: f32,
    /// Softmax of the scores over the guesses that were returned.
    pub weight: f32,
}

/// A row of logits cannot be sampled from: it holds a NaN or plus infinity, or no
/// finite number at all. The session that it belongs to cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model's logits are not finite: the session cannot go on")]
pub struct NotFinite;

/// Picks tokens. Holds only scratch memory: every answer depends on the
/// arguments alone. One per thread.
#[derive(Debug)]
pub struct Sampler {
    vocab_limit: u32,
    pub(super) width: Width,
    pub(super) filter: Filter,
    pub(super) ranking: Ranking,
    /// A row as a request shapes it.
    pub(super) row: Vec<f32>,
}

impl Sampler {
    /// A sampler for a vocabulary whose ids lie below `vocab_limit`. Logits at
    /// and above it are padding and never looked at.
    pub fn new(vocab_limit: u32) -> Sampler {
        Sampler::with_width(vocab_limit, Width::detect())
    }

    pub(super) fn with_width(vocab_limit: u32, width: Width) -> Sampler {
        Sampler {
            vocab_limit,
            width,
            filter: Filter::default(),
            ranking: Ranking::default(),
            row: Vec::new(),
        }
    }

    /// The token at absolute position `position`: the argmax of
    /// `l_i / T + Gumbel(seed, choice, position, i)` over the tokens that survive
    /// the filters, ties to the lowest id; the plain argmax at `T = 0`.
    /// `params` must have passed [`SamplingParams::validate`].
    ///
    /// A logit of minus infinity masks its token.
    ///
    /// # Errors
    ///
    /// [`NotFinite`] if a logit is NaN or plus infinity, or none is finite.
    pub fn pick(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
    ) -> Result<Pick, NotFinite> {
        self.rank(logits, params, position, 2)?;
        let ranked = self.ranking.entries();
        let best = ranked.first().ok_or(NotFinite)?;
        let margin = match ranked.get(1) {
            Some(second) => (best.score - second.score) as f32,
            None => f32::INFINITY,
        };
        Ok(Pick {
            token: best.token,
            margin,
            score: None,
        })
    }

    /// The `k` best tokens by the same noisy score, best first, into `out` (which
    /// is cleared).
    ///
    /// If fewer survive the filters, the strongest tokens just outside them
    /// follow: where draft and target differ a little, the target's own filter
    /// may have kept what the draft's cut off (under `top_k = 1` that is the only
    /// second guess there is). They get no noise, and their score is the smaller
    /// of the last survivor's and their logit's distance. So there are fewer than
    /// `k` only if there are fewer unmasked tokens.
    ///
    /// # Errors
    ///
    /// [`NotFinite`] as for [`pick`](Sampler::pick); `out` is then empty.
    pub fn guesses(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        k: usize,
        out: &mut Vec<Guess>,
    ) -> Result<(), NotFinite> {
        out.clear();
        let survey = self.rank(logits, params, position, k)?;
        let ranked = self.ranking.entries();
        let Some(best) = ranked.first() else {
            return Ok(());
        };
        for entry in ranked {
            let score = (entry.score - best.score) as f32;
            out.push(Guess {
                token: entry.token,
                q: 0.0,
                margin: score,
                weight: 0.0,
            });
        }
        if out.len() < k && params.temperature > 0.0 {
            self.guess_outsiders(self.real(logits), &survey, params, k, out);
        }
        let mut sum = 0.0;
        for guess in out.iter_mut() {
            guess.weight = math::exp(guess.margin);
            sum += guess.weight;
        }
        for guess in out.iter_mut() {
            guess.weight /= sum;
        }
        self.weigh_up(logits, &survey, params, out);
        let second = out.get(1).map_or(f32::NEG_INFINITY, |guess| guess.margin);
        if let Some(first) = out.first_mut() {
            first.margin = -second;
        }
        Ok(())
    }

    /// Fills in the model's own probabilities.
    fn weigh_up(
        &mut self,
        logits: &[f32],
        survey: &Survey,
        params: &SamplingParams,
        out: &mut [Guess],
    ) {
        let logits = self.real(logits);
        let mass = self.whole_mass(logits, survey, params);
        let (strongest, _) = survey.strongest();
        let distance = Distance::new(strongest, &unfiltered(params));
        for guess in out {
            let weight = math::exp64(distance.of(logits[guess.token as usize]));
            guess.q = (weight / mass) as f32;
        }
    }

    /// The weights of all tokens before any filter, relative to the strongest one's. `logits` are without padding.
    pub(super) fn whole_mass(
        &mut self,
        logits: &[f32],
        survey: &Survey,
        params: &SamplingParams,
    ) -> f64 {
        let (strongest, _) = survey.strongest();
        let unfiltered = unfiltered(params);
        let every = (Survivors::Near, Distance::new(strongest, &unfiltered));
        (self.filter).mass(self.width, logits, strongest, &unfiltered, every)
    }

    /// Fills `out` up to `k` with the strongest tokens that it does not hold.
    fn guess_outsiders(
        &mut self,
        logits: &[f32],
        survey: &Survey,
        params: &SamplingParams,
        k: usize,
        out: &mut Vec<Guess>,
    ) {
        let inside = out.len();
        let mut score = out.last().map_or(0.0, |guess| guess.margin);
        let (strongest, _) = survey.strongest();
        let distance = Distance::new(strongest, params);
        for &key in self.filter.strongest_sorted(self.width, logits, survey, k) {
            let token = strongest::id(key);
            if out.len() == k {
                break;
            }
            if out[..inside].iter().all(|guess| guess.token != token) {
                score = score.min(distance.of(logits[token as usize]) as f32);
                out.push(Guess {
                    token,
                    q: 0.0,
                    margin: score,
                    weight: 0.0,
                });
            }
        }
    }

    /// Token ids lie below it.
    pub(super) fn vocab(&self) -> usize {
        self.vocab_limit as usize
    }

    /// The logits without padding.
    pub(super) fn real<'a>(&self, logits: &'a [f32]) -> &'a [f32] {
        &logits[..logits.len().min(self.vocab())]
    }

    /// Leaves the `k` best tokens in the ranking.
    pub(super) fn rank(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        k: usize,
    ) -> Result<Survey, NotFinite> {
        let logits = self.real(logits);
        let k = k.min(logits.len());
        self.ranking.restart(k);
        let survey = scan::survey(self.width, logits).ok_or(NotFinite)?;
        if k > 0 && params.temperature > 0.0 {
            self.rank_noisy(logits, &survey, params, position);
        } else {
            self.rank_plain(logits, &survey, k);
        }
        Ok(survey)
    }

    fn rank_plain(&mut self, logits: &[f32], survey: &Survey, k: usize) {
        let keys = self.filter.strongest_sorted(self.width, logits, survey, k);
        for &key in keys {
            let token = strongest::id(key);
            let score = f64::from(logits[token as usize]);
            self.ranking.offer(Scored { token, score });
        }
    }

    fn rank_noisy(
        &mut self,
        logits: &[f32],
        survey: &Survey,
        params: &SamplingParams,
        position: u32,
    ) {
        let (strongest, _) = survey.strongest();
        let mut race = Race {
            logits,
            key: NoiseKey::new(params.seed, params.choice, position),
            distance: Distance::new(strongest, params),
            strongest,
            temperature: params.temperature,
            gate: None,
            ranking: &mut self.ranking,
        };
        match self.filter.apply(self.width, logits, survey, params) {
            Survivors::Near => race.run_all(self.width, survey),
            Survivors::Listed => {
                for &key in self.filter.listed() {
                    race.consider(strongest::id(key));
                }
            }
        }
    }
}

/// The temperature of these parameters and no filter; 1 for 0, where nothing is divided.
fn unfiltered(params: &SamplingParams) -> SamplingParams {
    SamplingParams {
        temperature: match params.temperature {
            0.0 => 1.0,
            temperature => temperature,
        },
        ..SamplingParams::default()
    }
}

/// One position's tokens competing for the ranking.
struct Race<'a> {
    logits: &'a [f32],
    key: NoiseKey,
    distance: Distance,
    strongest: f32,
    temperature: f32,
    /// Follows the ranking's bar; none while the ranking has room for any token.
    gate: Option<Gate>,
    ranking: &'a mut Ranking,
}

impl Race<'_> {
    /// The strongest token of each lane goes first, because a high bar early on
    /// spares logarithms; then every token in blocks, of which only those that
    /// hold one that may still win are looked into.
    fn run_all(&mut self, width: Width, survey: &Survey) {
        let (_, first) = survey.strongest();
        self.consider(first);
        for (&logit, &token) in survey.logits.iter().zip(&survey.ids) {
            if logit > f32::NEG_INFINITY {
                self.consider(token);
            }
        }
        let floor = self.distance.cutoff();
        let filtered = floor > f32::MIN;
        let mut from = 0;
        loop {
            // Under min-p few tokens survive, and logits tell them apart sooner
            // than hashes do.
            let next = match self.gate {
                Some(gate) if !filtered => {
                    scan::next_block(width, self.logits, from, self.key, gate)
                }
                _ => scan::next_strong_block(width, self.logits, from, floor),
            };
            let Some(block) = next else { break };
            let start = block * BLOCK;
            self.consider_all(start..start + BLOCK);
            from = block + 1;
        }
        let tail = self.logits.len() - self.logits.len() % BLOCK;
        self.consider_all(tail..self.logits.len());
    }

    fn consider_all(&mut self, tokens: core::ops::Range<usize>) {
        for token in tokens {
            self.consider(token as u32);
        }
    }

    /// Scores a token, with logarithms only if its hash may still win.
    #[inline]
    fn consider(&mut self, token: u32) {
        let logit = self.logits[token as usize];
        let hash = self.key.hash(token);
        if self.gate.is_some_and(|gate| !gate.passes(logit, hash)) {
            return;
        }
        let distance = self.distance.of(logit);
        if !self.distance.allows(distance) {
            return;
        }
        let score = distance + gumbel_of(hash);
        if self.ranking.offer(Scored { token, score }) == Change::Entered {
            let bar = self.ranking.bar();
            self.gate = bar.and_then(|bar| Gate::new(self.strongest, self.temperature, bar));
        }
    }
}

#[cfg(test)]
mod tests;

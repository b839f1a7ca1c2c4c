//! How often a smaller model's guesses hold a larger model's token, position by position.

use anyhow::Result;
use decode::math;
use decode::sampling::{Guess, NotFinite, Sampler, SamplingParams};
use serde::Serialize;

/// The numbers of guesses that are reported.
pub(super) const RANKS: [usize; 4] = [1, 2, 4, 8];
/// The temperatures that are reported.
pub(super) const TEMPERATURES: [f32; 3] = [0.0, 0.7, 1.0];

/// What was counted for one pair of models at one temperature.
#[derive(Clone, Debug, Default)]
pub(super) struct Counter {
    positions: u64,
    shared: [u64; RANKS.len()],
    independent: [u64; RANKS.len()],
    overlap: f64,
}

/// Shares of the positions of one pair of models at one temperature; by number of guesses 1, 2, 4, 8.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Agreement {
    /// The model that guesses.
    pub(super) smaller: &'static str,
    /// The model whose token counts.
    pub(super) larger: &'static str,
    pub(super) temperature: f32,
    /// Both models see the same noise, as in every request.
    pub(super) shared_noise: [f64; RANKS.len()],
    /// The smaller model's most probable tokens against the larger model's sample, as where noise is not shared.
    pub(super) independent_noise: [f64; RANKS.len()],
    /// One minus the total variation distance: what no rule can beat with one guess. At T = 0 it is `[0]` above.
    pub(super) one_minus_tv: f64,
}

impl Counter {
    /// The shares, for positions that were counted at all.
    pub(super) fn agreement(
        &self,
        smaller: &'static str,
        larger: &'static str,
        temperature: f32,
    ) -> Agreement {
        let positions = self.positions.max(1) as f64;
        let share = |counts: [u64; RANKS.len()]| counts.map(|count| count as f64 / positions);
        Agreement {
            smaller,
            larger,
            temperature,
            shared_noise: share(self.shared),
            independent_noise: share(self.independent),
            one_minus_tv: self.overlap / positions,
        }
    }

    /// Counts one position.
    ///
    /// `token` is the larger model's, `guesses` the smaller one's under the same noise and `ranking` without any,
    /// `overlap` the mass that both distributions share.
    pub(super) fn count(&mut self, token: u32, guesses: &[Guess], ranking: &[Guess], overlap: f64) {
        self.positions += 1;
        for (counts, list) in [
            (&mut self.shared, guesses),
            (&mut self.independent, ranking),
        ] {
            let rank = list.iter().position(|guess| guess.token == token);
            for (count, most) in counts.iter_mut().zip(RANKS) {
                *count += u64::from(rank.is_some_and(|rank| rank < most));
            }
        }
        self.overlap += overlap;
    }
}

/// One model's view of one position.
#[derive(Default)]
pub(super) struct View {
    /// By temperature: the token and the guesses under the request's noise.
    pub(super) tokens: [u32; TEMPERATURES.len()],
    pub(super) guesses: [Vec<Guess>; TEMPERATURES.len()],
    /// By temperature: the distribution; a point at `T = 0`, where it stays empty.
    probabilities: [Vec<f32>; TEMPERATURES.len()],
    /// Nats that the text's token costs.
    pub(super) cost: f64,
}

impl View {
    /// Fills the view in.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub(super) fn look(
        &mut self,
        sampler: &mut Sampler,
        logits: &[f32],
        seed: u64,
        position: u32,
        text: u32,
    ) -> Result<()> {
        let most = RANKS[RANKS.len() - 1];
        for (at, temperature) in TEMPERATURES.into_iter().enumerate() {
            let params = SamplingParams {
                temperature,
                seed,
                ..SamplingParams::default()
            };
            // The first guess is the token that this model would commit.
            sampler.guesses(logits, &params, position, most, &mut self.guesses[at])?;
            self.tokens[at] = self.guesses[at].first().ok_or(NotFinite)?.token;
            if temperature > 0.0 {
                softmax(logits, temperature, &mut self.probabilities[at]);
            }
            // The rounding of f32 is far below what a mean over thousands of tokens shows.
            if temperature == 1.0 {
                let probability = self.probabilities[at].get(text as usize);
                let probability = f64::from(probability.copied().unwrap_or(0.0));
                self.cost = -math::ln(probability.max(f64::from(f32::MIN_POSITIVE)));
            }
        }
        Ok(())
    }

    /// Counts this (smaller) model's guesses against a larger model's tokens, for each temperature.
    pub(super) fn count_against(
        &self,
        larger: &View,
        counters: &mut [Counter; TEMPERATURES.len()],
    ) {
        for (at, counter) in counters.iter_mut().enumerate() {
            let overlap = if TEMPERATURES[at] > 0.0 {
                overlap(&self.probabilities[at], &larger.probabilities[at])
            } else {
                f64::from(u8::from(self.tokens[at] == larger.tokens[at]))
            };
            // The guesses at T = 0 are the most probable tokens at any temperature.
            counter.count(
                larger.tokens[at],
                &self.guesses[at],
                &self.guesses[0],
                overlap,
            );
        }
    }
}

/// Softmax of `logits / temperature`.
fn softmax(logits: &[f32], temperature: f32, out: &mut Vec<f32>) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    out.clear();
    out.extend(logits.iter().map(|l| math::exp((l - most) / temperature)));
    let sum: f64 = out.iter().map(|weight| f64::from(*weight)).sum();
    let scale = (1.0 / sum) as f32;
    for weight in out {
        *weight *= scale;
    }
}

/// The mass that two distributions share, one minus their total variation distance.
fn overlap(one: &[f32], other: &[f32]) -> f64 {
    one.iter()
        .zip(other)
        .map(|(a, b)| f64::from(a.min(*b)))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(logits: &[f32], seed: u64, position: u32) -> View {
        let mut sampler = Sampler::new(logits.len() as u32);
        let mut view = View::default();
        view.look(&mut sampler, logits, seed, position, 1).unwrap();
        view
    }

    #[test]
    fn a_model_agrees_with_itself() {
        let logits = [0.5, 1.5, -0.25, 1.0];
        let mut counters: [Counter; 3] = Default::default();
        for position in 0..200 {
            let same = view(&logits, 7, position);
            same.count_against(&same, &mut counters);
        }
        for (counter, temperature) in counters.iter().zip(TEMPERATURES) {
            let found = counter.agreement("draft", "target", temperature);
            assert_eq!(found.shared_noise, [1.0; 4], "T = {temperature}");
            assert!((found.one_minus_tv - 1.0).abs() < 1e-6);
        }
        // With noise of its own, the first guess is right only as often as the mode is drawn.
        let independent = counters[2]
            .agreement("draft", "target", 1.0)
            .independent_noise;
        assert!((0.3..0.65).contains(&independent[0]), "{independent:?}");
        assert_eq!(independent[2], 1.0);
    }

    #[test]
    fn overlap_and_cost_are_those_of_the_softmax() {
        let (one, other) = (view(&[0.0, 0.0], 1, 1), view(&[0.0, 3.0_f32.ln()], 1, 1));
        assert!((one.cost - std::f64::consts::LN_2).abs() < 1e-6);
        assert!((other.cost - (4.0_f64 / 3.0).ln()).abs() < 1e-6);
        let mut counters: [Counter; 3] = Default::default();
        one.count_against(&other, &mut counters);
        let found = counters[2].agreement("draft", "target", 1.0).one_minus_tv;
        assert!((found - 0.75).abs() < 1e-6, "{found}");
    }

    #[test]
    fn ranks_are_counted_up_to_theirs() {
        let guess = |token| Guess {
            token,
            q: 0.0,
            margin: 0.0,
            weight: 0.0,
        };
        let guesses: Vec<Guess> = (0..8).map(guess).collect();
        let mut counter = Counter::default();
        for token in [0, 1, 3, 7, 9] {
            counter.count(token, &guesses, &guesses[..1], 0.0);
        }
        let found = counter.agreement("draft", "target", 1.0);
        assert_eq!(found.shared_noise, [0.2, 0.4, 0.6, 0.8]);
        assert_eq!(found.independent_noise, [0.2; 4]);
    }
}

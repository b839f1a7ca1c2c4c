//! What a draft draws its guesses from under [`Rule::Rejection`](crate::Rule::Rejection).

use alloc::vec::Vec;

use super::filter::Distance;
use super::noise::{Noise, NoiseKey, gumbel_of};
use super::params::SamplingParams;
use super::sampler::{NotFinite, Sampler};
use super::scan;
use super::strongest;
use crate::math;

/// The most tokens that a draft draws from at one position.
pub const MAX_SUPPORT: usize = 32;

/// The sparse distribution q of a draft at one position, and the siblings that it drew from it, in draw order.
///
/// Siblings are drawn without replacement: the first from q, each further one from q without those before it, normalised
/// again. The weights are whole numbers and the draft draws from exactly them, so that draft and target compute with
/// the same q.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// Ascending.
    ids: Vec<u32>,
    /// One for each id, above 0. The probability of a token is its weight over the sum of all.
    weights: Vec<u16>,
    /// Places in the two, each at most once.
    order: Vec<u8>,
}

impl Drawn {
    /// From its parts: `order` are places in the other two. `None` unless there are at most [`MAX_SUPPORT`] tokens, as many
    /// as weights, ids ascend, weights are above 0, at least one token was drawn and none twice.
    #[must_use]
    pub fn from_parts(ids: Vec<u32>, weights: Vec<u16>, order: Vec<u8>) -> Option<Drawn> {
        let is_sparse = ids.len() <= MAX_SUPPORT && ids.len() == weights.len();
        let is_sorted = ids.windows(2).all(|pair| pair[0] < pair[1]);
        let is_positive = weights.iter().all(|&weight| weight > 0);
        // A bit for each place that was drawn; places are below 32.
        let mut places = 0_u32;
        let is_drawn = !order.is_empty()
            && order.iter().all(|&place| {
                let is_new = usize::from(place) < ids.len() && places >> place & 1 == 0;
                places |= 1_u32.checked_shl(place.into()).unwrap_or(0);
                is_new
            });
        (is_sparse && is_sorted && is_positive && is_drawn).then_some(Drawn {
            ids,
            weights,
            order,
        })
    }

    /// The drawn tokens, in draw order.
    pub fn tokens(&self) -> impl ExactSizeIterator<Item = u32> + '_ {
        self.order.iter().map(|&place| self.ids[usize::from(place)])
    }

    /// The tokens that could have been drawn, with their weights, ids ascending.
    pub fn support(&self) -> impl ExactSizeIterator<Item = (u32, u16)> + '_ {
        self.ids.iter().copied().zip(self.weights.iter().copied())
    }

    /// The draws as places in [`Drawn::support`].
    #[must_use]
    pub fn order(&self) -> &[u8] {
        &self.order
    }
}

impl Sampler {
    /// Draws up to `count` siblings for absolute position `position`, with noise of their own: not the noise that picks and
    /// guesses share, nor that which they are judged with.
    ///
    /// They come from the [`MAX_SUPPORT`] strongest tokens that survive the filters, by the softmax of `l / T` in steps of
    /// 1/65535 of the strongest. Drawing without replacement is taking the largest `ln w + Gumbel` (Gumbel-top-k, arXiv
    /// 1903.06059). At `T = 0` the strongest tokens are taken in their order.
    ///
    /// # Errors
    ///
    /// [`NotFinite`] as for [`pick`](Sampler::pick).
    pub fn draw(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        position: u32,
        count: usize,
    ) -> Result<Drawn, NotFinite> {
        let logits = &logits[..logits.len().min(self.vocab())];
        let softened = match params.temperature {
            0.0 => &SamplingParams::default(),
            _ => params,
        };
        let survey = scan::survey(self.width, logits).ok_or(NotFinite)?;
        let (strongest, _) = survey.strongest();
        let distance = Distance::new(strongest, softened);
        let survivors = (self.filter).apply(self.width, logits, &survey, softened);
        let kept = self.filter.kept(survivors, distance);
        let key = NoiseKey::of(Noise::Draft, params.seed, params.choice, position);
        let mut support: Vec<(u32, u16, f64)> = Vec::with_capacity(MAX_SUPPORT);
        let strongest_first =
            (self.filter).strongest_sorted(self.width, logits, &survey, MAX_SUPPORT);
        for &token in strongest_first {
            let id = strongest::id(token);
            let logit = logits[id as usize];
            let weight = (math::exp64(distance.of(logit)) * 65535.0 + 0.5) as u16;
            if weight > 0 && kept.holds(id, logit) {
                let score = match params.temperature {
                    // As strong as it comes in the list.
                    0.0 => -(support.len() as f64),
                    _ => math::ln(f64::from(weight)) + gumbel_of(key.hash(id)),
                };
                support.push((id, weight, score));
            }
        }
        support.sort_unstable_by_key(|&(id, ..)| id);
        let mut order: Vec<u8> = (0_u8..).take(support.len()).collect();
        // A stable sort: ties go to the lowest id.
        order.sort_by(|&a, &b| {
            let score = |place: u8| support[usize::from(place)].2;
            score(b).total_cmp(&score(a))
        });
        order.truncate(count.max(1));
        let ids = support.iter().map(|&(id, ..)| id).collect();
        let weights = support.iter().map(|&(_, weight, _)| weight).collect();
        Ok(Drawn {
            ids,
            weights,
            order,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_have_been_drawn_is_accepted() {
        let of = |ids: &[u32], weights: &[u16], order: &[u8]| {
            Drawn::from_parts(ids.to_vec(), weights.to_vec(), order.to_vec())
        };
        let good = of(&[2, 5, 9], &[1, 65535, 3], &[1, 0]).expect("it is in order");
        assert_eq!(good.tokens().collect::<Vec<_>>(), [5, 2]);
        for (ids, weights, order) in [
            (&[][..], &[][..], &[][..]),
            (&[1], &[1], &[]),
            (&[1, 2], &[1], &[0]),
            (&[2, 1], &[1, 1], &[0]),
            (&[1, 1], &[1, 1], &[0]),
            (&[1, 2], &[1, 0], &[0]),
            (&[1, 2], &[1, 1], &[2]),
            (&[1, 2], &[1, 1], &[200]),
            (&[1, 2], &[1, 1], &[1, 1]),
        ] {
            assert_eq!(
                of(ids, weights, order),
                None,
                "{ids:?} {weights:?} {order:?}"
            );
        }
        let many: Vec<u32> = (0..33).collect();
        assert_eq!(of(&many, &[1; 33], &[0]), None);
    }

    #[test]
    fn at_most_thirty_two_of_the_survivors_are_drawn_from() {
        let logits: Vec<f32> = (0..100).map(|id| -(id as f32) * 0.05).collect();
        let mut sampler = Sampler::new(100);
        let params = SamplingParams::default();
        let drawn = sampler.draw(&logits, &params, 7, 4).expect("finite");
        assert_eq!((drawn.support().len(), drawn.tokens().len()), (32, 4));
        assert!(drawn.support().map(|(id, _)| id).eq(0..32));
        let filtered = SamplingParams { top_k: 3, ..params };
        let drawn = sampler.draw(&logits, &filtered, 7, 4).expect("finite");
        assert_eq!((drawn.support().len(), drawn.tokens().len()), (3, 3));
        let parts = (
            drawn.support().map(|(id, _)| id).collect(),
            drawn.support().map(|(_, weight)| weight).collect(),
        );
        let again = Drawn::from_parts(parts.0, parts.1, drawn.order().to_vec());
        assert_eq!(again, Some(drawn));
        let greedy = SamplingParams {
            temperature: 0.0,
            ..params
        };
        let drawn = sampler.draw(&logits, &greedy, 7, 3).expect("finite");
        assert!(drawn.tokens().eq([0, 1, 2]));
    }
}

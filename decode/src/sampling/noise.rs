//! Gumbel noise as a function: no state, no stream, no order of draws.

use crate::math;

/// 2^64 divided by the golden ratio, made odd: the increment of SplitMix64
/// (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// An odd constant unrelated to [`STEP`], so that positions do not walk the same
/// lattice as token ids.
const SPREAD: u64 = 0xd134_2543_de82_ef95;

/// Kinds of noise that are independent of the shared noise of [`NoiseKey::new`] and of one another. Rejection sampling
/// (arXiv 2211.17192, section 2.3) is exact only if the draws of the draft, the acceptances and the draws from the residual
/// are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// What a draft draws its guesses with.
    Draft,
    /// What decides whether a guess is accepted.
    Accept,
    /// What a token is drawn from a residual with.
    Residual,
}

impl Noise {
    /// The first hexadecimal digits of the fractions of pi: numbers without a pattern.
    fn salt(self) -> u64 {
        match self {
            Noise::Draft => 0x243f_6a88_85a3_08d3,
            Noise::Accept => 0x1319_8a2e_0370_7344,
            Noise::Residual => 0xa409_3822_299f_31d0,
        }
    }
}

/// The noise of one position: everything but the token id, digested once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoiseKey(u64);

impl NoiseKey {
    /// The key of absolute position `position` in completion `choice` of a
    /// request with this seed. Two rounds of mixing, so that seeds, choices and
    /// positions that differ in one bit have unrelated keys.
    pub fn new(seed: u64, choice: u32, position: u32) -> NoiseKey {
        let place = u64::from(choice) << 32 | u64::from(position);
        let seed = mix(seed.wrapping_add(STEP));
        NoiseKey(mix(seed.wrapping_add(place.wrapping_mul(SPREAD))))
    }

    /// The key of another kind of noise at the same place: unrelated to [`NoiseKey::new`] and to those of other kinds.
    pub fn of(noise: Noise, seed: u64, choice: u32, position: u32) -> NoiseKey {
        let NoiseKey(shared) = NoiseKey::new(seed, choice, position);
        NoiseKey(mix(shared ^ noise.salt()))
    }

    /// 64 uniform bits for a token. The *smaller* the integer, the larger the
    /// noise: see [`gumbel_of`].
    #[inline(always)]
    pub fn hash(self, token: u32) -> u64 {
        mix(self.0.wrapping_add(u64::from(token).wrapping_mul(STEP)))
    }
}

/// Pelle Evensen's "moremur" (2019), a bijection of 64-bit integers in which
/// every output bit depends on every input bit; it was searched for counters as
/// input, which is what token ids are.
#[inline(always)]
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 27)).wrapping_mul(0x3c79_ac49_2ba7_b653);
    let x = (x ^ (x >> 33)).wrapping_mul(0x1c69_b3f7_4ac4_ae35);
    x ^ (x >> 27)
}

/// The Gumbel variate that belongs to a hash: `-ln(-ln(1 - x))` with
/// `x = (hash + 1/2) / 2^64`, in `(-3.82, 45.06)`, strictly decreasing in exact
/// arithmetic.
///
/// Large noise, which is what decides, belongs to small integers: there `x` has
/// 64 bits of relative precision, and so has the exponential variate
/// `e = -ln(1 - x)`, which is close to `x`. `x` is never 0 and never 1.
pub fn gumbel_of(hash: u64) -> f64 {
    const UNIT: f64 = 1.0 / 18_446_744_073_709_551_616.0;
    let exponential = if hash < 1 << 63 {
        let x = (hash as f64 + 0.5) * UNIT;
        let y = 1.0 - x;
        // ln(1 - x) from the logarithm of the rounded difference, corrected by
        // the ratio of the wanted to the rounded x (Higham, Accuracy and
        // Stability of Numerical Algorithms, section 1.14.1).
        if y == 1.0 {
            x
        } else {
            -math::ln(y) * (x / (1.0 - y))
        }
    } else {
        -math::ln((!hash as f64 + 0.5) * UNIT)
    };
    -math::ln(exponential)
}

/// The uniform variate in `(0, 1)` that belongs to a hash: the middle of one of 2^52 equal parts.
pub fn uniform_of(hash: u64) -> f64 {
    const UNIT: f64 = 1.0 / 4_503_599_627_370_496.0;
    ((hash >> 12) as f64 + 0.5) * UNIT
}

/// The noise of one token at one position. See [`NoiseKey`] and [`gumbel_of`].
pub fn gumbel(seed: u64, choice: u32, position: u32, token: u32) -> f64 {
    gumbel_of(NoiseKey::new(seed, choice, position).hash(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tails_are_finite_and_the_values_fall() {
        assert!((gumbel_of(0) - 65.0 * std::f64::consts::LN_2).abs() < 1e-12);
        assert!((gumbel_of(u64::MAX) + (65.0 * std::f64::consts::LN_2).ln()).abs() < 1e-12);
        let mut last = f64::INFINITY;
        for shift in 0..16_384_u64 {
            let noise = gumbel_of(shift << 50 | shift);
            assert!(noise < last, "at {shift}");
            last = noise;
        }
        // No step where the two formulas meet.
        let below = gumbel_of((1 << 63) - 1);
        let above = gumbel_of(1 << 63);
        assert!((below - above).abs() < 1e-15);
    }

    #[test]
    fn kinds_of_noise_have_nothing_in_common() {
        let keys = |position| {
            [
                NoiseKey::new(9, 0, position),
                NoiseKey::of(Noise::Draft, 9, 0, position),
                NoiseKey::of(Noise::Accept, 9, 0, position),
                NoiseKey::of(Noise::Residual, 9, 0, position),
            ]
        };
        let kinds = keys(0).len();
        for one in 0..kinds {
            for other in 0..one {
                let draws = 20_000;
                let sum: f64 = (0..draws)
                    .map(|position| {
                        let uniform = |kind: usize| uniform_of(keys(position)[kind].hash(3)) - 0.5;
                        12.0 * uniform(one) * uniform(other)
                    })
                    .sum();
                let correlation = sum / f64::from(draws);
                assert!(correlation.abs() < 0.03, "{one} and {other}: {correlation}");
            }
        }
    }

    #[test]
    fn uniforms_lie_inside() {
        assert!(uniform_of(0) > 0.0 && uniform_of(u64::MAX) < 1.0);
        assert!((uniform_of(1 << 63) - 0.5).abs() < 1e-15);
    }

    #[test]
    fn one_flipped_bit_of_any_argument_flips_half_of_the_hash() {
        let base = (0x0123_4567_89ab_cdef_u64, 3_u32, 1000_u32, 77_u32);
        let hash = |(seed, choice, position, token): (u64, u32, u32, u32)| {
            NoiseKey::new(seed, choice, position).hash(token)
        };
        let mut total = 0;
        let mut cases = 0;
        let mut check = |other| {
            let flipped = (hash(base) ^ hash(other)).count_ones();
            assert!((10..=54).contains(&flipped), "{flipped} bits for {other:?}");
            total += flipped;
            cases += 1;
        };
        for bit in 0..64 {
            check((base.0 ^ 1 << bit, base.1, base.2, base.3));
        }
        for bit in 0..32 {
            check((base.0, base.1 ^ 1 << bit, base.2, base.3));
            check((base.0, base.1, base.2 ^ 1 << bit, base.3));
            check((base.0, base.1, base.2, base.3 ^ 1 << bit));
        }
        let mean = f64::from(total) / f64::from(cases);
        assert!((mean - 32.0).abs() < 1.5, "mean {mean}");
    }
}

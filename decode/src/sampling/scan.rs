//! The passes over a whole row of logits, compiled once per vector width.
//!
//! Each pass is plain element-wise code that the compiler vectorises. Every
//! operation in it is an integer operation or one correctly rounded IEEE
//! operation on one element (or on one of sixteen virtual lanes), so the widths
//! give the same bits.

use super::noise::NoiseKey;
use crate::math;
use alloc::vec;
use alloc::vec::Vec;

/// The virtual lanes of every reduction: token id modulo 16.
pub(super) const LANES: usize = 16;

/// How many tokens are judged together before a candidate among them is looked at.
pub(super) const BLOCK: usize = 32;

/// The vector width that this machine runs at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// Whatever the compilation target guarantees.
    Portable,
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 512-bit vectors.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Width {
    /// The widest one that this machine has.
    pub(super) fn detect() -> Width {
        Width::all()
            .pop()
            .expect("the portable width is always there")
    }

    /// Every one that this machine has, narrowest first.
    pub(super) fn all() -> Vec<Width> {
        #[allow(unused_mut, reason = "only some architectures have more than one")]
        let mut widths = vec![Width::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if math::has_avx2() {
                widths.push(Width::Avx2);
            }
            if math::has_avx512() {
                widths.push(Width::Avx512);
            }
        }
        widths
    }
}

/// Defines `$name(width, ...)`, which runs `$body` as compiled for that width.
macro_rules! by_width {
    ($(#[$doc:meta])* $name:ident = $body:ident($($argument:ident: $type:ty),*) -> $result:ty) => {
        $(#[$doc])*
        pub(super) fn $name(width: Width, $($argument: $type),*) -> $result {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($argument: $type),*) -> $result {
                $body($($argument),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,avx512f,avx512dq,avx512vl,avx512bw")]
            fn avx512($($argument: $type),*) -> $result {
                $body($($argument),*)
            }
            #[cfg_attr(
                target_arch = "x86_64",
                allow(unsafe_code, reason = "a `Width` beyond portable exists only where it was detected")
            )]
            match width {
                Width::Portable => $body($($argument),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Width::all` found the features of this variant on this machine.
                Width::Avx2 => unsafe { avx2($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Width::all` found the features of this variant on this machine.
                Width::Avx512 => unsafe { avx512($($argument),*) },
            }
        }
    };
}

/// The strongest token of each lane: sixteen strong tokens for the price of one pass.
#[derive(Debug, Clone, Copy)]
pub(super) struct Survey {
    /// The strongest logit of each lane; minus infinity if the lane has none.
    pub(super) logits: [f32; LANES],
    /// The lowest id that has it.
    pub(super) ids: [u32; LANES],
}

impl Survey {
    /// The strongest token of all, the lowest id among equals.
    pub(super) fn strongest(&self) -> (f32, u32) {
        let mut best = (self.logits[0], self.ids[0]);
        for (&logit, &id) in self.logits.iter().zip(&self.ids) {
            if logit > best.0 || (logit == best.0 && id < best.1) {
                best = (logit, id);
            }
        }
        best
    }
}

by_width! {
    /// Looks at every logit once. `None` if one is NaN or plus infinity, or none is finite.
    survey = survey_body(logits: &[f32]) -> Option<Survey>
}

#[inline(always)]
fn survey_body(logits: &[f32]) -> Option<Survey> {
    let mut strongest = [f32::NEG_INFINITY; LANES];
    let mut blocks = [0_u32; LANES];
    let mut sound = [true; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for (block, chunk) in (0_u32..).zip(chunks) {
        for lane in 0..LANES {
            let better = chunk[lane] > strongest[lane];
            strongest[lane] = if better { chunk[lane] } else { strongest[lane] };
            blocks[lane] = if better { block } else { blocks[lane] };
            sound[lane] &= chunk[lane] <= f32::MAX;
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        if logit > strongest[lane] {
            strongest[lane] = logit;
            blocks[lane] = chunks.len() as u32;
        }
        sound[lane] &= logit <= f32::MAX;
    }
    let mut ids = [0; LANES];
    for lane in 0..LANES {
        ids[lane] = blocks[lane]
            .wrapping_mul(LANES as u32)
            .wrapping_add(lane as u32);
    }
    let survey = Survey {
        logits: strongest,
        ids,
    };
    (sound == [true; LANES] && survey.strongest().0 > f32::NEG_INFINITY).then_some(survey)
}

/// Decides from a hash, without a logarithm, that a token cannot win.
///
/// A token with score `g - d` (`g` its noise, `d = (strongest - l) / T` its
/// distance from the strongest logit) reaches a score `bar` only if
/// `g >= bar + d`. As `x <= -ln(1 - x)` for the noise `g = -ln(-ln(1 - x))`, that
/// needs `x <= exp(-(bar + d))`. The right side is bounded from above by taking
/// 2^y linear between powers of two (Schraudolph, Neural Computation 11, 1999),
/// which costs one multiplication and one conversion; the left side is rounded
/// down to 24 bits. Roundings of the single-precision arithmetic are covered by
/// a slack, so a token that is refused is *certain* to lose.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gate {
    strongest: f32,
    /// log2(e) / T.
    slope: f32,
    /// log2(e) * (slack - bar), shifted to where 24 bits of hash are an integer
    /// and to the exponent bias of f32: 24 + 127.
    level: f32,
}

impl Gate {
    /// In nats: half a unit in the last place of the shifted exponent, below 256.
    const SLACK: f64 = 1e-3;

    /// Four roundings to single precision, 2^-24 each, with room. Where a token
    /// is close to the bar, its distance is close to minus the bar, so the error
    /// is in proportion to the bar (and below [`Gate::SLACK`] for small ones).
    const RELATIVE_SLACK: f64 = 2e-6;

    /// Tokens that may reach `bar`, a score relative to the strongest logit.
    /// `None` for a bar so low that single precision cannot hold it.
    pub(super) fn new(strongest: f32, temperature: f32, bar: f64) -> Option<Gate> {
        let slope = core::f64::consts::LOG2_E / f64::from(temperature);
        let slack = Gate::SLACK + Gate::RELATIVE_SLACK * bar.abs();
        let level = (core::f64::consts::LOG2_E * (slack - bar)) as f32 + 151.0;
        // A slope cut off at the largest number lets more through, never less.
        let slope = (slope as f32).min(f32::MAX);
        level.is_finite().then_some(Gate {
            strongest,
            slope,
            level,
        })
    }

    /// Whether a token with this logit and hash may reach the bar.
    #[inline(always)]
    pub(super) fn passes(&self, logit: f32, hash: u64) -> bool {
        let exponent = self.level - (self.strongest - logit) * self.slope;
        // At the low end only a hash of 24 zero bits passes, at the high end any.
        let bits = (exponent.clamp(1.0, 254.0) * 8_388_608.0) as i32;
        ((hash >> 40) as i32 as f32) <= f32::from_bits(bits as u32)
    }
}

by_width! {
    /// The first block at or behind block `from` in which a token passes the gate.
    /// Covers whole blocks of [`BLOCK`] tokens only; the tail is the caller's.
    next_block = next_block_body(logits: &[f32], from: usize, key: NoiseKey, gate: Gate) -> Option<usize>
}

#[inline(always)]
fn next_block_body(logits: &[f32], from: usize, key: NoiseKey, gate: Gate) -> Option<usize> {
    let (blocks, _) = logits.as_chunks::<BLOCK>();
    for (index, block) in blocks.iter().enumerate().skip(from) {
        let first = (index as u32).wrapping_mul(BLOCK as u32);
        let mut any = 0_u32;
        for (offset, &logit) in block.iter().enumerate() {
            let hash = key.hash(first.wrapping_add(offset as u32));
            any |= u32::from(gate.passes(logit, hash));
        }
        if any != 0 {
            return Some(index);
        }
    }
    None
}

by_width! {
    /// The first block at or behind block `from` with a logit of at least `floor`.
    /// Covers whole blocks of [`BLOCK`] tokens only; the tail is the caller's.
    next_strong_block = next_strong_block_body(logits: &[f32], from: usize, floor: f32) -> Option<usize>
}

#[inline(always)]
fn next_strong_block_body(logits: &[f32], from: usize, floor: f32) -> Option<usize> {
    let (blocks, _) = logits.as_chunks::<BLOCK>();
    for (index, block) in blocks.iter().enumerate().skip(from) {
        let mut any = 0_u32;
        for &logit in block {
            any |= u32::from(logit >= floor);
        }
        if any != 0 {
            return Some(index);
        }
    }
    None
}

by_width! {
    /// Writes `exp((l - strongest) / T)` for every token and returns the sum: one
    /// double-precision accumulator per lane in the order of the ids, then pairs
    /// of lanes (0 with 8, 1 with 9, and so on, halving).
    weigh = weigh_body(logits: &[f32], strongest: f32, temperature: f32, weights: &mut [f32]) -> f64
}

#[inline(always)]
fn weigh_body(logits: &[f32], strongest: f32, temperature: f32, weights: &mut [f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let (slots, rest_slots) = weights.as_chunks_mut::<LANES>();
    for (chunk, slots) in chunks.iter().zip(slots) {
        for lane in 0..LANES {
            slots[lane] = weight(chunk[lane], strongest, temperature);
            sums[lane] += f64::from(slots[lane]);
        }
    }
    for (lane, (&logit, slot)) in rest.iter().zip(rest_slots).enumerate() {
        *slot = weight(logit, strongest, temperature);
        sums[lane] += f64::from(*slot);
    }
    reduce(sums)
}

/// A token's probability relative to the strongest token's.
#[inline(always)]
pub(super) fn weight(logit: f32, strongest: f32, temperature: f32) -> f32 {
    math::exp((logit - strongest) / temperature)
}

/// The fixed order in which the lanes of a sum are joined.
#[inline(always)]
pub(super) fn reduce(mut sums: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}

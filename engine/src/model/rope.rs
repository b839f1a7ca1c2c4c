//! Rotary position embedding tables (arXiv 2104.09864), with the Llama 3.1 frequency scaling.

use std::sync::OnceLock;

use decode::math;

use crate::config::{ModelConfig, Rope, RopeScaling};

/// Positions whose angles are computed at once.
const BLOCK: usize = 64;

/// Cosines and sines by absolute position, computed when a position of their block is first asked for: a model may know far
/// more positions than its texts ever have.
pub(crate) struct RopeTable {
    /// Angle per position of each pair of a head, in radians.
    frequencies: Vec<f32>,
    /// Each `[position of the block][cosine or sine][pair of a head]`.
    blocks: Vec<OnceLock<Box<[f32]>>>,
}

impl RopeTable {
    /// The tables of a model for positions `0..positions`, in the order in which layers name them; `factors`, if there are any,
    /// are what the frequencies of the first are divided by.
    pub(crate) fn all(
        config: &ModelConfig,
        factors: Option<&[f32]>,
        positions: usize,
    ) -> Vec<RopeTable> {
        let table = |rope, factors| RopeTable::new(rope, factors, config.rotary_dim, positions);
        let local = config.local_rope.map(|rope| table(rope, None));
        [table(config.rope, factors)]
            .into_iter()
            .chain(local)
            .collect()
    }

    /// The table for positions `0..positions`, which turns `width` elements of a head; `factors`, if there are any, are what
    /// frequencies are divided by.
    pub(crate) fn new(
        rope: Rope,
        factors: Option<&[f32]>,
        width: usize,
        positions: usize,
    ) -> RopeTable {
        let mut frequencies = frequencies(rope, width);
        for (frequency, factor) in frequencies.iter_mut().zip(factors.unwrap_or_default()) {
            *frequency /= factor;
        }
        let blocks = (0..positions.div_ceil(BLOCK)).map(|_| OnceLock::new());
        RopeTable {
            frequencies,
            blocks: blocks.collect(),
        }
    }

    /// Cosines and sines of one position, one for each pair.
    #[inline]
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let (block, within) = (position / BLOCK, position % BLOCK);
        let block = self.blocks[block].get_or_init(|| self.block(block * BLOCK));
        block[within * 2 * half..][..2 * half].split_at(half)
    }

    #[cold]
    fn block(&self, begin: usize) -> Box<[f32]> {
        let half = self.frequencies.len();
        let mut block = vec![0.0; BLOCK * 2 * half];
        for (at, turns) in block.chunks_exact_mut(2 * half).enumerate() {
            let position = (begin + at) as f32;
            let (cos, sin) = turns.split_at_mut(half);
            for ((cos, sin), frequency) in cos.iter_mut().zip(sin).zip(&self.frequencies) {
                // The product is rounded to f32 as in the models' training code.
                let turn = math::sin_cos(f64::from(position * frequency));
                (*sin, *cos) = (turn.0 as f32, turn.1 as f32);
            }
        }
        block.into_boxed_slice()
    }
}

/// Angle per position of each pair of a head, `theta^(-2i / width)`, scaled; in radians.
fn frequencies(rope: Rope, width: usize) -> Vec<f32> {
    let log = math::ln(f64::from(rope.theta));
    (0..width / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / width as f32;
            1.0 / math::exp64(log * f64::from(exponent)) as f32
        })
        .map(|frequency| match rope.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_positions,
            } => {
                let original = original_positions as f32;
                let wavelength = 2.0 * core::f32::consts::PI / frequency;
                if wavelength < original / high_freq_factor {
                    frequency
                } else if wavelength > original / low_freq_factor {
                    frequency / factor
                } else {
                    let smooth = (original / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
        })
        .collect()
}

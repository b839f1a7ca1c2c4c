//! Rotary position embedding tables (arXiv 2104.09864), with the Llama 3.1 frequency scaling.

use decode::math;

use crate::config::{Rope, RopeScaling};

/// Cosines and sines by absolute position, each `[position][head_dim / 2]`.
pub(crate) struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl RopeTable {
    /// The table for positions `0..positions`; `factors`, if there are any, are what frequencies are divided by.
    pub(crate) fn new(
        rope: Rope,
        factors: Option<&[f32]>,
        head_dim: usize,
        positions: usize,
    ) -> RopeTable {
        let mut frequencies = frequencies(rope, head_dim);
        for (frequency, factor) in frequencies.iter_mut().zip(factors.unwrap_or_default()) {
            *frequency /= factor;
        }
        let half = frequencies.len();
        let mut table = RopeTable {
            half,
            cos: Vec::with_capacity(positions * half),
            sin: Vec::with_capacity(positions * half),
        };
        for position in 0..positions {
            for frequency in &frequencies {
                // The product is rounded to f32 as in the models' training code.
                let (sin, cos) = math::sin_cos(f64::from(position as f32 * frequency));
                table.cos.push(cos as f32);
                table.sin.push(sin as f32);
            }
        }
        table
    }

    /// Cosines and sines of one position, each `head_dim / 2` long.
    #[inline]
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// Angle per position of each pair of a head, `theta^(-2i / head_dim)`, scaled; in radians.
fn frequencies(rope: Rope, head_dim: usize) -> Vec<f32> {
    let log = math::ln(f64::from(rope.theta));
    (0..head_dim / 2)
        .map(|i| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / math::exp64(log * f64::from(exponent)) as f32
        })
        .map(|frequency| match rope.scaling {
            RopeScaling::None => frequency,
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

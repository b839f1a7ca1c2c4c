//! Rotary position embedding tables (arXiv 2104.09864), with the Llama 3.1 frequency scaling.

use decode::math;

use crate::config::{ModelConfig, Rope, RopeScaling};

/// Cosines and sines by absolute position, each `[position][pair of a head]`.
pub(crate) struct RopeTable {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
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

    /// Cosines and sines of one position, one for each pair.
    #[inline]
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
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

//! Random rows and parameters for tests, extreme ones among them.

use super::params::SamplingParams;
use super::shaping::Shaping;
use std::vec::Vec;

/// A small stream of test values; unrelated to the noise under test.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        // xorshift64* (Vigna, 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// Roughly normal.
    pub(super) fn bell(&mut self) -> f64 {
        (0..6).map(|_| self.unit() - 0.5).sum::<f64>() * 1.4
    }

    pub(super) fn params(&mut self) -> SamplingParams {
        let few = self.below(40) as u32;
        let share = self.unit() as f32;
        SamplingParams {
            temperature: self.of(&[0.0, 1e-45, 1e-30, 1e-3, 0.3, 0.7, 1.0, 1.0, 1.0, 2.0, 100.0]),
            top_k: self.of(&[0, 0, 0, 1, 2, 5, 17, few, 1000, u32::MAX]),
            top_p: self.of(&[
                1.0,
                1.0,
                1.0,
                0.999_999_94,
                0.99,
                0.9,
                0.5,
                1e-30,
                share.max(1e-6),
            ]),
            min_p: self.of(&[0.0, 0.0, 0.0, 1e-40, 1e-6, 0.01, 0.1, 1.0, share]),
            seed: self.of(&[0, 1, u64::MAX, few.into(), 0x8000_0000_0000_0000]),
            choice: self.of(&[0, 0, 1, u32::MAX]),
        }
    }

    pub(super) fn logits(&mut self) -> Vec<f32> {
        let length = self.of(&[1_u64, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100, 256, 300]) as usize;
        let scale = self.of(&[0.0, 1e-30, 0.1, 1.0, 3.0, 10.0, 1000.0, 1e30]);
        let shift = self.of(&[0.0, 0.0, -50.0, 1e6, -1e30]);
        let mut logits: Vec<f32> = (0..length)
            .map(|_| (self.bell() * scale + shift) as f32)
            .collect();
        match self.below(8) {
            // Many exact ties, both zeros among them.
            0 => logits
                .iter_mut()
                .for_each(|l| *l = (*l).clamp(-2.0, 2.0).round() * 0.5),
            // Masked tokens.
            1 => {
                for logit in logits.iter_mut().skip(1) {
                    if self.below(2) == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
            // The ends of the number range.
            2 => {
                for logit in &mut logits {
                    if self.below(4) == 0 {
                        *logit = self.of(&[f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0, 1e-45]);
                    }
                }
            }
            _ => {}
        }
        logits
    }

    /// What a request may do to rows of `vocab` logits.
    pub(super) fn shaping(&mut self, vocab: usize) -> Shaping {
        let biased = self.of(&[0, 0, 1, 3, vocab as u64]);
        let mut bias: Vec<(u32, f32)> = Vec::new();
        for _ in 0..biased {
            let id = self.below(vocab as u64) as u32;
            if bias.iter().all(|&(other, _)| other != id) {
                let odd = (self.bell() * 5.0) as f32;
                bias.push((
                    id,
                    self.of(&[0.0, -0.0, 100.0, -100.0, odd.clamp(-100.0, 100.0)]),
                ));
            }
        }
        let share = self.unit() as f32;
        Shaping {
            bias,
            repetition_penalty: self.of(&[1.0, 1.0, 1.1, 0.5, 10.0, 1e-30, share.max(0.1)]),
            presence_penalty: self.of(&[0.0, 0.0, 2.0, -2.0, share]),
            frequency_penalty: self.of(&[0.0, 0.0, 2.0, -2.0, 0.1, -share]),
            min_tokens: self.below(8) as u32,
            // Never every token: something has to be left to pick.
            stop_ids: (0..self.below(4).min(vocab as u64 - 1) as u32).collect(),
        }
    }

    /// A text with tokens that recur.
    pub(super) fn text(&mut self, len: usize, vocab: usize) -> Vec<u32> {
        let few = vocab.min(12) as u64;
        (0..len).map(|_| self.below(few) as u32).collect()
    }
}

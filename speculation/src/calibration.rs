//! What a contributor's confidence is worth: from the noisy margin of a guess to the probability that the target
//! agrees, learned from commits.
//!
//! Under shared noise the probability a draft gives a token says little; how clearly the token won the draft's own
//! noisy draw says much. The weight of a guess is the softmax of the noisy scores of the guesses at that position.

use decode::math;

/// What is known of a guess when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    rank: u8,
    bucket: u8,
}

const RANKS: usize = 5;
const BUCKETS: usize = 12;

impl Feature {
    /// A guess of this rank (0 is the best at its position) and weight (`0..=1`).
    pub fn new(rank: usize, weight: f32) -> Self {
        let rank = match rank {
            0..=2 => rank as u8,
            3..=4 => 3,
            _ => 4,
        };
        // Buckets are even in log-odds, where both a sure and a hopeless guess have room.
        let weight = weight.clamp(1e-4, 1.0 - 1e-4);
        let odds = math::ln(f64::from(weight / (1.0 - weight))) as f32;
        let bucket = ((odds + 6.0).clamp(0.0, 11.99)) as u8;
        Feature { rank, bucket }
    }

    /// The best guess at its position, which led the second by `margin` (logits over temperature).
    pub fn from_margin(margin: f32) -> Self {
        Feature::new(0, 1.0 / (1.0 + math::exp(-margin)))
    }
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    came_true: f32,
    total: f32,
}

/// Learned frequencies by feature. One for each source of guesses, shared by all sessions.
#[derive(Clone, Debug)]
pub struct Calibration {
    cells: [[Cell; BUCKETS]; RANKS],
}

/// A cell forgets beyond this many observations, so that it follows a change of subject.
const MEMORY: f32 = 4000.0;

/// What the prior counts for, in observations.
const PRIOR: f32 = 6.0;

impl Default for Calibration {
    fn default() -> Self {
        let mut cells = [[Cell {
            came_true: 0.0,
            total: PRIOR,
        }; BUCKETS]; RANKS];
        for row in &mut cells {
            for (bucket, cell) in row.iter_mut().enumerate() {
                let odds = bucket as f32 - 5.5;
                cell.came_true = PRIOR * 0.9 / (1.0 + math::exp(-odds));
            }
        }
        Calibration { cells }
    }
}

impl Calibration {
    /// Estimated probability that a guess with this feature comes true, given that its parent does.
    pub fn probability(&self, feature: Feature) -> f32 {
        let cell = &self.cells[usize::from(feature.rank)][usize::from(feature.bucket)];
        (cell.came_true / cell.total).clamp(0.001, 0.999)
    }

    /// Learns whether a guess came true whose parent did.
    pub fn observe(&mut self, feature: Feature, came_true: Outcome) {
        let cell = &mut self.cells[usize::from(feature.rank)][usize::from(feature.bucket)];
        if cell.total >= MEMORY {
            cell.came_true *= 0.5;
            cell.total *= 0.5;
        }
        cell.total += 1.0;
        if came_true == Outcome::True {
            cell.came_true += 1.0;
        }
    }
}

/// Whether a guess came true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The target picked it.
    True,
    /// The target picked another token.
    False,
}

impl Outcome {
    /// Whether `guess` is what was `picked`.
    pub fn of(guess: u32, picked: u32) -> Self {
        if guess == picked {
            Outcome::True
        } else {
            Outcome::False
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_near_the_weight_and_learns_the_frequency() {
        let mut calibration = Calibration::default();
        let sure = Feature::new(0, 0.95);
        let weak = Feature::new(3, 0.02);
        assert!(calibration.probability(sure) > 0.7);
        assert!(calibration.probability(weak) < 0.1);
        for turn in 0..1000 {
            let outcome = if turn % 5 == 0 {
                Outcome::True
            } else {
                Outcome::False
            };
            calibration.observe(sure, outcome);
        }
        assert!((calibration.probability(sure) - 0.2).abs() < 0.02);
    }

    #[test]
    fn any_weight_has_a_cell() {
        let calibration = Calibration::default();
        for weight in [f32::NAN, -1.0, 0.0, 0.5, 1.0, 7.0] {
            for rank in [0, 1, 7, 1000] {
                let p = calibration.probability(Feature::new(rank, weight));
                assert!((0.0..=1.0).contains(&p));
            }
        }
    }
}

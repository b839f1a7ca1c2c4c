//! Profiles that somebody supposes instead of recording them.

use decode::math;
use decode::sampling::NoiseKey;
use serde::{Deserialize, Serialize};

use crate::synthetic::path::scale;
use crate::synthetic::position::{Gap, Position, QualifierPick};
use crate::synthetic::profile::{Class, Q_BUCKETS};

/// Positions that are drawn from what is stated.
const POSITIONS: usize = 1 << 13;
/// The lead of every pick, in nats: nothing is said about it.
const LEAD: f32 = 1.0;
/// No guess has less than this share of the weight.
const LEAST_SHARE: f64 = 1e-4;

/// What is supposed about one temperature. It says nothing about confidence: a guess's weight is the share of its place.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stated {
    /// The share of positions where the target's token is the draft's first guess, its second, and so on; what is missing
    /// to 1 is the share where it is none of them.
    draft: Vec<f64>,
    /// How often the qualifier picks the target's token: where the draft's first guess is that token, and where it is not.
    qualifier: [f64; 2],
    /// How many positions in a row the draft's first guess is right, on average, once it is; as independent draws would
    /// have it if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    streak: Option<f64>,
}

/// A sequence of draws in `0..1`.
struct Dice(u32);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(1);
        // 53 bits, so that every value is exact.
        scale(NoiseKey::new(0, 0, self.0).hash(0), 1 << 53) as f64 / (1_u64 << 53) as f64
    }
}

impl Stated {
    /// Draws positions with `guesses` guesses each; in words what is wrong with the statement.
    pub(super) fn draw(&self, temperature: f32, guesses: usize) -> Result<Class, String> {
        self.check(guesses)?;
        let right = self.draft.first().copied().unwrap_or(0.0);
        let (stay, come) = self.chain(right)?;
        let shares: Vec<f64> = (0..guesses)
            .map(|place| self.draft.get(place).copied().unwrap_or(0.0))
            .map(|share| share.max(LEAST_SHARE))
            .collect();
        let gaps = gaps(&shares);
        let mut dice = Dice(0);
        let mut is_right = dice.roll() < right;
        let mut positions = Vec::with_capacity(POSITIONS);
        for _ in 0..POSITIONS {
            let draft = if is_right {
                Some(0)
            } else {
                self.lower(&mut dice, right)
            };
            let agrees = self.qualifier[usize::from(!is_right)];
            let qualifier = if dice.roll() < agrees {
                QualifierPick::Targets
            } else if is_right {
                QualifierPick::Other
            } else {
                // Where both are wrong they are wrong together.
                QualifierPick::Drafts(0)
            };
            positions.push(Position {
                draft,
                qualifier,
                qualifier_lead: Gap::from_nats(LEAD),
                target_lead: Gap::from_nats(LEAD),
                gaps: gaps.clone(),
            });
            is_right = dice.roll() < if is_right { stay } else { come };
        }
        Ok(Class {
            temperature,
            positions,
            q: (shares.iter().map(|&share| [share as f32; Q_BUCKETS])).collect(),
        })
    }

    fn check(&self, guesses: usize) -> Result<(), String> {
        if self.draft.len() > guesses {
            return Err(format!(
                "states shares of {} places where there are {guesses} guesses",
                self.draft.len()
            ));
        }
        let mut shares = self.draft.iter().chain(&self.qualifier);
        if !shares.all(|share| (0.0..=1.0).contains(share)) {
            return Err("states a share that is not a number from 0 to 1".to_owned());
        }
        let sum: f64 = self.draft.iter().sum();
        if sum > 1.0 + 1e-9 {
            return Err(format!(
                "states shares of the draft's places that are {sum}, more than 1"
            ));
        }
        Ok(())
    }

    /// How likely the first guess is right where it was right at the position before, and where it was not.
    fn chain(&self, right: f64) -> Result<(f64, f64), String> {
        let Some(streak) = self.streak else {
            return Ok((right, right));
        };
        let most = 1e6;
        if !(1.0..=most).contains(&streak) {
            return Err(format!(
                "states a streak of {streak}; allowed are numbers from 1 to {most}"
            ));
        }
        // Right positions end as often as they begin: right / streak = (1 - right) * come.
        let come = right / streak / (1.0 - right).max(f64::MIN_POSITIVE);
        if right < 1.0 && come > 1.0 {
            return Err(format!(
                "states a streak of {streak}, which is too short for a first guess that is right in {right}"
            ));
        }
        let stay = if right < 1.0 { 1.0 - 1.0 / streak } else { 1.0 };
        Ok((stay, come.min(1.0)))
    }

    /// The place of the target's token where the first guess is wrong.
    fn lower(&self, dice: &mut Dice, right: f64) -> Option<u8> {
        let mut left = dice.roll() * (1.0 - right);
        for (place, share) in (0_u8..).zip(&self.draft).skip(1) {
            left -= share;
            if left < 0.0 {
                return Some(place);
            }
        }
        None
    }
}

/// Distances to the first guess that give each guess its share of the weight; a guess that has more than a better one
/// gets no more than that.
fn gaps(shares: &[f64]) -> Vec<Gap> {
    let first = shares.first().copied().unwrap_or(1.0);
    let mut last = Gap::default();
    let behind = |share: &f64| {
        last = last.max(Gap::from_nats(math::ln(first / share) as f32));
        last
    };
    shares.iter().skip(1).map(behind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(draft: &[f64], qualifier: [f64; 2], streak: Option<f64>) -> Stated {
        Stated {
            draft: draft.to_vec(),
            qualifier,
            streak,
        }
    }

    fn share(class: &Class, is: impl Fn(&Position) -> bool) -> f64 {
        let found = class.positions.iter().filter(|position| is(position));
        found.count() as f64 / class.positions.len() as f64
    }

    #[test]
    fn what_is_stated_is_drawn() {
        let class = stated(&[0.6, 0.2, 0.1], [0.9, 0.5], Some(5.0))
            .draw(0.0, 4)
            .unwrap();
        for (place, expected) in [(Some(0), 0.6), (Some(1), 0.2), (Some(2), 0.1), (None, 0.1)] {
            let found = share(&class, |position| position.draft == place);
            assert!((found - expected).abs() < 0.03, "{place:?}: {found}");
        }
        let both = |is_right| {
            let agrees = share(&class, |position| {
                (position.draft == Some(0)) == is_right
                    && position.qualifier == QualifierPick::Targets
            });
            agrees / share(&class, |position| (position.draft == Some(0)) == is_right)
        };
        assert!((both(true) - 0.9).abs() < 0.02 && (both(false) - 0.5).abs() < 0.03);
        let right: Vec<bool> = (class.positions.iter())
            .map(|position| position.draft == Some(0))
            .collect();
        let begun = right.windows(2).filter(|pair| !pair[0] && pair[1]).count();
        let streak = right.iter().filter(|right| **right).count() as f64 / begun as f64;
        assert!((streak - 5.0).abs() < 0.5, "{streak}");
        let nats: Vec<f32> = class.positions[0]
            .gaps
            .iter()
            .map(|gap| gap.nats())
            .collect();
        assert_eq!(nats, [1.125, 1.75, 7.875]);
    }

    #[test]
    fn a_draft_may_be_always_right_or_always_wrong() {
        for streak in [None, Some(3.0)] {
            let right = stated(&[1.0], [1.0, 0.0], streak).draw(1.0, 2).unwrap();
            assert_eq!(share(&right, |position| position.draft == Some(0)), 1.0);
            let wrong = stated(&[], [1.0, 0.0], streak).draw(1.0, 2).unwrap();
            assert_eq!(share(&wrong, |position| position.draft.is_none()), 1.0);
        }
        assert!(stated(&[0.9], [1.0, 0.0], Some(2.0)).draw(1.0, 2).is_err());
    }
}

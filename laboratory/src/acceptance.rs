//! Profiles of independent acceptance: what the literature's formulas are about.

use engine::synthetic::{Class, Gap, Position, Profile, ProfileError, Q_BUCKETS, QualifierPick};

/// Positions that are drawn from; shares are rounded to its reciprocal.
const POSITIONS: usize = 10_000;
/// How far every pick leads, in nats: nothing is known of it.
const LEAD: f32 = 1.0;

/// A profile in which the target's token is the draft's first guess with the probability `shares[0]`, its second with
/// `shares[1]`, and so on, at every position on its own. What is missing to 1 is the share where it is none of them. A
/// qualifier picks the target's token with the probability `qualifier`, whatever the draft guesses.
///
/// Nothing is known of confidence: all positions look alike to the draft, whose probabilities are the shares.
///
/// # Errors
/// When a number is not a probability, or the shares are more than 1 or more than the guesses of a profile.
pub fn independent(shares: &[f64], qualifier: f64) -> Result<Profile, ProfileError> {
    let name = "independent".to_owned();
    let invalid = |reason: String| ProfileError::Invalid {
        origin: name.clone(),
        reason,
    };
    let is_share = |share: &f64| (0.0..=1.0).contains(share);
    let sum: f64 = shares.iter().sum();
    if !shares.iter().chain([&qualifier]).all(is_share) || sum > 1.0 + 1e-9 {
        return Err(invalid(
            "has shares that are not numbers from 0 to 1 with a sum of at most 1".to_owned(),
        ));
    }
    if shares.is_empty() {
        return Err(invalid("has no share".to_owned()));
    }
    let guesses = shares.len().max(2);
    let least = 1.0 / POSITIONS as f64;
    let weights: Vec<f64> = (0..guesses)
        .map(|place| shares.get(place).copied().unwrap_or(0.0).max(least))
        .collect();
    let mut last = Gap::default();
    let gaps: Vec<Gap> = (weights.iter().skip(1))
        .map(|weight| {
            last = last.max(Gap::from_nats((weights[0] / weight).ln() as f32));
            last
        })
        .collect();
    // Places in equal proportion among positions where the qualifier is right and where it is not: both are spread over
    // the positions by strides of different length.
    let positions = (0..POSITIONS).map(|at| {
        let mut left = (at as f64 + 0.5) / POSITIONS as f64;
        let mut draft = None;
        for (place, share) in (0_u8..).zip(shares) {
            if left < *share {
                draft = Some(place);
                break;
            }
            left -= share;
        }
        let turn = (at * STRIDE % POSITIONS) as f64 + 0.5;
        Position {
            draft,
            qualifier: if turn < qualifier * POSITIONS as f64 {
                QualifierPick::Targets
            } else {
                QualifierPick::Other
            },
            qualifier_lead: Gap::from_nats(LEAD),
            target_lead: Gap::from_nats(LEAD),
            gaps: gaps.clone(),
        }
    });
    let class = Class {
        temperature: 0.0,
        positions: positions.collect(),
        q: (weights.iter())
            .map(|&weight| [weight as f32; Q_BUCKETS])
            .collect(),
    };
    let about = format!("independent positions, shares {shares:?}, qualifier {qualifier}");
    // Blocks of one position: each is drawn on its own.
    Profile::new(name, about, guesses, 1, vec![class])
}

/// Has no common factor with [`POSITIONS`], and is near its golden section.
const STRIDE: usize = 6_181;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn shares_are_those_that_were_asked_for() {
        let profile = independent(&[0.7, 0.1], 0.9).unwrap();
        let positions = &profile.classes()[0].positions;
        let share = |is: &dyn Fn(&Position) -> bool| {
            positions.iter().filter(|position| is(position)).count() as f64 / POSITIONS as f64
        };
        assert!((share(&|one| one.draft == Some(0)) - 0.7).abs() < 1e-9);
        assert!((share(&|one| one.draft == Some(1)) - 0.1).abs() < 1e-9);
        let agrees = |one: &Position| one.qualifier == QualifierPick::Targets;
        assert!((share(&agrees) - 0.9).abs() < 1e-9);
        let both = share(&|one| one.draft == Some(0) && agrees(one));
        assert!((both - 0.63).abs() < 1e-3, "they are independent: {both}");
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        for (shares, qualifier) in [
            (&[0.7, 0.4][..], 0.5),
            (&[-0.1], 0.5),
            (&[f64::NAN], 0.5),
            (&[0.5], 1.5),
            (&[], 0.5),
            (&[0.01; 40], 0.5),
        ] {
            assert!(independent(shares, qualifier).is_err(), "{shares:?}");
        }
    }
}

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

/// Positions whose first guess is right with a probability of their own, drawn from the Beta distribution with the mean `of[0]` and
/// the concentration `of[1]` (alpha + beta; arXiv 2211.17192 has one probability for all, which is an infinite concentration). Where
/// it is wrong, the target's token is the second guess with the probability `of[2]`, the third with `of[3]`, and so on. A
/// qualifier picks the target's token with the probability `qualifier`, whatever the draft guesses.
///
/// The draft knows how sure it is, as far as a profile can say it: guesses lie as far apart as their probabilities do.
///
/// # Errors
/// When a number is not a probability, the concentration above 10000, alpha or beta below 0.5, or there are more shares than the guesses of a
/// profile.
pub fn beta(of: &[f64], qualifier: f64) -> Result<Profile, ProfileError> {
    let name = "beta".to_owned();
    let invalid = |reason: &str| ProfileError::Invalid {
        origin: name.clone(),
        reason: reason.to_owned(),
    };
    let [mean, concentration, rest @ ..] = of else {
        return Err(invalid("has no mean and concentration"));
    };
    let is_share = |share: &f64| (0.0..=1.0).contains(share);
    if !(rest.iter().chain([&qualifier]).all(is_share) && rest.iter().sum::<f64>() <= 1.0 + 1e-9) {
        return Err(invalid(
            "has shares that are not numbers from 0 to 1 with a sum of at most 1",
        ));
    }
    // Below a half the density is infinite at its ends, also in the variable that is summed over.
    let sharp = (mean * concentration).min((1.0 - mean) * concentration);
    if !(*mean > 0.0 && *mean < 1.0 && sharp >= 0.5 && *concentration <= 1e4) {
        return Err(invalid(
            "has a mean that is not between 0 and 1, or a concentration above 10000 or so small that alpha or beta is below 0.5",
        ));
    }
    let quantiles = quantiles(mean * concentration, (1.0 - mean) * concentration);
    let guesses = (rest.len() + 1).max(2);
    let least = 1.0 / POSITIONS as f64;
    let mut sums = vec![[(0.0_f64, 0_u32); Q_BUCKETS]; guesses];
    let turned =
        |at: usize, stride: usize| ((at * stride % POSITIONS) as f64 + 0.5) / POSITIONS as f64;
    let mut positions = Vec::with_capacity(POSITIONS);
    for at in 0..POSITIONS {
        let sure = quantiles[at * STRIDE % POSITIONS];
        let behind = |place: usize| match place {
            0 => sure,
            place => (1.0 - sure) * rest.get(place - 1).copied().unwrap_or(0.0),
        };
        let mut left = (at as f64 + 0.5) / POSITIONS as f64;
        let mut draft = None;
        for place in 0..=rest.len() {
            if left < behind(place) {
                draft = u8::try_from(place).ok();
                break;
            }
            left -= behind(place);
        }
        let mut last = Gap::default();
        let gaps: Vec<Gap> = (1..guesses)
            .map(|place| {
                let apart = (sure.max(least) / behind(place).max(least)).ln();
                last = last.max(Gap::from_nats(apart.max(0.0) as f32));
                last
            })
            .collect();
        for (place, row) in sums.iter_mut().enumerate() {
            let (sum, count) = &mut row[gaps[place.saturating_sub(1)].bucket()];
            *sum += behind(place);
            *count += 1;
        }
        positions.push(Position {
            draft,
            qualifier: match turned(at, OTHER_STRIDE) < qualifier {
                true => QualifierPick::Targets,
                false => QualifierPick::Other,
            },
            qualifier_lead: Gap::from_nats(LEAD),
            target_lead: Gap::from_nats(LEAD),
            gaps,
        });
    }
    let class = Class {
        temperature: 0.0,
        positions,
        q: (sums.iter())
            .map(|row| {
                row.map(|(sum, count)| match count {
                    0 => 0.0,
                    count => (sum / f64::from(count)) as f32,
                })
            })
            .collect(),
    };
    let about = format!("positions of the Beta distribution {of:?}, qualifier {qualifier}");
    Profile::new(name, about, guesses, 1, vec![class])
}

/// The values of a Beta distribution at evenly spaced probabilities, by summing its density over a fine grid.
fn quantiles(alpha: f64, beta: f64) -> Vec<f64> {
    const GRID: usize = 1 << 16;
    // Even in the square of a sine, where the density is finite at both ends for parameters down to 1/2 and steep below.
    let at = |cell: f64| {
        let sine = (std::f64::consts::FRAC_PI_2 * cell / GRID as f64).sin();
        sine * sine
    };
    let density = |cell: usize| {
        let x = at(cell as f64 + 0.5);
        // The density over x times dx over the cell, without what is the same for all.
        ((alpha - 0.5) * x.ln() + (beta - 0.5) * (1.0 - x).ln()).exp()
    };
    let all: Vec<f64> = (0..GRID).map(density).collect();
    let total: f64 = all.iter().sum();
    let (mut cell, mut below) = (0, 0.0);
    (0..POSITIONS)
        .map(|place| {
            let wanted = total * (place as f64 + 0.5) / POSITIONS as f64;
            while cell + 1 < GRID && below + all[cell] < wanted {
                below += all[cell];
                cell += 1;
            }
            at(cell as f64 + ((wanted - below) / all[cell]).clamp(0.0, 1.0))
        })
        .collect()
}

/// Has no common factor with [`POSITIONS`] either.
const OTHER_STRIDE: usize = 3_571;

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
    fn a_beta_distribution_has_its_mean_and_variance() {
        for (mean, concentration) in [(0.7, 4.0), (0.5, 2.0), (0.8, 2.5), (0.6, 500.0)] {
            let values = quantiles(mean * concentration, (1.0 - mean) * concentration);
            let count = values.len() as f64;
            let found = values.iter().sum::<f64>() / count;
            let variance = values.iter().map(|one| (one - found).powi(2)).sum::<f64>() / count;
            let expected = mean * (1.0 - mean) / (concentration + 1.0);
            assert!(
                (found - mean).abs() < 1e-3,
                "{mean} {concentration}: {found}"
            );
            assert!(
                (variance / expected - 1.0).abs() < 0.01,
                "{mean} {concentration}: {variance}"
            );
        }
    }

    #[test]
    fn a_draft_that_is_sure_is_right_more_often() {
        let profile = beta(&[0.7, 3.0, 0.5], 0.9).unwrap();
        let positions = &profile.classes()[0].positions;
        let share = |is: &dyn Fn(&&Position) -> bool, right: u8| {
            let those: Vec<_> = positions.iter().filter(is).collect();
            let hits = those.iter().filter(|one| one.draft == Some(right)).count();
            hits as f64 / those.len() as f64
        };
        assert!((share(&|_| true, 0) - 0.7).abs() < 5e-3);
        assert!((share(&|_| true, 1) - 0.15).abs() < 5e-3);
        let sure = share(&|one| one.gaps[0].nats() > 3.0, 0);
        let unsure = share(&|one| one.gaps[0].nats() < 1.0, 0);
        assert!(sure > 0.85 && unsure < 0.6, "{sure} {unsure}");
        for bad in [
            &[0.5][..],
            &[0.0, 1.0],
            &[0.5, 0.0],
            &[0.5, f64::NAN],
            &[0.5, 2.0, 1.1],
            &[0.5, 2.0, 0.6, 0.6],
        ] {
            assert!(beta(bad, 0.5).is_err(), "{bad:?}");
        }
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

//! From what relays have seen to a profile: a recording is a profile of a running cluster.

use engine::synthetic::{Class, Gap, Position, Profile, ProfileError, Q_BUCKETS, QualifierPick};
use speculation::recording::{MAX_GUESSES, Picked, Seen};

/// Positions that are replayed in a row, as those of profiles that are recorded from models.
const BLOCK: usize = 64;
/// Temperatures of a profile, at most.
const CLASSES: usize = 16;
/// How far each guess beyond those that were made lies behind the one before, in nats.
const BEYOND: f32 = 0.25;

/// What was seen of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Text {
    /// The temperature of its request.
    pub temperature: f32,
    /// Its positions, in order.
    pub seen: Vec<Seen>,
}

/// Puts a profile together: one class for each temperature, its texts one behind the other.
///
/// A recording knows the guesses that a draft has made, not those that it held back; a token that it held back counts as none of
/// its guesses. Where a qualifier had said nothing it is taken to have agreed or not as at the last position at which it had and
/// the draft's first guess was as right as here (a hot deck); where it never said anything, it counts as wrong.
///
/// # Errors
/// When there is no position at all, or the name is none.
pub fn profile(name: String, about: String, texts: &[Text]) -> Result<Profile, ProfileError> {
    let mut temperatures: Vec<f32> = (texts.iter())
        .filter(|text| !text.seen.is_empty())
        .map(|text| text.temperature)
        .collect();
    temperatures.sort_by(f32::total_cmp);
    temperatures.dedup();
    // Where there are too many, those with the most positions stay.
    let weight = |temperature: f32| -> usize {
        (texts.iter())
            .filter(|text| text.temperature == temperature)
            .map(|text| text.seen.len())
            .sum()
    };
    temperatures.sort_by_key(|&temperature| std::cmp::Reverse(weight(temperature)));
    temperatures.truncate(CLASSES);
    temperatures.sort_by(f32::total_cmp);
    let classes = temperatures.into_iter().map(|temperature| {
        let seen = texts.iter().filter(|text| text.temperature == temperature);
        class(temperature, seen.flat_map(|text| &text.seen))
    });
    Profile::new(name, about, MAX_GUESSES, BLOCK, classes.collect())
}

fn class<'a>(temperature: f32, seen: impl Iterator<Item = &'a Seen>) -> Class {
    let mut positions = Vec::new();
    // Probability and count, by place and distance.
    let mut sums = [[(0.0_f64, 0_u32); Q_BUCKETS]; MAX_GUESSES];
    // How the qualifier did last, where the draft's first guess was wrong and where it was right.
    let mut deck = [QualifierPick::Other; 2];
    for one in seen {
        let gaps = gaps(one);
        for (place, (q, sums)) in one.q.iter().zip(&mut sums).enumerate() {
            let gap = gaps[place.saturating_sub(1)];
            let (sum, count) = &mut sums[gap.bucket()];
            *sum += f64::from(q.to_f32());
            *count += 1;
        }
        let last = &mut deck[usize::from(one.place == Some(0))];
        let qualifier = match one.picked {
            Picked::Nothing => *last,
            Picked::Committed => QualifierPick::Targets,
            // A guess is another token than the committed one, whatever a peer says.
            Picked::Guess(place) if one.place != Some(place) => QualifierPick::Drafts(place),
            Picked::Guess(_) | Picked::Other => QualifierPick::Other,
        };
        *last = match qualifier {
            QualifierPick::Drafts(_) => QualifierPick::Other,
            pick => pick,
        };
        positions.push(Position {
            draft: one.place,
            qualifier,
            qualifier_lead: Gap::from_nats(1.0),
            target_lead: Gap::from_nats(one.lead.to_f32()),
            gaps,
        });
    }
    let q = sums.map(|row| {
        row.map(|(sum, count)| match count {
            0 => 0.0,
            count => (sum / f64::from(count)) as f32,
        })
    });
    Class {
        temperature,
        positions,
        q: q.to_vec(),
    }
}

/// The distances of a position, with those that are not known behind the last that is.
fn gaps(seen: &Seen) -> Vec<Gap> {
    let mut last = 0.0_f32;
    (0..MAX_GUESSES - 1)
        .map(|at| {
            last = match seen.gaps.get(at) {
                Some(gap) => gap.to_f32().max(last),
                None => last + BEYOND,
            };
            Gap::from_nats(last)
        })
        .collect()
}

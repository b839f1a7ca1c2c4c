//! What three models found at one place of a text.

/// A distance between two noisy scores in eighths of a nat, from 0 to 63 of them: beyond that nothing is doubtful.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gap(u8);

impl Gap {
    /// The largest.
    pub const MAX: Gap = Gap(63);

    /// The nearest to a distance in nats. What is not a number is 0.
    #[must_use]
    pub fn from_nats(nats: f32) -> Gap {
        // A float becomes the nearest integer of the type, and 0 if it is not a number.
        Gap(((nats * 8.0 + 0.5) as u8).min(Gap::MAX.0))
    }

    /// In nats.
    #[must_use]
    pub fn nats(self) -> f32 {
        f32::from(self.0) / 8.0
    }

    /// Whole nats, 0 to 7.
    #[must_use]
    pub fn bucket(self) -> usize {
        usize::from(self.0 / 8)
    }
}

/// What the qualifier picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QualifierPick {
    /// The target's token.
    Targets,
    /// Another token, which is the draft's guess of this place, counted from 0.
    Drafts(u8),
    /// A token that neither the target picked nor the draft guessed.
    Other,
}

/// What target, qualifier and draft found at one place of a text, under the same noise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// The place of the target's token among the draft's guesses, counted from 0; none if it is not among them.
    pub draft: Option<u8>,
    /// What the qualifier picked.
    pub qualifier: QualifierPick,
    /// How far the qualifier's pick led its second best token.
    pub qualifier_lead: Gap,
    /// How far the target's token led its second best one.
    pub target_lead: Gap,
    /// How far each of the draft's guesses lay behind the first: one for every guess but that one, ascending.
    pub gaps: Vec<Gap>,
}

/// The digits of base64, by value.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// In place of a place: there is none.
const NONE: u8 = 63;
/// In place of a place: the target's token.
const TARGETS: u8 = 62;

fn value(digit: u8) -> Option<u8> {
    let found = DIGITS.iter().position(|&other| other == digit)?;
    // There are 64.
    Some(found as u8)
}

impl Position {
    /// Digits of a position with so many guesses.
    pub(super) fn digits(guesses: usize) -> usize {
        3 + guesses
    }

    /// Writes it as digits: place of the target's token, qualifier's pick, its lead, the target's lead, gaps.
    pub(super) fn write(&self, out: &mut String) {
        let pick = match self.qualifier {
            QualifierPick::Targets => TARGETS,
            QualifierPick::Drafts(place) => place,
            QualifierPick::Other => NONE,
        };
        let head = [
            self.draft.unwrap_or(NONE),
            pick,
            self.qualifier_lead.0,
            self.target_lead.0,
        ];
        let values = head.into_iter().chain(self.gaps.iter().map(|gap| gap.0));
        out.extend(values.map(|value| char::from(DIGITS[usize::from(value & 63)])));
    }

    /// Reads what [`Position::write`] has written of a position with `guesses` guesses; in words what is wrong with it.
    pub(super) fn read(digits: &[u8], guesses: usize) -> Result<Position, &'static str> {
        let values: Option<Vec<u8>> = digits.iter().map(|&digit| value(digit)).collect();
        let Some([draft, pick, qualifier_lead, target_lead, gaps @ ..]) = values.as_deref() else {
            return Err("has a digit that is not of base64");
        };
        let position = Position {
            draft: (*draft != NONE).then_some(*draft),
            qualifier: match *pick {
                TARGETS => QualifierPick::Targets,
                NONE => QualifierPick::Other,
                place => QualifierPick::Drafts(place),
            },
            qualifier_lead: Gap(*qualifier_lead),
            target_lead: Gap(*target_lead),
            gaps: gaps.iter().map(|&gap| Gap(gap)).collect(),
        };
        position.check(guesses).map(|()| position)
    }

    /// Whether it is one with so many guesses; in words why not.
    pub(super) fn check(&self, guesses: usize) -> Result<(), &'static str> {
        if self.gaps.len() + 1 != guesses {
            return Err("does not have a gap for each guess but the first");
        }
        if self
            .draft
            .is_some_and(|place| usize::from(place) >= guesses)
        {
            return Err("has the target's token at a place that the draft does not guess");
        }
        if let QualifierPick::Drafts(place) = self.qualifier {
            if usize::from(place) >= guesses {
                return Err("has the qualifier's pick at a place that the draft does not guess");
            }
            if self.draft == Some(place) {
                return Err("has the qualifier's other token where the target's is");
            }
        }
        if !self.gaps.is_sorted() {
            return Err("has a guess ahead of a better one");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position {
            draft: Some(1),
            qualifier: QualifierPick::Drafts(0),
            qualifier_lead: Gap::from_nats(0.25),
            target_lead: Gap::MAX,
            gaps: vec![Gap::from_nats(0.5), Gap::from_nats(3.0)],
        }
    }

    #[test]
    fn gaps_are_eighths_and_saturate() {
        for (nats, gap) in [
            (0.0, 0),
            (0.06, 0),
            (0.07, 1),
            (1.0, 8),
            (7.9, 63),
            (f32::INFINITY, 63),
            (f32::NAN, 0),
            (-3.0, 0),
        ] {
            assert_eq!(Gap::from_nats(nats), Gap(gap), "{nats}");
        }
        assert_eq!((Gap(12).nats(), Gap(12).bucket()), (1.5, 1));
        assert_eq!(Gap::MAX.bucket(), 7);
    }

    #[test]
    fn what_is_written_is_read() {
        let mut written = String::new();
        position().write(&mut written);
        assert_eq!(written, "BAC/EY");
        assert_eq!(written.len(), Position::digits(3));
        assert_eq!(Position::read(written.as_bytes(), 3), Ok(position()));
        let absent = Position {
            draft: None,
            qualifier: QualifierPick::Targets,
            ..position()
        };
        written.clear();
        absent.write(&mut written);
        assert_eq!(Position::read(written.as_bytes(), 3), Ok(absent));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (digits, why) in [
            ("BAC/E", "a gap for each"),
            ("B?C/EY", "not of base64"),
            ("DAC/EY", "target's token at a place"),
            ("BDC/EY", "qualifier's pick at a place"),
            ("BBC/EY", "where the target's is"),
            ("BAC/YE", "ahead of a better one"),
            ("", "not of base64"),
        ] {
            let error = Position::read(digits.as_bytes(), 3).unwrap_err();
            assert!(error.contains(why), "{digits}: {error}");
        }
    }
}

//! How the guesses of draft and qualifier relate to the target's tokens.

use std::path::{Path, PathBuf};

use crate::synthetic::position::Position;

/// The most guesses that a profile has at one position.
pub const MAX_GUESSES: usize = 32;
/// The most positions of a profile, all temperatures together.
pub(super) const MAX_POSITIONS: usize = 1 << 18;
/// The most temperatures of a profile.
pub(super) const MAX_CLASSES: usize = 16;
/// The longest block.
pub(super) const MAX_BLOCK: usize = 1 << 16;
/// The longest name, in bytes.
const MAX_NAME: usize = 64;

/// How many ranges of the distance to the best guess a [`QTable`] tells apart.
pub const Q_BUCKETS: usize = 8;

/// The draft's probability of a guess, on average: by its place, then by its [`Gap`](super::Gap) in whole nats. For the
/// first guess that is its lead over the second, for every other one its distance to the first.
pub type QTable = Vec<[f32; Q_BUCKETS]>;

/// Why a profile cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The file cannot be read.
    #[error("cannot read the profile {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The content is not that of a profile.
    #[error("the profile {origin} {reason}; docs/synthetic.md describes the format")]
    Invalid {
        /// The file, or where else it comes from.
        origin: String,
        /// What is wrong, as the predicate of a sentence.
        reason: String,
    },
}

/// What was found, or is supposed, at one temperature.
#[derive(Clone, Debug, PartialEq)]
pub struct Class {
    /// The temperature. A request is served from the class of the nearest one.
    pub temperature: f32,
    /// The positions, in the order of the text; those of the next text follow behind those of the one before.
    pub positions: Vec<Position>,
    /// The draft's probabilities.
    pub q: QTable,
}

/// How the guesses of draft and qualifier relate to the target's tokens: recorded from models, or stated. Every value in it
/// has been checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    pub(super) name: String,
    pub(super) about: String,
    pub(super) guesses: usize,
    pub(super) block: usize,
    pub(super) classes: Vec<Class>,
}

impl Profile {
    /// Puts a profile together: its name, where it comes from in words, the guesses at each position, the positions that
    /// are replayed one after the other before another place of the profile is drawn, and what was found by temperature.
    ///
    /// # Errors
    /// [`ProfileError::Invalid`], whose origin is the name.
    pub fn new(
        name: String,
        about: String,
        guesses: usize,
        block: usize,
        classes: Vec<Class>,
    ) -> Result<Profile, ProfileError> {
        let profile = Profile {
            name,
            about,
            guesses,
            block,
            classes,
        };
        match profile.check() {
            Ok(()) => Ok(profile),
            Err(reason) => Err(ProfileError::Invalid {
                origin: profile.name,
                reason,
            }),
        }
    }

    /// Reads a profile from a file.
    ///
    /// # Errors
    /// When it cannot be read or is not a profile; the message says what is wrong.
    pub fn read(path: &Path) -> Result<Profile, ProfileError> {
        super::file::read(path)
    }

    /// Reads a profile from the content of a file; `origin` says in messages where it comes from.
    ///
    /// # Errors
    /// As [`Profile::read`].
    pub fn parse(content: &[u8], origin: &str) -> Result<Profile, ProfileError> {
        super::file::parse(content).map_err(|reason| ProfileError::Invalid {
            origin: origin.to_owned(),
            reason,
        })
    }

    /// The profile as the content of a file. A stated one is written as the positions that were drawn from it.
    #[must_use]
    pub fn to_json(&self) -> String {
        super::file::write(self)
    }

    /// Its name; reports say `synthetic-` and this.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it comes from.
    #[must_use]
    pub fn about(&self) -> &str {
        &self.about
    }

    /// The draft's guesses at each position.
    #[must_use]
    pub fn guesses(&self) -> usize {
        self.guesses
    }

    /// Positions that are replayed one after the other.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// What it says by temperature, ascending.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// The class of the nearest temperature, the lower one of two.
    pub(super) fn class(&self, temperature: f32) -> &Class {
        let away = |class: &&Class| (class.temperature - temperature).abs();
        let nearest = (self.classes.iter()).min_by(|a, b| away(a).total_cmp(&away(b)));
        nearest.expect("a profile that was checked has a class")
    }

    fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(plain) {
            return Err(format!(
                "has the name {:?}; it needs 1 to {MAX_NAME} letters, digits, dots, hyphens or underscores",
                self.name.chars().take(MAX_NAME).collect::<String>()
            ));
        }
        within("guesses", self.guesses, 2, MAX_GUESSES)?;
        within("block", self.block, 1, MAX_BLOCK)?;
        within("temperatures", self.classes.len(), 1, MAX_CLASSES)?;
        let positions = self.classes.iter().map(|class| class.positions.len());
        within("positions", positions.sum(), 1, MAX_POSITIONS)?;
        for class in &self.classes {
            class.check(self.guesses)?;
        }
        if !(self.classes).is_sorted_by(|a, b| a.temperature < b.temperature) {
            return Err("does not have its temperatures in ascending order".to_owned());
        }
        Ok(())
    }
}

/// Whether a number lies within its bounds, both included.
pub(super) fn within(name: &str, value: usize, least: usize, most: usize) -> Result<(), String> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(format!("has {value} {name}; allowed are {least} to {most}"))
}

impl Class {
    fn check(&self, guesses: usize) -> Result<(), String> {
        let temperature = self.temperature;
        if !(0.0..=100.0).contains(&temperature) {
            return Err(format!(
                "has the temperature {temperature}; allowed are numbers from 0 to 100"
            ));
        }
        if self.positions.is_empty() {
            return Err(format!("has no position at temperature {temperature}"));
        }
        for (index, position) in self.positions.iter().enumerate() {
            if let Err(reason) = position.check(guesses) {
                return Err(format!(
                    "has a position (number {} at temperature {temperature}) that {reason}",
                    index + 1
                ));
            }
        }
        let q = || self.q.iter().flatten();
        if self.q.len() != guesses || !q().all(|q| (0.0..=1.0).contains(q)) {
            return Err(format!(
                "does not have {Q_BUCKETS} probabilities from 0 to 1 for each guess at temperature {temperature}"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::{Gap, QualifierPick};

    fn class(temperature: f32) -> Class {
        Class {
            temperature,
            positions: vec![
                Position {
                    draft: Some(0),
                    qualifier: QualifierPick::Targets,
                    qualifier_lead: Gap::from_nats(1.0),
                    target_lead: Gap::from_nats(2.0),
                    gaps: vec![Gap::from_nats(0.5)],
                };
                3
            ],
            q: vec![[0.5; Q_BUCKETS]; 2],
        }
    }

    fn profile(classes: Vec<Class>) -> Result<Profile, ProfileError> {
        Profile::new("a".to_owned(), String::new(), 2, 8, classes)
    }

    #[test]
    fn the_nearest_temperature_serves() {
        let profile = profile(vec![class(0.0), class(1.0)]).unwrap();
        for (temperature, found) in [(0.0, 0.0), (0.5, 0.0), (0.51, 1.0), (30.0, 1.0)] {
            assert_eq!(profile.class(temperature).temperature, found);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |classes: Vec<Class>| profile(classes).unwrap_err().to_string();
        for (classes, why) in [
            (vec![], "0 temperatures"),
            (vec![class(1.0), class(0.0)], "ascending"),
            (vec![class(1.0), class(1.0)], "ascending"),
            (vec![class(f32::NAN)], "temperature NaN"),
            (
                vec![Class {
                    positions: Vec::new(),
                    ..class(0.0)
                }],
                "0 positions",
            ),
            (
                vec![Class {
                    q: vec![[1.5; Q_BUCKETS]; 2],
                    ..class(0.0)
                }],
                "probabilities",
            ),
            (
                vec![Class {
                    q: vec![[0.5; Q_BUCKETS]; 3],
                    ..class(0.0)
                }],
                "probabilities",
            ),
        ] {
            let error = refused(classes);
            assert!(error.contains(why), "{error}");
        }
        let named = |name: &str, guesses, block| {
            Profile::new(
                name.to_owned(),
                String::new(),
                guesses,
                block,
                vec![class(0.0)],
            )
        };
        assert!(named("a b", 2, 8).is_err() && named("", 2, 8).is_err());
        assert!(named("a", 3, 8).is_err() && named("a", 1, 8).is_err());
        assert!(named("a", 2, 0).is_err() && named("a", 2, usize::MAX).is_err());
        assert!(named("a", 2, 8).is_ok());
    }
}

//! The knobs of a strategy: declared in its file, sent by name, checked in one place.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A number that can be set for a strategy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knob {
    /// The name users type.
    pub name: &'static str,
    /// The values it takes.
    pub range: Range,
    /// The value if none is set.
    pub default: f64,
    /// What it does, in one sentence.
    pub help: &'static str,
    /// Values that a sweep for the best setting tries; empty: it stays at its default.
    pub sweep: &'static [f64],
}

/// The values that a knob takes; both ends are included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Range {
    /// Whole numbers.
    Whole(u16, u16),
    /// Any number.
    Real(f64, f64),
}

impl Range {
    /// Whether it contains this value.
    #[must_use]
    pub fn holds(self, value: f64) -> bool {
        match self {
            Range::Whole(least, most) => {
                (f64::from(least)..=f64::from(most)).contains(&value)
                    && f64::from(value as u16) == value
            }
            Range::Real(least, most) => (least..=most).contains(&value),
        }
    }
}

impl core::fmt::Display for Range {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Range::Whole(least, most) => write!(f, "whole numbers from {least} to {most}"),
            Range::Real(least, most) => write!(f, "numbers from {least} to {most}"),
        }
    }
}

/// Why knobs are refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum KnobError {
    /// The strategy has no such knob.
    #[error("there is no knob {name:?}; {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The known ones.
        known: String,
    },
    /// The value is out of range.
    #[error("{name} is {value}; allowed are {range}")]
    Range {
        /// The knob.
        name: &'static str,
        /// What was asked for.
        value: f64,
        /// What may be asked for.
        range: Range,
    },
}

/// Numbers by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Knobs {
    values: BTreeMap<String, f64>,
}

impl FromIterator<(String, f64)> for Knobs {
    fn from_iter<I: IntoIterator<Item = (String, f64)>>(values: I) -> Self {
        Knobs {
            values: values.into_iter().collect(),
        }
    }
}

impl Knobs {
    /// The same with one set.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.values.insert(name.to_string(), value);
        self
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// What is set, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        (self.values.iter()).map(|(name, &value)| (name.as_str(), value))
    }

    /// A value; 0 if it is not set. Complete knobs have no unset values.
    pub fn get(&self, name: &str) -> f64 {
        self.values.get(name).copied().unwrap_or(0.0)
    }

    /// A whole number.
    pub fn whole(&self, name: &str) -> u16 {
        // `as` saturates, and ranges keep whole numbers within the type.
        self.get(name) as u16
    }

    /// These, and defaults for everything that is not set.
    ///
    /// # Errors
    /// When one is unknown or out of range.
    pub fn complete(&self, declared: &'static [Knob]) -> Result<Knobs, KnobError> {
        for (name, &value) in &self.values {
            let Some(knob) = declared.iter().find(|knob| knob.name == name) else {
                let names: Vec<&str> = declared.iter().map(|knob| knob.name).collect();
                return Err(KnobError::Unknown {
                    name: name.chars().take(64).collect(),
                    known: if names.is_empty() {
                        "it has none".to_string()
                    } else {
                        alloc::format!("it has {}", names.join(", "))
                    },
                });
            };
            if !knob.range.holds(value) {
                return Err(KnobError::Range {
                    name: knob.name,
                    value,
                    range: knob.range,
                });
            }
        }
        let mut complete = self.clone();
        for knob in declared {
            (complete.values.entry(knob.name.to_string())).or_insert(knob.default);
        }
        Ok(complete)
    }
}

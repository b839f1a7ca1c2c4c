//! One way of decoding that takes part in a comparison, and how it is written on the command line.

use std::fmt;
use std::str::FromStr;

use decode::rule::{Rule, Tolerance};
use proto::v1;
use speculation::strategy::{Knobs, Registry, Settings};

use crate::strategy;

/// Whether a request is served with the cluster's qualifiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Qualifiers {
    /// As the strategy chooses.
    #[default]
    Allowed,
    /// None of them.
    Off,
}

/// One way of decoding that is compared with others, written `NAME` or `NAME:KNOB=VALUE:...`, for example
/// `serial:gamma=4` or `auto:drafts=1:qualifier=off`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Contender {
    /// Accepted by the registry.
    pub(crate) settings: Settings,
    /// Drafts that serve a request; none: all of the cluster.
    pub(crate) drafts: Option<u32>,
    pub(crate) qualifiers: Qualifiers,
}

impl Contender {
    /// A strategy with its defaults.
    pub(crate) fn new(name: &str) -> Contender {
        Contender {
            settings: Settings::new(name),
            drafts: None,
            qualifiers: Qualifiers::default(),
        }
    }

    /// These settings, with all workers of a cluster.
    pub(crate) fn of(settings: Settings) -> Contender {
        Contender {
            settings,
            ..Contender::new("")
        }
    }

    /// Every registered strategy, each with its defaults.
    pub(crate) fn all() -> Vec<Contender> {
        let registry = Registry::default();
        let names = registry.entries().iter().map(|entry| entry.name);
        names.map(Contender::new).collect()
    }

    /// The name of its strategy.
    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    /// The same with other knobs.
    pub(crate) fn with(&self, knobs: Knobs) -> Contender {
        let mut changed = self.clone();
        changed.settings.knobs = knobs;
        changed
    }

    /// Makes a request one of this contender.
    pub(crate) fn apply(&self, request: &mut v1::GenerateRequest) {
        strategy::apply(&self.settings, request);
        request.drafts = self.drafts;
        request.no_qualifier = match self.qualifiers {
            Qualifiers::Allowed => false,
            Qualifiers::Off => true,
        };
    }

    /// What a sweep tries where the user has set no knob: the published baselines are only worth comparing with at
    /// their best. Empty for strategies that choose for themselves.
    pub(crate) fn candidates(&self) -> Vec<Knobs> {
        if !self.settings.knobs.is_empty() {
            return Vec::new();
        }
        let registry = Registry::default();
        let entry = registry.entry(self.name());
        entry.map(|entry| entry.sweep()).unwrap_or_default()
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        for (knob, value) in self.settings.knobs.iter() {
            write!(f, ":{knob}={value}")?;
        }
        match self.settings.rule {
            Rule::Exact => {}
            Rule::Rejection => f.write_str(":acceptance=rejection")?,
            Rule::Fuzzy(Tolerance { draft, qualifier }) => write!(
                f,
                ":acceptance=fuzzy:{}={draft}:{}={qualifier}",
                strategy::TAU_Q,
                strategy::TAU_T
            )?,
        }
        if let Some(drafts) = self.drafts {
            write!(f, ":drafts={drafts}")?;
        }
        match self.qualifiers {
            Qualifiers::Allowed => Ok(()),
            Qualifiers::Off => f.write_str(":qualifier=off"),
        }
    }
}

impl FromStr for Contender {
    type Err = String;

    fn from_str(given: &str) -> Result<Contender, String> {
        let mut parts = given.trim().split(':');
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err("the name of a strategy is missing".to_owned());
        }
        let mut contender = Contender::new(name);
        for part in parts {
            let Some((knob, value)) = part.split_once('=') else {
                return Err(format!("{part:?} is not KNOB=VALUE, as in serial:gamma=4"));
            };
            contender.set(knob, value)?;
        }
        // So that a mistake is found before a cluster is started.
        let chosen = Registry::default().choose(&contender.settings);
        chosen.map_err(|error| error.to_string())?;
        Ok(contender)
    }
}

impl Contender {
    /// Sets a knob, or what every strategy has: the number of drafts and whether there are qualifiers.
    fn set(&mut self, knob: &str, value: &str) -> Result<(), String> {
        match (knob, value) {
            ("acceptance", _) => {
                self.settings.rule = strategy::by_name(value, None, None)?;
            }
            (strategy::TAU_Q | strategy::TAU_T, _) => {
                let tau: f32 =
                    (value.parse()).map_err(|_| format!("{knob} is {value:?}, not a number"))?;
                let Rule::Fuzzy(tolerance) = &mut self.settings.rule else {
                    return Err(format!("{knob} comes after acceptance=fuzzy"));
                };
                match knob {
                    strategy::TAU_Q => tolerance.draft = tau,
                    _ => tolerance.qualifier = tau,
                }
            }
            ("qualifier", "off") => self.qualifiers = Qualifiers::Off,
            ("qualifier", _) => return Err(format!("qualifier is {value:?}; it can only be off")),
            ("drafts", _) => {
                let drafts = value.parse();
                self.drafts =
                    Some(drafts.map_err(|_| format!("{value:?} is not a number of drafts"))?);
            }
            _ => {
                let knobs = std::mem::take(&mut self.settings.knobs);
                self.settings.knobs = knobs.with(knob, strategy::number(value)?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &str) -> Contender {
        given.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_what_is_meant() {
        let contender = parse("serial-tree:rows=16:depth=4.0:drafts=2:qualifier=off");
        assert_eq!(contender.name(), "serial-tree");
        let knobs: Vec<_> = contender.settings.knobs.iter().collect();
        assert_eq!(knobs, [("depth", 4.0), ("rows", 16.0)]);
        assert_eq!(
            (contender.drafts, contender.qualifiers),
            (Some(2), Qualifiers::Off)
        );
        assert_eq!(
            contender.to_string(),
            "serial-tree:depth=4:rows=16:drafts=2:qualifier=off"
        );
        assert_eq!(parse(&contender.to_string()), contender);
        assert_eq!(parse("auto").to_string(), "auto");
        let judged = parse("serial:gamma=3:acceptance=rejection");
        assert_eq!(judged.settings.rule, Rule::Rejection);
        assert_eq!(judged.to_string(), "serial:gamma=3:acceptance=rejection");
        assert_eq!(parse(&judged.to_string()), judged);
    }

    #[test]
    fn mistakes_are_explained() {
        for (bad, why) in [
            ("", "name of a strategy is missing"),
            ("magic", "unknown strategy \"magic\""),
            ("serial:4", "not KNOB=VALUE"),
            ("serial:rows=4", "no knob \"rows\"; it has gamma"),
            ("ar:gamma=4", "no knob \"gamma\"; it has none"),
            ("serial:gamma=many", "not a number"),
            (
                "serial:gamma=-1",
                "gamma is -1; allowed are whole numbers from 0 to 64",
            ),
            ("serial:gamma=65", "gamma is 65"),
            ("serial:gamma=NaN", "gamma is NaN"),
            ("auto:qualifier=on", "can only be off"),
            ("auto:acceptance=rejection", "does not support"),
            ("auto:acceptance=lenient", "known are exact"),
            ("auto:tau-q=1", "comes after acceptance=fuzzy"),
            ("auto:drafts=-1", "not a number of drafts"),
        ] {
            let error = bad.parse::<Contender>().unwrap_err();
            assert!(error.contains(why), "{bad:?} gave {error}");
        }
    }

    #[test]
    fn only_strategies_with_a_sweep_and_without_knobs_are_tuned() {
        assert!(parse("serial").candidates().len() > 3);
        assert!(parse("serial-tree").candidates().len() > parse("serial").candidates().len());
        for fixed in ["ar", "auto", "serial:gamma=3", "serial-tree:depth=2"] {
            assert!(parse(fixed).candidates().is_empty(), "{fixed}");
        }
    }

    #[test]
    fn every_candidate_is_one_that_is_accepted_and_reads_back() {
        for contender in Contender::all() {
            for knobs in contender.candidates() {
                let tuned = contender.with(knobs);
                assert_eq!(parse(&tuned.to_string()), tuned);
            }
        }
    }
}

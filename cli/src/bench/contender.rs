//! A strategy that takes part: its name, its knobs, and what a command line says about them.

use std::fmt;
use std::str::FromStr;

use proto::v1;

use crate::decode::{KnobArgs, StrategyName};

/// Whether a request is served with the cluster's qualifiers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Qualifiers {
    /// As the strategy likes.
    #[default]
    Allowed,
    /// None of them.
    Off,
}

/// One way of decoding that is compared with others, written `NAME` or `NAME:KNOB=VALUE:...`, for example
/// `serial:gamma=4` or `auto:drafts=1:qualifier=off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contender {
    pub(crate) name: StrategyName,
    pub(crate) knobs: KnobArgs,
    /// Drafts that serve a request; none: all of the cluster.
    pub(crate) drafts: Option<u32>,
    pub(crate) qualifiers: Qualifiers,
}

impl Contender {
    /// A strategy with its own knobs.
    pub(crate) fn new(name: StrategyName) -> Contender {
        Contender {
            name,
            knobs: KnobArgs::default(),
            drafts: None,
            qualifiers: Qualifiers::default(),
        }
    }

    /// The same with other knobs.
    pub(crate) fn with(self, knobs: KnobArgs) -> Contender {
        Contender { knobs, ..self }
    }

    /// Makes a request one of this contender.
    pub(crate) fn apply(&self, request: &mut v1::GenerateRequest) {
        request.strategy = Some(self.knobs.strategy(self.name));
        request.drafts = self.drafts;
        request.no_qualifier = match self.qualifiers {
            Qualifiers::Allowed => false,
            Qualifiers::Off => true,
        };
    }

    /// What a sweep tries where the user has chosen no knob: the published baselines are only worth comparing with
    /// at their best. Empty for strategies that choose for themselves.
    pub(crate) fn candidates(&self) -> Vec<KnobArgs> {
        if self.knobs.set().next().is_some() {
            return Vec::new();
        }
        let none = KnobArgs::default();
        match self.name {
            StrategyName::Ar | StrategyName::Auto => Vec::new(),
            StrategyName::Serial => GAMMAS
                .iter()
                .map(|&gamma| KnobArgs { gamma, ..none })
                .collect(),
            StrategyName::SerialTree => {
                let mut all = Vec::new();
                for depth in DEPTHS {
                    for width in WIDTHS {
                        for rows in ROWS {
                            // A tree of `depth` levels has at least one node in each.
                            if rows >= depth {
                                all.push(KnobArgs {
                                    depth,
                                    width,
                                    rows,
                                    ..none
                                });
                            }
                        }
                    }
                }
                all
            }
        }
    }
}

const GAMMAS: [u32; 9] = [1, 2, 3, 4, 5, 6, 8, 10, 12];
const DEPTHS: [u32; 6] = [2, 3, 4, 5, 6, 8];
const WIDTHS: [u32; 3] = [2, 4, 8];
const ROWS: [u32; 3] = [8, 16, 32];

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name.name())?;
        for (knob, value) in self.knobs.set() {
            write!(f, ":{knob}={value}")?;
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
        let mut contender = Contender::new(strategy(name)?);
        for part in parts {
            let Some((knob, value)) = part.split_once('=') else {
                return Err(format!(
                    "{part:?} is no knob; write KNOB=VALUE, for example serial:gamma=4"
                ));
            };
            contender.set(knob, value)?;
        }
        // The server's own check, so that a mistake is found before a cluster is started.
        proto::inward::strategy(Some(contender.knobs.strategy(contender.name)))
            .map_err(|error| format!("{given}: {error}"))?;
        Ok(contender)
    }
}

impl Contender {
    fn set(&mut self, knob: &str, value: &str) -> Result<(), String> {
        if knob == "qualifier" && value == "off" {
            self.qualifiers = Qualifiers::Off;
            return Ok(());
        }
        let number: u32 = value
            .parse()
            .map_err(|_| format!("{knob}={value} is not a number"))?;
        let place = match (self.name, knob) {
            (_, "drafts") => {
                self.drafts = Some(number);
                return Ok(());
            }
            (StrategyName::Serial, "gamma") => &mut self.knobs.gamma,
            (StrategyName::SerialTree | StrategyName::Auto, "depth") => &mut self.knobs.depth,
            (StrategyName::SerialTree | StrategyName::Auto, "width") => &mut self.knobs.width,
            (StrategyName::SerialTree | StrategyName::Auto, "rows") => &mut self.knobs.rows,
            (StrategyName::Auto, "ahead") => &mut self.knobs.ahead,
            _ => {
                return Err(format!(
                    "{} has no knob {knob:?}; serial has gamma, serial-tree has depth, width and rows, auto has \
                     these and ahead, and all have drafts and qualifier=off",
                    self.name.name()
                ));
            }
        };
        if number == 0 {
            return Err(format!("{knob} has to be at least 1"));
        }
        *place = number;
        Ok(())
    }
}

fn strategy(name: &str) -> Result<StrategyName, String> {
    let all = [
        StrategyName::Ar,
        StrategyName::Serial,
        StrategyName::SerialTree,
        StrategyName::Auto,
    ];
    all.into_iter()
        .find(|strategy| strategy.name() == name)
        .ok_or_else(|| {
            format!(
                "{name:?} is not a strategy; the strategies are ar, serial, serial-tree and auto"
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(given: &str) -> Contender {
        given.parse().unwrap()
    }

    #[test]
    fn what_is_written_is_what_is_meant() {
        let contender = parse("serial-tree:depth=4:rows=16:drafts=2:qualifier=off");
        assert_eq!(contender.name, StrategyName::SerialTree);
        assert_eq!(
            (
                contender.knobs.depth,
                contender.knobs.rows,
                contender.knobs.width
            ),
            (4, 16, 0)
        );
        assert_eq!(
            (contender.drafts, contender.qualifiers),
            (Some(2), Qualifiers::Off)
        );
        assert_eq!(parse(&contender.to_string()), contender);
        assert_eq!(parse("auto").to_string(), "auto");
    }

    #[test]
    fn nonsense_says_why() {
        for (bad, why) in [
            ("", "not a strategy"),
            ("magic", "not a strategy"),
            ("serial:4", "no knob"),
            ("serial:rows=4", "has no knob"),
            ("ar:gamma=4", "has no knob"),
            ("serial:gamma=many", "not a number"),
            ("serial:gamma=0", "at least 1"),
            ("serial:gamma=65", "gamma"),
            ("auto:qualifier=on", "not a number"),
        ] {
            let error = bad.parse::<Contender>().unwrap_err();
            assert!(error.contains(why), "{bad:?} gave {error}");
        }
    }

    #[test]
    fn only_baselines_without_knobs_are_tuned() {
        assert_eq!(parse("serial").candidates().len(), GAMMAS.len());
        assert!(parse("serial-tree").candidates().len() > GAMMAS.len());
        for fixed in ["ar", "auto", "serial:gamma=3", "serial-tree:depth=2"] {
            assert!(parse(fixed).candidates().is_empty(), "{fixed}");
        }
    }

    #[test]
    fn every_candidate_is_one_the_server_takes() {
        for name in ["serial", "serial-tree"] {
            let contender = parse(name);
            for knobs in contender.candidates() {
                proto::inward::strategy(Some(knobs.strategy(contender.name))).unwrap();
            }
        }
    }
}

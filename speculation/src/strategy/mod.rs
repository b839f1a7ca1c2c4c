//! Strategies: how a request is decoded, one file each, and the registry that all processes read.
//!
//! A [`Strategy`] says which duties each role gets, how a node is expanded and valued, when a draft pauses, when a
//! verifier starts and what it submits. Under the acceptance rule `exact` every strategy gives the same text; they
//! differ in when it is found. A strategy travels by its name and its [`Knobs`], never by what it decides: workers look
//! it up in the same [`Registry`] as the coordinator.
//!
//! To add one: write its file with an [`Entry`], and add one line to [`BUILT_IN`].

mod ar;
mod auto;
mod branch;
mod knobs;
mod length;
mod parallel;
mod pyramid;
mod serial;
mod serial_tree;
mod ssd;
mod view;

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use decode::rule::{MAX_TOLERANCE, Rule, Tolerance};
use decode::{Guess, Wanted};

use crate::Time;
use crate::agreement::Pace;
use crate::allocation::Choice;
use crate::bypass::Mode;
use crate::duty::{Duties, Duty, Role};
use crate::lookup::LookupBounds;
use crate::message::Outlook;
use crate::wait::{Start, Waits};

pub use knobs::{Knob, KnobError, Knobs, Range};
pub use view::{Frontier, Rated, Round, Shape};

/// The strategies that come with Offshoot, in the order in which they are listed.
pub const BUILT_IN: &[&Entry] = &[
    &ar::ENTRY,
    &serial::ENTRY,
    &serial_tree::ENTRY,
    &parallel::ENTRY,
    &ssd::ENTRY,
    &branch::ENTRY,
    &pyramid::ENTRY,
    &auto::ENTRY,
];

/// The strategy of a request that names none.
pub const DEFAULT: &str = "auto";

/// How a request is decoded. All methods are pure; measurements are passed to them.
pub trait Strategy: fmt::Debug + Send + Sync {
    /// What a worker of this role does for a session; none: the role is not used.
    fn duties(&self, role: Role) -> Duties;

    /// The bounds of what a draft grows.
    fn growth(&self) -> Growth {
        Growth::default()
    }

    /// What the expansion of a node is worth, so that the best are expanded first; `None`: it is not expanded here.
    fn worth(&self, node: &Frontier, _round: &Round<'_>) -> Option<f32> {
        node.is_own.then_some(node.path)
    }

    /// How many of the frontier's nodes the next step of a draft expands at most, by their worth, best first. With none
    /// the round is over.
    fn expands(&self, worth: &[f64], _round: &Round<'_>) -> usize {
        worth.len()
    }

    /// How long a chain is in a round that begins now, for a strategy that has chains.
    fn length(&self, _pace: &Pace) -> u16 {
        u16::MAX
    }

    /// How many of the tokens that the model ranked behind a node are made guesses, best first. Asked again whenever
    /// the tree has changed: what is not made now may be made later, without another row.
    fn children(&self, _parent: &Frontier, _ranked: &[Guess], _round: &Round<'_>) -> usize {
        usize::MAX
    }

    /// Whether a draft stops until the next commit.
    fn pauses(&self, round: &Round<'_>) -> bool {
        (self.growth().round).is_some_and(|steps| round.is_over || round.steps >= steps)
    }

    /// Of a strategy with rounds: whether a target that waits for the draft need wait no longer.
    fn is_round_done(&self, round: &Round<'_>) -> bool {
        self.pauses(round)
    }

    /// The bounds of what a verifier with this duty computes.
    fn verification(&self, _duty: Duty) -> Verification {
        Verification::default()
    }

    /// Which guesses a verifier with this duty prefers, when it expects this of its next steps.
    fn shape(&self, _duty: Duty, _outlook: &Outlook) -> Shape {
        Shape::Tree
    }

    /// How many of the guesses the next step of a verifier submits at most, by their probability, best first.
    fn submits(&self, values: &[f64]) -> usize {
        values.len()
    }

    /// Whether all of those rows are computed or those that pay. A strategy whose rows have to pay also goes on without
    /// any guess where that is measured to be faster.
    fn choice(&self) -> Choice {
        Choice::All
    }

    /// When a verifier starts its next step.
    fn starts(&self, _next: &NextStep, _waits: &mut Waits<'_>) -> Start {
        Start::Now
    }

    /// The bounds of what the target looks up in the text itself.
    fn lookup(&self) -> LookupBounds {
        LookupBounds::default()
    }

    /// The bounds of what the target looks up in texts that were completed before, if the request names some.
    fn history(&self) -> LookupBounds {
        LookupBounds::default()
    }

    /// The bounds of what heads beside the target guess.
    fn heads(&self) -> HeadBounds {
        HeadBounds::default()
    }

    /// Whether the target is to forecast with every commit how much of a chain of guesses its next step accepts
    /// ([`Outlook::forecast`]), where it can.
    fn forecast(&self) -> Wanted {
        Wanted::No
    }

    /// The bounds of advice.
    fn advice(&self) -> Advice {
        Advice::default()
    }

    /// Whether requests may be decoded by this acceptance rule. [`Rule::Rejection`] needs one draft that draws whole sibling
    /// groups, and nobody else's guesses beside it; [`Rule::Fuzzy`] a qualifier.
    fn supports(&self, rule: Rule) -> bool {
        rule == Rule::Exact
    }

    /// Whether drafts, qualifier and target take turns under this rule, so that a text that depends on what was judged does
    /// not depend on who was faster: a qualifier judges whole chains of the drafts, the target what the qualifier has made
    /// of them.
    fn takes_turns(&self, _rule: Rule) -> bool {
        false
    }

    /// How it goes on while drafts and target take turns because they share a device ([`Mode::Turns`]): growth and rounds of
    /// drafts, and when the target starts. `None`: it does not change.
    fn in_turns(&self) -> Option<&dyn Strategy> {
        None
    }

    /// Nodes with a smaller path probability are not passed on to workers of this role.
    fn min_path_sent(&self, _role: Role) -> f32 {
        0.0
    }
}

/// The bounds of what a draft grows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Growth {
    /// Frontier nodes expanded in one step, at most.
    pub width: u16,
    /// Children given to an expanded node, at most.
    pub branch: u16,
    /// Guesses reach at most this far beyond the committed text, in tokens.
    pub depth: u16,
    /// Nodes in the tree, at most.
    pub nodes: u16,
    /// Guesses with a smaller path probability are not made.
    pub min_path: f32,
    /// Steps of a round, after which the draft waits for the commit; `None`: it runs freely and rests only when more
    /// guesses have no value.
    pub round: Option<u16>,
}

impl Growth {
    /// What fits a worker that holds so many rows for a session.
    pub(crate) fn within(self, rows: u16) -> Growth {
        Growth {
            width: self.width.min(rows),
            nodes: self.nodes.min(rows),
            ..self
        }
    }
}

/// The bounds of what a verifier computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Verification {
    /// Tree rows in one step, at most.
    pub rows: u16,
    /// Nodes with a smaller path probability are not computed.
    pub min_path: f32,
}

/// The bounds of what heads beside the target guess.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeadBounds {
    /// Tokens that each head guesses.
    pub guesses: u8,
    /// Nodes of the tree of their products, at most; 0: heads are not used.
    pub nodes: u16,
}

/// The limits of a qualifier, without which it would be a slow draft.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Advice {
    /// It starts no step while it is this many tokens ahead of the committed text.
    pub ahead: u16,
    /// At most this share of its recent steps may be without a guess below its own tip.
    pub bare_share: f32,
    /// Its picks are thought at least this likely, however likely they have been so far. Above one half they lead at
    /// their place.
    pub least: f32,
}

/// The step that a verifier could start now.
#[derive(Clone, Copy, Debug)]
pub struct NextStep {
    /// What the verifier does.
    pub duty: Duty,
    /// Now.
    pub now: Time,
    /// When the text last grew.
    pub base_since: Time,
    /// Whether every draft has finished its round for the current text.
    pub is_round_done: bool,
    /// Whether the last token of the text was not among the guesses.
    pub is_after_miss: bool,
    /// Rows that are computed anyway: the last token of the text, a prompt.
    pub base_rows: usize,
    /// Guesses that would be submitted.
    pub guesses: usize,
    /// Guesses that there are, submitted or not.
    pub held: usize,
    /// How many of those submitted are expected to be accepted.
    pub gain: f64,
    /// The probability that the text goes on behind one of the guesses that drafts grow next.
    pub open: f64,
    /// Expected duration, microseconds.
    pub step_us: f64,
    /// Steps of a draft's round; `None` where drafts run freely.
    pub round: Option<u16>,
}

/// A strategy as it is registered.
#[derive(Debug)]
pub struct Entry {
    /// The name users type.
    pub name: &'static str,
    /// What it does, in one sentence.
    pub about: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// What can be set.
    pub knobs: &'static [Knob],
    /// Whether a combination of swept knobs is worth trying.
    pub is_sensible: fn(&Knobs) -> bool,
    /// Makes it; the knobs are complete and in range.
    pub build: fn(&Knobs) -> Arc<dyn Strategy>,
}

impl Entry {
    /// The knob with this name.
    pub fn knob(&self, name: &str) -> Option<&'static Knob> {
        self.knobs.iter().find(|knob| knob.name == name)
    }

    /// What a sweep tries: every sensible combination of the knobs' swept values. Empty for a strategy that chooses for
    /// itself.
    pub fn sweep(&self) -> Vec<Knobs> {
        let swept = self.knobs.iter().filter(|knob| !knob.sweep.is_empty());
        let mut all = alloc::vec![Knobs::default()];
        for knob in swept {
            all = (all.iter())
                .flat_map(|knobs| {
                    (knob.sweep.iter()).map(|&value| knobs.clone().with(knob.name, value))
                })
                .collect();
        }
        all.retain(|knobs| !knobs.is_empty() && (self.is_sensible)(knobs));
        all
    }
}

/// A strategy by name, with the knobs that differ from its defaults and the acceptance rule: what travels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Its name; empty: [`DEFAULT`].
    pub name: String,
    /// What is set.
    pub knobs: Knobs,
    /// How guesses are accepted.
    pub rule: Rule,
}

impl Settings {
    /// A strategy with its own defaults.
    pub fn new(name: &str) -> Self {
        Settings {
            name: name.to_string(),
            ..Settings::default()
        }
    }

    /// The same with one knob set.
    #[must_use]
    pub fn with(mut self, knob: &str, value: f64) -> Self {
        self.knobs = self.knobs.with(knob, value);
        self
    }

    /// The same by another acceptance rule.
    #[must_use]
    pub fn by(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }
}

/// A strategy that a session uses. Clones share it.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// What was asked for, as it is sent to workers.
    pub settings: Settings,
    strategy: Arc<dyn Strategy>,
}

impl Chosen {
    /// How drafts grow, and when a target starts, while this is asked of drafts.
    pub(crate) fn within(&self, mode: Mode) -> &dyn Strategy {
        let in_turns = match mode {
            Mode::Turns => self.strategy.in_turns(),
            Mode::Speculate | Mode::Rest => None,
        };
        in_turns.unwrap_or(&*self.strategy)
    }
}

impl core::ops::Deref for Chosen {
    type Target = dyn Strategy;

    fn deref(&self) -> &Self::Target {
        &*self.strategy
    }
}

/// Why there is no such strategy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StrategyError {
    /// It is not registered.
    #[error("unknown strategy {name:?}; known are {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The known ones.
        known: String,
    },
    /// A knob is wrong.
    #[error("strategy {strategy}: {error}")]
    Knob {
        /// The strategy.
        strategy: &'static str,
        /// What is wrong.
        error: KnobError,
    },
    /// It does not go with the acceptance rule.
    #[error("strategy {strategy} does not support acceptance {rule}, which {needs}; use {others}")]
    Rule {
        /// The strategy.
        strategy: &'static str,
        /// The rule.
        rule: &'static str,
        /// What the rule needs.
        needs: &'static str,
        /// The strategies that support it.
        others: String,
    },
    /// A tolerance of the rule `fuzzy` is out of its range.
    #[error("tau_q is {} and tau_t is {}; allowed are numbers from 0 to {MAX_TOLERANCE}", .0.draft, .0.qualifier)]
    Tolerance(Tolerance),
}

/// The strategies of a process.
#[derive(Clone, Debug)]
pub struct Registry {
    entries: Vec<&'static Entry>,
}

impl Default for Registry {
    /// Those that come with Offshoot.
    fn default() -> Self {
        Registry {
            entries: BUILT_IN.to_vec(),
        }
    }
}

impl Registry {
    /// The same with one more.
    #[must_use]
    pub fn with(mut self, entry: &'static Entry) -> Self {
        self.entries.push(entry);
        self
    }

    /// All of them.
    pub fn entries(&self) -> &[&'static Entry] {
        &self.entries
    }

    /// The entry with this name; an empty name is [`DEFAULT`].
    ///
    /// # Errors
    /// When there is none.
    pub fn entry(&self, name: &str) -> Result<&'static Entry, StrategyError> {
        let name = if name.is_empty() { DEFAULT } else { name };
        let found = self.entries.iter().find(|entry| entry.name == name);
        found.copied().ok_or_else(|| StrategyError::Unknown {
            name: name.chars().take(64).collect(),
            known: (self.entries.iter().map(|entry| entry.name))
                .collect::<Vec<_>>()
                .join(", "),
        })
    }

    /// Makes the strategy that was asked for.
    ///
    /// # Errors
    /// When there is no such strategy, or a knob is unknown or out of range.
    pub fn choose(&self, settings: &Settings) -> Result<Chosen, StrategyError> {
        let entry = self.entry(&settings.name)?;
        let complete =
            (settings.knobs.complete(entry.knobs)).map_err(|error| StrategyError::Knob {
                strategy: entry.name,
                error,
            })?;
        let strategy = (entry.build)(&complete);
        let rule = settings.rule;
        if let Rule::Fuzzy(tolerance) = rule
            && !tolerance.is_valid()
        {
            return Err(StrategyError::Tolerance(tolerance));
        }
        if !strategy.supports(rule) {
            return Err(StrategyError::Rule {
                strategy: entry.name,
                rule: rule.name(),
                needs: match rule {
                    Rule::Exact => "nothing",
                    Rule::Rejection => "judges the guesses of one draft in the order it drew them",
                    Rule::Fuzzy(_) => "compares a qualifier's probabilities with the target's",
                },
                others: self.supporting(rule),
            });
        }
        Ok(Chosen {
            settings: Settings {
                name: entry.name.to_string(),
                knobs: settings.knobs.clone(),
                rule,
            },
            strategy,
        })
    }

    /// The names of the strategies that support a rule, with the defaults of their knobs.
    fn supporting(&self, rule: Rule) -> String {
        let names: Vec<&str> = (self.entries.iter())
            .filter(|entry| {
                let defaults = Knobs::default().complete(entry.knobs);
                defaults.is_ok_and(|knobs| (entry.build)(&knobs).supports(rule))
            })
            .map(|entry| entry.name)
            .collect();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn every_entry_builds_with_its_defaults_and_at_every_point_of_its_sweep() {
        let registry = Registry::default();
        for entry in registry.entries() {
            let settings = Settings::new(entry.name);
            let chosen = registry.choose(&settings).unwrap();
            assert!(chosen.duties(Role::Target).has(Duty::Commit));
            for knobs in entry.sweep() {
                let settings = Settings {
                    knobs,
                    ..settings.clone()
                };
                registry.choose(&settings).unwrap();
            }
            for knob in entry.knobs {
                assert!(!knob.help.is_empty() && knob.range.holds(knob.default));
            }
        }
        assert_eq!(
            registry.choose(&Settings::default()).unwrap().settings.name,
            DEFAULT
        );
    }

    #[test]
    fn what_is_unknown_is_named_with_what_is_known() {
        let registry = Registry::default();
        let error = registry
            .choose(&Settings::new("magic"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("magic") && error.contains("serial-tree"),
            "{error}"
        );
        let odd = Settings::new("serial").with("depth", 3.0);
        let error = registry.choose(&odd).unwrap_err().to_string();
        assert!(
            error.contains("depth") && error.contains("gamma"),
            "{error}"
        );
        let far = Settings::new("serial").with("gamma", 65.0);
        let error = registry.choose(&far).unwrap_err().to_string();
        assert!(
            error.contains("gamma is 65") && error.contains("0 to 64"),
            "{error}"
        );
    }

    #[test]
    fn a_rule_that_a_strategy_does_not_support_is_refused_with_those_that_do() {
        let registry = Registry::default();
        for name in ["serial", "serial-tree", "parallel"] {
            let chosen = registry.choose(&Settings::new(name).by(Rule::Rejection));
            assert_eq!(chosen.unwrap().settings.rule, Rule::Rejection, "{name}");
        }
        let merged = Settings::new("auto").by(Rule::Rejection);
        let error = registry.choose(&merged).unwrap_err().to_string();
        for part in ["auto", "rejection", "one draft", "serial, serial-tree"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
        let odd = Rule::Fuzzy(Tolerance {
            draft: -1.0,
            ..Tolerance::default()
        });
        let error = registry.choose(&Settings::new("auto").by(odd)).unwrap_err();
        assert!(error.to_string().contains("tau_q is -1"), "{error}");
    }

    #[test]
    fn serial_trees_are_swept_where_they_have_room_for_their_depth() {
        let sweep = serial_tree::ENTRY.sweep();
        assert!(sweep.len() > serial::ENTRY.sweep().len());
        assert!(
            sweep
                .iter()
                .all(|knobs| knobs.get("rows") >= knobs.get("depth"))
        );
        assert!(ar::ENTRY.sweep().is_empty() && auto::ENTRY.sweep().is_empty());
    }
}

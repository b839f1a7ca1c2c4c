//! Named strategies and the knobs of the machine that each of them is a setting of.

use std::time::Duration;

/// When a draft stops growing by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// After this many steps it waits for the next commit (the turn-taking strategies).
    AfterSteps(u16),
    /// Only when more guesses have no value.
    WhenWorthless,
}

/// How a draft grows the tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GrowthPolicy {
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
    /// When to stop.
    pub pause: Pause,
}

/// When a verifier starts its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launch {
    /// At once, with whatever is there.
    AtOnce,
    /// When every draft has finished its round for the current text, or this long after the last commit.
    Round(Duration),
    /// At once, unless measured step times say that a short wait for more guesses pays.
    WhenWaitingCosts,
}

/// How a verifier chooses its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VerifyPolicy {
    /// When to start a step.
    pub launch: Launch,
    /// Tree rows in one step, at most.
    pub rows: u16,
    /// Nodes with a smaller path probability are not computed.
    pub min_path: f32,
}

/// What keeps a qualifier a qualifier.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdvicePolicy {
    /// It runs at most this many tokens ahead of the committed text.
    pub ahead: u16,
    /// At most this share of its recent steps may be without a guess below its own tip; beyond that it would be a
    /// slow draft.
    pub bare_share: f32,
}

/// How a request is decoded. Every strategy gives the same text under the `exact` acceptance rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Strategy {
    /// Plain decoding: one token per target step, no draft work at all.
    Ar,
    /// Serial speculative sampling (Leviathan et al. 2211.17192, Chen et al. 2302.01318): a chain of `gamma`, then
    /// the draft pauses until the commit.
    Serial {
        /// Tokens drafted per round.
        gamma: u16,
    },
    /// A serial tree (SpecInfer 2305.09781): `depth` draft steps of up to `width` rows, then the best `rows` nodes
    /// go to the target and the draft pauses until the commit.
    SerialTree {
        /// Draft steps per round.
        depth: u16,
        /// Nodes expanded per draft step.
        width: u16,
        /// Nodes verified per target step.
        rows: u16,
    },
    /// Free-running: best-first growth over calibrated path scores by every contributor, while the target verifies.
    Auto(AutoKnobs),
}

/// Caps of the `auto` strategy; within them it follows measured step times and calibrated scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AutoKnobs {
    /// Nodes expanded per draft step, at most.
    pub width: u16,
    /// Nodes verified per target step, at most.
    pub rows: u16,
    /// Guesses reach at most this far beyond the text.
    pub depth: u16,
    /// How far the qualifier may run ahead.
    pub ahead: u16,
}

impl Default for AutoKnobs {
    fn default() -> Self {
        AutoKnobs {
            width: 12,
            rows: 40,
            depth: 40,
            ahead: 20,
        }
    }
}

/// How long a turn-taking target waits for a round that never ends, for example because its draft died.
const ROUND_DEADLINE: Duration = Duration::from_millis(400);

impl Strategy {
    /// The name users type.
    pub fn name(&self) -> &'static str {
        match self {
            Strategy::Ar => "ar",
            Strategy::Serial { .. } => "serial",
            Strategy::SerialTree { .. } => "serial-tree",
            Strategy::Auto(_) => "auto",
        }
    }

    /// What drafts do; `None` when they are not used.
    pub fn growth(&self) -> Option<GrowthPolicy> {
        match *self {
            Strategy::Ar => None,
            Strategy::Serial { gamma } => Some(GrowthPolicy {
                width: 1,
                branch: 1,
                depth: gamma,
                nodes: gamma,
                min_path: 0.0,
                pause: Pause::AfterSteps(gamma),
            }),
            Strategy::SerialTree { depth, width, .. } => Some(GrowthPolicy {
                width,
                branch: width.clamp(2, 8),
                depth,
                nodes: 512,
                min_path: 0.002,
                pause: Pause::AfterSteps(depth),
            }),
            Strategy::Auto(knobs) => Some(GrowthPolicy {
                width: knobs.width,
                branch: 12,
                depth: knobs.depth,
                nodes: 720,
                min_path: 0.001,
                pause: Pause::WhenWorthless,
            }),
        }
    }

    /// What the target does.
    pub fn verify(&self) -> VerifyPolicy {
        match *self {
            Strategy::Ar => VerifyPolicy {
                launch: Launch::AtOnce,
                rows: 0,
                min_path: 1.0,
            },
            Strategy::Serial { gamma } => VerifyPolicy {
                launch: Launch::Round(ROUND_DEADLINE),
                rows: gamma,
                min_path: 0.0,
            },
            Strategy::SerialTree { rows, .. } => VerifyPolicy {
                launch: Launch::Round(ROUND_DEADLINE),
                rows,
                min_path: 0.0,
            },
            Strategy::Auto(knobs) => VerifyPolicy {
                launch: Launch::WhenWaitingCosts,
                rows: knobs.rows,
                min_path: 0.001,
            },
        }
    }

    /// What qualifiers do; `None` when they are not used.
    pub fn advice(&self) -> Option<(VerifyPolicy, AdvicePolicy)> {
        match *self {
            Strategy::Auto(knobs) => Some((
                VerifyPolicy {
                    launch: Launch::AtOnce,
                    rows: knobs.rows.min(16),
                    min_path: 0.01,
                },
                AdvicePolicy {
                    ahead: knobs.ahead,
                    bare_share: 0.25,
                },
            )),
            Strategy::Ar | Strategy::Serial { .. } | Strategy::SerialTree { .. } => None,
        }
    }
}

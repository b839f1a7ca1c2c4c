//! `pyramid`: PyramidSD (arXiv 2510.12966), lossless by default. Three models: the drafts feed the qualifier, the qualifier
//! feeds the target.
//!
//! The qualifier judges up to `draft` tokens of the drafts at a time, keeps those that it picks itself, and replaces the first
//! that it does not; the drafts go on below its replacement. What it has picked, up to `qualified` tokens ahead of the text, is
//! the best path of the tree, so that the target verifies it first. The paper's loop takes turns; here all three run at the
//! same time, each on its own device, and wait for one another only while that pays. Under the acceptance rule `exact` the
//! target decides by equality, whatever the qualifier has said. Without a qualifier the drafts' chain goes to the target
//! directly; without a draft the qualifier's own tokens are the chain.
//!
//! Under the rule `fuzzy` it is the paper's loop, in which they do take turns: PSD_F, and PSD_A with `tau_q` 0. The qualifier
//! judges whole chains of `draft` tokens until it is `qualified` tokens ahead, then the target judges those. What is tolerated
//! then depends on nobody's speed, and the seed decides the text.

use alloc::sync::Arc;

use decode::Rule;

use super::{
    Advice, Entry, Frontier, Growth, Knob, NextStep, Range, Round, Shape, Strategy, Verification,
};
use crate::duty::{Duties, Duty, Role};
use crate::message::Outlook;
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "pyramid",
    about: "PyramidSD: the drafts' chain goes to the qualifier, and what that makes of it to the target",
    source: "arXiv 2510.12966",
    knobs: &[
        Knob {
            name: "draft",
            range: Range::Whole(1, 64),
            default: 5.0,
            help: "l_D: draft tokens judged per qualifier step, at most",
            sweep: &[],
        },
        Knob {
            name: "qualified",
            range: Range::Whole(1, 64),
            default: 15.0,
            help: "l_Q: tokens verified per target step, at most; the paper has 2 to 3 times l_D",
            sweep: &[],
        },
    ],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Pyramid {
            draft: knobs.whole("draft"),
            qualified: knobs.whole("qualified"),
        })
    },
};

/// What the qualifier has picked leads at its place: drafts go on below it, and the target verifies it first.
const LEADS: f32 = 0.6;

#[derive(Debug)]
struct Pyramid {
    draft: u16,
    qualified: u16,
}

impl Pyramid {
    /// What a verifier takes at a time.
    fn chain(&self, duty: Duty) -> u16 {
        match duty {
            Duty::Advise => self.draft,
            Duty::Propose | Duty::Commit => self.qualified,
        }
    }

    /// Nodes that a tree can come to have between two commits. What the qualifier has replaced stays in it, and a draft is as
    /// far ahead as it may be each time: at worst there is a chain to the greatest depth behind each token that the qualifier
    /// is ahead. A qualifier that waits for a whole chain would wait in vain for a draft whose tree is full.
    fn nodes(&self) -> u16 {
        let replaced = 0..=self.qualified;
        let left = replaced.map(|ahead| self.qualified - ahead + self.draft);
        left.sum::<u16>() + self.qualified
    }
}

impl Strategy for Pyramid {
    fn duties(&self, role: Role) -> Duties {
        Duties::of(match role {
            Role::Draft => Duty::Propose,
            Role::Qualifier => Duty::Advise,
            Role::Target => Duty::Commit,
        })
    }

    fn supports(&self, rule: Rule) -> bool {
        matches!(rule, Rule::Exact | Rule::Fuzzy(_))
    }

    fn takes_turns(&self, rule: Rule) -> bool {
        matches!(rule, Rule::Fuzzy(_))
    }

    fn growth(&self) -> Growth {
        Growth {
            width: 1,
            branch: 1,
            depth: self.qualified + self.draft,
            nodes: self.nodes(),
            min_path: 0.0,
            round: None,
        }
    }

    fn worth(&self, node: &Frontier, _round: &Round<'_>) -> Option<f32> {
        // What the qualifier has picked leads at its place, so that the main chain runs through it.
        (node.is_own && node.is_on_main_chain()).then_some(node.path)
    }

    fn verification(&self, duty: Duty) -> Verification {
        Verification {
            rows: self.chain(duty),
            ..Verification::default()
        }
    }

    fn shape(&self, _duty: Duty, _outlook: &Outlook) -> Shape {
        Shape::Chain
    }

    fn starts(&self, next: &NextStep, waits: &mut Waits<'_>) -> Start {
        if next.guesses >= usize::from(self.chain(next.duty)) {
            Start::Now
        } else {
            waits.while_it_pays(next)
        }
    }

    fn advice(&self) -> Advice {
        Advice {
            ahead: self.qualified,
            // The tokens of a qualifier without drafts are the chain.
            bare_share: 1.0,
            least: LEADS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Time;
    use crate::strategy::view::tests::round;
    use crate::wait::WaitModel;

    const PYRAMID: Pyramid = Pyramid {
        draft: 3,
        qualified: 8,
    };

    fn starts(duty: Duty, guesses: usize) -> Start {
        let next = NextStep {
            duty,
            now: Time::ZERO,
            base_since: Time::ZERO,
            is_round_done: false,
            is_after_miss: false,
            base_rows: 1,
            guesses,
            held: guesses,
            open: 1.0,
            gain: 0.0,
            step_us: 20_000.0,
            round: None,
        };
        let mut waits = Waits {
            model: &mut WaitModel::default(),
            waiting: &mut None,
        };
        PYRAMID.starts(&next, &mut waits)
    }

    #[test]
    fn each_stage_takes_its_own_length_and_starts_when_it_has_it() {
        assert_eq!(PYRAMID.verification(Duty::Advise).rows, 3);
        assert_eq!(PYRAMID.verification(Duty::Commit).rows, 8);
        assert_eq!(PYRAMID.advice().ahead, 8);
        assert_eq!(starts(Duty::Advise, 3), Start::Now);
        assert_eq!(starts(Duty::Commit, 8), Start::Now);
        assert!(matches!(starts(Duty::Commit, 3), Start::WaitAlone(_)));
    }

    #[test]
    fn drafts_follow_what_the_qualifier_has_picked() {
        let replaced = Frontier::TEXT.child(0.3, 1);
        let picked = Frontier::TEXT.child(0.7, 0);
        assert_eq!(PYRAMID.worth(&replaced, &round(&[])), None);
        assert_eq!(PYRAMID.worth(&picked, &round(&[])), Some(0.7));
    }
}

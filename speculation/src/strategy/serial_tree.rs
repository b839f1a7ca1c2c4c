//! `serial-tree`: serial speculation with a tree (SpecInfer, arXiv 2305.09781), grown as in EAGLE-2 (arXiv 2406.16858,
//! section 4): a beam over the probability of whole paths. Each of `depth` draft steps expands the `width` best nodes of the
//! newest level by `width` guesses each; then all guesses are pooled, and of all levels the best `rows` go to the target,
//! which are a tree, since a path is never more likely than its beginning. The draft pauses until the commit.
//!
//! EAGLE-2 takes the draft's own probabilities; here they are calibrated ones. Guesses below 0.002 are not made: they would
//! never be among the best. By default the depth adapts: there is another level while it is worth the time of a draft
//! step, by measured step times.

use alloc::sync::Arc;

use decode::Rule;

use super::length::{self, LONGEST};
use super::{Entry, Frontier, Growth, Knob, NextStep, Range, Round, Strategy, Verification};
use crate::duty::{Duties, Duty, Role};
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "serial-tree",
    about: "The draft makes a tree, then waits until the target has verified its best nodes",
    source: "arXiv 2305.09781, arXiv 2406.16858",
    knobs: &[
        Knob {
            name: "depth",
            range: Range::Whole(0, 64),
            default: 0.0,
            help: "draft steps per round; 0: as many as pay for the time that the target waits",
            sweep: &[2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        },
        Knob {
            name: "width",
            range: Range::Whole(1, 32),
            default: 8.0,
            help: "nodes expanded per draft step, and guesses behind each",
            sweep: &[2.0, 4.0, 8.0],
        },
        Knob {
            name: "rows",
            range: Range::Whole(1, 128),
            default: 32.0,
            help: "nodes verified per target step",
            sweep: &[8.0, 16.0, 32.0],
        },
    ],
    // A tree of `depth` levels has at least one node in each.
    is_sensible: |knobs| knobs.get("rows") >= knobs.get("depth"),
    build: |knobs| {
        Arc::new(SerialTree {
            depth: knobs.whole("depth"),
            longest: LONGEST,
            width: knobs.whole("width"),
            rows: knobs.whole("rows"),
        })
    },
};

#[derive(Debug)]
pub(super) struct SerialTree {
    /// 0: it adapts.
    pub(super) depth: u16,
    /// The most if it does.
    pub(super) longest: u16,
    pub(super) width: u16,
    pub(super) rows: u16,
}

impl SerialTree {
    fn most(&self) -> u16 {
        match self.depth {
            0 => self.longest,
            depth => depth,
        }
    }
}

impl Strategy for SerialTree {
    fn duties(&self, role: Role) -> Duties {
        match role {
            Role::Draft => Duties::of(Duty::Propose),
            Role::Qualifier => Duties::default(),
            Role::Target => Duties::of(Duty::Commit),
        }
    }

    fn supports(&self, rule: Rule) -> bool {
        matches!(rule, Rule::Exact | Rule::Rejection)
    }

    fn growth(&self) -> Growth {
        Growth {
            width: self.width,
            branch: self.width,
            depth: self.most(),
            nodes: 512,
            min_path: 0.002,
            round: Some(self.most()),
        }
    }

    fn worth(&self, node: &Frontier, round: &Round<'_>) -> Option<f32> {
        (node.is_own && node.depth == round.levels).then_some(node.path)
    }

    fn expands(&self, worth: &[f64], round: &Round<'_>) -> usize {
        let open = worth.iter().sum::<f64>() as f32;
        let goes_on = self.depth > 0 || length::pays(open, round);
        if goes_on { worth.len() } else { 0 }
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: self.rows,
            ..Verification::default()
        }
    }

    fn starts(&self, next: &NextStep, waits: &mut Waits<'_>) -> Start {
        waits.for_round(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agreement::Pace;
    use crate::strategy::view::tests::round;

    const TREE: SerialTree = SerialTree {
        depth: 0,
        longest: LONGEST,
        width: 4,
        rows: 16,
    };

    #[test]
    fn the_beam_is_the_newest_level() {
        let mut round = round(&[]);
        let first = Frontier::TEXT.child(0.5, 0);
        let second = first.child(0.4, 0);
        round.levels = 1;
        assert_eq!(TREE.worth(&first, &round), Some(0.5));
        assert_eq!(TREE.worth(&second, &round), None);
        round.levels = 2;
        assert_eq!(
            TREE.worth(&first, &round),
            None,
            "left behind, however good"
        );
        assert_eq!(TREE.worth(&second, &round), Some(0.4));
    }

    #[test]
    fn there_is_another_level_while_the_beam_holds_enough() {
        let mut round = round(&[]);
        round.steps = 9;
        round.pace = Pace {
            ratio: Some(10.0),
            agreement: 0.6,
            earns: Some(0.2),
        };
        assert_eq!(TREE.expands(&[0.3, 0.1, 0.05], &round), 3);
        assert_eq!(TREE.expands(&[0.2, 0.1], &round), 0);
        let fixed = SerialTree { depth: 5, ..TREE };
        assert_eq!(fixed.expands(&[0.01], &round), 1);
    }
}

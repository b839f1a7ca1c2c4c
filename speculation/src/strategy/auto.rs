//! `auto`: free-running drafts. Every contributor grows the tree best-first over calibrated path scores while the target
//! verifies, and the target looks up what followed in the text before, and in completed texts that the request names; rows are taken while they pay for themselves by
//! measured step times, and where guesses do not pay at all, none is asked for. Where drafts compute on the target's device, they
//! take turns with it, as in `serial-tree`, if that is measured to be faster.

use alloc::sync::Arc;

use decode::Rule;

use super::length::LONGEST;
use super::serial_tree::SerialTree;
use super::{
    Advice, Entry, Frontier, Growth, HeadBounds, Knob, NextStep, Range, Round, Strategy,
    Verification,
};
use crate::allocation::Choice;
use crate::duty::{Duties, Duty, Role};
use crate::lookup::LookupBounds;
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "auto",
    about: "Drafts and qualifier run freely beside the target; rows follow measured step times",
    source: "",
    knobs: &[
        Knob {
            name: "width",
            range: Range::Whole(1, 32),
            default: 12.0,
            help: "nodes expanded per draft step, at most",
            sweep: &[],
        },
        Knob {
            name: "rows",
            range: Range::Whole(1, 128),
            default: 64.0,
            help: "nodes verified per target step, at most",
            sweep: &[],
        },
        Knob {
            name: "depth",
            range: Range::Whole(1, 256),
            default: 40.0,
            help: "how far guesses reach beyond the text, in tokens",
            sweep: &[],
        },
        Knob {
            name: "ahead",
            range: Range::Whole(1, 128),
            default: 20.0,
            help: "how far the qualifier may run ahead, in tokens",
            sweep: &[],
        },
        Knob {
            name: "lookup",
            range: Range::Whole(0, 8),
            default: 3.0,
            help: "continuations that the target looks up in the text itself, at most",
            sweep: &[],
        },
        Knob {
            name: "heads",
            range: Range::Whole(0, 64),
            default: 0.0,
            help: "guesses of heads beside the target, where it has any, at most; 0: they are not asked",
            sweep: &[],
        },
    ],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Auto {
            width: knobs.whole("width"),
            rows: knobs.whole("rows"),
            depth: knobs.whole("depth"),
            ahead: knobs.whole("ahead"),
            lookup: knobs.whole("lookup"),
            heads: knobs.whole("heads"),
            in_turns: SerialTree {
                depth: 0,
                longest: knobs.whole("depth").min(LONGEST),
                width: knobs.whole("width").min(8),
                rows: knobs.whole("rows"),
            },
        })
    },
};

/// A node that another draft should grow is worth this much less here: it is grown when nothing else is left.
const FOREIGN: f32 = 0.2;

/// Guesses down to this path probability are made. A guess that is never verified costs little, and saves a miss when the
/// walk ends in it: half of all misses were guesses that had been ranked and found too unlikely at 0.001.
const LEAST: f32 = 0.0003;

#[derive(Debug)]
struct Auto {
    width: u16,
    rows: u16,
    depth: u16,
    ahead: u16,
    lookup: u16,
    heads: u16,
    /// What it does while drafts and target take turns on one device.
    in_turns: SerialTree,
}

impl Strategy for Auto {
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

    fn growth(&self) -> Growth {
        Growth {
            width: self.width,
            branch: 12,
            depth: self.depth,
            nodes: 1000,
            min_path: LEAST,
            round: None,
        }
    }

    fn worth(&self, node: &Frontier, _round: &Round<'_>) -> Option<f32> {
        Some(if node.is_own {
            node.path
        } else {
            node.path * FOREIGN
        })
    }

    fn verification(&self, duty: Duty) -> Verification {
        match duty {
            // Advice on unlikely branches comes too late to be of use.
            Duty::Advise => Verification {
                rows: self.rows.min(16),
                min_path: 0.01,
            },
            Duty::Propose | Duty::Commit => Verification {
                rows: self.rows,
                min_path: LEAST,
            },
        }
    }

    fn choice(&self) -> Choice {
        Choice::WhileTheyPay
    }

    fn starts(&self, next: &NextStep, waits: &mut Waits<'_>) -> Start {
        match next.duty {
            Duty::Advise => Start::Now,
            Duty::Propose | Duty::Commit => waits.while_it_pays(next),
        }
    }

    fn lookup(&self) -> LookupBounds {
        LookupBounds {
            branches: self.lookup,
            length: 10,
        }
    }

    fn history(&self) -> LookupBounds {
        LookupBounds {
            branches: 3,
            length: 16,
        }
    }

    fn heads(&self) -> HeadBounds {
        HeadBounds {
            guesses: 8,
            nodes: self.heads,
        }
    }

    fn advice(&self) -> Advice {
        Advice {
            ahead: self.ahead,
            bare_share: 0.25,
            least: 0.0,
        }
    }

    fn in_turns(&self) -> Option<&dyn Strategy> {
        Some(&self.in_turns)
    }

    fn min_path_sent(&self, role: Role) -> f32 {
        match role {
            Role::Draft => 0.01,
            Role::Qualifier | Role::Target => 0.8 * LEAST,
        }
    }
}

//! `serial-tree`: serial speculation with a tree (SpecInfer, arXiv 2305.09781). The draft makes `depth` steps of up to
//! `width` rows, then the best `rows` nodes go to the target, and the draft pauses until the commit.

use alloc::sync::Arc;

use decode::Rule;

use super::{Entry, Growth, Knob, NextStep, Range, Strategy, Verification};
use crate::duty::{Duties, Duty, Role};
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "serial-tree",
    about: "The draft makes a tree, then waits until the target has verified its best nodes",
    source: "arXiv 2305.09781",
    knobs: &[
        Knob {
            name: "depth",
            range: Range::Whole(1, 64),
            default: 4.0,
            help: "draft steps per round",
            sweep: &[2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        },
        Knob {
            name: "width",
            range: Range::Whole(1, 32),
            default: 4.0,
            help: "nodes expanded per draft step",
            sweep: &[2.0, 4.0, 8.0],
        },
        Knob {
            name: "rows",
            range: Range::Whole(1, 128),
            default: 16.0,
            help: "nodes verified per target step",
            sweep: &[8.0, 16.0, 32.0],
        },
    ],
    // A tree of `depth` levels has at least one node in each.
    is_sensible: |knobs| knobs.get("rows") >= knobs.get("depth"),
    build: |knobs| {
        Arc::new(SerialTree {
            depth: knobs.whole("depth"),
            width: knobs.whole("width"),
            rows: knobs.whole("rows"),
        })
    },
};

#[derive(Debug)]
struct SerialTree {
    depth: u16,
    width: u16,
    rows: u16,
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
            branch: self.width.clamp(2, 8),
            depth: self.depth,
            nodes: 512,
            min_path: 0.002,
            round: Some(self.depth),
        }
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

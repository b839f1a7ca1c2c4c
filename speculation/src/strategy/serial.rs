//! `serial`: serial speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). The draft
//! makes a chain of `gamma` tokens, then pauses until the target has verified all of them.

use alloc::sync::Arc;

use decode::Rule;

use super::{Entry, Growth, Knob, NextStep, Range, Strategy, Verification};
use crate::duty::{Duties, Duty, Role};
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "serial",
    about: "The draft makes a chain of gamma tokens, then waits until the target has verified it",
    source: "arXiv 2211.17192, arXiv 2302.01318",
    knobs: &[Knob {
        name: "gamma",
        range: Range::Whole(1, 64),
        default: 4.0,
        help: "tokens drafted per round",
        sweep: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0],
    }],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Serial {
            gamma: knobs.whole("gamma"),
        })
    },
};

#[derive(Debug)]
struct Serial {
    gamma: u16,
}

impl Strategy for Serial {
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
            width: 1,
            branch: 1,
            depth: self.gamma,
            nodes: self.gamma,
            min_path: 0.0,
            round: Some(self.gamma),
        }
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: self.gamma,
            ..Verification::default()
        }
    }

    fn starts(&self, next: &NextStep, waits: &mut Waits<'_>) -> Start {
        waits.for_round(next)
    }
}

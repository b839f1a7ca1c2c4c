//! A strategy that nobody has built in: its entry is all that the simulation needs.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::sync::Arc;

use simulation::Coverage;
use speculation::duty::{Duties, Duty, Role};
use speculation::strategy::{
    Advice, Entry, Frontier, Growth, Knob, NextStep, Range, Registry, Round, Strategy, Verification,
};
use speculation::wait::{Start, Waits};

/// Drafts guess in rounds of their own length and give up weak guesses; the target takes a share of what there is.
static ENTRY: Entry = Entry {
    name: "thrifty",
    about: "Short rounds of strong guesses, of which the target verifies a share",
    source: "",
    knobs: &[
        Knob {
            name: "round",
            range: Range::Whole(1, 8),
            default: 3.0,
            help: "draft steps per round",
            sweep: &[2.0, 4.0],
        },
        Knob {
            name: "share",
            range: Range::Real(0.0, 1.0),
            default: 0.5,
            help: "how much of what was guessed is verified",
            sweep: &[],
        },
    ],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Thrifty {
            round: knobs.whole("round"),
            share: knobs.get("share"),
        })
    },
};

#[derive(Debug)]
struct Thrifty {
    round: u16,
    share: f64,
}

impl Strategy for Thrifty {
    fn duties(&self, role: Role) -> Duties {
        Duties::of(match role {
            Role::Draft => Duty::Propose,
            Role::Qualifier => Duty::Advise,
            Role::Target => Duty::Commit,
        })
    }

    fn growth(&self) -> Growth {
        Growth {
            width: 2,
            branch: 2,
            depth: 2 * self.round,
            nodes: 24,
            min_path: 0.05,
            round: Some(self.round),
        }
    }

    fn worth(&self, node: &Frontier, _round: &Round<'_>) -> Option<f32> {
        (node.path > 0.1).then_some(node.path)
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: 12,
            min_path: 0.0,
        }
    }

    fn submits(&self, values: &[f64]) -> usize {
        (values.len() as f64 * self.share) as usize
    }

    fn starts(&self, next: &NextStep, waits: &mut Waits<'_>) -> Start {
        waits.for_round(next)
    }

    fn advice(&self) -> Advice {
        Advice {
            ahead: 4,
            bare_share: 0.5,
            least: 0.0,
        }
    }

    fn min_path_sent(&self, _role: Role) -> f32 {
        0.02
    }
}

#[test]
fn a_strategy_that_is_not_built_in_is_simulated_by_its_entry_alone() {
    let registry = Registry::default().with(&ENTRY);
    let total = (0..2_000).fold(Coverage::default(), |total, seed| {
        match simulation::check(seed, &registry) {
            Ok(coverage) => total.plus(coverage),
            Err(reason) => panic!("seed {seed}: {reason}"),
        }
    });
    assert!(total.strategies[ENTRY.name] > 500, "{total:?}");
}

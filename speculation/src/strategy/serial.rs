//! `serial`: serial speculative sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318). The draft
//! makes a chain of tokens, then pauses until the target has verified all of them.
//!
//! The papers' chain has `gamma` tokens. By default its length adapts: a chain goes on while the next token is worth the
//! time of a draft step, by measured step times and calibrated guesses, so that it is longer where it goes well. `stop` ends
//! it at a set probability instead.

use alloc::sync::Arc;

use decode::Rule;

use super::length::{self, LONGEST};
use super::{Entry, Growth, Knob, NextStep, Range, Round, Strategy, Verification};
use crate::duty::{Duties, Duty, Role};
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "serial",
    about: "The draft makes a chain of gamma tokens, then waits until the target has verified it",
    source: "arXiv 2211.17192, arXiv 2302.01318",
    knobs: &[
        Knob {
            name: "gamma",
            range: Range::Whole(0, 64),
            default: 0.0,
            help: "tokens drafted per round; 0: as many as pay for the time that the target waits",
            sweep: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0],
        },
        Knob {
            name: "stop",
            range: Range::Real(0.0, 1.0),
            default: 0.0,
            help: "without gamma: a chain less likely than this ends; 0: learned from step times",
            sweep: &[],
        },
    ],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Serial {
            gamma: knobs.whole("gamma"),
            stop: knobs.get("stop") as f32,
        })
    },
};

#[derive(Debug)]
struct Serial {
    /// 0: it adapts.
    gamma: u16,
    /// 0: it is learned.
    stop: f32,
}

impl Serial {
    fn most(&self) -> u16 {
        match self.gamma {
            0 => LONGEST,
            gamma => gamma,
        }
    }
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
            depth: self.most(),
            nodes: self.most(),
            min_path: 0.0,
            round: Some(self.most()),
        }
    }

    fn expands(&self, worth: &[f64], round: &Round<'_>) -> usize {
        let open = worth.iter().sum::<f64>() as f32;
        let goes_on = match (self.gamma, self.stop) {
            (0, 0.0) => length::pays(open, round),
            (0, stop) => open >= stop,
            _ => true,
        };
        if goes_on { worth.len() } else { 0 }
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: self.most(),
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

    #[test]
    fn a_chain_is_longer_where_it_goes_well() {
        let mut round = round(&[]);
        round.pace = Pace {
            ratio: Some(10.0),
            agreement: 0.6,
            earns: Some(0.17),
        };
        let learned = Serial {
            gamma: 0,
            stop: 0.0,
        };
        // Tokens of even probability, until the chain ends.
        let tokens = |strategy: &Serial, each: f64| {
            let mut path = 1.0;
            (0..64)
                .take_while(|_| {
                    path *= each;
                    strategy.expands(&[path], &round) > 0
                })
                .count()
        };
        assert_eq!((tokens(&learned, 0.3), tokens(&learned, 0.6)), (1, 2));
        assert!(tokens(&learned, 0.95) > 15);
        let set = Serial {
            gamma: 0,
            stop: 0.4,
        };
        assert_eq!((tokens(&set, 0.3), tokens(&set, 0.6)), (0, 1));
        let fixed = Serial {
            gamma: 5,
            stop: 0.4,
        };
        assert_eq!(tokens(&fixed, 0.01), 64, "its length is set");
        assert_eq!((fixed.growth().depth, fixed.growth().round), (5, Some(5)));
    }
}

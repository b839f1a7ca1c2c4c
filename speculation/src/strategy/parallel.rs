//! `parallel`: PEARL (arXiv 2408.11850). The draft never pauses: while the target verifies, it goes on as if everything
//! were accepted.
//!
//! - *Pre-verify*, after a miss: the target starts at once with its own row, and so tests the first token of the chain
//!   that the draft is making meanwhile.
//! - *Post-verify*, after a hit: the target verifies the next `gamma` tokens of the chain, which the draft made during
//!   the last step, while the draft makes the `gamma` tokens behind them.
//!
//! The paper takes `gamma` as the ratio of a target step to a draft step, which by default is what it comes to: the target
//! verifies what the draft has made during its last step. One rejection throws everything behind it away. Unlike the authors' code it has no barrier of whole rows, and is exact at every temperature.

use alloc::sync::Arc;

use decode::Rule;

use super::length::{self, LONGEST};
use super::{Entry, Frontier, Growth, Knob, NextStep, Range, Round, Strategy, Verification};
use crate::Time;
use crate::agreement::Pace;
use crate::duty::{Duties, Duty, Role};
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "parallel",
    about: "PEARL: the draft's chain goes on while the target verifies the part before",
    source: "arXiv 2408.11850",
    knobs: &[Knob {
        name: "gamma",
        range: Range::Whole(0, 64),
        default: 0.0,
        help: "tokens verified per target step; 0: as many as the draft makes during a target step",
        sweep: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0],
    }],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Parallel {
            gamma: knobs.whole("gamma"),
        })
    },
};

#[derive(Debug)]
struct Parallel {
    /// 0: it adapts.
    gamma: u16,
}

impl Parallel {
    fn most(&self) -> u16 {
        match self.gamma {
            0 => LONGEST,
            gamma => gamma,
        }
    }
}

impl Strategy for Parallel {
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
        // What is being verified, and what is made meanwhile.
        let chain = 2 * self.most();
        Growth {
            width: 1,
            branch: 1,
            depth: chain,
            nodes: chain,
            min_path: 0.0,
            round: None,
        }
    }

    fn length(&self, pace: &Pace) -> u16 {
        match self.gamma {
            0 => length::steps_beside(pace),
            gamma => gamma,
        }
    }

    fn worth(&self, node: &Frontier, round: &Round<'_>) -> Option<f32> {
        // What is being verified, and what is made meanwhile.
        let is_near = node.depth <= round.length.saturating_mul(2);
        (node.is_own && is_near).then_some(node.path)
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: self.most(),
            ..Verification::default()
        }
    }

    fn starts(&self, next: &NextStep, _waits: &mut Waits<'_>) -> Start {
        let is_pre_verify = next.is_after_miss && next.guesses == 0;
        // A draft as fast as the target's step over `gamma` is never waited for longer than a step.
        let until = next.base_since + Time::from_secs_f64(next.step_us * 1e-6);
        let has_all = next.guesses >= usize::from(self.gamma.max(1)) || next.base_rows > 1;
        if is_pre_verify || has_all || next.now >= until {
            Start::Now
        } else {
            Start::WaitUntil(until)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::WaitModel;

    const STEP: Time = Time::from_millis(20);

    fn starts(is_after_miss: bool, guesses: usize, now: Time) -> Start {
        let next = NextStep {
            duty: Duty::Commit,
            now,
            base_since: Time::ZERO,
            is_round_done: false,
            is_after_miss,
            base_rows: 1,
            guesses,
            held: guesses,
            open: 1.0,
            gain: 0.0,
            step_us: STEP.as_secs_f64() * 1e6,
            round: None,
        };
        let mut waits = Waits {
            model: &mut WaitModel::default(),
            waiting: &mut None,
        };
        Parallel { gamma: 4 }.starts(&next, &mut waits)
    }

    #[test]
    fn a_miss_is_followed_at_once_by_one_row_that_tests_the_first_new_token() {
        assert_eq!(starts(true, 0, Time::ZERO), Start::Now);
    }

    #[test]
    fn a_hit_is_followed_by_gamma_tokens_which_are_waited_for_no_longer_than_a_step() {
        assert_eq!(starts(false, 4, Time::ZERO), Start::Now);
        assert_eq!(starts(false, 3, Time::ZERO), Start::WaitUntil(STEP));
        assert_eq!(starts(false, 3, STEP), Start::Now);
    }

    #[test]
    fn the_draft_goes_on_for_as_long_as_the_target_verifies() {
        let growth = Parallel { gamma: 4 }.growth();
        assert_eq!((growth.depth, growth.round), (8, None));
    }

    #[test]
    fn without_a_set_length_the_target_takes_what_was_made_during_its_step() {
        use crate::strategy::view::tests::round;
        let adaptive = Parallel { gamma: 0 };
        let mut round = round(&[]);
        round.length = adaptive.length(&Pace {
            ratio: Some(7.4),
            ..Pace::default()
        });
        let depths = (1..64).filter(|&depth| {
            let node = Frontier {
                depth,
                ..Frontier::TEXT
            };
            adaptive.worth(&node, &round).is_some()
        });
        assert_eq!(depths.count(), 14, "twice what the draft makes meanwhile");
        assert_eq!(adaptive.verification(Duty::Commit).rows, LONGEST);
    }
}

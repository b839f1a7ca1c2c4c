//! `branch`: SpecBranch (arXiv 2506.01979). Like branch prediction: where the draft is not sure, it goes on with several
//! alternatives while the target verifies what comes before.
//!
//! - The *branch point* is the first token on the chain to which the draft's model gives a probability `q` below `eps`. There
//!   the `k = max(1, floor(k_max (1 - q)))` best tokens become branches (section 4.3).
//!   An unsure token on a branch has a second guess beside it from the start, by which the target sees where to stop when that
//!   branch survives, without a word from the draft.
//! - The target verifies the chain down to the branch point, and so decides what comes there. Meanwhile each branch grows, as
//!   far as there is time: a step of the draft is one token of every branch.
//! - Where the next token is the branch point, there is no chain to verify; then the first tokens of the branches are, so that
//!   the step is not spent on one token (the paper's would be).
//! - If all of the chain was right and one of the branches begins with the target's token, that branch survives and is the
//!   next chain. Otherwise nothing does, and the draft begins again while the target waits as long as that pays.
//!
//! A target that *forecasts* (H-RAD, section 4.2) moves the branch point: to the first token if nothing will be accepted,
//! behind the chain if everything will. Unlike the authors' code it is exact at every temperature, as the paper is: the
//! target's own token picks the branch.

use alloc::sync::Arc;

use decode::{Guess, Wanted};

use super::length::{LONGEST, steps_beside};
use super::{Entry, Frontier, Growth, Knob, NextStep, Range, Round, Shape, Strategy, Verification};
use crate::agreement::Pace;
use crate::duty::{Duties, Duty, Role};
use crate::message::{Forecast, Outlook};
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "branch",
    about: "SpecBranch: a chain to the first unsure token, and branches from there during verification",
    source: "arXiv 2506.01979",
    knobs: &[
        Knob {
            name: "eps",
            range: Range::Real(0.0, 1.0),
            default: 0.2,
            help: "a token that the draft gives a lower probability is a branch point",
            sweep: &[],
        },
        Knob {
            name: "branches",
            range: Range::Whole(1, 32),
            default: 8.0,
            help: "k_max: branches where the draft is least sure",
            sweep: &[],
        },
        Knob {
            name: "gamma",
            range: Range::Whole(0, 64),
            default: 0.0,
            help: "tokens of a chain, at most; 0: as many as the draft makes during a target step",
            sweep: &[],
        },
        Knob {
            name: "hrad",
            range: Range::Whole(0, 1),
            default: 1.0,
            help: "1: a target that forecasts moves the branch point; 0: only the draft's probabilities do",
            sweep: &[],
        },
    ],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Branch {
            eps: knobs.get("eps") as f32,
            branches: knobs.whole("branches"),
            gamma: knobs.whole("gamma"),
            forecasts: match knobs.whole("hrad") {
                0 => Forecasts::Ignored,
                _ => Forecasts::Followed,
            },
        })
    },
};

#[derive(Debug)]
struct Branch {
    eps: f32,
    branches: u16,
    /// 0: it adapts.
    gamma: u16,
    forecasts: Forecasts,
}

/// What becomes of the target's forecasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forecasts {
    Followed,
    Ignored,
}

impl Branch {
    fn most(&self) -> u16 {
        match self.gamma {
            0 => LONGEST,
            gamma => gamma,
        }
    }

    fn heeded(&self, outlook: &Outlook) -> Option<Forecast> {
        match self.forecasts {
            Forecasts::Followed => outlook.forecast,
            Forecasts::Ignored => None,
        }
    }

    /// The depth of the branches' first tokens, if the chain reaches it.
    fn point(&self, round: &Round<'_>) -> u16 {
        let behind = round.length.saturating_add(1);
        match self.heeded(&round.outlook) {
            Some(Forecast::Nothing) => 1,
            Some(Forecast::Everything) => behind,
            Some(Forecast::Some) | None => {
                let chain = round.main_chain.iter().take(usize::from(behind) - 1);
                let unsure = chain.zip(1..).find(|(token, _)| token.q < self.eps);
                unsure.map_or(behind, |(_, depth)| depth)
            }
        }
    }

    /// Branches at a branch point where the draft gives its best token the probability `q`.
    fn fan(&self, q: f32, round: &Round<'_>) -> u16 {
        // `as` rounds down and saturates.
        let fan = (f32::from(self.branches) * (1.0 - q)) as u16;
        match self.heeded(&round.outlook) {
            // The first token is expected to be wrong, so that it cannot be the only one.
            Some(Forecast::Nothing) => fan.max(2),
            Some(Forecast::Some | Forecast::Everything) | None => fan.max(1),
        }
    }
}

impl Strategy for Branch {
    fn duties(&self, role: Role) -> Duties {
        match role {
            Role::Draft => Duties::of(Duty::Propose),
            Role::Qualifier => Duties::default(),
            Role::Target => Duties::of(Duty::Commit),
        }
    }

    fn growth(&self) -> Growth {
        Growth {
            width: self.branches.max(2),
            branch: self.branches.max(2),
            // A chain, and branches that are as long.
            depth: 2 * self.most() + 1,
            nodes: 720,
            min_path: 0.0,
            round: None,
        }
    }

    fn length(&self, pace: &Pace) -> u16 {
        match self.gamma {
            0 => steps_beside(pace),
            gamma => gamma,
        }
    }

    fn worth(&self, node: &Frontier, round: &Round<'_>) -> Option<f32> {
        let point = self.point(round);
        let is_chain = node.is_on_main_chain() && node.depth < point;
        // Every branch begins at the branch point, the best one on the main chain.
        let is_branch = match node.forks {
            0 => true,
            1 => node.main + 1 == point,
            _ => false,
        } && (point..point.saturating_add(round.length)).contains(&node.depth);
        match (node.is_own, is_chain, is_branch) {
            (false, ..) | (true, false, false) => None,
            // The target waits for the chain.
            (true, true, _) => Some(1.0),
            (true, false, true) => Some(node.path),
        }
    }

    fn children(&self, parent: &Frontier, ranked: &[Guess], round: &Round<'_>) -> usize {
        let is_point = parent.is_on_main_chain() && parent.depth + 1 == self.point(round);
        let q = ranked.first().map_or(1.0, |best| best.q);
        let fan = match (is_point, q < self.eps) {
            (true, _) => self.fan(q, round),
            // Where a surviving branch will branch in its turn. The target sees that by a second guess.
            (false, true) => self.fan(q, round).min(2),
            (false, false) => 1,
        };
        usize::from(fan)
    }

    fn forecast(&self) -> Wanted {
        match self.forecasts {
            Forecasts::Followed => Wanted::Yes,
            Forecasts::Ignored => Wanted::No,
        }
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: self.most(),
            ..Verification::default()
        }
    }

    fn shape(&self, _duty: Duty, outlook: &Outlook) -> Shape {
        match self.heeded(outlook) {
            Some(Forecast::Nothing) => Shape::Nothing,
            Some(Forecast::Everything) => Shape::Chain,
            Some(Forecast::Some) | None => Shape::ToBranch,
        }
    }

    fn starts(&self, next: &NextStep, waits: &mut Waits<'_>) -> Start {
        // There is a branch point, so that the chain down to it will not become longer.
        if next.held > next.guesses {
            Start::Now
        } else {
            waits.while_it_pays(next)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::Rated;
    use crate::strategy::view::tests::round;

    const BRANCH: Branch = Branch {
        eps: 0.4,
        branches: 6,
        gamma: 4,
        forecasts: Forecasts::Followed,
    };

    fn chain(qs: &[f32]) -> alloc::vec::Vec<Rated> {
        qs.iter().map(|&q| Rated { q, path: 0.5 }).collect()
    }

    fn guess(q: f32) -> Guess {
        Guess {
            token: 0,
            q,
            margin: 0.0,
            weight: q,
        }
    }

    #[test]
    fn the_branch_point_is_the_first_unsure_token() {
        let point = |qs: &[f32]| BRANCH.point(&round(&chain(qs)));
        assert_eq!(point(&[0.9, 0.39, 0.1]), 2);
        assert_eq!(point(&[0.1]), 1);
        assert_eq!(point(&[0.9, 0.4, 0.9, 0.9]), 5, "behind the chain");
        assert_eq!(point(&[0.9, 0.9, 0.9, 0.9, 0.1]), 5, "a chain has four");
        assert_eq!(point(&[]), 5);
    }

    #[test]
    fn a_forecast_moves_it_unless_it_is_ignored() {
        let chain = chain(&[0.9, 0.3, 0.9]);
        let mut round = round(&chain);
        let ignoring = Branch {
            forecasts: Forecasts::Ignored,
            ..BRANCH
        };
        for (forecast, point) in [
            (None, 2),
            (Some(Forecast::Nothing), 1),
            (Some(Forecast::Some), 2),
            (Some(Forecast::Everything), 5),
        ] {
            round.outlook.forecast = forecast;
            assert_eq!(BRANCH.point(&round), point, "{forecast:?}");
            assert_eq!(ignoring.point(&round), 2);
        }
    }

    #[test]
    fn the_less_sure_the_draft_the_more_branches() {
        let chain = chain(&[0.9, 0.1]);
        let round = round(&chain);
        let first = Frontier::TEXT.child(0.5, 0);
        let branches = |q| BRANCH.children(&first, &[guess(q)], &round);
        // max(1, floor(6 (1 - q)))
        assert_eq!([0.1, 0.39, 0.9].map(branches), [5, 3, 1]);
        let before = BRANCH.children(&Frontier::TEXT, &[guess(0.1)], &round);
        assert_eq!(before, 2, "elsewhere a mark for the target");
        let sure = BRANCH.children(&Frontier::TEXT, &[guess(0.9)], &round);
        assert_eq!(sure, 1);
        let mut nothing = round;
        nothing.outlook.forecast = Some(Forecast::Nothing);
        assert_eq!(BRANCH.children(&Frontier::TEXT, &[guess(0.9)], &nothing), 2);
    }

    #[test]
    fn branches_grow_from_the_branch_point_only_and_as_long_as_the_chain() {
        let chain = chain(&[0.9, 0.1, 0.9]);
        let round = round(&chain);
        let first = Frontier::TEXT.child(0.5, 0);
        assert_eq!(BRANCH.worth(&first, &round), Some(1.0), "the chain");
        assert_eq!(BRANCH.worth(&Frontier::TEXT.child(0.5, 1), &round), None);
        let mut node = first.child(0.2, 3);
        let mut steps = 0;
        while BRANCH.worth(&node, &round) == Some(node.path) {
            node = node.child(0.2, 0);
            steps += 1;
        }
        assert_eq!(steps, 4);
        let again = first.child(0.2, 1).child(0.1, 1);
        assert_eq!(
            BRANCH.worth(&again, &round),
            None,
            "one branch point a round"
        );
    }

    #[test]
    fn chains_are_as_long_as_a_target_step_allows() {
        let adaptive = Branch { gamma: 0, ..BRANCH };
        let pace = Pace {
            ratio: Some(9.5),
            ..Pace::default()
        };
        assert_eq!((adaptive.length(&pace), BRANCH.length(&pace)), (9, 4));
    }

    #[test]
    fn the_target_does_at_once_what_it_forecasts() {
        let shape = |forecast| {
            let outlook = Outlook {
                forecast,
                ..Outlook::default()
            };
            BRANCH.shape(Duty::Commit, &outlook)
        };
        assert_eq!(shape(None), Shape::ToBranch);
        assert_eq!(shape(Some(Forecast::Some)), Shape::ToBranch);
        assert_eq!(shape(Some(Forecast::Nothing)), Shape::Nothing);
        assert_eq!(shape(Some(Forecast::Everything)), Shape::Chain);
    }
}

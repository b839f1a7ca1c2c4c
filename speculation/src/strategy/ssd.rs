//! `ssd`: speculative speculative decoding (Saguaro, arXiv 2603.03251). While the target verifies a chain of `gamma`
//! tokens, the draft prepares the next one for every likely *outcome*: so many tokens of the chain accepted, and one of the
//! most likely tokens behind them. If the outcome was prepared (a hit), the next chain is in the target's tree when its step
//! ends, and drafting has cost nothing; if it was not (a miss), the draft makes a chain from scratch while the target
//! waits, as in the paper.
//!
//! Outcomes are shared out by the *geometric fan-out* of section 4.1: the probability that the chain is accepted as far as
//! place `k` falls as `a^k`, and a token is missing among `F` guesses with a probability like `F^-r`, so that the best fans for
//! a budget of `outcomes` fall as `F_k = F_0 a^(k/(1+r))`. Behind the whole chain the outcome is certain to lie there once it
//! is reached, which makes that fan larger by `(1-a)^(-1/(1+r))`. `a` is measured unless it is set.
//!
//! Unlike the authors' code only ids travel, guesses prepared for one outcome stay where the tree keeps them, and a miss is a
//! miss of one session. Shared noise (arXiv 2408.07978) makes the target's own token predictable at every temperature.

use alloc::sync::Arc;
use alloc::vec::Vec;

use decode::{Guess, math};

use super::length::{LONGEST, steps_beside};
use super::{Entry, Frontier, Growth, Knob, NextStep, Range, Round, Shape, Strategy, Verification};
use crate::agreement::Pace;
use crate::duty::{Duties, Duty, Role};
use crate::message::Outlook;
use crate::wait::{Start, Waits};

pub(super) const ENTRY: Entry = Entry {
    name: "ssd",
    about: "Saguaro: the draft prepares a chain for every likely outcome of the verification in flight",
    source: "arXiv 2603.03251",
    knobs: &[
        Knob {
            name: "gamma",
            range: Range::Whole(0, 64),
            default: 0.0,
            help: "tokens of a chain; 0: by step times and agreement",
            sweep: &[2.0, 3.0, 4.0, 5.0, 6.0, 8.0],
        },
        Knob {
            name: "outcomes",
            range: Range::Whole(1, 64),
            default: 16.0,
            help: "outcomes prepared, rows of a draft step: more hits, longer draft steps",
            sweep: &[],
        },
        Knob {
            name: "agreement",
            range: Range::Real(0.0, 0.99),
            default: 0.0,
            help: "a of the fan-out, how often the draft's first guess is right; 0: measured",
            sweep: &[],
        },
    ],
    is_sensible: |_| true,
    build: |knobs| {
        Arc::new(Ssd {
            gamma: knobs.whole("gamma"),
            outcomes: knobs.whole("outcomes"),
            agreement: knobs.get("agreement") as f32,
        })
    },
};

/// How misses fall with the number of guesses (`r`). Of the bundled pair, under shared noise, 0.37 of the tokens are missing
/// among one guess and 0.07 among eight.
const POWER: f32 = 0.8;

/// Guesses behind one node, at most.
const WIDEST: u16 = 16;

#[derive(Debug)]
struct Ssd {
    /// 0: it adapts.
    gamma: u16,
    outcomes: u16,
    /// 0: measured.
    agreement: f32,
}

impl Ssd {
    fn most(&self) -> u16 {
        match self.gamma {
            0 => LONGEST,
            gamma => gamma,
        }
    }

    /// How likely an outcome of a chain of `gamma` tokens is to have been prepared, by the two laws of the fan-out.
    fn hits(&self, gamma: u16, measured: f32) -> f32 {
        let a = self.agreement(measured);
        // The share of tokens that is missing among this many guesses, of those that are missing among one.
        let missing = |guesses: u16| {
            let log = math::ln(f64::from(guesses.max(1))) as f32;
            math::exp(-POWER * log)
        };
        let mut hits = 0.0;
        let mut reached = 1.0;
        for (place, &fan) in (0..).zip(&self.fans(gamma, measured)) {
            hits += if place < gamma {
                reached * (1.0 - a) * (1.0 - missing(fan + 1))
            } else {
                reached * (1.0 - (1.0 - a) * missing(fan))
            };
            reached *= a;
        }
        hits
    }

    fn agreement(&self, measured: f32) -> f32 {
        match self.agreement {
            0.0 => measured,
            set => set,
        }
    }

    /// Tokens that are prepared for at each place of a chain of `gamma` tokens, and behind it. They add up to the budget; what
    /// is whole is shared out by the highest averages (D'Hondt).
    fn fans(&self, gamma: u16, measured: f32) -> Vec<u16> {
        let a = self.agreement(measured);
        let log = math::ln(f64::from(a)) as f32;
        let weight = |place: u16| {
            let end = if place == gamma {
                math::ln(f64::from(1.0 - a)) as f32
            } else {
                0.0
            };
            math::exp((log * f32::from(place) - end) / (1.0 + POWER))
        };
        let weights: Vec<f32> = (0..=gamma).map(weight).collect();
        let mut fans = alloc::vec![0u16; weights.len()];
        for _ in 0..self.outcomes {
            let mut best: Option<(usize, f32)> = None;
            for (place, (weight, fan)) in weights.iter().zip(&fans).enumerate() {
                let average = weight / (1.0 + f32::from(*fan));
                if *fan < WIDEST - 1 && best.is_none_or(|(_, most)| average > most) {
                    best = Some((place, average));
                }
            }
            match best {
                Some((place, _)) => fans[place] += 1,
                None => break,
            }
        }
        fans
    }
}

impl Strategy for Ssd {
    fn duties(&self, role: Role) -> Duties {
        match role {
            Role::Draft => Duties::of(Duty::Propose),
            Role::Qualifier => Duties::default(),
            Role::Target => Duties::of(Duty::Commit),
        }
    }

    fn growth(&self) -> Growth {
        Growth {
            width: self.outcomes + 1,
            branch: WIDEST.min(self.outcomes + 1),
            // A chain, the target's own token, and the chain behind it.
            depth: 2 * self.most() + 1,
            nodes: 720,
            min_path: 0.0,
            round: Some(self.most()),
        }
    }

    /// A chain that is prepared has to be ready before the target is: the chain before it needs a last step, which tells what
    /// follows all of it, and then there is one for each token. One that was not prepared is waited for.
    fn length(&self, pace: &Pace) -> u16 {
        if self.gamma > 0 {
            return self.gamma;
        }
        let most = steps_beside(pace).saturating_sub(1).max(1);
        let waits = |gamma| (1.0 - self.hits(gamma, pace.agreement)) * f32::from(gamma);
        pace.best_length(most, waits).unwrap_or(most)
    }

    fn worth(&self, node: &Frontier, round: &Round<'_>) -> Option<f32> {
        if !node.is_own {
            return None;
        }
        let gamma = round.length;
        if node.is_on_main_chain() && node.depth < gamma {
            // The target waits for this one, so that nothing else slows it down.
            return Some(1.0);
        }
        let is_chain_done = round.main_chain.len() >= usize::from(gamma);
        // An outcome is a token beside the chain or behind it, and a chain that follows that token.
        let is_outcome = match node.forks {
            0 => node.depth <= 2 * gamma,
            1 => node.main <= gamma && node.below < gamma,
            _ => false,
        };
        (is_chain_done && is_outcome).then_some(node.path)
    }

    fn children(&self, parent: &Frontier, _ranked: &[Guess], round: &Round<'_>) -> usize {
        let gamma = round.length;
        let is_in_chain = parent.is_on_main_chain() && parent.depth <= gamma;
        if !is_in_chain || round.main_chain.len() < usize::from(gamma) {
            return 1;
        }
        let fans = self.fans(gamma, round.pace.agreement);
        let fan = usize::from(fans[usize::from(parent.depth)]);
        // The chain itself is beside the outcomes where it was rejected, but not behind its end.
        if parent.depth < gamma {
            1 + fan
        } else {
            fan.max(1)
        }
    }

    fn pauses(&self, _round: &Round<'_>) -> bool {
        false
    }

    fn is_round_done(&self, round: &Round<'_>) -> bool {
        round.main_chain.len() >= usize::from(round.length)
    }

    fn verification(&self, _duty: Duty) -> Verification {
        Verification {
            rows: self.most(),
            ..Verification::default()
        }
    }

    fn shape(&self, _duty: Duty, _outlook: &Outlook) -> Shape {
        Shape::Chain
    }

    fn starts(&self, next: &NextStep, waits: &mut Waits<'_>) -> Start {
        let is_whole = self.gamma > 0 && next.guesses >= usize::from(self.gamma);
        // A chain that was prepared is as long as there was time for.
        let is_prepared = self.gamma == 0 && !next.is_after_miss && next.guesses > 0;
        if is_whole || is_prepared {
            Start::Now
        } else {
            waits.for_round(next)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::Rated;
    use crate::strategy::view::tests::round;

    const SSD: Ssd = Ssd {
        gamma: 4,
        outcomes: 16,
        agreement: 0.0,
    };

    const TOKEN: Rated = Rated { q: 0.5, path: 0.5 };

    #[test]
    fn fans_fall_geometrically_and_add_up_to_the_budget() {
        for (gamma, outcomes, a) in [(4, 16, 0.6), (6, 40, 0.8), (1, 3, 0.3), (9, 5, 0.9)] {
            let ssd = Ssd {
                gamma,
                outcomes,
                agreement: 0.0,
            };
            let fans = ssd.fans(gamma, a);
            assert_eq!(fans.len(), usize::from(gamma) + 1);
            assert_eq!(fans.iter().sum::<u16>(), outcomes, "{fans:?}");
            let (end, chain) = fans.split_last().expect("it has an end");
            assert!(chain.is_sorted_by(|a, b| a >= b), "{fans:?}");
            // The whole chain is the likelier outcome where it is more likely to go on than to end.
            let last = chain[chain.len() - 1];
            assert!(*end >= last || a < 0.5, "{fans:?}");
        }
        // Large budgets show the ratio itself: a^(1 / (1 + r)).
        let wide = Ssd {
            gamma: 2,
            outcomes: 30,
            agreement: 0.5,
        };
        let fans = wide.fans(2, 0.9);
        let ratio = f32::from(fans[1]) / f32::from(fans[0]);
        let wanted = math::exp(math::ln(0.5) as f32 / (1.0 + POWER));
        assert!((ratio - wanted).abs() < 0.1, "{fans:?}: {ratio}, {wanted}");
    }

    #[test]
    fn nothing_is_prepared_before_the_chain_is_made() {
        let chain = [TOKEN; 4];
        let growing = round(&chain[..3]);
        let first = Frontier::TEXT.child(0.5, 0);
        let fork = Frontier::TEXT.child(0.3, 1);
        assert_eq!(SSD.worth(&first, &growing), Some(1.0));
        assert_eq!(SSD.worth(&fork, &growing), None);
        assert_eq!(SSD.children(&Frontier::TEXT, &[], &growing), 1);
        assert!(!SSD.is_round_done(&growing));
        let made = round(&chain);
        assert!(SSD.is_round_done(&made) && !SSD.pauses(&made));
        assert_eq!(SSD.worth(&fork, &made), Some(0.3));
        let fans = SSD.fans(4, made.pace.agreement);
        let fan = usize::from(fans[0]);
        assert_eq!(SSD.children(&Frontier::TEXT, &[], &made), 1 + fan);
        assert_eq!(SSD.children(&fork, &[], &made), 1, "outcomes are chains");
    }

    #[test]
    fn an_outcome_is_continued_by_one_chain() {
        let chain = [TOKEN; 4];
        let round = round(&chain);
        let mut node = Frontier::TEXT.child(0.5, 0).child(0.2, 3);
        let mut tokens = 0;
        while SSD.worth(&node, &round).is_some() {
            node = node.child(0.1, 0);
            tokens += 1;
        }
        assert_eq!(tokens, 4);
        // Behind the whole chain, the first token that the target may add is on the main chain itself.
        let end = (0..5).fold(Frontier::TEXT, |node, _| node.child(0.1, 0));
        let mut node = end;
        let mut tokens = 0;
        while SSD.worth(&node, &round).is_some() {
            node = node.child(0.1, 0);
            tokens += 1;
        }
        assert_eq!(tokens, 4);
        assert_eq!(SSD.worth(&end.child(0.1, 1).child(0.1, 1), &round), None);
    }

    #[test]
    fn a_chain_is_no_longer_than_can_be_prepared_during_a_step() {
        let adaptive = Ssd { gamma: 0, ..SSD };
        let length = |ratio, agreement| {
            adaptive.length(&Pace {
                ratio: Some(ratio),
                agreement,
                ..Pace::default()
            })
        };
        assert_eq!(length(5.0, 0.9), 4);
        assert!(length(10.0, 0.95) > length(10.0, 0.5));
        assert_eq!(length(0.5, 0.9), 1);
    }

    #[test]
    fn more_outcomes_are_hit_more_often_and_longer_chains_less() {
        let hits = |gamma, outcomes| Ssd { outcomes, ..SSD }.hits(gamma, 0.6);
        assert!(hits(4, 32) > hits(4, 16) && hits(4, 16) > hits(4, 4));
        assert!(hits(3, 16) > hits(8, 16));
        assert!((0.5..0.95).contains(&hits(4, 16)), "{}", hits(4, 16));
    }
}

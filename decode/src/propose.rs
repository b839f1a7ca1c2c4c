//! The contract of whatever makes guesses: *committed tokens in, a tree of tokens out*.
//!
//! A [`Proposer`] may be a rule, a lookup, or a network that gives a whole block at once. It is asked with what a
//! model's row is asked with, the [`History`] of the token that comes next, and its answer is a [`Proposal`]. Nothing it
//! says can change a text: guesses are only ever compared with what the target picks.
//!
//! A model that gives one position at a time fulfils the same contract row by row: each row of a step is asked for
//! [`Ask::Guesses`](crate::Ask::Guesses) with the same history, so that the rows of many sessions are computed together.

use alloc::vec::Vec;

use crate::math;
use crate::sampling::Guess;
use crate::step::History;

/// Hidden states of the target that a proposer asks for, as EAGLE-3 (arXiv 2503.01840, section 3) and DFlash do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taps {
    /// Of how many layers; 0: it needs none.
    pub layers: u16,
}

/// What a proposer sees.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The tokens before the first one that is to be guessed. From call to call its text only grows.
    pub before: History<'a>,
    /// The states that were asked for by [`Proposer::taps`], of the last tokens of the text: `[token][layer][width]`.
    /// Empty where none were asked for.
    pub taps: &'a [f32],
}

/// Makes guesses for one text. See the module documentation.
pub trait Proposer {
    /// What it needs besides tokens.
    fn taps(&self) -> Taps {
        Taps::default()
    }

    /// What may follow, at most so many guesses.
    fn propose(&mut self, seen: &Seen<'_>, most: usize) -> Proposal;
}

/// One guess of a proposal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Proposed {
    /// The guess that it continues, by its index in the proposal; `None`: what was seen.
    pub parent: Option<usize>,
    /// How many guesses at its position its proposer likes better.
    pub rank: usize,
    /// The token, and how it is rated.
    pub guess: Guess,
}

/// A tree of guesses, parents before what continues them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proposal(Vec<Proposed>);

impl Proposal {
    /// Adds a guess, and gives its index. One whose parent is not there is not added.
    pub fn push(&mut self, proposed: Proposed) -> Option<usize> {
        let at = self.0.len();
        if proposed.parent.is_some_and(|parent| parent >= at) {
            return None;
        }
        self.0.push(proposed);
        Some(at)
    }

    /// Number of guesses.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is guessed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them, parents first.
    pub fn iter(&self) -> impl Iterator<Item = &Proposed> {
        self.0.iter()
    }

    /// What continues a guess, or what was seen, with the index of each.
    pub fn children(&self, parent: Option<usize>) -> impl Iterator<Item = (usize, &Proposed)> {
        (self.0.iter().enumerate()).filter(move |(_, proposed)| proposed.parent == parent)
    }

    /// The guess that these tokens lead to; `Err` where they leave the tree, `Ok(None)` where there are none.
    ///
    /// # Errors
    /// When one of them is not guessed.
    pub fn descend(&self, tokens: &[u32]) -> Result<Option<usize>, NotProposed> {
        let mut at = None;
        for &token in tokens {
            let next = self
                .children(at)
                .find(|(_, proposed)| proposed.guess.token == token);
            at = Some(next.ok_or(NotProposed)?.0);
        }
        Ok(at)
    }
}

/// A path that is not in a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotProposed;

impl Guess {
    /// A guess that no model has rated: `weight` is how likely its proposer thinks it is, within `0..=1`.
    #[must_use]
    pub fn rated(token: u32, weight: f32) -> Guess {
        let weight = weight.clamp(0.0, 1.0);
        let inside = f64::from(weight.clamp(1e-4, 1.0 - 1e-4));
        Guess {
            token,
            q: weight,
            margin: math::ln(inside / (1.0 - inside)) as f32,
            weight,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(parent: Option<usize>, token: u32) -> Proposed {
        Proposed {
            parent,
            rank: 0,
            guess: Guess::rated(token, 0.5),
        }
    }

    #[test]
    fn a_proposal_is_a_tree_and_can_be_walked() {
        let mut proposal = Proposal::default();
        assert_eq!(proposal.push(proposed(Some(0), 9)), None, "no such parent");
        for (at, node) in [(None, 1), (None, 2), (Some(1), 3), (Some(2), 4)]
            .into_iter()
            .enumerate()
        {
            assert_eq!(proposal.push(proposed(node.0, node.1)), Some(at));
        }
        assert_eq!(proposal.descend(&[]), Ok(None));
        assert_eq!(proposal.descend(&[2, 3, 4]), Ok(Some(3)));
        assert_eq!(proposal.descend(&[1, 3]), Err(NotProposed));
        let roots: Vec<usize> = proposal.children(None).map(|(at, _)| at).collect();
        assert_eq!(roots, [0, 1]);
    }

    #[test]
    fn a_rating_is_finite_whatever_is_said() {
        for weight in [-1.0, 0.0, 0.5, 1.0, 2.0] {
            let guess = Guess::rated(1, weight);
            assert!((0.0..=1.0).contains(&guess.weight) && guess.margin.is_finite());
        }
        assert_eq!(Guess::rated(1, 0.5).margin, 0.0);
    }
}

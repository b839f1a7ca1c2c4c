//! What a strategy sees of a draft's tree and of the round it is in.

use crate::agreement::Pace;
use crate::message::Outlook;

/// A node that could be expanded, and its place in the tree. The *main chain* is the best guess at every place, from the end
/// of the text down; a *fork* is a node that is not the best at its place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Frontier {
    /// Estimated probability that the text takes this path.
    pub path: f32,
    /// Whether it is this draft's to expand, where several drafts share a session.
    pub is_own: bool,
    /// How many tokens the path has, this one included; 0: it is the text itself.
    pub depth: u16,
    /// Its place among the guesses for this position, by their probability; 0 is the best.
    pub rank: u16,
    /// How many tokens of the path lie on the main chain.
    pub main: u16,
    /// How many tokens of the path are forks.
    pub forks: u16,
    /// How many tokens of the path come after the last fork; all of them where there is none.
    pub below: u16,
}

impl Frontier {
    /// The end of the text.
    pub const TEXT: Frontier = Frontier {
        path: 1.0,
        is_own: true,
        depth: 0,
        rank: 0,
        main: 0,
        forks: 0,
        below: 0,
    };

    /// A guess behind this one.
    #[must_use]
    pub fn child(&self, path: f32, rank: u16) -> Frontier {
        let is_best = rank == 0;
        Frontier {
            path,
            is_own: self.is_own,
            depth: self.depth.saturating_add(1),
            rank,
            main: self.main + u16::from(is_best && self.is_on_main_chain()),
            forks: self.forks.saturating_add(u16::from(!is_best)),
            below: if is_best {
                self.below.saturating_add(1)
            } else {
                0
            },
        }
    }

    /// Whether all of its path lies on the main chain.
    #[must_use]
    pub fn is_on_main_chain(&self) -> bool {
        self.main == self.depth
    }
}

/// A guess on the main chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rated {
    /// The probability that the draft's own model gives the token; the estimate for a guess that it did not make itself.
    pub q: f32,
    /// Estimated probability that the text takes the main chain down to here.
    pub path: f32,
}

/// What a draft has done since the last commit, and what it knows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round<'a> {
    /// Its steps.
    pub steps: u16,
    /// How many levels of the tree have had their step: one for each of these, and one more where what follows the text had
    /// been guessed before it was committed.
    pub levels: u16,
    /// Whether there was nothing left to grow already.
    pub is_over: bool,
    /// What the target expects of the next steps.
    pub outlook: Outlook,
    /// The best guess at every place, from the end of the text down.
    pub main_chain: &'a [Rated],
    /// How fast both are, and how well they agree.
    pub pace: Pace,
    /// How long a chain is, as [`Strategy::length`](super::Strategy::length) said when the round began.
    pub length: u16,
}

/// Which guesses a verifier submits, where there are more than it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// Those with the best paths.
    #[default]
    Tree,
    /// The best one at every place, from the end of the text down.
    Chain,
    /// The same, as far as there is only one guess at a place: down to the first branch. Where that is at once, the guesses
    /// at it.
    ToBranch,
    /// None.
    Nothing,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A round that has just begun.
    pub(in crate::strategy) fn round(chain: &[Rated]) -> Round<'_> {
        Round {
            steps: 0,
            levels: 0,
            is_over: false,
            outlook: Outlook::default(),
            main_chain: chain,
            pace: Pace::default(),
            length: 4,
        }
    }

    #[test]
    fn the_place_of_a_guess_follows_from_that_of_its_parent() {
        let first = Frontier::TEXT.child(0.5, 0);
        assert!(first.is_on_main_chain());
        let fork = first.child(0.1, 2);
        assert!(!fork.is_on_main_chain());
        assert_eq!(
            (fork.depth, fork.main, fork.forks, fork.below),
            (2, 1, 1, 0)
        );
        let behind = fork.child(0.1, 0);
        assert_eq!(
            (behind.depth, behind.main, behind.forks, behind.below),
            (3, 1, 1, 1)
        );
        assert_eq!(behind.child(0.1, 1).forks, 2);
    }
}

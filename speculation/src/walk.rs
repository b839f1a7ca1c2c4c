//! The verification walk: from the last token down the tree, along the tokens the model itself picks.
//!
//! It is the same under every acceptance rule: a guess is accepted where the answer of the row above it is its token. How
//! the row came to its answer is the rule's (see [`decode::rule`]).

use alloc::vec::Vec;

use decode::{NodeId, NotFinite, Pick};

use crate::message::{Finish, Stopping};
use crate::tree::Tree;

/// The result of a walk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Walked {
    /// The picked tokens: one for each accepted node and one more, unless the text ended earlier. None behind the last
    /// accepted node where the model's answer is not a number.
    pub picks: Vec<Pick>,
    /// The accepted nodes.
    pub path: Vec<NodeId>,
    /// Why the text ends with the last pick.
    pub finish: Option<Finish>,
}

/// Walks from `anchor`, whose token is at `len - 1`, through nodes for which `is_computed` holds.
///
/// `pick` is asked for the token that follows a node (`None`: the committed text) and is never asked twice for the
/// same one, nor for a row that was not computed. The text is cut at a stop token and at `stopping.max_len`, inside
/// an accepted path too, and where a pick is not a number; what was picked before stays, so that the text does not
/// depend on how far one walk went.
pub fn walk<P>(
    tree: &Tree<P>,
    anchor: Option<NodeId>,
    len: u32,
    stopping: &Stopping,
    is_computed: impl Fn(NodeId) -> bool,
    mut pick: impl FnMut(Option<NodeId>) -> Result<Pick, NotFinite>,
) -> Walked {
    let mut walked = Walked::default();
    let mut at = anchor;
    let mut len = len;
    loop {
        let Ok(picked) = pick(at) else {
            walked.finish = Some(Finish::NotFinite);
            return walked;
        };
        let token = picked.token;
        walked.picks.push(picked);
        len += 1;
        walked.finish = stopping.check(token, len);
        if walked.finish.is_some() {
            return walked;
        }
        match tree.child(at, token) {
            Some(child) if is_computed(child) => {
                walked.path.push(child);
                at = Some(child);
            }
            Some(_) | None => return walked,
        }
    }
}

impl Stopping {
    /// Whether a text of `len` tokens that ends in `token` is complete.
    pub fn check(&self, token: u32, len: u32) -> Option<Finish> {
        if self.stop_ids.contains(&token) {
            Some(Finish::Stop)
        } else if len >= self.max_len {
            Some(if self.max_len_is_context {
                Finish::Context
            } else {
                Finish::Length
            })
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Graft;
    use alloc::vec;

    fn tree_of(paths: &[&[u32]]) -> Tree<()> {
        let mut tree = Tree::new(4);
        for path in paths {
            let mut parent = None;
            for &token in *path {
                let graft = Graft {
                    token,
                    edge: 0.5,
                    owner: 0,
                    payload: (),
                };
                parent = Some(tree.graft(parent, graft).expect("live").id());
            }
        }
        tree
    }

    /// Walks with these picks; behind them the model's answer is not a number.
    fn run(tree: &Tree<()>, stopping: &Stopping, text: &[u32]) -> Walked {
        let mut tokens = text.iter();
        let pick = |_| {
            Ok(Pick {
                token: *tokens.next().ok_or(NotFinite)?,
                margin: 0.0,
                score: None,
            })
        };
        walk(tree, None, 4, stopping, |_| true, pick)
    }

    #[test]
    fn it_accepts_the_matching_branch_and_one_more() {
        let tree = tree_of(&[&[1, 2, 3], &[1, 5]]);
        let open = Stopping {
            max_len: 100,
            ..Stopping::default()
        };
        let walked = run(&tree, &open, &[1, 5, 9]);
        assert_eq!((walked.picks.len(), walked.path.len()), (3, 2));
        assert_eq!(walked.finish, None);
    }

    #[test]
    fn what_was_picked_before_an_answer_that_is_not_a_number_stays() {
        let tree = tree_of(&[&[1, 2, 3]]);
        let open = Stopping {
            max_len: 100,
            ..Stopping::default()
        };
        for picks in 0..3 {
            let walked = run(&tree, &open, &[1, 2, 3][..picks]);
            assert_eq!((walked.picks.len(), walked.path.len()), (picks, picks));
            assert_eq!(walked.finish, Some(Finish::NotFinite));
        }
    }

    #[test]
    fn it_cuts_inside_an_accepted_path() {
        let tree = tree_of(&[&[1, 2, 3, 4]]);
        let stop = Stopping {
            max_len: 100,
            stop_ids: vec![2],
            ..Stopping::default()
        };
        let walked = run(&tree, &stop, &[1, 2, 3, 4, 5]);
        assert_eq!((walked.picks.len(), walked.finish), (2, Some(Finish::Stop)));
        let short = Stopping {
            max_len: 7,
            ..Stopping::default()
        };
        let walked = run(&tree, &short, &[1, 2, 3, 4, 5]);
        assert_eq!(
            (walked.picks.len(), walked.finish),
            (3, Some(Finish::Length))
        );
    }
}

//! What a draft drew behind each node under the rule `rejection`: sibling groups beside the tree of guesses.
//!
//! A group is judged as a whole, in draw order, or not at all, and whether it is judged must not depend on what was drawn.
//! So it travels and is kept in one piece, whatever becomes of the nodes that its tokens are: a node that a limit of the
//! tree leaves out costs a row, never the distribution of the text.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use decode::Drawn;

use crate::tree::{Committed, NodeId, Tree};

/// The groups of one replica, by the node that they follow; `None`: the committed text.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    of: BTreeMap<Option<NodeId>, Group>,
    /// Groups that were ever kept.
    kept: u64,
}

#[derive(Clone, Debug)]
struct Group {
    /// Counted from 0; it stays when the node becomes the end of the text.
    number: u64,
    drawn: Drawn,
}

impl Groups {
    /// Keeps what was drawn behind a live node. The first group stays: which of two is judged must not depend on them.
    pub fn insert(&mut self, parent: Option<NodeId>, drawn: Drawn) {
        let number = self.kept;
        let kept = &mut self.kept;
        self.of.entry(parent).or_insert_with(|| {
            *kept += 1;
            Group { number, drawn }
        });
    }

    /// What was drawn behind a node.
    pub fn get(&self, parent: Option<NodeId>) -> Option<&Drawn> {
        self.of.get(&parent).map(|group| &group.drawn)
    }

    /// Every group with its number and the node that it follows.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Option<NodeId>, &Drawn)> {
        (self.of.iter()).map(|(&parent, group)| (group.number, parent, &group.drawn))
    }

    /// Follows a commit of at least one token.
    pub fn committed<P>(&mut self, committed: &Committed<P>, tree: &Tree<P>) {
        if self.of.is_empty() {
            return;
        }
        let end = committed.matched.last().filter(|_| committed.hit);
        let behind_end = end.and_then(|(id, _)| self.of.remove(&Some(*id)));
        self.of
            .retain(|parent, _| parent.is_some_and(|id| tree.get(id).is_some()));
        if let Some(group) = behind_end {
            self.of.insert(None, group);
        }
    }

    /// The numbers of the groups.
    pub(crate) fn numbers(&self) -> Vec<u64> {
        self.of.values().map(|group| group.number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Graft;
    use alloc::vec;

    fn drawn(token: u32) -> Drawn {
        Drawn::from_parts(vec![token], vec![1], vec![0]).expect("one token, drawn once")
    }

    fn graft(tree: &mut Tree<()>, parent: Option<NodeId>, token: u32) -> NodeId {
        let graft = Graft {
            token,
            edge: 0.5,
            owner: 0,
            payload: (),
        };
        tree.graft(parent, graft).expect("live").id()
    }

    #[test]
    fn a_group_follows_its_node_into_the_text_and_is_void_when_that_is() {
        let mut tree = Tree::new(3);
        let mut groups = Groups::default();
        let a = graft(&mut tree, None, 1);
        let b = graft(&mut tree, None, 2);
        let aa = graft(&mut tree, Some(a), 3);
        for (parent, token) in [(None, 1), (Some(a), 3), (Some(b), 4), (Some(aa), 5)] {
            groups.insert(parent, drawn(token));
        }
        groups.insert(None, drawn(9));
        assert_eq!(groups.get(None), Some(&drawn(1)));
        let committed = tree.commit(&[1]);
        groups.committed(&committed, &tree);
        assert_eq!(groups.get(None), Some(&drawn(3)));
        assert_eq!(groups.get(Some(aa)), Some(&drawn(5)));
        assert_eq!(groups.numbers(), [1, 3]);
        let committed = tree.commit(&[7]);
        groups.committed(&committed, &tree);
        assert_eq!(groups.iter().count(), 0);
    }
}

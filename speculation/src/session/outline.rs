//! What a draft's tree looks like to its strategy: every node with its place, and the main chain.

use alloc::vec::Vec;

use crate::strategy::{Frontier, Rated};
use crate::tree::{Node, NodeId, Tree};

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// Every node, a parent before its children.
    pub(super) places: Vec<(NodeId, Frontier)>,
    /// The best guess at every place, from the end of the text down.
    pub(super) main_chain: Vec<Rated>,
}

impl Outline {
    /// The outline of a tree. `owns` says whether a node is this draft's to expand, `rate` how sure its source is of it.
    pub(super) fn of<P>(
        tree: &Tree<P>,
        owns: impl Fn(&Node<P>) -> bool,
        rate: impl Fn(&Node<P>) -> f32,
    ) -> Self {
        let mut outline = Outline {
            places: Vec::with_capacity(tree.len()),
            main_chain: Vec::new(),
        };
        let mut left = alloc::vec![(None, Frontier::TEXT)];
        while let Some((parent, above)) = left.pop() {
            let children = tree.children(parent).iter();
            let mut children: Vec<_> = children
                .filter_map(|&id| Some((id, tree.get(id)?)))
                .collect();
            // Of two that are thought equally likely the earlier one leads, as in `Tree::best_child`.
            children.sort_by(|(_, a), (_, b)| b.edge().total_cmp(&a.edge()));
            for (rank, (id, node)) in (0..).zip(children) {
                let place = Frontier {
                    is_own: owns(node),
                    ..above.child(node.path(), rank)
                };
                if place.is_on_main_chain() {
                    outline.main_chain.push(Rated {
                        q: rate(node),
                        path: node.path(),
                    });
                }
                outline.places.push((id, place));
                left.push((Some(id), place));
            }
        }
        outline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Graft;

    fn graft(tree: &mut Tree<()>, parent: Option<NodeId>, token: u32, edge: f32) -> NodeId {
        let graft = Graft {
            token,
            edge,
            owner: 0,
            payload: (),
        };
        tree.graft(parent, graft).expect("the parent is live").id()
    }

    #[test]
    fn every_node_has_its_place_and_the_best_are_the_main_chain() {
        let mut tree = Tree::new(7);
        let weak = graft(&mut tree, None, 1, 0.3);
        let best = graft(&mut tree, None, 2, 0.5);
        let next = graft(&mut tree, Some(best), 3, 0.5);
        let side = graft(&mut tree, Some(best), 4, 0.2);
        let behind = graft(&mut tree, Some(side), 5, 0.9);
        let other = graft(&mut tree, Some(weak), 6, 0.9);
        let outline = Outline::of(&tree, |node| node.token != 6, |node| node.edge() / 2.0);
        let place = |id| {
            let (_, place) = *(outline.places.iter())
                .find(|(at, _)| *at == id)
                .expect("every node is there");
            (
                place.depth,
                place.rank,
                place.main,
                place.forks,
                place.below,
            )
        };
        assert_eq!(outline.places.len(), 6);
        assert_eq!(place(best), (1, 0, 1, 0, 1));
        assert_eq!(place(next), (2, 0, 2, 0, 2));
        assert_eq!(place(weak), (1, 1, 0, 1, 0));
        assert_eq!(place(other), (2, 0, 0, 1, 1));
        assert_eq!(place(side), (2, 1, 1, 1, 0));
        assert_eq!(place(behind), (3, 0, 1, 1, 1));
        let chain: Vec<(f32, f32)> = (outline.main_chain.iter())
            .map(|rated| (rated.q, rated.path))
            .collect();
        assert_eq!(chain, [(0.25, 0.5), (0.25, 0.25)]);
        let own = (outline.places.iter()).filter(|(_, place)| place.is_own);
        assert_eq!(own.count(), 5);
    }

    #[test]
    fn of_equals_the_earlier_one_leads_as_it_does_for_the_target() {
        let mut tree = Tree::new(0);
        let first = graft(&mut tree, None, 8, 0.5);
        graft(&mut tree, None, 9, 0.5);
        let outline = Outline::of(&tree, |_| true, |_| 1.0);
        let on_chain: Vec<NodeId> = (outline.places.iter())
            .filter(|(_, place)| place.is_on_main_chain())
            .map(|&(id, _)| id)
            .collect();
        assert_eq!(on_chain, [first]);
        assert_eq!(tree.best_child(None), Some(first));
    }
}

//! What a draft's tree looks like to its strategy: every node with its place, and the main chain.

use alloc::vec::Vec;

use crate::node_map::NodeMap;
use crate::strategy::{Frontier, Rated};
use crate::tree::{Node, NodeId, Tree};

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct Outline {
    /// Every node, a parent before its children.
    pub(super) places: Vec<(NodeId, Frontier)>,
    /// The best guess at every place, from the end of the text down.
    pub(super) main_chain: Vec<Rated>,
    /// Where each node stands in `places`.
    at: NodeMap<usize>,
}

impl Outline {
    /// Looks at a tree. `owns` says whether a node is this draft's to expand, `rate` how sure its source is of it.
    pub(super) fn look<P>(
        &mut self,
        tree: &Tree<P>,
        owns: impl Fn(&Node<P>) -> bool,
        rate: impl Fn(&Node<P>) -> f32,
    ) {
        let Outline {
            places,
            main_chain,
            at,
        } = self;
        places.clear();
        main_chain.clear();
        let mut left = alloc::vec![(Frontier::TEXT, tree.children(None))];
        let mut siblings: Vec<(NodeId, &Node<P>)> = Vec::new();
        while let Some((above, children)) = left.pop() {
            siblings.clear();
            siblings.extend(children.iter().filter_map(|&id| Some((id, tree.get(id)?))));
            // Of two that are thought equally likely the earlier one leads, as in `Tree::best_child`.
            let leads = |(_, a): &(NodeId, &Node<P>), (_, b): &(NodeId, &Node<P>)| {
                b.edge().total_cmp(&a.edge())
            };
            if !siblings.is_sorted_by(|a, b| leads(a, b).is_le()) {
                siblings.sort_by(leads);
            }
            for (rank, &(id, node)) in (0..).zip(&siblings) {
                let place = Frontier {
                    is_own: owns(node),
                    ..above.child(node.path(), rank)
                };
                if place.is_on_main_chain() {
                    main_chain.push(Rated {
                        q: rate(node),
                        path: node.path(),
                    });
                }
                at.insert(id, places.len());
                places.push((id, place));
                if !node.children().is_empty() {
                    left.push((place, node.children()));
                }
            }
        }
    }

    /// The place of a node; that of the end of the text for one that was not there.
    pub(super) fn place(&self, node: Option<NodeId>) -> Frontier {
        let place = node.and_then(|id| {
            let place = self.places.get(*self.at.get(id)?);
            place.filter(|(found, _)| *found == id)
        });
        place.map_or(Frontier::TEXT, |(_, place)| *place)
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
        let mut outline = Outline::default();
        outline.look(&tree, |node| node.token != 6, |node| node.edge() / 2.0);
        let place = |id| {
            let place = outline.place(Some(id));
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
        let mut outline = Outline::default();
        outline.look(&tree, |_| true, |_| 1.0);
        let on_chain: Vec<NodeId> = (outline.places.iter())
            .filter(|(_, place)| place.is_on_main_chain())
            .map(|&(id, _)| id)
            .collect();
        assert_eq!(on_chain, [first]);
        assert_eq!(tree.best_child(None), Some(first));
    }
}

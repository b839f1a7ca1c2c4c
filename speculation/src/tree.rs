//! The speculation tree: guessed tokens that hang off the last committed token of a request.
//!
//! An arena with generational ids, so that an id held elsewhere (a table of node numbers, a step in flight) never comes
//! to mean another node. The root is not a node: it is the committed text itself, of which the tree knows only the
//! length. Scores are probabilities: the *edge* of a node estimates how likely its token is committed given that its
//! parent is, the *path* is the product of the edges from the root down.

use alloc::collections::BinaryHeap;
use alloc::vec::Vec;
use core::cmp::Ordering;

pub use decode::NodeId;

/// A guessed token at an absolute position.
#[derive(Clone, Debug)]
pub struct Node<P> {
    /// The guessed token id.
    pub token: u32,
    /// The node this one continues; `None` when it continues the committed text.
    pub parent: Option<NodeId>,
    /// Absolute position of the token in the text (0 is the first prompt token).
    pub position: u32,
    /// Which draft should expand this node; an index modulo the number of drafts.
    pub owner: u8,
    /// What the holder of the tree keeps about the node.
    pub payload: P,
    children: Vec<NodeId>,
    edge: f32,
    path: f32,
}

impl<P> Node<P> {
    /// Estimated probability that this token is committed, given that its parent is.
    pub fn edge(&self) -> f32 {
        self.edge
    }

    /// Estimated probability that the whole path down to this token is committed.
    pub fn path(&self) -> f32 {
        self.path
    }

    /// The guesses that continue this one, in the order in which they came.
    pub fn children(&self) -> &[NodeId] {
        &self.children
    }
}

/// What a new node is.
#[derive(Clone, Debug)]
pub struct Graft<P> {
    /// The guessed token id.
    pub token: u32,
    /// Estimated probability of the token given its parent, in `0..=1`.
    pub edge: f32,
    /// Which draft should expand it.
    pub owner: u8,
    /// The holder's own data.
    pub payload: P,
}

/// Result of [`Tree::graft`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grafted {
    /// The node is new.
    New(NodeId),
    /// The parent already had a child with this token; nothing was changed.
    Existing(NodeId),
}

impl Grafted {
    /// The node, new or not.
    pub fn id(self) -> NodeId {
        match self {
            Grafted::New(id) | Grafted::Existing(id) => id,
        }
    }
}

/// What a commit did to the tree.
#[derive(Debug)]
pub struct Committed<P> {
    /// The nodes whose tokens were committed, from the root down: a prefix of the committed tokens.
    pub matched: Vec<(NodeId, Node<P>)>,
    /// The nodes that can no longer come true (a *rollback*).
    pub removed: Vec<(NodeId, Node<P>)>,
    /// Whether every committed token was a node: the tree lives on below the new root.
    pub hit: bool,
}

#[derive(Clone, Debug)]
struct Slot<P> {
    generation: u32,
    node: Option<Node<P>>,
}

/// The guesses of one request. See the module documentation.
#[derive(Clone, Debug)]
pub struct Tree<P> {
    committed_len: u32,
    slots: Vec<Slot<P>>,
    vacant: Vec<u32>,
    roots: Vec<NodeId>,
    len: usize,
    /// The newest changes: nodes that were added, or whose edge or path is another one. Some may be gone.
    changes: Vec<NodeId>,
    /// Number of changes before those.
    forgotten: u64,
    /// Empty lists of children of nodes that are gone, for those to come.
    lists: Vec<Vec<NodeId>>,
}

/// Changes that are remembered at least.
const CHANGES: usize = 1024;

/// Empty lists that are kept, at most.
const LISTS: usize = 256;

impl<P> Tree<P> {
    /// An empty tree behind `committed_len` committed tokens.
    pub fn new(committed_len: u32) -> Self {
        Tree {
            committed_len,
            slots: Vec::new(),
            vacant: Vec::new(),
            roots: Vec::new(),
            len: 0,
            changes: Vec::new(),
            forgotten: 0,
            lists: Vec::new(),
        }
    }

    /// Number of committed tokens above the tree: the position of a root's child.
    pub fn committed_len(&self) -> u32 {
        self.committed_len
    }

    /// Number of live nodes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is guessed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The node, unless it was committed or rolled back.
    pub fn get(&self, id: NodeId) -> Option<&Node<P>> {
        let slot = self.slots.get(id.index as usize)?;
        (slot.generation == id.generation)
            .then_some(slot.node.as_ref())
            .flatten()
    }

    /// The holder's data of a live node.
    pub fn payload_mut(&mut self, id: NodeId) -> Option<&mut P> {
        self.node_mut(id).map(|node| &mut node.payload)
    }

    fn node_mut(&mut self, id: NodeId) -> Option<&mut Node<P>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation)
            .then_some(slot.node.as_mut())
            .flatten()
    }

    /// The guesses that follow `parent` (`None`: the committed text); empty for a node that is gone.
    pub fn children(&self, parent: Option<NodeId>) -> &[NodeId] {
        match parent {
            None => &self.roots,
            Some(id) => self.get(id).map_or(&[], Node::children),
        }
    }

    /// The child of `parent` that guesses `token`.
    pub fn child(&self, parent: Option<NodeId>, token: u32) -> Option<NodeId> {
        self.children(parent)
            .iter()
            .copied()
            .find(|&id| self.get(id).is_some_and(|node| node.token == token))
    }

    /// The most likely guess that follows `parent`; of equals the earliest.
    pub fn best_child(&self, parent: Option<NodeId>) -> Option<NodeId> {
        let mut best: Option<(NodeId, f32)> = None;
        for &id in self.children(parent) {
            let edge = self.get(id).map_or(0.0, Node::edge);
            if best.is_none_or(|(_, most)| edge > most) {
                best = Some((id, edge));
            }
        }
        best.map(|(id, _)| id)
    }

    /// The nodes below the committed text that spell the longest prefix of `tokens`.
    pub fn descend(&self, tokens: &[u32]) -> Vec<NodeId> {
        let mut path = Vec::new();
        for &token in tokens {
            match self.child(path.last().copied(), token) {
                Some(id) => path.push(id),
                None => break,
            }
        }
        path
    }

    /// Path probability of a node, 1 for the committed text, 0 for a node that is gone.
    pub fn path_score(&self, id: Option<NodeId>) -> f32 {
        match id {
            None => 1.0,
            Some(id) => self.get(id).map_or(0.0, Node::path),
        }
    }

    /// The node and its ancestors, nearest first.
    pub fn ancestors(&self, id: NodeId) -> impl Iterator<Item = (NodeId, &Node<P>)> {
        let mut next = Some(id);
        core::iter::from_fn(move || {
            let id = next?;
            let node = self.get(id)?;
            next = node.parent;
            Some((id, node))
        })
    }

    /// The tokens from the root's child down to `id`; empty for a node that is gone.
    pub fn tokens_to(&self, id: NodeId) -> Vec<u32> {
        let mut tokens: Vec<u32> = self.ancestors(id).map(|(_, node)| node.token).collect();
        tokens.reverse();
        tokens
    }

    /// Every live node, in arena order (which is stable, but means nothing).
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Node<P>)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let id = NodeId {
                index: u32::try_from(index).expect("graft keeps the arena below u32::MAX slots"),
                generation: slot.generation,
            };
            slot.node.as_ref().map(|node| (id, node))
        })
    }

    /// Number of changes since the tree was made: where a later call of [`changes`](Self::changes) begins.
    pub fn change_count(&self) -> u64 {
        self.forgotten + self.changes.len() as u64
    }

    /// The nodes that were added or scored anew after the first `seen` changes, some more than once, some gone by now;
    /// `None` when that is too long ago to be known.
    pub fn changes(&self, seen: u64) -> Option<&[NodeId]> {
        let from = seen.checked_sub(self.forgotten)?;
        self.changes.get(usize::try_from(from).ok()?..)
    }

    fn changed(&mut self, id: NodeId) {
        if self.changes.len() >= 2 * CHANGES {
            self.changes.drain(..CHANGES);
            self.forgotten += CHANGES as u64;
        }
        self.changes.push(id);
    }

    /// Adds a guess under `parent` (`None`: the committed text). `None` when the parent is gone.
    pub fn graft(&mut self, parent: Option<NodeId>, graft: Graft<P>) -> Option<Grafted> {
        let (position, parent_path) = match parent {
            None => (self.committed_len, 1.0),
            Some(id) => {
                let node = self.get(id)?;
                (node.position.checked_add(1)?, node.path)
            }
        };
        if let Some(id) = self.child(parent, graft.token) {
            return Some(Grafted::Existing(id));
        }
        let edge = sane(graft.edge);
        let node = Node {
            token: graft.token,
            parent,
            position,
            owner: graft.owner,
            payload: graft.payload,
            children: Vec::new(),
            edge,
            path: parent_path * edge,
        };
        let index = match self.vacant.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot {
                    generation: 0,
                    node: None,
                });
                index
            }
        };
        let slot = &mut self.slots[index as usize];
        slot.node = Some(node);
        let id = NodeId {
            index,
            generation: slot.generation,
        };
        match parent {
            None => self.roots.push(id),
            Some(parent) => {
                let node = self.slots[parent.index as usize].node.as_mut();
                let children = &mut node.expect("the parent was live a moment ago").children;
                if children.capacity() == 0
                    && let Some(list) = self.lists.pop()
                {
                    *children = list;
                }
                children.push(id);
            }
        }
        self.len += 1;
        self.changed(id);
        Some(Grafted::New(id))
    }

    /// Sets the edge probability of a live node and brings the paths below it up to date.
    pub fn set_edge(&mut self, id: NodeId, edge: f32) {
        let parent_path = match self.get(id) {
            None => return,
            Some(node) => self.path_score(node.parent),
        };
        if let Some(node) = self.node_mut(id) {
            node.edge = sane(edge);
            self.changed(id);
        }
        self.refresh_paths(id, parent_path);
    }

    fn refresh_paths(&mut self, top: NodeId, parent_path: f32) {
        let (mut next, mut stack) = (Some((top, parent_path)), Vec::new());
        while let Some((id, above)) = next.take().or_else(|| stack.pop()) {
            let Some(node) = self.node_mut(id) else {
                continue;
            };
            let path = above * node.edge;
            let is_other = path.to_bits() != node.path.to_bits();
            node.path = path;
            stack.extend(node.children.iter().map(|&child| (child, path)));
            if is_other {
                self.changed(id);
            }
        }
    }

    fn remove_below(&mut self, mut stack: Vec<NodeId>, removed: &mut Vec<(NodeId, Node<P>)>) {
        while let Some(id) = stack.pop() {
            if let Some(mut node) = self.take(id) {
                let mut children = core::mem::take(&mut node.children);
                stack.append(&mut children);
                self.recycle(children);
                removed.push((id, node));
            }
        }
    }

    /// Keeps an empty list for later.
    fn recycle(&mut self, list: Vec<NodeId>) {
        if list.capacity() > 0 && self.lists.len() < LISTS {
            self.lists.push(list);
        }
    }

    fn take(&mut self, id: NodeId) -> Option<Node<P>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let node = slot.node.take()?;
        match slot.generation.checked_add(1) {
            Some(generation) => {
                slot.generation = generation;
                self.vacant.push(id.index);
            }
            // A slot that has used up its generations is retired: an id must never come to mean another node.
            None => slot.generation = u32::MAX,
        }
        self.len -= 1;
        Some(node)
    }

    /// Commits `tokens` behind the text: the nodes that spell them become text, everything that is not below the
    /// last of them is rolled back, and the rest hangs off the new end of the text.
    pub fn commit(&mut self, tokens: &[u32]) -> Committed<P> {
        let mut matched = Vec::new();
        let mut removed = Vec::with_capacity(if tokens.is_empty() { 0 } else { self.len });
        let mut hit = true;
        for &token in tokens {
            let chosen = if hit { self.child(None, token) } else { None };
            let losers = self
                .roots
                .iter()
                .copied()
                .filter(|&id| Some(id) != chosen)
                .collect();
            self.roots.clear();
            self.remove_below(losers, &mut removed);
            match chosen.and_then(|id| self.take(id).map(|node| (id, node))) {
                Some((id, mut node)) => {
                    let roots =
                        core::mem::replace(&mut self.roots, core::mem::take(&mut node.children));
                    self.recycle(roots);
                    matched.push((id, node));
                }
                None => hit = false,
            }
            self.committed_len += 1;
        }
        for id in self.roots.clone() {
            if let Some(node) = self.node_mut(id) {
                node.parent = None;
            }
            self.refresh_paths(id, 1.0);
        }
        Committed {
            matched,
            removed,
            hit,
        }
    }

    /// Up to `limit` guesses that follow `parent`, the most likely first.
    pub fn best_children(&self, parent: Option<NodeId>, limit: usize) -> Vec<NodeId> {
        let mut children = self.children(parent).to_vec();
        let edge = |id: &NodeId| self.get(*id).map_or(0.0, Node::edge);
        children.sort_by(|a, b| edge(b).total_cmp(&edge(a)));
        children.truncate(limit);
        children
    }

    /// Up to `limit` descendants of `top` (`None`: of the committed text), a chain: the most likely guess at every place,
    /// as long as there are no more than `most` guesses at it.
    pub fn chain_below(&self, top: Option<NodeId>, limit: usize, most: usize) -> Vec<NodeId> {
        let mut chain = Vec::new();
        let mut at = top;
        while chain.len() < limit && self.children(at).len() <= most {
            let Some(next) = self.best_child(at) else {
                break;
            };
            chain.push(next);
            at = Some(next);
        }
        chain
    }

    /// Up to `limit` descendants of `top` (`None`: of the committed text), best path first, a parent always before
    /// its children, leaving out what scores below `min_path`.
    pub fn best_below(&self, top: Option<NodeId>, limit: usize, min_path: f32) -> Vec<NodeId> {
        let mut chosen = Vec::new();
        let open = |&id: &NodeId| {
            let path = self.get(id)?.path;
            (path >= min_path).then_some(Open { path, id })
        };
        let mut frontier: BinaryHeap<Open> = self.children(top).iter().filter_map(open).collect();
        while chosen.len() < limit
            && let Some(Open { id, .. }) = frontier.pop()
        {
            chosen.push(id);
            frontier.extend(self.children(Some(id)).iter().filter_map(open));
        }
        chosen
    }
}

/// A node that could be chosen next: the one with the best path, of equals the one that is earlier in the arena.
#[derive(Clone, Copy, Debug)]
struct Open {
    path: f32,
    id: NodeId,
}

impl Ord for Open {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.path.total_cmp(&other.path)).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Open {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Open {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Open {}

fn sane(probability: f32) -> f32 {
    if probability.is_nan() {
        0.0
    } else {
        probability.clamp(0.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graft(tree: &mut Tree<()>, parent: Option<NodeId>, token: u32, edge: f32) -> NodeId {
        tree.graft(
            parent,
            Graft {
                token,
                edge,
                owner: 0,
                payload: (),
            },
        )
        .expect("the parent is live")
        .id()
    }

    #[test]
    fn a_commit_keeps_what_hangs_below_the_last_token() {
        let mut tree = Tree::new(10);
        let a = graft(&mut tree, None, 1, 0.5);
        let b = graft(&mut tree, None, 2, 0.5);
        let aa = graft(&mut tree, Some(a), 3, 0.5);
        let ab = graft(&mut tree, Some(a), 4, 0.25);
        let aba = graft(&mut tree, Some(ab), 5, 0.5);
        assert_eq!(tree.get(aba).expect("live").position, 12);
        let done = tree.commit(&[1, 4]);
        assert!(done.hit);
        assert_eq!(done.matched.len(), 2);
        assert_eq!(done.removed.len(), 2);
        assert!(tree.get(aa).is_none() && tree.get(b).is_none());
        assert_eq!(tree.committed_len(), 12);
        assert_eq!(tree.get(aba).expect("live").path(), 0.5);
        assert_eq!(tree.tokens_to(aba), [5]);
    }

    #[test]
    fn a_miss_empties_the_tree() {
        let mut tree = Tree::new(0);
        let a = graft(&mut tree, None, 1, 1.0);
        graft(&mut tree, Some(a), 2, 1.0);
        let done = tree.commit(&[1, 7, 2]);
        assert!(!done.hit && tree.is_empty());
        assert_eq!((done.matched.len(), done.removed.len()), (1, 1));
        assert_eq!(tree.committed_len(), 3);
    }

    #[test]
    fn an_id_never_means_another_node() {
        let mut tree = Tree::new(0);
        let a = graft(&mut tree, None, 1, 1.0);
        let gone = graft(&mut tree, None, 7, 1.0);
        tree.commit(&[1]);
        assert!(tree.get(a).is_none() && tree.get(gone).is_none());
        let b = graft(&mut tree, None, 1, 1.0);
        let c = graft(&mut tree, None, 7, 1.0);
        assert!(![a, gone].contains(&b) && ![a, gone].contains(&c));
        assert!(tree.get(a).is_none() && tree.get(gone).is_none());
    }

    #[test]
    fn best_below_is_best_first_and_connected() {
        let mut tree = Tree::new(0);
        let a = graft(&mut tree, None, 1, 0.9);
        let b = graft(&mut tree, None, 2, 0.1);
        let aa = graft(&mut tree, Some(a), 1, 0.05);
        assert_eq!(tree.best_below(None, 8, 0.0), [a, b, aa]);
        assert_eq!(tree.best_below(Some(a), 8, 0.0), [aa]);
        tree.set_edge(aa, 0.5);
        assert_eq!(tree.best_below(None, 2, 0.0), [a, aa]);
    }

    #[test]
    fn a_chain_follows_the_best_and_a_stem_ends_at_the_first_branch() {
        let mut tree = Tree::new(0);
        let a = graft(&mut tree, None, 1, 0.9);
        let aa = graft(&mut tree, Some(a), 1, 0.2);
        let ab = graft(&mut tree, Some(a), 2, 0.7);
        let aba = graft(&mut tree, Some(ab), 1, 0.1);
        assert_eq!(tree.chain_below(None, 8, usize::MAX), [a, ab, aba]);
        assert_eq!(tree.chain_below(None, 2, usize::MAX), [a, ab]);
        assert_eq!(tree.chain_below(Some(ab), 8, usize::MAX), [aba]);
        assert_eq!(tree.chain_below(None, 8, 1), [a]);
        assert_eq!(
            tree.chain_below(Some(a), 8, 1),
            [],
            "two guesses are a branch"
        );
        assert_eq!(tree.chain_below(Some(aa), 8, 1), []);
        assert_eq!(tree.best_children(Some(a), 8), [ab, aa]);
        assert_eq!(tree.best_children(Some(a), 1), [ab]);
    }
}

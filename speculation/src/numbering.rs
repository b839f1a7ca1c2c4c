//! The two ends of one direction of a stream, for one session: which node a number stands for, and what was sent to the
//! other side.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use decode::{Drawn, Surprisal};

use crate::duty::Source;
use crate::groups::Groups;
use crate::limits::{MAX_GROUPS_PER_UPDATE, MAX_NODES_PER_UPDATE, MAX_TREE};
use crate::message::{NodeBatch, NodeNumber, Origin, Prob16, ROOT};
use crate::node_map::NodeMap;
use crate::tree::{Committed, Graft, Grafted, Node, NodeId, Tree};

/// A message that a correct peer would not send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The parallel arrays differ in length.
    #[error("the arrays of a node batch differ in length")]
    Ragged,
    /// More nodes than one message may carry.
    #[error("{0} nodes in one message; at most {MAX_NODES_PER_UPDATE} are allowed")]
    TooManyNodes(usize),
    /// More groups of drawn siblings than one message may carry.
    #[error("{0} groups in one message; at most {MAX_GROUPS_PER_UPDATE} are allowed")]
    TooManyGroups(usize),
    /// The same guesses were named over and over without the text moving on.
    #[error("{0} node numbers without progress of the text; at most {MAX_NAMES} are kept")]
    TooManyNames(usize),
    /// A node number was used before.
    #[error("node number {got} was used before; the next free one is {next}")]
    ReusedId {
        /// The number in the message.
        got: NodeNumber,
        /// The first number that would have been allowed.
        next: NodeNumber,
    },
    /// A parent that was never named.
    #[error("parent {0} was never named on this stream")]
    UnknownParent(NodeNumber),
    /// A token outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    Token {
        /// The token.
        token: u32,
        /// Number of tokens in the vocabulary.
        vocab: u32,
    },
    /// The message is based on text that was not sent.
    #[error("message starts at length {got}, but only {have} tokens are known")]
    Gap {
        /// The base in the message.
        got: u32,
        /// The length of the text here.
        have: u32,
    },
    /// Two different tokens at one committed position.
    #[error("token {got} at position {position}, where {have} was committed")]
    Conflict {
        /// The position.
        position: u32,
        /// The token in the message.
        got: u32,
        /// The token that was committed.
        have: u32,
    },
    /// More committed tokens than one message may carry, or than the text may have.
    #[error("{0} committed tokens are more than the session allows")]
    TooLong(usize),
}

/// Numbers a receiver keeps: several for each node that a tree may have.
const MAX_NAMES: usize = 4 * MAX_TREE;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Node(NodeId),
    Text(u32),
}

/// The receiving end: from numbers to places in the tree.
#[derive(Clone, Debug, Default)]
pub struct Inbound {
    watermark: NodeNumber,
    /// By their numbers, ascending.
    places: Vec<(NodeNumber, Place)>,
    /// No number stands for a place in the text before this position.
    oldest: u32,
    foreseen: u32,
    /// Who foresaw the last of those tokens, and with which rank.
    foreseen_by: (Source, u8),
}

impl Inbound {
    /// Grafts a batch whose root is the text of length `sender_len`. `text` is the receiver's own, which is at least
    /// as long. Nodes that the text has already decided are not grafted. Returns the nodes it named, new or known, each
    /// with its index in the batch.
    pub fn receive<P>(
        &mut self,
        tree: &mut Tree<P>,
        text: &[u32],
        vocab: u32,
        sender_len: u32,
        batch: &NodeBatch,
        mut payload: impl FnMut(&NodeBatch, usize) -> P,
    ) -> Result<Vec<(usize, Grafted)>, PeerError> {
        self.check(batch, vocab)?;
        if sender_len as usize > text.len() {
            return Err(PeerError::Gap {
                got: sender_len,
                have: len_u32(text),
            });
        }
        if self.places.len() + batch.len() > MAX_NAMES {
            return Err(PeerError::TooManyNames(self.places.len() + batch.len()));
        }
        let mut named = Vec::with_capacity(batch.tokens.len());
        for at in 0..batch.len() {
            let id = batch.first_id + at as NodeNumber;
            let (parent_node, position) = match batch.parents[at] {
                ROOT => (None, sender_len),
                parent => match self.place(parent) {
                    Some(Place::Node(node)) => match tree.get(node) {
                        Some(found) => (Some(node), found.position + 1),
                        None => continue,
                    },
                    Some(Place::Text(position)) => (None, position + 1),
                    // It was named, and has been decided since: the branch below it is void.
                    None => continue,
                },
            };
            let place = match text.get(position as usize) {
                Some(&token) if parent_node.is_none() => {
                    if token != batch.tokens[at] {
                        continue;
                    }
                    if position + 1 > self.foreseen {
                        self.foreseen = position + 1;
                        self.foreseen_by = (source_of(batch, at), rank_of(batch, at));
                    }
                    Place::Text(position)
                }
                _ => {
                    if tree.len() >= MAX_TREE {
                        continue;
                    }
                    let graft = Graft {
                        token: batch.tokens[at],
                        edge: batch.edges[at].to_f32(),
                        owner: batch.owners[at],
                        payload: payload(batch, at),
                    };
                    let Some(grafted) = tree.graft(parent_node, graft) else {
                        continue;
                    };
                    named.push((at, grafted));
                    Place::Node(grafted.id())
                }
            };
            // Numbers only grow.
            self.places.push((id, place));
            self.note(place);
        }
        if !batch.tokens.is_empty() {
            self.watermark = batch.first_id + (batch.len() as NodeNumber - 1);
        }
        if self.oldest < sender_len {
            let mut oldest = u32::MAX;
            self.places.retain(|(_, place)| match *place {
                Place::Node(_) => true,
                Place::Text(position) if position < sender_len => false,
                Place::Text(position) => {
                    oldest = oldest.min(position);
                    true
                }
            });
            self.oldest = oldest;
        }
        Ok(named)
    }

    fn place(&self, number: NodeNumber) -> Option<Place> {
        let at = self
            .places
            .binary_search_by_key(&number, |&(number, _)| number);
        Some(self.places[at.ok()?].1)
    }

    fn note(&mut self, place: Place) {
        if let Place::Text(position) = place {
            self.oldest = self.oldest.min(position);
        }
    }

    fn check(&self, batch: &NodeBatch, vocab: u32) -> Result<(), PeerError> {
        self.check_groups(batch, vocab)?;
        let n = batch.len();
        let ragged = [batch.parents.len(), batch.edges.len(), batch.owners.len()]
            .into_iter()
            .any(|len| len != n);
        if ragged || ![0, n].contains(&batch.origins.len()) {
            return Err(PeerError::Ragged);
        }
        if n == 0 {
            return Ok(());
        }
        if n > MAX_NODES_PER_UPDATE {
            return Err(PeerError::TooManyNodes(n));
        }
        let next = self.watermark.saturating_add(1);
        if batch.first_id < next || batch.first_id.checked_add(n as NodeNumber).is_none() {
            return Err(PeerError::ReusedId {
                got: batch.first_id,
                next,
            });
        }
        for at in 0..n {
            if batch.tokens[at] >= vocab {
                return Err(PeerError::Token {
                    token: batch.tokens[at],
                    vocab,
                });
            }
            let parent = batch.parents[at];
            let known = parent <= self.watermark
                || (parent >= batch.first_id && parent < batch.first_id + at as NodeNumber);
            if !known {
                return Err(PeerError::UnknownParent(parent));
            }
        }
        Ok(())
    }

    fn check_groups(&self, batch: &NodeBatch, vocab: u32) -> Result<(), PeerError> {
        if batch.surprisals.len() > MAX_NODES_PER_UPDATE {
            return Err(PeerError::TooManyNodes(batch.surprisals.len()));
        }
        if batch.groups.len() > MAX_GROUPS_PER_UPDATE {
            return Err(PeerError::TooManyGroups(batch.groups.len()));
        }
        let new = batch.first_id..batch.first_id.saturating_add(batch.len() as NodeNumber);
        for (parent, drawn) in &batch.groups {
            if *parent > self.watermark && !new.contains(parent) {
                return Err(PeerError::UnknownParent(*parent));
            }
            if let Some((token, _)) = drawn.support().find(|&(token, _)| token >= vocab) {
                return Err(PeerError::Token { token, vocab });
            }
        }
        Ok(())
    }

    /// What the groups of a batch that was received follow here: live nodes, or the end of the text. What was drawn for a
    /// position that is decided by now is void.
    pub fn groups<P>(
        &self,
        tree: &Tree<P>,
        sender_len: u32,
        batch: &NodeBatch,
    ) -> Vec<(Option<NodeId>, Drawn)> {
        let len = tree.committed_len();
        let parent = |number: NodeNumber| match number {
            ROOT => (sender_len == len).then_some(None),
            _ => match self.place(number)? {
                Place::Node(id) => tree.get(id).map(|_| Some(id)),
                Place::Text(position) => (position + 1 == len).then_some(None),
            },
        };
        (batch.groups.iter())
            .filter_map(|(number, drawn)| Some((parent(*number)?, drawn.clone())))
            .collect()
    }

    /// The length of the text up to which tokens were guessed right before their sender knew of them, but too late to
    /// be in the tree when they were committed.
    pub fn foreseen(&self) -> u32 {
        self.foreseen
    }

    /// The source of the last of those tokens, and its place among the guesses that came with it, from 1.
    pub fn foreseen_by(&self) -> (Source, u8) {
        self.foreseen_by
    }

    /// The live node a number stands for.
    pub fn node(&self, id: NodeNumber) -> Option<NodeId> {
        match self.place(id) {
            Some(Place::Node(node)) => Some(node),
            Some(Place::Text(_)) | None => None,
        }
    }

    /// Follows a commit of the receiver's own tree.
    pub fn committed<P>(&mut self, committed: &Committed<P>) {
        let removed: NodeMap<()> = committed.removed.iter().map(|&(id, _)| id).collect();
        let matched = |id| {
            let found = committed
                .matched
                .iter()
                .find(|&&(matched, _)| matched == id);
            found.map(|(_, node)| node.position)
        };
        let mut oldest = self.oldest;
        self.places.retain_mut(|(_, place)| match *place {
            Place::Text(_) => true,
            Place::Node(id) if removed.get(id).is_some() => false,
            Place::Node(id) => {
                if let Some(position) = matched(id) {
                    *place = Place::Text(position);
                    oldest = oldest.min(position);
                }
                true
            }
        });
        self.oldest = oldest;
    }
}

/// Where a node of a batch came from, as far as its sender knows.
pub(crate) fn source_of(batch: &NodeBatch, at: usize) -> Source {
    batch
        .origins
        .get(at)
        .map_or(Source::Unknown, |origin| origin.source)
}

/// The place of a guess behind so many better ones, from 1.
pub(crate) fn rank(better: usize) -> u8 {
    u8::try_from(better).unwrap_or(u8::MAX).saturating_add(1)
}

/// The place of a node among those of its source that the batch has behind the same parent, by probability, from 1.
fn rank_of(batch: &NodeBatch, at: usize) -> u8 {
    let better = (0..batch.len()).filter(|&other| {
        batch.parents[other] == batch.parents[at]
            && source_of(batch, other) == source_of(batch, at)
            && batch.edges[other] > batch.edges[at]
    });
    rank(better.count())
}

#[derive(Clone, Copy, Debug)]
struct Known {
    id: Option<NodeNumber>,
    edge: Prob16,
}

/// The sending end: what the other side knows of this tree.
#[derive(Clone, Debug, Default)]
pub struct Outbound {
    last_id: NodeNumber,
    known: NodeMap<Known>,
    /// The numbers of the groups that were sent.
    told: BTreeSet<u64>,
    /// What was sent of nodes.
    surprisals: BTreeMap<NodeId, Surprisal>,
    /// Changes of the tree that the last message was made of.
    seen: u64,
    /// Whether the last message left out something for lack of room.
    is_behind: bool,
    /// What the last message left out because it was too unlikely.
    min_path: f32,
}

/// Edge probabilities that moved less than this (in 1/65535) are not worth a message.
const RESCORE_STEP: u16 = 1600;

impl Outbound {
    /// Notes that the other side has sent this node or its edge, so that neither is sent back.
    pub fn received(&mut self, id: NodeId, edge: Prob16) {
        match self.known.get_mut(id) {
            Some(known) => known.edge = edge,
            None => self.known.insert(id, Known { id: None, edge }),
        }
    }

    /// Forgets nodes that are gone.
    pub fn committed<P>(&mut self, tree: &Tree<P>) {
        self.known.retain(|id| tree.get(id).is_some());
        self.surprisals.retain(|&id, _| tree.get(id).is_some());
    }

    /// The groups that have to be sent to the other side, as many as a message may carry: call it after
    /// [`diff`](Outbound::diff), which gives the nodes that they follow their numbers.
    pub fn diff_groups<P>(&mut self, tree: &Tree<P>, groups: &Groups) -> Vec<(NodeNumber, Drawn)> {
        if !self.told.is_empty() {
            let there: BTreeSet<u64> = groups.numbers().into_iter().collect();
            self.told.retain(|number| there.contains(number));
        }
        let mut unsent: Vec<_> = (groups.iter())
            .filter(|(group, ..)| !self.told.contains(group))
            .collect();
        // Drafts draw behind a node before they draw behind what they drew.
        unsent.sort_by_key(|&(group, ..)| group);
        let mut batch = Vec::new();
        for (group, parent, drawn) in unsent {
            let number = match parent {
                None => Some(ROOT),
                Some(id) => (tree.get(id))
                    .and_then(|_| self.known.get(id))
                    .and_then(|known| known.id),
            };
            if let Some(number) = number
                && batch.len() < MAX_GROUPS_PER_UPDATE
            {
                self.told.insert(group);
                batch.push((number, drawn.clone()));
            }
        }
        batch
    }

    /// What has to be sent of the nodes that the other side knows by number, as much as a message may carry: call it after
    /// [`diff`](Outbound::diff).
    pub fn diff_surprisals<P>(
        &mut self,
        tree: &Tree<P>,
        of: impl Fn(&P) -> Option<Surprisal>,
    ) -> Vec<(NodeNumber, Surprisal)> {
        let mut batch = Vec::new();
        for (id, node) in tree.iter() {
            let number = self.known.get(id).and_then(|known| known.id);
            let (Some(surprisal), Some(number)) = (of(&node.payload), number) else {
                continue;
            };
            let is_told = self.surprisals.get(&id) == Some(&surprisal);
            if !is_told && batch.len() < MAX_NODES_PER_UPDATE {
                self.surprisals.insert(id, surprisal);
                batch.push((number, surprisal));
            }
        }
        batch
    }

    /// What has to be sent to the other side: up to `room` nodes with a path of at least `min_path`, best first,
    /// parents before children, and the edges that moved. `origin` says where a node came from, for a sender that
    /// knows.
    pub fn diff<P>(
        &mut self,
        tree: &Tree<P>,
        min_path: f32,
        room: usize,
        origin: Option<fn(&P) -> Origin>,
    ) -> (NodeBatch, Vec<(NodeNumber, Prob16)>) {
        let room = room.min(MAX_NODES_PER_UPDATE);
        let mut rescored = Vec::new();
        // By what they are sorted.
        let mut unsent: Vec<(f32, u32, NodeId)> = Vec::new();
        let is_same_limit = self.min_path.to_bits() == min_path.to_bits();
        let changes = tree.changes(self.seen);
        let ids = match changes.filter(|_| is_same_limit && !self.is_behind) {
            Some(changes) => {
                let mut ids = changes.to_vec();
                ids.sort_unstable();
                ids.dedup();
                ids
            }
            None => tree.iter().map(|(id, _)| id).collect(),
        };
        (self.seen, self.min_path, self.is_behind) = (tree.change_count(), min_path, false);
        for id in ids {
            let Some(node) = tree.get(id) else { continue };
            let edge = Prob16::from_f32(node.edge());
            match self.known.get_mut(id) {
                None if node.path() >= min_path => unsent.push((node.path(), node.position, id)),
                None => {}
                Some(known) if known.edge.0.abs_diff(edge.0) < RESCORE_STEP => {}
                Some(Known {
                    id: Some(number),
                    edge: known_edge,
                }) => {
                    *known_edge = edge;
                    rescored.push((*number, edge));
                }
                Some(Known { id: None, .. }) => unsent.push((node.path(), node.position, id)),
            }
        }
        unsent.sort_unstable_by(|(a_path, a, a_id), (b_path, b, b_id)| {
            (b_path.total_cmp(a_path))
                .then(a.cmp(b))
                .then(a_id.cmp(b_id))
        });
        let mut batch = NodeBatch {
            first_id: self.last_id.saturating_add(1),
            ..NodeBatch::default()
        };
        let more = unsent.len().min(room);
        batch.parents.reserve(more);
        batch.tokens.reserve(more);
        batch.edges.reserve(more);
        batch.owners.reserve(more);
        batch
            .origins
            .reserve(if origin.is_some() { more } else { 0 });
        let mut unnamed: Vec<(NodeId, &Node<P>)> = Vec::new();
        'unsent: for (_, _, id) in unsent {
            // The other side may know an ancestor only by its own number; then it gets one of ours first.
            unnamed.clear();
            unnamed.extend(
                (tree.ancestors(id)).take_while(|(id, _)| {
                    self.known.get(*id).is_none_or(|known| known.id.is_none())
                }),
            );
            while let Some((id, node)) = unnamed.pop() {
                // The upper part of a branch is worth sending even if the rest has to wait.
                if batch.len() >= room {
                    self.is_behind = true;
                    break 'unsent;
                }
                let parent = match node.parent {
                    None => ROOT,
                    Some(parent) => match self.known.get(parent).and_then(|known| known.id) {
                        Some(parent) => parent,
                        None => break,
                    },
                };
                let Some(number) = self.last_id.checked_add(1) else {
                    return (batch, rescored);
                };
                self.last_id = number;
                let edge = Prob16::from_f32(node.edge());
                self.known.insert(
                    id,
                    Known {
                        id: Some(number),
                        edge,
                    },
                );
                batch.parents.push(parent);
                batch.tokens.push(node.token);
                batch.edges.push(edge);
                batch.owners.push(node.owner);
                batch.origins.extend(origin.map(|of| of(&node.payload)));
            }
        }
        (batch, rescored)
    }
}

/// The length of a text, which every receiver keeps far below `u32::MAX`.
pub(crate) fn len_u32(text: &[u32]) -> u32 {
    u32::try_from(text.len()).expect("texts are limited by max_len, a u32")
}

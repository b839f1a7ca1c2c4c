//! One worker's replica of a session: the text, the tree of guesses, and how far the model's cache has followed.

use alloc::vec::Vec;

use decode::Surprisal;
use decode::step::{Ask, CacheOp, Row, StepPlan};

use crate::Time;
use crate::allocation::Work;
use crate::calibration::{Calibration, Feature, Outcome};
use crate::duty::Source;
use crate::groups::Groups;
use crate::limits::MAX_COMMIT;
use crate::message::{Prob16, ReplicaUpdate, SessionSpec, Stopping};
use crate::numbering::{Inbound, PeerError, len_u32, source_of};
use crate::tree::{Committed, Grafted, NodeId, Tree};

/// What a worker keeps about a node.
#[derive(Clone, Debug, Default)]
pub struct Held<X> {
    /// Whether the model's cache holds the row of this node.
    pub computed: bool,
    /// How surprising its source finds it, under the rule `fuzzy`: to a qualifier a draft, to a target the qualifier.
    pub surprisal: Option<Surprisal>,
    /// The session's own data.
    pub own: X,
}

/// What a session needs from its worker now.
#[derive(Clone, Debug, PartialEq)]
pub enum Poll {
    /// Rows in the next step.
    Work(Work),
    /// Nothing until something arrives, or until this time: waiting for others (a bubble). A worker that computes a step
    /// for another session all the same takes the work along.
    Wait(Option<Time>, Option<Work>),
    /// Nothing until something arrives: more work would have no value (not a bubble).
    Parked,
    /// The text is complete.
    Done,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Replica<X> {
    pub(crate) text: Vec<u32>,
    pub(crate) stopping: Stopping,
    pub(crate) allowed_len: u32,
    pub(crate) vocab: u32,
    pub(crate) tree: Tree<Held<X>>,
    /// What a draft drew, under the rule `rejection`.
    pub(crate) groups: Groups,
    /// Positions of the text that the cache holds.
    pub(crate) cached: u32,
    /// Nodes whose rows it holds.
    held: usize,
    inbound: Inbound,
    ops: Vec<CacheOp>,
}

impl<X: Clone + Default> Replica<X> {
    /// A replica of a session whose cache holds the first `cached` tokens of its text.
    pub(crate) fn new(spec: &SessionSpec, vocab: u32, cached: u32) -> Self {
        Replica {
            text: spec.text.clone(),
            stopping: spec.stopping.clone(),
            allowed_len: spec.allowed_len,
            vocab,
            tree: Tree::new(len_u32(&spec.text)),
            groups: Groups::default(),
            // The last token is computed again, because its row has to answer.
            cached: cached.min(len_u32(&spec.text).saturating_sub(1)),
            held: 0,
            inbound: Inbound::default(),
            ops: Vec::new(),
        }
    }

    /// The tokens whose keys and values the cache holds once the pending operations are done.
    pub(crate) fn cached_text(&self) -> &[u32] {
        &self.text[..self.text.len().min(self.cached as usize)]
    }

    /// Tree rows that the cache holds once the pending operations are done.
    pub(crate) fn rows_held(&self) -> usize {
        debug_assert_eq!(
            self.held,
            (self.tree.iter())
                .filter(|(_, node)| node.payload.computed)
                .count()
        );
        self.held
    }

    /// See [`Inbound::foreseen`].
    pub(crate) fn foreseen(&self) -> u32 {
        self.inbound.foreseen()
    }

    pub(crate) fn len(&self) -> u32 {
        len_u32(&self.text)
    }

    /// The committed tokens of an update that are new here, after checking all of them.
    pub(crate) fn fresh<'a>(&self, update: &'a ReplicaUpdate) -> Result<&'a [u32], PeerError> {
        if update.commit.len() > MAX_COMMIT {
            return Err(PeerError::TooLong(update.commit.len()));
        }
        let have = self.len();
        if update.base_len > have {
            return Err(PeerError::Gap {
                got: update.base_len,
                have,
            });
        }
        if update.base_len as usize + update.commit.len() > self.stopping.max_len as usize {
            return Err(PeerError::TooLong(update.commit.len()));
        }
        for (offset, &token) in update.commit.iter().enumerate() {
            if token >= self.vocab {
                return Err(PeerError::Token {
                    token,
                    vocab: self.vocab,
                });
            }
            let position = update.base_len as usize + offset;
            match self.text.get(position) {
                Some(&committed) if committed != token => {
                    return Err(PeerError::Conflict {
                        position: position as u32,
                        got: token,
                        have: committed,
                    });
                }
                Some(_) | None => {}
            }
        }
        let known = (have - update.base_len) as usize;
        Ok(update.commit.get(known..).unwrap_or(&[]))
    }

    /// See [`Inbound::foreseen_by`].
    pub(crate) fn foreseen_by(&self) -> (Source, u8) {
        self.inbound.foreseen_by()
    }

    /// Appends tokens to the text; the tree and the cache follow.
    pub(crate) fn extend(&mut self, tokens: &[u32]) -> Committed<Held<X>> {
        let up_to_date = self.cached == self.len();
        self.text.extend_from_slice(tokens);
        let committed = self.tree.commit(tokens);
        let gone = committed.matched.iter().chain(&committed.removed);
        self.held -= gone.filter(|(_, node)| node.payload.computed).count();
        self.inbound.committed(&committed);
        self.groups.committed(&committed, &self.tree);
        let keep: Vec<NodeId> = if up_to_date {
            let computed = committed
                .matched
                .iter()
                .take_while(|(_, n)| n.payload.computed);
            computed.map(|(id, _)| *id).collect()
        } else {
            Vec::new()
        };
        let drop: Vec<NodeId> = committed
            .matched
            .iter()
            .skip(keep.len())
            .chain(&committed.removed)
            .filter(|(_, node)| node.payload.computed)
            .map(|(id, _)| *id)
            .collect();
        if !keep.is_empty() {
            self.cached += keep.len() as u32;
            self.ops.push(CacheOp::Keep(keep));
        }
        self.drop_rows(drop);
        committed
    }

    /// Takes the nodes and scores of an update whose commit was handled before. Returns the nodes it named, with their
    /// edges.
    pub(crate) fn graft(
        &mut self,
        update: &ReplicaUpdate,
    ) -> Result<Vec<(NodeId, Prob16)>, PeerError> {
        self.graft_noting(update, |_, _| ())
    }

    /// The same; `note` is told of each node that the update gives, with its source.
    pub(crate) fn graft_noting(
        &mut self,
        update: &ReplicaUpdate,
        mut note: impl FnMut(&mut X, Source),
    ) -> Result<Vec<(NodeId, Prob16)>, PeerError> {
        let sender_len = update.base_len.saturating_add(update.commit.len() as u32);
        let named = self.inbound.receive(
            &mut self.tree,
            &self.text,
            self.vocab,
            sender_len,
            &update.nodes,
            |_, _| Held::default(),
        )?;
        let mut grafted_nodes = Vec::with_capacity(named.len());
        for (at, grafted) in named {
            let edge = update.nodes.edges[at];
            // The coordinator sees every contribution, so its score of a known node replaces the one here.
            if let Grafted::Existing(id) = grafted {
                self.tree.set_edge(id, edge.to_f32());
            }
            if let Some(held) = self.tree.payload_mut(grafted.id()) {
                note(&mut held.own, source_of(&update.nodes, at));
            }
            grafted_nodes.push((grafted.id(), edge));
        }
        for (parent, drawn) in self.inbound.groups(&self.tree, sender_len, &update.nodes) {
            self.groups.insert(parent, drawn);
        }
        for &(number, surprisal) in &update.nodes.surprisals {
            let node = self.inbound.node(number);
            if let Some(held) = node.and_then(|id| self.tree.payload_mut(id)) {
                held.surprisal = Some(surprisal);
            }
        }
        for &(number, edge) in &update.rescored {
            if let Some(id) = self.inbound.node(number) {
                self.tree.set_edge(id, edge.to_f32());
                grafted_nodes.push((id, edge));
            }
        }
        if update.allowed_len > 0 {
            self.allowed_len = update.allowed_len;
        }
        Ok(grafted_nodes)
    }

    /// Tokens of the text that the cache does not hold yet; at least the last one, so that a row can answer.
    pub(crate) fn pending(&mut self) -> &[u32] {
        if self.cached >= self.len() {
            self.cached = self.len().saturating_sub(1);
            self.ops.push(CacheOp::Shorten(self.cached));
            self.held = 0;
            for id in self.tree.iter().map(|(id, _)| id).collect::<Vec<_>>() {
                if let Some(row) = self.tree.payload_mut(id) {
                    row.computed = false;
                }
            }
        }
        &self.text[self.cached as usize..]
    }

    /// Whether the text is further ahead of the cache than `room` tokens.
    pub(crate) fn lags(&self, room: usize) -> bool {
        self.text.len() - self.cached_text().len() > room
    }

    /// A plan for the next `rows` tokens that the cache lacks.
    pub(crate) fn prefill(&self, rows: usize) -> StepPlan {
        let pending = &self.text[self.cached_text().len()..];
        StepPlan::append(&pending[..rows.min(pending.len())])
    }

    /// Learns from the tokens that are about to be committed: of the nodes below each that came true, those that `guess` knows
    /// are observed.
    pub(crate) fn learn(
        &self,
        tokens: &[u32],
        calibration: &mut Calibration,
        guess: impl Fn(&X) -> Option<Feature>,
    ) {
        let mut at = None;
        for &token in tokens {
            for &child in self.tree.children(at) {
                if let Some(node) = self.tree.get(child)
                    && let Some(feature) = guess(&node.payload.own)
                {
                    calibration.observe(feature, Outcome::of(node.token, token));
                }
            }
            at = match self.tree.child(at, token) {
                Some(child) => Some(child),
                None => return,
            };
        }
    }

    /// Notes that a plan was computed.
    pub(crate) fn computed(&mut self, plan: &StepPlan) {
        self.cached += plan.append.len() as u32;
        for row in &plan.rows {
            if let Some(payload) = self.tree.payload_mut(row.node)
                && !core::mem::replace(&mut payload.computed, true)
            {
                self.held += 1;
            }
        }
    }

    pub(crate) fn drop_rows(&mut self, rows: Vec<NodeId>) {
        for &id in &rows {
            if let Some(row) = self.tree.payload_mut(id)
                && core::mem::replace(&mut row.computed, false)
            {
                self.held -= 1;
            }
        }
        if !rows.is_empty() {
            self.ops.push(CacheOp::Drop(rows));
        }
    }

    pub(crate) fn take_ops(&mut self) -> Vec<CacheOp> {
        core::mem::take(&mut self.ops)
    }

    /// The row of a live node.
    pub(crate) fn row(&self, id: NodeId, ask: Ask) -> Option<Row> {
        let node = self.tree.get(id)?;
        Some(Row {
            node: id,
            parent: node.parent,
            token: node.token,
            path: match ask {
                Ask::Nothing => Vec::new(),
                _ => self.tree.tokens_to(id),
            },
            ask,
        })
    }

    pub(crate) fn is_computed(&self, id: NodeId) -> bool {
        self.tree.get(id).is_some_and(|node| node.payload.computed)
    }
}

//! One worker's replica of a session: the text, the tree of guesses, and how far the model's cache has followed.

use crate::Time;
use crate::limits::MAX_COMMIT;
use crate::link::{Inbound, LinkError, len_u32};
use crate::message::{Prob16, ReplicaUpdate, SessionSpec, Stopping};
use crate::tree::{Committed, Grafted, Node, NodeId, Tree};

/// What a worker keeps about a node.
#[derive(Clone, Debug, Default)]
pub struct Row<X> {
    /// Whether the model's cache holds the row of this node.
    pub computed: bool,
    /// The session's own data.
    pub own: X,
}

/// What the owner of the cache has to do, in order, before it runs the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheOp {
    /// These rows, a chain behind the cached text, have become text.
    Keep(Vec<NodeId>),
    /// These rows are not needed any more.
    Drop(Vec<NodeId>),
    /// Only this many positions of the text stay cached; every row beyond is dropped.
    Shorten(u32),
}

/// One row of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedRow {
    /// The node.
    pub node: NodeId,
    /// The node it continues; `None` for the text.
    pub parent: Option<NodeId>,
    /// Its token.
    pub token: u32,
}

/// Which appended tokens the model has to give logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TailLogits {
    /// None: a prefill chunk, or a tail that was known before.
    Skip,
    /// The last: the guesses or the walk start there.
    Keep,
    /// Every one: the tokens behind them are to be scored. There are no tree rows then.
    All,
}

/// What one session puts into one step of its worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepPlan {
    /// Committed tokens to append to the cache.
    pub append: Vec<u32>,
    /// Which of them need logits.
    pub tail: TailLogits,
    /// Tree rows, parents before children; each needs logits.
    pub rows: Vec<PlannedRow>,
}

impl StepPlan {
    /// Rows of the step.
    pub fn rows(&self) -> usize {
        self.append.len() + self.rows.len()
    }

    /// Appended tokens that need logits, always the last ones.
    pub fn kept_appends(&self) -> usize {
        match self.tail {
            TailLogits::Skip => 0,
            TailLogits::Keep => 1,
            TailLogits::All => self.append.len(),
        }
    }
}

/// Where in a step's output the logits of a row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowAt {
    /// The last appended token.
    Tail,
    /// A tree row, by its place in [`StepPlan::rows`].
    Row(usize),
    /// An appended token, by its place in [`StepPlan::append`]; there only under [`TailLogits::All`].
    Appended(usize),
}

/// The tokens before a token that is to be picked or guessed.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// Prompt and committed tokens. Within a session it only grows.
    pub text: &'a [u32],
    /// The guesses behind the text, down to the token of the row that is asked.
    pub path: &'a [u32],
    /// How many tokens of the text are the prompt.
    pub prompt_len: u32,
}

impl History<'_> {
    /// The position of the token that is to be picked or guessed.
    pub fn position(&self) -> u32 {
        len_u32(self.text) + len_u32(self.path)
    }
}

/// What a session wants of its worker now.
#[derive(Clone, Debug, PartialEq)]
pub enum Poll {
    /// Compute this.
    Step(StepPlan),
    /// Nothing until something arrives, or until this time: waiting for others (a bubble).
    Wait(Option<Time>),
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
    pub(crate) tree: Tree<Row<X>>,
    /// Positions of the text that the cache holds.
    pub(crate) cached: u32,
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
            // The last token is computed again, because a step has to give its logits.
            cached: cached.min(len_u32(&spec.text).saturating_sub(1)),
            inbound: Inbound::default(),
            ops: Vec::new(),
        }
    }

    /// The tokens whose keys and values the cache holds once the pending operations are done.
    pub(crate) fn cached_text(&self) -> &[u32] {
        &self.text[..self.text.len().min(self.cached as usize)]
    }

    /// See [`Inbound::foreseen`].
    pub(crate) fn foreseen(&self) -> u32 {
        self.inbound.foreseen()
    }

    pub(crate) fn len(&self) -> u32 {
        len_u32(&self.text)
    }

    /// What comes before a token that follows the text and this path.
    pub(crate) fn history<'a>(&'a self, path: &'a [u32]) -> History<'a> {
        History {
            text: &self.text,
            path,
            prompt_len: self.stopping.prompt_len,
        }
    }

    /// The committed tokens of an update that are new here, after checking all of them.
    pub(crate) fn fresh<'a>(&self, update: &'a ReplicaUpdate) -> Result<&'a [u32], LinkError> {
        if update.commit.len() > MAX_COMMIT {
            return Err(LinkError::TooLong(update.commit.len()));
        }
        let have = self.len();
        if update.base_len > have {
            return Err(LinkError::Gap {
                got: update.base_len,
                have,
            });
        }
        if update.base_len as usize + update.commit.len() > self.stopping.max_len as usize {
            return Err(LinkError::TooLong(update.commit.len()));
        }
        for (offset, &token) in update.commit.iter().enumerate() {
            if token >= self.vocab {
                return Err(LinkError::Token {
                    token,
                    vocab: self.vocab,
                });
            }
            let position = update.base_len as usize + offset;
            match self.text.get(position) {
                Some(&committed) if committed != token => {
                    return Err(LinkError::Conflict {
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

    /// Appends tokens to the text; the tree and the cache follow.
    pub(crate) fn extend(&mut self, tokens: &[u32]) -> Committed<Row<X>> {
        let up_to_date = self.cached == self.len();
        self.text.extend_from_slice(tokens);
        let committed = self.tree.commit(tokens);
        self.inbound.committed(&committed);
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

    /// Takes the nodes and scores of an update whose commit was taken before. Returns the nodes it told of, with the
    /// edges it gave them.
    pub(crate) fn graft(
        &mut self,
        update: &ReplicaUpdate,
    ) -> Result<Vec<(NodeId, Prob16)>, LinkError> {
        let sender_len = update.base_len.saturating_add(update.commit.len() as u32);
        let named = self.inbound.receive(
            &mut self.tree,
            &self.text,
            self.vocab,
            sender_len,
            &update.nodes,
            |_, _| Row::default(),
        )?;
        let mut told = Vec::with_capacity(named.len());
        for (at, grafted) in named {
            let edge = update.nodes.edges[at];
            // A node that was known already has been scored anew by who sees every contribution.
            if let Grafted::Existing(id) = grafted {
                self.tree.set_edge(id, edge.to_f32());
            }
            told.push((grafted.id(), edge));
        }
        for &(link_id, edge) in &update.rescored {
            if let Some(id) = self.inbound.node(link_id) {
                self.tree.set_edge(id, edge.to_f32());
                told.push((id, edge));
            }
        }
        if update.allowed_len > 0 {
            self.allowed_len = update.allowed_len;
        }
        Ok(told)
    }

    /// Tokens of the text that the cache does not hold yet; at least the last one, so that a step gives logits.
    pub(crate) fn pending(&mut self) -> &[u32] {
        if self.cached >= self.len() {
            self.cached = self.len().saturating_sub(1);
            self.ops.push(CacheOp::Shorten(self.cached));
            for id in self.tree.iter().map(|(id, _)| id).collect::<Vec<_>>() {
                if let Some(row) = self.tree.payload_mut(id) {
                    row.computed = false;
                }
            }
        }
        &self.text[self.cached as usize..]
    }

    /// A plan for a chunk of `room` tokens, if the text is further ahead of the cache than that.
    pub(crate) fn prefill(&self, room: usize) -> Option<StepPlan> {
        let pending = self.text.get(self.cached as usize..)?;
        (pending.len() > room).then(|| StepPlan {
            append: pending[..room].to_vec(),
            tail: TailLogits::Skip,
            rows: Vec::new(),
        })
    }

    /// Notes that a plan was computed.
    pub(crate) fn computed(&mut self, plan: &StepPlan) {
        self.cached += plan.append.len() as u32;
        for row in &plan.rows {
            if let Some(payload) = self.tree.payload_mut(row.node) {
                payload.computed = true;
            }
        }
    }

    pub(crate) fn drop_rows(&mut self, rows: Vec<NodeId>) {
        for &id in &rows {
            if let Some(row) = self.tree.payload_mut(id) {
                row.computed = false;
            }
        }
        if !rows.is_empty() {
            self.ops.push(CacheOp::Drop(rows));
        }
    }

    pub(crate) fn take_ops(&mut self) -> Vec<CacheOp> {
        std::mem::take(&mut self.ops)
    }

    /// The row of a live node.
    pub(crate) fn row(&self, id: NodeId) -> Option<PlannedRow> {
        self.tree.get(id).map(|node: &Node<Row<X>>| PlannedRow {
            node: id,
            parent: node.parent,
            token: node.token,
        })
    }

    pub(crate) fn is_computed(&self, id: NodeId) -> bool {
        self.tree.get(id).is_some_and(|node| node.payload.computed)
    }
}

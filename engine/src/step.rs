//! What a step computes, checked in full before a number is: rows, where they lie, and what they look at.

use std::ops::Range;

use decode::{Ask, NodeId, StepPlan};

use crate::error::EngineError;
use crate::sequence::{Held, Place, SeqId, Sequence, Sequences};

/// Rows of one piece of attention: few enough to share out, many enough to reuse a page while it is in the cache.
const ROWS_PER_TILE: usize = 16;

/// The bounds a batch is checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Token ids that have an embedding lie below it.
    pub(crate) vocab: usize,
    /// Token ids that can be scored lie below it.
    pub(crate) answered: u32,
    pub(crate) positions: usize,
    pub(crate) rows: usize,
}

/// One row of a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowPlan {
    pub(crate) token: u32,
    /// Absolute position.
    pub(crate) position: usize,
    /// Where its key and value are stored.
    pub(crate) place: Place,
    /// The row of this step that a tree row hangs from, the last appended one for those that hang from the text; none
    /// for a row of an earlier step, and for appended rows.
    pub(crate) above: Option<usize>,
}

/// What one row attends to.
#[derive(Clone, Debug)]
pub(crate) struct Sight {
    /// Positions of the text, from 0.
    pub(crate) committed: usize,
    /// Slots of the path behind them, root first, the row itself last; a range of [`Plan::paths`].
    pub(crate) path: Range<usize>,
}

/// Rows of one sequence whose attention is computed together.
#[derive(Clone, Debug)]
pub(crate) struct Tile {
    /// A group of the plan.
    pub(crate) group: usize,
    /// Indices of [`Queries::sights`].
    pub(crate) rows: Range<usize>,
}

/// Rows as attention sees them.
#[derive(Default)]
pub(crate) struct Queries {
    pub(crate) sights: Vec<Sight>,
    pub(crate) tiles: Vec<Tile>,
}

impl Queries {
    fn add(&mut self, group: usize, sights: impl Iterator<Item = Sight>) {
        let mut first = self.sights.len();
        self.sights.extend(sights);
        while first < self.sights.len() {
            let end = (first + ROWS_PER_TILE).min(self.sights.len());
            self.tiles.push(Tile {
                group,
                rows: first..end,
            });
            first = end;
        }
    }
}

/// A row that is asked for something.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// Which row of the step.
    pub(crate) row: usize,
    /// Which appended token or tree row of its [`StepPlan`].
    pub(crate) at: At,
    pub(crate) ask: Ask,
}

/// A row of a [`StepPlan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    Append(usize),
    Row(usize),
}

/// The part of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Index of the sequence.
    pub(crate) sequence: usize,
    /// Positions of its text before the step.
    pub(crate) len: usize,
    /// Its pages for text, a range of [`Plan::pages`].
    pub(crate) pages: Range<usize>,
    /// Its scratch pages, likewise.
    pub(crate) scratch: Range<usize>,
    /// Number of appended rows.
    appended: usize,
    /// Its rows of the step: appended ones, then tree rows.
    pub(crate) rows: Range<usize>,
    /// Its part of [`Plan::asked`].
    pub(crate) asked: Range<usize>,
    /// The tree rows, to be entered when the step is done.
    tree: Vec<(u16, Held)>,
}

/// A checked step. It stays as it is while the step is computed.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<RowPlan>,
    /// Slots of all paths, end to end.
    pub(crate) paths: Vec<u16>,
    /// Pages of all sequences, end to end.
    pub(crate) pages: Vec<u32>,
    pub(crate) groups: Vec<Group>,
    /// The rows that are asked for something, ascending.
    pub(crate) asked: Vec<Asked>,
    /// Every row.
    pub(crate) every_query: Queries,
    /// The asked rows: all that the last layer computes once its keys and values are stored.
    pub(crate) asked_queries: Queries,
}

impl Plan {
    /// Checks `batch` against the sequences' state, takes the pages that appended tokens need, and lays it out as rows.
    pub(crate) fn new<'a>(
        batch: impl Iterator<Item = (SeqId, &'a StepPlan)> + Clone,
        sequences: &mut Sequences,
        limits: Limits,
    ) -> Result<Plan, EngineError> {
        let rows = batch.clone().fold(0_usize, |n, (_, part)| {
            n.saturating_add(part.append.len())
                .saturating_add(part.rows.len())
        });
        if rows > limits.rows {
            return Err(EngineError::TooManyRows {
                rows,
                most: limits.rows,
            });
        }
        let mut lengths = Vec::new();
        for (seq, part) in batch.clone() {
            let index = sequences.index(seq)?;
            lengths.push((index, sequences.at(index).len + part.append.len()));
        }
        sequences.grow(lengths.into_iter())?;
        let mut plan = Plan::default();
        for (seq, part) in batch {
            plan.add(seq, part, sequences, limits)?;
        }
        Ok(plan)
    }

    /// Enters the computed rows.
    pub(crate) fn done(self, sequences: &mut Sequences) {
        for group in self.groups {
            let sequence = sequences.at_mut(group.sequence);
            sequence.len += group.appended;
            if group.appended > 0 {
                sequence.drop_rows();
            }
            for (slot, held) in group.tree {
                sequence.hold(slot, held);
            }
        }
    }

    fn add(
        &mut self,
        seq: SeqId,
        part: &StepPlan,
        sequences: &Sequences,
        limits: Limits,
    ) -> Result<(), EngineError> {
        let index = sequences.index(seq)?;
        if self.groups.iter().any(|group| group.sequence == index) {
            return Err(EngineError::SequenceTwice);
        }
        let sequence = sequences.at(index);
        let (first, asked) = (self.rows.len(), self.asked.len());
        let mut sights = Vec::with_capacity(part.len());
        self.append(part, sequence, limits, &mut sights)?;
        let tree = self.hang(part, sequence, limits, &mut sights)?;
        let (text, pages) = (self.pages.len(), self.pages.len() + sequence.pages.len());
        self.pages.extend_from_slice(&sequence.pages);
        self.pages.extend_from_slice(&sequence.scratch);
        let group = self.groups.len();
        let asked = asked..self.asked.len();
        let asked_rows = self.asked[asked.clone()].iter();
        let asked_sights = asked_rows.map(|asked| sights[asked.row - first].clone());
        self.asked_queries.add(group, asked_sights);
        self.every_query.add(group, sights.iter().cloned());
        self.groups.push(Group {
            sequence: index,
            len: sequence.len,
            pages: text..pages,
            scratch: pages..self.pages.len(),
            appended: part.append.len(),
            rows: first..self.rows.len(),
            asked,
            tree,
        });
        Ok(())
    }

    /// Lays down the appended tokens.
    fn append(
        &mut self,
        part: &StepPlan,
        sequence: &Sequence,
        limits: Limits,
        sights: &mut Vec<Sight>,
    ) -> Result<(), EngineError> {
        let Some(unasked) = part.append.len().checked_sub(part.asks.len()) else {
            return Err(EngineError::TooManyAsks {
                asks: part.asks.len(),
                appended: part.append.len(),
            });
        };
        for (i, &token) in part.append.iter().enumerate() {
            let position = sequence.len + i;
            limits.check(token, position)?;
            if let Some(&ask) = i.checked_sub(unasked).and_then(|i| part.asks.get(i)) {
                self.ask(ask, At::Append(i), limits)?;
            }
            self.rows.push(RowPlan {
                token,
                position,
                place: sequence.position(position),
                above: None,
            });
            sights.push(Sight {
                committed: position + 1,
                path: 0..0,
            });
        }
        Ok(())
    }

    /// Lays down the tree rows, each in a vacant slot, and gives them as they are to be held.
    fn hang(
        &mut self,
        part: &StepPlan,
        sequence: &Sequence,
        limits: Limits,
        sights: &mut Vec<Sight>,
    ) -> Result<Vec<(u16, Held)>, EngineError> {
        let first = self.rows.len();
        let len = sequence.len + part.append.len();
        let mut vacant = sequence.vacant();
        let mut tree: Vec<(u16, Held)> = Vec::with_capacity(part.rows.len());
        for (i, row) in part.rows.iter().enumerate() {
            let Some(slot) = vacant.next() else {
                return Err(EngineError::TooManyTreeRows {
                    rows: part.rows.len(),
                    vacant: i,
                });
            };
            let in_step = |node: NodeId| tree.iter().position(|(_, held)| held.node == node);
            // Rows of earlier steps hang from an end of the text that an append leaves behind: they are dropped.
            let cached = |node: NodeId| sequence.slot_of(node).filter(|_| part.append.is_empty());
            if in_step(row.node).is_some() || cached(row.node).is_some() {
                return Err(EngineError::NodeTwice { node: row.node });
            }
            let start = self.paths.len();
            let mut above = None;
            let mut parent = None;
            if let Some(node) = row.parent {
                if let Some(earlier) = in_step(node) {
                    above = Some(first + earlier);
                    parent = Some(tree[earlier].0);
                    let path = sights[part.append.len() + earlier].path.clone();
                    self.paths.extend_from_within(path);
                } else {
                    let cached = cached(node).ok_or(EngineError::UnknownParent { node })?;
                    parent = Some(cached);
                    self.climb(sequence, cached);
                }
            } else if !part.append.is_empty() {
                above = Some(first - 1);
            }
            self.paths.push(slot);
            let path = start..self.paths.len();
            let position = len + path.len() - 1;
            limits.check(row.token, position)?;
            self.ask(row.ask, At::Row(i), limits)?;
            self.rows.push(RowPlan {
                token: row.token,
                position,
                place: sequence.place(slot),
                above,
            });
            sights.push(Sight {
                committed: len,
                path,
            });
            let node = row.node;
            tree.push((slot, Held { node, parent }));
        }
        Ok(tree)
    }

    /// Lays down the path of a cached row, root first.
    fn climb(&mut self, sequence: &Sequence, slot: u16) {
        let start = self.paths.len();
        let mut next = Some(slot);
        while let Some(slot) = next {
            self.paths.push(slot);
            next = sequence.parent(slot);
        }
        self.paths[start..].reverse();
    }

    /// Notes what the row that comes next is asked.
    fn ask(&mut self, ask: Ask, at: At, limits: Limits) -> Result<(), EngineError> {
        match ask {
            Ask::Nothing => return Ok(()),
            Ask::Score { token, .. } if token >= limits.answered => {
                return Err(EngineError::TokenOutOfRange {
                    token,
                    vocab: limits.answered as usize,
                });
            }
            _ => {}
        }
        self.asked.push(Asked {
            row: self.rows.len(),
            at,
            ask,
        });
        Ok(())
    }
}

impl Limits {
    fn check(self, token: u32, position: usize) -> Result<(), EngineError> {
        if token as usize >= self.vocab {
            return Err(EngineError::TokenOutOfRange {
                token,
                vocab: self.vocab,
            });
        }
        if position >= self.positions {
            return Err(EngineError::PositionOutOfRange {
                position,
                most: self.positions,
            });
        }
        Ok(())
    }
}

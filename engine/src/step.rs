//! What a step is asked to do, checked in full before a number is computed.

use std::ops::Range;

use crate::attention::Sight;
use crate::cache::Place;
use crate::error::EngineError;
use crate::sequence::{Parent, SeqId, Sequences, Slot};

/// One guessed token to evaluate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRow {
    /// Token id, below the vocabulary size.
    pub token: u32,
    /// What it follows.
    pub parent: Parent,
    /// Where its keys and values go; free until now.
    pub slot: Slot,
}

/// Which appended rows yield logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AppendLogits {
    /// None: a prefill chunk that is not the last.
    None,
    /// The last one.
    #[default]
    Last,
    /// All of them.
    All,
}

/// What one sequence contributes to a step.
#[derive(Clone, Copy, Debug)]
pub struct SeqRows<'a> {
    /// The sequence; at most once in a batch.
    pub seq: SeqId,
    /// Committed tokens, written straight behind the sequence's end. A non-empty append frees every scratch row
    /// that earlier steps have left, since their paths start at a tail that is no longer the tail.
    pub append: &'a [u32],
    /// Which appended rows yield logits.
    pub append_logits: AppendLogits,
    /// Guesses, parents before children.
    pub tree: &'a [TreeRow],
}

/// The bounds a batch is checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) vocab: usize,
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
}

/// The rows of one sequence.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Index of the sequence.
    pub(crate) sequence: usize,
    /// Its rows: appended ones, then tree rows.
    pub(crate) rows: Range<usize>,
    /// Number of appended rows.
    pub(crate) appended: usize,
    /// Slot and parent of the tree rows, to be entered when the step is done.
    pub(crate) tree: Vec<(Slot, Parent)>,
}

/// A checked step.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<RowPlan>,
    /// What each row attends to.
    pub(crate) sights: Vec<Sight>,
    /// Scratch slots of all paths, end to end.
    pub(crate) paths: Vec<u16>,
    pub(crate) groups: Vec<Group>,
    /// The rows that yield logits, ascending.
    pub(crate) kept: Vec<usize>,
}

impl Plan {
    /// Checks `batch` against the sequences' state and lays it out as rows.
    pub(crate) fn new(
        batch: &[SeqRows<'_>],
        sequences: &Sequences,
        limits: Limits,
    ) -> Result<Plan, EngineError> {
        let rows = batch.iter().fold(0_usize, |n, s| {
            n.saturating_add(s.append.len())
                .saturating_add(s.tree.len())
        });
        if rows > limits.rows {
            return Err(EngineError::TooManyRows {
                rows,
                most: limits.rows,
            });
        }
        let mut plan = Plan::default();
        for part in batch {
            plan.add(part, sequences, limits)?;
        }
        Ok(plan)
    }

    fn add(
        &mut self,
        part: &SeqRows<'_>,
        sequences: &Sequences,
        limits: Limits,
    ) -> Result<(), EngineError> {
        let index = sequences.index(part.seq)?;
        if self.groups.iter().any(|group| group.sequence == index) {
            return Err(EngineError::SequenceTwice);
        }
        let sequence = sequences.at(index);
        let first = self.rows.len();
        let len = sequence.len + part.append.len();
        if len > sequence.max_len {
            return Err(EngineError::SequenceFull {
                len,
                max_len: sequence.max_len,
            });
        }
        let check = |token: u32, position: usize| {
            if token as usize >= limits.vocab {
                return Err(EngineError::TokenOutOfRange {
                    token,
                    vocab: limits.vocab,
                });
            }
            if position >= limits.positions {
                return Err(EngineError::PositionOutOfRange {
                    position,
                    most: limits.positions,
                });
            }
            Ok(())
        };
        for (i, token) in part.append.iter().enumerate() {
            let position = sequence.len + i;
            check(*token, position)?;
            let keep = match part.append_logits {
                AppendLogits::None => false,
                AppendLogits::Last => i + 1 == part.append.len(),
                AppendLogits::All => true,
            };
            if keep {
                self.kept.push(self.rows.len());
            }
            self.rows.push(RowPlan {
                token: *token,
                position,
                place: sequence.position(position),
            });
            self.sights.push(Sight {
                committed: position + 1,
                path: 0..0,
            });
        }
        for (i, row) in part.tree.iter().enumerate() {
            if usize::from(row.slot.0) >= sequence.scratch_rows() {
                return Err(EngineError::SlotOutOfRange {
                    slot: row.slot,
                    scratch_rows: sequence.scratch_rows(),
                });
            }
            let earlier = &part.tree[..i];
            if sequence.parent(row.slot).is_some() || earlier.iter().any(|e| e.slot == row.slot) {
                return Err(EngineError::SlotInUse { slot: row.slot });
            }
            let path = self.path(part, i, sequences.at(index))?;
            let position = len + path.len() - 1;
            check(row.token, position)?;
            self.kept.push(self.rows.len());
            self.rows.push(RowPlan {
                token: row.token,
                position,
                place: sequence.slot(row.slot),
            });
            self.sights.push(Sight {
                committed: len,
                path,
            });
        }
        self.groups.push(Group {
            sequence: index,
            rows: first..self.rows.len(),
            appended: part.append.len(),
            tree: part.tree.iter().map(|row| (row.slot, row.parent)).collect(),
        });
        Ok(())
    }

    /// Lays down the path of tree row `i`, root first and itself last.
    fn path(
        &mut self,
        part: &SeqRows<'_>,
        i: usize,
        sequence: &crate::sequence::Sequence,
    ) -> Result<Range<usize>, EngineError> {
        let start = self.paths.len();
        let row = part.tree[i];
        self.paths.push(row.slot.0);
        let mut parent = row.parent;
        // Slots are distinct and a parent is older than its child, so this ends; the count guards it all the same.
        while let Parent::Slot(slot) = parent {
            let unknown = EngineError::UnknownParent { slot };
            if self.paths.len() - start > sequence.scratch_rows() {
                return Err(unknown);
            }
            let in_batch = part.tree[..i]
                .iter()
                .find(|earlier| earlier.slot == slot)
                .map(|earlier| earlier.parent);
            // Rows of earlier steps hang from a tail that an append has left behind.
            let before = if part.append.is_empty() {
                sequence.parent(slot)
            } else {
                None
            };
            self.paths.push(slot.0);
            parent = in_batch.or(before).ok_or(unknown)?;
        }
        self.paths[start..].reverse();
        Ok(start..self.paths.len())
    }

    /// Keeps only the rows that yield logits: what the last layer computes once keys and values are stored.
    pub(crate) fn keep_only_kept(&mut self) {
        for (to, from) in self.kept.iter().enumerate() {
            self.sights.swap(to, *from);
        }
        self.sights.truncate(self.kept.len());
        for group in &mut self.groups {
            let below = |row: usize| self.kept.partition_point(|kept| *kept < row);
            group.rows = below(group.rows.start)..below(group.rows.end);
        }
    }
}

//! Which scratch row of the engine's cache holds which node of a session's tree.

use std::collections::BTreeMap;

use engine::{Engine, EngineError, Parent, SeqId, Slot, TreeRow};
use speculation::replica::{CacheOp, PlannedRow};
use speculation::tree::NodeId;

/// The scratch rows of one session.
#[derive(Debug)]
pub(crate) struct ScratchRows {
    vacant: Vec<Slot>,
    held: BTreeMap<NodeId, Slot>,
}

impl ScratchRows {
    pub(crate) fn new(rows: u16) -> Self {
        ScratchRows {
            vacant: (0..rows).rev().map(Slot).collect(),
            held: BTreeMap::new(),
        }
    }

    pub(crate) fn vacant(&self) -> usize {
        self.vacant.len()
    }

    /// Lays planned rows into vacant slots, parents before children as planned.
    ///
    /// A row whose parent has no slot is left out with everything behind it: the plan and the cache would disagree.
    pub(crate) fn place(&mut self, rows: &[PlannedRow]) -> Option<Vec<TreeRow>> {
        let mut placed = Vec::with_capacity(rows.len());
        for row in rows {
            let parent = match row.parent {
                None => Parent::Tail,
                Some(parent) => Parent::Slot(*self.held.get(&parent)?),
            };
            let slot = self.vacant.pop()?;
            self.held.insert(row.node, slot);
            placed.push(TreeRow {
                token: row.token,
                parent,
                slot,
            });
        }
        Some(placed)
    }

    /// Forgets rows that were planned but not computed; the engine holds nothing for them.
    pub(crate) fn forget(&mut self, rows: &[PlannedRow]) -> Vec<Slot> {
        self.remove(rows.iter().map(|row| row.node))
    }

    fn remove(&mut self, nodes: impl Iterator<Item = NodeId>) -> Vec<Slot> {
        let slots: Vec<Slot> = nodes.filter_map(|id| self.held.remove(&id)).collect();
        self.vacant.extend_from_slice(&slots);
        slots
    }

    /// Does in the engine's cache what the session's state machine has decided.
    pub(crate) fn apply(
        &mut self,
        engine: &mut Engine,
        seq: SeqId,
        op: CacheOp,
    ) -> Result<(), EngineError> {
        match op {
            CacheOp::Keep(nodes) => {
                let slots = self.remove(nodes.into_iter());
                engine.commit(seq, &slots)
            }
            CacheOp::Drop(nodes) => {
                let slots = self.remove(nodes.into_iter());
                engine.free(seq, &slots);
                Ok(())
            }
            CacheOp::Shorten(len) => {
                let held: Vec<NodeId> = self.held.keys().copied().collect();
                self.remove(held.into_iter());
                engine.truncate(seq, len as usize)
            }
        }
    }
}

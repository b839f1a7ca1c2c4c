//! Who owns which pages and which scratch rows: the bookkeeping of sequences, without a number computed.

use crate::cache::{KvCache, PAGE, Place};
use crate::error::EngineError;

/// A sequence of an engine. Stays invalid for ever once released, even when its place is given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId {
    index: u32,
    generation: u32,
}

/// A scratch row of a sequence, chosen by the caller: `0 .. scratch_rows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(
    /// Index in the sequence's scratch region.
    pub u16,
);

/// What a tree row hangs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Parent {
    /// The last committed position after the step's append.
    Tail,
    /// A tree row earlier in the same batch, or one evaluated in an earlier step.
    Slot(Slot),
}

/// One sequence's state.
pub(crate) struct Sequence {
    generation: u32,
    open: bool,
    pub(crate) len: usize,
    pub(crate) max_len: usize,
    /// Pages of committed positions, in order; all that `max_len` needs.
    pub(crate) pages: Vec<u32>,
    /// Pages of the scratch region, fixed for the life of the engine.
    pub(crate) scratch: Vec<u32>,
    /// The evaluated tree rows and what they hang from. An entry's ancestors are always entries too.
    rows: Vec<Option<Parent>>,
}

impl Sequence {
    /// Where an absolute committed position lies.
    pub(crate) fn position(&self, position: usize) -> Place {
        Place {
            page: self.pages[position / PAGE],
            lane: (position % PAGE) as u32,
        }
    }

    /// Where a scratch row lies.
    pub(crate) fn slot(&self, slot: Slot) -> Place {
        let slot = usize::from(slot.0);
        Place {
            page: self.scratch[slot / PAGE],
            lane: (slot % PAGE) as u32,
        }
    }

    /// What an evaluated row hangs from; none for a slot that is free.
    pub(crate) fn parent(&self, slot: Slot) -> Option<Parent> {
        self.rows.get(usize::from(slot.0)).copied().flatten()
    }

    pub(crate) fn scratch_rows(&self) -> usize {
        self.rows.len()
    }

    /// Enters an evaluated row.
    pub(crate) fn set_row(&mut self, slot: Slot, parent: Parent) {
        self.rows[usize::from(slot.0)] = Some(parent);
    }

    /// Frees every scratch row.
    pub(crate) fn clear_rows(&mut self) {
        self.rows.fill(None);
    }

    /// Frees these rows and all their descendants.
    pub(crate) fn free_rows(&mut self, slots: &[Slot]) {
        for slot in slots {
            if let Some(row) = self.rows.get_mut(usize::from(slot.0)) {
                *row = None;
            }
        }
        self.free_orphans();
    }

    /// Frees rows until each row's parent is alive.
    fn free_orphans(&mut self) {
        loop {
            let mut changed = false;
            for i in 0..self.rows.len() {
                if let Some(Parent::Slot(parent)) = self.rows[i]
                    && self.parent(parent).is_none()
                {
                    self.rows[i] = None;
                    changed = true;
                }
            }
            if !changed {
                return;
            }
        }
    }
}

/// All sequences an engine can hold.
pub(crate) struct Sequences(Vec<Sequence>);

impl Sequences {
    /// `count` closed sequences, sequence i with the scratch pages `first_page + i * pages_each ..`.
    pub(crate) fn new(count: usize, scratch_rows: u16, first_page: usize) -> Sequences {
        let each = usize::from(scratch_rows).div_ceil(PAGE);
        let sequence = |i: usize| {
            let first = first_page + i * each;
            Sequence {
                generation: 0,
                open: false,
                len: 0,
                max_len: 0,
                pages: Vec::new(),
                scratch: (first..first + each)
                    .map(|page| u32::try_from(page).expect("the cache has checked its page count"))
                    .collect(),
                rows: vec![None; usize::from(scratch_rows)],
            }
        };
        Sequences((0..count).map(sequence).collect())
    }

    pub(crate) fn open(
        &mut self,
        max_len: usize,
        cache: &mut KvCache,
    ) -> Result<SeqId, EngineError> {
        let most = self.0.len();
        let Some((index, sequence)) = self.0.iter_mut().enumerate().find(|(_, s)| !s.open) else {
            return Err(EngineError::TooManySequences { most });
        };
        let needed = max_len.div_ceil(PAGE);
        let free = cache.free_pages();
        sequence.pages = cache
            .take(needed)
            .ok_or(EngineError::CacheFull { needed, free })?;
        sequence.open = true;
        sequence.len = 0;
        sequence.max_len = max_len;
        sequence.clear_rows();
        Ok(SeqId {
            index: index as u32,
            generation: sequence.generation,
        })
    }

    pub(crate) fn release(&mut self, seq: SeqId, cache: &mut KvCache) {
        if let Ok(sequence) = self.get_mut(seq) {
            sequence.open = false;
            sequence.generation = sequence.generation.wrapping_add(1);
            sequence.len = 0;
            cache.give_back(&mut sequence.pages);
        }
    }

    /// The index by which plans name a live sequence.
    pub(crate) fn index(&self, seq: SeqId) -> Result<usize, EngineError> {
        self.get(seq).map(|_| seq.index as usize)
    }

    pub(crate) fn get(&self, seq: SeqId) -> Result<&Sequence, EngineError> {
        self.0
            .get(seq.index as usize)
            .filter(|s| s.open && s.generation == seq.generation)
            .ok_or(EngineError::UnknownSequence)
    }

    pub(crate) fn get_mut(&mut self, seq: SeqId) -> Result<&mut Sequence, EngineError> {
        self.0
            .get_mut(seq.index as usize)
            .filter(|s| s.open && s.generation == seq.generation)
            .ok_or(EngineError::UnknownSequence)
    }

    /// The sequence a plan has named by index.
    pub(crate) fn at(&self, index: usize) -> &Sequence {
        &self.0[index]
    }

    pub(crate) fn at_mut(&mut self, index: usize) -> &mut Sequence {
        &mut self.0[index]
    }

    /// Commits a chain of scratch rows from the tail: their keys and values move behind it, the children of the
    /// last one hang from the new tail, everything else is freed.
    pub(crate) fn commit(
        &mut self,
        seq: SeqId,
        path: &[Slot],
        cache: &mut KvCache,
    ) -> Result<(), EngineError> {
        let sequence = self.get_mut(seq)?;
        if path.is_empty() {
            return Ok(());
        }
        if sequence.len + path.len() > sequence.max_len {
            return Err(EngineError::SequenceFull {
                len: sequence.len + path.len(),
                max_len: sequence.max_len,
            });
        }
        let mut parent = Parent::Tail;
        for slot in path {
            if sequence.parent(*slot) != Some(parent) {
                return Err(EngineError::BrokenPath { slot: *slot });
            }
            parent = Parent::Slot(*slot);
        }
        for slot in path {
            cache.copy(sequence.slot(*slot), sequence.position(sequence.len));
            sequence.len += 1;
        }
        // A chain below the tail now ends at the last committed row; all other rows lose their root.
        for row in &mut sequence.rows {
            *row = match *row {
                Some(Parent::Tail) => None,
                Some(above) if above == parent => Some(Parent::Tail),
                other => other,
            };
        }
        sequence.free_rows(path);
        Ok(())
    }

    /// Drops committed positions beyond `len` and all scratch rows.
    pub(crate) fn truncate(&mut self, seq: SeqId, len: usize) -> Result<(), EngineError> {
        let sequence = self.get_mut(seq)?;
        if len > sequence.len {
            return Err(EngineError::TruncateBeyondEnd {
                len,
                committed: sequence.len,
            });
        }
        sequence.len = len;
        sequence.clear_rows();
        Ok(())
    }
}

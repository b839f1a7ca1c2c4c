//! Who owns which pages and which tree rows: the bookkeeping of sequences, without a number computed.
//!
//! A sequence takes pages for its text as it grows, and has a scratch region for the rows of its tree. Callers name tree
//! rows by node; which slot of the scratch region a node's row lies in is decided here, and nobody else knows.

use decode::{CacheOp, NodeId};

use crate::error::EngineError;

/// Positions of one page; also the number of virtual lanes, so that lanes follow absolute positions.
pub const PAGE: usize = 16;

/// A sequence of a backend. Stays invalid for ever once released, even when its place is given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeqId {
    index: u32,
    generation: u32,
}

/// Where one position's key and value lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) page: u32,
    pub(crate) lane: u32,
}

/// A computed tree row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) node: NodeId,
    /// The slot of the row it hangs from; none for the text. That slot is always held too.
    pub(crate) parent: Option<u16>,
}

/// One sequence's state.
pub(crate) struct Sequence {
    generation: u32,
    is_open: bool,
    /// Positions of the text that are cached.
    pub(crate) len: usize,
    pub(crate) max_len: usize,
    /// Pages of the text, in order; perhaps more than it needs.
    pub(crate) pages: Vec<u32>,
    /// Pages of the scratch region, fixed for the life of the engine.
    pub(crate) scratch: Vec<u32>,
    /// The rows of the scratch region, by slot.
    slots: Vec<Option<Held>>,
    /// By the index of a node: the newest generation that had a row, and its slot then.
    newest: Vec<Option<(u32, u16)>>,
}

/// Nodes with an index from here on are looked for in every slot. No tree of a session has so many.
const INDEXED: usize = 1 << 16;

impl Sequence {
    /// Where an absolute position of the text lies.
    pub(crate) fn position(&self, position: usize) -> Place {
        Place {
            page: self.pages[position / PAGE],
            lane: (position % PAGE) as u32,
        }
    }

    /// Where a slot of the scratch region lies.
    pub(crate) fn place(&self, slot: u16) -> Place {
        let slot = usize::from(slot);
        Place {
            page: self.scratch[slot / PAGE],
            lane: (slot % PAGE) as u32,
        }
    }

    /// The slot that holds a node's row.
    pub(crate) fn slot_of(&self, node: NodeId) -> Option<u16> {
        let holds = |held: &Option<Held>| held.is_some_and(|held| held.node == node);
        let index = node.index as usize;
        if index < INDEXED {
            match self.newest.get(index).copied().flatten() {
                None => return None,
                Some((generation, _)) if generation < node.generation => return None,
                Some((generation, slot)) if generation == node.generation => {
                    return holds(&self.slots[usize::from(slot)]).then_some(slot);
                }
                // An older one may still have its row.
                Some(_) => {}
            }
        }
        let mut slots = (0..).zip(&self.slots);
        slots.find_map(|(slot, held)| holds(held).then_some(slot))
    }

    /// What the row in a slot hangs from.
    pub(crate) fn parent(&self, slot: u16) -> Option<u16> {
        self.slots[usize::from(slot)].and_then(|held| held.parent)
    }

    /// The slots that hold nothing, lowest first.
    pub(crate) fn vacant(&self) -> impl Iterator<Item = u16> {
        let slots = (0..).zip(&self.slots);
        slots.filter_map(|(slot, held)| held.is_none().then_some(slot))
    }

    /// Enters a computed row.
    pub(crate) fn hold(&mut self, slot: u16, held: Held) {
        self.slots[usize::from(slot)] = Some(held);
        let NodeId { index, generation } = held.node;
        let index = index as usize;
        if index < INDEXED {
            if self.newest.len() <= index {
                self.newest.resize(index + 1, None);
            }
            let newest = &mut self.newest[index];
            if newest.is_none_or(|(newest, _)| newest <= generation) {
                *newest = Some((generation, slot));
            }
        }
    }

    /// Drops every tree row.
    pub(crate) fn drop_rows(&mut self) {
        self.slots.fill(None);
        self.newest.clear();
    }

    /// Drops rows until each row's parent is held.
    fn drop_orphans(&mut self) {
        // Whether the row in a slot is known to hang from the text, or not to.
        let mut hangs: Vec<Option<bool>> = vec![None; self.slots.len()];
        let mut path: Vec<usize> = Vec::new();
        for slot in 0..self.slots.len() {
            let mut at = slot;
            let is_held = loop {
                if let Some(known) = hangs[at] {
                    break known;
                }
                let Some(held) = self.slots[at] else {
                    break false;
                };
                // So that a walk ends whatever parents are.
                hangs[at] = Some(true);
                path.push(at);
                match held.parent {
                    None => break true,
                    Some(parent) => at = usize::from(parent),
                }
            };
            for at in path.drain(..) {
                hangs[at] = Some(is_held);
                if !is_held {
                    self.slots[at] = None;
                }
            }
        }
    }
}

/// All sequences an engine can hold, and the pages that none of them owns.
pub(crate) struct Sequences {
    all: Vec<Sequence>,
    free: Vec<u32>,
    total_pages: usize,
}

impl Sequences {
    /// `count` closed sequences over `pages` pages for text; sequence i has the scratch pages
    /// `pages + i * scratch_pages(scratch_rows) ..`.
    pub(crate) fn new(count: usize, scratch_rows: u16, pages: usize) -> Sequences {
        let each = scratch_pages(scratch_rows);
        let page = |page: usize| u32::try_from(page).expect("the cache has checked its page count");
        let sequence = |i: usize| {
            let first = pages + i * each;
            Sequence {
                generation: 0,
                is_open: false,
                len: 0,
                max_len: 0,
                pages: Vec::new(),
                scratch: (first..first + each).map(page).collect(),
                slots: vec![None; usize::from(scratch_rows)],
                newest: Vec::new(),
            }
        };
        Sequences {
            all: (0..count).map(sequence).collect(),
            free: (0..pages).rev().map(page).collect(),
            total_pages: pages,
        }
    }

    /// Pages for text that no sequence owns.
    pub(crate) fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// All pages for text.
    pub(crate) fn total_pages(&self) -> usize {
        self.total_pages
    }

    pub(crate) fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError> {
        let most = self.all.len();
        let closed = self.all.iter_mut().enumerate().find(|(_, s)| !s.is_open);
        let Some((index, sequence)) = closed else {
            return Err(EngineError::TooManySequences { most });
        };
        sequence.is_open = true;
        sequence.len = 0;
        sequence.max_len = max_len;
        sequence.drop_rows();
        Ok(SeqId {
            index: index as u32,
            generation: sequence.generation,
        })
    }

    /// Takes the pages that sequences need for texts of these lengths: for all of them, or none.
    pub(crate) fn grow(
        &mut self,
        lengths: impl Iterator<Item = (usize, usize)> + Clone,
    ) -> Result<(), EngineError> {
        let mut needed = 0;
        for (index, len) in lengths.clone() {
            let Sequence { max_len, pages, .. } = &self.all[index];
            if len > *max_len {
                return Err(EngineError::SequenceFull {
                    len,
                    max_len: *max_len,
                });
            }
            needed += len.div_ceil(PAGE).saturating_sub(pages.len());
        }
        let free = self.free.len();
        if needed > free {
            return Err(EngineError::CacheFull { needed, free });
        }
        for (index, len) in lengths {
            let pages = &mut self.all[index].pages;
            let more = len.div_ceil(PAGE).saturating_sub(pages.len());
            pages.extend(self.free.drain(self.free.len() - more..).rev());
        }
        Ok(())
    }

    /// Takes back a sequence's pages; one that is not open has none.
    pub(crate) fn release(&mut self, seq: SeqId) {
        let Ok(index) = self.index(seq) else { return };
        let sequence = &mut self.all[index];
        sequence.is_open = false;
        sequence.generation = sequence.generation.wrapping_add(1);
        sequence.len = 0;
        self.free.append(&mut sequence.pages);
    }

    /// The index by which plans name an open sequence.
    pub(crate) fn index(&self, seq: SeqId) -> Result<usize, EngineError> {
        let index = seq.index as usize;
        (self.all.get(index))
            .filter(|s| s.is_open && s.generation == seq.generation)
            .map(|_| index)
            .ok_or(EngineError::UnknownSequence)
    }

    pub(crate) fn get(&self, seq: SeqId) -> Result<&Sequence, EngineError> {
        self.index(seq).map(|index| &self.all[index])
    }

    /// The sequence a plan has named by index.
    pub(crate) fn at(&self, index: usize) -> &Sequence {
        &self.all[index]
    }

    pub(crate) fn at_mut(&mut self, index: usize) -> &mut Sequence {
        &mut self.all[index]
    }

    /// Positions of the text that are cached; 0 for a sequence that is not open.
    pub(crate) fn len(&self, seq: SeqId) -> usize {
        self.get(seq).map_or(0, |sequence| sequence.len)
    }

    /// Tree rows that still fit; 0 for a sequence that is not open.
    pub(crate) fn vacant_rows(&self, seq: SeqId) -> usize {
        let sequence = self.get(seq);
        sequence.map_or(0, |sequence| sequence.vacant().count())
    }

    /// Does what the session has decided. Gives the places whose keys and values the cache has to copy, from and to, in
    /// order.
    pub(crate) fn apply(
        &mut self,
        seq: SeqId,
        op: &CacheOp,
    ) -> Result<Vec<(Place, Place)>, EngineError> {
        match op {
            CacheOp::Keep(chain) => self.keep(seq, chain),
            CacheOp::Drop(nodes) => self.drop(seq, nodes).map(|()| Vec::new()),
            CacheOp::Shorten(len) => self.shorten(seq, *len as usize).map(|()| Vec::new()),
        }
    }

    /// Makes a chain of tree rows behind the text part of it: gives what the cache has to copy where, in order. The
    /// children of the last one then hang from the text; every other row is dropped.
    pub(crate) fn keep(
        &mut self,
        seq: SeqId,
        chain: &[NodeId],
    ) -> Result<Vec<(Place, Place)>, EngineError> {
        let index = self.index(seq)?;
        let len = self.all[index].len + chain.len();
        self.grow(core::iter::once((index, len)))?;
        let sequence = &mut self.all[index];
        let mut copies = Vec::with_capacity(chain.len());
        let mut last = None;
        for (&node, position) in chain.iter().zip(sequence.len..) {
            let slot = sequence.slot_of(node);
            let Some(slot) = slot.filter(|&slot| sequence.parent(slot) == last) else {
                return Err(EngineError::BrokenPath { node });
            };
            copies.push((sequence.place(slot), sequence.position(position)));
            last = Some(slot);
        }
        if last.is_none() {
            return Ok(copies);
        }
        sequence.len = len;
        // Children of the last row hang from the text now, and everything else that did loses its root, the chain's
        // first row among them.
        for slot in &mut sequence.slots {
            *slot = match *slot {
                Some(held) if held.parent.is_none() => None,
                Some(held) if held.parent == last => Some(Held {
                    parent: None,
                    ..held
                }),
                other => other,
            };
        }
        sequence.drop_orphans();
        Ok(copies)
    }

    /// Drops rows and what hangs from them; a node without a row is skipped.
    pub(crate) fn drop(&mut self, seq: SeqId, nodes: &[NodeId]) -> Result<(), EngineError> {
        let index = self.index(seq)?;
        let sequence = &mut self.all[index];
        for &node in nodes {
            if let Some(slot) = sequence.slot_of(node) {
                sequence.slots[usize::from(slot)] = None;
            }
        }
        sequence.drop_orphans();
        Ok(())
    }

    /// Forgets the text beyond `len` positions, and all tree rows.
    pub(crate) fn shorten(&mut self, seq: SeqId, len: usize) -> Result<(), EngineError> {
        let index = self.index(seq)?;
        let sequence = &mut self.all[index];
        if len > sequence.len {
            return Err(EngineError::ShortenBeyondEnd {
                len,
                committed: sequence.len,
            });
        }
        sequence.len = len;
        sequence.drop_rows();
        let unused = sequence.pages.drain(len.div_ceil(PAGE)..);
        self.free.extend(unused.rev());
        Ok(())
    }
}

/// Pages of one sequence's scratch region.
pub(crate) fn scratch_pages(scratch_rows: u16) -> usize {
    usize::from(scratch_rows).div_ceil(PAGE)
}

//! Something for each of some nodes of a tree, found by the place of the node in the arena.

use alloc::vec::Vec;

use decode::NodeId;

/// A map from nodes of one tree. Of two nodes that have had the same place in the arena it holds what was put in last.
#[derive(Clone, Debug)]
pub(crate) struct NodeMap<T>(Vec<Option<(u32, T)>>);

impl<T> Default for NodeMap<T> {
    fn default() -> Self {
        NodeMap(Vec::new())
    }
}

impl<T> NodeMap<T> {
    pub(crate) fn get(&self, id: NodeId) -> Option<&T> {
        let (generation, value) = self.0.get(id.index as usize)?.as_ref()?;
        (*generation == id.generation).then_some(value)
    }

    pub(crate) fn get_mut(&mut self, id: NodeId) -> Option<&mut T> {
        let (generation, value) = self.0.get_mut(id.index as usize)?.as_mut()?;
        (*generation == id.generation).then_some(value)
    }

    pub(crate) fn insert(&mut self, id: NodeId, value: T) {
        let at = id.index as usize;
        if self.0.len() <= at {
            self.0.resize_with(at + 1, || None);
        }
        self.0[at] = Some((id.generation, value));
    }

    pub(crate) fn remove(&mut self, id: NodeId) -> Option<T> {
        let slot = self.0.get_mut(id.index as usize)?;
        let (_, value) = slot.take_if(|(generation, _)| *generation == id.generation)?;
        Some(value)
    }

    /// Keeps those for which `keeps` holds.
    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(NodeId) -> bool) {
        for (index, slot) in (0..).zip(&mut self.0) {
            if let Some((generation, _)) = slot {
                let id = NodeId {
                    index,
                    generation: *generation,
                };
                if !keeps(id) {
                    *slot = None;
                }
            }
        }
    }
}

impl FromIterator<NodeId> for NodeMap<()> {
    fn from_iter<I: IntoIterator<Item = NodeId>>(nodes: I) -> Self {
        let mut map = NodeMap::default();
        for id in nodes {
            map.insert(id, ());
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_generation_is_another_node() {
        let id = |index, generation| NodeId { index, generation };
        let mut map = NodeMap::default();
        map.insert(id(3, 0), 'a');
        assert_eq!(
            (map.get(id(3, 0)), map.get(id(3, 1)), map.get(id(9, 0))),
            (Some(&'a'), None, None)
        );
        map.insert(id(3, 1), 'b');
        map.insert(id(0, 7), 'c');
        assert_eq!(map.get(id(3, 0)), None);
        assert_eq!(map.get_mut(id(3, 1)), Some(&mut 'b'));
        map.retain(|node| node != id(3, 1));
        assert_eq!((map.get(id(3, 1)), map.get(id(0, 7))), (None, Some(&'c')));
        assert_eq!(map.remove(id(0, 6)), None);
        assert_eq!(map.remove(id(0, 7)), Some('c'));
        assert_eq!(map.get(id(0, 7)), None);
    }
}

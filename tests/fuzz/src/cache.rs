//! A model's cache at its simplest: which rows it holds. It refuses what a backend would refuse.

use std::collections::BTreeMap;

use decode::{CacheOp, NodeId, StepPlan};

/// The cache of one session.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// Positions of the text.
    pub(crate) len: usize,
    /// The parent of each tree row.
    rows: BTreeMap<NodeId, Option<NodeId>>,
}

impl Cache {
    /// Tree rows.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn apply(&mut self, op: &CacheOp) {
        match op {
            CacheOp::Keep(chain) => {
                let mut above = None;
                for node in chain {
                    let parent = self.rows.get(node);
                    assert_eq!(
                        parent,
                        Some(&above),
                        "{chain:?} is no chain behind the text"
                    );
                    above = Some(*node);
                }
                self.len += chain.len();
                let Some(last) = above else { return };
                // What hung from the text or from the chain has lost its root, but for the last one's children.
                self.rows.retain(|node, parent| {
                    parent.is_some_and(|parent| parent == last || !chain.contains(&parent))
                        && !chain.contains(node)
                });
                for parent in self.rows.values_mut() {
                    *parent = parent.filter(|&parent| parent != last);
                }
                self.drop_orphans();
            }
            CacheOp::Drop(nodes) => {
                for node in nodes {
                    self.rows.remove(node);
                }
                self.drop_orphans();
            }
            CacheOp::Shorten(len) => {
                let len = *len as usize;
                assert!(len <= self.len, "{len} of {} positions", self.len);
                self.len = len;
                self.rows.clear();
            }
        }
    }

    fn drop_orphans(&mut self) {
        loop {
            let held: Vec<NodeId> = self.rows.keys().copied().collect();
            let is_held = |parent: NodeId| held.binary_search(&parent).is_ok();
            (self.rows).retain(|_, parent| parent.is_none_or(is_held));
            if self.rows.len() == held.len() {
                return;
            }
        }
    }

    /// A step was computed.
    pub(crate) fn step(&mut self, plan: &StepPlan) {
        if !plan.append.is_empty() {
            self.len += plan.append.len();
            self.rows.clear();
        }
        for row in &plan.rows {
            let is_known = row
                .parent
                .is_none_or(|parent| self.rows.contains_key(&parent));
            assert!(is_known, "{row:?} has no parent in the cache");
            let before = self.rows.insert(row.node, row.parent);
            assert_eq!(before, None, "{row:?} is cached already");
        }
    }
}

//! The stupid cache: it does what plans and cache operations say, and refuses what no cache could do.

use std::collections::BTreeMap;

use speculation::replica::{CacheOp, RowAt, StepPlan, TailLogits};
use speculation::tree::NodeId;

/// A model's cache as the full token path of every position and row it holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    text: Vec<u32>,
    /// Scratch rows: the whole text that ends in the row's token.
    rows: BTreeMap<NodeId, Vec<u32>>,
}

/// A plan the cache could compute.
#[derive(Clone, Debug)]
pub(crate) struct Admitted {
    /// Where the appended tokens begin.
    pub(crate) first: usize,
    /// The text once the plan's tokens are appended.
    pub(crate) text: Vec<u32>,
    /// The whole text that ends in each row.
    pub(crate) paths: Vec<Vec<u32>>,
}

impl Admitted {
    /// The text that a row of the step ends.
    pub(crate) fn path(&self, at: RowAt) -> &[u32] {
        match at {
            RowAt::Tail => &self.text,
            RowAt::Row(row) => &self.paths[row],
            RowAt::Appended(row) => unreachable!("nobody asked to score prompt row {row}"),
        }
    }
}

impl Cache {
    /// Positions of the text that are cached.
    pub(crate) fn len(&self) -> usize {
        self.text.len()
    }

    /// Forgets every row, and the text behind its first `len` tokens.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.apply(vec![CacheOp::Shorten(len as u32)]);
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn apply(&mut self, ops: Vec<CacheOp>) {
        for op in ops {
            match op {
                CacheOp::Keep(rows) => {
                    for id in rows {
                        let path = self.rows.remove(&id).expect("kept rows are computed rows");
                        let (token, above) = path.split_last().expect("a row has a token");
                        assert_eq!(above, self.text, "kept rows continue the cached text");
                        self.text.push(*token);
                    }
                }
                CacheOp::Drop(rows) => {
                    for id in rows {
                        assert!(
                            self.rows.remove(&id).is_some(),
                            "dropped rows are computed rows"
                        );
                    }
                }
                CacheOp::Shorten(len) => {
                    assert!(
                        len as usize <= self.text.len(),
                        "only what is cached can be cut"
                    );
                    self.text.truncate(len as usize);
                    self.rows.clear();
                }
            }
        }
    }

    /// Everything held belongs to the session's text or could still become it: nothing leaks.
    pub(crate) fn check(&self, text: &[u32]) {
        assert!(text.starts_with(&self.text), "the cached text is the text");
        for path in self.rows.values() {
            assert!(
                path.len() > text.len() && path.starts_with(text),
                "a row that can no longer come true is still held: {path:?} beside {text:?}"
            );
        }
    }

    /// Checks a plan of a session whose text is `text`, for a step with `room` rows.
    pub(crate) fn admit(&self, text: &[u32], plan: &StepPlan, room: usize) -> Admitted {
        assert!(plan.rows() > 0, "an empty step makes no progress");
        assert!(
            plan.rows() <= room,
            "{} rows where {room} had room",
            plan.rows()
        );
        let mut after = self.text.clone();
        after.extend_from_slice(&plan.append);
        assert!(text.starts_with(&after), "only text is appended");
        if plan.tail == TailLogits::Keep {
            assert_eq!(
                after, text,
                "the logits at the tail are those of the whole text"
            );
            assert!(
                !plan.append.is_empty(),
                "logits come from a row of this step"
            );
        }
        let mut paths: Vec<Vec<u32>> = Vec::new();
        for (at, row) in plan.rows.iter().enumerate() {
            assert!(!self.rows.contains_key(&row.node), "a row is computed once");
            assert!(plan.rows[..at].iter().all(|other| other.node != row.node));
            let mut path = match row.parent {
                None => {
                    assert_eq!(after, text, "rows hang off the end of the text");
                    text.to_vec()
                }
                Some(parent) => {
                    let earlier = plan.rows[..at].iter().position(|row| row.node == parent);
                    let held = earlier.map(|at| &paths[at]).or(self.rows.get(&parent));
                    held.expect("a parent is computed before its children")
                        .clone()
                }
            };
            path.push(row.token);
            paths.push(path);
        }
        Admitted {
            first: self.text.len(),
            text: after,
            paths,
        }
    }

    /// Computes an admitted plan.
    pub(crate) fn compute(&mut self, plan: &StepPlan, admitted: &Admitted) {
        self.text.clone_from(&admitted.text);
        for (row, path) in plan.rows.iter().zip(&admitted.paths) {
            self.rows.insert(row.node, path.clone());
        }
    }
}

//! The stupid cache: it does what plans and cache operations say, and refuses what no cache could do.

use std::collections::BTreeMap;

use decode::{Ask, CacheOp, NodeId, StepPlan};

use crate::reference::hash;
use crate::served::Guessed;

/// A model's cache as the full token path of every position and row it holds.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    text: Vec<u32>,
    /// Tree rows: the whole text that ends in the row's token.
    rows: BTreeMap<NodeId, Vec<u32>>,
}

/// A plan the cache could compute.
#[derive(Clone, Debug)]
pub struct Admitted {
    /// The text once the plan's tokens are appended.
    pub(crate) text: Vec<u32>,
    /// The whole text that ends in each tree row.
    pub(crate) paths: Vec<Vec<u32>>,
}

impl Admitted {
    /// Checks that every tree row is a text that somebody guessed, or goes on as the committed `text` went on before.
    ///
    /// # Panics
    /// When one is made up.
    pub fn check_guessed(&self, guessed: &Guessed, text: &[u32]) {
        for path in &self.paths {
            let goes_on = (path.strip_prefix(text)).is_some_and(|more| {
                let from = |at: usize| text[at..].iter().cycle();
                (0..text.len()).any(|at| more.iter().zip(from(at)).all(|(a, b)| a == b))
            });
            let is_guessed = goes_on || guessed.contains(&hash(0, path));
            assert!(is_guessed, "nobody guessed {path:?}");
        }
    }
}

impl Cache {
    /// The text that is cached.
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    /// Forgets every row, and the text behind its first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.apply(vec![CacheOp::Shorten(len as u32)]);
    }

    /// Tree rows that are cached.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Does what a session has decided.
    ///
    /// # Panics
    /// When no cache could.
    pub fn apply(&mut self, ops: Vec<CacheOp>) {
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
    ///
    /// # Panics
    /// When something does.
    pub fn check(&self, text: &[u32]) {
        assert!(text.starts_with(&self.text), "the cached text is the text");
        for path in self.rows.values() {
            assert!(
                path.len() > text.len() && path.starts_with(text),
                "a row that can no longer come true is still held: {path:?} beside {text:?}"
            );
        }
    }

    /// Checks a plan of a session whose text is `text`.
    ///
    /// # Panics
    /// When no cache could compute it, or it asks for what cannot be answered.
    pub fn admit(&self, text: &[u32], plan: &StepPlan) -> Admitted {
        assert!(!plan.is_empty(), "an empty step makes no progress");
        let mut after = self.text.clone();
        after.extend_from_slice(&plan.append);
        assert!(text.starts_with(&after), "only text is appended");
        self.check_asks(text, &after, plan);
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
            assert!(!paths.contains(&path), "a text is computed once: {path:?}");
            if row.ask != Ask::Nothing {
                assert_eq!(
                    path,
                    [text, &row.path].concat(),
                    "penalties and noise are those of the tokens before"
                );
            }
            paths.push(path);
        }
        Admitted { text: after, paths }
    }

    /// What appended tokens are asked: nothing, scores of tokens that are known, or what follows the whole text.
    fn check_asks(&self, text: &[u32], after: &[u32], plan: &StepPlan) {
        assert!(
            plan.asks.len() <= plan.append.len(),
            "answers come from rows of this step"
        );
        let first = after.len() - plan.asks.len();
        for (at, ask) in plan.asks.iter().enumerate() {
            match *ask {
                Ask::Nothing => {}
                Ask::Score { token, .. } => assert_eq!(
                    text.get(first + at + 1),
                    Some(&token),
                    "a score is that of the token that follows"
                ),
                Ask::Pick { .. } | Ask::Judge { .. } | Ask::Draw(_) | Ask::Guesses(_) => {
                    assert_eq!(
                        (plan.asks.len(), after),
                        (1, text),
                        "what follows the text is asked of its last token"
                    )
                }
            }
        }
    }

    /// Computes an admitted plan.
    pub fn compute(&mut self, plan: &StepPlan, admitted: &Admitted) {
        self.text.clone_from(&admitted.text);
        for (row, path) in plan.rows.iter().zip(&admitted.paths) {
            self.rows.insert(row.node, path.clone());
        }
    }
}

//! What a qualifier makes of its walk: its picks are advice, which it follows ahead of the target.

use alloc::vec::Vec;

use decode::{NodeId, StepPlan, Surprisal};

use super::Verifier;
use crate::message::Finish;
use crate::replica::Held;
use crate::tree::Graft;
use crate::walk::Walked;

impl Verifier {
    pub(super) fn advise(&mut self, walked: &Walked, plan: &StepPlan) {
        let losers: Vec<NodeId> = (plan.rows.iter().map(|row| row.node))
            .filter(|id| !walked.path.contains(id) && !self.ahead.contains(id))
            .collect();
        self.replica.drop_rows(losers);
        let mut hit = true;
        for picked in &walked.picks {
            let parent = self.ahead.last().copied();
            let graft = Graft {
                token: picked.token,
                edge: 0.7,
                owner: 0,
                payload: Held::default(),
            };
            hit = self.replica.tree.child(parent, picked.token).is_some();
            let Some(grafted) = self.replica.tree.graft(parent, graft) else {
                // The tree is full until text is committed. What comes next is the token behind `parent` again, so
                // its row has to be computed again.
                self.is_stuck = true;
                let again = parent.filter(|&id| self.replica.is_computed(id));
                self.replica.drop_rows(again.into_iter().collect());
                break;
            };
            if let Some(row) = self.replica.tree.payload_mut(grafted.id()) {
                row.own.margin = picked.margin;
                let score = picked.score.as_deref();
                row.own.surprisal = score.map_or_else(Surprisal::default, |score| {
                    Surprisal::from_logprob(score.logprob)
                });
            }
            self.ahead.push(grafted.id());
        }
        if walked.finish == Some(Finish::NotFinite) {
            // Nothing more until the text goes on; then the row that gave no number is computed again.
            self.finish = walked.finish;
            let again = self
                .ahead
                .last()
                .filter(|&&id| self.replica.is_computed(id));
            self.replica.drop_rows(again.copied().into_iter().collect());
            if walked.picks.is_empty() {
                return;
            }
        } else {
            self.ahead_finish = walked.finish;
        }
        if hit {
            self.walks.hits += 1;
        } else {
            self.walks.misses += 1;
        }
    }
}

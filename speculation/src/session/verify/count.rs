//! What a verifier counts about its walks.

use alloc::vec::Vec;

use decode::{NodeId, Pick, Row};

use super::Verifier;
use crate::Time;
use crate::learned::Learned;
use crate::walk::Walked;

impl Verifier {
    pub(super) fn count(
        &mut self,
        now: Time,
        guesses: &[Row],
        tip: Option<NodeId>,
        walked: &Walked,
        took: Time,
        learned: &mut Learned,
    ) {
        self.walks.steps += 1;
        self.walks.tokens += walked.picks.len() as u64;
        if self.may_rest() {
            learned.bypass.picked(walked.picks.len());
        }
        if !self.way.has_others() {
            self.walks.resting_steps += 1;
        } else if guesses.is_empty() && self.bounds.rows > 0 {
            self.walks.starved_steps += 1;
            self.walks.starved_us += took.as_micros() as u64;
        }
        let bare = if guesses.is_empty() { 1.0 } else { 0.0 };
        self.bare_share += 0.1 * (bare - self.bare_share);
        let (submitted, accepted) = self.main_chain(guesses, tip, &walked.path);
        self.walks.chain_submitted += submitted;
        self.walks.chain_accepted += accepted;
        self.trail.submitted += submitted as u32;
        self.trail.accepted += accepted as u32;
        self.walks.guesses_submitted += guesses.len() as u64;
        self.walks.guesses_accepted += walked.path.len() as u64;
        let is_tolerated = |picked: &&Pick| picked.margin < 0.0;
        self.walks.tolerated += walked.picks.iter().filter(is_tolerated).count() as u64;
        let since = self.step_ended.unwrap_or(self.base_since);
        self.waiting = None;
        (learned.waits).stepped(walked.picks.len(), now.saturating_sub(since));
        self.step_ended = Some(now);
    }

    /// Length of the best path through the submitted guesses, and how much of it was accepted.
    fn main_chain(&self, guesses: &[Row], tip: Option<NodeId>, accepted: &[NodeId]) -> (u64, u64) {
        let mut chain: Vec<NodeId> = Vec::new();
        loop {
            let at = chain.last().copied().or(tip);
            let next = guesses
                .iter()
                .filter(|row| row.parent == at)
                .map(|row| row.node)
                .max_by(|&a, &b| {
                    let score = |id| self.replica.tree.path_score(Some(id));
                    score(a).total_cmp(&score(b)).then(b.cmp(&a))
                });
            match next {
                Some(next) => chain.push(next),
                None => break,
            }
        }
        let common = chain.iter().zip(accepted).take_while(|(a, b)| a == b);
        (chain.len() as u64, common.count() as u64)
    }
}

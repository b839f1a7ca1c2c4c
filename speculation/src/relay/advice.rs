//! What the relay makes of advice: a qualifier's picks, merged with the guesses of drafts.

use alloc::vec::Vec;

use super::{Merged, Relay, WorkerKey};
use crate::calibration::{Feature, Outcome};
use crate::duty::Source;
use crate::limits::MAX_TREE;
use crate::message::Report;
use crate::numbering::len_u32;
use crate::tree::{Graft, NodeId, Tree};

impl Relay {
    /// Compares the advice with what was committed.
    pub(super) fn learn(&mut self, tokens: &[u32]) {
        let mut at = None;
        for &token in tokens {
            for &child in self.tree.children(at) {
                let Some(node) = self.tree.get(child) else {
                    continue;
                };
                if let Some(feature) = node.payload.advised {
                    let outcome = Outcome::of(node.token, token);
                    self.calibration
                        .of(Source::Qualifier)
                        .observe(feature, outcome);
                    self.advised.0 += 1;
                    self.advised.1 += u64::from(outcome == Outcome::True);
                }
            }
            at = match self.tree.child(at, token) {
                Some(child) => Some(child),
                None => return,
            };
        }
    }

    pub(super) fn take_advice(&mut self, key: WorkerKey, report: &Report) {
        let known = self.text.len() - report.base_len as usize;
        let agreed = self.text[report.base_len as usize..]
            .iter()
            .zip(&report.picks)
            .all(|(text, pick)| text == pick);
        let ahead = if agreed {
            report.picks.get(known..).unwrap_or(&[])
        } else {
            &[]
        };
        let previous = match self.members.get_mut(&key) {
            Some(member) => core::mem::take(&mut member.advice),
            None => return,
        };
        for id in previous {
            retract(&mut self.tree, id);
        }
        let mut advice: Vec<NodeId> = Vec::new();
        let last = self.config.stopping.max_len;
        for (offset, &token) in ahead.iter().enumerate() {
            let parent = advice.last().copied();
            let position = len_u32(&self.text) + offset as u32;
            let new = self.tree.child(parent, token).is_none();
            if position >= last || (new && self.tree.len() >= MAX_TREE) {
                break;
            }
            let feature = Feature::from_margin(report.margins[known + offset].to_f32());
            let edge = self.calibration.of(Source::Qualifier).probability(feature);
            let edge = edge.max(self.config.strategy.advice().least);
            let graft = Graft {
                token,
                edge,
                owner: position as u8,
                payload: Merged {
                    source: Source::Qualifier,
                    ..Merged::default()
                },
            };
            let Some(grafted) = self.tree.graft(parent, graft) else {
                break;
            };
            let id = grafted.id();
            if let Some(merged) = self.tree.payload_mut(id) {
                merged.advised = Some(feature);
                merged.judged = (report.surprisals.get(known + offset).copied()).or(merged.judged);
            }
            self.tree.set_edge(id, edge);
            self.discount_rivals(parent, id, 1.0 - edge);
            advice.push(id);
        }
        if let Some(member) = self.members.get_mut(&key) {
            member.advice = advice;
        }
    }

    /// Scales the other guesses at the position of advice down, so that together they keep at most `left`.
    fn discount_rivals(&mut self, parent: Option<NodeId>, chosen: NodeId, left: f32) {
        let rivals: Vec<(NodeId, f32)> = (self.tree.children(parent).iter())
            .filter(|&&id| id != chosen)
            .filter_map(|&id| {
                let merged = self.tree.get(id)?.payload;
                Some((id, merged.proposed?))
            })
            .collect();
        let total: f32 = rivals.iter().map(|(_, edge)| edge).sum();
        let scale = if total > left { left / total } else { 1.0 };
        for (id, edge) in rivals {
            self.tree.set_edge(id, edge * scale);
        }
    }

    /// Guesses that came later than the advice at their places are discounted as those before it were, where advice leads:
    /// otherwise a draft that has not heard of it yet would have everybody follow its own guess.
    pub(super) fn yield_to_advice(&mut self, places: &[Option<NodeId>]) {
        if self.config.strategy.advice().least <= 0.5 {
            return;
        }
        for &place in places {
            let tree = &self.tree;
            let advised = (tree.children(place).iter())
                .filter_map(|&id| Some((id, tree.get(id)?)))
                .find(|(_, node)| node.payload.advised.is_some());
            if let Some((id, node)) = advised {
                let left = 1.0 - node.edge();
                self.discount_rivals(place, id, left);
            }
        }
    }
}

/// What a guess is worth that only withdrawn advice has made.
const WITHDRAWN: f32 = 0.05;

/// Advice no longer runs through this node: its score and its rivals' are again what drafts gave them.
pub(super) fn retract(tree: &mut Tree<Merged>, id: NodeId) {
    let Some(node) = tree.get(id) else { return };
    let parent = node.parent;
    if let Some(merged) = tree.payload_mut(id) {
        merged.advised = None;
    }
    for sibling in tree.children(parent).to_vec() {
        let merged = tree.get(sibling).map(|node| node.payload);
        if let Some(Merged {
            proposed,
            advised: None,
            ..
        }) = merged
        {
            tree.set_edge(sibling, proposed.unwrap_or(WITHDRAWN));
        }
    }
}

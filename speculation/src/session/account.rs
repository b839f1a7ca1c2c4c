//! A proposer's account of the target's misses, see [`MissCause`].

use alloc::vec::Vec;

use decode::NodeId;

use super::propose::Grown;
use crate::bypass::Mode;
use crate::calibration::Calibration;
use crate::message::Outlook;
use crate::misses::{MissCause, Misses};
use crate::node_map::NodeMap;
use crate::replica::{Held, Replica};
use crate::tree::Committed;

/// See the module documentation.
#[derive(Debug, Default)]
pub(super) struct MissAccount {
    pub(super) counts: Misses,
    /// The target's count of misses, as heard last; `None` while it does not speculate.
    settled: Option<u32>,
    /// The cause of the newest commit's miss, if it was one.
    newest: Option<MissCause>,
    /// What was ranked below a node and not made, and why.
    left_out: NodeMap<LeftOut>,
    /// The same behind the end of the text.
    left_out_first: Option<LeftOut>,
}

/// Tokens that were ranked and not made, and why.
type LeftOut = Vec<(u32, MissCause)>;

/// An advised token makes the others at its position this much less likely, or it has contradicted none.
const CONTRADICTED: f32 = 0.5;

impl MissAccount {
    /// These guesses were ranked and not made.
    pub(super) fn left_out(&mut self, parent: Option<NodeId>, more: LeftOut) {
        if more.is_empty() {
            return;
        }
        let before = match parent {
            None => self.left_out_first.as_mut(),
            Some(id) => self.left_out.get_mut(id),
        };
        match (before, parent) {
            (Some(before), _) => before.extend(more),
            (None, None) => self.left_out_first = Some(more),
            (None, Some(id)) => self.left_out.insert(id, more),
        }
    }

    fn left_out_below(&self, parent: Option<NodeId>) -> Option<&LeftOut> {
        match parent {
            None => self.left_out_first.as_ref(),
            Some(id) => self.left_out.get(id),
        }
    }

    /// The target has committed `fresh`, which the replica does not have yet. `step` counts the draft's steps. Whether the
    /// walk that ended there missed is heard with the next commit.
    pub(super) fn heard(
        &mut self,
        replica: &Replica<Grown>,
        fresh: &[u32],
        outlook: Outlook,
        step: u32,
        calibration: &Calibration,
    ) {
        if outlook.accepted.is_none() {
            return;
        }
        let newest = self.cause(replica, fresh, step, calibration);
        let cause = self.newest.replace(newest);
        let before = self.settled.replace(outlook.misses);
        if outlook.mode == Mode::Rest {
            // Nobody guesses now, and nobody misses.
            (self.newest, self.settled) = (None, None);
            return;
        }
        let (Some(before), Some(cause)) = (before, cause) else {
            return;
        };
        let more = outlook.misses.saturating_sub(before);
        if more > 0 {
            self.counts.add(cause, 1);
            // Several walks in one update: where the earlier ones ended is not known.
            self.counts.add(MissCause::Behind, u64::from(more - 1));
        }
    }

    /// Why the last of these tokens was not in the target's tree.
    fn cause(
        &self,
        replica: &Replica<Grown>,
        fresh: &[u32],
        step: u32,
        calibration: &Calibration,
    ) -> MissCause {
        let Some((&token, above)) = fresh.split_last() else {
            return MissCause::Behind;
        };
        let tree = &replica.tree;
        let path = tree.descend(above);
        if path.len() < above.len() {
            return MissCause::Behind;
        }
        let parent = path.last().copied();
        if let Some(node) = tree.child(parent, token).and_then(|id| tree.get(id)) {
            return if node.payload.own.made + 1 >= step {
                MissCause::InFlight
            } else {
                MissCause::Withheld
            };
        }
        if let Some(&(_, cause)) = (self.left_out_below(parent).into_iter().flatten())
            .find(|&&(left_out, _)| left_out == token)
        {
            return cause;
        }
        let is_expanded = match parent.and_then(|id| tree.get(id)) {
            Some(node) => node.payload.own.expanded,
            None => self.left_out_first.is_some() || !tree.children(None).is_empty(),
        };
        let is_contradicted = path.iter().filter_map(|&id| tree.get(id)).any(|node| {
            node.payload
                .own
                .guess
                .is_some_and(|guess| node.edge() < CONTRADICTED * calibration.probability(guess))
        });
        match (is_expanded, is_contradicted) {
            (true, _) => MissCause::Unranked,
            (false, true) => MissCause::Contradicted,
            (false, false) => MissCause::Unexpanded,
        }
    }

    /// The replica has followed a commit.
    pub(super) fn committed(
        &mut self,
        committed: &Committed<Held<Grown>>,
        replica: &Replica<Grown>,
    ) {
        self.left_out_first = (committed.matched.last())
            .filter(|_| committed.hit)
            .and_then(|(id, _)| self.left_out.remove(*id));
        self.left_out.retain(|id| replica.tree.get(id).is_some());
    }
}

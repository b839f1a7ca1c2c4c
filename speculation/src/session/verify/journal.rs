//! The journal of a target, and its steps taken again from one.

use alloc::vec::Vec;

use decode::{Forecast, NodeId, Row};

use super::{Advised, Verifier};
use crate::Time;
use crate::duty::{Duty, Source};
use crate::journal::{Arrived, Journal, Taken};
use crate::message::SessionSpec;
use crate::replica::Held;
use crate::tree::Graft;
use crate::walk::Walked;

fn source(held: &Held<Advised>) -> Source {
    held.own.sources.iter().next().unwrap_or_default()
}

impl Verifier {
    /// Where one is wanted. A text that depends on more than picks has none.
    pub(super) fn new_journal(now: Time, spec: &SessionSpec, duty: Duty) -> Option<Journal> {
        let is_kept = spec.has_journal && duty == Duty::Commit;
        (is_kept && spec.strategy.rule == decode::Rule::Exact).then(|| Journal::new(now))
    }

    /// Guesses may have come.
    pub(super) fn note_guesses(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.follow(&self.replica.tree, source);
        }
    }

    /// There is room for so many guesses in the next step.
    pub(super) fn note_room(&mut self, rows: usize) {
        if let Some(journal) = &mut self.journal {
            journal.offer(rows.min(self.bounds.rows.into()));
        }
    }

    /// A step in which these guesses were submitted has ended, and the walk is about to become text.
    pub(super) fn note_step(&mut self, now: Time, took: Time, guesses: &[Row], walked: &Walked) {
        self.note_guesses();
        let (Some(journal), tree) = (&mut self.journal, &self.replica.tree) else {
            return;
        };
        let mut picks: Vec<_> = walked
            .path
            .iter()
            .map(|&id| journal.number(Some(id)))
            .collect();
        if let Some(last) = walked.picks.get(picks.len()) {
            let parent = walked.path.last().copied();
            picks.push(journal.number(tree.child(parent, last.token)));
        }
        let taken = Taken {
            submitted: u16::try_from(guesses.len()).unwrap_or(u16::MAX),
            picks,
            ended: now,
            took,
            ..Taken::default()
        };
        journal.step(tree, taken);
    }

    /// The step has had its answer where its walk ended.
    pub(super) fn note_forecast(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.forecast(self.outlook.forecast);
        }
    }

    pub(super) fn take_journal(&mut self) -> Vec<Taken> {
        self.journal.as_mut().map_or(Vec::new(), Journal::take)
    }

    /// A recorded guess comes. `None` if its parent is gone, or knows the token.
    pub(in crate::session) fn graft_recorded(
        &mut self,
        parent: Option<NodeId>,
        token: u32,
        arrived: Arrived,
    ) -> Option<NodeId> {
        let graft = Graft {
            token,
            edge: arrived.edge,
            owner: 0,
            payload: Held::default(),
        };
        let id = self.replica.tree.graft(parent, graft)?.id();
        if let Some(held) = self.replica.tree.payload_mut(id) {
            held.own.came_from(arrived.source, &mut self.walks);
        }
        Some(id)
    }

    /// A recorded guess has another estimate.
    pub(in crate::session) fn rescore_recorded(&mut self, id: NodeId, edge: f32) {
        self.replica.tree.set_edge(id, edge);
    }

    /// The rows of text that the next step computes in any case.
    pub(in crate::session) fn base_rows(&mut self) -> usize {
        self.replica.pending().len()
    }

    /// What the target expected of its next step.
    pub(in crate::session) fn set_forecast(&mut self, forecast: Option<Forecast>) {
        self.outlook.forecast = forecast;
    }

    /// What its walks have counted.
    pub(in crate::session) fn walks(&self) -> crate::stats::WalkStats {
        self.walks
    }
}

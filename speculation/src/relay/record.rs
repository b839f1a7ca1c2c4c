//! Recording what the tree says of a position when its token is committed.

use alloc::vec::Vec;

use super::{Merged, Relay};
use crate::journal::Run;
use crate::message::{Margin, Report, Term};
use crate::recording::{MAX_GUESSES, Picked, Recording, Seen};
use crate::tree::{NodeId, Tree};

impl Relay {
    /// Records how the models agree, for this many positions of the text at most.
    #[must_use]
    pub fn with_recording(mut self, most: usize) -> Self {
        self.recording = (most > 0).then(|| Recording::new(most));
        self
    }

    /// Ends the recording, if there is one.
    pub fn take_recording(&mut self) -> Option<Recording> {
        self.recording.take()
    }

    /// The target has taken these steps under this term.
    pub(super) fn record_steps(&mut self, term: Term, report: &Report) {
        let Some(recording) = self
            .recording
            .as_mut()
            .filter(|_| !report.journal.is_empty())
        else {
            return;
        };
        // What was committed with the first steps of a term is all that it has committed.
        let tokens: usize = report.journal.iter().map(|step| step.picks.len()).sum();
        let before = self.text.len().saturating_sub(tokens) as u32;
        recording.extend_run(term, &report.journal, || Run {
            strategy: self.config.strategy.settings.clone(),
            room: self.config.stopping.max_len.saturating_sub(before),
            steps: Vec::new(),
        });
    }

    /// These tokens are about to be committed, picked by margins that the target has told.
    pub(super) fn record(&mut self, tokens: &[u32], margins: &[Margin]) {
        let Some(recording) = &mut self.recording else {
            return;
        };
        // The place that is looked at; none once the text has left the tree.
        let mut at = Some(None);
        for (&token, &lead) in tokens.iter().zip(margins) {
            recording.extend([at.and_then(|at| look(&self.tree, at, token, lead))]);
            at = at.and_then(|at| self.tree.child(at, token)).map(Some);
        }
    }
}

/// What drafts and qualifiers made of the place behind `at`, whose token turns out to be `token`; none if no draft had
/// reached it.
fn look(tree: &Tree<Merged>, at: Option<NodeId>, token: u32, lead: Margin) -> Option<Seen> {
    let nodes = || tree.children(at).iter().filter_map(|&id| tree.get(id));
    let mut rated: Vec<_> = nodes()
        .filter_map(|node| Some((node.token, node.payload.rated?)))
        .collect();
    // The first leads the second; of equals the earlier one, as the draft ranked them.
    rated.sort_by_key(|&(_, (_, margin))| core::cmp::Reverse(margin));
    rated.truncate(MAX_GUESSES);
    let &(_, (_, first)) = rated.first()?;
    let place = |token: u32| {
        let place = rated.iter().position(|&(other, _)| other == token)?;
        Some(place as u8)
    };
    let picked = nodes().find(|node| node.payload.advised.is_some());
    Some(Seen {
        place: place(token),
        picked: match picked.map(|node| node.token) {
            None => Picked::Nothing,
            Some(other) if other == token => Picked::Committed,
            Some(other) => place(other).map_or(Picked::Other, Picked::Guess),
        },
        lead,
        gaps: match rated.get(1..) {
            None | Some([]) => alloc::vec![Margin(first.0.max(0))],
            Some(others) => (others.iter())
                .map(|&(_, (_, behind))| Margin(behind.0.saturating_neg().max(0)))
                .collect(),
        },
        q: rated.iter().map(|&(_, (q, _))| q).collect(),
    })
}

//! The guesses that a target makes itself, without a draft: from its text, and from texts that were completed before.

use alloc::vec::Vec;

use decode::{History, Proposal, Proposer, Seen};

use super::verify::Advised;
use crate::by_source::Inserted;
use crate::bypass::Way;
use crate::calibration::{Calibration, Feature};
use crate::duty::{Duty, Source};
use crate::history::{HistoryCache, HistoryKey, HistoryLookup};
use crate::lookup::{LookupBounds, TextLookup};
use crate::replica::{Held, Replica};
use crate::stats::WalkStats;
use crate::strategy::Chosen;
use crate::tree::Graft;

/// Guesses of one source for one text, at most.
const MOST: usize = 64;

/// What a session looks up guesses with. That of a session that does not commit finds nothing.
#[derive(Debug, Default)]
pub(super) struct Finder {
    text: Option<TextLookup>,
    /// What is looked up in texts that were completed before; nothing where the session names no key.
    history: LookupBounds,
    /// Whose texts those are, and where this one is put.
    key: Option<HistoryKey>,
    /// The length of the text for which guesses were looked up last.
    looked_up: u32,
    is_recorded: bool,
}

impl Finder {
    /// The sources that it finds guesses in.
    pub(super) const SOURCES: [Source; 2] = [Source::Lookup, Source::History];

    pub(super) fn new(duty: Duty, strategy: &Chosen, key: Option<HistoryKey>) -> Self {
        match duty {
            Duty::Commit => Finder {
                text: TextLookup::new(strategy.lookup()),
                history: strategy.history(),
                key,
                ..Finder::default()
            },
            Duty::Advise | Duty::Propose => Finder::default(),
        }
    }

    /// Takes a part of the text into the index that it does not have yet.
    pub(super) fn index(&mut self, text: &[u32]) {
        if let Some(lookup) = &mut self.text {
            lookup.index(text);
        }
    }

    /// Whether there are completed texts to look up. Sessions that have some look there even where guesses have been measured
    /// not to pay: that was measured without them, and what they are worth is known by their own calibration.
    pub(super) fn has_history(&self, cache: &HistoryCache) -> bool {
        let is_kept = |key| cache.has(key);
        self.history.branches > 0 && self.key.is_some_and(is_kept)
    }

    /// What may follow, once for each text. Where no guess pays, nothing is looked up in the text itself.
    pub(super) fn propose(
        &mut self,
        way: Way,
        before: History<'_>,
        cache: &mut HistoryCache,
    ) -> Vec<(Source, Proposal)> {
        let len = before.position();
        if self.looked_up >= len {
            return Vec::new();
        }
        self.looked_up = len;
        let seen = Seen { before, taps: &[] };
        let mut found = Vec::new();
        if let Some(lookup) = self.text.as_mut().filter(|_| way != Way::Plain) {
            found.push((Source::Lookup, lookup.propose(&seen, MOST)));
        }
        if let Some(key) = self.key
            && self.history.branches > 0
        {
            let bounds = self.history;
            let mut lookup = HistoryLookup { cache, key, bounds };
            found.push((Source::History, lookup.propose(&seen, MOST)));
        }
        found
    }

    /// Keeps a text that has come to its end, or as far as its client wanted it, for later requests of its key.
    pub(super) fn record(&mut self, text: &[u32], cache: &mut HistoryCache) {
        if let Some(key) = self.key
            && !core::mem::replace(&mut self.is_recorded, true)
        {
            cache.record(key, text);
        }
    }
}

/// Grafts what a source of the target's own has proposed.
pub(super) fn graft(
    replica: &mut Replica<Advised>,
    source: Source,
    proposal: &Proposal,
    calibration: &Calibration,
    walks: &mut WalkStats,
) {
    let mut nodes = Vec::with_capacity(proposal.len());
    for proposed in proposal.iter() {
        let parent = match proposed.parent {
            None => Some(None),
            Some(at) => nodes.get(at).copied().flatten().map(Some),
        };
        let feature = Feature::new(proposed.rank, proposed.guess.weight);
        let graft = Graft {
            token: proposed.guess.token,
            edge: calibration.probability(feature),
            owner: 0,
            payload: Held::default(),
        };
        let grafted = parent.and_then(|parent| replica.tree.graft(parent, graft));
        let id = grafted.map(|grafted| grafted.id());
        if let Some(held) = id.and_then(|id| replica.tree.payload_mut(id)) {
            held.own.guessed[source] = Some(feature);
            held.own.came_from(source, walks);
        }
        nodes.push(id);
    }
}

impl Advised {
    /// Notes, once for each source, that the node came from it.
    pub(super) fn came_from(&mut self, source: Source, walks: &mut WalkStats) {
        if self.sources.insert(source) == Inserted::New {
            walks.sources[source].nodes += 1;
        }
    }
}

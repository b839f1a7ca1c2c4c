//! Guesses that the target looks up in the text itself ([`crate::lookup`]), grafted once for each text.

use crate::duty::Source;
use crate::learned::Learned;
use crate::lookup::{Lookup, LookupBounds};
use crate::replica::{Held, Replica};
use crate::tree::Graft;

use super::verify::Advised;

/// What a session looks up guesses with.
#[derive(Debug)]
pub(super) struct Finder {
    index: Lookup,
    bounds: LookupBounds,
    /// The length of the text for which guesses were looked up last.
    looked_up: u32,
}

/// Tokens of a prompt that are indexed before one step, so that a long one delays nobody.
const INDEXED_AT_ONCE: usize = 4096;

impl Finder {
    /// None where nothing is to be looked up.
    pub(super) fn new(bounds: LookupBounds) -> Option<Self> {
        (bounds.branches > 0).then(|| Finder {
            index: Lookup::default(),
            bounds,
            looked_up: 0,
        })
    }

    /// Takes more of the text into the index.
    pub(super) fn index(&mut self, text: &[u32]) {
        self.index.extend(text, INDEXED_AT_ONCE);
    }

    /// Grafts what followed the end of the text before, once for each text.
    pub(super) fn graft(&mut self, replica: &mut Replica<Advised>, learned: &mut Learned) {
        let len = replica.len();
        if self.looked_up >= len {
            return;
        }
        self.looked_up = len;
        let found = self.index.continuations(&replica.text, self.bounds);
        let calibration = learned.calibration.of(Source::Lookup);
        for (rank, continuation) in found.iter().enumerate() {
            let mut parent = None;
            for (depth, &token) in continuation.tokens.iter().enumerate() {
                let feature = continuation.feature(rank, depth);
                let graft = Graft {
                    token,
                    edge: calibration.probability(feature),
                    owner: 0,
                    payload: Held::default(),
                };
                let Some(grafted) = replica.tree.graft(parent, graft) else {
                    break;
                };
                if let Some(held) = replica.tree.payload_mut(grafted.id()) {
                    held.own.lookup = Some(feature);
                }
                parent = Some(grafted.id());
            }
        }
    }
}

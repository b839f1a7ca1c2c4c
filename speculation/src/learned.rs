//! What a worker learns from all its sessions, so that a new session starts with it.

use alloc::collections::BTreeMap;

use crate::Time;
use crate::agreement::Agreement;
use crate::bypass::{Bypass, Plan};
use crate::calibration::Calibration;
use crate::cost::CostModel;
use crate::duty::Source;
use crate::history::HistoryCache;
use crate::wait::WaitModel;

/// See the module documentation. Owned by the worker, lent to a session with every call.
#[derive(Clone, Debug)]
pub struct Learned {
    /// What rows cost.
    pub cost: CostModel,
    /// What waiting brings.
    pub waits: WaitModel,
    /// How far each source of guesses can be trusted.
    pub calibration: Calibrations,
    /// Whether guesses pay at all.
    pub bypass: Bypass,
    /// Texts that were completed here, of requests that share them.
    pub history: HistoryCache,
    /// How a draft does with its target.
    pub agreement: Agreement,
    /// Whether heads beside the target pay.
    pub heads: HeadsWorth,
}

impl Learned {
    /// Nothing yet, and no room for texts. No step takes less than `floor` (the pace of a paced worker).
    pub fn new(floor: Time, plan: Plan) -> Self {
        Learned {
            cost: CostModel::new(floor),
            waits: WaitModel::default(),
            calibration: Calibrations::default(),
            bypass: Bypass::new(plan),
            history: HistoryCache::default(),
            agreement: Agreement::default(),
            heads: HeadsWorth::default(),
        }
    }
}

/// One calibration for each source of guesses, and for each head beside a target.
#[derive(Clone, Debug, Default)]
pub struct Calibrations(BTreeMap<(Source, usize), Calibration>);

impl Calibrations {
    /// What is known of a source.
    pub fn of(&mut self, source: Source) -> &mut Calibration {
        self.0.entry((source, 0)).or_default()
    }

    /// What is known of a head, counted from 0: each one guesses further ahead than the one before, and worse.
    pub fn of_head(&mut self, head: usize) -> &mut Calibration {
        self.0.entry((Source::Heads, head)).or_default()
    }
}

/// Whether the heads beside a target are worth what they cost: tokens that were accepted only because of them, for each time
/// they were evaluated.
#[derive(Clone, Copy, Debug)]
pub struct HeadsWorth {
    gain: f32,
    share: f32,
    skipped: u16,
}

/// Weight of the newest evaluation.
const NEWEST: f32 = 0.02;

/// Heads that do not pay are tried again after this many steps.
const TRIED_AGAIN: u16 = 64;

impl Default for HeadsWorth {
    /// Before the first one they are thought to pay.
    fn default() -> Self {
        HeadsWorth {
            gain: 0.5,
            share: 0.1,
            skipped: 0,
        }
    }
}

impl HeadsWorth {
    /// Whether the next step evaluates the heads, where `tokens` are committed in a step: what they bring has to be more than
    /// what the same time brings otherwise.
    pub fn pays(&mut self, tokens: f32) -> bool {
        let pays = self.gain >= self.share * tokens || self.skipped >= TRIED_AGAIN;
        self.skipped = if pays { 0 } else { self.skipped + 1 };
        pays
    }

    /// The heads were evaluated, which cost this `share` of a step, and this many of their own nodes were accepted then.
    pub fn observe(&mut self, share: f32, accepted: usize) {
        self.share = share;
        self.gain += NEWEST * (accepted as f32 - self.gain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_bring_nothing_are_tried_now_and_then_and_others_always() {
        let mut idle = HeadsWorth::default();
        let mut useful = HeadsWorth::default();
        let (mut tried, mut used) = (0, 0);
        for _ in 0..2000 {
            if idle.pays(2.0) {
                idle.observe(0.1, 0);
                tried += 1;
            }
            if useful.pays(2.0) {
                useful.observe(0.1, 1);
                used += 1;
            }
        }
        assert_eq!(used, 2000);
        assert!((20..120).contains(&tried), "{tried}");
        for _ in 0..200 {
            idle.observe(0.1, 1);
        }
        assert!(idle.pays(2.0), "they have become better");
    }
}

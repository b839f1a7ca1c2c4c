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
        }
    }
}

/// One calibration for each source of guesses.
#[derive(Clone, Debug, Default)]
pub struct Calibrations(BTreeMap<Source, Calibration>);

impl Calibrations {
    /// What is known of a source.
    pub fn of(&mut self, source: Source) -> &mut Calibration {
        self.0.entry(source).or_default()
    }
}

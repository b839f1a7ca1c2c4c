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
/// they were evaluated, against how much longer steps take that evaluate them.
#[derive(Clone, Copy, Debug)]
pub struct HeadsWorth {
    gain: f32,
    /// What they cost by their weights, as a share of a step.
    share: f32,
    /// Duration of steps that evaluate them, over what steps of so many rows take.
    with: Option<f32>,
    /// The same of other steps.
    without: Option<f32>,
    skipped: u16,
    used: u16,
}

/// Whether a step has evaluated the heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaluated {
    /// It has.
    Yes,
    /// It has not.
    No,
}

/// Weight of the newest evaluation.
const NEWEST: f32 = 0.03;

/// Heads that do not pay are tried again after this many steps.
const TRIED_AGAIN: u16 = 64;

/// After this many steps with heads one goes without, so that it is known what they cost.
const LEFT_OUT: u16 = 15;

/// Heads that cost nothing measurable still have to bring something.
const LEAST: f32 = 0.02;

impl Default for HeadsWorth {
    /// Before the first one they are thought to pay.
    fn default() -> Self {
        HeadsWorth {
            gain: 0.5,
            share: 0.1,
            with: None,
            without: None,
            skipped: 0,
            used: 0,
        }
    }
}

impl HeadsWorth {
    /// Whether the next step evaluates the heads, where `tokens` are committed in a step: what they bring has to be more than
    /// what the same time brings otherwise.
    pub fn pays(&mut self, tokens: f32) -> bool {
        let is_worth_it = self.gain >= self.cost() * tokens;
        let asks = match is_worth_it {
            true => self.used < LEFT_OUT,
            false => self.skipped >= TRIED_AGAIN,
        };
        (self.used, self.skipped) = match asks {
            true => (self.used + 1, 0),
            false => (0, self.skipped.saturating_add(1)),
        };
        asks
    }

    /// The share of a step that they cost: as measured, where it is, and by their weights until then.
    fn cost(&self) -> f32 {
        match (self.with, self.without) {
            (Some(with), Some(without)) => (with / without - 1.0).max(LEAST),
            _ => self.share,
        }
    }

    /// A step took this many times as long as steps of so many rows are expected to.
    pub fn took(&mut self, times: f32, evaluated: Evaluated) {
        // One that the machine was busy with something else in says nothing.
        if !(0.0..4.0).contains(&times) {
            return;
        }
        let mean = match evaluated {
            Evaluated::Yes => &mut self.with,
            Evaluated::No => &mut self.without,
        };
        *mean = Some(mean.map_or(times, |mean| mean + NEWEST * (times - mean)));
    }

    /// The heads were evaluated, which costs this `share` of a step by their weights, and this many of their own nodes were
    /// accepted then.
    pub fn observe(&mut self, share: f32, accepted: usize) {
        self.share = share;
        self.gain += NEWEST * (accepted as f32 - self.gain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_that_bring_nothing_are_tried_now_and_then_and_others_nearly_always() {
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
        assert!((1800..2000).contains(&used), "{used}");
        assert!((20..150).contains(&tried), "{tried}");
        for _ in 0..200 {
            idle.observe(0.1, 1);
        }
        assert!(idle.pays(2.0), "they have become better");
    }

    #[test]
    fn what_steps_take_decides_and_not_what_weights_say() {
        for (longer, is_worth_it) in [(1.0, true), (1.1, true), (1.5, false)] {
            let mut heads = HeadsWorth::default();
            let mut late = 0;
            for step in 0..1000 {
                let evaluated = match heads.pays(1.3) {
                    true => Evaluated::Yes,
                    false => Evaluated::No,
                };
                match evaluated {
                    Evaluated::Yes => {
                        heads.observe(0.15, usize::from(step % 3 == 0));
                        heads.took(longer, evaluated);
                        late += usize::from(step >= 500);
                    }
                    Evaluated::No => heads.took(1.0, evaluated),
                }
                // A pause of the machine.
                heads.took(50.0, Evaluated::No);
            }
            assert_eq!(late > 400, is_worth_it, "{late} of 500 at {longer}");
            assert!(is_worth_it || late < 50, "{late} of 500 at {longer}");
        }
    }
}

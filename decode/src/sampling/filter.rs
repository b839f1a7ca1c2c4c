//! Top-k, top-p and min-p: which tokens may be sampled at all.

use super::params::SamplingParams;
use super::scan::{self, LANES, Survey, Width};
use super::strongest::{self, Key};
use crate::math;
use alloc::vec::Vec;

/// Which tokens survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Survivors {
    /// All that are close enough to the strongest logit: see [`Distance`].
    Near,
    /// Those whose keys the filter left in its list, and of them those that are
    /// close enough.
    Listed,
}

/// Min-p as a distance: `exp((l - strongest) / T) >= min_p` in logarithms, which
/// needs no exponential per token and cannot contradict the order of the logits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Distance {
    strongest: f64,
    temperature: f64,
    /// `ln(min_p)`; minus infinity if the filter is off.
    lowest: f64,
}

impl Distance {
    pub(super) fn new(strongest: f32, params: &SamplingParams) -> Distance {
        Distance {
            strongest: f64::from(strongest),
            temperature: f64::from(params.temperature),
            lowest: math::ln(f64::from(params.min_p)),
        }
    }

    /// `(l - strongest) / T`, the score of a token before the noise. Subtracting
    /// first keeps the noise from being rounded away beside a huge logit.
    #[inline]
    pub(super) fn of(&self, logit: f32) -> f64 {
        (f64::from(logit) - self.strongest) / self.temperature
    }

    /// A logit below which no token survives min-p; the lowest finite number if
    /// the filter is off. Rounded down generously: [`Distance::allows`] decides.
    pub(super) fn cutoff(&self) -> f32 {
        let reach = self.temperature * self.lowest;
        let slack = 1e-6 * (self.strongest.abs() - reach) + f64::from(f32::MIN_POSITIVE);
        ((self.strongest + reach - slack) as f32).max(f32::MIN)
    }

    /// Whether a token at this distance survives min-p.
    #[inline]
    pub(super) fn allows(&self, distance: f64) -> bool {
        distance >= self.lowest && distance > f64::NEG_INFINITY
    }
}

/// Which tokens survive all filters, asked one by one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kept {
    /// Every filter keeps the strongest tokens, so the weakest of those listed shows which tokens survive.
    weakest: Key,
    distance: Distance,
}

impl Kept {
    #[inline]
    pub(super) fn holds(&self, id: u32, logit: f32) -> bool {
        strongest::key(logit, id) >= self.weakest && self.distance.allows(self.distance.of(logit))
    }
}

/// The filters' reusable memory.
#[derive(Debug, Default)]
pub(super) struct Filter {
    keys: Vec<Key>,
    /// By token id, relative to the strongest; only those of weighed tokens count.
    weights: Vec<f32>,
}

impl Filter {
    /// Applies top-k, then top-p. Min-p is the same before and after them (both
    /// keep the strongest token, which it is relative to), so it is left to
    /// [`Distance`].
    pub(super) fn apply(
        &mut self,
        width: Width,
        logits: &[f32],
        survey: &Survey,
        params: &SamplingParams,
    ) -> Survivors {
        let top_k = params.top_k as usize;
        let by_count = top_k > 0 && top_k < logits.len();
        let by_mass = params.top_p < 1.0;
        if by_count {
            strongest::select(width, logits, survey, top_k, &mut self.keys);
        }
        if by_mass {
            let (strongest, _) = survey.strongest();
            self.weights.resize(logits.len(), 0.0);
            let mass = if by_count {
                self.weigh_listed(logits, strongest, params.temperature)
            } else {
                let mass = scan::weigh(
                    width,
                    logits,
                    strongest,
                    params.temperature,
                    &mut self.weights,
                );
                self.list_heavy(width, mass, params.top_p, logits);
                mass
            };
            self.keep_mass(f64::from(params.top_p) * mass);
        }
        if by_count || by_mass {
            Survivors::Listed
        } else {
            Survivors::Near
        }
    }

    /// Which tokens survive after [`Filter::apply`] has said how they are told.
    pub(super) fn kept(&self, survivors: Survivors, distance: Distance) -> Kept {
        let weakest = match survivors {
            Survivors::Near => 0,
            Survivors::Listed => self.keys.iter().copied().min().unwrap_or(0),
        };
        Kept { weakest, distance }
    }

    /// The keys of the `count` strongest tokens, strongest first.
    pub(super) fn strongest_sorted(
        &mut self,
        width: Width,
        logits: &[f32],
        survey: &Survey,
        count: usize,
    ) -> &[Key] {
        strongest::select(width, logits, survey, count, &mut self.keys);
        self.keys.sort_unstable_by(|a, b| b.cmp(a));
        &self.keys
    }

    /// The survivors' weights relative to the strongest token's, summed in the order of [`scan::weigh`].
    pub(super) fn mass(
        &mut self,
        width: Width,
        logits: &[f32],
        strongest: f32,
        params: &SamplingParams,
        (survivors, distance): (Survivors, Distance),
    ) -> f64 {
        if survivors == Survivors::Near && params.min_p == 0.0 {
            self.weights.resize(logits.len(), 0.0);
            return scan::weigh(
                width,
                logits,
                strongest,
                params.temperature,
                &mut self.weights,
            );
        }
        let mut sums = [0.0; LANES];
        let mut add = |id: usize, logit: f32| {
            if distance.allows(distance.of(logit)) {
                let weight = scan::weight(logit, strongest, params.temperature);
                sums[id % LANES] += f64::from(weight);
            }
        };
        match survivors {
            Survivors::Near => {
                for (id, &logit) in logits.iter().enumerate() {
                    add(id, logit);
                }
            }
            Survivors::Listed => {
                self.keys.sort_unstable_by_key(|&key| strongest::id(key));
                for &key in &self.keys {
                    let id = strongest::id(key) as usize;
                    add(id, logits[id]);
                }
            }
        }
        scan::reduce(sums)
    }

    /// The keys of the survivors after [`Survivors::Listed`].
    pub(super) fn listed(&self) -> &[Key] {
        &self.keys
    }

    /// The sum of the listed tokens' weights in the same order as
    /// [`scan::weigh`] would take it with the other tokens' weights at zero.
    fn weigh_listed(&mut self, logits: &[f32], strongest: f32, temperature: f32) -> f64 {
        self.keys.sort_unstable_by_key(|&key| strongest::id(key));
        let mut sums = [0.0; LANES];
        for &key in &self.keys {
            let id = strongest::id(key) as usize;
            let weight = scan::weight(logits[id], strongest, temperature);
            self.weights[id] = weight;
            sums[id % LANES] += f64::from(weight);
        }
        scan::reduce(sums)
    }

    /// Lists the tokens that can be in the nucleus. Those below an equal share of
    /// the mass that may be lost cannot add up to it, so all others hold at
    /// least `top_p` together; the factor covers the roundings of the sums.
    fn list_heavy(&mut self, width: Width, mass: f64, top_p: f32, logits: &[f32]) {
        let share = (1.0 - f64::from(top_p)) * mass / logits.len() as f64 * 0.99;
        let floor = (share as f32).max(f32::MIN_POSITIVE);
        self.keys.clear();
        let mut add = |first: usize, block: &[f32]| {
            for (offset, &weight) in block.iter().enumerate() {
                if weight >= floor {
                    let id = first + offset;
                    self.keys.push(strongest::key(logits[id], id as u32));
                }
            }
        };
        let mut from = 0;
        while let Some(block) = scan::next_strong_block(width, &self.weights, from, floor) {
            let first = block * scan::BLOCK;
            add(first, &self.weights[first..first + scan::BLOCK]);
            from = block + 1;
        }
        let tail = logits.len() - logits.len() % scan::BLOCK;
        add(tail, &self.weights[tail..]);
    }

    /// Keeps the shortest run of listed tokens, strongest first, whose weights
    /// reach the wanted mass; at least one. Sorted piece by piece, because
    /// the run is usually far shorter than the list.
    fn keep_mass(&mut self, wanted: f64) {
        let mut reached = 0.0;
        let mut sorted = 0;
        let mut piece = 32;
        while sorted < self.keys.len() {
            let rest = &mut self.keys[sorted..];
            if rest.len() > piece {
                rest.select_nth_unstable_by(piece, |a, b| b.cmp(a));
            }
            let length = piece.min(rest.len());
            rest[..length].sort_unstable_by(|a, b| b.cmp(a));
            for (offset, &key) in rest[..length].iter().enumerate() {
                reached += f64::from(self.weights[strongest::id(key) as usize]);
                if reached >= wanted {
                    self.keys.truncate(sorted + offset + 1);
                    return;
                }
            }
            sorted += length;
            piece *= 4;
        }
    }
}

//! What a step costs, from measured steps: the basis of every decision about rows.

use crate::Time;

/// Step time as a function of the number of rows: `max(floor, a + b * rows)`, fitted to recent steps by
/// exponentially weighted least squares.
#[derive(Clone, Debug)]
pub struct CostModel {
    floor_us: f64,
    weight: f64,
    rows: f64,
    time: f64,
    rows_rows: f64,
    rows_time: f64,
}

/// How much an observation is worth when the next one comes: about the last fifty steps count.
const DECAY: f64 = 0.98;

impl CostModel {
    /// A model without observations. No step takes less than `floor` (the pace of a paced worker).
    pub fn new(floor: Time) -> Self {
        CostModel {
            floor_us: floor.as_secs_f64() * 1e6,
            weight: 0.0,
            rows: 0.0,
            time: 0.0,
            rows_rows: 0.0,
            rows_time: 0.0,
        }
    }

    /// Learns from a step: its rows and its computing time, padding not included.
    pub fn observe(&mut self, rows: usize, time: Time) {
        let (x, y) = (rows as f64, time.as_secs_f64() * 1e6);
        self.weight = self.weight * DECAY + 1.0;
        self.rows = self.rows * DECAY + x;
        self.time = self.time * DECAY + y;
        self.rows_rows = self.rows_rows * DECAY + x * x;
        self.rows_time = self.rows_time * DECAY + x * y;
    }

    /// Expected time of a step of `rows` rows, microseconds; at least 1.
    pub fn estimate_us(&self, rows: usize) -> f64 {
        if self.weight < 1.0 {
            return self.floor_us.max(1.0);
        }
        let (mean_rows, mean_time) = (self.rows / self.weight, self.time / self.weight);
        let variance = self.rows_rows / self.weight - mean_rows * mean_rows;
        let covariance = self.rows_time / self.weight - mean_rows * mean_time;
        // Steps of one size say nothing about the slope; more rows never make a step cheaper.
        let slope = if variance > 0.25 {
            (covariance / variance).clamp(0.0, mean_time / mean_rows.max(1.0))
        } else {
            0.0
        };
        (mean_time + slope * (rows as f64 - mean_rows))
            .max(self.floor_us)
            .max(1.0)
    }

    /// The same, once a step was measured or there is a floor.
    pub fn measured_us(&self, rows: usize) -> Option<f64> {
        (self.weight >= 1.0 || self.floor_us > 0.0).then(|| self.estimate_us(rows))
    }

    /// The least that a step of `rows` rows could take, microseconds, if measured steps were up to `times` as long as they
    /// had to be; no less than the floor.
    pub fn least_us(&self, rows: usize, times: f64) -> f64 {
        (self.estimate_us(rows) / times).max(self.floor_us).max(1.0)
    }

    /// The share of a step of `all` rows that would be saved without `rows` of them.
    pub fn share_of(&self, rows: usize, all: usize) -> f64 {
        match all.saturating_sub(rows) {
            0 => 1.0,
            others => 1.0 - self.estimate_us(others) / self.estimate_us(all),
        }
    }

    /// How many of `values` (best first) to add when `base_rows` rows worth `base_value` are computed anyway: the
    /// prefix with the most value per time.
    pub fn best_prefix(&self, base_rows: usize, base_value: f64, values: &[f64]) -> usize {
        let mut best = (0, base_value / self.estimate_us(base_rows));
        let mut total = base_value;
        for (taken, value) in values.iter().enumerate() {
            total += value;
            let rate = total / self.estimate_us(base_rows + taken + 1);
            if rate >= best.1 {
                best = (taken + 1, rate);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(per_row_us: f64) -> CostModel {
        let mut model = CostModel::new(Time::ZERO);
        for step in 0..100 {
            let rows = 1 + step % 16;
            model.observe(
                rows,
                Time::from_secs_f64((1000.0 + per_row_us * rows as f64) * 1e-6),
            );
        }
        model
    }

    #[test]
    fn it_recovers_the_slope() {
        let model = model(50.0);
        assert!((model.estimate_us(1) - 1050.0).abs() < 1.0);
        assert!((model.estimate_us(32) - 2600.0).abs() < 5.0);
    }

    #[test]
    fn cheap_rows_are_taken_and_dear_rows_are_not() {
        let values = [0.6, 0.4, 0.2, 0.1, 0.01];
        assert_eq!(model(0.0).best_prefix(1, 1.0, &values), 5);
        assert_eq!(model(5000.0).best_prefix(1, 1.0, &values), 0);
        let some = model(150.0).best_prefix(1, 1.0, &values);
        assert!((1..5).contains(&some), "{some}");
    }

    #[test]
    fn a_pace_makes_rows_free_below_it() {
        let mut model = CostModel::new(Time::from_millis(20));
        for rows in 1..10 {
            model.observe(rows, Time::from_millis(rows as u64));
        }
        assert_eq!(model.estimate_us(9), 20_000.0);
        assert!(model.estimate_us(40) > 39_000.0);
    }
}

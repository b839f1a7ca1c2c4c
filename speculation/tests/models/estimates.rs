//! Calibration and the cost of a step, against what they are supposed to estimate.

use proptest::prelude::*;
use speculation::Time;
use speculation::calibration::{Calibration, Feature, Outcome};
use speculation::cost::CostModel;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A cell learns its own frequency, keeps learning after its memory is full, and leaves its neighbours alone.
    #[test]
    fn calibration_follows_the_frequency(
        rank in 0usize..8,
        weight in 0.0f32..=1.0,
        percent in (0usize..=100, 0usize..=100),
    ) {
        let mut calibration = Calibration::default();
        let feature = Feature::new(rank, weight);
        let other = Feature::new(rank, if weight > 0.5 { 0.02 } else { 0.98 });
        let before = calibration.probability(other);
        for percent in [percent.0, percent.1] {
            for turn in 0..30_000usize {
                // 37 is coprime to 100: every hundred turns hold each remainder once.
                let outcome = Outcome::of(u32::from(turn * 37 % 100 < percent), 1);
                calibration.observe(feature, outcome);
            }
            let want = percent as f32 / 100.0;
            prop_assert!((calibration.probability(feature) - want).abs() < 0.03);
        }
        prop_assert_eq!(calibration.probability(other), before);
    }

    /// Whatever the inputs, a surer guess of the same rank starts out as worth at least as much.
    #[test]
    fn a_surer_guess_is_worth_no_less(rank in 0usize..8, a in 0.0f32..=1.0, b in 0.0f32..=1.0) {
        let calibration = Calibration::default();
        let (low, high) = if a < b { (a, b) } else { (b, a) };
        let worth = |weight| calibration.probability(Feature::new(rank, weight));
        prop_assert!(worth(low) <= worth(high));
        prop_assert!(worth(low) > 0.0 && worth(high) < 1.0);
    }

    #[test]
    fn cost_recovers_a_line_and_never_falls(
        base in 100.0f64..20_000.0,
        per_row in 0.0f64..500.0,
        sizes in prop::collection::vec(1usize..64, 20..200),
    ) {
        let mut model = CostModel::new(Time::ZERO);
        for &rows in &sizes {
            let us = base + per_row * rows as f64;
            model.observe(rows, Time::from_secs_f64(us * 1e-6));
        }
        let spread = sizes.iter().rev().take(20).any(|&rows| rows.abs_diff(sizes[sizes.len() - 1]) > 4);
        if spread {
            for rows in [1, 8, 40] {
                let want = base + per_row * rows as f64;
                prop_assert!((model.estimate_us(rows) - want).abs() < 0.01 * want + 2.0);
            }
        }
        for rows in 1..64 {
            prop_assert!(model.estimate_us(rows + 1) >= model.estimate_us(rows));
        }
    }

    /// Any times at all: estimates are finite, positive, at least the pace and never fall with more rows.
    #[test]
    fn cost_survives_any_times(
        pace_us in 0u64..50_000,
        steps in prop::collection::vec((0usize..2000, 0u64..10_000_000), 0..100),
    ) {
        let mut model = CostModel::new(Time::from_micros(pace_us));
        for (rows, us) in steps {
            model.observe(rows, Time::from_micros(us));
            let mut last = 0.0;
            for rows in [0, 1, 2, 64, 4096] {
                let estimate = model.estimate_us(rows);
                prop_assert!(estimate.is_finite() && estimate >= 1.0);
                prop_assert!(estimate >= pace_us as f64 * (1.0 - 1e-9));
                prop_assert!(estimate >= last * (1.0 - 1e-9));
                last = estimate;
            }
        }
    }

    /// The chosen prefix has the best value per time of all prefixes.
    #[test]
    fn the_best_prefix_is_best(
        line in (100.0f64..5000.0, 0.0f64..2000.0),
        base_rows in 0usize..8,
        mut values in prop::collection::vec(0.0f64..=1.0, 0..20),
    ) {
        values.sort_by(|a, b| b.total_cmp(a));
        let mut model = CostModel::new(Time::ZERO);
        for rows in (1..32).cycle().take(200) {
            model.observe(rows, Time::from_secs_f64((line.0 + line.1 * rows as f64) * 1e-6));
        }
        let rate = |taken: usize| {
            (1.0 + values[..taken].iter().sum::<f64>()) / model.estimate_us(base_rows + taken)
        };
        let taken = model.best_prefix(base_rows, 1.0, &values);
        for other in 0..=values.len() {
            prop_assert!(rate(taken) >= rate(other) * (1.0 - 1e-9));
        }
    }
}

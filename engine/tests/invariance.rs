//! The engine's law: a row's logits depend on nothing but its own token path, bit for bit.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use candle_core::{Device, Tensor};
use decode::{Ask, CacheOp, Row, StepPlan};
use engine::cpu::kernels::{Matmul, PackedWeight, Rows, RowsMut};
use engine::{Backend, CpuEngine, EngineOptions, WeightDtype};
use offshoot_engine as engine;
use proptest::prelude::*;
use safetensors::Dtype;
use support::plain::{Dice, Plain, Reference};
use support::schedule::{Check, Schedule, run};
use support::{
    Asked, append, append_to, bits, grow, logits, model, node, random_tree, row, synthetic,
};

/// Sizes for schedules over three sequences.
fn options(dtype: WeightDtype) -> EngineOptions {
    EngineOptions {
        dtype: Some(dtype),
        scratch_rows: 40,
        // Whatever a schedule draws fits in a step: three sequences, fewer than 40 appended and at most 24 tree rows each.
        max_rows: 3 * (40 + 24),
        ..EngineOptions::for_sequences(96, 4)
    }
}

fn load(dir: &Path, dtype: WeightDtype) -> CpuEngine {
    CpuEngine::load(dir, &options(dtype)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_schedules_on_an_awkward_model(seed in any::<u64>(), bf16 in any::<bool>()) {
        let dir = synthetic::checkpoint(Dtype::F32, 2);
        let dtype = if bf16 { WeightDtype::Bf16 } else { WeightDtype::F32 };
        let mut plain = Plain::new(load(dir.path(), dtype));
        let result = run(&mut load(dir.path(), dtype), &mut plain, &Schedule::small(seed));
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    }
}

#[test]
fn random_schedules_on_the_bundled_draft() {
    let mut plain = Plain::new(load(&model("draft"), WeightDtype::Bf16));
    for seed in 0..6 {
        let mut engine = load(&model("draft"), WeightDtype::Bf16);
        run(&mut engine, &mut plain, &Schedule::small(seed)).unwrap();
    }
}

#[test]
fn every_row_count_from_1_to_64_on_the_bundled_target() {
    let mut plain = Plain::new(load(&model("target"), WeightDtype::Bf16));
    let options = EngineOptions {
        scratch_rows: 64,
        max_rows: 64,
        ..EngineOptions::for_sequences(96, 1)
    };
    let mut engine = CpuEngine::load(&model("target"), &options).unwrap();
    let prompt: Vec<u32> = (0..37).map(|i| 7 + i * 31 % 2000).collect();
    let seq = engine.open(64).unwrap();
    assert!(append_to(&mut engine, seq, &prompt, Asked::None).is_empty());
    let mut dice = Dice(5);
    for rows in (1..=64).step_by(3).chain([2, 8, 12, 32, 63]) {
        let (tree, paths) = random_tree(&mut dice, &prompt, rows);
        let found = grow(&mut engine, seq, &tree);
        for (i, (found, path)) in found.iter().zip(&paths).enumerate() {
            assert_eq!(bits(found), plain.bits(path), "row {i} of {rows}");
        }
        let nodes = tree.iter().map(|row| row.node).collect();
        engine.apply(seq, &CacheOp::Drop(nodes)).unwrap();
    }
}

/// candle's own matmul in place of the lanes.
struct Stock(Mutex<HashMap<usize, Tensor>>);

impl Matmul for Stock {
    fn matmul(&self, x: Rows<'_>, weight: &PackedWeight, out: &mut RowsMut<'_>) {
        if x.rows() == 0 {
            return;
        }
        let (inputs, outputs) = (weight.inputs(), weight.outputs());
        let mut known = self.0.lock().unwrap();
        let stored = known
            .entry(std::ptr::from_ref(weight) as usize)
            .or_insert_with(|| {
                let values: Vec<f32> = (0..outputs)
                    .flat_map(|n| (0..inputs).map(move |k| weight.at(n, k)))
                    .collect();
                Tensor::from_vec(values, (outputs, inputs), &Device::Cpu).unwrap()
            });
        let rows: Vec<f32> = (0..x.rows())
            .flat_map(|r| &x.row(r)[..inputs])
            .copied()
            .collect();
        let x = Tensor::from_vec(rows, (x.rows(), inputs), &Device::Cpu).unwrap();
        let y = x
            .matmul(&stored.t().unwrap())
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        for (r, y) in y.iter().enumerate() {
            out.row_mut(r)[..outputs].copy_from_slice(y);
        }
    }
}

#[test]
fn the_same_check_fails_with_the_stock_matmul() {
    let stock = || {
        let mut engine = load(&model("draft"), WeightDtype::F32);
        engine.set_matmul(Box::new(Stock(Mutex::new(HashMap::new()))));
        engine
    };
    let mut plain = Plain::new(stock());
    for (check, differs) in [
        (Check::Logits, "logits differ"),
        (Check::Answers, "answers differ"),
    ] {
        let schedule = Schedule {
            check,
            ..Schedule::small(1)
        };
        let verdict = run(&mut stock(), &mut plain, &schedule);
        let message =
            verdict.expect_err("the stock matmul keeps the law here; then what are the lanes for?");
        assert!(message.contains(differs), "{message}");
    }
}

#[test]
fn batch_mates_do_not_see_each_other() {
    let dir = synthetic::checkpoint(Dtype::F32, 2);
    let mut plain = Plain::new(load(dir.path(), WeightDtype::F32));
    let mut engine = load(dir.path(), WeightDtype::F32);
    let (a, b) = (engine.open(40).unwrap(), engine.open(40).unwrap());
    let (one, two) = ([1, 2, 3, 4, 5], [9, 8, 7]);
    // The same node in both: each sequence has its own.
    let with_row = |mut plan: StepPlan| {
        plan.rows = vec![row(11, None, 3)];
        plan
    };
    let batch = [
        (a, &with_row(append(&one, Asked::All))),
        (b, &with_row(append(&two, Asked::Last))),
    ];
    let found = logits(&mut engine, &batch);
    assert_eq!(found.len(), 5 + 1 + 1 + 1);
    for i in 0..5 {
        assert_eq!(bits(&found[i]), plain.bits(&one[..=i]));
    }
    assert_eq!(bits(&found[5]), plain.bits(&[1, 2, 3, 4, 5, 11]));
    assert_eq!(bits(&found[6]), plain.bits(&two));
    assert_eq!(bits(&found[7]), plain.bits(&[9, 8, 7, 11]));
    // Rows that are asked for nothing are cached all the same.
    let mut below = row(12, Some(3), 4);
    let silent = Row {
        ask: Ask::Nothing,
        ..row(13, Some(4), 5)
    };
    let found = grow(&mut engine, a, &[below.clone(), silent]);
    assert_eq!(found.len(), 1);
    assert_eq!(bits(&found[0]), plain.bits(&[1, 2, 3, 4, 5, 11, 12]));
    below.node = node(6);
    below.parent = Some(node(5));
    let found = grow(&mut engine, a, &[below]);
    assert_eq!(
        bits(&found[0]),
        plain.bits(&[1, 2, 3, 4, 5, 11, 12, 13, 12])
    );
}

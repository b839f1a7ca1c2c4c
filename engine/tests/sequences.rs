//! What callers may and may not do with sequences: reservations, refusals, interrupts, rows that are not numbers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::ops::ControlFlow;

use engine::{
    AppendLogits, Engine, EngineError, EngineOptions, Parent, SeqId, SeqRows, Slot, StepEnd,
    StepOutput, TreeRow,
};
use offshoot_engine as engine;
use safetensors::Dtype;
use support::{append, bits, step, synthetic, tree};

fn engine() -> Engine {
    let dir = synthetic::checkpoint(Dtype::F32, 2);
    let options = EngineOptions {
        scratch_rows: 8,
        max_rows: 16,
        ..EngineOptions::for_sequences(32, 2)
    };
    Engine::load(dir.path(), &options).unwrap()
}

fn row(token: u32, parent: Parent, slot: u16) -> TreeRow {
    TreeRow {
        token,
        parent,
        slot: Slot(slot),
    }
}

fn refused(engine: &mut Engine, batch: &[SeqRows<'_>]) -> EngineError {
    engine
        .step(batch, &mut StepOutput::new(), &mut |_| {
            panic!("nothing may be computed")
        })
        .unwrap_err()
}

#[test]
fn pages_are_reserved_at_open_and_come_back() {
    let mut engine = engine();
    assert_eq!((engine.free_pages(), engine.total_pages()), (4, 4));
    let a = engine.open(33).unwrap();
    assert_eq!(engine.free_pages(), 1);
    assert_eq!(
        engine.open(17),
        Err(EngineError::CacheFull { needed: 2, free: 1 })
    );
    let b = engine.open(16).unwrap();
    assert_eq!(
        engine.open(0),
        Err(EngineError::TooManySequences { most: 2 })
    );
    engine.release(a);
    engine.release(a);
    assert_eq!(engine.free_pages(), 3);
    let c = engine.open(48).unwrap();
    assert_ne!(a, c);
    assert_eq!(
        refused(&mut engine, &[append(a, &[1], AppendLogits::Last)]),
        EngineError::UnknownSequence
    );
    assert_eq!(
        engine.open(257),
        Err(EngineError::ContextExceeded {
            len: 257,
            most: 256
        })
    );
    engine.release(b);
    engine.release(c);
    assert_eq!(engine.free_pages(), 4);
}

#[test]
fn everything_is_checked_before_anything_is_computed() {
    let mut engine = engine();
    let seq = engine.open(10).unwrap();
    let other = engine.open(10).unwrap();
    step(
        &mut engine,
        &[append(seq, &[1, 2], AppendLogits::Last)],
        &mut StepOutput::new(),
    );
    step(
        &mut engine,
        &[tree(seq, &[row(5, Parent::Tail, 2)])],
        &mut StepOutput::new(),
    );
    let token = EngineError::TokenOutOfRange {
        token: 101,
        vocab: 101,
    };
    assert_eq!(
        refused(&mut engine, &[append(seq, &[101], AppendLogits::Last)]),
        token
    );
    assert_eq!(
        refused(&mut engine, &[tree(seq, &[row(101, Parent::Tail, 0)])]),
        token
    );
    assert_eq!(
        refused(&mut engine, &[append(seq, &[1; 9], AppendLogits::Last)]),
        EngineError::SequenceFull {
            len: 11,
            max_len: 10
        }
    );
    assert_eq!(
        refused(
            &mut engine,
            &[
                append(seq, &[1; 8], AppendLogits::Last),
                append(other, &[1; 9], AppendLogits::None)
            ]
        ),
        EngineError::TooManyRows { rows: 17, most: 16 }
    );
    assert_eq!(
        refused(
            &mut engine,
            &[
                append(seq, &[1], AppendLogits::Last),
                append(seq, &[1], AppendLogits::Last)
            ]
        ),
        EngineError::SequenceTwice
    );
    for (rows, error) in [
        (
            vec![row(1, Parent::Tail, 8)],
            EngineError::SlotOutOfRange {
                slot: Slot(8),
                scratch_rows: 8,
            },
        ),
        (
            vec![row(1, Parent::Tail, 2)],
            EngineError::SlotInUse { slot: Slot(2) },
        ),
        (
            vec![row(1, Parent::Tail, 0), row(1, Parent::Tail, 0)],
            EngineError::SlotInUse { slot: Slot(0) },
        ),
        (
            vec![row(1, Parent::Slot(Slot(7)), 0)],
            EngineError::UnknownParent { slot: Slot(7) },
        ),
        (
            vec![row(1, Parent::Slot(Slot(0)), 0)],
            EngineError::UnknownParent { slot: Slot(0) },
        ),
        (
            vec![row(1, Parent::Slot(Slot(1)), 0), row(1, Parent::Tail, 1)],
            EngineError::UnknownParent { slot: Slot(1) },
        ),
        (
            vec![row(1, Parent::Slot(Slot(999)), 0)],
            EngineError::UnknownParent { slot: Slot(999) },
        ),
    ] {
        assert_eq!(refused(&mut engine, &[tree(seq, &rows)]), error);
    }
    // An append moves the tail away from under the rows of earlier steps.
    let below = [row(1, Parent::Slot(Slot(2)), 0)];
    let batch = [SeqRows {
        seq,
        append: &[3],
        append_logits: AppendLogits::None,
        tree: &below,
    }];
    assert_eq!(
        refused(&mut engine, &batch),
        EngineError::UnknownParent { slot: Slot(2) }
    );
    assert_eq!(engine.len(seq), 2);
    // The row of the earlier step is still there.
    step(&mut engine, &[tree(seq, &below)], &mut StepOutput::new());
}

#[test]
fn commits_follow_the_chain() {
    let mut engine = engine();
    let seq = engine.open(5).unwrap();
    step(
        &mut engine,
        &[append(seq, &[1, 2], AppendLogits::None)],
        &mut StepOutput::new(),
    );
    let slot = |s| Parent::Slot(Slot(s));
    let rows = [
        row(3, Parent::Tail, 0),
        row(4, slot(0), 1),
        row(5, slot(1), 2),
        row(6, slot(0), 3),
        row(7, slot(2), 4),
    ];
    step(&mut engine, &[tree(seq, &rows)], &mut StepOutput::new());
    assert_eq!(
        engine.commit(seq, &[Slot(1)]),
        Err(EngineError::BrokenPath { slot: Slot(1) })
    );
    assert_eq!(
        engine.commit(seq, &[Slot(0), Slot(2)]),
        Err(EngineError::BrokenPath { slot: Slot(2) })
    );
    assert_eq!(
        engine.commit(seq, &[Slot(0), Slot(0)]),
        Err(EngineError::BrokenPath { slot: Slot(0) })
    );
    assert_eq!(
        engine.commit(seq, &[Slot(0), Slot(1), Slot(2), Slot(4)]),
        Err(EngineError::SequenceFull { len: 6, max_len: 5 })
    );
    engine.commit(seq, &[Slot(0), Slot(1)]).unwrap();
    assert_eq!(engine.len(seq), 4);
    // The loser is gone and its slot free; the committed row's child hangs from the tail.
    assert_eq!(
        refused(&mut engine, &[tree(seq, &[row(9, slot(3), 5)])]),
        EngineError::UnknownParent { slot: Slot(3) }
    );
    engine.free(seq, &[Slot(6), Slot(500)]);
    engine.commit(seq, &[Slot(2)]).unwrap();
    assert_eq!(engine.len(seq), 5);
    assert_eq!(
        engine.truncate(seq, 6),
        Err(EngineError::TruncateBeyondEnd {
            len: 6,
            committed: 5
        })
    );
    engine.truncate(seq, 3).unwrap();
    assert_eq!(engine.len(seq), 3);
}

#[test]
fn a_row_below_a_freed_one_cannot_be_read() {
    let mut engine = engine();
    let seq = engine.open(8).unwrap();
    step(
        &mut engine,
        &[append(seq, &[1], AppendLogits::None)],
        &mut StepOutput::new(),
    );
    let rows = [
        row(3, Parent::Tail, 0),
        row(4, Parent::Slot(Slot(0)), 1),
        row(5, Parent::Slot(Slot(1)), 2),
    ];
    step(&mut engine, &[tree(seq, &rows)], &mut StepOutput::new());
    engine.free(seq, &[Slot(0)]);
    for slot in [1, 2] {
        let below = [row(6, Parent::Slot(Slot(slot)), 5)];
        assert_eq!(
            refused(&mut engine, &[tree(seq, &below)]),
            EngineError::UnknownParent { slot: Slot(slot) }
        );
        assert_eq!(
            engine.commit(seq, &[Slot(slot)]),
            Err(EngineError::BrokenPath { slot: Slot(slot) })
        );
    }
}

#[test]
fn an_interrupted_step_leaves_no_trace() {
    let mut engine = engine();
    let seq = engine.open(20).unwrap();
    let mut output = StepOutput::new();
    step(
        &mut engine,
        &[append(seq, &[1, 2, 3], AppendLogits::None)],
        &mut output,
    );
    let first = [row(8, Parent::Tail, 0)];
    step(&mut engine, &[tree(seq, &first)], &mut output);
    let second = [row(9, Parent::Slot(Slot(0)), 1)];
    for stop in 0..2 {
        let mut seen = Vec::new();
        let batch = [SeqRows {
            seq,
            append: &[],
            append_logits: AppendLogits::None,
            tree: &second,
        }];
        let end = engine.step(&batch, &mut output, &mut |layer| {
            seen.push(layer);
            if layer == stop {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!((end, output.rows()), (Ok(StepEnd::Interrupted), 0));
        assert_eq!(seen, (0..=stop).collect::<Vec<_>>());
        let batch = [append(seq, &[7], AppendLogits::Last)];
        let end = engine
            .step(&batch, &mut output, &mut |_| ControlFlow::Break(()))
            .unwrap();
        assert_eq!((end, engine.len(seq)), (StepEnd::Interrupted, 3));
    }
    step(&mut engine, &[tree(seq, &second)], &mut output);
    let interrupted = bits(output.row(0));
    let plain = engine.open(20).unwrap();
    step(
        &mut engine,
        &[append(plain, &[1, 2, 3, 8, 9], AppendLogits::Last)],
        &mut output,
    );
    assert_eq!(interrupted, bits(output.row(0)));
}

#[test]
fn an_empty_step_is_done_at_once() {
    let mut engine = engine();
    let seq = engine.open(4).unwrap();
    let mut output = StepOutput::new();
    step(&mut engine, &[], &mut output);
    step(&mut engine, &[tree(seq, &[])], &mut output);
    assert_eq!(output.rows(), 0);
}

/// An engine for which token 50 is not a number.
fn poisoned() -> Engine {
    let dir = synthetic::checkpoint(Dtype::F32, 2);
    let mut tensors = synthetic::tensors(Dtype::F32, 2);
    let embedding = tensors.get_mut("model.embed_tokens.weight").unwrap();
    let width = embedding.bytes.len() / synthetic::VOCAB;
    embedding.bytes[50 * width..50 * width + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    synthetic::write(dir.path(), &synthetic::config(2), &tensors);
    let options = EngineOptions {
        scratch_rows: 8,
        max_rows: 32,
        ..EngineOptions::for_sequences(32, 2)
    };
    Engine::load(dir.path(), &options).unwrap()
}

#[test]
fn a_row_that_is_not_a_number_spoils_its_own_path_only() {
    let mut engine = poisoned();
    let mut output = StepOutput::new();
    let clean: SeqId = engine.open(16).unwrap();
    let tokens = [1, 2, 3, 4, 5, 6];
    step(
        &mut engine,
        &[append(clean, &tokens, AppendLogits::All)],
        &mut output,
    );
    let expected: Vec<_> = (0..tokens.len()).map(|i| bits(output.row(i))).collect();
    engine.release(clean);

    let (good, bad) = (engine.open(16).unwrap(), engine.open(16).unwrap());
    let batch = [
        append(bad, &[1, 2, 50, 4], AppendLogits::All),
        append(good, &tokens, AppendLogits::All),
    ];
    step(&mut engine, &batch, &mut output);
    // Rows before the poisoned one, in the same sequence and the same page, are as they should be.
    let healthy: Vec<bool> = (0..output.rows()).map(|i| output.healthy(i)).collect();
    assert_eq!(
        healthy,
        [true, true, false, false, true, true, true, true, true, true]
    );
    assert_eq!(bits(output.row(1)), expected[1]);
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(bits(output.row(4 + i)), *expected);
    }
    // A poisoned branch does not reach its siblings.
    engine.truncate(bad, 2).unwrap();
    let rows = [
        row(50, Parent::Tail, 0),
        row(3, Parent::Tail, 1),
        row(4, Parent::Slot(Slot(0)), 2),
    ];
    step(&mut engine, &[tree(bad, &rows)], &mut output);
    assert_eq!(
        [output.healthy(0), output.healthy(1), output.healthy(2)],
        [false, true, false]
    );
    assert_eq!(bits(output.row(1)), expected[2]);
    // Nor do the pages it leaves behind poison their next owner.
    engine.release(bad);
    engine.release(good);
    for _ in 0..2 {
        let next = engine.open(16).unwrap();
        step(
            &mut engine,
            &[append(next, &tokens, AppendLogits::Last)],
            &mut output,
        );
        assert_eq!(bits(output.row(0)), expected[5]);
    }
}

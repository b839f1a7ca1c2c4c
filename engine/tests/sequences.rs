//! What callers may and may not do with sequences: reservations, refusals, interrupts, rows that are not numbers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::ops::ControlFlow;

use decode::{Answer, Ask, CacheOp, NodeId, Row};
use engine::{Backend, CpuEngine, EngineError, EngineOptions, StepEnd};
use offshoot_engine as engine;
use safetensors::Dtype;
use support::steps::{refused, small, step};
use support::{Asked, append, append_to, bits, grow, healthy, logits, node, row, synthetic, tree};

fn keep(nodes: &[u32]) -> CacheOp {
    CacheOp::Keep(nodes.iter().map(|&index| node(index)).collect())
}

#[test]
fn pages_are_taken_as_the_text_grows_and_come_back() {
    let mut engine = small();
    assert_eq!((engine.free_pages(), engine.facts().total_pages), (4, 4));
    let (a, b) = (engine.open(64).unwrap(), engine.open(33).unwrap());
    assert_eq!(engine.free_pages(), 4);
    for tokens in [16, 16, 1] {
        append_to(&mut engine, a, &vec![7; tokens], Asked::Last);
    }
    assert_eq!(engine.free_pages(), 1);
    append_to(&mut engine, b, &[7; 16], Asked::Last);
    assert_eq!(
        refused(&mut engine, &[(b, append(&[7], Asked::Last))]),
        EngineError::CacheFull { needed: 1, free: 0 }
    );
    assert_eq!((engine.free_pages(), engine.len(b)), (0, 16));
    grow(&mut engine, a, &[row(1, None, 2)]);
    engine.apply(a, &keep(&[2])).unwrap();
    grow(&mut engine, b, &[row(1, None, 2)]);
    assert_eq!(
        engine.apply(b, &keep(&[2])),
        Err(EngineError::CacheFull { needed: 1, free: 0 })
    );
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
        refused(&mut engine, &[(a, append(&[1], Asked::Last))]),
        EngineError::UnknownSequence
    );
    assert_eq!((engine.len(a), engine.vacant_rows(a)), (0, 0));
    for op in [keep(&[]), CacheOp::Drop(Vec::new()), CacheOp::Shorten(0)] {
        assert_eq!(engine.apply(a, &op), Err(EngineError::UnknownSequence));
    }
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
    let mut engine = small();
    let seq = engine.open(10).unwrap();
    let other = engine.open(10).unwrap();
    append_to(&mut engine, seq, &[1, 2], Asked::Last);
    grow(&mut engine, seq, &[row(5, None, 2)]);
    let token = EngineError::TokenOutOfRange {
        token: 101,
        vocab: 101,
    };
    let mut score = append(&[1], Asked::Last);
    score.asks = vec![Ask::Score { token: 101, top: 0 }];
    for plan in [
        append(&[101], Asked::Last),
        tree(&[row(101, None, 0)]),
        score,
    ] {
        assert_eq!(refused(&mut engine, &[(seq, plan)]), token);
    }
    let mut asks = append(&[1], Asked::Last);
    asks.asks.push(Ask::Nothing);
    assert_eq!(
        refused(&mut engine, &[(seq, asks)]),
        EngineError::TooManyAsks {
            asks: 2,
            appended: 1
        }
    );
    assert_eq!(
        refused(&mut engine, &[(seq, append(&[1; 9], Asked::Last))]),
        EngineError::SequenceFull {
            len: 11,
            max_len: 10
        }
    );
    assert_eq!(
        refused(
            &mut engine,
            &[
                (seq, append(&[1; 8], Asked::Last)),
                (other, append(&[1; 9], Asked::None))
            ]
        ),
        EngineError::TooManyRows { rows: 17, most: 16 }
    );
    assert_eq!(
        refused(
            &mut engine,
            &[
                (seq, append(&[1], Asked::Last)),
                (seq, append(&[1], Asked::Last))
            ]
        ),
        EngineError::SequenceTwice
    );
    let eight: Vec<Row> = (10..18).map(|index| row(1, None, index)).collect();
    for (rows, error) in [
        (eight, EngineError::TooManyTreeRows { rows: 8, vacant: 7 }),
        (
            vec![row(1, None, 2)],
            EngineError::NodeTwice { node: node(2) },
        ),
        (
            vec![row(1, None, 0), row(1, None, 0)],
            EngineError::NodeTwice { node: node(0) },
        ),
        (
            vec![row(1, Some(7), 0)],
            EngineError::UnknownParent { node: node(7) },
        ),
        (
            vec![row(1, Some(0), 0)],
            EngineError::UnknownParent { node: node(0) },
        ),
        (
            vec![row(1, Some(1), 0), row(1, None, 1)],
            EngineError::UnknownParent { node: node(1) },
        ),
        (
            vec![row(1, Some(999), 0)],
            EngineError::UnknownParent { node: node(999) },
        ),
    ] {
        assert_eq!(refused(&mut engine, &[(seq, tree(&rows))]), error);
    }
    // A generation is part of the name.
    let reborn = NodeId {
        index: 2,
        generation: 1,
    };
    let mut below = row(1, None, 0);
    below.parent = Some(reborn);
    assert_eq!(
        refused(&mut engine, &[(seq, tree(&[below]))]),
        EngineError::UnknownParent { node: reborn }
    );
    // An append moves the end of the text away from under the rows of earlier steps.
    let below = [row(1, Some(2), 0)];
    let mut both = append(&[3], Asked::None);
    both.rows = below.to_vec();
    assert_eq!(
        refused(&mut engine, &[(seq, both)]),
        EngineError::UnknownParent { node: node(2) }
    );
    assert_eq!((engine.len(seq), engine.vacant_rows(seq)), (2, 7));
    // The row of the earlier step is still there.
    grow(&mut engine, seq, &below);
    // A node that an append drops may be computed again in the same step.
    let mut again = append(&[3], Asked::None);
    again.rows = vec![row(5, None, 2)];
    logits(&mut engine, &[(seq, &again)]);
    assert_eq!((engine.len(seq), engine.vacant_rows(seq)), (3, 7));
}

#[test]
fn positions_end_with_the_context() {
    let dir = synthetic::checkpoint(Dtype::F32, 1);
    let options = EngineOptions {
        max_rows: 256,
        ..EngineOptions::for_sequences(256, 1)
    };
    let mut engine = CpuEngine::load(dir.path(), &options).unwrap();
    let seq = engine.open(256).unwrap();
    append_to(&mut engine, seq, &[1; 255], Asked::None);
    let rows = [row(1, None, 0), row(1, Some(0), 1)];
    assert_eq!(
        refused(&mut engine, &[(seq, tree(&rows))]),
        EngineError::PositionOutOfRange {
            position: 256,
            most: 256
        }
    );
    grow(&mut engine, seq, &rows[..1]);
}

#[test]
fn what_is_kept_follows_the_chain() {
    let mut engine = small();
    let seq = engine.open(5).unwrap();
    append_to(&mut engine, seq, &[1, 2], Asked::None);
    let rows = [
        row(3, None, 0),
        row(4, Some(0), 1),
        row(5, Some(1), 2),
        row(6, Some(0), 3),
        row(7, Some(2), 4),
    ];
    grow(&mut engine, seq, &rows);
    assert_eq!(engine.vacant_rows(seq), 3);
    for (chain, broken) in [
        (&[1][..], 1),
        (&[0, 2], 2),
        (&[0, 0], 0),
        (&[9], 9),
        (&[0, 9], 9),
    ] {
        assert_eq!(
            engine.apply(seq, &keep(chain)),
            Err(EngineError::BrokenPath { node: node(broken) })
        );
    }
    assert_eq!(
        engine.apply(seq, &keep(&[0, 1, 2, 4])),
        Err(EngineError::SequenceFull { len: 6, max_len: 5 })
    );
    assert_eq!((engine.len(seq), engine.vacant_rows(seq)), (2, 3));
    engine.apply(seq, &keep(&[])).unwrap();
    assert_eq!((engine.len(seq), engine.vacant_rows(seq)), (2, 3));
    engine.apply(seq, &keep(&[0, 1])).unwrap();
    assert_eq!((engine.len(seq), engine.vacant_rows(seq)), (4, 6));
    // The loser is gone and its row vacant; the kept row's child hangs from the text.
    assert_eq!(
        refused(&mut engine, &[(seq, tree(&[row(9, Some(3), 5)]))]),
        EngineError::UnknownParent { node: node(3) }
    );
    let nobody = CacheOp::Drop(vec![node(6), node(500)]);
    engine.apply(seq, &nobody).unwrap();
    engine.apply(seq, &keep(&[2])).unwrap();
    assert_eq!((engine.len(seq), engine.vacant_rows(seq)), (5, 7));
    assert_eq!(
        engine.apply(seq, &CacheOp::Shorten(6)),
        Err(EngineError::ShortenBeyondEnd {
            len: 6,
            committed: 5
        })
    );
    engine.apply(seq, &CacheOp::Shorten(3)).unwrap();
    assert_eq!((engine.len(seq), engine.vacant_rows(seq)), (3, 8));
}

#[test]
fn a_row_below_a_dropped_one_cannot_be_read() {
    let mut engine = small();
    let seq = engine.open(8).unwrap();
    append_to(&mut engine, seq, &[1], Asked::None);
    let rows = [row(3, None, 0), row(4, Some(0), 1), row(5, Some(1), 2)];
    grow(&mut engine, seq, &rows);
    engine.apply(seq, &CacheOp::Drop(vec![node(0)])).unwrap();
    assert_eq!(engine.vacant_rows(seq), 8);
    for index in [1, 2] {
        let below = [row(6, Some(index), 5)];
        assert_eq!(
            refused(&mut engine, &[(seq, tree(&below))]),
            EngineError::UnknownParent { node: node(index) }
        );
        assert_eq!(
            engine.apply(seq, &keep(&[index])),
            Err(EngineError::BrokenPath { node: node(index) })
        );
    }
}

#[test]
fn an_interrupted_step_leaves_no_trace() {
    let mut engine = small();
    let seq = engine.open(20).unwrap();
    append_to(&mut engine, seq, &[1, 2, 3], Asked::None);
    grow(&mut engine, seq, &[row(8, None, 0)]);
    let second = [Row {
        path: vec![8, 9],
        ..row(9, Some(0), 1)
    }];
    for stop in 0..2 {
        let mut seen = Vec::new();
        let end = step(&mut engine, seq, &tree(&second), &[1, 2, 3], &mut |layer| {
            seen.push(layer);
            if layer == stop {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        assert_eq!(end, StepEnd::Interrupted);
        assert_eq!(seen, (0..=stop).collect::<Vec<_>>());
        let more = append(&[7], Asked::Last);
        let end = step(&mut engine, seq, &more, &[1, 2, 3, 7], &mut |_| {
            ControlFlow::Break(())
        });
        assert_eq!(end, StepEnd::Interrupted);
        assert_eq!((engine.len(seq), engine.vacant_rows(seq)), (3, 7));
    }
    let interrupted = grow(&mut engine, seq, &second);
    let plain = engine.open(20).unwrap();
    let found = append_to(&mut engine, plain, &[1, 2, 3, 8, 9], Asked::Last);
    assert_eq!(bits(&interrupted[0]), bits(&found[0]));
}

#[test]
fn an_empty_step_is_done_at_once() {
    let mut engine = small();
    let seq = engine.open(4).unwrap();
    assert!(logits(&mut engine, &[]).is_empty());
    assert!(grow(&mut engine, seq, &[]).is_empty());
    let nothing = &mut |_| panic!("nothing is computed");
    assert_eq!(engine.step(&mut [], nothing), Ok(StepEnd::Done(Vec::new())));
    let end = step(&mut engine, seq, &tree(&[]), &[], nothing);
    assert_eq!(end, StepEnd::Done(vec![Vec::new()]));
}

/// An engine for which token 50 is not a number.
fn poisoned() -> CpuEngine {
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
    CpuEngine::load(dir.path(), &options).unwrap()
}

#[test]
fn a_row_that_is_not_a_number_spoils_its_own_path_only() {
    let mut engine = poisoned();
    let clean = engine.open(16).unwrap();
    let tokens = [1, 2, 3, 4, 5, 6];
    let found = append_to(&mut engine, clean, &tokens, Asked::All);
    let expected: Vec<_> = found.iter().map(|row| bits(row)).collect();
    engine.release(clean);

    let (good, bad) = (engine.open(16).unwrap(), engine.open(16).unwrap());
    let batch = [
        (bad, &append(&[1, 2, 50, 4], Asked::All)),
        (good, &append(&tokens, Asked::All)),
    ];
    let found = logits(&mut engine, &batch);
    // Rows before the poisoned one, in the same sequence and the same page, are as they should be.
    let sound: Vec<bool> = found.iter().map(|row| healthy(row)).collect();
    assert_eq!(
        sound,
        [true, true, false, false, true, true, true, true, true, true]
    );
    assert_eq!(bits(&found[1]), expected[1]);
    for (i, expected) in expected.iter().enumerate() {
        assert_eq!(bits(&found[4 + i]), *expected);
    }
    // A poisoned branch does not reach its siblings, in logits or in answers.
    engine.apply(bad, &CacheOp::Shorten(2)).unwrap();
    let mut rows = [row(50, None, 0), row(3, None, 1), row(4, Some(0), 2)];
    for (row, path) in rows.iter_mut().zip([&[50][..], &[3], &[50, 4]]) {
        row.path = path.to_vec();
    }
    let found = grow(&mut engine, bad, &rows);
    let sound: Vec<bool> = found.iter().map(|row| healthy(row)).collect();
    assert_eq!(sound, [false, true, false]);
    assert_eq!(bits(&found[1]), expected[2]);
    engine.apply(bad, &CacheOp::Shorten(2)).unwrap();
    rows[2].ask = Ask::Guesses(2);
    // A walk ends at a row that is not a number.
    let below = Row {
        path: vec![50, 5],
        ..row(5, Some(0), 3)
    };
    let rows = [&rows[..], &[below]].concat();
    let go_on = &mut |_| ControlFlow::Continue(());
    let end = step(&mut engine, bad, &tree(&rows), &[1, 2], go_on);
    let StepEnd::Done(answers) = end else {
        panic!("nobody gave the step up")
    };
    assert!(
        matches!(
            answers[0][..],
            [
                Answer::NotFinite,
                Answer::Pick(_),
                Answer::NotFinite,
                Answer::Skipped
            ]
        ),
        "{answers:?}"
    );
    // Nor do the pages it leaves behind poison their next owner.
    engine.release(bad);
    engine.release(good);
    for _ in 0..2 {
        let next = engine.open(16).unwrap();
        let found = append_to(&mut engine, next, &tokens, Asked::Last);
        assert_eq!(bits(&found[0]), expected[5]);
    }
}

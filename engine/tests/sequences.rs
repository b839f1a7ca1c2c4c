//! What callers may and may not do with sequences: reservations, refusals, interrupts, rows that are not numbers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::ops::ControlFlow;

use decode::sampling::SamplingParams;
use decode::{Answer, Ask, CacheOp, NodeId, Row, SamplerState, StepPlan};
use engine::{Backend, CpuEngine, EngineError, EngineOptions, SeqId, SeqStep, StepEnd};
use offshoot_engine as engine;
use safetensors::Dtype;
use support::{Asked, append, append_to, bits, grow, healthy, logits, node, row, synthetic, tree};

fn engine() -> CpuEngine {
    let dir = synthetic::checkpoint(Dtype::F32, 2);
    let options = EngineOptions {
        scratch_rows: 8,
        max_rows: 16,
        ..EngineOptions::for_sequences(32, 2)
    };
    CpuEngine::load(dir.path(), &options).unwrap()
}

/// A step that has to be refused before anything is computed; so has reading its logits.
fn refused(engine: &mut CpuEngine, batch: &[(SeqId, StepPlan)]) -> EngineError {
    let texts: Vec<Vec<u32>> = (batch.iter())
        .map(|(seq, plan)| [&vec![1; engine.len(*seq)], &plan.append[..]].concat())
        .collect();
    let mut samplers = vec![SamplerState::default(); batch.len()];
    let parts = batch.iter().zip(&texts).zip(&mut samplers);
    let mut steps: Vec<SeqStep<'_>> = parts
        .map(|(((seq, plan), text), sampler)| SeqStep {
            seq: *seq,
            plan,
            text,
            prompt_len: 0,
            sampler,
        })
        .collect();
    let nothing = &mut |_| panic!("nothing may be computed");
    let error = engine.step(&mut steps, nothing).unwrap_err();
    let plans: Vec<(SeqId, &StepPlan)> = batch.iter().map(|(seq, plan)| (*seq, plan)).collect();
    let read = engine.read_logits(&plans, &mut |_, _, _| panic!("nothing may be computed"));
    assert_eq!(read.as_ref(), Err(&error));
    error
}

fn keep(nodes: &[u32]) -> CacheOp {
    CacheOp::Keep(nodes.iter().map(|&index| node(index)).collect())
}

#[test]
fn pages_are_reserved_at_open_and_come_back() {
    let mut engine = engine();
    assert_eq!((engine.free_pages(), engine.facts().total_pages), (4, 4));
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
    let mut engine = engine();
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
fn texts_and_paths_have_to_fit_to_what_is_computed() {
    let mut engine = engine();
    let seq = engine.open(10).unwrap();
    append_to(&mut engine, seq, &[1, 2], Asked::None);
    let mut plan = append(&[3], Asked::Last);
    plan.rows = vec![row(4, None, 0), row(5, Some(0), 1)];
    plan.rows[0].path = vec![4];
    plan.rows[1].path = vec![4, 5];
    let mut step = |plan: &StepPlan, text: &[u32]| {
        let batch = &mut [SeqStep {
            seq,
            plan,
            text,
            prompt_len: 2,
            sampler: &mut SamplerState::default(),
        }];
        engine.step(batch, &mut |_| ControlFlow::Break(()))
    };
    assert_eq!(step(&plan, &[1, 2, 3]), Ok(StepEnd::Interrupted));
    assert_eq!(step(&plan, &[1, 2, 3, 9, 9]), Ok(StepEnd::Interrupted));
    for text in [&[1, 2][..], &[1, 2, 4], &[3]] {
        let error = EngineError::TextDiffers { position: 2 };
        assert_eq!(step(&plan, text), Err(error));
    }
    for path in [&[][..], &[4], &[5, 4], &[3, 4, 5]] {
        let mut wrong = plan.clone();
        wrong.rows[1].path = path.to_vec();
        let error = EngineError::PathDiffers { node: node(1) };
        assert_eq!(step(&wrong, &[1, 2, 3]), Err(error));
        // A row that is asked for nothing needs none.
        wrong.rows[1].ask = Ask::Nothing;
        assert_eq!(step(&wrong, &[1, 2, 3]), Ok(StepEnd::Interrupted));
    }
}

#[test]
fn what_is_kept_follows_the_chain() {
    let mut engine = engine();
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
    let mut engine = engine();
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

/// One step of one sequence.
fn step(
    engine: &mut CpuEngine,
    seq: SeqId,
    plan: &StepPlan,
    text: &[u32],
    at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> StepEnd {
    let batch = &mut [SeqStep {
        seq,
        plan,
        text,
        prompt_len: 0,
        sampler: &mut SamplingParams::default().into(),
    }];
    engine.step(batch, at_layer).unwrap()
}

#[test]
fn an_interrupted_step_leaves_no_trace() {
    let mut engine = engine();
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
    let mut engine = engine();
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
    let go_on = &mut |_| ControlFlow::Continue(());
    let end = step(&mut engine, bad, &tree(&rows), &[1, 2], go_on);
    let StepEnd::Done(answers) = end else {
        panic!("nobody gave the step up")
    };
    assert!(
        matches!(
            answers[0][..],
            [Answer::NotFinite, Answer::Pick(_), Answer::NotFinite]
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

/// A row that a walk cannot reach is skipped, also behind rows that are asked for nothing.
#[test]
fn picks_that_no_walk_reaches_are_skipped() {
    let mut engine = engine();
    let seq = engine.open(20).unwrap();
    let go_on = &mut |_| ControlFlow::Continue(());
    let picked = |end: StepEnd| -> Vec<Option<u32>> {
        let StepEnd::Done(answers) = end else {
            panic!("nobody gave the step up")
        };
        let token = |answer: &Answer| match answer {
            Answer::Pick(pick) => Some(pick.token),
            Answer::Skipped => None,
            other => panic!("{other:?}"),
        };
        answers[0].iter().map(token).collect()
    };
    let first = append(&[1, 2], Asked::Last);
    let end = step(&mut engine, seq, &first, &[1, 2], go_on);
    let next = picked(end)[0].unwrap();
    let miss = (next + 1) % 101;
    engine.apply(seq, &CacheOp::Shorten(1)).unwrap();
    // 0 is what the walk picks, 1 is not; 2 and 3 hang from them behind silent rows 4 and 5.
    let mut plan = append(&[2], Asked::Last);
    plan.rows = vec![
        row(next, None, 0),
        row(miss, None, 1),
        row(7, Some(0), 4),
        row(7, Some(1), 5),
        row(8, Some(4), 2),
        row(8, Some(5), 3),
    ];
    let paths: [&[u32]; 6] = [
        &[next],
        &[miss],
        &[next, 7],
        &[miss, 7],
        &[next, 7, 8],
        &[miss, 7, 8],
    ];
    for (row, path) in plan.rows.iter_mut().zip(paths) {
        row.path = path.to_vec();
        // The walk from node 0 is not told where to go.
        if matches!(row.node.index, 0 | 4 | 5) {
            row.ask = Ask::Nothing;
        }
    }
    let end = step(&mut engine, seq, &plan, &[1, 2], go_on);
    let found = picked(end);
    // The tail, node 1, node 2, node 3.
    assert_eq!(found[..2], [Some(next), None]);
    assert!(found[2].is_some() && found[3].is_none(), "{found:?}");
    // Hanging from rows of an earlier step, every one of them may be reached.
    let later = tree(&[
        Row {
            path: vec![miss, 9],
            ..row(9, Some(1), 6)
        },
        Row {
            path: vec![5],
            ..row(5, None, 7)
        },
    ]);
    let end = step(&mut engine, seq, &later, &[1, 2], go_on);
    assert!(picked(end).iter().all(Option::is_some));
}

/// Ids at and beyond the vocabulary are padding: never picked, guessed or scored.
#[test]
fn padding_is_not_answered() {
    let dir = synthetic::checkpoint(Dtype::F32, 2);
    let options = |vocab| EngineOptions {
        vocab: Some(vocab),
        ..EngineOptions::for_sequences(32, 1)
    };
    let mut engine = CpuEngine::load(dir.path(), &options(5)).unwrap();
    assert_eq!(engine.facts().vocab, 5);
    let seq = engine.open(20).unwrap();
    let mut plan = append(&[99, 100, 3], Asked::All);
    plan.asks = vec![
        Ask::Guesses(50),
        Ask::Pick { score: None },
        Ask::Score { token: 4, top: 20 },
    ];
    let go_on = &mut |_| ControlFlow::Continue(());
    let StepEnd::Done(answers) = step(&mut engine, seq, &plan, &[99, 100, 3], go_on) else {
        panic!("nobody gave the step up")
    };
    let [
        Answer::Guesses(guesses),
        Answer::Pick(pick),
        Answer::Score(score),
    ] = &answers[0][..]
    else {
        panic!("{answers:?}")
    };
    assert!(guesses.len() == 5 && guesses.iter().all(|guess| guess.token < 5));
    assert!(pick.token < 5 && score.top.len() == 5);
    let mut beyond = append(&[1], Asked::Last);
    beyond.asks = vec![Ask::Score { token: 5, top: 0 }];
    let error = EngineError::TokenOutOfRange { token: 5, vocab: 5 };
    assert_eq!(refused(&mut engine, &[(seq, beyond)]), error);
    assert!(CpuEngine::load(dir.path(), &options(102)).is_err());
    assert!(CpuEngine::load(dir.path(), &options(0)).is_err());
}

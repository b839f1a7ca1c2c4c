//! What a step answers: texts and paths that fit, picks that no walk reaches, padding.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::ops::ControlFlow;

use decode::sampling::Shaping;
use decode::{Answer, Ask, CacheOp, Judgement, Row, SamplerState, Sampling, StepPlan};
use engine::{Backend, CpuEngine, EngineError, EngineOptions, SeqStep, StepEnd};
use offshoot_engine as engine;
use safetensors::Dtype;
use support::steps::{refused, small, step};
use support::{Asked, append, append_to, node, row, synthetic, tree};

#[test]
fn texts_and_paths_have_to_fit_to_what_is_computed() {
    let mut engine = small();
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

/// A row that a walk cannot reach is skipped, also behind rows that are asked for nothing.
#[test]
fn picks_that_no_walk_reaches_are_skipped() {
    let mut engine = small();
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

/// A row that is judged is answered with one token, and rows below it are skipped as below a pick; what a draft draws are
/// tokens of its vocabulary.
#[test]
fn judged_rows_lead_the_walk_as_picks_do() {
    let mut engine = small();
    let seq = engine.open(20).unwrap();
    let go_on = &mut |_| ControlFlow::Continue(());
    let mut first = append(&[1, 2], Asked::Last);
    first.asks = vec![Ask::Draw(3)];
    let StepEnd::Done(answers) = step(&mut engine, seq, &first, &[1, 2], go_on) else {
        panic!("nobody gave the step up")
    };
    let [Answer::Drawn(drawn)] = &answers[0][..] else {
        panic!("{answers:?}")
    };
    assert_eq!(drawn.tokens().len(), 3);
    assert!(drawn.support().all(|(token, _)| token < 101));
    let mut plan = append(&[2], Asked::Last);
    plan.asks = vec![Ask::Judge {
        judgement: 0,
        score: None,
    }];
    plan.judgements = vec![Judgement::Rejection((**drawn).clone())];
    let mut judged = |engine: &mut CpuEngine, plan: &StepPlan| {
        engine.apply(seq, &CacheOp::Shorten(1)).unwrap();
        let StepEnd::Done(answers) = step(engine, seq, plan, &[1, 2], go_on) else {
            panic!("nobody gave the step up")
        };
        answers[0].clone()
    };
    let [Answer::Pick(pick)] = &judged(&mut engine, &plan)[..] else {
        panic!("it is asked for a judgement")
    };
    let other = (pick.token + 1) % 101;
    plan.rows = vec![row(pick.token, None, 0), row(other, None, 1)];
    for row in &mut plan.rows {
        row.path = vec![row.token];
    }
    let answers = judged(&mut engine, &plan);
    assert_eq!(answers[0], Answer::Pick(pick.clone()));
    assert!(matches!(answers[1], Answer::Pick(_)), "{answers:?}");
    assert_eq!(answers[2], Answer::Skipped);
    engine.apply(seq, &CacheOp::Shorten(1)).unwrap();
    plan.judgements.clear();
    let batch = &mut [SeqStep {
        seq,
        plan: &plan,
        text: &[1, 2],
        prompt_len: 2,
        sampler: &mut SamplerState::default(),
    }];
    let error = EngineError::UnknownJudgement { judgement: 0 };
    let go_on = &mut |_| ControlFlow::Continue(());
    assert_eq!(engine.step(batch, go_on), Err(error));
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

/// A mask may cover the logit that is not a number: the model is broken there all the same.
#[test]
fn a_mask_hides_no_broken_logit() {
    let dir = synthetic::checkpoint(Dtype::F32, 2);
    let mut tensors = synthetic::tensors(Dtype::F32, 2);
    let head = tensors.get_mut("lm_head.weight").unwrap();
    let width = head.bytes.len() / synthetic::VOCAB;
    head.bytes[50 * width..50 * width + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    synthetic::write(dir.path(), &synthetic::config(2), &tensors);
    let options = EngineOptions::for_sequences(32, 1);
    let mut engine = CpuEngine::load(dir.path(), &options).unwrap();
    let seq = engine.open(20).unwrap();
    let shaping = Shaping {
        min_tokens: 5,
        stop_ids: vec![50],
        ..Shaping::default()
    };
    let sampling = Sampling {
        shaping,
        ..Sampling::default()
    };
    let end = engine.step(
        &mut [SeqStep {
            seq,
            plan: &append(&[1, 2], Asked::Last),
            text: &[1, 2],
            prompt_len: 2,
            sampler: &mut sampling.into(),
        }],
        &mut |_| ControlFlow::Continue(()),
    );
    assert_eq!(end, Ok(StepEnd::Done(vec![vec![Answer::NotFinite]])));
}

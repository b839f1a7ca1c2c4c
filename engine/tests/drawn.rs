//! The synthetic backend: it keeps the engine's contract, its answers depend on path and sampling alone, and they are
//! distributed as its profile says.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use decode::sampling::SamplingParams;
use decode::{Answer, Ask, CacheOp, History, Row, SamplerState, Sampling, StepPlan};
use engine::synthetic::{Member, Overlay, Profile, QualifierPick, Spec, Synthetic};
use engine::{Backend, CpuEngine, EngineError, EngineOptions, LoadError, SeqId, SeqStep, StepEnd};
use offshoot_engine as engine;
use proptest::prelude::*;
use safetensors::Dtype;
use support::drawn::{Line, STATED, VOCAB, small, spec};
use support::plain::{Dice, Reference};
use support::schedule::{Check, Schedule, Subject, run};
use support::{Asked, append, node, row, synthetic, tree};

const MEMBERS: [Member; 3] = [Member::Target, Member::Qualifier, Member::Draft];

/// Appends a path to a sequence of its own, one token a step, and asks at its end.
struct Alone(Synthetic);

impl Reference for Alone {
    fn answer(&mut self, ask: Ask, history: &History<'_>, sampling: &Sampling) -> Answer {
        let path = [history.text, history.path].concat();
        let mut line = Line::open(&mut self.0, path.len(), sampling.clone().into());
        let mut found = None;
        for (at, &token) in path.iter().enumerate() {
            let mut plan = StepPlan::append(&[token]);
            if at + 1 == path.len() {
                plan.asks = vec![ask];
            }
            let StepEnd::Done(answers) = line.step(&mut self.0, &plan) else {
                panic!("nobody gave the step up")
            };
            found = answers.into_iter().flatten().next();
        }
        self.0.release(line.seq);
        found.unwrap()
    }

    fn bits(&mut self, _: &[u32]) -> &[u32] {
        panic!("there are no logits")
    }
}

impl Subject for Synthetic {
    fn layers(&self) -> usize {
        1
    }

    fn vary(&mut self, _: &mut Dice) {}

    fn read(&mut self, _: &[(SeqId, &StepPlan)]) -> Vec<Vec<f32>> {
        panic!("there are no logits")
    }
}

impl Subject for Overlay {
    fn layers(&self) -> usize {
        2
    }

    fn vary(&mut self, _: &mut Dice) {}

    fn read(&mut self, _: &[(SeqId, &StepPlan)]) -> Vec<Vec<f32>> {
        panic!("its logits decide nothing")
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        scratch_rows: 40,
        max_rows: 3 * (40 + 24),
        ..EngineOptions::for_sequences(96, 4)
    }
}

fn load(member: Member) -> Synthetic {
    Synthetic::new(spec(member, VOCAB), &options()).unwrap()
}

/// A profile over the awkward model, whose vocabulary is the same.
fn overlay(member: Member) -> Overlay {
    let dir = synthetic::checkpoint(Dtype::F32, 2);
    let real = CpuEngine::load(dir.path(), &options()).unwrap();
    Overlay::new(Box::new(real), spec(member, VOCAB), &options()).unwrap()
}

fn schedule(seed: u64) -> Schedule {
    Schedule {
        seed,
        operations: 40,
        tokens: 3,
        max_len: 90,
        scratch_rows: 40,
        max_chunk: 40,
        max_tree: 24,
        check: Check::Answers,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_answer_depends_on_its_path_and_sampling_alone(seed in any::<u64>(), member in 0_usize..3) {
        let member = MEMBERS[member];
        let result = run(&mut load(member), &mut Alone(load(member)), &schedule(seed));
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    }
}

#[test]
fn an_overlay_answers_what_the_profile_alone_would() {
    for member in MEMBERS {
        let mut over = overlay(member);
        let alone = load(member);
        assert_eq!(over.facts().numerics_id, alone.facts().numerics_id);
        run(&mut over, &mut Alone(alone), &schedule(member as u64)).unwrap();
    }
}

#[test]
fn an_overlay_refuses_what_the_model_refuses_and_changes_nothing() {
    let mut over = overlay(Member::Target);
    let mut line = Line::open(&mut over, 40, SamplerState::default());
    line.step(&mut over, &StepPlan::append(&[1, 2]));
    let batch = &mut [SeqStep {
        seq: line.seq,
        plan: &tree(&[row(1, Some(7), 0)]),
        text: &line.text.clone(),
        prompt_len: 0,
        sampler: &mut SamplerState::default(),
    }];
    let nothing = &mut |_| panic!("nothing may be computed");
    let error = EngineError::UnknownParent { node: node(7) };
    assert_eq!(over.step(batch, nothing), Err(error));
    let keep = CacheOp::Keep(vec![node(3)]);
    assert_eq!(
        over.apply(line.seq, &keep),
        Err(EngineError::BrokenPath { node: node(3) })
    );
    assert_eq!(
        over.open(257),
        Err(EngineError::ContextExceeded {
            len: 257,
            most: 256
        })
    );
    assert_eq!((over.len(line.seq), over.vacant_rows(line.seq)), (2, 40));
    over.release(line.seq);
    assert_eq!(
        over.apply(line.seq, &keep),
        Err(EngineError::UnknownSequence)
    );
    assert_eq!(over.free_pages(), over.facts().total_pages);
}

#[test]
fn sequences_are_counted_and_come_back() {
    let mut backend = small(Member::Target);
    assert_eq!((backend.free_pages(), backend.facts().total_pages), (4, 4));
    let a = backend.open(33).unwrap();
    let b = backend.open(16).unwrap();
    assert_eq!(
        backend.open(0),
        Err(EngineError::TooManySequences { most: 2 })
    );
    backend.release(a);
    backend.release(a);
    assert_eq!((backend.free_pages(), backend.len(a)), (4, 0));
    for op in [
        CacheOp::Keep(vec![]),
        CacheOp::Drop(vec![]),
        CacheOp::Shorten(0),
    ] {
        assert_eq!(backend.apply(a, &op), Err(EngineError::UnknownSequence));
    }
    backend.release(b);
    assert_eq!(
        backend.open(257),
        Err(EngineError::ContextExceeded {
            len: 257,
            most: 256
        })
    );
}

/// A step that has to be refused before anything is computed.
fn refused(backend: &mut Synthetic, seq: SeqId, text: &[u32], plan: &StepPlan) -> EngineError {
    let batch = &mut [SeqStep {
        seq,
        plan,
        text,
        prompt_len: 0,
        sampler: &mut SamplerState::default(),
    }];
    let nothing = &mut |_| panic!("nothing may be computed");
    backend.step(batch, nothing).unwrap_err()
}

#[test]
fn what_is_wrong_is_refused_before_anything_changes() {
    let mut backend = small(Member::Draft);
    let mut line = Line::open(&mut backend, 10, SamplerState::default());
    line.step(&mut backend, &StepPlan::append(&[1, 2]));
    let silent = Row {
        ask: Ask::Nothing,
        ..row(5, None, 2)
    };
    line.step(&mut backend, &tree(&[silent]));
    let token = || EngineError::TokenOutOfRange {
        token: VOCAB,
        vocab: VOCAB as usize,
    };
    let mut score = append(&[1], Asked::Last);
    score.asks = vec![Ask::Score {
        token: VOCAB,
        top: 0,
    }];
    let eight: Vec<Row> = (10..18).map(|index| row(1, None, index)).collect();
    for (plan, error) in [
        (append(&[VOCAB], Asked::None), token()),
        (score, token()),
        (
            append(&[1; 9], Asked::None),
            EngineError::SequenceFull {
                len: 11,
                max_len: 10,
            },
        ),
        (
            append(&[1; 17], Asked::None),
            EngineError::TooManyRows { rows: 17, most: 16 },
        ),
        (
            tree(&eight),
            EngineError::TooManyTreeRows { rows: 8, vacant: 7 },
        ),
        (
            tree(&[row(1, None, 2)]),
            EngineError::NodeTwice { node: node(2) },
        ),
        (
            tree(&[row(1, Some(7), 0)]),
            EngineError::UnknownParent { node: node(7) },
        ),
        (
            tree(&[row(1, None, 0)]),
            EngineError::PathDiffers { node: node(0) },
        ),
    ] {
        let text = [&line.text[..], &plan.append].concat();
        assert_eq!(refused(&mut backend, line.seq, &text, &plan), error);
    }
    assert_eq!(
        refused(
            &mut backend,
            line.seq,
            &[1, 2, 5],
            &append(&[4], Asked::None)
        ),
        EngineError::TextDiffers { position: 2 }
    );
    assert_eq!(
        (backend.len(line.seq), backend.vacant_rows(line.seq)),
        (2, 7)
    );
}

#[test]
fn a_step_that_is_given_up_leaves_no_trace() {
    let mut backend = small(Member::Target);
    let mut line = Line::open(&mut backend, 20, SamplerState::default());
    line.step(&mut backend, &StepPlan::append(&[1, 2, 3]));
    let text = [1, 2, 3, 4];
    let batch = &mut [SeqStep {
        seq: line.seq,
        plan: &append(&[4], Asked::Last),
        text: &text,
        prompt_len: 0,
        sampler: &mut SamplerState::default(),
    }];
    let end = backend.step(batch, &mut |_| ControlFlow::Break(()));
    assert_eq!(end, Ok(StepEnd::Interrupted));
    assert_eq!(
        (backend.len(line.seq), backend.vacant_rows(line.seq)),
        (3, 8)
    );
    assert_eq!(
        backend.step(&mut [], &mut |_| panic!("nothing is computed")),
        Ok(StepEnd::Done(Vec::new()))
    );
}

/// What target, qualifier and draft find behind a path.
fn found(backends: &mut [Synthetic; 3], path: &[u32], params: SamplingParams) -> (Option<u8>, u8) {
    let ask = |backend: &mut Synthetic, ask: Ask| {
        let mut line = Line::open(backend, path.len(), params.into());
        let plan = StepPlan {
            append: path.to_vec(),
            asks: vec![ask],
            ..StepPlan::default()
        };
        let StepEnd::Done(mut answers) = line.step(backend, &plan) else {
            panic!("nobody gave the step up")
        };
        backend.release(line.seq);
        answers.remove(0).remove(0)
    };
    let [target, qualifier, draft] = backends;
    let Answer::Pick(token) = ask(target, Ask::Pick { score: None }) else {
        panic!("a pick answers a pick")
    };
    assert_ne!(token.token, VOCAB - 1, "nothing ends a text");
    let Answer::Pick(advice) = ask(qualifier, Ask::Pick { score: None }) else {
        panic!("a pick answers a pick")
    };
    let Answer::Guesses(guesses) = ask(draft, Ask::Guesses(4)) else {
        panic!("guesses answer guesses")
    };
    let place = |token: u32| {
        let found = guesses.iter().position(|guess| guess.token == token);
        found.map(|place| place as u8)
    };
    (
        place(token.token),
        kind(advice.token == token.token, place(advice.token)),
    )
}

/// What the qualifier picked, as a number.
fn kind(agrees: bool, place: Option<u8>) -> u8 {
    match (agrees, place) {
        (true, _) => 100,
        (false, Some(place)) => place,
        (false, None) => 200,
    }
}

#[test]
fn answers_are_distributed_as_the_profile_says() {
    let profile = Profile::parse(STATED.as_bytes(), "the test").unwrap();
    for class in profile.classes() {
        let mut expected: BTreeMap<(Option<u8>, u8), f64> = BTreeMap::new();
        for position in &class.positions {
            let advice = match position.qualifier {
                QualifierPick::Targets => kind(true, None),
                QualifierPick::Drafts(place) => kind(false, Some(place)),
                QualifierPick::Other => kind(false, None),
            };
            *expected.entry((position.draft, advice)).or_default() +=
                1.0 / class.positions.len() as f64;
        }
        let params = SamplingParams {
            temperature: class.temperature,
            seed: 5,
            ..SamplingParams::default()
        };
        let mut backends = MEMBERS.map(load);
        let draws = 6000_u32;
        let mut drawn: BTreeMap<(Option<u8>, u8), f64> = BTreeMap::new();
        for number in 0..draws {
            // Blocks have eight positions; each of these paths is in a block of its own.
            let path = [number % 90, number / 90, 1, 2, 3, 4, 5, 6, 7, number % 3];
            *drawn
                .entry(found(&mut backends, &path, params))
                .or_default() += 1.0;
        }
        let statistic: f64 = (expected.iter())
            .map(|(what, share)| {
                let want = share * f64::from(draws);
                let got = drawn.get(what).copied().unwrap_or(0.0);
                (got - want).powi(2) / want
            })
            .sum();
        assert!(
            drawn.keys().all(|what| expected.contains_key(what)),
            "{drawn:?}"
        );
        let degrees = (expected.len() - 1) as f64;
        // Mean and four standard deviations of the chi-square distribution.
        let most = degrees + 4.0 * (2.0 * degrees).sqrt();
        assert!(
            statistic < most,
            "{statistic} at {degrees} degrees of freedom"
        );
    }
}

#[test]
fn two_of_equal_numerics_say_the_same_and_others_do_not() {
    let id = |spec: Spec| {
        let backend = Synthetic::new(spec, &options()).unwrap();
        backend.facts().numerics_id.clone()
    };
    let plain = id(spec(Member::Target, VOCAB));
    assert!(plain.starts_with("synthetic-test-"), "{plain}");
    assert_eq!(plain, id(spec(Member::Target, VOCAB)));
    let other = STATED.replace("0.6, 0.2, 0.1", "0.6, 0.2, 0.2");
    let mut changed = spec(Member::Target, VOCAB);
    changed.profile = Profile::parse(other.as_bytes(), "the test").unwrap();
    assert_ne!(id(changed), plain);
    assert_ne!(id(spec(Member::Target, VOCAB + 1)), plain);
}

#[test]
fn a_vocabulary_has_to_have_room_for_the_guesses() {
    let refused = |spec: Spec| {
        let error = Synthetic::new(spec, &options()).map(|_| ()).unwrap_err();
        assert!(matches!(error, LoadError::Profile(_)), "{error}");
        error.to_string()
    };
    // Six ids, one of which ends a text.
    let error = refused(spec(Member::Draft, 6));
    assert!(
        error.contains("needs 6 tokens") && error.contains("has 5"),
        "{error}"
    );
    let mut outside = spec(Member::Draft, 20);
    outside.tokens = vec![3, 3, 3, 50, 60, 70, 80, 90];
    assert!(refused(outside).contains("has 1"));
}

#[test]
fn a_row_that_is_kept_hangs_where_it_was_computed() {
    let ask = Ask::Guesses(3);
    let mut backend = small(Member::Draft);
    let mut line = Line::open(&mut backend, 20, SamplerState::default());
    line.step(&mut backend, &StepPlan::append(&[1, 2]));
    let asked = |token, parent, index, path: &[u32]| Row {
        path: path.to_vec(),
        ask,
        ..row(token, parent, index)
    };
    let rows = [
        asked(3, None, 0, &[3]),
        asked(4, None, 1, &[4]),
        asked(5, Some(1), 2, &[4, 5]),
    ];
    let StepEnd::Done(answers) = line.step(&mut backend, &tree(&rows)) else {
        panic!("nobody gave the step up")
    };
    let keep = CacheOp::Keep(vec![node(1), node(2)]);
    line.apply(&mut backend, &keep, &[4, 5]);
    let appended = |tokens: &[u32]| StepPlan {
        append: tokens.to_vec(),
        asks: vec![ask; tokens.len()],
        ..StepPlan::default()
    };
    let StepEnd::Done(after) = line.step(&mut backend, &appended(&[6])) else {
        panic!("nobody gave the step up")
    };
    let mut plain = Line::open(&mut backend, 20, SamplerState::default());
    let StepEnd::Done(plainly) = plain.step(&mut backend, &appended(&[1, 2, 4, 5, 6])) else {
        panic!("nobody gave the step up")
    };
    assert_eq!(after[0][0], plainly[0][4]);
    assert_eq!(answers[0][2], plainly[0][3]);
    assert_ne!(answers[0][0], answers[0][1]);
}

//! One session on one worker: what it asks of its model, what it makes of the answers, and what it refuses to be.

use decode::{Answer, Ask, Basis, NodeId, Row, StepPlan};
use proptest::prelude::*;
use speculation::Time;
use speculation::duty::{Duties, Duty, Source};
use speculation::message::{
    Finish, NodeBatch, NodeNumber, Origin, Prob16, ReplicaUpdate, Scoring, SessionSpec,
};
use speculation::session::{Capacity, Guesser, Session, SessionError, Trail};
use speculation::strategy::{KnobError, Settings, StrategyError};

use crate::rig::{AMPLE, MS, Next, VOCAB, Worker, next, registry, spec};

const TEXT: [u32; 4] = [1, 2, 3, 4];

fn spec_of(duty: Duty) -> SessionSpec {
    SessionSpec {
        duties: Duties::of(duty),
        ..spec(&TEXT)
    }
}

fn with_strategy(duty: Duty, strategy: Settings) -> SessionSpec {
    SessionSpec {
        strategy,
        ..spec_of(duty)
    }
}

/// What the model says behind `past`, this many tokens.
fn truth(past: &[u32], tokens: usize) -> Vec<u32> {
    let mut text = past.to_vec();
    for _ in 0..tokens {
        text.push(next(&text));
    }
    text.split_off(past.len())
}

/// Guesses below the text: each is a parent's number and a token; the first has the number `first_id`.
fn guesses(first_id: NodeNumber, nodes: &[(NodeNumber, u32)], base_len: u32) -> ReplicaUpdate {
    ReplicaUpdate {
        base_len,
        nodes: NodeBatch {
            first_id,
            parents: nodes.iter().map(|node| node.0).collect(),
            tokens: nodes.iter().map(|node| node.1).collect(),
            edges: vec![Prob16(60_000); nodes.len()],
            owners: vec![0; nodes.len()],
            origins: Vec::new(),
            groups: Vec::new(),
            surprisals: Vec::new(),
        },
        ..ReplicaUpdate::default()
    }
}

fn chain(first_id: NodeNumber, tokens: &[u32], base_len: u32) -> ReplicaUpdate {
    let parent = |at: usize| if at == 0 { 0 } else { first_id + at as u32 - 1 };
    let nodes: Vec<(u32, u32)> = (tokens.iter().enumerate())
        .map(|(at, &token)| (parent(at), token))
        .collect();
    guesses(first_id, &nodes, base_len)
}

/// A target that has the text and these guesses, and its plan for them.
fn planned(spec: &SessionSpec, update: &ReplicaUpdate) -> (Worker, StepPlan) {
    let mut target = Worker::new(spec, AMPLE);
    target.update(Time::ZERO, update);
    let plan = target.plan(Time::ZERO);
    (target, plan)
}

const PICK: Ask = Ask::Pick { score: None };

#[test]
fn a_prompt_in_parts_asks_for_nothing_until_its_last_token() {
    let long: Vec<u32> = (0..10).map(|at| at % VOCAB).collect();
    for (duty, ask) in [
        (Duty::Commit, PICK),
        (Duty::Advise, PICK),
        (Duty::Propose, Ask::Guesses(1)),
    ] {
        let duties = Duties::of(duty);
        let spec = SessionSpec {
            duties,
            ..spec(&long)
        };
        let mut worker = Worker::new(&spec, AMPLE);
        let mut asked = Vec::new();
        while asked.len() < 3 {
            let Next::Step(plan) = worker.step(Time::ZERO, 4) else {
                panic!("{duty:?} has something to compute");
            };
            asked.push((plan.append.len(), plan.asks));
        }
        assert_eq!(asked, [(4, vec![]), (4, vec![]), (2, vec![ask])]);
    }
}

#[test]
fn a_target_asks_the_last_token_and_every_guess_for_a_pick() {
    let mut spec = spec_of(Duty::Commit);
    spec.scoring = Scoring {
        picks: Some(3),
        basis: Basis::Processed,
        prompt: None,
    };
    let update = guesses(1, &[(0, 1), (1, 2), (0, 3), (2, 4)], 4);
    let (_, plan) = planned(&spec, &update);
    let pick = Ask::Pick {
        score: Some((Basis::Processed, 3)),
    };
    assert_eq!((plan.append.as_slice(), plan.asks), (&TEXT[..], vec![pick]));
    let mut paths: Vec<&[u32]> = plan.rows.iter().map(|row| row.path.as_slice()).collect();
    paths.sort();
    assert_eq!(paths, [&[1][..], &[1, 2], &[1, 2, 4], &[3]]);
    assert!(plan.rows.iter().all(|row| row.ask == pick));
}

#[test]
fn a_qualifier_asks_only_what_it_has_not_advised_yet() {
    let ahead = truth(&TEXT, 4);
    let mut qualifier = Worker::new(&spec_of(Duty::Advise), AMPLE);
    qualifier.step(Time::ZERO, 64);
    assert_eq!(qualifier.report().unwrap().picks, &ahead[..1]);
    // A guess below its own tip; its advice is the tip, which is computed along with it.
    qualifier.update(Time::ZERO, &chain(1, &ahead[..2], 4));
    let plan = qualifier.plan(MS);
    assert!(plan.append.is_empty() && plan.asks.is_empty());
    let asks: Vec<_> = plan
        .rows
        .iter()
        .map(|row| (row.ask, &row.path[..]))
        .collect();
    assert_eq!(asks, [(PICK, &ahead[..1]), (PICK, &ahead[..2])]);
    let answers = qualifier.answers(&plan);
    qualifier.finish(MS, &plan, &answers);
    assert_eq!(qualifier.report().unwrap().picks, &ahead[..3]);
    assert_eq!(qualifier.session.text(), TEXT, "advice is nobody's text");
}

#[test]
fn a_draft_asks_for_as_many_guesses_as_its_strategy_has_branches() {
    for (strategy, branches) in [
        (Settings::new("serial"), 1),
        (Settings::new("serial-tree").with("width", 3.0), 3),
        (Settings::new("auto"), 12),
    ] {
        let mut draft = Worker::new(&with_strategy(Duty::Propose, strategy), AMPLE);
        let plan = draft.plan(Time::ZERO);
        assert_eq!(plan.append, TEXT);
        assert_eq!(plan.asks, [Ask::Guesses(branches)]);
        let answers = draft.answers(&plan);
        draft.finish(Time::ZERO, &plan, &answers);
        let plan = draft.plan(MS);
        assert!(plan.append.is_empty() && !plan.rows.is_empty());
        let all_ask = |row: &Row| row.ask == Ask::Guesses(branches) && row.path.len() == 1;
        assert!(plan.rows.iter().all(all_ask), "{plan:?}");
    }
}

/// The rows that the walk reads: those whose path the model follows.
fn on_the_way(plan: &StepPlan, past: &[u32]) -> Vec<bool> {
    let truth = truth(past, 16);
    let rows = (plan.rows.iter()).map(|row| truth.starts_with(&row.path));
    plan.asks.iter().map(|_| true).chain(rows).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// What a backend leaves out, or cannot give, off the path that the walk takes is never missed.
    #[test]
    fn an_answer_off_the_walked_path_changes_nothing(
        tokens in prop::collection::vec((any::<prop::sample::Index>(), 0..VOCAB, any::<bool>()), 0..12),
        advises in any::<bool>(),
        replacement in prop_oneof![Just(Answer::Skipped), Just(Answer::NotFinite)],
    ) {
        let duty = if advises { Duty::Advise } else { Duty::Commit };
        let truth = truth(&TEXT, 12);
        let mut nodes = Vec::new();
        let mut right: Vec<u32> = vec![0];
        for (at, (parent, token, is_right)) in tokens.into_iter().enumerate() {
            // Half of the guesses follow the model, so that walks get somewhere.
            if is_right && right.len() <= truth.len() {
                nodes.push((right[right.len() - 1], truth[right.len() - 1]));
                right.push(at as u32 + 1);
            } else {
                nodes.push((parent.index(at + 1) as u32, token));
            }
        }
        let spec = with_strategy(duty, Settings::new("eager").with("most", 64.0));
        let (mut whole, plan) = planned(&spec, &guesses(1, &nodes, 4));
        let (mut sparse, same) = planned(&spec, &guesses(1, &nodes, 4));
        prop_assert_eq!(&plan, &same);
        let answers = whole.answers(&plan);
        let skipped: Vec<Answer> = (answers.iter().zip(on_the_way(&plan, &TEXT)))
            .map(|(answer, is_read)| if is_read { answer.clone() } else { replacement.clone() })
            .collect();
        whole.finish(MS, &plan, &answers);
        sparse.finish(MS, &plan, &skipped);
        prop_assert_eq!(whole.session.text(), sparse.session.text());
        prop_assert_eq!(whole.report(), sparse.report());
        prop_assert_eq!(whole.poll(2 * MS, 64), sparse.poll(2 * MS, 64));
    }

    /// A session keeps to the rows that the cache has for it: a verifier however much room a step has, a draft by the
    /// room that its worker leaves it.
    #[test]
    fn capacity_bounds_rows_guesses_and_advice(
        rows in 2_u16..20,
        duty in prop_oneof![Just(Duty::Propose), Just(Duty::Advise), Just(Duty::Commit)],
        strategy in prop_oneof![
            Just(Settings::new("auto")),
            Just(Settings::new("serial").with("gamma", 24.0)),
            Just(Settings::new("serial-tree").with("width", 8.0).with("depth", 8.0)),
        ],
        commits in prop::collection::vec(0_usize..4, 1..12),
    ) {
        let most = usize::from(rows);
        let mut worker = Worker::new(&with_strategy(duty, strategy), Capacity { rows, ..AMPLE });
        let mut text = TEXT.to_vec();
        let mut first_id = 1;
        for (turn, commit) in commits.into_iter().enumerate() {
            let now = turn as u32 * 1000 * MS;
            for step in 0..6 {
                let room = match duty {
                    Duty::Propose => most - worker.session.rows_held(),
                    Duty::Advise | Duty::Commit => 1000,
                };
                if room == 0 {
                    break;
                }
                if let Next::Step(plan) = worker.step(now + step * MS, room) {
                    prop_assert!(plan.rows.len() <= most, "{} rows", plan.rows.len());
                }
                prop_assert!(worker.session.rows_held() <= most);
            }
            if let Some(report) = worker.report() {
                prop_assert!(report.nodes.len() <= most);
                let ahead = report.base_len as usize + report.picks.len();
                prop_assert!(ahead - worker.session.text().len() <= most);
            }
            if duty == Duty::Commit {
                text = worker.session.text().to_vec();
            }
            let from = text.len();
            if duty != Duty::Commit {
                let fresh = truth(&text, commit);
                text.extend(fresh);
            }
            let mut update = chain(first_id, &truth(&text, 12), from as u32);
            first_id += 12;
            update.commit = text[from..].to_vec();
            update.round_done = Some(text.len() as u32);
            worker.update(now, &update);
        }
    }
}

#[test]
fn a_pick_that_is_not_a_number_ends_a_session_that_commits() {
    let right = truth(&TEXT, 3);
    // At the text's own last token, and behind guesses that were accepted.
    for at in 0..3 {
        let (mut target, plan) = planned(&spec_of(Duty::Commit), &chain(1, &right, 4));
        let mut answers = target.answers(&plan);
        answers[at] = Answer::NotFinite;
        target.finish(MS, &plan, &answers);
        let text = [&TEXT[..], &right[..at]].concat();
        assert_eq!(
            target.session.text(),
            text,
            "what was picked before is text"
        );
        let report = target.report().unwrap();
        assert_eq!(report.finish, Some(Finish::NotFinite));
        assert_eq!(report.picks, right[..at]);
        assert_eq!(target.poll(2 * MS, 64), Next::Done);
        let acknowledged = ReplicaUpdate {
            base_len: 4,
            commit: report.picks,
            ..ReplicaUpdate::default()
        };
        target.update(2 * MS, &acknowledged);
        assert_eq!(target.poll(3 * MS, 64), Next::Done, "for good");
    }
}

#[test]
fn advice_that_is_not_a_number_ends_until_the_text_goes_on() {
    let mut qualifier = Worker::new(&spec_of(Duty::Advise), AMPLE);
    let plan = qualifier.plan(Time::ZERO);
    qualifier.finish(Time::ZERO, &plan, &[Answer::NotFinite]);
    assert!(qualifier.report().unwrap().picks.is_empty());
    assert_eq!(qualifier.poll(MS, 64), Next::Done);
    let commit = ReplicaUpdate {
        base_len: 4,
        commit: truth(&TEXT, 1),
        ..ReplicaUpdate::default()
    };
    qualifier.update(MS, &commit);
    assert_eq!(qualifier.plan(MS).append, truth(&TEXT, 1));
}

#[test]
fn a_draft_whose_answer_is_not_a_number_has_no_guesses() {
    let mut draft = Worker::new(&with_strategy(Duty::Propose, Settings::new("auto")), AMPLE);
    let plan = draft.plan(Time::ZERO);
    draft.finish(Time::ZERO, &plan, &[Answer::NotFinite]);
    assert!(draft.report().unwrap().nodes.is_empty());
    assert_eq!(draft.poll(MS, 64), Next::Parked);
    let commit = ReplicaUpdate {
        base_len: 4,
        commit: truth(&TEXT, 1),
        ..ReplicaUpdate::default()
    };
    draft.update(MS, &commit);
    let plan = draft.plan(2 * MS);
    let answers = draft.answers(&plan);
    draft.finish(2 * MS, &plan, &answers);
    assert!(!draft.report().unwrap().nodes.is_empty());
}

#[test]
fn duties_and_strategies_that_make_no_session_are_refused() {
    let open = |spec: &SessionSpec| {
        Session::new(Time::ZERO, spec, &registry(), AMPLE, 0)
            .map(|_| ())
            .unwrap_err()
    };
    let duties = |duties: &[Duty]| SessionSpec {
        duties: duties.iter().copied().collect(),
        ..spec(&TEXT)
    };
    assert_eq!(open(&duties(&[])), SessionError::Duties(0));
    let two = open(&duties(&[Duty::Propose, Duty::Commit]));
    assert_eq!(two, SessionError::Duties(2));
    assert!(two.to_string().contains("2 were given"), "{two}");
    let strategy = |settings| open(&with_strategy(Duty::Commit, settings));
    let unknown = strategy(Settings::new("magic"));
    assert!(matches!(
        unknown,
        SessionError::Strategy(StrategyError::Unknown { .. })
    ));
    assert!(unknown.to_string().contains("magic"), "{unknown}");
    let knob = |error: SessionError| match error {
        SessionError::Strategy(StrategyError::Knob { error, .. }) => error,
        other => panic!("{other:?}"),
    };
    let unknown = knob(strategy(Settings::new("serial").with("width", 2.0)));
    assert!(matches!(unknown, KnobError::Unknown { .. }), "{unknown}");
    let far = knob(strategy(Settings::new("serial").with("gamma", 65.0)));
    assert!(
        matches!(far, KnobError::Range { name: "gamma", .. }),
        "{far}"
    );
}

#[test]
fn knobs_decide_what_a_session_does() {
    // Draft steps until it pauses, rows of the second step, and rows that a target submits of a full tree.
    let measure = |settings: Settings| {
        let mut draft = Worker::new(&with_strategy(Duty::Propose, settings.clone()), AMPLE);
        let mut rows = Vec::new();
        while rows.len() < 40
            && let Next::Step(plan) = draft.step(Time::ZERO, 256)
        {
            rows.push(plan.rows.len());
        }
        let nodes: Vec<(u32, u32)> = (0..30).map(|at| (at / 2, 1 + at % 2)).collect();
        let mut update = guesses(1, &nodes, 4);
        update.round_done = Some(4);
        let (_, plan) = planned(&with_strategy(Duty::Commit, settings), &update);
        (rows.len(), rows.get(1).copied(), plan.rows.len())
    };
    assert_eq!(
        measure(Settings::new("serial").with("gamma", 3.0)),
        (3, Some(1), 3)
    );
    assert_eq!(
        measure(Settings::new("serial").with("gamma", 9.0)),
        (9, Some(1), 9)
    );
    let tree = Settings::new("serial-tree")
        .with("depth", 4.0)
        .with("width", 2.0);
    assert_eq!(measure(tree.with("rows", 7.0)), (4, Some(2), 7));
    let (_, width, rows) = measure(Settings::new("auto").with("width", 1.0).with("rows", 5.0));
    assert_eq!((width, rows), (Some(1), 5));
    // A strategy that only these tests know, with a knob of its own.
    assert_eq!(measure(Settings::new("eager").with("most", 11.0)).2, 11);
    assert_eq!(measure(Settings::new("eager")).2, 6, "the default");
}

#[test]
fn a_serial_target_submits_exactly_the_chain_it_was_given() {
    for given in [1, 5, 12] {
        let settings = Settings::new("serial").with("gamma", 12.0);
        let spec = with_strategy(Duty::Commit, settings);
        let mut target = Worker::new(&spec, AMPLE);
        // Each guess is as unlikely as can be, all wrong, and still nothing is left out.
        let tokens: Vec<u32> = (0..given).map(|_| 0).collect();
        let mut update = chain(1, &tokens, 4);
        update.nodes.edges = vec![Prob16(66); given];
        target.update(Time::ZERO, &update);
        assert!(matches!(target.poll(Time::ZERO, 256), Next::Wait(Some(_))));
        let done = ReplicaUpdate {
            base_len: 4,
            round_done: Some(4),
            ..ReplicaUpdate::default()
        };
        target.update(MS, &done);
        let plan = target.plan(MS);
        assert_eq!((plan.append.len(), plan.rows.len()), (4, given));
        let parents: Vec<Option<NodeId>> = plan.rows.iter().map(|row| row.parent).collect();
        let nodes = plan.rows.iter().map(|row| Some(row.node));
        let want: Vec<_> = std::iter::once(None).chain(nodes).take(given).collect();
        assert_eq!(parents, want, "one below the other");
    }
}

#[test]
fn a_target_says_who_had_guessed_each_token() {
    let settings = (Settings::new("serial-tree").with("depth", 3.0)).with("width", 8.0);
    let spec = with_strategy(Duty::Commit, settings.with("rows", 8.0));
    let right = truth(&TEXT, 3);
    let wrong = (right[1] + 1) % VOCAB;
    // The first token is a draft's second guess: another one is thought more likely. The second is not guessed at all.
    let mut update = guesses(
        1,
        &[(0, (right[0] + 1) % VOCAB), (0, right[0]), (2, wrong)],
        4,
    );
    update.nodes.edges = vec![Prob16(40_000), Prob16(20_000), Prob16(60_000)];
    let origin = Origin {
        source: Source::Draft,
        ..Origin::default()
    };
    update.nodes.origins = vec![origin; 3];
    update.round_done = Some(4);
    let (mut target, plan) = planned(&spec, &update);
    let answers = target.answers(&plan);
    target.finish(MS, &plan, &answers);
    let trail = target.session.take_trail();
    let second = Guesser {
        source: Some(Source::Draft),
        rank: 2,
    };
    assert_eq!((trail.committed, trail.from), (2, 4));
    // The last token is told later: a guess that is on its way may name it.
    assert_eq!(trail.guessers, [second]);
    assert_eq!(
        target.session.take_trail(),
        Trail {
            from: 5,
            ..Trail::default()
        }
    );
    let mut late = chain(4, &right[..2], 4);
    late.nodes.origins = vec![origin; 2];
    late.round_done = Some(6);
    target.update(2 * MS, &late);
    let plan = target.plan(2 * MS);
    let answers = target.answers(&plan);
    target.finish(3 * MS, &plan, &answers);
    let trail = target.session.take_trail();
    assert_eq!((trail.committed, trail.from), (1, 5));
    let first = Guesser { rank: 1, ..second };
    assert_eq!(
        trail.guessers,
        [first],
        "it came too late for the step and in time for the next one"
    );
}

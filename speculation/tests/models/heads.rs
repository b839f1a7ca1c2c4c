//! Heads beside a target: when they are asked, what becomes of what they guess, and that no token depends on it.

use decode::{Answer, EndAnswer, Forecast, Guess, HeadGuesses, StepPlan, Wanted};
use speculation::Time;
use speculation::duty::{Duties, Duty, Source};
use speculation::message::{NodeBatch, Prob16, ReplicaUpdate, SessionSpec};
use speculation::strategy::Settings;

use crate::rig::{AMPLE, MS, Next, VOCAB, Worker, next, spec};

const TEXT: [u32; 4] = [1, 2, 3, 4];

fn target(strategy: Settings) -> Worker {
    let spec = SessionSpec {
        strategy,
        ..spec(&TEXT)
    };
    Worker::new(&spec, AMPLE)
}

/// What the model says behind `past`, this many tokens.
fn truth(past: &[u32], tokens: usize) -> Vec<u32> {
    let mut text = past.to_vec();
    for _ in 0..tokens {
        text.push(next(&text));
    }
    text.split_off(past.len())
}

/// How good the heads are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heads {
    /// Each head's best guess is right.
    Right,
    /// Each head's best guess is wrong, and its second one too.
    Wrong,
}

/// The place where the walk ends, what is picked there, and the text before the pick.
fn walk_end(text: &[u32], plan: &StepPlan, answers: &[Answer]) -> (u16, u32, Vec<u32>) {
    let (mut place, mut path) = (0, Vec::new());
    loop {
        let Answer::Pick(pick) = &answers[place] else {
            panic!("{answers:?}")
        };
        path.push(pick.token);
        match plan.rows.iter().position(|row| row.path == path) {
            Some(row) => place = row + 1,
            None => {
                path.pop();
                return (place as u16, pick.token, [text, &path].concat());
            }
        }
    }
}

/// What the heads answer behind a text and the pick that follows it.
fn guesses(text: &[u32], pick: u32, heads: Heads) -> HeadGuesses {
    let known = [text, &[pick]].concat();
    let ranked = truth(&known, 3).into_iter().map(|right| {
        let shift = if heads == Heads::Right { 0 } else { 1 };
        let each = (0..2).map(|rank| Guess {
            token: (right + shift + rank) % VOCAB,
            q: 0.5,
            margin: 1.0,
            weight: [0.8, 0.2][rank as usize],
        });
        each.collect()
    });
    HeadGuesses {
        ranked: ranked.collect(),
        share: 0.15,
    }
}

/// A step whose answers may have what the heads say, if they are asked.
fn step(worker: &mut Worker, now: Time, heads: Heads) -> Option<StepPlan> {
    let plan = match worker.poll(now, 64) {
        Next::Step(plan) => plan,
        Next::Wait(_) => return None,
        other => panic!("{other:?}"),
    };
    let mut answers = worker.answers(&plan);
    let text = worker.session.text().to_vec();
    let (place, token, before) = walk_end(&text, &plan, &answers);
    if plan.end.heads > 0 && plan.end.known.binary_search(&(place, token)).is_err() {
        answers.push(Answer::End(Box::new(EndAnswer {
            place,
            token,
            heads: Some(guesses(&before, token, heads)),
            forecast: Some(Forecast::Some),
        })));
    }
    worker.finish(now, &plan, &answers);
    Some(plan)
}

#[test]
fn what_heads_guess_is_in_the_very_next_step() {
    let mut worker = target(Settings::new("auto").with("heads", 24.0));
    let first = step(&mut worker, Time::ZERO, Heads::Right).unwrap();
    assert!(first.end.heads > 0 && first.end.forecast == Wanted::No);
    assert!(first.rows.is_empty(), "nothing is known to guess from");
    let text = worker.session.text().to_vec();
    assert_eq!(text, [&TEXT[..], &truth(&TEXT, 1)].concat());
    let second = worker.plan(MS);
    let expected = truth(&text, 3);
    for depth in 1..=3 {
        let path = &expected[..depth];
        assert!(
            second.rows.iter().any(|row| row.path == path),
            "{path:?} is not among {:?}",
            second.rows
        );
    }
    assert!(
        second
            .rows
            .iter()
            .any(|row| row.path == [(expected[0] + 1) % VOCAB])
    );
    let answers = worker.answers(&second);
    worker.finish(MS, &second, &answers);
    let walks = worker.report().unwrap().walks;
    assert_eq!(
        (walks.heads_steps, walks.sources[Source::Heads].committed),
        (1, 3)
    );
    assert_eq!(walks.tokens, 5);
}

#[test]
fn what_does_not_belong_to_the_walks_end_is_no_guess() {
    for (place, shift) in [(1, 0), (0, 1)] {
        let mut worker = target(Settings::new("auto").with("heads", 24.0));
        let plan = worker.plan(Time::ZERO);
        let mut answers = worker.answers(&plan);
        let token = next(&TEXT);
        answers.push(Answer::End(Box::new(EndAnswer {
            place,
            token: (token + shift) % VOCAB,
            heads: Some(guesses(&TEXT, token, Heads::Right)),
            forecast: Some(Forecast::Everything),
        })));
        worker.finish(Time::ZERO, &plan, &answers);
        assert!(worker.plan(MS).rows.is_empty());
        let report = worker.report().unwrap();
        assert_eq!(
            (report.walks.heads_steps, report.outlook.forecast),
            (0, None)
        );
    }
}

#[test]
fn a_forecast_goes_out_with_the_commit_it_is_about() {
    let mut worker = target(Settings::new("auto").with("heads", 24.0));
    step(&mut worker, Time::ZERO, Heads::Right).unwrap();
    assert_eq!(
        worker.report().unwrap().outlook.forecast,
        Some(Forecast::Some)
    );
    let plan = worker.plan(MS);
    let answers = worker.answers(&plan);
    worker.finish(MS, &plan, &answers);
    // The next one has none.
    assert_eq!(worker.report().unwrap().outlook.forecast, None);
}

#[test]
fn only_a_target_whose_strategy_uses_heads_asks_them() {
    let off = Settings::new("auto").with("heads", 24.0).with("heads", 0.0);
    for strategy in [off, Settings::new("ar"), Settings::new("eager")] {
        let mut worker = target(strategy);
        assert!(worker.plan(Time::ZERO).end.is_empty());
    }
    let qualifier = SessionSpec {
        strategy: Settings::new("auto").with("heads", 24.0),
        duties: Duties::of(Duty::Advise),
        ..spec(&TEXT)
    };
    let mut worker = Worker::new(&qualifier, AMPLE);
    assert!(worker.plan(Time::ZERO).end.is_empty());
}

#[test]
fn picks_behind_which_others_go_on_need_no_heads() {
    let mut worker = target(Settings::new("auto").with("heads", 24.0));
    let chain = truth(&TEXT, 3);
    worker.update(
        Time::ZERO,
        &ReplicaUpdate {
            base_len: 4,
            nodes: NodeBatch {
                first_id: 1,
                parents: vec![0, 1, 2],
                tokens: chain.clone(),
                edges: vec![Prob16(60_000); 3],
                owners: vec![0; 3],
                ..NodeBatch::default()
            },
            ..ReplicaUpdate::default()
        },
    );
    let plan = worker.plan(Time::ZERO);
    let known = plan.end.known.iter();
    let places: Vec<_> = known
        .map(|&(place, token)| (usize::from(place), token))
        .collect();
    // The last of the chain has nothing below it.
    for (place, token) in [(0, chain[0]), (1, chain[1])] {
        assert!(places.contains(&(place, token)), "{:?}", plan.end.known);
    }
    assert_eq!(places.len(), 2);
}

/// A hundred steps with good and with bad heads give the same text; the good ones give it in fewer steps, and the bad ones
/// are soon asked and followed less.
#[test]
fn heads_change_when_a_text_is_found_but_no_token() {
    let mut found = Vec::new();
    for heads in [Heads::Right, Heads::Wrong] {
        let mut worker = target(
            Settings::new("auto")
                .with("heads", 24.0)
                .with("lookup", 0.0),
        );
        let (mut asked, mut rows) = (Vec::new(), Vec::new());
        let mut now = Time::ZERO;
        while asked.len() < 400 {
            now += MS;
            if let Some(plan) = step(&mut worker, now, heads) {
                asked.push(plan.end.heads > 0);
                rows.push(plan.rows.len());
            }
        }
        let text = worker.session.text();
        assert_eq!(text[4..], truth(&TEXT, text.len() - 4));
        let late = asked[200..].iter().filter(|&&asked| asked).count();
        let late_rows: usize = rows[200..].iter().sum();
        found.push((text.len(), late, late_rows));
    }
    let [(right, asked, _), (wrong, seldom, few)] = found[..] else {
        panic!("two runs")
    };
    assert!(right > 3 * wrong, "{right} and {wrong} tokens");
    assert!(
        asked > 150 && seldom < 50,
        "asked in {asked} and {seldom} of 200 steps"
    );
    assert!(few < 400, "{few} rows for nothing in 200 steps");
}

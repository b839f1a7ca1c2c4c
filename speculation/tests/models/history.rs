//! Texts that were completed before, on one worker: what they are good for, whom they are shown to, and what they cost a
//! session that they mislead.

use speculation::Time;
use speculation::bypass::{Plan, Step, Way};
use speculation::duty::{Duties, Duty, Source};
use speculation::history::{HistoryCache, HistoryKey};
use speculation::learned::Learned;
use speculation::message::{Finish, Origin, ReplicaUpdate, SessionSpec};
use speculation::stats::WalkStats;
use speculation::strategy::Settings;

use crate::rig::{AMPLE, MS, Next, VOCAB, Worker, next, spec};

const PROMPT: [u32; 6] = [1, 2, 3, 4, 0, 2];
const TOKENS: u32 = 120;

fn key(of: u8) -> Option<HistoryKey> {
    Some(HistoryKey([of; 32]))
}

/// A session by `auto` that makes no guesses from its own text.
fn spec_of(prompt: &[u32], history: Option<HistoryKey>) -> SessionSpec {
    let mut spec = SessionSpec {
        strategy: Settings::new("auto").with("lookup", 0.0),
        history,
        ..spec(prompt)
    };
    spec.stopping.max_len = prompt.len() as u32 + TOKENS;
    spec
}

fn learned() -> Learned {
    let mut learned = Learned::new(Time::ZERO, Plan::default());
    learned.history = HistoryCache::new(100_000);
    learned
}

/// Runs a session to its end on a worker that knows this much.
fn run(spec: &SessionSpec, learned: Learned) -> (Vec<u32>, WalkStats, Learned) {
    run_on(spec, learned, |_| ())
}

/// The same on a worker that `measures` something before each step.
fn run_on(
    spec: &SessionSpec,
    learned: Learned,
    measures: impl Fn(&mut Learned),
) -> (Vec<u32>, WalkStats, Learned) {
    let mut worker = Worker::with(spec, AMPLE, learned);
    let mut now = Time::ZERO;
    let mut walks = WalkStats::default();
    loop {
        now += MS;
        measures(&mut worker.learned);
        let next = worker.step(now, 64);
        if let Some(report) = worker.report() {
            walks = report.walks;
            let taken = ReplicaUpdate {
                base_len: report.base_len,
                commit: report.picks,
                ..ReplicaUpdate::default()
            };
            worker.update(now, &taken);
        }
        match next {
            Next::Step(_) => {}
            Next::Done => return (worker.session.text().to_vec(), walks, worker.learned),
            // For drafts that it does not know it has not.
            Next::Wait(Some(until)) => now = until,
            Next::Wait(None) | Next::Parked => panic!("it has something to do"),
        }
    }
}

fn truth(prompt: &[u32]) -> Vec<u32> {
    let mut text = prompt.to_vec();
    for _ in 0..TOKENS {
        text.push(next(&text));
    }
    text
}

#[test]
fn a_text_comes_faster_the_second_time_and_is_the_same() {
    let text = truth(&PROMPT);
    let (first, cold, learned) = run(&spec_of(&PROMPT, key(1)), learned());
    assert_eq!(first, text);
    assert_eq!(
        cold.sources[Source::History].nodes,
        0,
        "nothing came before"
    );
    let (second, warm, _) = run(&spec_of(&PROMPT, key(1)), learned);
    assert_eq!(second, text);
    assert!(
        warm.acceptance_length() > 2.0 * cold.acceptance_length(),
        "{} after {}",
        warm.acceptance_length(),
        cold.acceptance_length()
    );
    let found = warm.sources[Source::History];
    assert_eq!(found.committed, warm.guesses_accepted + found.hits);
    assert_eq!(found.hits, warm.hits, "nobody else made guesses");
    assert!(found.nodes >= found.committed);
    for (source, &counted) in warm.sources.iter() {
        assert!(source == Source::History || counted == Default::default());
    }
}

/// A target on which plain decoding has been measured to be the fastest.
fn at_rest(mut learned: Learned) -> Learned {
    let mut now = Time::ZERO;
    for _ in 0..2000 {
        now += MS;
        let took = match learned.bypass.way() {
            Way::Plain => MS,
            Way::Together | Way::Turns | Way::Alone => 5 * MS,
        };
        learned.bypass.picked(1);
        let step = Step {
            sessions: 1,
            took,
            least_us: 1000.0,
            is_shared: false,
        };
        learned.bypass.stepped(now, step);
    }
    learned
}

#[test]
fn completed_texts_are_looked_up_where_other_guesses_do_not_pay() {
    let text = truth(&PROMPT);
    let (_, _, learned) = run(&spec_of(&PROMPT, key(1)), learned());
    let learned = at_rest(learned);
    assert_eq!(learned.bypass.way(), Way::Plain);
    let with_lookup = |key| SessionSpec {
        strategy: Settings::new("auto"),
        ..spec_of(&PROMPT, key)
    };
    let (found, walks, _) = run(&with_lookup(key(1)), learned.clone());
    assert_eq!(found, text);
    assert!(walks.acceptance_length() > 4.0, "{walks:?}");
    assert_eq!(walks.sources[Source::Lookup].nodes, 0);
    for other in [key(2), None] {
        let (found, walks, _) = run(&with_lookup(other), learned.clone());
        assert_eq!((found, walks.guesses_submitted), (text.clone(), 0));
    }
}

#[test]
fn nobody_sees_the_texts_of_another_key_or_of_none() {
    let (_, _, learned) = run(&spec_of(&PROMPT, key(1)), learned());
    assert_eq!(learned.history.keys(), 1);
    for other in [key(2), None] {
        let (text, walks, _) = run(&spec_of(&PROMPT, other), learned.clone());
        assert_eq!(text, truth(&PROMPT));
        assert_eq!(walks.sources[Source::History].nodes, 0, "{other:?}");
    }
    // Nor is a text kept that no key was named for.
    let (_, _, after) = run(&spec_of(&PROMPT, None), learned.clone());
    assert_eq!(after.history.size(), learned.history.size());
}

#[test]
fn every_strategy_gives_its_texts_and_only_auto_looks_them_up() {
    for name in ["ar", "auto"] {
        let spec = SessionSpec {
            strategy: Settings::new(name),
            ..spec_of(&PROMPT, key(1))
        };
        let (_, _, learned) = run(&spec, learned());
        assert_eq!(learned.history.keys(), 1, "{name}");
        let (_, walks, _) = run(&spec, learned);
        assert_eq!(walks.sources[Source::History].nodes > 0, name == "auto");
    }
}

#[test]
fn a_text_that_is_cut_short_is_kept_once_it_is_closed() {
    let spec = spec_of(&PROMPT, key(1));
    let mut worker = Worker::with(&spec, AMPLE, learned());
    worker.session.handle_closed(&mut worker.learned);
    assert_eq!(worker.learned.history.keys(), 0, "a prompt is no text");
    for step in 1..4 {
        worker.step(step * MS, 64);
    }
    assert_eq!(worker.learned.history.keys(), 0);
    worker.session.handle_closed(&mut worker.learned);
    assert_eq!(worker.learned.history.keys(), 1);
    let size = worker.learned.history.size();
    worker.session.handle_closed(&mut worker.learned);
    assert_eq!(worker.learned.history.size(), size);
    // Whoever does not decide the text keeps none.
    for duty in [Duty::Advise, Duty::Propose] {
        let spec = SessionSpec {
            duties: Duties::of(duty),
            ..spec_of(&truth(&PROMPT), key(2))
        };
        let mut worker = Worker::with(&spec, AMPLE, learned());
        worker.step(MS, 256);
        worker.session.handle_closed(&mut worker.learned);
        assert_eq!(worker.learned.history.keys(), 0, "{duty:?}");
    }
}

#[test]
fn a_text_that_came_to_nothing_is_not_kept() {
    let spec = spec_of(&PROMPT, key(1));
    let mut worker = Worker::with(&spec, AMPLE, learned());
    worker.step(MS, 64);
    let plan = worker.plan(2 * MS);
    let answers: Vec<_> = plan.asked().map(|_| decode::Answer::NotFinite).collect();
    worker.finish(2 * MS, &plan, &answers);
    assert_eq!(worker.report().unwrap().finish, Some(Finish::NotFinite));
    worker.session.handle_closed(&mut worker.learned);
    assert_eq!(worker.learned.history.keys(), 0);
}

#[test]
fn texts_that_mislead_are_found_out() {
    // A history of chance: what follows there is right one time in five, however much agrees before it.
    let mut learned = learned();
    let text = truth(&PROMPT);
    let mut state = 1_u32;
    let chance: Vec<u32> = (0..2000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % VOCAB
        })
        .collect();
    let whose = key(1).unwrap();
    // A row takes a third of a step's time, so that a guess has to come true one time in three.
    let measures = |learned: &mut Learned| {
        for rows in 1..24_u32 {
            (learned.cost).observe(rows as usize, 2 * MS + rows * MS);
        }
    };
    let mut submitted = Vec::new();
    for _ in 0..12 {
        learned.history = HistoryCache::new(100_000);
        learned.history.record(whose, &chance);
        let spec = spec_of(&PROMPT, key(1));
        let (found, walks, after) = run_on(&spec, learned, measures);
        assert_eq!(found, text, "the text is the model's");
        submitted.push(walks.guesses_submitted);
        learned = after;
    }
    let (first, last) = (submitted[0], submitted[11]);
    assert!(first > 20 && last * 4 < first, "{submitted:?}");
}

#[test]
fn a_target_counts_what_drafts_gave_it_by_source() {
    let prompt = PROMPT.to_vec();
    let text = truth(&prompt);
    let mut target = Worker::with(&spec_of(&prompt, None), AMPLE, learned());
    let from = prompt.len();
    let sources = [Source::Rule, Source::Draft, Source::Qualifier];
    let mut update = ReplicaUpdate {
        base_len: from as u32,
        ..ReplicaUpdate::default()
    };
    // A chain of three that comes true, and a guess beside it that does not.
    update.nodes.first_id = 1;
    update.nodes.parents = vec![0, 1, 2, 0];
    update.nodes.tokens = text[from..from + 3].to_vec();
    update.nodes.tokens.push((text[from] + 1) % VOCAB);
    update.nodes.edges = vec![speculation::message::Prob16(60_000); 4];
    update.nodes.owners = vec![0; 4];
    update.nodes.origins = (sources.into_iter().chain([Source::Draft]))
        .map(|source| Origin {
            source,
            ..Origin::default()
        })
        .collect();
    target.update(Time::ZERO, &update);
    target.step(MS, 64);
    let walks = target.report().unwrap().walks;
    let counts = |source| {
        let stats = walks.sources[source];
        (stats.nodes, stats.committed, stats.hits)
    };
    let accepted = walks.guesses_accepted;
    assert_eq!(accepted, 3, "the chain is computed");
    assert_eq!(counts(Source::Rule), (1, 1, 0));
    assert_eq!(counts(Source::Draft), (2, 1, 0));
    assert_eq!(counts(Source::Qualifier), (1, 1, 0));
    // The walk has ended one token behind the chain. Late, a guess of it arrives.
    let late = ReplicaUpdate {
        base_len: from as u32,
        nodes: speculation::message::NodeBatch {
            first_id: 5,
            parents: vec![3],
            tokens: vec![text[from + 3]],
            edges: vec![speculation::message::Prob16(60_000)],
            owners: vec![0],
            origins: vec![Origin {
                source: Source::Rule,
                ..Origin::default()
            }],
            ..speculation::message::NodeBatch::default()
        },
        ..ReplicaUpdate::default()
    };
    target.update(MS, &late);
    target.step(2 * MS, 64);
    let walks = target.report().unwrap().walks;
    assert_eq!(walks.sources[Source::Rule].hits, 1);
    assert_eq!(walks.hits, 1);
}

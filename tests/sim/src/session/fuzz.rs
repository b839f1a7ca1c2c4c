//! Sessions under updates as a fuzzer would write them: no panic, and a cache that stays consistent.

use proptest::prelude::*;
use speculation::Time;
use speculation::message::{
    Finish, Prob16, ReplicaUpdate, Scoring, SessionId, SessionSpec, Shard, Stopping, Task, Term,
};
use speculation::policy::{AutoKnobs, Strategy as Decoding};
use speculation::relay::{LinkKey, Role};
use speculation::replica::Poll;

use crate::hosted::{Agent, Guessed, Report};
use crate::reference::{Dice, Language, Speaker, VOCAB};
use crate::session::faults::random_batch;
use crate::session::worker::{Pace, Worker};

fn spec(task: Task, prompt_len: usize, max_len: u32) -> SessionSpec {
    SessionSpec {
        session: SessionId(1),
        term: Term(1),
        text: (0..prompt_len as u32).map(|at| at % 2).collect(),
        stopping: Stopping {
            prompt_len: prompt_len as u32,
            max_len,
            ..Stopping::default()
        },
        allowed_len: 1000,
        scoring: Scoring::default(),
        task,
    }
}

fn task(role: Role, strategy: Decoding) -> Task {
    match role {
        Role::Target => Task::Commit(strategy.verify()),
        Role::Qualifier => {
            let (verify, advice) = strategy.advice().unwrap();
            Task::Advise(verify, advice)
        }
        Role::Draft => Task::Grow {
            policy: strategy.growth().unwrap(),
            shard: Shard::default(),
        },
    }
}

fn open(role: Role, spec: &SessionSpec, seed: u64) -> Worker {
    let speaker = Speaker {
        language: Language { seed },
        salt: seed,
        agreement: 50,
    };
    let pace = Pace {
        base_us: 1000,
        per_row_us: seed % 100,
    };
    Worker::open(LinkKey(0), role, spec, Time::ZERO, speaker, pace)
}

/// An update that continues the worker's text more often than not.
fn random_update(dice: &mut Dice, worker: &Worker, next_id: &mut u32) -> ReplicaUpdate {
    let base = (worker.text.len() + usize::from(dice.percent(5))).saturating_sub(dice.below(4));
    let mut commit = worker.text.get(base..).unwrap_or(&[]).to_vec();
    commit.extend((0..dice.below(4)).map(|_| dice.below(2) as u32));
    if dice.percent(5) {
        commit.push(VOCAB);
    }
    if dice.percent(5) && !commit.is_empty() {
        let at = dice.below(commit.len());
        commit[at] = (commit[at] + 1) % VOCAB;
    }
    let mut nodes = random_batch(dice);
    if dice.percent(70) {
        // Numbers that a correct peer would use, and parents above them.
        let shift = *next_id;
        nodes
            .parents
            .iter_mut()
            .enumerate()
            .for_each(|(at, parent)| {
                *parent = (*parent % (shift + at as u32)).max(shift * u32::from(*parent % 3 == 0));
            });
        nodes.first_id = shift;
        *next_id += nodes.len() as u32;
    }
    ReplicaUpdate {
        base_len: base as u32,
        commit,
        nodes,
        rescored: (0..dice.below(3))
            .map(|_| (dice.below(60) as u32, Prob16(dice.roll() as u16)))
            .collect(),
        round_done: dice.percent(50).then(|| dice.below(60) as u32),
        allowed_len: dice.below(3) as u32 * 500,
        prompt_scored: dice.below(3) as u32 * 30,
        shard: dice.percent(20).then(|| Shard {
            index: dice.below(4) as u8,
            count: dice.below(4) as u8,
        }),
    }
}

fn roles() -> impl Strategy<Value = (Role, Decoding)> {
    let knobs = (1u16..=6, 1u16..=8, 1u16..=5, 1u16..=5).prop_map(|(width, rows, depth, ahead)| {
        Decoding::Auto(AutoKnobs {
            width,
            rows,
            depth,
            ahead,
        })
    });
    let serial = (1u16..5).prop_map(|gamma| Decoding::Serial { gamma });
    prop_oneof![
        knobs.clone().prop_map(|strategy| (Role::Draft, strategy)),
        serial.clone().prop_map(|strategy| (Role::Draft, strategy)),
        knobs
            .clone()
            .prop_map(|strategy| (Role::Qualifier, strategy)),
        knobs.prop_map(|strategy| (Role::Target, strategy)),
        serial.prop_map(|strategy| (Role::Target, strategy)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn no_update_breaks_a_session(
        seed in any::<u64>(),
        (role, strategy) in roles(),
        prompt_len in 1usize..12,
        room in 1usize..12,
    ) {
        let mut dice = Dice::new(seed);
        let mut worker = open(role, &spec(task(role, strategy), prompt_len, 60), seed);
        let (mut now, mut next_id, mut guessed) = (Time::ZERO, 1, Guessed::new());
        for _ in 0..60 {
            now += Time::from_micros(dice.roll() % 2000);
            match dice.below(4) {
                0 => {
                    let update = random_update(&mut dice, &worker, &mut next_id);
                    if worker.yields_to(&update) {
                        let _ = worker.take(now, &update);
                    }
                }
                1 => worker.report(),
                _ if worker.flight.is_none() => {
                    worker.start(now, room, None);
                }
                _ => worker.finish(now, &mut guessed),
            }
            if worker.flight.is_none() && dice.percent(30) {
                worker.settle();
            }
        }
    }
}

/// A target that is given a complete text has nothing to add to it.
#[test]
fn a_session_opened_on_a_complete_text_is_done() {
    for (max_len, stop_ids, finish) in
        [(6, Vec::new(), Finish::Length), (20, vec![1], Finish::Stop)]
    {
        let mut spec = spec(task(Role::Target, Decoding::Ar), 6, max_len);
        spec.stopping.prompt_len = 2;
        spec.stopping.stop_ids = stop_ids;
        let mut worker = open(Role::Target, &spec, 1);
        assert_eq!(worker.start(Time::ZERO, 8, None), Some(Poll::Done));
        worker.report();
        let Some(Report::Verify(report)) = worker.outbox.pop_back() else {
            panic!("it says so");
        };
        assert_eq!((report.picks.len(), report.finish), (0, Some(finish)));
    }
    // A stop token in the prompt ends nothing.
    let mut spec = spec(task(Role::Target, Decoding::Ar), 6, 20);
    spec.stopping.stop_ids = vec![0, 1];
    let mut worker = open(Role::Target, &spec, 1);
    assert_eq!(worker.start(Time::ZERO, 8, None), None);
}

/// A model whose answer is not a number ends its own session with an error and picks nothing.
#[test]
fn an_answer_that_is_not_a_number_ends_the_session() {
    let spec = spec(task(Role::Target, Decoding::Ar), 4, 20);
    let mut worker = open(Role::Target, &spec, 1);
    let Agent::Verify(session) = &mut worker.agent else {
        panic!("a target verifies");
    };
    let cost = speculation::cost::CostModel::new(Time::ZERO);
    let Poll::Step(plan) = session.poll_step(Time::ZERO, &cost, 8) else {
        panic!("there is work");
    };
    session.handle_step(Time::ZERO, &plan, Time::ZERO, |_, _| {
        Err(speculation::verify::NotFinite)
    });
    assert_eq!(session.poll_step(Time::ZERO, &cost, 8), Poll::Done);
    let report = session.poll_report(Default::default()).unwrap();
    assert_eq!(
        (report.picks.len(), report.finish),
        (0, Some(Finish::NotFinite))
    );
}

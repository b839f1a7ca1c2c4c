//! Sessions under updates as a fuzzer would write them: no panic, and a cache that stays consistent.

use decode::{Answer, Scoring};
use proptest::prelude::*;
use simulation::reference::{Dice, Language, Model, VOCAB};
use simulation::served::Guessed;
use speculation::Time;
use speculation::allocation::Share;
use speculation::bypass::{Mode, Plan};
use speculation::duty::Role;
use speculation::learned::Learned;
use speculation::message::{
    Finish, Forecast, Outlook, Prob16, ReplicaUpdate, SessionId, SessionSpec, Shard, Stopping, Term,
};
use speculation::relay::WorkerKey;
use speculation::replica::Poll;
use speculation::strategy::{Registry, Settings};

use crate::session::faults::random_batch;
use crate::session::worker::{Pace, Said, Worker};

fn spec(role: Role, strategy: Settings, prompt_len: usize, max_len: u32) -> SessionSpec {
    let chosen = Registry::default().choose(&strategy).unwrap();
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
        duties: chosen.duties(role),
        strategy,
        shard: Shard::default(),
        is_shared: false,
        history: None,
        has_journal: false,
    }
}

fn open(role: Role, spec: &SessionSpec, seed: u64) -> Worker {
    let language = Language::new(seed);
    let model = match role {
        Role::Target => Model::target(language),
        Role::Draft | Role::Qualifier => Model {
            language,
            salt: seed,
            agreement: 50,
            is_target: false,
        },
    };
    let pace = Pace {
        base_us: 1000,
        per_row_us: seed % 100,
    };
    Worker::open(WorkerKey(0), role, spec, Time::ZERO, model, pace)
}

/// An update that continues the worker's text more often than not.
fn random_update(dice: &mut Dice, worker: &Worker, next_id: &mut u32) -> ReplicaUpdate {
    let base = (worker.text().len() + usize::from(dice.percent(5))).saturating_sub(dice.below(4));
    let mut commit = worker.text().get(base..).unwrap_or(&[]).to_vec();
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
        outlook: Outlook {
            accepted: dice.percent(50).then(|| dice.below(9) as f32),
            mode: match dice.percent(25) {
                true => Mode::Rest,
                false => Mode::Speculate,
            },
            forecast: [
                None,
                Some(Forecast::Nothing),
                Some(Forecast::Some),
                Some(Forecast::Everything),
            ][dice.below(4)],
            step_us: (dice.percent(50)).then(|| dice.roll() as u32 >> dice.below(32)),
            misses: dice.roll() as u32 >> dice.below(32),
        },
    }
}

fn roles() -> impl Strategy<Value = (Role, Settings)> {
    let advised = prop_oneof![super::auto(), super::pyramid()];
    prop_oneof![
        super::any_strategy().prop_map(|strategy| (Role::Draft, strategy)),
        advised.prop_map(|strategy| (Role::Qualifier, strategy)),
        super::any_strategy().prop_map(|strategy| (Role::Target, strategy)),
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
        let mut worker = open(role, &spec(role, strategy, prompt_len, 60), seed);
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
                _ if !worker.is_busy() => {
                    worker.start(now, room, None);
                }
                _ => worker.finish(now, &mut guessed),
            }
            if !worker.is_busy() && dice.percent(30) {
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
        let mut spec = spec(Role::Target, Settings::new("ar"), 6, max_len);
        spec.stopping.prompt_len = 2;
        spec.stopping.stop_ids = stop_ids;
        let mut worker = open(Role::Target, &spec, 1);
        assert_eq!(worker.start(Time::ZERO, 8, None), Some(Poll::Done));
        worker.report();
        let Some(Said::Report(report)) = worker.outbox.pop_back() else {
            panic!("it says so");
        };
        assert_eq!((report.picks.len(), report.finish), (0, Some(finish)));
    }
    // A stop token in the prompt ends nothing.
    let mut spec = spec(Role::Target, Settings::new("ar"), 6, 20);
    spec.stopping.stop_ids = vec![0, 1];
    let mut worker = open(Role::Target, &spec, 1);
    assert_eq!(worker.start(Time::ZERO, 8, None), None);
}

/// A model whose answer is not a number ends its own session with an error and picks nothing.
#[test]
fn an_answer_that_is_not_a_number_ends_the_session() {
    let spec = spec(Role::Target, Settings::new("ar"), 4, 20);
    let session = &mut open(Role::Target, &spec, 1).session;
    let mut learned = Learned::new(Time::ZERO, Plan::default());
    let Poll::Work(work) = session.poll_step(Time::ZERO, 8, &mut learned) else {
        panic!("there is work");
    };
    let plan = session.plan_step(Share {
        base: work.base,
        guesses: 0,
    });
    let answers = [Answer::NotFinite];
    session.handle_step(Time::ZERO, Time::ZERO, &plan, &answers, &mut learned);
    assert_eq!(session.poll_step(Time::ZERO, 8, &mut learned), Poll::Done);
    let report = session.poll_report(Default::default()).unwrap();
    assert_eq!(
        (report.picks.len(), report.finish),
        (0, Some(Finish::NotFinite))
    );
}

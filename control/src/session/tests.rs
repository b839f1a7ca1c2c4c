#![allow(clippy::unwrap_used, reason = "tests may panic")]

use alloc::vec;

use decode::{Rule, Tolerance};
use speculation::message::{Margin, Outlook, Report, SessionId, Stopping};
use speculation::relay::RelayConfig;
use speculation::strategy::{Registry, Settings};

use super::*;
use crate::failover::{FULL_PAUSE, RETURN_PATIENCE};

const TARGET: WorkerKey = WorkerKey(0);
const OTHER: WorkerKey = WorkerKey(1);
const DRAFT: WorkerKey = WorkerKey(2);
const PATIENCE: Time = Time::from_secs(10);
/// For a client that takes nothing.
const PARKS_AFTER: Time = Time::from_secs(5);
const PROMPT: [u32; 3] = [1, 2, 3];
/// Tokens that a text may have on a worker.
const CONTEXT: u32 = 5000;
const START: Time = Time::from_secs(100);

fn machine(strategy: &str) -> SessionMachine {
    machine_by(&Settings::new(strategy))
}

fn machine_by(strategy: &Settings) -> SessionMachine {
    let relay = Relay::new(RelayConfig {
        session: SessionId(7),
        text: PROMPT.to_vec(),
        stopping: Stopping {
            prompt_len: 3,
            max_len: CONTEXT,
            max_len_is_context: false,
            stop_ids: Vec::new(),
        },
        scoring: speculation::message::Scoring::default(),
        strategy: Registry::default().choose(strategy).unwrap(),
        vocab: 50,
    });
    let wanted = Wanted {
        drafts: 2,
        qualifiers: 1,
    };
    let patience = Patience {
        failover: PATIENCE,
        client: PARKS_AFTER,
    };
    SessionMachine::new(relay, wanted, PROMPT.len(), patience)
}

fn reservation(worker: WorkerKey, role: Role) -> Reservation {
    Reservation {
        session: SessionId(7),
        worker,
        role,
        incarnation: 1,
        context: CONTEXT,
        mode: Mode::Speculate,
        is_shared: false,
    }
}

/// Everything that the machine wants done now.
fn poll(machine: &mut SessionMachine, now: Time) -> Vec<Action> {
    let mut actions = Vec::new();
    while let Some(action) = machine.poll(now) {
        actions.push(action);
        assert!(actions.len() < 100, "it never comes to rest: {actions:?}");
    }
    actions
}

/// Reserves a worker, and gives the term of its open call.
fn open(machine: &mut SessionMachine, key: WorkerKey, role: Role) -> Term {
    machine.handle_reserved(&reservation(key, role));
    let actions = poll(machine, START);
    match &actions[..] {
        [Action::Open(opened, spec)] if *opened == key => spec.term,
        _ => panic!("{actions:?}"),
    }
}

/// A session with a target that serves it.
fn served() -> (SessionMachine, Term) {
    let mut machine = machine("auto");
    let term = open(&mut machine, TARGET, Role::Target);
    assert_eq!(machine.handle_opened(TARGET, term), Opened::Noted);
    let actions = poll(&mut machine, START);
    assert_eq!(actions, [Action::Served(TARGET, Role::Target)]);
    assert_eq!(machine.target(), Some(TARGET));
    (machine, term)
}

/// The target has picked these behind the text so far.
fn picked(machine: &mut SessionMachine, term: Term, picks: &[u32]) {
    let report = Report {
        base_len: machine.relay().text().len() as u32,
        picks: picks.to_vec(),
        margins: vec![Margin(10); picks.len()],
        ..Report::default()
    };
    machine.handle_message(START, TARGET, term, FromWorker::Report(report));
}

fn deliver(tokens: &[u32]) -> Action {
    Action::Deliver(Box::new(Fresh {
        tokens: tokens.to_vec(),
        scores: None,
        prompt: None,
    }))
}

/// The committed tokens of an update for this worker.
fn told(action: &Action, key: WorkerKey) -> &[u32] {
    match action {
        Action::Tell(to, _, update) if *to == key => &update.commit,
        other => panic!("{other:?} instead of an update"),
    }
}

fn find(worker: WorkerKey, expectation: Expectation) -> Action {
    Action::FindTarget(LostTarget {
        worker,
        expectation,
    })
}

fn loss(expectation: Expectation, tokens: usize, reason: &str) -> TargetLoss {
    TargetLoss {
        worker: TARGET,
        tokens,
        expectation,
        reason: reason.into(),
    }
}

fn refused(kind: RefusedKind) -> Parting {
    Parting::Refused(Refused {
        kind,
        message: "no".into(),
    })
}

#[test]
fn a_lost_target_is_looked_for_at_once_at_vacancies_and_when_more_is_known_and_then_given_up() {
    let (mut machine, term) = served();
    assert!(!machine.is_seeking());
    machine.handle_lost(START, TARGET, "broke".into());
    let lost = loss(Expectation::Returns, 0, "broke");
    assert_eq!(
        poll(&mut machine, START),
        [
            Action::Leave(TARGET, term),
            Action::TargetLost(lost.clone()),
            find(TARGET, Expectation::Returns),
        ]
    );
    assert!(machine.is_seeking() && machine.target().is_none());
    assert!(poll(&mut machine, START).is_empty(), "it asks once");
    machine.handle_vacancy();
    assert_eq!(
        poll(&mut machine, START),
        [find(TARGET, Expectation::Returns)]
    );
    let later = machine.wake(START).unwrap();
    assert_eq!(later, START + RETURN_PATIENCE);
    assert_eq!(poll(&mut machine, later), [find(TARGET, Expectation::Gone)]);
    let last = machine.wake(later).unwrap();
    assert_eq!(last, START + PATIENCE);
    let gone = poll(&mut machine, last);
    assert_eq!(
        gone.last(),
        Some(&Action::End(Ended::Abandoned(lost))),
        "{gone:?}"
    );
    machine.handle_vacancy();
    assert!(poll(&mut machine, last).is_empty(), "it has ended");
}

#[test]
fn another_target_takes_over_with_the_text_so_far_and_a_later_loss_is_looked_for_anew() {
    let (mut machine, term) = served();
    picked(&mut machine, term, &[4, 5]);
    poll(&mut machine, START);
    machine.handle_lost(START, TARGET, "broke".into());
    poll(&mut machine, START);
    machine.handle_reserved(&reservation(OTHER, Role::Target));
    let actions = poll(&mut machine, START);
    let [Action::Open(OTHER, spec)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(spec.text, [1, 2, 3, 4, 5]);
    assert!(spec.term > term);
    assert!(!machine.is_seeking() && machine.wake(START).is_none());
    let late = START + PATIENCE;
    assert!(poll(&mut machine, late).is_empty(), "its open call runs");
    assert_eq!(machine.handle_opened(OTHER, spec.term), Opened::Noted);
    assert_eq!(
        poll(&mut machine, late),
        [Action::Served(OTHER, Role::Target)]
    );
    machine.handle_lost(late, OTHER, "broke".into());
    poll(&mut machine, late);
    assert_eq!(machine.wake(late), Some(late + RETURN_PATIENCE));
}

#[test]
fn the_third_target_lost_without_a_new_token_ends_the_session() {
    let (mut machine, mut term) = served();
    picked(&mut machine, term, &[4]);
    poll(&mut machine, START);
    for lost in 1..=3 {
        machine.handle_lost(START, TARGET, "died".into());
        let actions = poll(&mut machine, START);
        if lost == 3 {
            let loss = loss(Expectation::Returns, 1, "died");
            let end = Action::End(Ended::Fruitless(3, loss));
            assert_eq!(actions, [Action::Leave(TARGET, term), end]);
        } else {
            assert_eq!(actions.last(), Some(&find(TARGET, Expectation::Returns)));
            term = open(&mut machine, TARGET, Role::Target);
        }
    }
}

#[test]
fn a_request_that_no_target_would_take_ends_at_once() {
    let mut machine = machine("auto");
    let term = open(&mut machine, TARGET, Role::Target);
    machine.handle_refused(START, TARGET, term, refused(RefusedKind::Invalid));
    assert_eq!(
        poll(&mut machine, START),
        [
            Action::Leave(TARGET, term),
            Action::End(Ended::Invalid(TARGET, "no".into())),
        ]
    );
}

#[test]
fn a_target_without_room_is_asked_again_and_costs_no_attempt() {
    let mut machine = machine("auto");
    for _ in 0..5 {
        let term = open(&mut machine, TARGET, Role::Target);
        machine.handle_refused(START, TARGET, term, refused(RefusedKind::Full));
        let actions = poll(&mut machine, START);
        assert_eq!(actions.last(), Some(&find(TARGET, Expectation::Full)));
    }
    machine.handle_none(START, NoTarget::Busy);
    let again = machine.wake(START).unwrap();
    assert_eq!(again, START + FULL_PAUSE.1, "longer each time");
    let was_full = [find(TARGET, Expectation::WasFull)];
    assert_eq!(poll(&mut machine, again), was_full);
    machine.handle_none(again, NoTarget::Busy);
    assert_eq!(machine.wake(again), None);
    let late = START + 20 * PATIENCE;
    assert!(poll(&mut machine, late).is_empty(), "it waits");
    // The target leaves, and no other comes.
    machine.handle_vacancy();
    assert_eq!(poll(&mut machine, late), was_full);
    machine.handle_none(late, NoTarget::Missing);
    let actions = poll(&mut machine, late + PATIENCE);
    let full = loss(Expectation::Full, 0, "no");
    assert_eq!(actions.last(), Some(&Action::End(Ended::Abandoned(full))));
}

/// A session whose text stands because its client takes nothing, since [`START`]; with a draft.
fn standing() -> (SessionMachine, [Term; 2]) {
    let (mut machine, term) = served();
    let draft_term = open(&mut machine, DRAFT, Role::Draft);
    picked(
        &mut machine,
        term,
        &[4; speculation::limits::CLIENT_CREDIT as usize],
    );
    poll(&mut machine, START);
    (machine, [term, draft_term])
}

#[test]
fn a_client_that_takes_nothing_costs_the_workers_nothing_after_a_while() {
    let (mut machine, [term, draft_term]) = standing();
    assert_eq!(machine.wake(START), Some(START + PARKS_AFTER));
    let parks = START + PARKS_AFTER;
    assert_eq!(
        poll(&mut machine, parks),
        [
            Action::Leave(TARGET, term),
            Action::Leave(DRAFT, draft_term),
            Action::Park,
        ]
    );
    assert!(machine.is_parked() && machine.wake(parks).is_none());
    // An open call that was under way is closed again, and what comes and goes is of no interest.
    assert_eq!(machine.handle_opened(DRAFT, draft_term), Opened::CloseAgain);
    machine.handle_arrivals();
    machine.handle_vacancy();
    assert!(poll(&mut machine, parks + 9 * PATIENCE).is_empty());
    // It goes on where it was, with the whole text, and looks for its drafts again.
    let credit = speculation::limits::CLIENT_CREDIT;
    let reads = parks + 10 * PATIENCE;
    machine.handle_consumed(credit);
    assert_eq!(
        poll(&mut machine, reads),
        [find(TARGET, Expectation::Parked)]
    );
    machine.handle_none(reads, NoTarget::Busy);
    assert!(
        poll(&mut machine, reads + 9 * PATIENCE).is_empty(),
        "it waits its turn"
    );
    machine.handle_reserved(&reservation(OTHER, Role::Target));
    let actions = poll(&mut machine, reads);
    let [Action::Open(OTHER, spec), Action::FindContributors(wanted)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(spec.text.len(), 3 + credit as usize);
    assert_eq!(spec.allowed_len, 3 + 2 * credit);
    assert_eq!((wanted.drafts, wanted.qualifiers), (2, 1));
}

#[test]
fn a_client_that_takes_something_now_and_then_keeps_its_workers() {
    let (mut machine, _) = standing();
    let mut now = START;
    for _ in 0..3 {
        now += PARKS_AFTER - Time::from_millis(1);
        machine.handle_consumed(1);
        let actions = poll(&mut machine, now);
        assert!(!actions.contains(&Action::Park), "{actions:?}");
    }
    assert_eq!(machine.wake(now), Some(now + PARKS_AFTER));
}

#[test]
fn a_session_that_looks_for_a_target_is_parked_too() {
    let (mut machine, [_, draft_term]) = standing();
    machine.handle_lost(START, TARGET, "broke".into());
    poll(&mut machine, START);
    assert_eq!(
        poll(&mut machine, START + PARKS_AFTER),
        [Action::Leave(DRAFT, draft_term), Action::Park]
    );
    assert!(!machine.is_seeking());
    machine.handle_consumed(99);
    let actions = poll(&mut machine, START + PARKS_AFTER);
    assert_eq!(actions, [find(TARGET, Expectation::Parked)]);
}

#[test]
fn a_session_that_falls_behind_starts_over_where_it_was_and_fails_no_request() {
    let (mut machine, mut term) = served();
    for _ in 0..5 {
        machine.handle_behind(START, TARGET);
        let actions = poll(&mut machine, START);
        assert_eq!(actions[0], Action::Leave(TARGET, term));
        assert_eq!(actions.last(), Some(&find(TARGET, Expectation::Lives)));
        term = open(&mut machine, TARGET, Role::Target);
    }
}

#[test]
fn what_is_expected_of_a_target_follows_from_how_it_was_lost() {
    for (why, expectation) in [
        (Parting::Lost("x".into()), Expectation::Returns),
        (Parting::Broken("x".into()), Expectation::Gone),
        (refused(RefusedKind::Stopping), Expectation::Stops),
        (refused(RefusedKind::Other), Expectation::Refuses),
    ] {
        let mut machine = machine("auto");
        let term = open(&mut machine, TARGET, Role::Target);
        machine.handle_refused(START, TARGET, term, why.clone());
        let actions = poll(&mut machine, START);
        assert_eq!(actions.last(), Some(&find(TARGET, expectation)), "{why:?}");
    }
}

#[test]
fn a_lost_contributor_is_bypassed_and_replaced_when_workers_arrive() {
    let (mut machine, term) = served();
    let draft_term = open(&mut machine, DRAFT, Role::Draft);
    assert_eq!(machine.handle_opened(DRAFT, draft_term), Opened::Noted);
    let actions = poll(&mut machine, START);
    assert_eq!(actions[0], Action::Served(DRAFT, Role::Draft));
    assert_eq!(told(&actions[1], DRAFT), [0; 0], "its part of the frontier");
    machine.handle_arrivals();
    let wanted = Wanted {
        drafts: 1,
        qualifiers: 1,
    };
    assert_eq!(
        poll(&mut machine, START)[0],
        Action::FindContributors(wanted)
    );
    // Only a target picks.
    let picks = Report {
        base_len: 3,
        picks: vec![4],
        margins: vec![Margin(0)],
        ..Report::default()
    };
    machine.handle_message(START, DRAFT, draft_term, FromWorker::Report(picks));
    let actions = poll(&mut machine, START);
    let [
        Action::Leave(DRAFT, left),
        Action::Bypassed(DRAFT, Role::Draft, Parting::Broken(_)),
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(*left, draft_term);
    picked(&mut machine, term, &[4]);
    let actions = poll(&mut machine, START);
    assert_eq!(actions[0], deliver(&[4]), "the text goes on");
    machine.handle_arrivals();
    let wanted = Wanted {
        drafts: 2,
        qualifiers: 1,
    };
    assert!(poll(&mut machine, START).contains(&Action::FindContributors(wanted)));
}

#[test]
fn a_draft_with_a_short_context_serves_as_far_as_it_reaches() {
    let (mut machine, term) = served();
    machine.handle_reserved(&Reservation {
        context: 5,
        ..reservation(DRAFT, Role::Draft)
    });
    let actions = poll(&mut machine, START);
    let [Action::Open(DRAFT, spec)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(
        (spec.stopping.max_len, spec.stopping.max_len_is_context),
        (5, true)
    );
    assert_eq!(machine.handle_opened(DRAFT, spec.term), Opened::Noted);
    poll(&mut machine, START);
    machine.handle_taken(DRAFT);
    picked(&mut machine, term, &[4]);
    let actions = poll(&mut machine, START);
    assert_eq!(told(&actions[2], DRAFT), [4]);
    picked(&mut machine, term, &[5, 6]);
    let actions = poll(&mut machine, START);
    assert!(actions.contains(&Action::Leave(DRAFT, spec.term)));
    let parting = Action::Bypassed(DRAFT, Role::Draft, Parting::Outgrown);
    assert!(actions.contains(&parting), "{actions:?}");
    let wanted = Wanted {
        drafts: 2,
        qualifiers: 1,
    };
    assert!(
        actions.contains(&Action::FindContributors(wanted)),
        "others may reach further"
    );
    machine.handle_reserved(&Reservation {
        context: 6,
        ..reservation(DRAFT, Role::Draft)
    });
    let left = Action::Leave(DRAFT, machine.closing_term());
    assert_eq!(
        poll(&mut machine, START),
        [left],
        "the text is as long already"
    );
}

#[test]
fn a_draft_on_the_targets_device_is_opened_when_the_target_has_computed_the_prompt() {
    let mut machine = machine("auto");
    let term = open(&mut machine, TARGET, Role::Target);
    machine.handle_reserved(&Reservation {
        is_shared: true,
        ..reservation(DRAFT, Role::Draft)
    });
    assert_eq!(machine.handle_opened(TARGET, term), Opened::Noted);
    let served = Action::Served(TARGET, Role::Target);
    assert_eq!(poll(&mut machine, START), [served]);
    assert_eq!(machine.workers().count(), 2, "no other is looked for");
    picked(&mut machine, term, &[4]);
    let actions = poll(&mut machine, START);
    let opened = |action: &Action| match action {
        Action::Open(DRAFT, spec) => Some(spec.text.len()),
        _ => None,
    };
    assert_eq!(actions.iter().find_map(opened), Some(4), "{actions:?}");
}

/// The text would be another one if the target or a qualifier went on without it.
#[test]
fn a_worker_that_others_take_turns_with_is_opened_with_the_target_whatever_device_it_shares() {
    let tolerance = Tolerance {
        draft: 0.4,
        qualifier: 0.5,
    };
    for strategy in [
        Settings::new("pyramid").by(Rule::Fuzzy(tolerance)),
        Settings::new("serial").by(Rule::Rejection),
    ] {
        let mut machine = machine_by(&strategy);
        machine.handle_reserved(&Reservation {
            mode: Mode::Rest,
            ..reservation(TARGET, Role::Target)
        });
        machine.handle_reserved(&Reservation {
            is_shared: true,
            ..reservation(DRAFT, Role::Draft)
        });
        let actions = poll(&mut machine, START);
        let opened: Vec<WorkerKey> = (actions.iter())
            .filter_map(|action| match action {
                Action::Open(key, _) => Some(*key),
                _ => None,
            })
            .collect();
        assert_eq!(opened, [TARGET, DRAFT], "{strategy:?}");
    }
}

#[test]
fn a_draft_is_opened_when_the_target_makes_use_of_it_and_what_that_says_is_told_once() {
    let mut machine = machine("auto");
    let resting = Reservation {
        mode: Mode::Rest,
        ..reservation(TARGET, Role::Target)
    };
    machine.handle_reserved(&resting);
    machine.handle_reserved(&reservation(DRAFT, Role::Draft));
    let actions = poll(&mut machine, START);
    let [Action::Open(TARGET, spec)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(machine.handle_opened(TARGET, spec.term), Opened::Noted);
    poll(&mut machine, START);
    for _ in 0..2 {
        let base_len = machine.relay().text().len() as u32;
        let report = Report {
            base_len,
            picks: vec![4],
            margins: vec![Margin(0)],
            ..Report::default()
        };
        machine.handle_message(START, TARGET, spec.term, FromWorker::Report(report));
    }
    let actions = poll(&mut machine, START);
    let told: Vec<_> = (actions.iter())
        .filter(|action| matches!(action, Action::SetMode(..)))
        .collect();
    assert_eq!(told, [&Action::SetMode(TARGET, Mode::Speculate)]);
    let opens = |action: &&Action| matches!(action, Action::Open(DRAFT, _));
    assert_eq!(actions.iter().filter(opens).count(), 1, "{actions:?}");
}

#[test]
fn nothing_is_looked_for_that_the_session_has_already() {
    let (mut machine, _) = served();
    for key in 10..12 {
        open(&mut machine, WorkerKey(key), Role::Draft);
    }
    open(&mut machine, WorkerKey(12), Role::Qualifier);
    machine.handle_arrivals();
    assert!(poll(&mut machine, START).is_empty());
    let workers: Vec<u32> = machine.workers().map(|key| key.0).collect();
    assert_eq!(workers, [0, 10, 11, 12], "the target comes first");
}

#[test]
fn a_worker_that_the_strategy_does_not_use_is_left_at_once() {
    let mut machine = machine("ar");
    machine.handle_reserved(&reservation(DRAFT, Role::Draft));
    assert_eq!(
        poll(&mut machine, START),
        [Action::Leave(DRAFT, Term::default())]
    );
    assert_eq!(machine.workers().count(), 0);
}

#[test]
fn a_filled_slot_is_awaited_only_when_there_is_more_and_then_all_of_it_is_told() {
    let (mut machine, term) = served();
    picked(&mut machine, term, &[4]);
    let actions = poll(&mut machine, START);
    assert_eq!(actions[0], deliver(&[4]));
    assert_eq!(told(&actions[1], TARGET), [4]);
    assert_eq!(actions.len(), 2, "nobody waits for a slot without need");
    assert_eq!(machine.awaited().count(), 0);
    picked(&mut machine, term, &[5]);
    assert_eq!(
        poll(&mut machine, START),
        [deliver(&[5]), Action::AwaitTaken(TARGET)]
    );
    assert_eq!(machine.awaited().collect::<Vec<_>>(), [TARGET]);
    picked(&mut machine, term, &[6]);
    assert_eq!(poll(&mut machine, START), [deliver(&[6])]);
    machine.handle_taken(TARGET);
    let actions = poll(&mut machine, START);
    assert_eq!(told(&actions[0], TARGET), [5, 6]);
}

#[test]
fn an_update_that_was_full_is_followed_by_the_rest_when_it_was_taken() {
    let (mut machine, term) = served();
    let most = vec![9; MAX_COMMIT];
    picked(&mut machine, term, &most);
    let actions = poll(&mut machine, START);
    assert_eq!(told(&actions[1], TARGET), most);
    assert_eq!(actions[2], Action::AwaitTaken(TARGET));
    picked(&mut machine, term, &[4]);
    assert_eq!(poll(&mut machine, START), [deliver(&[4])]);
    machine.handle_taken(TARGET);
    let actions = poll(&mut machine, START);
    assert_eq!(told(&actions[0], TARGET), [4]);
    assert_eq!(actions.len(), 1);
    machine.handle_taken(TARGET);
    assert!(poll(&mut machine, START).is_empty());
}

#[test]
fn the_credit_of_what_the_client_takes_at_once_goes_out_with_the_commit() {
    let (mut machine, term) = served();
    picked(&mut machine, term, &[4, 5]);
    assert_eq!(machine.poll(START), Some(deliver(&[4, 5])));
    machine.handle_consumed(2);
    let Some(Action::Tell(TARGET, _, update)) = machine.poll(START) else {
        panic!("no update");
    };
    let credit = speculation::limits::CLIENT_CREDIT;
    assert_eq!(update.allowed_len, 3 + 2 + credit);
}

/// It is told nothing that only guesses need, but it goes no further than its client has room for.
#[test]
fn a_target_that_rested_when_the_session_began_is_told_of_its_clients_credit() {
    let mut machine = machine("auto");
    machine.handle_reserved(&Reservation {
        mode: Mode::Rest,
        ..reservation(TARGET, Role::Target)
    });
    let actions = poll(&mut machine, START);
    let [Action::Open(TARGET, spec)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(machine.handle_opened(TARGET, spec.term), Opened::Noted);
    poll(&mut machine, START);
    let credit = speculation::limits::CLIENT_CREDIT;
    let report = Report {
        base_len: 3,
        picks: vec![4; credit as usize],
        margins: vec![Margin(10); credit as usize],
        outlook: Outlook {
            mode: Mode::Rest,
            ..Outlook::default()
        },
        ..Report::default()
    };
    machine.handle_message(START, TARGET, spec.term, FromWorker::Report(report));
    let mut actions = poll(&mut machine, START);
    machine.handle_consumed(credit);
    machine.handle_taken(TARGET);
    actions.extend(poll(&mut machine, START));
    let allowed = actions.iter().filter_map(|action| match action {
        Action::Tell(TARGET, _, update) => Some(update.allowed_len),
        _ => None,
    });
    assert_eq!(allowed.max(), Some(3 + 2 * credit), "{actions:?}");
}

#[test]
fn a_client_that_is_satisfied_ends_the_session_before_the_texts_own_end() {
    let (mut machine, term) = served();
    let report = Report {
        base_len: 3,
        picks: vec![4, 5],
        margins: vec![Margin(0); 2],
        finish: Some(Finish::Length),
        ..Report::default()
    };
    machine.handle_message(START, TARGET, term, FromWorker::Report(report));
    assert_eq!(machine.poll(START), Some(deliver(&[4, 5])));
    machine.handle_satisfied();
    assert_eq!(
        poll(&mut machine, START),
        [
            Action::Leave(TARGET, term),
            Action::End(Ended::Finished(Finish::Stop)),
        ]
    );
}

#[test]
fn the_end_of_the_text_leaves_every_worker() {
    let (mut machine, term) = served();
    let draft_term = open(&mut machine, DRAFT, Role::Draft);
    let report = Report {
        base_len: 3,
        picks: vec![4],
        margins: vec![Margin(0)],
        finish: Some(Finish::Length),
        ..Report::default()
    };
    machine.handle_message(START, TARGET, term, FromWorker::Report(report));
    assert_eq!(
        poll(&mut machine, START),
        [
            deliver(&[4]),
            Action::Leave(TARGET, term),
            Action::Leave(DRAFT, draft_term),
            Action::End(Ended::Finished(Finish::Length)),
        ]
    );
    picked(&mut machine, term, &[5]);
    machine.handle_arrivals();
    assert!(poll(&mut machine, START).is_empty(), "it has ended");
    assert_eq!(machine.generated(), 1);
}

#[test]
fn answers_and_messages_of_an_older_term_change_nothing() {
    let mut machine = machine("auto");
    let old = open(&mut machine, TARGET, Role::Target);
    machine.handle_lost(START, TARGET, "broke".into());
    poll(&mut machine, START);
    // The call was carried out behind the loss: the worker holds a session that nobody would close.
    assert_eq!(machine.handle_opened(TARGET, old), Opened::CloseAgain);
    let term = open(&mut machine, TARGET, Role::Target);
    assert_eq!(machine.handle_opened(TARGET, old), Opened::Noted);
    machine.handle_refused(START, TARGET, old, refused(RefusedKind::Invalid));
    machine.handle_message(START, TARGET, old, FromWorker::Fault("old".into()));
    picked(&mut machine, old, &[4]);
    assert!(poll(&mut machine, START).is_empty());
    assert_eq!(machine.generated(), 0);
    assert_eq!(machine.handle_opened(TARGET, term), Opened::Noted);
    assert_eq!(
        poll(&mut machine, START),
        [Action::Served(TARGET, Role::Target)]
    );
    machine.handle_message(START, TARGET, term, FromWorker::Fault("full".into()));
    let actions = poll(&mut machine, START);
    let lost = loss(Expectation::Returns, 0, "full");
    assert!(actions.contains(&Action::TargetLost(lost)), "{actions:?}");
    // The close of the later term may still be to be sent, and one of the older would take its slot.
    assert_eq!(machine.handle_opened(TARGET, old), Opened::CloseAgain);
    assert_eq!(machine.closing_term(), term);
}

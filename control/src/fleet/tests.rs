#![allow(clippy::unwrap_used, reason = "tests may panic")]

use alloc::string::ToString;

use super::*;

const TARGET: WorkerKey = WorkerKey(0);
const OTHER: WorkerKey = WorkerKey(1);
const DRAFT: WorkerKey = WorkerKey(2);
const CLIENT: ClientKey = ClientKey(7);
const TEXT: Text = Text {
    tokens: 2,
    positions: 5,
};

fn profile() -> Profile {
    Profile {
        numerics_id: "a".into(),
        max_context: 8,
        max_sessions: 2,
        pages: 3,
        page: 4,
        device: String::new(),
    }
}

fn fleet() -> Fleet {
    let mut fleet = Fleet::new(Admission::new(99, 0));
    for (key, role) in [
        (TARGET, Role::Target),
        (OTHER, Role::Target),
        (DRAFT, Role::Draft),
    ] {
        fleet.add_worker(key, Some(role));
    }
    fleet
}

fn ready(fleet: &mut Fleet, key: WorkerKey) -> u64 {
    let role = if key == DRAFT {
        Role::Draft
    } else {
        Role::Target
    };
    fleet.handle_ready(key, role, profile())
}

/// What a session of five positions needs of another target.
fn target(numerics: &str) -> TargetNeed {
    TargetNeed {
        numerics: Some(numerics.into()),
        not: None,
        context: 5,
        positions: 5,
    }
}

fn need(fleet: &mut Fleet) -> Need<'static> {
    Need {
        wanted: Wanted {
            drafts: 1,
            qualifiers: 1,
        },
        numerics: None,
        turn: fleet.enter(1, 0, CLIENT).unwrap()[0],
        tokens: 2,
        positions: 5,
    }
}

/// Those of a session that does not wait.
fn turns(fleet: &mut Fleet) -> Turns {
    Turns {
        own: fleet.enter(1, 0, CLIENT).unwrap()[0],
        waiting: None,
    }
}

fn place(fleet: &mut Fleet, session: u64) -> Result<Vec<Reservation>, NoPlace> {
    let need = need(fleet);
    fleet.place(SessionId(session), &need)
}

#[test]
fn pages_are_counted_and_given_back() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    fleet.handle_down(OTHER, State::Connecting(Some("no".into())));
    let first = place(&mut fleet, 1).unwrap();
    assert_eq!(first.len(), 1, "there is no draft");
    assert_eq!(
        place(&mut fleet, 2),
        Err(NoPlace::Busy),
        "two pages of three are taken"
    );
    fleet.poll_changes();
    fleet.release(first[0]);
    fleet.release(first[0]);
    assert!(fleet.poll_changes().vacancy);
    assert!(place(&mut fleet, 2).is_ok());
}

#[test]
fn what_belonged_to_an_older_stream_frees_nothing_of_the_new_one() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    let old = place(&mut fleet, 1).unwrap()[0];
    fleet.handle_down(TARGET, State::Lost("broke".into()));
    assert_eq!(fleet.reserved().count(), 0);
    ready(&mut fleet, TARGET);
    let new = place(&mut fleet, 1).unwrap()[0];
    fleet.release(old);
    assert_eq!(fleet.sessions(TARGET), 1);
    fleet.release(new);
    assert_eq!(fleet.sessions(TARGET), 0);
}

#[test]
fn a_free_target_is_kept_for_who_waited_first() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    fleet.handle_down(OTHER, State::Connecting(Some("no".into())));
    let first = place(&mut fleet, 1).unwrap();
    let waits = need(&mut fleet);
    assert_eq!(fleet.place(SessionId(2), &waits), Err(NoPlace::Busy));
    fleet.wait(waits.turn, TargetNeed::default());
    fleet.release(first[0]);
    assert_eq!(
        place(&mut fleet, 3),
        Err(NoPlace::Busy),
        "its turn is later"
    );
    assert!(fleet.place(SessionId(2), &waits).is_ok());
}

#[test]
fn a_lost_target_is_waited_for_then_another_of_equal_numerics_will_do() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    let reserved = place(&mut fleet, 1).unwrap()[0];
    assert_eq!(reserved.worker, TARGET);
    ready(&mut fleet, OTHER);
    fleet.handle_down(TARGET, State::Lost("broke".into()));
    let lost = |expectation| LostTarget {
        worker: TARGET,
        expectation,
    };
    let mut turns = turns(&mut fleet);
    let mut replace = |fleet: &mut Fleet, expectation, numerics| {
        fleet.replace_target(
            SessionId(1),
            lost(expectation),
            target(numerics),
            &mut turns,
        )
    };
    let busy = replace(&mut fleet, Expectation::Returns, "a");
    assert_eq!(busy, Err(NoTarget::Busy), "it may be back in a moment");
    let missing = replace(&mut fleet, Expectation::Gone, "b");
    assert_eq!(missing, Err(NoTarget::Missing));
    let found = replace(&mut fleet, Expectation::Gone, "a").unwrap();
    assert_eq!(found.worker, OTHER);
    assert!(
        turns.waiting.is_some() && fleet.queue().len() == 1,
        "it waited for numerics b"
    );
}

#[test]
fn a_full_target_keeps_its_turns_and_others_are_taken_meanwhile() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    fleet.handle_down(OTHER, State::Connecting(Some("no".into())));
    let reserved = place(&mut fleet, 1).unwrap()[0];
    // Somebody else has its room, of whom this fleet knows nothing.
    fleet.release(reserved);
    let lost = |expectation| LostTarget {
        worker: TARGET,
        expectation,
    };
    let mut turns = turns(&mut fleet);
    let mut replace = |fleet: &mut Fleet, expectation| {
        fleet.replace_target(SessionId(1), lost(expectation), target("a"), &mut turns)
    };
    let full = replace(&mut fleet, Expectation::Full);
    assert_eq!(full, Err(NoTarget::Busy));
    let later = place(&mut fleet, 2);
    assert_eq!(
        later,
        Err(NoPlace::Busy),
        "requests wait in their own queue"
    );
    ready(&mut fleet, OTHER);
    let other = replace(&mut fleet, Expectation::Full).unwrap();
    assert_eq!(other.worker, OTHER);
    fleet.release(other);
    fleet.handle_down(OTHER, State::Connecting(Some("no".into())));
    let own = replace(&mut fleet, Expectation::WasFull).unwrap();
    assert_eq!(own.worker, TARGET);
}

#[test]
fn who_is_parked_makes_room_and_comes_back_by_the_turns_of_its_client() {
    let mut fleet = Fleet::new(Admission::new(1, 9));
    fleet.add_worker(TARGET, Some(Role::Target));
    ready(&mut fleet, TARGET);
    let (slow, other) = (ClientKey(1), ClientKey(2));
    let need = |turn| Need {
        turn,
        numerics: None,
        wanted: Wanted {
            drafts: 0,
            qualifiers: 0,
        },
        tokens: 2,
        positions: 5,
    };
    let counts = |fleet: &Fleet| (fleet.admission().running(), fleet.admission().waiting());
    let own = fleet.enter(1, 0, slow).unwrap()[0];
    let reserved = fleet.place(SessionId(1), &need(own)).unwrap()[0];
    fleet.poll_changes();
    fleet.release(reserved);
    fleet.handle_parked();
    assert!(fleet.poll_changes().vacancy);
    assert_eq!(counts(&fleet), (0, 1));
    let first = fleet.enter(1, 0, other).unwrap()[0];
    let held = fleet.place(SessionId(2), &need(first)).unwrap()[0];
    // It wants to go on, and as many run as may.
    let lost = LostTarget {
        worker: TARGET,
        expectation: Expectation::Parked,
    };
    let mut turns = Turns { own, waiting: None };
    let mut resume =
        |fleet: &mut Fleet| fleet.replace_target(SessionId(1), lost, target("a"), &mut turns);
    assert_eq!(resume(&mut fleet), Err(NoTarget::Busy));
    let second = fleet.enter(1, 0, other).unwrap()[0];
    fleet.wait(second, target("a"));
    fleet.release(held);
    fleet.handle_ended(first, Time::ZERO);
    let busy = fleet.place(SessionId(3), &need(second));
    assert_eq!(busy, Err(NoPlace::Busy), "it waits for longer");
    assert_eq!(resume(&mut fleet).unwrap().worker, TARGET);
    assert_eq!(counts(&fleet), (1, 1));
    fleet.stop_waiting(turns.waiting.unwrap());
    fleet.handle_ended(own, Time::ZERO);
    fleet.handle_left(second);
    assert_eq!(counts(&fleet), (0, 0));
    assert!(fleet.queue().is_empty());
}

#[test]
fn why_there_is_no_place_is_told_apart() {
    let mut fleet = fleet();
    assert_eq!(
        place(&mut fleet, 1),
        Err(NoPlace::Busy),
        "both are being connected"
    );
    for key in [TARGET, OTHER] {
        fleet.handle_down(key, State::Refused("old".into()));
    }
    assert_eq!(place(&mut fleet, 1), Err(NoPlace::Missing));
    let each = fleet.missing_targets(|key| format!("w{}", key.0));
    assert_eq!(each, "w0 is refused: old; w1 is refused: old");
    ready(&mut fleet, TARGET);
    let long = Need {
        tokens: 8,
        ..need(&mut fleet)
    };
    let too_long = NoPlace::TooLong {
        context: 8,
        target: TARGET,
    };
    assert_eq!(fleet.place(SessionId(1), &long), Err(too_long));
    let other = Need {
        numerics: Some("b"),
        ..need(&mut fleet)
    };
    let numerics = NoPlace::OtherNumerics(alloc::vec!["a".to_string()]);
    assert_eq!(fleet.place(SessionId(1), &other), Err(numerics));
    fleet.handle_draining(TARGET, 1);
    assert_eq!(place(&mut fleet, 1), Err(NoPlace::Missing));
    assert_eq!(fleet.targets_up(), 1);
}

#[test]
fn a_retired_worker_takes_nothing_new_and_is_forgotten_with_its_last_session() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    ready(&mut fleet, DRAFT);
    fleet.handle_down(OTHER, State::Connecting(Some("no".into())));
    let reserved = place(&mut fleet, 1).unwrap();
    assert_eq!(reserved.len(), 2);
    fleet.retire_worker(DRAFT);
    fleet.retire_worker(OTHER);
    assert_eq!(fleet.poll_forgotten(), Some(OTHER), "it has no session");
    assert_eq!(fleet.poll_forgotten(), None);
    assert!(fleet.is_retired(DRAFT) && fleet.state(OTHER).is_none());
    let wanted = Wanted {
        drafts: 1,
        qualifiers: 0,
    };
    let more = |fleet: &mut Fleet| fleet.place_contributors(SessionId(2), wanted, TEXT, &[]);
    assert!(more(&mut fleet).is_empty());
    assert_eq!(fleet.sessions(DRAFT), 1, "what it has goes on");
    fleet.release(reserved[1]);
    assert_eq!(fleet.poll_forgotten(), Some(DRAFT));
    assert!(!fleet.restore_worker(DRAFT), "it is to be added anew");
    fleet.release(reserved[0]);
    fleet.retire_worker(TARGET);
    assert_eq!(fleet.poll_forgotten(), Some(TARGET));
    assert_eq!(place(&mut fleet, 3), Err(NoPlace::Missing));
}

#[test]
fn a_draft_whose_context_holds_only_a_part_of_the_text_is_taken_last() {
    let mut fleet = fleet();
    fleet.add_worker(WorkerKey(3), Some(Role::Draft));
    let short = |context| Profile {
        max_context: context,
        pages: 8,
        ..profile()
    };
    fleet.handle_ready(DRAFT, Role::Draft, short(4));
    fleet.handle_ready(WorkerKey(3), Role::Draft, short(8));
    let wanted = Wanted {
        drafts: 2,
        qualifiers: 0,
    };
    let found = fleet.place_contributors(SessionId(1), wanted, TEXT, &[]);
    let found: Vec<_> = (found.iter())
        .map(|found| (found.worker, found.context))
        .collect();
    assert_eq!(found, [(WorkerKey(3), 8), (DRAFT, 4)]);
    let longer = Text { tokens: 4, ..TEXT };
    let found = fleet.place_contributors(SessionId(2), wanted, longer, &[]);
    assert_eq!(found.len(), 1, "it reaches no further than the text");
}

#[test]
fn the_last_one_that_may_run_is_the_earliest_that_can_be_placed() {
    let mut fleet = Fleet::new(Admission::new(1, 9));
    for key in [TARGET, OTHER] {
        fleet.add_worker(key, Some(Role::Target));
    }
    ready(&mut fleet, TARGET);
    let other = Profile {
        numerics_id: "b".into(),
        ..profile()
    };
    fleet.handle_ready(OTHER, Role::Target, other);
    let turns: Vec<_> = (0..3)
        .map(|_| fleet.enter(1, 0, CLIENT).unwrap()[0])
        .collect();
    let need = |turn, numerics| Need {
        turn,
        numerics,
        wanted: Wanted {
            drafts: 0,
            qualifiers: 0,
        },
        tokens: 2,
        positions: 5,
    };
    let running = fleet.place(SessionId(0), &need(turns[0], None)).unwrap();
    for (session, numerics) in [(1, "b"), (2, "a")] {
        let turn = turns[session];
        let busy = fleet.place(SessionId(session as u64), &need(turn, Some(numerics)));
        assert_eq!(busy, Err(NoPlace::Busy), "as many run as may");
        let wanted = TargetNeed {
            numerics: Some(numerics.into()),
            not: None,
            context: 3,
            positions: 5,
        };
        fleet.wait(turn, wanted);
    }
    fleet.release(running[0]);
    fleet.poll_changes();
    fleet.handle_ended(turns[0], Time::ZERO);
    assert!(fleet.poll_changes().vacancy);
    let later = fleet.place(SessionId(2), &need(turns[2], Some("a")));
    assert_eq!(later, Err(NoPlace::Busy), "another is next");
    fleet.handle_down(OTHER, State::Connecting(Some("gone".into())));
    let later = fleet.place(SessionId(2), &need(turns[2], Some("a")));
    assert!(later.is_ok(), "the one before it could not be placed");
    fleet.handle_left(turns[1]);
    assert_eq!(
        (fleet.admission().running(), fleet.admission().waiting()),
        (1, 0)
    );
    assert!(fleet.queue().is_empty());
}

#[test]
fn a_text_that_grows_takes_the_room_of_others() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    fleet.handle_down(OTHER, State::Connecting(Some("no".into())));
    let of = |fleet: &mut Fleet, session, positions| {
        let need = Need {
            positions,
            ..need(fleet)
        };
        fleet.place(SessionId(session), &need)
    };
    let first = of(&mut fleet, 1, 4).unwrap()[0];
    let second = of(&mut fleet, 2, 8).unwrap()[0];
    fleet.release(second);
    fleet.grow(first, 8);
    fleet.grow(first, 3);
    assert_eq!(
        of(&mut fleet, 3, 8),
        Err(NoPlace::Busy),
        "two of three pages are taken"
    );
}

#[test]
fn a_retired_worker_that_is_listed_again_goes_on() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    let reserved = place(&mut fleet, 1).unwrap()[0];
    fleet.retire_worker(TARGET);
    fleet.poll_changes();
    assert!(fleet.restore_worker(TARGET));
    let changes = fleet.poll_changes();
    assert!(changes.vacancy && changes.arrival);
    fleet.release(reserved);
    assert_eq!(fleet.poll_forgotten(), None);
    assert!(place(&mut fleet, 2).is_ok());
}

#[test]
fn a_retired_target_that_is_lost_is_not_waited_for() {
    let mut fleet = fleet();
    ready(&mut fleet, TARGET);
    let _ = place(&mut fleet, 1).unwrap();
    ready(&mut fleet, OTHER);
    fleet.retire_worker(TARGET);
    fleet.handle_down(TARGET, State::Lost("broke".into()));
    assert_eq!(fleet.poll_forgotten(), Some(TARGET));
    assert_eq!(fleet.returns(TARGET), Returns::Unknown);
    let lost = LostTarget {
        worker: TARGET,
        expectation: Expectation::Returns,
    };
    let mut turns = turns(&mut fleet);
    let found = fleet.replace_target(SessionId(1), lost, target("a"), &mut turns);
    assert_eq!(found.unwrap().worker, OTHER, "at once");
    assert_eq!(ready(&mut fleet, TARGET), 0, "it is gone for good");
}

#[test]
fn the_role_is_what_the_newest_handshake_says() {
    let mut fleet = Fleet::new(Admission::new(99, 0));
    fleet.add_worker(TARGET, None);
    assert_eq!(
        place(&mut fleet, 1),
        Err(NoPlace::Busy),
        "it may be a target"
    );
    let each = fleet.missing_targets(|_| "w".into());
    assert_eq!(each, "w is being connected");
    fleet.handle_ready(TARGET, Role::Draft, profile());
    assert_eq!(place(&mut fleet, 1), Err(NoPlace::Missing));
    fleet.handle_down(TARGET, State::Lost("replaced".into()));
    fleet.handle_ready(TARGET, Role::Target, profile());
    assert_eq!(place(&mut fleet, 1).unwrap()[0].role, Role::Target);
}

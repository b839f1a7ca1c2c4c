//! What networks and broken peers do to a cluster.

use speculation::Time;
use speculation::limits::MAX_NODES_PER_UPDATE;
use speculation::link::LinkError;
use speculation::message::{DraftReport, Finish, NodeBatch, Prob16, ReplicaUpdate, VerifyReport};
use speculation::relay::{LinkKey, RelayError, Role};

use crate::hosted::Report;
use crate::reference::{Dice, VOCAB};
use crate::session::worker::Worker;
use crate::session::world::World;

/// The same update once more: an error or nothing at all.
pub(crate) fn duplicate(worker: &mut Worker, now: Time, update: &ReplicaUpdate) {
    let before = worker.text.clone();
    let taken = worker.take(now, update);
    if update.nodes.is_empty() {
        assert_eq!(taken, Ok(()));
    } else {
        assert!(
            matches!(taken, Err(LinkError::ReusedId { .. })),
            "{taken:?}"
        );
    }
    assert_eq!(worker.text, before);
}

/// A draft or a qualifier is lost; usually another one takes its place.
pub(crate) fn lose_helper(world: &mut World) {
    let helpers: Vec<usize> = (0..world.workers.len())
        .filter(|&at| world.workers[at].role != Role::Target)
        .collect();
    if helpers.is_empty() {
        return;
    }
    let lost = helpers[world.dice.below(helpers.len())];
    let role = world.lose(lost);
    if world.dice.percent(70) {
        world.add(role);
    }
}

/// The target is lost and the session is replayed on another one.
pub(crate) fn replace_target(world: &mut World) {
    let target = world
        .workers
        .iter()
        .position(|worker| worker.role == Role::Target);
    if let (Some(at), None) = (target, world.relay.finish()) {
        world.lose(at);
        world.add(Role::Target);
    }
}

/// A report comes a second time, under the current term or an old one.
pub(crate) fn stale(world: &mut World) {
    let at = world.dice.below(world.workers.len());
    let sent = &world.workers[at].sent;
    if sent.is_empty() {
        return;
    }
    let report = sent[world.dice.below(sent.len())].clone();
    if world.dice.percent(30) {
        world.relay_takes_old(at, &report);
        return;
    }
    let (key, term) = (world.workers[at].key, world.workers[at].term);
    let before = world.relay.text().to_vec();
    match &report {
        Report::Opened => world.relay.handle_opened(key),
        Report::Draft(report) => {
            let taken = world.relay.handle_draft(key, term, report);
            assert_eq!(taken.is_err(), !report.nodes.is_empty(), "{taken:?}");
        }
        Report::Verify(report) => {
            assert_eq!(world.relay.handle_verify(key, term, report), Ok(()));
        }
    }
    assert_eq!(world.relay.text(), before);
    world.news();
}

/// Something no correct peer would send; the text never notices.
pub(crate) fn garbage(world: &mut World) {
    let at = world.dice.below(world.workers.len());
    let before = world.relay.text().to_vec();
    if world.dice.percent(30) {
        bad_update(world, at);
    } else if world.dice.percent(20) {
        wrong_role(world, at);
    } else {
        bad_report(world, at);
    }
    assert_eq!(world.relay.text(), before);
    world.news();
}

fn bad_report(world: &mut World, at: usize) {
    let (key, role, term) = (
        world.workers[at].key,
        world.workers[at].role,
        world.workers[at].term,
    );
    match role {
        Role::Draft => {
            let report = random_draft_report(&mut world.dice, world.relay.text().len());
            world.relay_takes_old(at, &Report::Draft(report.clone()));
            let taken = world.relay.handle_draft(key, term, &report);
            world.workers[at].tainted = true;
            if taken.is_err() {
                world.refusals += 1;
                let role = world.lose(at);
                world.add(role);
            }
        }
        Role::Qualifier => {
            let report = random_verify_report(&mut world.dice, world.relay.text());
            world.relay_takes_old(at, &Report::Verify(report.clone()));
            let _ = world.relay.handle_verify(key, term, &report);
        }
        Role::Target => {
            let report = malformed_verify_report(world);
            let taken = world.relay.handle_verify(key, term, &report);
            assert!(
                matches!(taken, Err(RelayError::Link(_))),
                "{report:?} was taken"
            );
        }
    }
}

fn wrong_role(world: &mut World, at: usize) {
    let (key, role, term) = (
        world.workers[at].key,
        world.workers[at].role,
        world.workers[at].term,
    );
    let taken = match role {
        Role::Draft => world
            .relay
            .handle_verify(key, term, &VerifyReport::default()),
        Role::Qualifier | Role::Target => {
            world.relay.handle_draft(key, term, &DraftReport::default())
        }
    };
    assert_eq!(taken, Err(RelayError::WrongRole));
    let nobody = LinkKey(u32::MAX);
    let taken = world
        .relay
        .handle_verify(nobody, term, &VerifyReport::default());
    assert_eq!(taken, Ok(()), "who has left changes nothing");
}

/// Arrays as a fuzzer would fill them: often nearly right.
pub(crate) fn random_batch(dice: &mut Dice) -> NodeBatch {
    let n = match dice.below(20) {
        0 => MAX_NODES_PER_UPDATE + 1,
        _ => dice.below(6),
    };
    let first_id = match dice.below(8) {
        0 => u32::MAX - dice.below(3) as u32,
        1 => 0,
        _ => 1 + dice.below(40) as u32,
    };
    let ragged = |dice: &mut Dice| n + usize::from(dice.percent(5));
    NodeBatch {
        first_id,
        parents: (0..ragged(dice))
            .map(|_| match dice.below(4) {
                0 => 0,
                1 => dice.below(60) as u32,
                _ => first_id.wrapping_add(dice.below(n) as u32),
            })
            .collect(),
        tokens: (0..n)
            .map(|_| dice.below(61) as u32 % (VOCAB + 1))
            .collect(),
        edges: (0..ragged(dice))
            .map(|_| Prob16(dice.roll() as u16))
            .collect(),
        owners: (0..ragged(dice)).map(|_| dice.roll() as u8).collect(),
    }
}

fn random_draft_report(dice: &mut Dice, len: usize) -> DraftReport {
    let around = |dice: &mut Dice| (len + 2).saturating_sub(dice.below(6)) as u32;
    DraftReport {
        base_len: around(dice),
        nodes: random_batch(dice),
        round_done: dice.percent(50).then(|| around(dice)),
        ..DraftReport::default()
    }
}

fn random_verify_report(dice: &mut Dice, text: &[u32]) -> VerifyReport {
    let base = (text.len() + 1).saturating_sub(dice.below(8));
    let mut picks = text.get(base..).unwrap_or(&[]).to_vec();
    picks.extend((0..dice.below(30)).map(|_| dice.below(91) as u32 % (VOCAB + 1)));
    let mut margins: Vec<u8> = picks.iter().map(|_| dice.roll() as u8).collect();
    margins.truncate(margins.len() - usize::from(dice.percent(10) && !margins.is_empty()));
    VerifyReport {
        base_len: base as u32,
        picks,
        margins,
        finish: dice.percent(20).then_some(Finish::Stop),
        ..VerifyReport::default()
    }
}

/// A report that looks like the target's next one, but breaks one rule.
fn malformed_verify_report(world: &mut World) -> VerifyReport {
    let text = world.relay.text();
    let mut report = VerifyReport {
        base_len: text.len() as u32 - 1,
        picks: vec![text[text.len() - 1], 0],
        margins: vec![0, 0],
        finish: world.dice.percent(50).then_some(Finish::Stop),
        ..VerifyReport::default()
    };
    match world.dice.below(5) {
        0 => report.picks[1] = VOCAB,
        1 => report.margins.push(0),
        2 => report.base_len += 2,
        3 => report.picks[0] = (report.picks[0] + 1) % VOCAB,
        _ => {
            report.picks.resize(900, 0);
            report.margins.resize(900, 0);
        }
    }
    report
}

fn bad_update(world: &mut World, at: usize) {
    let worker = &mut world.workers[at];
    if worker.flight.is_some() {
        return;
    }
    let len = worker.text.len();
    let mut update = ReplicaUpdate {
        base_len: len as u32 - 1,
        commit: vec![worker.text[len - 1]],
        nodes: NodeBatch {
            first_id: 1_000_000,
            parents: vec![0, 1_000_000],
            tokens: vec![0, 1],
            edges: vec![Prob16(60_000); 2],
            owners: vec![0, 0],
        },
        ..ReplicaUpdate::default()
    };
    match world.dice.below(8) {
        0 => update.nodes.owners.push(0),
        1 => update.nodes.tokens[1] = VOCAB,
        2 => update.nodes.parents[0] = 1_000_000,
        3 => update.nodes.parents[1] = 999_999,
        4 => update.nodes.first_id = 0,
        5 => update.commit[0] = (update.commit[0] + 1) % VOCAB,
        6 => update.base_len += 2,
        _ => update.commit = vec![0; 1025],
    }
    let before = worker.text.clone();
    let taken = worker.take(world.now, &update);
    assert!(taken.is_err(), "{update:?} was taken");
    assert_eq!(worker.text, before);
    worker.settle();
}

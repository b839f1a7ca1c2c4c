//! What networks and broken peers do to a cluster.

use simulation::reference::{Dice, VOCAB};
use speculation::Time;
use speculation::duty::Role;
use speculation::limits::MAX_NODES_PER_UPDATE;
use speculation::message::{
    Finish, Margin, NodeBatch, Origin, Prob16, ReplicaUpdate, Report, Term,
};
use speculation::numbering::PeerError;
use speculation::relay::{RelayError, WorkerKey};

use crate::session::worker::{Said, Worker};
use crate::session::world::World;

/// The same update once more: an error or nothing at all.
pub(crate) fn duplicate(worker: &mut Worker, now: Time, update: &ReplicaUpdate) {
    let before = worker.text().to_vec();
    let taken = worker.take(now, update);
    if update.nodes.is_empty() {
        assert_eq!(taken, Ok(()));
    } else {
        assert!(
            matches!(taken, Err(PeerError::ReusedId { .. })),
            "{taken:?}"
        );
    }
    assert_eq!(worker.text(), before);
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
        Said::Opened => world.relay.handle_opened(key),
        Said::Report(report) => {
            let taken = world.relay.handle_report(key, term, report);
            assert_eq!(taken.is_err(), !report.nodes.is_empty(), "{taken:?}");
        }
    }
    assert_eq!(world.relay.text(), before);
    world.stir();
}

/// Something no correct peer would send; the text never notices.
pub(crate) fn garbage(world: &mut World) {
    let at = world.dice.below(world.workers.len());
    let before = world.relay.text().to_vec();
    if world.dice.percent(30) {
        bad_update(world, at);
    } else if world.dice.percent(20) {
        wrong_duty(world, at);
    } else {
        bad_report(world, at);
    }
    assert_eq!(world.relay.text(), before);
    world.stir();
}

fn bad_report(world: &mut World, at: usize) {
    let (key, role, term) = (
        world.workers[at].key,
        world.workers[at].role,
        world.workers[at].term,
    );
    match role {
        Role::Draft => {
            let report = random_guesses(&mut world.dice, world.relay.text().len());
            world.relay_takes_old(at, &Said::Report(Box::new(report.clone())));
            let taken = world.relay.handle_report(key, term, &report);
            world.workers[at].tainted = true;
            if taken.is_err() {
                world.refusals += 1;
                let role = world.lose(at);
                world.add(role);
            }
        }
        Role::Qualifier => {
            let report = random_picks(&mut world.dice, world.relay.text());
            world.relay_takes_old(at, &Said::Report(Box::new(report.clone())));
            let _ = world.relay.handle_report(key, term, &report);
        }
        Role::Target => {
            let report = malformed_picks(world);
            let taken = world.relay.handle_report(key, term, &report);
            assert!(
                matches!(taken, Err(RelayError::Peer(_))),
                "{report:?} was taken"
            );
        }
    }
}

/// A report about what the worker was not asked to do.
fn wrong_duty(world: &mut World, at: usize) {
    let (key, role, term) = (
        world.workers[at].key,
        world.workers[at].role,
        world.workers[at].term,
    );
    let base_len = world.relay.text().len() as u32;
    let report = match role {
        Role::Draft => Report {
            base_len,
            picks: vec![0],
            margins: vec![Margin::default()],
            ..Report::default()
        },
        Role::Qualifier | Role::Target => Report {
            base_len,
            round_done: Some(base_len),
            ..Report::default()
        },
    };
    let taken = world.relay.handle_report(key, term, &report);
    assert!(matches!(taken, Err(RelayError::Duty(_))), "{taken:?}");
    let nobody = WorkerKey(u32::MAX);
    for (key, term) in [(nobody, term), (key, Term(term.0 + 1))] {
        let taken = world.relay.handle_report(key, term, &report);
        assert_eq!(taken, Ok(()), "who has left changes nothing");
    }
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
        origins: match dice.below(20) {
            0 => vec![Origin::default(); n + 1],
            1..8 => Vec::new(),
            _ => vec![Origin::default(); n],
        },
        groups: Vec::new(),
        surprisals: Vec::new(),
    }
}

fn random_guesses(dice: &mut Dice, len: usize) -> Report {
    let around = |dice: &mut Dice| (len + 2).saturating_sub(dice.below(6)) as u32;
    Report {
        base_len: around(dice),
        nodes: random_batch(dice),
        round_done: dice.percent(50).then(|| around(dice)),
        ..Report::default()
    }
}

fn random_picks(dice: &mut Dice, text: &[u32]) -> Report {
    let base = (text.len() + 1).saturating_sub(dice.below(8));
    let mut picks = text.get(base..).unwrap_or(&[]).to_vec();
    picks.extend((0..dice.below(30)).map(|_| dice.below(91) as u32 % (VOCAB + 1)));
    let margin = |_: &u32| Margin(dice.roll() as i8);
    let mut margins: Vec<Margin> = picks.iter().map(margin).collect();
    margins.truncate(margins.len() - usize::from(dice.percent(10) && !margins.is_empty()));
    Report {
        base_len: base as u32,
        picks,
        margins,
        finish: dice.percent(20).then_some(Finish::Stop),
        ..Report::default()
    }
}

/// A report that looks like the target's next one, but breaks one rule.
fn malformed_picks(world: &mut World) -> Report {
    let text = world.relay.text();
    let mut report = Report {
        base_len: text.len() as u32 - 1,
        picks: vec![text[text.len() - 1], 0],
        margins: vec![Margin::default(); 2],
        finish: world.dice.percent(50).then_some(Finish::Stop),
        ..Report::default()
    };
    match world.dice.below(5) {
        0 => report.picks[1] = VOCAB,
        1 => report.margins.push(Margin::default()),
        2 => report.base_len += 2,
        3 => report.picks[0] = (report.picks[0] + 1) % VOCAB,
        _ => {
            report.picks.resize(900, 0);
            report.margins.resize(900, Margin::default());
        }
    }
    report
}

fn bad_update(world: &mut World, at: usize) {
    let worker = &mut world.workers[at];
    if worker.is_busy() {
        return;
    }
    let len = worker.text().len();
    let mut update = ReplicaUpdate {
        base_len: len as u32 - 1,
        commit: vec![worker.text()[len - 1]],
        nodes: NodeBatch {
            first_id: 1_000_000,
            parents: vec![0, 1_000_000],
            tokens: vec![0, 1],
            edges: vec![Prob16(60_000); 2],
            owners: vec![0, 0],
            ..NodeBatch::default()
        },
        ..ReplicaUpdate::default()
    };
    match world.dice.below(9) {
        0 => update.nodes.owners.push(0),
        7 => update.nodes.origins.push(Origin::default()),
        1 => update.nodes.tokens[1] = VOCAB,
        2 => update.nodes.parents[0] = 1_000_000,
        3 => update.nodes.parents[1] = 999_999,
        4 => update.nodes.first_id = 0,
        5 => update.commit[0] = (update.commit[0] + 1) % VOCAB,
        6 => update.base_len += 2,
        _ => update.commit = vec![0; 1025],
    }
    let before = worker.text().to_vec();
    let taken = worker.take(world.now, &update);
    assert!(taken.is_err(), "{update:?} was taken");
    assert_eq!(worker.text(), before);
    worker.settle();
}

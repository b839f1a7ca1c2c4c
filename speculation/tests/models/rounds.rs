//! Sessions of several workers and the relay between them: what each is sent, when a target waits, and what travels
//! back and forth beside the tokens.

use std::collections::BTreeMap;

use proptest::prelude::*;
use speculation::Time;
use speculation::bypass::{Bypass, Mode, Plan, Step, Way};
use speculation::duty::{Duty, Role, Source};
use speculation::learned::Learned;
use speculation::message::{
    Margin, NodeBatch, Origin, Prob16, ReplicaUpdate, Report, Scoring, SessionId, Stopping,
};
use speculation::relay::{Candidate, Relay, RelayConfig, RelayError, WorkerKey};
use speculation::stats::WalkStats;
use speculation::strategy::Settings;

use crate::rig::{AMPLE, MS, Next, VOCAB, Worker, registry};

pub(crate) const TEXT: [u32; 4] = [1, 2, 3, 4];

pub(crate) const TARGET: WorkerKey = WorkerKey(0);
pub(crate) const DRAFT: WorkerKey = WorkerKey(1);

fn relay(strategy: &Settings) -> Relay {
    Relay::new(RelayConfig {
        session: SessionId(1),
        text: TEXT.to_vec(),
        stopping: Stopping {
            prompt_len: TEXT.len() as u32,
            max_len: 1000,
            ..Stopping::default()
        },
        scoring: Scoring::default(),
        strategy: registry().choose(strategy).unwrap(),
        vocab: VOCAB,
    })
}

/// A request with its workers, and nothing under way between them.
pub(crate) struct Cluster {
    pub(crate) relay: Relay,
    workers: BTreeMap<WorkerKey, Worker>,
}

impl Cluster {
    pub(crate) fn new(strategy: &Settings, roles: &[Role]) -> Cluster {
        let mut cluster = Cluster {
            relay: relay(strategy),
            workers: BTreeMap::new(),
        };
        for (key, &role) in (0..).map(WorkerKey).zip(roles) {
            cluster.open(key, role, Learned::new(Time::ZERO, Plan::default()));
        }
        cluster
    }

    pub(crate) fn open(&mut self, key: WorkerKey, role: Role, learned: Learned) {
        let spec = self
            .relay
            .add_worker(key, Candidate::new(role))
            .expect("it has a duty");
        (self.workers).insert(key, Worker::with(&spec, AMPLE, learned));
        self.relay.handle_opened(key);
    }

    pub(crate) fn worker(&mut self, key: WorkerKey) -> &mut Worker {
        self.workers.get_mut(&key).expect("it was opened")
    }

    /// Brings a worker's newest report to the relay, and gives it.
    pub(crate) fn collect(&mut self, key: WorkerKey) -> Option<Report> {
        let report = self.worker(key).report()?;
        let term = self.relay.term_of(key).expect("it has the session");
        (self.relay)
            .handle_report(key, term, &report)
            .expect("a correct worker's report");
        Some(report)
    }

    /// Brings everything that is new to a worker; gives the updates.
    pub(crate) fn send(&mut self, now: Time, key: WorkerKey) -> Vec<ReplicaUpdate> {
        let mut sent = Vec::new();
        while let Some(update) = self.relay.poll_update(key) {
            self.worker(key).update(now, &update.message);
            sent.push(update.message);
        }
        sent
    }

    /// Lets a draft grow until it pauses, and brings all of it to the relay.
    fn grow(&mut self, now: Time) -> Vec<Report> {
        let mut reports = Vec::new();
        for _ in 0..100 {
            let poll = self.worker(DRAFT).step(now, 256);
            reports.extend(self.collect(DRAFT));
            if !matches!(poll, Next::Step(_)) {
                return reports;
            }
        }
        panic!("it never pauses");
    }
}

pub(crate) fn serial(gamma: f64) -> Settings {
    Settings::new("serial").with("gamma", gamma)
}

/// A filter between relay and target once cut such chains to 5 to 7 nodes, so that the path rollback of the baseline
/// was wrong.
#[test]
fn a_serial_chain_of_twelve_reaches_the_target_as_twelve_nodes() {
    let mut cluster = Cluster::new(&serial(12.0), &[Role::Target, Role::Draft]);
    cluster.grow(MS);
    let sent = cluster.send(MS, TARGET);
    assert_eq!(
        sent.iter().map(|update| update.nodes.len()).sum::<usize>(),
        12
    );
    let plan = cluster.worker(TARGET).plan(MS);
    assert_eq!(plan.rows.len(), 12);
    let path: f32 = (sent.iter().flat_map(|update| &update.nodes.edges))
        .map(|edge| edge.to_f32())
        .product();
    assert!(path < 1e-4, "the end of the chain is unlikely: {path}");
    let answers = cluster.worker(TARGET).answers(&plan);
    cluster.worker(TARGET).finish(2 * MS, &plan, &answers);
    let report = cluster.collect(TARGET).unwrap();
    assert_eq!(
        (report.walks.chain_submitted, report.walks.chain_accepted),
        (12, 12)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a draft has guessed, and however unlikely it thinks it: where the strategy does not say otherwise, the
    /// target is sent all of it.
    #[test]
    fn a_relay_leaves_nothing_out_by_itself(
        strategy in prop_oneof![Just("serial"), Just("serial-tree"), Just("eager")],
        nodes in prop::collection::vec((any::<prop::sample::Index>(), 0..VOCAB, any::<u16>()), 1..60),
    ) {
        let mut cluster = Cluster::new(&Settings::new(strategy), &[Role::Target, Role::Draft]);
        let parents: Vec<u32> = (nodes.iter().enumerate())
            .map(|(at, (parent, ..))| parent.index(at + 1) as u32)
            .collect();
        let mut paths: Vec<Vec<u32>> = vec![Vec::new()];
        for (at, &(_, token, _)) in nodes.iter().enumerate() {
            let path = [&paths[parents[at] as usize][..], &[token]].concat();
            paths.push(path);
        }
        paths.sort();
        paths.dedup();
        let report = Report {
            base_len: TEXT.len() as u32,
            nodes: NodeBatch {
                first_id: 1,
                parents,
                tokens: nodes.iter().map(|node| node.1).collect(),
                edges: nodes.iter().map(|node| Prob16(node.2 / 64)).collect(),
                owners: vec![0; nodes.len()],
                origins: Vec::new(),
                groups: Vec::new(),
                surprisals: Vec::new(),
            },
            ..Report::default()
        };
        let term = cluster.relay.term_of(DRAFT).unwrap();
        cluster.relay.handle_report(DRAFT, term, &report).unwrap();
        let sent = cluster.send(MS, TARGET);
        let sent: usize = sent.iter().map(|update| update.nodes.len()).sum();
        prop_assert_eq!(sent, paths.len() - 1, "a guess that two nodes make is sent once");
    }
}

#[test]
fn auto_says_itself_what_it_leaves_out() {
    let mut cluster = Cluster::new(&Settings::new("auto"), &[Role::Target, Role::Draft]);
    let report = |first_id, token, edge| Report {
        base_len: TEXT.len() as u32,
        nodes: NodeBatch {
            first_id,
            parents: vec![0],
            tokens: vec![token],
            edges: vec![Prob16::from_f32(edge)],
            owners: vec![0],
            origins: Vec::new(),
            groups: Vec::new(),
            surprisals: Vec::new(),
        },
        ..Report::default()
    };
    let term = cluster.relay.term_of(DRAFT).unwrap();
    for report in [report(1, 0, 0.0001), report(2, 1, 0.3)] {
        cluster.relay.handle_report(DRAFT, term, &report).unwrap();
    }
    let sent = cluster.send(MS, TARGET);
    assert_eq!(sent.len(), 1);
    assert_eq!(sent[0].nodes.tokens, [1]);
}

#[test]
fn a_target_waits_for_the_round_and_learns_how_long_rounds_take() {
    let mut cluster = Cluster::new(&serial(4.0), &[Role::Target, Role::Draft]);
    // Before the first round, the longest wait there is.
    assert_eq!(
        cluster.worker(TARGET).poll(MS, 256),
        Next::Wait(Some(1000 * MS))
    );
    cluster.grow(8 * MS);
    // The nodes alone do not start it; the end of the round does.
    let sent = cluster.send(8 * MS, TARGET);
    assert_eq!(sent.last().unwrap().round_done, Some(4));
    assert!(matches!(
        cluster.worker(TARGET).step(8 * MS, 256),
        Next::Step(_)
    ));
    let text = cluster.worker(TARGET).session.text().len() as u32;
    assert_eq!(text, 9, "the chain and one more");
    // The next round may last four times as long as the first did, and two milliseconds more.
    assert_eq!(
        cluster.worker(TARGET).poll(9 * MS, 256),
        Next::Wait(Some((8 + 34) * MS))
    );
    // What was learned is the worker's: its next session waits no longer for a draft that is lost.
    let learned = cluster.worker(TARGET).learned.clone();
    let mut later = Cluster::new(&serial(4.0), &[]);
    later.open(TARGET, Role::Target, learned);
    assert_eq!(
        later.worker(TARGET).poll(MS, 256),
        Next::Wait(Some(34 * MS))
    );
    assert!(matches!(
        later.worker(TARGET).poll(34 * MS, 256),
        Next::Step(_)
    ));
}

#[test]
fn a_round_is_done_when_every_draft_has_finished_it() {
    let mut cluster = Cluster::new(&serial(4.0), &[Role::Target, Role::Draft, Role::Draft]);
    cluster.grow(MS);
    let done = |sent: Vec<ReplicaUpdate>| sent.iter().find_map(|update| update.round_done);
    assert_eq!(
        done(cluster.send(MS, TARGET)),
        None,
        "the other draft is not ready"
    );
    cluster.relay.handle_lost(WorkerKey(2));
    assert_eq!(
        done(cluster.send(MS, TARGET)),
        Some(4),
        "it no longer has to be"
    );
    cluster.relay.handle_lost(DRAFT);
    let alone = Cluster::new(&serial(4.0), &[Role::Target]).send(MS, TARGET);
    assert_eq!(done(alone), Some(4), "there is nobody to wait for");
}

/// A target of `auto` without any guesses waits for them now and then, until it knows that none come. A later session
/// of the same worker begins with that, and only looks once in a while whether there are some by now.
#[test]
fn a_later_session_does_not_start_with_waits_in_vain() {
    let waits = |learned: Learned| {
        let mut cluster = Cluster::new(&Settings::new("auto"), &[]);
        cluster.open(TARGET, Role::Target, learned);
        let target = cluster.worker(TARGET);
        let mut now = MS;
        let mut waits = 0;
        for _ in 0..40 {
            if let Next::Wait(until) = target.poll(now, 256) {
                waits += 1;
                now = until.expect("a wait has an end");
            }
            let plan = target.plan(now);
            let answers = target.answers(&plan);
            now += 20 * MS;
            target.finish(now, &plan, &answers);
            target.learned.cost.observe(1, 20 * MS);
        }
        (waits, target.learned.clone())
    };
    let (first, learned) = waits(Learned::new(20 * MS, Plan::default()));
    let (second, _) = waits(learned);
    assert!(first >= 3, "{first} waits in the first session");
    assert!(
        second <= 2 && second < first,
        "{second} waits in the second, {first} in the first"
    );
}

#[test]
fn the_targets_outlook_reaches_the_drafts_with_the_commit() {
    let mut cluster = Cluster::new(&Settings::new("eager"), &[Role::Target, Role::Draft]);
    // Nothing is known yet; the draft of this strategy goes on until its tree is full.
    for _ in 0..5 {
        assert!(matches!(cluster.worker(DRAFT).step(MS, 256), Next::Step(_)));
    }
    cluster.collect(DRAFT);
    cluster.send(MS, TARGET);
    assert!(matches!(
        cluster.worker(TARGET).step(2 * MS, 256),
        Next::Step(_)
    ));
    let report = cluster.collect(TARGET).unwrap();
    let accepted = report.outlook.accepted.expect("a step has ended");
    assert_eq!((accepted, report.picks.len()), (5.0, 6));
    let sent = cluster.send(2 * MS, DRAFT);
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].outlook, sent[0].commit.len()), (report.outlook, 6));
    // It pauses once it has made more steps than that.
    let mut steps = 0;
    while let Next::Step(_) = cluster.worker(DRAFT).step(3 * MS, 256) {
        steps += 1;
    }
    assert_eq!(steps, 6);
    // An update without a commit says nothing of it, and neither does one to a target.
    let to_target = cluster.send(3 * MS, TARGET);
    assert!(
        to_target
            .iter()
            .all(|update| update.outlook.accepted.is_none())
    );
}

/// A step of one session on a device of its own.
fn step_of(took: Time) -> Step {
    Step {
        sessions: 1,
        took,
        least_us: 1000.0,
        is_shared: false,
    }
}

/// While the target rests, no guess is computed, draft and qualifier are asked for nothing, and they go on when it does.
#[test]
fn while_the_target_rests_nobody_works_for_it() {
    let roles = [Role::Target, Role::Draft, Role::Qualifier];
    let mut cluster = Cluster::new(&Settings::new("auto"), &roles);
    let qualifier = WorkerKey(2);
    let resting = Plan {
        settle: 0,
        trial_time: Time::ZERO,
        trial: 1,
        first: 1,
        pause: 3600 * 1000 * MS,
        slowed_by: f64::MAX,
    };
    let bypass = &mut cluster.worker(TARGET).learned.bypass;
    *bypass = Bypass::new(resting);
    // Guesses yield one token in ten times the time.
    bypass.picked(1);
    bypass.stepped(MS, step_of(10 * MS));
    bypass.picked(1);
    bypass.stepped(2 * MS, step_of(MS));
    assert_eq!(bypass.way(), Way::Plain);

    // What they did before they hear of it is of no use.
    cluster.worker(DRAFT).step(MS, 256);
    cluster.collect(DRAFT);
    cluster.send(MS, TARGET);
    let mut walks = WalkStats::default();
    for step in 3..8 {
        let Next::Step(plan) = cluster.worker(TARGET).step(step * MS, 256) else {
            panic!("it goes on");
        };
        assert_eq!(plan.rows, [], "no guess is computed");
        walks = cluster.collect(TARGET).expect("a token").walks;
        for key in [DRAFT, qualifier] {
            let sent = cluster.send(step * MS, key);
            // They are told once, and are not even sent the text from then on.
            let modes: Vec<Mode> = sent.iter().map(|update| update.outlook.mode).collect();
            let expected = if step == 3 { &[Mode::Rest][..] } else { &[] };
            assert_eq!(modes, expected);
            assert_eq!(cluster.worker(key).poll(step * MS, 256), Next::Parked);
        }
    }
    assert_eq!((walks.resting_steps, walks.starved_steps), (5, 0));

    cluster.worker(TARGET).learned.bypass = Bypass::new(resting);
    cluster.worker(TARGET).step(9 * MS, 256);
    cluster.collect(TARGET);
    for key in [DRAFT, qualifier] {
        cluster.send(9 * MS, key);
        let next = cluster.worker(key).poll(9 * MS, 256);
        assert!(matches!(next, Next::Step(_)), "{key:?}: {next:?}");
    }
}

/// Where that is faster on a device that they share, draft and target of `auto` stop for each other, and the qualifier rests.
#[test]
fn drafts_on_the_device_of_the_target_take_turns_with_it_where_that_is_faster() {
    let roles = [Role::Target, Role::Draft, Role::Qualifier];
    let mut cluster = Cluster::new(&Settings::new("auto"), &roles);
    let qualifier = WorkerKey(2);
    let bypass = &mut cluster.worker(TARGET).learned.bypass;
    *bypass = Bypass::new(Plan {
        settle: 0,
        trial_time: Time::ZERO,
        trial: 1,
        first: 1,
        pause: 3600 * 1000 * MS,
        slowed_by: 1.0,
    });
    bypass.opened(true);
    for step in 1..100 {
        let took = match bypass.way() {
            Way::Turns => MS,
            Way::Together | Way::Alone | Way::Plain => 10 * MS,
        };
        bypass.picked(1);
        let shared = Step {
            is_shared: true,
            ..step_of(took)
        };
        bypass.stepped(step * MS, shared);
    }
    assert_eq!(bypass.way(), Way::Turns);

    // The others hear of it with the next commit, and are not waited for before.
    cluster.worker(TARGET).step(100 * MS, 256);
    cluster.collect(TARGET).expect("tokens");
    for turn in 101..110 {
        let now = turn * MS;
        let told = cluster.send(now, DRAFT);
        assert_eq!(told[0].outlook.mode, Mode::Turns);
        cluster.send(now, qualifier);
        assert_eq!(cluster.worker(qualifier).poll(now, 256), Next::Parked);
        assert!(
            matches!(cluster.worker(TARGET).poll(now, 256), Next::Wait(Some(_))),
            "it waits for the round"
        );
        let mut steps = 0;
        while let Next::Step(_) = cluster.worker(DRAFT).step(now, 256) {
            steps += 1;
        }
        assert!((1..40).contains(&steps), "{steps} steps of a round");
        cluster.collect(DRAFT);
        cluster.send(now, TARGET);
        let Next::Step(plan) = cluster.worker(TARGET).step(now, 256) else {
            panic!("the round is over");
        };
        assert!(!plan.rows.is_empty());
        cluster.collect(TARGET).expect("tokens");
    }
}

/// A strategy whose rows do not have to pay takes turns with its drafts whatever others on the same target do.
#[test]
fn a_target_rests_only_for_strategies_that_may() {
    let mut cluster = Cluster::new(&serial(2.0), &[Role::Target, Role::Draft]);
    let bypass = &mut cluster.worker(TARGET).learned.bypass;
    *bypass = Bypass::new(Plan {
        settle: 0,
        trial_time: Time::ZERO,
        trial: 1,
        first: 1,
        ..Plan::default()
    });
    bypass.picked(1);
    bypass.stepped(MS, step_of(10 * MS));
    assert_eq!(bypass.way(), Way::Plain);
    for step in 1..4 {
        cluster.grow(step * MS);
        cluster.send(step * MS, TARGET);
        let Next::Step(plan) = cluster.worker(TARGET).step(step * MS, 256) else {
            panic!("the round is over");
        };
        assert_eq!(plan.rows.len(), 2);
        let report = cluster.collect(TARGET).expect("tokens");
        assert_eq!(report.outlook.mode, Mode::Speculate);
        cluster.send(step * MS, DRAFT);
    }
}

#[test]
fn the_outlook_is_a_mean_that_follows_recent_steps() {
    let mut cluster = Cluster::new(&Settings::new("ar"), &[Role::Target]);
    let mut last = None;
    for step in 0..3 {
        cluster.worker(TARGET).step(step * MS, 256);
        last = cluster.collect(TARGET).unwrap().outlook.accepted;
    }
    assert_eq!(last, Some(0.0), "plain decoding accepts no guess");
}

#[test]
fn nodes_arrive_at_the_coordinator_with_their_origin() {
    let tree = Settings::new("serial-tree").with("width", 2.0);
    let mut cluster = Cluster::new(&tree, &[Role::Target, Role::Draft]);
    cluster.worker(DRAFT).step(MS, 256);
    let report = cluster.collect(DRAFT).unwrap();
    // The model's own figures, see `rig`.
    let origin = |q, margin| Origin {
        source: Source::Draft,
        q: Prob16::from_f32(q),
        margin: Margin::from_f32(margin),
    };
    assert_eq!(report.nodes.origins, [origin(0.5, 2.0), origin(0.25, -1.0)]);
    // A target is told the source, which it counts; only who made the nodes knows how they were rated.
    let sent = cluster.send(MS, TARGET);
    let told = Origin {
        source: Source::Draft,
        ..Origin::default()
    };
    assert_eq!(sent[0].nodes.origins, [told, told]);
}

/// A node that another contributor was the first to send keeps the calibration of this draft all the same: what became
/// of it is learned where it was guessed.
#[test]
fn a_draft_learns_from_the_commit_what_its_guesses_were_worth() {
    let mut cluster = Cluster::new(&serial(2.0), &[Role::Target, Role::Draft]);
    let first = |report: &Report| report.nodes.edges[0];
    let before = first(&cluster.grow(MS)[0]);
    for round in 0..30 {
        cluster.send(round * MS, TARGET);
        cluster.worker(TARGET).step(round * MS, 256);
        cluster.collect(TARGET);
        cluster.send(round * MS, DRAFT);
        cluster.grow(round * MS);
    }
    cluster.send(MS, TARGET);
    cluster.worker(TARGET).step(MS, 256);
    cluster.collect(TARGET);
    cluster.send(MS, DRAFT);
    let after = first(&cluster.grow(MS)[0]);
    assert!(
        after > before,
        "all its guesses came true: {before:?}, then {after:?}"
    );
}

#[test]
fn reports_beyond_a_workers_duties_are_refused() {
    let mut cluster = Cluster::new(&serial(4.0), &[Role::Target, Role::Draft]);
    let guess = Report {
        base_len: 4,
        nodes: NodeBatch {
            first_id: 1,
            parents: vec![0],
            tokens: vec![1],
            edges: vec![Prob16(7)],
            owners: vec![0],
            origins: Vec::new(),
            groups: Vec::new(),
            surprisals: Vec::new(),
        },
        ..Report::default()
    };
    let pick = Report {
        base_len: 4,
        picks: vec![1],
        margins: vec![Margin(0)],
        ..Report::default()
    };
    let done = Report {
        base_len: 4,
        round_done: Some(4),
        ..Report::default()
    };
    let mut handle = |key, report: &Report| {
        let term = cluster.relay.term_of(key).unwrap();
        cluster.relay.handle_report(key, term, report)
    };
    for report in [&guess, &done] {
        assert_eq!(handle(TARGET, report), Err(RelayError::Duty("guesses")));
    }
    assert_eq!(handle(DRAFT, &pick), Err(RelayError::Duty("picks")));
    assert_eq!(cluster.relay.text(), TEXT);
    let sent = cluster.send(MS, TARGET);
    assert!(sent.iter().all(|update| update.nodes.is_empty()));
}

#[test]
fn a_role_that_the_strategy_does_not_use_gets_no_session() {
    for (strategy, unused) in [
        ("ar", &[Role::Draft, Role::Qualifier][..]),
        ("serial", &[Role::Qualifier]),
        ("auto", &[]),
    ] {
        let mut relay = relay(&Settings::new(strategy));
        for (key, role) in (0..).map(WorkerKey).zip(Role::ALL) {
            let spec = relay.add_worker(key, Candidate::new(role));
            assert_eq!(spec.is_none(), unused.contains(&role), "{strategy}: {role}");
            let duty = match role {
                Role::Draft => Duty::Propose,
                Role::Qualifier => Duty::Advise,
                Role::Target => Duty::Commit,
            };
            assert!(spec.is_none_or(|spec| spec.duties.iter().eq([duty])));
        }
    }
}

#[test]
fn knobs_travel_with_the_strategy_and_only_those_that_were_set() {
    let mut relay = relay(&Settings::new("auto").with("rows", 9.0));
    let spec = relay
        .add_worker(TARGET, Candidate::new(Role::Target))
        .unwrap();
    assert_eq!(spec.strategy, Settings::new("auto").with("rows", 9.0));
}

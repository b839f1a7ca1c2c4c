//! What one side sends is what the other side reads; what no correct peer sends is refused by the name of its field.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use decode::{Drawn, Rule, Sampling, Surprisal, Tolerance};
use offshoot_proto::{OLDEST_PROTOCOL, PROTOCOL, inward, outward, v1};
use prost::Message;
use speculation::Time;
use speculation::by_source::BySource;
use speculation::bypass::Mode;
use speculation::duty::{Duties, Duty, Role, Source};
use speculation::history::HistoryKey;
use speculation::journal::{Arrived, Run, Taken};
use speculation::limits::MAX_KNOBS;
use speculation::message::{
    Activity, Addressed, Finish, Forecast, FromWorker, Margin, NodeBatch, Origin, Outlook, Prob16,
    ReplicaUpdate, Report, Scoring, SessionId, SessionSpec, Shard, Stopping, StreamName, Term,
    WorkerInfo,
};
use speculation::misses::{MissCause, Misses};
use speculation::recording::{Picked, Recording, Seen};
use speculation::stats::{SourceStats, WalkStats};
use speculation::strategy::Settings;

fn addressed<T>(message: T) -> Addressed<T> {
    Addressed {
        session: SessionId(u64::MAX),
        term: Term(3),
        message,
    }
}

fn drawn(support: &[(u32, u16)], order: &[u8]) -> Drawn {
    let (ids, weights) = support.iter().copied().unzip();
    Drawn::from_parts(ids, weights, order.to_vec()).unwrap()
}

fn journal() -> Vec<Taken> {
    let arrived = |parent, edge, source| Arrived {
        parent,
        edge,
        source,
    };
    vec![
        Taken {
            nodes: vec![
                arrived(0, 0.1, Source::Draft),
                arrived(1, f32::MIN_POSITIVE, Source::Lookup),
            ],
            room: 64,
            submitted: 2,
            picks: vec![1, 0],
            ended: Time::from_micros(17),
            took: Time::from_micros(3),
            ..Taken::default()
        },
        Taken {
            nodes: vec![arrived(0, 1.0, Source::Unknown)],
            rescored: vec![(3, 0.0), (3, 0.7)],
            picks: vec![3],
            forecast: Some(Forecast::Everything),
            ended: Time::from_secs(1),
            ..Taken::default()
        },
    ]
}

fn nodes() -> NodeBatch {
    let origin = |source, q, margin| Origin {
        source,
        q: Prob16(q),
        margin: Margin(margin),
    };
    NodeBatch {
        first_id: 7,
        parents: vec![0, 7, 3],
        tokens: vec![5, 6, 7],
        edges: vec![Prob16(0), Prob16(1), Prob16(u16::MAX)],
        owners: vec![0, 1, 255],
        origins: vec![
            origin(Source::Draft, 9, i8::MIN),
            origin(Source::Qualifier, u16::MAX, i8::MAX),
            origin(Source::Unknown, 0, -1),
        ],
        groups: vec![
            (0, drawn(&[(5, 1), (9, u16::MAX)], &[1, 0])),
            (8, drawn(&[(u32::MAX, 7)], &[0])),
        ],
        surprisals: vec![(7, Surprisal(0)), (2, Surprisal(u16::MAX))],
    }
}

/// Counts of two sources; the last one has none.
fn sources() -> BySource<SourceStats> {
    let mut sources = BySource::<SourceStats>::default();
    sources[Source::Unknown].hits = 1;
    sources[Source::History] = SourceStats {
        nodes: 9,
        committed: u64::MAX,
        hits: 2,
    };
    sources
}

/// Through bytes, as on a stream.
fn over_the_wire<T: Message + Default>(message: &T) -> T {
    T::decode(message.encode_to_vec().as_slice()).unwrap()
}

#[test]
fn a_report_arrives_whole() {
    let report = Report {
        base_len: 40,
        picks: vec![1, 2],
        margins: vec![Margin(-128), Margin(127)],
        surprisals: vec![Surprisal(3), Surprisal(u16::MAX)],
        scores: None,
        prompt_scores: None,
        finish: Some(Finish::Length),
        nodes: nodes(),
        round_done: Some(0),
        outlook: Outlook {
            accepted: Some(3.25),
            mode: Mode::Rest,
            misses: 3,
            forecast: Some(Forecast::Nothing),
            step_us: Some(20_000),
        },
        activity: Activity {
            steps: 1,
            life_us: 7,
            ..Activity::default()
        },
        walks: WalkStats {
            misses: 2,
            tolerated: 4,
            sources: sources(),
            ..WalkStats::default()
        },
        misses: {
            let mut misses = Misses::default();
            for (cause, count) in MissCause::ALL.into_iter().zip(1..) {
                misses.set(cause, count);
            }
            misses
        },
        journal: journal(),
    };
    let frame = v1::WorkerFrame {
        reports: vec![outward::report(addressed(report.clone()))],
        faults: vec![
            outward::fault(addressed("why".to_owned())),
            outward::preempted(addressed(()).session, addressed(()).term),
        ],
    };
    let read = inward::worker_frame(over_the_wire(&frame)).unwrap();
    let want = [
        addressed(FromWorker::Report(report)),
        addressed(FromWorker::Fault("why".to_owned())),
        addressed(FromWorker::Preempted),
    ];
    assert_eq!(read, want);
}

#[test]
fn an_update_arrives_whole() {
    let update = ReplicaUpdate {
        base_len: 40,
        commit: vec![1, 2, 3],
        nodes: NodeBatch {
            origins: told(),
            ..nodes()
        },
        rescored: vec![(3, Prob16(4))],
        round_done: Some(43),
        allowed_len: 300,
        prompt_scored: 5,
        shard: Some(Shard { index: 2, count: 3 }),
        outlook: Outlook {
            accepted: Some(0.0),
            mode: Mode::Speculate,
            misses: 17,
            forecast: Some(Forecast::Everything),
            step_us: Some(0),
        },
    };
    let frame = v1::CoordinatorFrame {
        updates: vec![outward::update(addressed(update.clone()))],
        closed: vec![4],
        closed_terms: vec![9],
        ..v1::CoordinatorFrame::default()
    };
    let read = inward::coordinator_frame(over_the_wire(&frame)).unwrap();
    assert_eq!(read.updates, [addressed(update)]);
    assert_eq!(read.closed, [(SessionId(4), Term(9))]);
}

/// What a target is told of where nodes came from.
fn told() -> Vec<Origin> {
    [Source::Rule, Source::Unknown, Source::Draft]
        .map(|source| Origin {
            source,
            ..Origin::default()
        })
        .into()
}

#[test]
fn sources_alone_take_a_byte_for_each_node() {
    let sent = |origins| {
        let update = ReplicaUpdate {
            nodes: NodeBatch { origins, ..nodes() },
            ..ReplicaUpdate::default()
        };
        outward::update(addressed(update)).encoded_len()
    };
    let header = 2;
    assert_eq!(sent(told()), sent(Vec::new()) + header + told().len());
}

fn spec(duties: Duties, strategy: Settings) -> SessionSpec {
    SessionSpec {
        session: SessionId(5),
        term: Term(2),
        text: vec![1, 2, 3],
        stopping: Stopping {
            prompt_len: 2,
            max_len: 9,
            max_len_is_context: true,
            stop_ids: vec![4],
        },
        allowed_len: 8,
        scoring: Scoring::default(),
        strategy,
        duties,
        shard: Shard { index: 1, count: 2 },
        is_shared: true,
        history: Some(HistoryKey([7; 32])),
        has_journal: true,
    }
}

fn request(spec: SessionSpec) -> v1::OpenRequest {
    let stream = StreamName {
        coordinator: 1,
        incarnation: 2,
    };
    let sampling = Sampling {
        shaping: decode::sampling::Shaping {
            stop_ids: spec.stopping.stop_ids.clone(),
            ..Default::default()
        },
        ..Sampling::default()
    };
    outward::open(stream, spec, sampling)
}

#[test]
fn an_open_call_carries_strategy_knobs_and_duties() {
    for duty in Duty::ALL {
        let strategy = Settings::new("serial-tree")
            .with("depth", 5.0)
            .with("x", -0.5);
        let spec = spec(Duties::of(duty), strategy);
        let (read, _) = inward::open(over_the_wire(&request(spec.clone()))).unwrap();
        assert_eq!(read, spec);
        let alone = SessionSpec {
            history: None,
            has_journal: false,
            ..spec
        };
        let (read, _) = inward::open(over_the_wire(&request(alone.clone()))).unwrap();
        assert_eq!(read, alone);
    }
    let odd = Tolerance {
        draft: 0.0,
        qualifier: 7.5,
    };
    for rule in [Rule::Exact, Rule::Rejection, Rule::Fuzzy(odd)] {
        let spec = spec(Duties::default(), Settings::new("serial").by(rule));
        let (read, _) = inward::open(over_the_wire(&request(spec.clone()))).unwrap();
        assert_eq!(read, spec);
    }
    // Whether these make a session is not for the wire to say.
    for duties in [Duties::default(), Duty::ALL.into_iter().collect()] {
        let spec = spec(duties, Settings::default());
        let (read, _) = inward::open(over_the_wire(&request(spec.clone()))).unwrap();
        assert_eq!(read, spec);
    }
}

#[test]
fn what_no_correct_peer_sends_is_refused_by_name() {
    let open = |change: fn(&mut v1::OpenRequest)| {
        let mut request = request(spec(Duties::of(Duty::Commit), Settings::new("auto")));
        change(&mut request);
        inward::open(request).unwrap_err().to_string()
    };
    let refused = open(|request| request.duties = vec!["dance".to_owned()]);
    assert!(refused.contains("unknown duty \"dance\""), "{refused}");
    let refused = open(|request| {
        request.knobs.insert("rows".to_owned(), f64::NAN);
    });
    assert!(refused.contains("knobs is rows = NaN"), "{refused}");
    let refused = open(|request| {
        let many = 0..=MAX_KNOBS;
        request.knobs = many.map(|at| (format!("k{at}"), 0.0)).collect();
    });
    assert!(refused.contains("knobs is 33"), "{refused}");
    for len in [1, 31, 33] {
        let mut request = request(spec(Duties::of(Duty::Commit), Settings::new("auto")));
        request.history = vec![0; len];
        let refused = inward::open(request).unwrap_err().to_string();
        assert!(refused.contains("history is"), "{refused}");
    }
    let report = |change: fn(&mut v1::SessionReport)| {
        let report = Report {
            nodes: nodes(),
            ..Report::default()
        };
        let mut report = outward::report(addressed(report));
        change(&mut report);
        let frame = v1::WorkerFrame {
            reports: vec![report],
            ..v1::WorkerFrame::default()
        };
        inward::worker_frame(frame).unwrap_err().to_string()
    };
    let part = |report: &mut v1::SessionReport| report.nodes.as_mut().unwrap().qs.truncate(2);
    assert!(report(part).contains("nodes.sources"));
    let part = |report: &mut v1::SessionReport| {
        let nodes = report.nodes.as_mut().unwrap();
        nodes.sources.truncate(2);
        nodes.qs.truncate(2);
        nodes.margins.truncate(2);
    };
    assert!(report(part).contains("nodes.sources"));
    let wild = |report: &mut v1::SessionReport| report.nodes.as_mut().unwrap().qs[0] = 65_536;
    assert!(report(wild).contains("nodes.qs is 65536"));
    type Change = fn(&mut v1::Nodes);
    let cases: [(Change, &str); 7] = [
        (|nodes| nodes.group_sizes[0] = 3, "nodes.group_sizes"),
        (|nodes| nodes.group_order.push(0), "nodes.group_sizes"),
        (|nodes| nodes.group_weights[1] = 65_536, "behind node 0"),
        (|nodes| nodes.group_weights[2] = 0, "behind node 8"),
        (|nodes| nodes.group_order[2] = 1, "behind node 8"),
        (|nodes| nodes.surprisals[0] = 65_536, "surprisals is 65536"),
        (|nodes| nodes.surprisal_ids.push(1), "nodes.surprisals"),
    ];
    for (change, part) in cases {
        let mut sent = outward::report(addressed(Report {
            nodes: nodes(),
            ..Report::default()
        }));
        change(sent.nodes.as_mut().unwrap());
        let frame = v1::WorkerFrame {
            reports: vec![sent],
            ..v1::WorkerFrame::default()
        };
        let refused = inward::worker_frame(frame).unwrap_err().to_string();
        assert!(refused.contains(part), "{refused}");
    }
    let refused = open(|request| {
        request.acceptance = Some(v1::Acceptance {
            rule: 9,
            ..v1::Acceptance::default()
        });
    });
    assert!(refused.contains("acceptance.rule is 9"), "{refused}");
    for wild in [f32::NAN, -1.0, f32::INFINITY] {
        let frame = v1::WorkerFrame {
            reports: vec![v1::SessionReport {
                outlook: Some(wild),
                ..v1::SessionReport::default()
            }],
            ..v1::WorkerFrame::default()
        };
        let refused = inward::worker_frame(frame).unwrap_err().to_string();
        assert!(refused.contains("outlook"), "{refused}");
    }
}

#[test]
fn every_forecast_arrives_and_an_unknown_one_is_none() {
    let read = |class| {
        let update = v1::SessionUpdate {
            outlook: Some(1.0),
            forecast: class,
            ..outward::update(addressed(ReplicaUpdate::default()))
        };
        let frame = v1::CoordinatorFrame {
            updates: vec![update],
            ..v1::CoordinatorFrame::default()
        };
        let read = inward::coordinator_frame(over_the_wire(&frame)).unwrap();
        read.updates[0].message.outlook.forecast
    };
    let all = [
        None,
        Some(Forecast::Nothing),
        Some(Forecast::Some),
        Some(Forecast::Everything),
    ];
    for forecast in all {
        let update = ReplicaUpdate {
            outlook: Outlook {
                forecast,
                ..Outlook::default()
            },
            ..ReplicaUpdate::default()
        };
        assert_eq!(read(outward::update(addressed(update)).forecast), forecast);
    }
    assert_eq!(read(9), None);
}

/// A newer peer may know contributors that this one does not.
#[test]
fn an_unknown_source_is_no_error() {
    let mut report = outward::report(addressed(Report {
        nodes: nodes(),
        ..Report::default()
    }));
    report.nodes.as_mut().unwrap().sources = vec![200, 1, 2];
    let frame = v1::WorkerFrame {
        reports: vec![report],
        ..v1::WorkerFrame::default()
    };
    let read = inward::worker_frame(frame).unwrap();
    let FromWorker::Report(report) = &read[0].message else {
        panic!("a report was sent");
    };
    let sources: Vec<Source> = report.nodes.origins.iter().map(|o| o.source).collect();
    assert_eq!(sources, [Source::Unknown, Source::Draft, Source::Qualifier]);
}

#[test]
fn a_handshake_names_capabilities_and_both_ends_of_the_protocol_range() {
    let info = WorkerInfo {
        role: Role::Qualifier,
        duties: Duties::of(Duty::Propose)
            .and(Duty::Advise)
            .and(Duty::Commit),
        model: "m".to_owned(),
        numerics_id: "n".to_owned(),
        vocabulary_hash: "v".to_owned(),
        vocabulary_len: 1,
        max_context: 2,
        max_sessions: 3,
        eos_ids: vec![4],
        kv_positions: 5,
        kv_page: 6,
        device: "d".to_owned(),
    };
    let reply = over_the_wire(&outward::hello(&info, 7));
    assert_eq!(reply.capabilities, ["propose", "verify", "commit"]);
    assert_eq!((reply.role.as_str(), reply.instance), ("qualifier", 7));
    assert_eq!(reply.device, "d");
    assert_eq!(
        (reply.protocol, reply.oldest_protocol),
        (PROTOCOL, OLDEST_PROTOCOL)
    );
    let request = outward::hello_request();
    assert_eq!((request.protocol, request.oldest_protocol), (4, 4));
}

#[test]
fn recorded_positions_arrive_as_they_were_and_others_are_refused() {
    let seen = |place, picked, gaps: &[i8], q: &[u16]| Seen {
        place,
        picked,
        lead: Margin(-5),
        gaps: gaps.iter().map(|&gap| Margin(gap)).collect(),
        q: q.iter().map(|&q| Prob16(q)).collect(),
    };
    let all = [
        seen(Some(0), Picked::Nothing, &[i8::MAX], &[u16::MAX]),
        seen(None, Picked::Committed, &[0], &[9, 0]),
        seen(Some(2), Picked::Guess(1), &[3, 3], &[9, 5, 2]),
        seen(Some(0), Picked::Other, &[1, 2, 7], &[9, 5, 2, 1]),
    ];
    let mut recording = Recording::new(8);
    recording.extend(all.iter().cloned().map(Some).chain([None]));
    let sent = outward::recorded(0.5, &recording);
    assert_eq!((sent.temperature, sent.unseen), (0.5, 1));
    let read: Vec<Seen> = (sent.positions.iter().cloned())
        .map(|position| inward::seen(position).unwrap())
        .collect();
    assert_eq!(read, all);
    let wrong = |change: fn(&mut v1::RecordedPosition), field: &str| {
        let mut position = sent.positions[2].clone();
        change(&mut position);
        let error = inward::seen(position).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    };
    wrong(|position| position.place = 4, "place");
    wrong(|position| position.picked = 6, "picked");
    wrong(|position| position.picked = u32::MAX, "picked");
    wrong(|position| position.lead = 128, "lead");
    wrong(|position| position.gaps = vec![3], "gaps");
    wrong(|position| position.gaps = vec![4, 3], "gaps");
    wrong(|position| position.gaps = vec![3, 200], "gaps");
    wrong(|position| position.q.clear(), "q");
    wrong(|position| position.q = vec![1; 13], "q");
    wrong(|position| position.q[1] = 65_536, "q");
}

#[test]
fn recorded_steps_arrive_as_they_were_and_others_are_refused() {
    let run = Run {
        strategy: Settings::new("auto").with("rows", 5.0),
        room: 40,
        steps: journal(),
    };
    let mut recording = Recording::new(8);
    recording.extend_run(Term(3), &run.steps, || Run {
        steps: Vec::new(),
        ..run.clone()
    });
    let sent = outward::recorded(0.5, &recording).runs.remove(0);
    assert_eq!(inward::run(over_the_wire(&sent)).unwrap(), run);
    let wrong = |change: fn(&mut v1::Journal), field: &str| {
        let mut changed = sent.clone();
        change(changed.journal.as_mut().unwrap());
        let error = inward::run(changed).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    };
    wrong(|journal| journal.rooms.truncate(1), "journal is 2 steps");
    wrong(|journal| journal.edges.truncate(1), "journal is 2 steps");
    wrong(|journal| journal.edges[0] = f32::NAN, "journal.edges");
    wrong(|journal| journal.rescored_edges[0] = 1.5, "journal.edges");
    wrong(|journal| journal.rooms[1] = 1 << 16, "journal.rooms");
    wrong(|journal| journal.pick_counts[1] = 2, "journal.pick_counts");
    wrong(
        |journal| journal.node_counts[0] = 1,
        "journal is 1 numbers of no step",
    );
    wrong(
        |journal| journal.picks = vec![0; 1 << 17],
        "journal is 2 steps with",
    );
}

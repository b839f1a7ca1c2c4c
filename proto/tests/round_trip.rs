//! What one side sends is what the other side reads; what no correct peer sends is refused by the name of its field.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use decode::Sampling;
use offshoot_proto::{OLDEST_PROTOCOL, PROTOCOL, inward, outward, v1};
use prost::Message;
use speculation::by_source::BySource;
use speculation::bypass::Mode;
use speculation::duty::{Duties, Duty, Role, Source};
use speculation::history::HistoryKey;
use speculation::limits::MAX_KNOBS;
use speculation::message::{
    Activity, Addressed, Finish, FromWorker, Margin, NodeBatch, Origin, Outlook, Prob16,
    ReplicaUpdate, Report, Scoring, SessionId, SessionSpec, Shard, Stopping, StreamName, Term,
    WorkerInfo,
};
use speculation::stats::{SourceStats, WalkStats};
use speculation::strategy::Settings;

fn addressed<T>(message: T) -> Addressed<T> {
    Addressed {
        session: SessionId(u64::MAX),
        term: Term(3),
        message,
    }
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
        scores: None,
        prompt_scores: None,
        finish: Some(Finish::Length),
        nodes: nodes(),
        round_done: Some(0),
        outlook: Outlook {
            accepted: Some(3.25),
            mode: Mode::Rest,
        },
        activity: Activity {
            steps: 1,
            life_us: 7,
            ..Activity::default()
        },
        walks: WalkStats {
            misses: 2,
            sources: sources(),
            ..WalkStats::default()
        },
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
            ..spec
        };
        let (read, _) = inward::open(over_the_wire(&request(alone.clone()))).unwrap();
        assert_eq!(read, alone);
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

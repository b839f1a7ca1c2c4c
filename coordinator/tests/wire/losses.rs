//! Workers that die, end their streams, refuse, or send invalid messages.

use proto::v1;
use proto::v1::generate_event::Event;
use speculation::duty::Role;
use tonic::service::RoutesBuilder;
use tonic::{Code, Status};

use crate::fakes::draft::FakeDraft;
use crate::fakes::rig::{Limits, Rig, collect, event, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{PATIENCE, Server, hello, plain, until, vocabulary};

/// The session is given to its target first, and then to its draft.
const DRAFTS_TERM: u32 = 2;

/// More than a test reads before it breaks something.
const LONG: u32 = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn the_text_survives_a_draft_that_is_lost_in_the_middle() {
    let target = FakeTarget::start(Pace::OnGuess).await;
    let drafts = [FakeDraft::start().await, FakeDraft::start().await];
    let rig = Rig::start(&[&target], &[&drafts[0], &drafts[1]]).await;
    let mut stream = rig.send(request("auto", 200)).await.unwrap();
    let mut ids = Vec::new();
    assert!(matches!(
        event(&mut stream).await.unwrap(),
        Event::Started(_)
    ));
    while ids.len() < 4 {
        if let Event::Tokens(tokens) = event(&mut stream).await.unwrap() {
            ids.extend(tokens.token_ids);
        }
    }
    drafts[0].server.kill();
    drafts[1].server.kill();
    // Without a draft no guess will come, and the target has to go on without.
    target.set(Pace::OnAck);
    let finished = loop {
        match event(&mut stream).await.unwrap() {
            Event::Started(_) | Event::PromptScores(_) => panic!("out of place"),
            Event::Tokens(tokens) => ids.extend(tokens.token_ids),
            Event::Finished(finished) => break finished,
        }
    };
    assert_eq!(ids, plain(&prompt(), 200));
    let statistics = finished.statistics.unwrap();
    assert_eq!(statistics.drafts.len(), 2, "a lost draft still counts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_that_comes_back_serves_new_requests() {
    let target = FakeTarget::start(Pace::OnGuess).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    rig.generate(request("auto", 8)).await.unwrap();
    draft.drop_stream();
    until(&draft.inner.seen, |seen| seen.streams == 2).await;
    // The stream is up before the coordinator knows it; a request in between would go without a draft.
    let all_ready =
        async { while (rig.workers().await.iter()).any(|worker| worker.state != "ready") {} };
    tokio::time::timeout(PATIENCE, all_ready).await.unwrap();
    let reply = rig.generate(request("auto", 40)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 40));
    assert_eq!(draft.inner.seen.borrow().opened.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_target_ends_its_requests_with_unavailable() {
    let target = FakeTarget::with(Pace::OnAck, hello("target", LONG)).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    let mut stream = rig.send(request("ar", 0)).await.unwrap();
    assert!(matches!(
        event(&mut stream).await.unwrap(),
        Event::Started(_)
    ));
    assert!(matches!(
        event(&mut stream).await.unwrap(),
        Event::Tokens(_)
    ));
    target.server.kill();
    let status = loop {
        match event(&mut stream).await {
            Ok(Event::Tokens(_)) => {}
            Ok(other) => panic!("{other:?} from a dead target"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    let address = target.server.addr.to_string();
    assert!(status.message().contains(&address), "{status}");
    assert!(status.message().contains("was lost after"), "{status}");

    let status = rig.generate(request("ar", 4)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&address), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_vocabulary_is_refused_with_both_sides_named() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let other = vocabulary::tokenizer(200);
    let theirs = other.vocabulary().hash().to_owned();
    let draft = FakeDraft::with(v1::HelloReply {
        vocabulary_hash: theirs.clone(),
        ..hello("draft", 512)
    })
    .await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    let workers = rig.workers().await;
    assert_eq!(workers[0].state, "ready");
    let state = &workers[1].state;
    let ours = hello("draft", 512).vocabulary_hash;
    assert!(state.starts_with("refused: "), "{state}");
    assert!(state.contains(&theirs) && state.contains(&ours), "{state}");
    let reply = rig.generate(request("auto", 10)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 10));
    assert!(draft.inner.seen.borrow().opened.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn padded_logits_are_no_other_vocabulary() {
    let padded = v1::HelloReply {
        vocabulary_len: 320,
        ..hello("target", 512)
    };
    let target = FakeTarget::with(Pace::OnAck, padded).await;
    let rig = Rig::start(&[&target], &[]).await;
    assert_eq!(rig.workers().await[0].state, "ready");
    assert!(rig.readiness.is_ready());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_usable_target_the_client_learns_why() {
    let cases = [
        (
            v1::HelloReply {
                protocol: 99,
                oldest_protocol: 99,
                ..hello("target", 512)
            },
            "protocol 99",
        ),
        (hello("qualifier", 512), "role is \"qualifier\""),
        (
            v1::HelloReply {
                vocabulary_len: 10,
                ..hello("target", 512)
            },
            "10 tokens",
        ),
    ];
    for (wrong, why) in cases {
        let target = FakeTarget::with(Pace::OnAck, wrong).await;
        let rig = Rig::start(&[&target], &[]).await;
        assert!(!rig.readiness.is_ready());
        let status = rig.generate(request("ar", 4)).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains(why), "{status}");
        assert!(status.message().contains(&target.server.addr.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_an_older_protocol_is_refused_with_both_sides_named() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let ours = format!("this coordinator speaks protocol {}", proto::PROTOCOL);
    let older = FakeDraft::with(v1::HelloReply {
        protocol: 3,
        oldest_protocol: 0,
        capabilities: Vec::new(),
        ..hello("draft", 512)
    })
    .await;
    // Before protocol 4 there was no `Worker` service: every call of it is UNIMPLEMENTED.
    let oldest = Server::start(|_| {
        let none = RoutesBuilder::default().routes();
        tonic::transport::Server::builder().add_routes(none)
    })
    .await;
    let workers = [
        (Role::Target, target.server.addr),
        (Role::Draft, older.server.addr),
        (Role::Draft, oldest.addr),
    ];
    let rig = Rig::with(&workers, Limits::default()).await;
    let states: Vec<String> = (rig.workers().await.into_iter())
        .map(|worker| worker.state)
        .collect();
    assert_eq!(states[0], "ready");
    for (state, theirs) in [
        (&states[1], "speaks protocol 3"),
        (&states[2], "speaks an older protocol"),
    ] {
        assert!(state.starts_with("refused: "), "{state}");
        assert!(state.contains(theirs) && state.contains(&ours), "{state}");
    }
    // Whoever is refused takes nothing from the others.
    let reply = rig.generate(request("auto", 10)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lacks_a_capability_is_refused() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let lacking = FakeTarget::with(
        Pace::OnAck,
        v1::HelloReply {
            capabilities: vec!["verify".to_owned()],
            ..hello("target", 512)
        },
    )
    .await;
    let draft = FakeDraft::with(v1::HelloReply {
        capabilities: Vec::new(),
        ..hello("draft", 512)
    })
    .await;
    let rig = Rig::start(&[&target, &lacking], &[&draft]).await;
    let workers = rig.workers().await;
    assert_eq!(workers[0].state, "ready");
    for (worker, parts) in [
        (&workers[1], ["cannot commit", "target", "are: verify"]),
        (&workers[2], ["cannot propose", "draft", "are: none"]),
    ] {
        assert!(worker.state.starts_with("refused: "), "{worker:?}");
        for part in parts {
            assert!(worker.state.contains(part), "{part:?} in {worker:?}");
        }
    }
    let reply = rig.generate(request("auto", 10)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 10));
    assert!(lacking.inner.seen.borrow().opened.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_at_an_address_is_not_the_end() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let workers = [
        (Role::Target, target.server.addr),
        // Nothing listens on port 1 of a test machine.
        (Role::Draft, "127.0.0.1:1".parse().unwrap()),
    ];
    let limits = Limits {
        max_sessions: 4,
        max_queued: 4,
        ..Limits::default()
    };
    let rig = Rig::with(&workers, limits).await;
    let state = rig.workers().await[1].state.clone();
    assert!(
        state.starts_with("connecting: cannot reach 127.0.0.1:1"),
        "{state}"
    );
    let reply = rig.generate(request("auto", 10)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_open_is_the_clients_only_from_the_target() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    draft.refuse(Status::invalid_argument("too long for a draft"));
    let reply = rig.generate(request("auto", 10)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 10));

    for (refusal, code) in [
        (Status::invalid_argument("bad luck"), Code::InvalidArgument),
        (Status::internal("bad luck"), Code::Unavailable),
    ] {
        target.refuse(refusal);
        let status = rig.generate(request("auto", 10)).await.unwrap_err();
        assert_eq!(status.code(), code);
        assert!(status.message().contains("bad luck"), "{status}");
    }
}

/// A report whose arrays have these many parents and tokens, all with this edge.
fn invalid_report(session: u64, parents: usize, tokens: usize, edge: u32) -> v1::WorkerFrame {
    let nodes = v1::Nodes {
        first_id: 1000,
        parents: vec![0; parents],
        tokens: vec![1; tokens],
        edges: vec![edge; tokens],
        owners: vec![0; tokens],
        ..v1::Nodes::default()
    };
    let report = v1::SessionReport {
        session,
        term: DRAFTS_TERM,
        base_len: 6,
        nodes: Some(nodes),
        ..v1::SessionReport::default()
    };
    v1::WorkerFrame {
        reports: vec![report],
        faults: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_messages_from_a_draft_cost_only_the_draft() {
    let target = FakeTarget::start(Pace::Hold).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;

    // Arrays of different lengths: the session lets the draft go.
    let stream = rig.send(request("auto", 10)).await.unwrap();
    let seen = until(&draft.inner.seen, |seen| seen.opened.len() == 1).await;
    let session = *seen.opened.first().unwrap();
    draft.send(invalid_report(session, 2, 3, 1));
    until(&draft.inner.seen, |seen| seen.closed.contains(&session)).await;
    assert_eq!(draft.inner.seen.borrow().streams, 1);
    target.set(Pace::OnAck);
    assert_eq!(collect(stream).await.unwrap().ids, plain(&prompt(), 10));

    // A number that no correct peer sends: the whole stream is dropped, and opened again.
    target.set(Pace::Hold);
    let stream = rig.send(request("auto", 10)).await.unwrap();
    let seen = until(&draft.inner.seen, |seen| seen.opened.len() == 2).await;
    let session = *seen.opened.last().unwrap();
    draft.send(invalid_report(session, 1, 1, 70_000));
    until(&draft.inner.seen, |seen| seen.streams == 2).await;
    target.set(Pace::OnAck);
    assert_eq!(collect(stream).await.unwrap().ids, plain(&prompt(), 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_draft_is_let_go_and_a_faulty_target_is_given_the_session_again() {
    let target = FakeTarget::start(Pace::Hold).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    let stream = rig.send(request("auto", 10)).await.unwrap();
    let seen = until(&draft.inner.seen, |seen| seen.opened.len() == 1).await;
    let session = *seen.opened.first().unwrap();
    let fault = |term| v1::Fault {
        session,
        term,
        message: "out of pages".to_owned(),
        preempted: false,
    };
    draft.send(v1::WorkerFrame {
        reports: Vec::new(),
        faults: vec![fault(DRAFTS_TERM)],
    });
    until(&draft.inner.seen, |seen| seen.closed.contains(&session)).await;
    // Of an older term: it changes nothing.
    for term in [0, 1] {
        target.send(v1::WorkerFrame {
            reports: Vec::new(),
            faults: vec![fault(term)],
        });
    }
    until(&target.inner.seen, |seen| {
        (seen.opened.get(&session)).is_some_and(|opened| opened.term > 1)
    })
    .await;
    target.set(Pace::OnAck);
    assert_eq!(collect(stream).await.unwrap().ids, plain(&prompt(), 10));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_is_not_a_number_ends_the_text_behind_its_tokens() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    target.finish_with(v1::FinishReason::NotFinite);
    let mut stream = rig.send(request("ar", 10)).await.unwrap();
    assert!(matches!(
        event(&mut stream).await.unwrap(),
        Event::Started(_)
    ));
    let Event::Tokens(tokens) = event(&mut stream).await.unwrap() else {
        panic!("the tokens so far come first");
    };
    assert_eq!(tokens.token_ids, plain(&prompt(), 1));
    let status = event(&mut stream).await.unwrap_err();
    assert_eq!(status.code(), Code::Internal);
    assert!(status.message().contains("not a number"), "{status}");
}

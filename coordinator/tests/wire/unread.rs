//! Clients that stop reading: their sessions hold no worker and nobody's place for long, and go on by replay; those that never
//! read again are told.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::v1;
use proto::v1::generate_event::Event;
use tonic::{Code, Status, Streaming};

use crate::fakes::draft::FakeDraft;
use crate::fakes::rig::{Limits, Rig, event, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{hello, plain, until};
use crate::limits::seeking;

/// What a client of these tests holds unread, in bytes.
const WINDOW: u32 = 1024;
/// This machine, and another address of it.
const HERE: [u8; 4] = [127, 0, 0, 1];
const ELSEWHERE: [u8; 4] = [127, 0, 0, 2];

/// Room for so many completions, at workers and at the coordinator.
fn limits(most: usize) -> Limits {
    Limits {
        max_sessions: most,
        max_queued: most,
        park_after: Duration::from_millis(200),
        ..Limits::default()
    }
}

async fn target(max_sessions: u32) -> FakeTarget {
    let hello = v1::HelloReply {
        max_sessions,
        ..hello("target", 100_000)
    };
    FakeTarget::with(Pace::OnAck, hello).await
}

/// Reads tokens until every completion has so many.
async fn read(
    stream: &mut Streaming<v1::GenerateEvent>,
    completions: usize,
    tokens: usize,
) -> Result<BTreeMap<u32, Vec<u32>>, Status> {
    let mut ids: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    while ids.len() < completions || ids.values().any(|ids| ids.len() < tokens) {
        let message = stream.message().await?.expect("the text goes on");
        let own = ids.entry(message.choice).or_default();
        match message.event.unwrap() {
            Event::Started(_) => {}
            Event::Tokens(tokens) => own.extend(tokens.token_ids),
            other => panic!("{other:?} in the middle of a text"),
        }
    }
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_completions_that_nobody_reads_stop_nobody_and_go_on_when_they_are_read() {
    let target = target(16).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::limited(&[&target], &[&draft], limits(16)).await;
    let asked = v1::GenerateRequest {
        n: 16,
        ..request("auto", 0)
    };
    let mut slow = rig.client_from(HERE, WINDOW).await;
    let mut stream = slow.generate(asked).await.unwrap().into_inner();
    until(&target.inner.seen, |seen| seen.opened.len() == 16).await;
    // They take every place there is, until they are parked.
    let reply = rig.generate(request("auto", 300)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 300));
    rig.until_completions(0, 16).await;
    rig.until_free().await;
    until(&target.inner.seen, |seen| {
        let mut opened = seen.opened.keys();
        opened.all(|session| seen.closed.contains(session))
    })
    .await;

    let ids = read(&mut stream, 16, 1000).await.unwrap();
    for (choice, ids) in ids {
        assert_eq!(ids, plain(&prompt(), ids.len()), "completion {choice}");
    }
    let opens = target.inner.seen.borrow().order.len();
    assert!(opens >= 17 + 16, "{opens} opens: each goes on by replay");
    drop(stream);
    rig.until_completions(0, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_for_long_is_told_and_leaves_nothing() {
    let target = target(4).await;
    let limits = Limits {
        client_timeout: Duration::from_secs(5),
        ..limits(4)
    };
    let rig = Rig::limited(&[&target], &[], limits).await;
    let asked = v1::GenerateRequest {
        n: 2,
        ..request("ar", 0)
    };
    let mut slow = rig.client_from(HERE, WINDOW).await;
    let mut stream = slow.generate(asked).await.unwrap().into_inner();
    until(&target.inner.seen, |seen| seen.opened.len() == 2).await;
    rig.until_completions(0, 2).await;
    rig.until_completions(0, 0).await;
    // What is on its way is still text, and then comes the reason.
    let status = read(&mut stream, 2, usize::MAX).await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    for part in ["5 s", "resume", "--client-timeout"] {
        assert!(status.message().contains(part), "{part} in {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_text_that_nobody_reads_holds_nobody_up() {
    let target = target(1).await;
    let limits = Limits {
        client_timeout: Duration::from_secs(5),
        ..limits(1)
    };
    let rig = Rig::limited(&[&target], &[], limits).await;
    // However few events the tokens come in, they do not fit.
    let mut slow = rig.client_from(HERE, 64).await;
    let stream = slow.generate(request("ar", 200)).await.unwrap();
    until(&target.inner.seen, |seen| seen.closed.len() == 1).await;
    rig.until_completions(0, 1).await;
    let reply = rig.generate(request("ar", 10)).await.unwrap();
    assert_eq!(reply.ids, plain(&prompt(), 10));
    rig.until_completions(0, 0).await;
    drop(stream);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_gets_everything() {
    let target = target(1).await;
    let limits = Limits {
        park_after: Duration::ZERO,
        ..limits(4)
    };
    let rig = Rig::limited(&[&target], &[], limits).await;
    let mut slow = rig.client_from(HERE, WINDOW).await;
    let mut stream = slow
        .generate(request("ar", 3000))
        .await
        .unwrap()
        .into_inner();
    let mut ids = Vec::new();
    loop {
        // Whenever it has read for a while it stops until its session is parked.
        if ids.len() % 600 < 100 {
            rig.workers().await;
        }
        match event(&mut stream).await.unwrap() {
            Event::Started(_) => {}
            Event::Tokens(tokens) => ids.extend(tokens.token_ids),
            Event::Finished(finished) => {
                assert_eq!(finished.completion_tokens, 3000);
                break;
            }
            Event::PromptScores(_) => panic!("nobody asked for scores"),
        }
    }
    assert_eq!(ids, plain(&prompt(), 3000));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_cannot_have_every_place() {
    let target = target(1).await;
    target.set(Pace::Hold);
    let rig = Rig::limited(&[&target], &[], limits(50)).await;
    let mut streams = vec![rig.send(request("ar", 5)).await.unwrap()];
    until(&target.inner.seen, |seen| seen.opened.len() == 1).await;
    let refused = loop {
        match rig.send(request("ar", 5)).await {
            Ok(stream) => streams.push(stream),
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("left to others"), "{refused}");
    assert_eq!(streams.len(), 89);
    let mut other = rig.client_from(ELSEWHERE, 65_535).await;
    let mut stream = other.generate(request("ar", 7)).await.unwrap().into_inner();
    seeking(&rig, 89).await;
    // It is also next.
    target.set(Pace::OnAck);
    while stream.message().await.unwrap().is_some() {}
    assert_eq!(placed(&target)[1], 7);
}

/// The tokens that were asked for by those that were placed, in their order.
fn placed(target: &FakeTarget) -> Vec<u32> {
    let seen = target.inner.seen.borrow();
    let opened = seen.order.iter().map(|session| &seen.opened[session]);
    opened
        .map(|open| open.stopping.as_ref().unwrap().max_len - prompt().len() as u32)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn many_completions_of_one_client_are_one_client_in_the_queue() {
    let target = target(1).await;
    target.set(Pace::Hold);
    let rig = Rig::limited(&[&target], &[], limits(16)).await;
    let mut streams = vec![rig.send(request("ar", 10)).await.unwrap()];
    until(&target.inner.seen, |seen| seen.opened.len() == 1).await;
    let many = v1::GenerateRequest {
        n: 4,
        ..request("ar", 20)
    };
    streams.push(rig.send(many).await.unwrap());
    seeking(&rig, 4).await;
    let mut other = rig.client_from(ELSEWHERE, 65_535).await;
    for (others, tokens) in (5..).zip([30, 31]) {
        let stream = other.generate(request("ar", tokens)).await.unwrap();
        streams.push(stream.into_inner());
        seeking(&rig, others).await;
    }
    target.set(Pace::OnAck);
    for mut stream in streams {
        while stream.message().await.unwrap().is_some() {}
    }
    let order = placed(&target);
    assert_eq!(order, [10, 30, 20, 31, 20, 20, 20]);
}

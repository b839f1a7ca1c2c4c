//! Where completions end, and how many there are of a prompt.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1;
use proto::v1::generate_event::Event;
use tonic::Code;
use tonic_types::StatusExt;

use crate::fakes::rig::{Limits, Rig, event, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{plain, until};
use speculation::duty::Role;

fn text_of(ids: &[u32]) -> String {
    ids.iter().map(|&id| char::from(id as u8)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_text_ends_the_completion_before_itself() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    let whole = plain(&prompt(), 40);
    let text = text_of(&whole);
    // Two tokens, so that the first of them has to be held back.
    let stop = &text[20..22];
    let at = text.find(stop).unwrap();
    for (include_stop, end) in [(false, at), (true, at + 2)] {
        let asked = v1::GenerateRequest {
            stop: vec!["never".to_owned(), stop.to_owned()],
            include_stop,
            ..request("ar", 40)
        };
        let reply = rig.generate(asked).await.unwrap();
        assert_eq!(reply.text, text[..end]);
        assert_eq!(reply.ids, whole[..at + 2]);
        assert_eq!(reply.finished.reason(), v1::FinishReason::Stop);
        assert_eq!(reply.finished.stop_text.as_deref(), Some(stop));
        assert_eq!(reply.finished.completion_tokens as usize, at + 2);
        let session = reply.started.session;
        until(&target.inner.seen, |seen| seen.closed.contains(&session)).await;
    }
    // Before the least number of tokens it does not count.
    let asked = v1::GenerateRequest {
        stop: vec![stop.to_owned()],
        min_tokens: at as u32 + 2,
        ..request("ar", 40)
    };
    let reply = rig.generate(asked).await.unwrap();
    let next = text[at + 2..]
        .find(stop)
        .map_or(text.len(), |found| at + 2 + found);
    assert_eq!(reply.text, text[..next]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_back_for_a_stop_text_comes_with_the_end() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let rig = Rig::start(&[&target], &[]).await;
    let text = text_of(&plain(&prompt(), 12));
    let asked = v1::GenerateRequest {
        stop: vec![format!("{}!", &text[10..])],
        ..request("ar", 12)
    };
    let reply = rig.generate(asked).await.unwrap();
    assert_eq!(
        (reply.text, reply.finished.text),
        (text.clone(), text[10..].to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn several_completions_share_one_stream() {
    let target = FakeTarget::start(Pace::OnAck).await;
    let limits = Limits {
        max_sessions: 2,
        max_queued: 2,
        ..Limits::default()
    };
    let rig = Rig::with(&[(Role::Target, target.server.addr)], limits).await;
    let asked = v1::GenerateRequest {
        n: 3,
        ..request("ar", 30)
    };
    let mut stream = rig.send(asked.clone()).await.unwrap();
    let mut ids: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut ended = BTreeSet::new();
    while let Some(event) = stream.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Started(_) => assert!(ids.insert(event.choice, Vec::new()).is_none()),
            Event::Tokens(tokens) => {
                ids.get_mut(&event.choice).unwrap().extend(tokens.token_ids);
            }
            Event::Finished(_) => assert!(ended.insert(event.choice)),
            Event::PromptScores(_) => panic!("nobody asked for scores"),
        }
    }
    assert_eq!(ended, BTreeSet::from([0, 1, 2]));
    assert!(ids.values().all(|ids| *ids == plain(&prompt(), 30)));
    let seen = target.inner.seen.borrow().clone();
    let noise: BTreeSet<u32> = (seen.opened.values())
        .map(|open| open.sampling.as_ref().unwrap().choice)
        .collect();
    assert_eq!(noise, BTreeSet::from([0, 1, 2]), "each draws its own noise");

    // Five are more than may run and wait.
    let status = (rig.send(v1::GenerateRequest { n: 5, ..asked }).await).unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
    assert_eq!(rig.coordinator.running(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_all_its_completions_along() {
    let target = FakeTarget::start(Pace::Hold).await;
    let limits = Limits {
        max_sessions: 2,
        max_queued: 4,
        ..Limits::default()
    };
    let rig = Rig::with(&[(Role::Target, target.server.addr)], limits).await;
    let asked = v1::GenerateRequest {
        n: 4,
        ..request("ar", 30)
    };
    let mut stream = rig.send(asked).await.unwrap();
    assert!(matches!(
        event(&mut stream).await.unwrap(),
        Event::Started(_)
    ));
    drop(stream);
    until(&target.inner.seen, |seen| {
        seen.closed.len() == seen.opened.len() && !seen.opened.is_empty()
    })
    .await;
    // Somebody else is served.
    target.set(Pace::OnAck);
    assert_eq!(rig.generate(request("ar", 3)).await.unwrap().ids.len(), 3);
}

//! Clients that leave and clients that do not read.

use proto::v1::generate_event::Event;
use proto::v1::generation_client::GenerationClient;

use crate::fakes::draft::FakeDraft;
use crate::fakes::rig::{Rig, event, prompt, request};
use crate::fakes::target::{FakeTarget, Pace};
use crate::fakes::{PATIENCE, hello, plain, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_every_worker() {
    let target = FakeTarget::with(Pace::OnAck, hello("target", 100_000)).await;
    let draft = FakeDraft::start().await;
    let rig = Rig::start(&[&target], &[&draft]).await;
    let mut stream = rig.send(request("auto", 0)).await.unwrap();
    let Event::Started(started) = event(&mut stream).await.unwrap() else {
        panic!("a stream begins with its start");
    };
    drop(stream);
    let session = started.session;
    until(&target.inner.seen, |seen| seen.closed.contains(&session)).await;
    until(&draft.inner.seen, |seen| seen.closed.contains(&session)).await;
    rig.until_free().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_parks_its_session_and_nobody_else() {
    let target = FakeTarget::with(Pace::OnAck, hello("target", 100_000)).await;
    let rig = Rig::start(&[&target], &[]).await;
    let channel = runtime::client::endpoint(&rig.addr.to_string())
        .unwrap()
        .initial_stream_window_size(4096)
        .connect()
        .await
        .unwrap();
    let mut slow = GenerationClient::new(channel);
    let mut stream = slow.generate(request("ar", 0)).await.unwrap().into_inner();
    let Event::Started(started) = event(&mut stream).await.unwrap() else {
        panic!("a stream begins with its start");
    };
    let session = started.session;

    // It comes to stand at the length it is allowed, and stands there while others are served whole texts. Buffers on the
    // way to the client may still have room when it stands for the first time.
    let settled = async {
        loop {
            let seen = until(&target.inner.seen, |seen| {
                seen.parked.contains_key(&session)
            });
            let parked_at = seen.await.parked[&session];
            for _ in 0..3 {
                let reply = rig.generate(request("ar", 300)).await.unwrap();
                assert_eq!(reply.ids, plain(&prompt(), 300));
            }
            if target.inner.seen.borrow().parked.get(&session) == Some(&parked_at) {
                return parked_at;
            }
        }
    };
    let settled = tokio::time::timeout(PATIENCE, settled).await;
    let parked_at = settled.expect("it never comes to stand");

    // Reading lets it go on, and nothing of the text is missing.
    let mut ids = Vec::new();
    while ids.len() < parked_at + 100 {
        match event(&mut stream).await.unwrap() {
            Event::Tokens(tokens) => ids.extend(tokens.token_ids),
            other => panic!("{other:?} in the middle of a text"),
        }
    }
    assert_eq!(ids, plain(&prompt(), ids.len()));
    drop(stream);
    until(&target.inner.seen, |seen| seen.closed.contains(&session)).await;
}

//! The Rust example of `docs/clients.md`: it is what is compiled, and it does what the page says.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

#[path = "../examples/client.rs"]
#[allow(dead_code, reason = "its `main` is run by readers")]
mod example;

use std::time::Duration;

use e2e::cluster::{Cluster, Shape};
use e2e::{client, root};
use example::{Client, Completion};
use offshoot_e2e as e2e;
use tonic::Code;

#[test]
fn the_page_shows_what_is_compiled() {
    let page = std::fs::read_to_string(root().join("docs/clients.md")).unwrap();
    let example = include_str!("../examples/client.rs");
    assert!(
        page.contains(&format!("```rust\n{example}```\n")),
        "docs/clients.md does not show tests/e2e/examples/client.rs"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_does_what_the_page_says() {
    let shape = Shape {
        drafts: 1,
        qualifiers: 0,
        // Slow enough for a deadline.
        target_pace: 20,
    };
    let mut cluster = Cluster::start(shape).unwrap();
    let second = cluster.another_coordinator().unwrap();
    let watching = client::Client::connect(&cluster.coordinator.addr, 2)
        .await
        .unwrap();
    let asked = example::request("fn main() {", 48);
    let plain = plainly(&watching, &asked).await;
    let address = format!("http://{}", cluster.coordinator.addr);
    let mut caller = Client::connect(address).await.unwrap();

    let mut whole = Completion::default();
    example::stream(&mut caller, asked.clone(), &mut whole, |_| true)
        .await
        .unwrap();
    assert_eq!((&whole.ids, &whole.text), (&plain.ids, &plain.text));
    assert_eq!(whole.started.seed, 7);

    let mut part = Completion::default();
    let endless = proto::v1::GenerateRequest {
        max_tokens: 0,
        ignore_eos: true,
        ..asked.clone()
    };
    example::stream(&mut caller, endless.clone(), &mut part, |got| {
        got.ids.len() < 8
    })
    .await
    .unwrap();
    assert_eq!(part.ids[..8], plain.ids[..8]);
    watching.wait_for_sessions(|open| open == 0).await.unwrap();

    let mut part = Completion::default();
    let limited = example::within(endless, Duration::from_millis(400));
    let status = example::stream(&mut caller, limited, &mut part, |_| true)
        .await
        .unwrap_err();
    // Whose clock is first, the client's or the server's, is chance.
    assert!(
        matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{status}"
    );
    let common = part.ids.len().min(plain.ids.len());
    assert_eq!(part.ids[..common], plain.ids[..common]);

    let mut scored = Completion::default();
    let request = example::scored(asked.clone());
    example::stream(&mut caller, request, &mut scored, |_| true)
        .await
        .unwrap();
    assert_eq!(scored.ids, plain.ids);
    assert_eq!(scored.logprobs.len(), plain.ids.len());
    assert!(scored.logprobs.iter().all(|&logprob| logprob <= 0.0));

    // The first coordinator is lost in the middle of a longer one.
    let asked = proto::v1::GenerateRequest {
        max_tokens: 150,
        ignore_eos: true,
        ..asked
    };
    let plain = plainly(&watching, &asked).await;
    let coordinators = [cluster.coordinator.addr.clone(), second.addr.clone()];
    let resuming = tokio::spawn(async move { example::resume(&coordinators, &asked).await });
    watching.wait_for_sessions(|open| open == 1).await.unwrap();
    cluster.coordinator.kill().unwrap();
    let resumed = resuming.await.unwrap().unwrap();
    assert_eq!((resumed.ids, resumed.text), (plain.ids, plain.text));
}

/// The same request decoded plainly.
async fn plainly(
    watching: &client::Client,
    asked: &proto::v1::GenerateRequest,
) -> client::Completion {
    let plain = proto::v1::GenerateRequest {
        strategy: e2e::REFERENCE.to_owned(),
        ..asked.clone()
    };
    watching.generate(plain).await.unwrap()
}

//! Many clients, impatient clients and mistaken clients, on one cluster of real processes.

#![allow(clippy::unwrap_used, reason = "tests")]

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::prompts;
use proto::v1::generate_request::Prompt;
use tonic::Code;

const SHAPE: Shape = Shape {
    drafts: 1,
    qualifiers: 1,
    target_pace: 0,
};

async fn cluster() -> (Cluster, Client) {
    let cluster = Cluster::start(SHAPE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 3).await.unwrap();
    (cluster, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_mates_change_nothing() {
    let (_cluster, client) = cluster().await;
    let prompts = prompts(8).unwrap();
    let mut running = Vec::new();
    for prompt in &prompts {
        for strategy in ["auto", "serial-tree"] {
            let (client, asked) = (client.clone(), request(prompt, 48, 0.9, strategy));
            running.push(tokio::spawn(async move { client.generate(asked).await }));
        }
    }
    let mut together = Vec::new();
    for task in running {
        together.push(task.await.unwrap().unwrap().ids);
    }
    for (at, prompt) in prompts.iter().enumerate() {
        let alone = client
            .generate(request(prompt, 48, 0.9, "ar"))
            .await
            .unwrap();
        assert_eq!(together[2 * at], alone.ids, "auto, prompt {at}");
        assert_eq!(together[2 * at + 1], alone.ids, "serial-tree, prompt {at}");
    }
}

/// Far more requests than a worker has places: one that leaves something behind would fill it up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_streams_free_everything() {
    let (_cluster, client) = cluster().await;
    let prompt = &prompts(1).unwrap()[0];
    for _ in 0..40 {
        let asked = request(prompt, 400, 1.0, "auto");
        let (first, arrived) = tokio::sync::oneshot::channel();
        let mut first = Some(first);
        let running = tokio::spawn({
            let client = client.clone();
            async move {
                let tell = |_| {
                    if let Some(first) = first.take() {
                        let _ = first.send(());
                    }
                };
                client.generate_watched(asked, tell).await
            }
        });
        arrived.await.unwrap();
        running.abort();
    }
    client.wait_for_sessions(|open| open == 0).await.unwrap();
    let plain = client
        .generate(request(prompt, 48, 0.0, "ar"))
        .await
        .unwrap();
    let auto = client
        .generate(request(prompt, 48, 0.0, "auto"))
        .await
        .unwrap();
    assert_eq!(plain.ids, auto.ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_named_and_disturb_nobody() {
    let (_cluster, client) = cluster().await;
    let good = request("fn main() {", 16, 0.0, "auto");
    let mut hot = good.clone();
    hot.temperature = -3.0;
    let mut mass = good.clone();
    mass.top_p = Some(1.5);
    let mut unknown = good.clone();
    unknown.strategy.as_mut().unwrap().name = "magic".to_owned();
    let mut empty = good.clone();
    empty.prompt = Some(Prompt::Text(String::new()));
    let mut alien = good.clone();
    alien.prompt = Some(Prompt::Tokens(proto::v1::TokenIds {
        ids: vec![5, 999_999],
    }));
    let mut long = good.clone();
    long.prompt = Some(Prompt::Text("let x = 1;\n".repeat(2000)));
    let mistakes = [
        (hot, "temperature"),
        (mass, "top_p"),
        (unknown, "magic"),
        (empty, "prompt"),
        (alien, "999999"),
        (long, "context"),
    ];
    for (mistake, named) in mistakes {
        let status = client.generate(mistake).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(named), "{named}: {status}");
    }
    assert_eq!(client.generate(good).await.unwrap().ids.len(), 16);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_lets_running_requests_finish() {
    let (mut cluster, client) = cluster().await;
    let prompt = &prompts(1).unwrap()[0];
    let plain = client
        .generate(request(prompt, 200, 0.7, "ar"))
        .await
        .unwrap();
    let (first, arrived) = tokio::sync::oneshot::channel();
    let mut first = Some(first);
    let asked = request(prompt, 200, 0.7, "auto");
    let running = tokio::spawn(async move {
        let tell = |_| {
            if let Some(first) = first.take() {
                let _ = first.send(());
            }
        };
        client.generate_watched(asked, tell).await
    });
    arrived.await.unwrap();
    let status = tokio::task::spawn_blocking(move || cluster.coordinator.terminate());
    assert_eq!(running.await.unwrap().unwrap().ids, plain.ids);
    assert!(status.await.unwrap().unwrap().success());
}

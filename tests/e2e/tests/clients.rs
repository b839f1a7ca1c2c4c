//! Many clients, clients that cancel and clients that send invalid requests, on a cluster of real processes.

#![allow(clippy::unwrap_used, reason = "tests")]

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::{REFERENCE, prompts, strategies};
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
async fn sharing_a_batch_changes_nothing() {
    let (_cluster, client) = cluster().await;
    let prompts = prompts(8).unwrap();
    let mut running = Vec::new();
    let strategies = strategies();
    for prompt in &prompts {
        for strategy in &strategies {
            let (client, asked) = (client.clone(), request(prompt, 48, 0.9, strategy.name));
            running.push(tokio::spawn(async move { client.generate(asked).await }));
        }
    }
    let mut together = Vec::new();
    for task in running {
        together.push(task.await.unwrap().unwrap().ids);
    }
    for (at, prompt) in prompts.iter().enumerate() {
        let alone = client
            .generate(request(prompt, 48, 0.9, REFERENCE))
            .await
            .unwrap();
        for (number, strategy) in strategies.iter().enumerate() {
            let ids = &together[strategies.len() * at + number];
            assert_eq!(ids, &alone.ids, "{}, prompt {at}", strategy.name);
        }
    }
}

/// Far more requests than a worker serves sessions: if each left something behind, the worker would be full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_streams_free_everything() {
    let (_cluster, client) = cluster().await;
    let prompt = &prompts(1).unwrap()[0];
    let strategies = strategies();
    for number in 0..40 {
        let strategy = strategies[number % strategies.len()].name;
        let asked = request(prompt, 400, 1.0, strategy);
        let (first, arrived) = tokio::sync::oneshot::channel();
        let mut first = Some(first);
        let running = tokio::spawn({
            let client = client.clone();
            async move {
                let observe = |_| {
                    if let Some(first) = first.take() {
                        let _ = first.send(());
                    }
                };
                client.generate_observed(asked, observe).await
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
async fn invalid_requests_are_explained_and_affect_no_other() {
    let (_cluster, client) = cluster().await;
    let good = request("fn main() {", 16, 0.0, "auto");
    let mut hot = good.clone();
    hot.temperature = -3.0;
    let mut mass = good.clone();
    mass.top_p = Some(1.5);
    let mut unknown = good.clone();
    unknown.strategy = "magic".to_owned();
    let mut unknown_knob = good.clone();
    unknown_knob.knobs.insert("luck".to_owned(), 1.0);
    let mut wide = good.clone();
    wide.knobs.insert("width".to_owned(), 1e9);
    let mut empty = good.clone();
    empty.prompt = Some(Prompt::Text(String::new()));
    let mut foreign = good.clone();
    foreign.prompt = Some(Prompt::Tokens(proto::v1::TokenIds {
        ids: vec![5, 999_999],
    }));
    let mut long = good.clone();
    long.prompt = Some(Prompt::Text("let x = 1;\n".repeat(2000)));
    let mistakes = [
        (hot, "temperature"),
        (mass, "top_p"),
        (unknown, "magic"),
        (unknown_knob, "luck"),
        (wide, "width"),
        (empty, "prompt"),
        (foreign, "999999"),
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
        let observe = |_| {
            if let Some(first) = first.take() {
                let _ = first.send(());
            }
        };
        client.generate_observed(asked, observe).await
    });
    arrived.await.unwrap();
    let status = tokio::task::spawn_blocking(move || cluster.coordinator.terminate());
    assert_eq!(running.await.unwrap().unwrap().ids, plain.ids);
    assert!(status.await.unwrap().unwrap().success());
}

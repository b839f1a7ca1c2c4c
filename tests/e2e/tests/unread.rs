//! Clients that stop reading, on real processes: they hold no worker and nobody's place for long, and get the same text when
//! they read on.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::Process;
use offshoot_e2e::model;
use proto::v1::GenerateRequest;
use proto::v1::generate_event::Event;
use tonic::Code;

/// Completions of the client that stops reading: as many as there are places.
const COMPLETIONS: u32 = 8;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

struct Cluster {
    _workers: [Process; 2],
    _coordinator: Process,
    client: Client,
}

/// A target and a draft with eight sessions each, and a coordinator that runs eight completions, with these flags.
async fn cluster(flags: &str) -> Cluster {
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let worker = |role: &str, name: &str| {
        let model = model(name).display().to_string();
        let arguments = format!("{role} --model {model} --max-num-seqs {COMPLETIONS}");
        Process::start(&words(arguments)).unwrap()
    };
    let (target, draft) = (
        worker("target-worker", "target"),
        worker("draft-worker", "draft"),
    );
    let tokenizer = model("target").display().to_string();
    let (to_target, to_draft) = (&target.addr, &draft.addr);
    let arguments = format!(
        "coordinator --tokenizer {tokenizer} --target {to_target} --draft {to_draft} \
         --max-sessions {COMPLETIONS} {flags}"
    );
    let coordinator = Process::start(&words(arguments)).unwrap();
    let client = Client::connect(&coordinator.addr, 2).await.unwrap();
    Cluster {
        _workers: [target, draft],
        _coordinator: coordinator,
        client,
    }
}

/// Far more than a connection holds unread.
fn much() -> GenerateRequest {
    GenerateRequest {
        n: COMPLETIONS,
        ignore_eos: true,
        logprobs: Some(20),
        ..request("fn main() {", 600, 0.8, "auto")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_stops_nobody_and_gets_the_same_text_later() {
    let cluster = cluster("--park-after 1").await;
    let client = &cluster.client;
    let mut stream = client.stream(much()).await.unwrap();
    stream.message().await.unwrap().unwrap();
    // All places are taken, and nobody reads.
    let other = tokio::time::timeout(LIMIT, client.generate(request("let x", 40, 0.0, "auto")));
    let other = other
        .await
        .expect("somebody else waits for a client that does not read")
        .unwrap();
    client
        .wait_for_sessions(|running| running == 0)
        .await
        .unwrap();
    for worker in client.workers().await.unwrap() {
        assert_eq!(worker.sessions, 0, "{worker:?}");
    }
    let mut texts = vec![Vec::new(); COMPLETIONS as usize];
    let mut ended = 0;
    while let Some(event) = stream.message().await.unwrap() {
        match event.event.unwrap() {
            Event::Tokens(tokens) => texts[event.choice as usize].extend(tokens.token_ids),
            Event::Finished(_) => ended += 1,
            Event::Started(_) | Event::PromptScores(_) => {}
        }
    }
    assert_eq!(ended, COMPLETIONS);
    let read_at_once = client.generate_all(much()).await.unwrap();
    for (choice, completion) in read_at_once {
        assert_eq!(
            texts[choice as usize], completion.ids,
            "completion {choice}"
        );
    }
    let again = client
        .generate(request("let x", 40, 0.0, "ar"))
        .await
        .unwrap();
    assert_eq!(other.ids, again.ids);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_reads_again_is_told() {
    let cluster = cluster("--park-after 1 --client-timeout 3").await;
    let client = &cluster.client;
    let mut stream = client.stream(much()).await.unwrap();
    stream.message().await.unwrap().unwrap();
    client
        .wait_for_sessions(|running| running == 0)
        .await
        .unwrap();
    client.wait_for_completions(0).await.unwrap();
    let status = loop {
        match stream.message().await {
            Ok(event) => assert!(event.is_some(), "the text has ended"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Aborted, "{status}");
    assert!(status.message().contains("3 s"), "{status}");
}

//! Wrong addresses: whoever is not what a coordinator's flags say is refused with the reason, where its operator looks (the
//! `Cluster` call, the log) and where its clients do (their error), and it takes nothing from the others.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::net::SocketAddr;
use std::time::Duration;

use e2e::client::{Client, request};
use e2e::cluster::Process;
use e2e::model;
use e2e::wait::{met, until};
use offshoot_e2e as e2e;
use runtime::{Caller, Drain, Listener, NetArgs, Readiness, ServerLimits};
use tokio::io::AsyncWriteExt;
use tonic::Code;

const LIMIT: Duration = Duration::from_secs(60);

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn worker(role: &str, name: &str) -> Process {
    let model = model(name).display().to_string();
    Process::start(&words(&[role, "--model", &model, "--admin", "127.0.0.1:0"])).unwrap()
}

fn coordinator(flags: &[&str], log: &std::path::Path) -> Process {
    let tokenizer = model("target").display().to_string();
    let mut arguments = words(&["coordinator", "--tokenizer", &tokenizer]);
    arguments.extend(words(flags));
    Process::start_logged(&arguments, log, None).unwrap()
}

/// A server that says `first` to whoever connects, and then nothing.
async fn other_service(first: &'static [u8]) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut peer, _) = listener.accept().await.unwrap();
            peer.write_all(first).await.unwrap();
            open.push(peer);
        }
    });
    addr
}

/// A gRPC server that serves nothing of ours.
async fn other_grpc(drain: &Drain) -> SocketAddr {
    let listener = Listener::bind(&NetArgs::default()).await.unwrap();
    let addr = listener.local_addr();
    let health = runtime::health::service(&Readiness::new(), drain, &[]).await;
    let router = runtime::serve::server(&ServerLimits::default()).add_service(health);
    drain.spawn(runtime::serve::serve(listener, router, drain.clone()));
    addr
}

/// What the coordinator says of the worker at this address, once it has tried it.
/// What the coordinator says of a worker, once it has decided.
async fn state(client: &Client, address: &str) -> String {
    state_when(client, address, |state| !state.starts_with("connecting")).await
}

async fn state_when(client: &Client, address: &str, is_it: impl Fn(&str) -> bool) -> String {
    until(LIMIT, async || {
        let workers = client.workers().await?;
        let found = workers.iter().find(|worker| worker.address == address);
        let state = found.map_or("not listed", |worker| worker.state.as_str());
        Ok(met(is_it(state), state).map(|()| state.to_owned()))
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_no_such_worker_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let drain = Drain::new();
    let (target, draft) = (
        worker("target-worker", "target"),
        worker("draft-worker", "draft"),
    );
    let right = coordinator(&["--target", &target.addr], &folder.path().join("right"));
    let admin = target.admin.unwrap().to_string();
    let ssh = other_service(b"SSH-2.0-Example\r\n").await.to_string();
    let grpc = other_grpc(&drain).await.to_string();
    let flags = [
        "--target",
        &draft.addr,
        "--draft",
        &target.addr,
        "--draft",
        &right.addr,
        "--draft",
        &admin,
        "--draft",
        &ssh,
        "--worker",
        &grpc,
    ];
    let wrong = coordinator(&flags, &log);
    let client = Client::connect(&wrong.addr, 0).await.unwrap();
    for (address, why) in [
        (&draft.addr, "its role is \"draft\""),
        (&target.addr, "its role is \"target\""),
        (&right.addr, "it is a coordinator and no worker"),
        (&admin, "it speaks HTTP/1"),
        (&ssh, "it says \"SSH-2.0-Example"),
        (&grpc, "no Offshoot worker"),
    ] {
        let state = state(&client, address).await;
        assert!(state.starts_with("refused: "), "{address}: {state}");
        assert!(state.contains(why), "{address}: {state}");
        let log = std::fs::read_to_string(&log).unwrap();
        let said = (log.lines()).any(|line| line.contains(address) && line.contains("refused"));
        assert!(said, "{address} is not refused in {log}");
    }
    let log = std::fs::read_to_string(&log).unwrap();
    assert!(log.contains("configured as a target"), "{log}");
    // The client is told of the one that should be the target.
    let asked = client.generate(request("fn", 2, 0.0, "ar")).await;
    let status = asked.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    for part in [draft.addr.as_str(), "its role is \"draft\"", "--worker"] {
        assert!(status.message().contains(part), "{status}");
    }
    // The right coordinator serves all the while.
    let client = Client::connect(&right.addr, 1).await.unwrap();
    let completion = client.generate(request("fn", 2, 0.0, "ar")).await.unwrap();
    assert_eq!(completion.ids.len(), 2);
}

/// The bundled draft, but for two merges of its tokenizer that change places.
fn with_other_merges(dir: &std::path::Path) -> String {
    for entry in std::fs::read_dir(model("draft")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    let file = dir.join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let merges = tokenizer["model"]["merges"].as_array_mut().unwrap();
    let last = merges.len() - 1;
    merges.swap(0, last);
    std::fs::write(&file, tokenizer.to_string()).unwrap();
    dir.display().to_string()
}

/// Guesses by ids that mean the same, for a text that would have been other ids.
#[tokio::test(flavor = "multi_thread")]
async fn a_tokenizer_with_the_same_tokens_and_other_merges_is_another_one() {
    let folder = tempfile::tempdir().unwrap();
    let target = worker("target-worker", "target");
    let other = with_other_merges(folder.path());
    let draft = Process::start(&words(&["draft-worker", "--model", &other])).unwrap();
    let flags = ["--target", &target.addr, "--draft", &draft.addr];
    let coordinator = coordinator(&flags, &folder.path().join("log"));
    let client = Client::connect(&coordinator.addr, 1).await.unwrap();
    let state = state(&client, &draft.addr).await;
    assert!(
        state.starts_with("refused: ") && state.contains("other merges"),
        "{state}"
    );
}

/// It might be a worker that hangs, so it is tried again and again; but everybody is told.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_accepts_connections_and_says_nothing_is_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let silent = other_service(b"").await.to_string();
    let coordinator = coordinator(&["--target", &silent], &log);
    let client = Client::connect(&coordinator.addr, 0).await.unwrap();
    let why = "it accepts connections and does not answer";
    let is_told = |state: &str| state.starts_with("connecting: ") && state.contains(why);
    state_when(&client, &silent, is_told).await;
    let asked = client.generate(request("fn", 2, 0.0, "ar")).await;
    let status = asked.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(why), "{status}");
    let log = std::fs::read_to_string(&log).unwrap();
    let said = log
        .lines()
        .filter(|line| line.contains(&silent) && line.contains(why));
    assert_eq!(said.count(), 1, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_under_two_names_is_one_worker() {
    let folder = tempfile::tempdir().unwrap();
    let (target, draft) = (
        worker("target-worker", "target"),
        worker("draft-worker", "draft"),
    );
    let port = draft.addr.rsplit_once(':').unwrap().1;
    let second = format!("localhost:{port}");
    let flags = [
        "--target",
        &target.addr,
        "--draft",
        &draft.addr,
        "--draft",
        &second,
    ];
    let coordinator = coordinator(&flags, &folder.path().join("log"));
    let client = Client::connect(&coordinator.addr, 2).await.unwrap();
    let states = [
        state(&client, &draft.addr).await,
        state(&client, &second).await,
    ];
    // Which of the two names comes first is chance.
    let ready = states.iter().filter(|state| *state == "ready").count();
    let same = (states.iter())
        .filter(|state| state.contains("is the same process as the worker at"))
        .count();
    assert_eq!((ready, same), (1, 1), "{states:?}");
    let completion = client
        .generate(request("fn", 8, 0.0, "serial"))
        .await
        .unwrap();
    assert_eq!(completion.ids.len(), 8);
    assert_eq!(completion.statistics.drafts.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_calls_a_worker_learns_that() {
    let target = worker("target-worker", "target");
    for (address, why) in [
        (target.addr.clone(), "name a coordinator, not a worker"),
        (target.admin.unwrap().to_string(), "it speaks HTTP/1"),
        (
            other_service(b"220 mail\r\n").await.to_string(),
            "it says \"220 mail",
        ),
    ] {
        let binary = e2e::cluster::binary().unwrap();
        let asked = tokio::process::Command::new(binary)
            .args(["generate", "x", "--connect", &address])
            .output();
        let output = asked.await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(why), "{address}: {stderr}");
    }
    // An address that is said as other systems say it.
    Caller::default()
        .connect(&format!("dns:///{}", target.addr))
        .await
        .unwrap();
}

//! A lost draft or qualifier is bypassed, a lost coordinator replaced: the text is complete and unchanged.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Cluster, Process, Shape, binary};
use offshoot_e2e::prompts;

const SHAPE: Shape = Shape {
    drafts: 2,
    qualifiers: 1,
    target_pace: 10,
};

/// An idle worker has nothing to finish; this is far below its grace time.
const GRACE: std::time::Duration = std::time::Duration::from_secs(5);

/// Kills what `victim` chooses when ten tokens have arrived, and again compares with plain decoding.
async fn killed(victim: fn(&mut Cluster) -> &mut Process, strategy: &str) {
    let cluster = Cluster::start(SHAPE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let prompt = &prompts(1).unwrap()[0];
    let plain = client
        .generate(request(prompt, 96, 0.7, "ar"))
        .await
        .unwrap();
    let cluster = Mutex::new(cluster);
    let mut killed_at = None;
    let watch = |tokens| {
        if tokens >= 10 && killed_at.is_none() {
            victim(&mut cluster.lock().unwrap()).kill().unwrap();
            killed_at = Some(tokens);
        }
    };
    let asked = request(prompt, 96, 0.7, strategy);
    let completion = client.generate_watched(asked, watch).await.unwrap();
    assert!(killed_at.is_some_and(|tokens| tokens < plain.ids.len()));
    assert_eq!(completion.ids, plain.ids);
    assert_eq!(completion.text, plain.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_a_draft() {
    killed(|cluster| &mut cluster.drafts[0], "auto").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_draft_that_serial_waits_for() {
    killed(|cluster| &mut cluster.drafts[1], "serial").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_qualifier() {
    killed(|cluster| &mut cluster.qualifiers[0], "auto").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_target_is_unavailable_and_nothing_stays_behind() {
    let mut cluster = Cluster::start(SHAPE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let prompt = &prompts(1).unwrap()[0];
    let asked = request(prompt, 200, 1.0, "auto");
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.generate(asked).await }
    });
    client.wait_for_sessions(|open| open > 0).await.unwrap();
    cluster.target.kill().unwrap();
    let status = running.await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    client.wait_for_sessions(|open| open == 0).await.unwrap();
}

/// Asks a process to stop; it has to do so by itself, with success.
async fn ends_in_time(mut process: Process) {
    let ended = tokio::task::spawn_blocking(move || process.terminate());
    let status = tokio::time::timeout(GRACE, ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// A worker that is asked to stop lets go of its coordinator and ends; the text goes on or says why not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_of_every_worker_ends_it() {
    let mut cluster = Cluster::start(SHAPE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let prompt = &prompts(1).unwrap()[0];
    let plain = client
        .generate(request(prompt, 24, 0.7, "ar"))
        .await
        .unwrap();
    let helpers = cluster.drafts.drain(..).chain(cluster.qualifiers.drain(..));
    for helper in helpers {
        ends_in_time(helper).await;
        let text = client
            .generate(request(prompt, 24, 0.7, "auto"))
            .await
            .unwrap();
        assert_eq!(text.ids, plain.ids);
    }
    ends_in_time(cluster.target).await;
    let gone = client
        .generate(request(prompt, 24, 0.7, "auto"))
        .await
        .unwrap_err();
    assert_eq!(gone.code(), tonic::Code::Unavailable, "{gone}");
}

/// `offshoot generate` on these coordinators, always the same.
fn generate(coordinators: &str) -> Child {
    Command::new(binary().unwrap())
        .args([
            "generate",
            "--connect",
            coordinators,
            "--temperature",
            "0.7",
        ])
        .args(["--seed", "9", "--max-tokens", "96", "impl Iterator for"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The command asks the second coordinator for what the first one still owes it.
#[test]
fn the_command_goes_on_at_the_next_coordinator() {
    let mut cluster = Cluster::start(SHAPE).unwrap();
    let second = cluster.another_coordinator().unwrap();
    let both = format!("{},{}", cluster.coordinator.addr, second.addr);
    let undisturbed = generate(&both).wait_with_output().unwrap();
    assert!(undisturbed.status.success(), "{undisturbed:?}");

    let mut child = generate(&both);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = vec![0];
    stdout.read_exact(&mut text).unwrap();
    cluster.coordinator.kill().unwrap();
    stdout.read_to_end(&mut text).unwrap();
    let disturbed = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&disturbed.stderr);
    assert!(disturbed.status.success(), "{said}");
    assert!(
        said.contains("resuming"),
        "the loss came too late to be noticed: {said}"
    );
    assert_eq!(text, undisturbed.stdout);
}

//! Without a lost draft or qualifier the request continues, and another coordinator replaces a lost one: the text is complete
//! and unchanged.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Cluster, Process, Shape, Signal, binary};
use offshoot_e2e::wait::until;
use offshoot_e2e::{REFERENCE, prompts, strategies, uses};
use proto::v1::HelloRequest;
use proto::v1::worker_client::WorkerClient;
use speculation::duty::Role;
use tonic::Code;

const SHAPE: Shape = Shape {
    drafts: 2,
    qualifiers: 1,
    target_pace: 10,
};

/// How long a process may take to exit, or to say that it will. An idle one has nothing to finish.
const GRACE: std::time::Duration = std::time::Duration::from_secs(60);

/// Tokens of requests that have to outlast what happens to them, at 10 or 20 ms each.
const LONG: u32 = 300;

/// Kills the process that `victim` returns when ten tokens have arrived, and compares the text with plain decoding.
async fn killed(victim: impl Fn(&mut Cluster) -> &mut Process, strategy: &str) {
    let cluster = Cluster::start(SHAPE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let prompt = &prompts(1).unwrap()[0];
    let plain = client
        .generate(request(prompt, 96, 0.7, REFERENCE))
        .await
        .unwrap();
    let cluster = Mutex::new(cluster);
    let mut killed_at = None;
    let observe = |tokens| {
        if tokens >= 10 && killed_at.is_none() {
            victim(&mut cluster.lock().unwrap()).kill().unwrap();
            killed_at = Some(tokens);
        }
    };
    let asked = request(prompt, 96, 0.7, strategy);
    let completion = client.generate_observed(asked, observe).await.unwrap();
    assert!(killed_at.is_some_and(|tokens| tokens < plain.ids.len()));
    assert_eq!(completion.ids, plain.ids, "{strategy}");
    assert_eq!(completion.text, plain.text, "{strategy}");
}

/// Whichever of them a strategy waits for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_either_draft() {
    let drafting = strategies()
        .into_iter()
        .filter(|strategy| uses(strategy, Role::Draft));
    for strategy in drafting {
        for draft in 0..SHAPE.drafts {
            killed(|cluster| &mut cluster.drafts[draft], strategy.name).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_of_the_qualifier() {
    let mut advised = strategies();
    advised.retain(|strategy| uses(strategy, Role::Qualifier));
    assert!(!advised.is_empty());
    for strategy in advised {
        killed(|cluster| &mut cluster.qualifiers[0], strategy.name).await;
    }
}

/// It refuses what is new in its own words, on connections that are made now too: a worker that cannot be reached would
/// count as lost, and the next session would be given to it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_drains_says_so_and_finishes_what_it_has() {
    let shape = Shape {
        drafts: 0,
        qualifiers: 0,
        target_pace: 20,
    };
    let cluster = Cluster::start_with(shape, &["--drain-grace-s", "60"]).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 1).await.unwrap();
    let mut asked = request(&prompts(1).unwrap()[0], LONG, 0.0, REFERENCE);
    asked.ignore_eos = true;
    let (begun, mut has_begun) = tokio::sync::watch::channel(false);
    let running = tokio::spawn(async move {
        let observe = |tokens| {
            begun.send_replace(tokens >= 4);
        };
        client.generate_observed(asked, observe).await
    });
    has_begun.wait_for(|begun| *begun).await.unwrap();
    cluster.target.signal(Signal::Terminate).unwrap();
    let refused = until(GRACE, async || {
        let channel = match runtime::connect(&cluster.target.addr).await {
            Ok(channel) => channel,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut worker = WorkerClient::new(channel);
        let newest = HelloRequest {
            protocol: proto::PROTOCOL,
            oldest_protocol: proto::OLDEST_PROTOCOL,
        };
        Ok(match worker.hello(newest).await {
            Ok(_) => Err("it still takes sessions".to_owned()),
            Err(status) => Ok(status),
        })
    });
    let refused = refused.await.unwrap();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("shutting down"), "{refused}");
    assert!(!running.is_finished());
    assert_eq!(running.await.unwrap().unwrap().ids.len(), LONG as usize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_target_is_unavailable_and_no_session_remains() {
    let mut cluster = Cluster::start(SHAPE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let prompt = &prompts(1).unwrap()[0];
    let mut asked = request(prompt, 900, 1.0, REFERENCE);
    asked.ignore_eos = true;
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.generate(asked).await }
    });
    client.wait_for_sessions(|open| open > 0).await.unwrap();
    cluster.target.kill().unwrap();
    let status = running.await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    client.wait_for_sessions(|open| open == 0).await.unwrap();
}

/// Asks a process to stop; it must exit by itself, with success.
async fn exits_in_time(mut process: Process) {
    let exited = tokio::task::spawn_blocking(move || process.terminate());
    let status = tokio::time::timeout(GRACE, exited)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert!(status.success(), "{status}");
}

/// A worker that is asked to stop closes its streams and exits; requests continue without it, or say why not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_stops_every_worker() {
    let mut cluster = Cluster::start(SHAPE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 4).await.unwrap();
    let prompt = &prompts(1).unwrap()[0];
    let plain = client
        .generate(request(prompt, 24, 0.7, REFERENCE))
        .await
        .unwrap();
    let helpers = cluster.drafts.drain(..).chain(cluster.qualifiers.drain(..));
    for helper in helpers {
        exits_in_time(helper).await;
        let text = client
            .generate(request(prompt, 24, 0.7, "auto"))
            .await
            .unwrap();
        assert_eq!(text.ids, plain.ids);
    }
    exits_in_time(cluster.target).await;
    let status = client
        .generate(request(prompt, 24, 0.7, "auto"))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

/// `offshoot generate` with these coordinators, always with the same request.
fn generate(coordinators: &str) -> Child {
    Command::new(binary().unwrap())
        .args([
            "generate",
            "--connect",
            coordinators,
            "--temperature",
            "0.7",
        ])
        .args(["--seed", "9", "--max-tokens", &LONG.to_string()])
        .args(["--strategy", REFERENCE, "--ignore-eos", "impl Iterator for"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The command asks the second coordinator for the rest of what the first one has begun.
#[test]
fn the_command_resumes_at_the_next_coordinator() {
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
    let stderr = String::from_utf8_lossy(&disturbed.stderr);
    assert!(disturbed.status.success(), "{stderr}");
    assert!(
        stderr.contains("resuming"),
        "the coordinator was lost too late: {stderr}"
    );
    assert_eq!(text, undisturbed.stdout);
}

//! What long prompts cost a coordinator: memory in proportion, little more work once their clients have gone, and no time of
//! its drain. Measured at the process, where the system tells.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::Process;
use offshoot_e2e::wait::{met, until};
use offshoot_e2e::{model, prompts, root, usage};
use proto::v1::{GenerateEvent, GenerateRequest};
use tonic::Streaming;

/// Bytes of a prompt: as many as a request may have.
const BYTES: usize = 2 << 20;

/// A context that holds such a prompt.
const CONTEXT: usize = 2_000_000;

/// A cluster whose target has a long context and no weights.
struct Cluster {
    _folder: tempfile::TempDir,
    _target: Process,
    coordinator: Process,
    client: Client,
}

/// The bundled target's folder without its weights, and with another context.
fn long_model(folder: &Path) {
    let from = model("target");
    for name in ["tokenizer.json", "generation_config.json"] {
        std::fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(from.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["max_position_embeddings"] = CONTEXT.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

async fn cluster() -> Cluster {
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let folder = tempfile::tempdir().unwrap();
    long_model(folder.path());
    let model = folder.path().display();
    let profile = root().join("models/profiles/nano.json");
    let profile = profile.display();
    // It holds no cache, only the accounts of one.
    let target = format!(
        "target-worker --model {model} --synthetic {profile} --max-num-seqs 4 --kv-mib 65536"
    );
    let target = Process::start(&words(target)).unwrap();
    let coordinator = format!(
        "coordinator --tokenizer {model} --target {} --drain-grace-s 40",
        target.addr
    );
    let coordinator = Process::start(&words(coordinator)).unwrap();
    let client = Client::connect(&coordinator.addr, 1).await.unwrap();
    Cluster {
        _folder: folder,
        _target: target,
        coordinator,
        client,
    }
}

/// A long prompt: code of the test prompts in an order of its own, with words that do not repeat.
fn long(number: u64) -> GenerateRequest {
    let prompts = prompts(usize::MAX).unwrap();
    let mut text = String::with_capacity(BYTES);
    let mut dice = number + 1;
    loop {
        dice = dice
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let part = &prompts[(dice >> 33) as usize % prompts.len()];
        if text.len() + part.len() + 64 > BYTES {
            return request(&text, 1, 0.0, "ar");
        }
        writeln!(text, "{part}\n// {:x}", dice >> 40).unwrap();
    }
}

impl Cluster {
    fn usage(&self) -> Option<usage::Usage> {
        usage::of(self.coordinator.id())
    }

    /// Sends four long prompts, and waits until the coordinator has worked on them for a while.
    async fn send_four(&self) -> Vec<Streaming<GenerateEvent>> {
        let before = self.usage().unwrap();
        let mut streams = Vec::new();
        for number in 0..4 {
            streams.push(self.client.stream(long(number)).await.unwrap());
        }
        let works = until(Duration::from_secs(60), async || {
            let worked = self.usage().unwrap().cpu - before.cpu;
            Ok(met(
                worked >= Duration::from_millis(200),
                "it does not work on them",
            ))
        });
        works.await.unwrap();
        streams
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_long_prompts_take_little_memory_and_end_with_their_clients() {
    let cluster = cluster().await;
    let Some(before) = cluster.usage() else {
        println!("skipped: this system does not tell what a process uses");
        return;
    };
    let streams = cluster.send_four().await;
    drop(streams);
    let gone = cluster.usage().unwrap().cpu;
    // Ten looks, 10 ms apart, with nothing done in between.
    let (mut newest, mut same) = (Duration::ZERO, 0);
    let stops = until(Duration::from_secs(60), async || {
        let cpu = cluster.usage().unwrap().cpu;
        same = if cpu == newest { same + 1 } else { 0 };
        newest = cpu;
        Ok(met(same >= 10, &format!("it still works, {cpu:?} so far")))
    });
    stops.await.unwrap();
    cluster.client.wait_for_completions(0).await.unwrap();
    let for_nobody = cluster.usage().unwrap().cpu - gone;

    // All of them, to the end of their encoding.
    let mut running = tokio::task::JoinSet::new();
    for number in 0..4 {
        let stream = cluster.client.stream(long(number)).await.unwrap();
        running.spawn(async move {
            let mut stream = stream;
            let first = stream.message().await.unwrap();
            assert!(first.is_some(), "it is served");
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    let after = cluster.usage().unwrap();
    let whole = after.cpu - gone - for_nobody;
    println!(
        "{:.1} MiB before, {:.1} at most; {for_nobody:?} of work for clients that had gone, {whole:?} for all four",
        before.resident, after.peak
    );
    assert!(4 * for_nobody < whole, "{for_nobody:?} of {whole:?}");
    assert!(after.peak < before.resident + 100.0, "{before:?} {after:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_prompts_do_not_hold_up_a_drain() {
    let mut cluster = cluster().await;
    if cluster.usage().is_none() {
        println!("skipped: this system does not tell what a process uses");
        return;
    }
    let _streams = cluster.send_four().await;
    let begun = Instant::now();
    let status = cluster.coordinator.terminate().unwrap();
    assert!(status.success(), "{status}");
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "{:?}",
        begun.elapsed()
    );
}

/// A text that has more tokens than any context holds, whatever it says, is refused before it is looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_far_longer_than_the_context_costs_nothing() {
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let model = model("target").display().to_string();
    let target = Process::start(&words(format!("target-worker --model {model}"))).unwrap();
    let coordinator = format!("coordinator --tokenizer {model} --target {}", target.addr);
    let coordinator = Process::start(&words(coordinator)).unwrap();
    let client = Client::connect(&coordinator.addr, 1).await.unwrap();
    let before = usage::of(coordinator.id());
    for number in 0..10 {
        let status = client.generate(long(number)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        for part in ["at least", "holds 1024", "shorten"] {
            assert!(status.message().contains(part), "{part} in {status}");
        }
    }
    if let (Some(before), Some(after)) = (before, usage::of(coordinator.id())) {
        let worked = after.cpu - before.cpu;
        assert!(worked < Duration::from_secs(1), "{worked:?} for 20 MiB");
    }
}

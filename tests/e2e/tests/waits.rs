//! Requests that have to wait, and what a target reserves for them: nobody is refused while there is room to wait.

#![allow(clippy::unwrap_used, reason = "tests")]

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::Process;
use offshoot_e2e::{REFERENCE, model, prompts};
use proto::v1::FinishReason;

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// The bundled target with these flags.
fn target(flags: &str) -> Process {
    let model = model("target").display().to_string();
    Process::start(&words(&format!("target-worker --model {model} {flags}"))).unwrap()
}

/// A coordinator of a target, and a client of it.
async fn coordinator(target: &Process) -> (Process, Client) {
    let model = model("target").display().to_string();
    let addr = &target.addr;
    let arguments = format!("coordinator --tokenizer {model} --target {addr} --failover-wait 1");
    let process = Process::start(&words(&arguments)).unwrap();
    let client = Client::connect(&process.addr, 1).await.unwrap();
    (process, client)
}

/// Each has room by what it knows, and none by what the other does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_two_coordinators_wait_for_a_target_with_one_place() {
    let target = target("--max-num-seqs 1 --pace 15");
    let (first, second) = (coordinator(&target).await, coordinator(&target).await);
    let prompts = prompts(6).unwrap();
    // Each takes longer than a lost target would be waited for.
    let all = (prompts.iter().enumerate()).map(|(at, prompt)| {
        let client = [&first.1, &second.1][at % 2].clone();
        let mut asked = request(prompt, 100, 0.0, REFERENCE);
        asked.ignore_eos = true;
        tokio::spawn(async move { client.generate(asked).await })
    });
    for running in all.collect::<Vec<_>>() {
        let completion = running.await.unwrap().unwrap();
        assert_eq!(completion.ids.len(), 100);
    }
}

/// MiB of a cache of some 256 positions of the bundled target, whose context is 1024.
const SMALL: &str = "--kv-mib 5";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_context_that_does_not_fit_the_cache_is_what_fits() {
    let target = target(&format!("{SMALL} --max-num-seqs 4"));
    let (_coordinator, client) = coordinator(&target).await;
    let long = "let x = 1;\n".repeat(200);
    let status = client
        .generate(request(&long, 1, 0.0, REFERENCE))
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
    assert!(status.message().contains("holds 256"), "{status}");
    let mut asked = request("fn main() {", 0, 0.0, REFERENCE);
    asked.ignore_eos = true;
    let completion = client.generate(asked).await.unwrap();
    assert_eq!(completion.reason, i32::from(FinishReason::Context));
    let len = completion.ids.len() + completion.started.prompt_tokens as usize;
    assert_eq!(len, 256);
}

/// Nobody knows how long its text gets, so it does not take the room of the longest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_without_a_limit_run_beside_each_other() {
    // A cache of one context.
    let target = target("--kv-mib 20 --max-num-seqs 4 --pace 10");
    let (_coordinator, client) = coordinator(&target).await;
    let prompts = prompts(3).unwrap();
    let running: Vec<_> = (prompts.iter())
        .map(|prompt| {
            let (client, asked) = (client.clone(), request(prompt, 0, 0.0, REFERENCE));
            tokio::spawn(async move { client.generate(asked).await })
        })
        .collect();
    client
        .wait_for_sessions(|running| running >= 2)
        .await
        .unwrap();
    for (running, prompt) in running.into_iter().zip(&prompts) {
        let together = running.await.unwrap().unwrap();
        let alone = client
            .generate(request(prompt, 0, 0.0, REFERENCE))
            .await
            .unwrap();
        assert_eq!(together.ids, alone.ids);
    }
}

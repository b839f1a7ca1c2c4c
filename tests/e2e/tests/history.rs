//! Texts that were completed before: the same prompt comes faster the second time, without any draft, for those who name the
//! same history and for nobody else; and no token is another one.

#![allow(clippy::unwrap_used, reason = "tests")]

use offshoot_e2e::client::{Client, Completion, request};
use offshoot_e2e::cluster::{Cluster, Process, Shape};
use offshoot_e2e::{REFERENCE, model, prompts};
use speculation::duty::Source;

const TOKENS: u32 = 96;

const ALONE: Shape = Shape {
    drafts: 0,
    qualifiers: 0,
    target_pace: 0,
};

async fn complete(client: &Client, prompt: &str, t: f32, history: &str) -> Completion {
    let mut request = request(prompt, TOKENS, t, "auto");
    request.history = history.to_owned();
    client.generate(request).await.unwrap()
}

/// Tokens committed per step.
fn acceptance(completion: &Completion) -> f64 {
    let walks = completion.statistics.walks.clone().unwrap_or_default();
    walks.tokens as f64 / walks.steps as f64
}

/// Nodes of the history that the target had.
fn found(completion: &Completion) -> u64 {
    completion.guesses(Source::History).nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_comes_faster_the_second_time_for_those_who_share_it() {
    let cluster = Cluster::start(ALONE).unwrap();
    let client = Client::connect(&cluster.coordinator.addr, 1).await.unwrap();
    let (mut colder, mut warmer) = (0.0, 0.0);
    let prompts = prompts(3).unwrap();
    for prompt in &prompts {
        for t in [0.0, 0.7, 1.0] {
            let plain = client.generate(request(prompt, TOKENS, t, REFERENCE));
            let plain = plain.await.unwrap();
            let name = format!("mine at {t}");
            let cold = complete(&client, prompt, t, &name).await;
            let warm = complete(&client, prompt, t, &name).await;
            let other = complete(&client, prompt, t, &format!("{name}, and others'")).await;
            let none = complete(&client, prompt, t, "").await;
            for completion in [&cold, &warm, &other, &none] {
                assert_eq!(completion.ids, plain.ids, "T = {t}");
            }
            // How many of them are submitted depends on what a step costs just now.
            let known = warm.guesses(Source::History).committed;
            assert!(2 * known > u64::from(TOKENS), "{known}, T = {t}");
            colder += acceptance(&cold);
            warmer += acceptance(&warm);
            // Of this prompt they have nothing; of the ones before, others have their own.
            assert_eq!(found(&none), 0, "nothing was named");
            let unused = complete(&client, prompt, t, "not yet used").await;
            if prompt == &prompts[0] && t == 0.0 {
                assert_eq!(found(&unused), 0, "another name finds nothing");
                assert_eq!(found(&other), 0, "nor does one that begins alike");
            }
        }
    }
    let runs = 9.0;
    let (colder, warmer) = (colder / runs, warmer / runs);
    println!("acceptance length {colder:.2} at first, {warmer:.2} the second time");
    assert!(warmer > 2.0 * colder, "{warmer:.2} after {colder:.2}");
}

/// Two coordinators on one target, with tenants of their own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_share_a_target_and_not_a_history() {
    let cluster = Cluster::start(ALONE).unwrap();
    let folder = model("target").display().to_string();
    let coordinator = |tenant: &str| {
        let words = [
            "coordinator",
            "--tokenizer",
            &folder,
            "--target",
            &cluster.target.addr,
            "--tenant",
            tenant,
        ];
        Process::start(&words.map(str::to_owned)).unwrap()
    };
    let (one, two) = (coordinator("one"), coordinator("two"));
    let prompt = &prompts(1).unwrap()[0];
    let mut knows = Vec::new();
    for process in [&one, &one, &two, &two] {
        let client = Client::connect(&process.addr, 1).await.unwrap();
        let completion = complete(&client, prompt, 0.0, "everybody's").await;
        knows.push(found(&completion) > 0);
    }
    assert_eq!(knows, [false, true, false, true]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_keeps_no_texts_finds_none() {
    let folder = model("target").display().to_string();
    let target = ["target-worker", "--model", &folder, "--history-tokens", "0"];
    let target = Process::start(&target.map(str::to_owned)).unwrap();
    let coordinator = [
        "coordinator",
        "--tokenizer",
        &folder,
        "--target",
        &target.addr,
    ];
    let coordinator = Process::start(&coordinator.map(str::to_owned)).unwrap();
    let client = Client::connect(&coordinator.addr, 1).await.unwrap();
    let prompt = &prompts(1).unwrap()[0];
    for _ in 0..2 {
        let completion = complete(&client, prompt, 0.0, "mine").await;
        assert_eq!(found(&completion), 0);
    }
    let mut long = request(prompt, 1, 0.0, "auto");
    long.history = "x".repeat(129);
    let refused = client.generate(long).await.unwrap_err();
    assert!(refused.message().contains("history"), "{refused}");
}

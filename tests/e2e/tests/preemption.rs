//! Sessions whose texts outgrow the cache of a target give way to those that were opened earlier, and go on later.

#![allow(clippy::unwrap_used, reason = "tests")]

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Cluster, Shape};
use offshoot_e2e::{REFERENCE, admin, prompts};

const SHAPE: Shape = Shape {
    drafts: 1,
    qualifiers: 0,
    target_pace: 3,
};

/// Tokens of a completion: two prompts with so many do not fit the cache, one does.
const TOKENS: u32 = 240;

/// MiB of the cache: 400 positions of the bundled target.
const CACHE: &str = "8";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_coordinators_share_a_cache_that_holds_one_text() {
    let cluster =
        Cluster::start_with(SHAPE, &["--kv-mib", CACHE, "--admin", "127.0.0.1:0"]).unwrap();
    let other = cluster.another_coordinator().unwrap();
    let clients = [&cluster.coordinator.addr, &other.addr].map(|addr| Client::connect(addr, 2));
    let [first, second] = clients;
    let clients = [first.await.unwrap(), second.await.unwrap()];
    let prompts = prompts(4).unwrap();
    let asked = |prompt: &str, strategy: &str| {
        let mut asked = request(prompt, TOKENS, 0.7, strategy);
        asked.ignore_eos = true;
        asked
    };
    let mut plain = Vec::new();
    for prompt in &prompts {
        let alone = clients[0].generate(asked(prompt, REFERENCE)).await;
        plain.push(alone.unwrap().ids);
    }
    let all = (0..prompts.len()).map(|at| {
        let (client, asked) = (clients[at % 2].clone(), asked(&prompts[at], "auto"));
        tokio::spawn(async move { client.generate(asked).await })
    });
    for (running, plain) in all.collect::<Vec<_>>().into_iter().zip(plain) {
        assert_eq!(running.await.unwrap().unwrap().ids, plain);
    }
    let page = admin::scrape(cluster.target.admin.unwrap()).unwrap();
    let preempted = (page.values.iter())
        .find(|(series, _)| series.starts_with("vllm:num_preemptions_total"))
        .map(|(_, &value)| value);
    assert!(preempted.is_some_and(|times| times > 0.0), "{preempted:?}");
}

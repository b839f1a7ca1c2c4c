//! Drafts behind one DNS name join while requests run, and leave: no request fails, and the text never changes.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Process, Signal};
use offshoot_e2e::dns::DnsServer;
use offshoot_e2e::wait::{met, until};
use offshoot_e2e::{REFERENCE, model, prompts};
use tokio_util::sync::CancellationToken;

const NAME: &str = "drafts.offshoot.test.";

/// How soon a draft is used after its address has appeared.
const USED_WITHIN: Duration = Duration::from_secs(60);

/// How soon a draft is forgotten after its address has gone; requests that use it end first.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// All on one port, as the addresses of one name are.
const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn draft(addr: SocketAddr) -> Process {
    let path = model("draft").display().to_string();
    let arguments = words(&["draft-worker", "--model", &path, "--pace", "2"]);
    Process::start_at(&arguments, addr).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_draft_behind_one_name_joins_and_leaves() {
    let dns = DnsServer::start().await.unwrap();
    let mut first = draft(SocketAddr::new(FIRST, 0));
    let port = first.addr.parse::<SocketAddr>().unwrap().port();
    dns.set_addresses(NAME, &[FIRST]);
    let path = model("target").display().to_string();
    let target = words(&["target-worker", "--model", &path, "--pace", "10"]);
    let target = Process::start(&target).unwrap();
    let coordinator = words(&[
        "coordinator",
        "--tokenizer",
        &path,
        "--target",
        &target.addr,
        "--workers-dns",
        &format!("{NAME}:{port}"),
        "--dns-server",
        &dns.addr.to_string(),
    ]);
    let coordinator = Process::start(&coordinator).unwrap();
    let client = Client::connect(&coordinator.addr, 2).await.unwrap();
    let prompt = prompts(1).unwrap().remove(0);
    let asked = |strategy: &str| request(&prompt, 96, 0.7, strategy);
    let plain = client.generate(asked(REFERENCE)).await.unwrap();

    // Requests run one after the other all the time, by a strategy that always uses its drafts.
    let done = CancellationToken::new();
    let requests = tokio::spawn({
        let (client, done, asked) = (client.clone(), done.clone(), asked("parallel"));
        let (ids, text) = (plain.ids.clone(), plain.text.clone());
        async move {
            let mut count = 0;
            while !done.is_cancelled() {
                let completion = client.generate(asked.clone()).await?;
                anyhow::ensure!(completion.ids == ids, "request {count}: {completion:?}");
                anyhow::ensure!(completion.text == text, "request {count}: {completion:?}");
                count += 1;
            }
            Ok(count)
        }
    });

    let second = draft(SocketAddr::new(SECOND, port));
    dns.set_addresses(NAME, &[FIRST, SECOND]);
    let is_used = async || {
        let workers = client.workers().await?;
        let found = workers.iter().find(|worker| worker.address == second.addr);
        let steps = found
            .and_then(|worker| worker.activity)
            .map(|activity| activity.steps);
        Ok(met(steps > Some(0), &format!("{workers:?}")))
    };
    until(USED_WITHIN, is_used).await.unwrap();

    // Now the first one goes.
    dns.set_addresses(NAME, &[SECOND]);
    let is_gone = async || {
        let workers = client.workers().await?;
        let is_there = workers.iter().any(|worker| worker.address == first.addr);
        Ok(met(!is_there, &format!("{workers:?}")))
    };
    until(GONE_WITHIN, is_gone).await.unwrap();
    first.signal(Signal::Terminate).unwrap();
    assert!(first.exits_within(GONE_WITHIN).unwrap().unwrap().success());
    let after = client.generate(asked("auto")).await.unwrap();
    assert_eq!((after.ids, after.text), (plain.ids, plain.text));
    done.cancel();
    let count: anyhow::Result<usize> = requests.await.unwrap();
    assert!(count.unwrap() > 0);
}

//! Overload: the cluster refuses requests with a hint, keeps its speed and its memory, and nothing is left behind.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::Process;
use offshoot_e2e::wait::{met, until};
use offshoot_e2e::{REFERENCE, admin, full, model, prompts, strategies, usage};

/// Sessions of each worker, requests that the coordinator runs, and requests that it queues.
const SESSIONS: usize = 4;
const TOKENS: u32 = 24;

struct Small {
    workers: Vec<Process>,
    coordinator: Process,
    client: Client,
}

/// A target and a draft with four sessions each, and a coordinator that queues four more requests.
async fn small(pace: u32) -> Small {
    let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let worker = |role: &str, name: &str, pace: u32| {
        let model = model(name).display().to_string();
        let flags = format!("--max-num-seqs {SESSIONS} --admin 127.0.0.1:0 --pace {pace}");
        Process::start(&words(format!("{role} --model {model} {flags}"))).unwrap()
    };
    let target = worker("target-worker", "target", pace);
    let draft = worker("draft-worker", "draft", 0);
    let tokenizer = model("target").display().to_string();
    let limits = format!("--max-sessions {SESSIONS} --max-queued {SESSIONS} --admin 127.0.0.1:0");
    let (to_target, to_draft) = (&target.addr, &draft.addr);
    let arguments = format!(
        "coordinator --tokenizer {tokenizer} --target {to_target} --draft {to_draft} {limits}"
    );
    let coordinator = Process::start(&words(arguments)).unwrap();
    let client = Client::connect(&coordinator.addr, 2).await.unwrap();
    Small {
        workers: vec![target, draft],
        coordinator,
        client,
    }
}

/// What came of a load.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// Tokens per second.
    speed: f64,
    /// Tokens per step of the target.
    per_step: f64,
    /// Requests that were refused.
    refused: usize,
}

impl Small {
    fn processes(&self) -> impl Iterator<Item = &Process> {
        self.workers.iter().chain([&self.coordinator])
    }

    /// Resident memory of each process, in MiB; empty where the system does not report it.
    fn memory(&self) -> Vec<f64> {
        let resident = |process: &Process| Some(usage::of(process.id())?.resident);
        self.processes().filter_map(resident).collect()
    }

    /// Every gauge of resources in use, by process and name.
    fn in_use(&self) -> BTreeMap<String, f64> {
        const NAMES: [&str; 5] = [
            "vllm:num_requests_running",
            "vllm:num_requests_waiting",
            "offshoot_sessions",
            "offshoot_queue_depth",
            "offshoot_kv_pages_used",
        ];
        let mut found = BTreeMap::new();
        for process in self.processes() {
            let page = admin::scrape(process.admin.unwrap()).unwrap();
            for (series, value) in page.values {
                let name = series.split('{').next().unwrap_or_default();
                if NAMES.contains(&name) {
                    found.insert(format!("{} {series}", process.addr), value);
                }
            }
        }
        found
    }

    /// Waits until nothing is in use.
    async fn becomes_idle(&self) {
        let idle = until(Duration::from_secs(60), async || {
            let gauges = self.in_use();
            assert_eq!(gauges.len(), 9, "{gauges:?}");
            let is_idle = gauges.values().all(|&value| value == 0.0);
            Ok(met(is_idle, &format!("still in use: {gauges:?}")))
        });
        idle.await.unwrap();
    }

    /// Steps of the target so far.
    fn steps(&self) -> f64 {
        let page = admin::scrape(self.workers[0].admin.unwrap()).unwrap();
        page.value("offshoot_steps_total{role=\"target\"}").unwrap()
    }

    /// Sends `requests` requests, `clients` at a time; refused requests are sent again.
    async fn load(&self, clients: usize, requests: usize) -> Load {
        let prompts = Arc::new(prompts(8).unwrap());
        let (left, refused) = (
            Arc::new(AtomicUsize::new(requests)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (begun, steps) = (Instant::now(), self.steps());
        let mut running = Vec::new();
        for number in 0..clients {
            let (client, prompts) = (self.client.clone(), Arc::clone(&prompts));
            let (left, refused) = (Arc::clone(&left), Arc::clone(&refused));
            running.push(tokio::spawn(async move {
                let take = |n: usize| n.checked_sub(1);
                while let Ok(n) = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
                    let mut asked = request(&prompts[(n + number) % 8], TOKENS, 0.0, REFERENCE);
                    asked.ignore_eos = true;
                    let done = client.generate_when_possible(asked).await;
                    let (completion, refusals) = done.unwrap();
                    assert_eq!(completion.ids.len(), TOKENS as usize);
                    refused.fetch_add(refusals, Ordering::SeqCst);
                }
            }));
        }
        for client in running {
            client.await.unwrap();
        }
        let tokens = requests as f64 * f64::from(TOKENS);
        Load {
            speed: tokens / begun.elapsed().as_secs_f64(),
            per_step: tokens / (self.steps() - steps),
            refused: refused.load(Ordering::SeqCst),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_the_load_keeps_speed_and_memory() {
    let small = small(10).await;
    let requests = if full() { 400 } else { 120 };
    small.load(SESSIONS, 2 * SESSIONS).await;
    let peak = small.load(SESSIONS, requests).await;
    assert_eq!(peak.refused, 0, "as many as there are sessions");
    let before = small.memory();
    let ten = small.load(10 * SESSIONS, requests).await;
    let after = small.memory();
    println!(
        "at ten times the load {ten:.2?}, at capacity {peak:.2?}; MiB {before:.1?} and {after:.1?}"
    );
    assert!(ten.refused > 0, "there was no overload");
    // The clock counts what else the machine does in the meantime.
    assert!(ten.per_step >= 0.9 * peak.per_step, "{ten:?} {peak:?}");
    assert!(ten.speed >= 0.5 * peak.speed, "{ten:?} {peak:?}");
    for (before, after) in before.iter().zip(&after) {
        assert!(
            *after <= before + 16.0,
            "{before:.1} MiB grew to {after:.1}"
        );
    }
    small.becomes_idle().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_disconnects_and_slow_readers_leave_nothing() {
    let small = small(0).await;
    let prompts = prompts(8).unwrap();
    let strategies = strategies();
    let disconnects = if full() { 1000 } else { 200 };
    let mut running = tokio::task::JoinSet::new();
    let mut dice = 1_u64;
    for number in 0..disconnects {
        if running.len() == SESSIONS {
            running.join_next().await.unwrap().unwrap();
        }
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let most = (dice >> 33) as usize % 30;
        let strategy = strategies[number % strategies.len()].name;
        let asked = request(&prompts[number % 8], 400, 1.0, strategy);
        let client = small.client.clone();
        running.spawn(async move {
            let mut stream = client.stream(asked).await.unwrap();
            let mut events = 0;
            while events < most && stream.message().await.unwrap().is_some() {
                events += 1;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    // Clients that read nothing: their sessions are parked, and others are served.
    let mut silent = Vec::new();
    for prompt in &prompts[..SESSIONS - 1] {
        let asked = request(prompt, 0, 1.0, "auto");
        silent.push(small.client.stream(asked).await.unwrap());
    }
    let asked = request(&prompts[7], TOKENS, 0.0, "auto");
    assert!(!small.client.generate(asked).await.unwrap().ids.is_empty());
    drop(silent);
    small.becomes_idle().await;
    println!("{disconnects} disconnects, and no gauge above zero");
}

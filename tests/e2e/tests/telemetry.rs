//! What operators see of a request: one trace over all processes, and metrics that add up.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::time::Duration;

use offshoot_e2e::admin::{self, Page};
use offshoot_e2e::client::{Client, Completion, request};
use offshoot_e2e::cluster::{Process, binary};
use offshoot_e2e::collector::{Collector, Received};
use offshoot_e2e::wait::{met, until};
use offshoot_e2e::{model, prompts, root};

/// How long metrics may take to change.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a command to its end, on another thread than those that serve the collector.
async fn offshoot(arguments: Vec<String>) -> String {
    let run = move || {
        let mut command = Command::new(binary().unwrap());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OFFSHOOT_") {
                command.env_remove(name);
            }
        }
        let output = command
            .args(&arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?} printed {stderr}");
        String::from_utf8(output.stdout).unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// The only span with this name.
fn only<'a>(spans: &'a [Received], name: &str) -> &'a Received {
    let found: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{} spans are called {name}", found.len());
    found[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_is_one_trace_over_all_processes() {
    let collector = Collector::start().unwrap();
    let arguments = [
        "generate",
        "fn main() {",
        "--max-tokens",
        "24",
        "--temperature",
        "0.5",
        "--seed",
        "3",
        "--pace",
        "target=10,qualifier=4,draft=2",
        "--otlp-traces-endpoint",
        &collector.endpoint,
    ];
    offshoot(words(&arguments)).await;
    let spans = collector.spans();

    let traces: BTreeSet<_> = spans.iter().map(|span| span.trace.as_str()).collect();
    assert_eq!(traces.len(), 1, "{traces:?}");
    let services: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
    let expected = [
        "offshoot-client",
        "offshoot-coordinator",
        "offshoot-draft",
        "offshoot-qualifier",
        "offshoot-target",
    ];
    assert_eq!(services, BTreeSet::from(expected));

    let client = only(&spans, "generate");
    assert_eq!(client.parent, "", "the trace begins at the client");
    let server = only(&spans, "text_completion");
    assert_eq!(server.parent, client.id);
    assert_eq!(server.service, "offshoot-coordinator");
    for (key, value) in [
        ("gen_ai.operation.name", "text_completion"),
        ("gen_ai.provider.name", "offshoot"),
        ("gen_ai.request.model", "target"),
        ("gen_ai.request.max_tokens", "24"),
        ("gen_ai.request.temperature", "0.5"),
        ("gen_ai.request.seed", "3"),
        ("gen_ai.usage.output_tokens", "24"),
        ("offshoot.strategy", "auto"),
    ] {
        let found = server.attributes.get(key).map(String::as_str);
        assert_eq!(found, Some(value), "{key}");
    }
    assert!(server.attributes["gen_ai.response.finish_reasons"].contains("length"));
    assert!(server.attributes.contains_key("gen_ai.usage.input_tokens"));
    assert!(server.events.iter().any(|name| name == "first token"));

    for role in ["draft", "qualifier", "target"] {
        let session = only(&spans, &format!("{role} session"));
        assert_eq!(session.parent, server.id, "{role}");
        assert_eq!(session.service, format!("offshoot-{role}"));
        let steps: Vec<_> = (spans.iter())
            .filter(|span| span.name == format!("{role} step"))
            .collect();
        assert!(!steps.is_empty(), "no step of the {role}");
        for step in &steps {
            assert_eq!(step.parent, session.id, "{role}");
            assert!(
                session.start <= step.start && step.end <= session.end,
                "{role}"
            );
            // All processes read the same clock.
            assert!(
                client.start <= step.start && step.start <= step.end,
                "{role}"
            );
            assert!(step.end <= client.end + 50_000_000, "{role}");
        }
        let rows = |step: &&Received| -> u64 {
            let rows = |key: &str| step.attributes[key].parse::<u64>().unwrap();
            rows("offshoot.append_rows") + rows("offshoot.tree_rows")
        };
        let done: Vec<_> = (steps.iter().copied())
            .filter(|step| step.attributes["offshoot.abandoned"] == "false")
            .collect();
        // The totals of the session are the sums of its steps.
        let (count, total) = (done.len() as u64, done.iter().map(rows).sum::<u64>());
        assert_eq!(
            session.attributes["offshoot.steps"],
            count.to_string(),
            "{role}"
        );
        assert_eq!(
            session.attributes["offshoot.rows"],
            total.to_string(),
            "{role}"
        );
    }
    // The target's steps say of every token who had guessed it, in the order of the text, and nothing of the text itself.
    let mut targets: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "target step")
        .collect();
    targets.sort_by_key(|step| step.end);
    let number = |step: &&&Received, key: &str| -> u64 {
        let found = step.attributes.get(key);
        found.map_or(0, |value| value.parse().unwrap())
    };
    let total = |key: &str| targets.iter().map(|step| number(&step, key)).sum::<u64>();
    assert_eq!(total("offshoot.committed"), 24);
    assert!(total("offshoot.chain_submitted") > 0);
    assert!(total("offshoot.chain_accepted") <= total("offshoot.chain_submitted"));
    let mut guessers = Vec::new();
    let mut first = None;
    for step in targets
        .iter()
        .filter(|step| step.attributes.contains_key("offshoot.guessed"))
    {
        let from = number(&step, "offshoot.guessed_from");
        let begins = *first.get_or_insert(from);
        assert_eq!(from, begins + guessers.len() as u64, "{step:?}");
        guessers.extend(step.attributes["offshoot.guessed"].split_whitespace());
    }
    assert_eq!(guessers.len(), 24);
    for guesser in &guessers {
        let source = guesser.split(':').next().unwrap();
        assert!(
            ["target", "draft", "qualifier", "lookup"].contains(&source),
            "{guesser}"
        );
    }
    assert!(
        guessers.iter().any(|guesser| guesser.starts_with("draft:")),
        "{guessers:?}"
    );
    // A paced step takes at least its minimum time.
    for step in spans.iter().filter(|span| span.name == "target step") {
        if step.attributes["offshoot.abandoned"] == "false" {
            assert!(step.end - step.start >= 10_000_000, "{step:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_sample_gets_no_trace() {
    let collector = Collector::start().unwrap();
    let arguments = [
        "generate",
        "fn main() {",
        "--max-tokens",
        "4",
        "--drafts",
        "0",
        "--no-qualifier",
        "--trace-sample-ratio",
        "0",
        "--otlp-traces-endpoint",
        &collector.endpoint,
    ];
    offshoot(words(&arguments)).await;
    assert!(collector.spans().is_empty(), "{:?}", collector.spans());
}

/// A cluster of one worker of each role, all with admin ports.
struct Observed {
    target: Process,
    qualifier: Process,
    draft: Process,
    coordinator: Process,
}

impl Observed {
    fn start() -> Observed {
        let start = |arguments: &[&str]| {
            let mut arguments = words(arguments);
            arguments.extend(words(&["--admin", "127.0.0.1:0"]));
            Process::start(&arguments).unwrap()
        };
        let dir = |name| model(name).display().to_string();
        let target = start(&["target-worker", "--model", &dir("target"), "--pace", "5"]);
        let qualifier = [
            "target-worker",
            "--role",
            "qualifier",
            "--model",
            &dir("qualifier"),
        ];
        let qualifier = start(&qualifier);
        let draft = start(&["draft-worker", "--model", &dir("draft")]);
        let coordinator = start(&[
            "coordinator",
            "--tokenizer",
            &dir("target"),
            "--target",
            &target.addr,
            "--qualifier",
            &qualifier.addr,
            "--draft",
            &draft.addr,
        ]);
        Observed {
            target,
            qualifier,
            draft,
            coordinator,
        }
    }

    fn all(&self) -> BTreeMap<&'static str, Page> {
        [
            ("target", &self.target),
            ("qualifier", &self.qualifier),
            ("draft", &self.draft),
            ("coordinator", &self.coordinator),
        ]
        .into_iter()
        .map(|(role, process)| (role, admin::scrape(process.admin.unwrap()).unwrap()))
        .collect()
    }

    /// Waits until the metrics of the processes satisfy a condition.
    async fn until(
        &self,
        condition: impl Fn(&BTreeMap<&'static str, Page>) -> bool,
    ) -> BTreeMap<&'static str, Page> {
        let pages = until(LIMIT, async || {
            let pages = self.all();
            Ok(if condition(&pages) {
                Ok(pages)
            } else {
                Err(format!("{pages:?}"))
            })
        });
        pages.await.unwrap()
    }
}

/// Gauges of what a request uses while it runs.
const HELD: [(&str, &str); 8] = [
    ("coordinator", "vllm:num_requests_running"),
    ("coordinator", "vllm:num_requests_waiting"),
    ("coordinator", "offshoot_sessions"),
    ("target", "offshoot_sessions{role=\"target\"}"),
    ("target", "offshoot_kv_pages_used{role=\"target\"}"),
    ("qualifier", "offshoot_sessions{role=\"qualifier\"}"),
    ("draft", "offshoot_sessions{role=\"draft\"}"),
    ("draft", "offshoot_kv_pages_used{role=\"draft\"}"),
];

fn all_held(pages: &BTreeMap<&'static str, Page>) -> bool {
    HELD.iter().all(|(role, series)| {
        let found = pages[role].value(series).unwrap();
        if series.contains("pages") {
            return found >= 1.0;
        }
        found == if series.contains("waiting") { 0.0 } else { 1.0 }
    })
}

fn nothing_held(pages: &BTreeMap<&'static str, Page>) -> bool {
    HELD.iter()
        .all(|(role, series)| pages[role].value(series).unwrap() == 0.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_are_those_of_the_request_and_gauges_come_back_to_zero() {
    let mut observed = Observed::start();
    let client = Client::connect(&observed.coordinator.addr, 3)
        .await
        .unwrap();
    let before = observed.all();
    assert!(nothing_held(&before));
    for process in [&observed.target, &observed.coordinator] {
        assert_eq!(admin::get(process.admin.unwrap(), "/ready").unwrap().0, 200);
    }

    // A strategy that always uses all of them, for long enough to be looked at.
    let mut asked = request(&prompts(1).unwrap()[0], 600, 0.7, "pyramid");
    asked.ignore_eos = true;
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.generate(asked).await }
    });
    observed.until(all_held).await;
    let completion = running.await.unwrap().unwrap();

    let after = observed.until(nothing_held).await;
    let frame = offshoot(words(&[
        "top",
        "--once",
        "--connect",
        &observed.coordinator.addr,
    ]))
    .await;
    let walks = completion.statistics.walks.clone().unwrap();
    let acceptance = walks.tokens as f64 / walks.steps as f64;
    for part in [
        "0 running, 0 waiting".to_owned(),
        format!("{} tokens total", completion.ids.len()),
        format!("acceptance length {acceptance:.2}"),
    ] {
        assert!(frame.contains(&part), "{part} is not in\n{frame}");
    }
    for process in [&observed.target, &observed.qualifier, &observed.draft] {
        let line = frame.lines().find(|line| line.contains(&process.addr));
        assert!(
            line.is_some_and(|line| line.contains("ready") && line.contains('%')),
            "{frame}"
        );
    }
    check_coordinator(&before["coordinator"], &after["coordinator"], &completion);
    for role in ["target", "qualifier", "draft"] {
        let total = |name: &str| {
            let series = format!("{name}{{role=\"{role}\"}}");
            after[role].value(&series).unwrap() - before[role].value(&series).unwrap()
        };
        assert_eq!(total("offshoot_sessions_opened_total"), 1.0, "{role}");
        let statistics = &completion.statistics;
        let activity = match role {
            "target" => statistics.target.unwrap(),
            "qualifier" => statistics.qualifiers[0],
            _ => statistics.drafts[0],
        };
        // The last report of a session may be a few steps old; the metrics of the process are current.
        assert!(
            total("offshoot_steps_total") >= activity.steps as f64,
            "{role}"
        );
        assert!(
            total("offshoot_rows_total") >= activity.rows as f64,
            "{role}"
        );
        assert!(total("offshoot_busy_seconds_total") >= activity.busy_us as f64 / 1e6 - 1e-3);
        let steps = total("offshoot_step_seconds_count");
        assert_eq!(steps, total("offshoot_steps_total"), "{role}");
    }

    // A coordinator that has lost its only target queues requests, so it stays ready.
    observed.target.kill().unwrap();
    let address = observed.coordinator.admin.unwrap();
    let lost = until(LIMIT, async || {
        let ready =
            admin::scrape(address)?.value(r#"offshoot_workers{role="target",state="ready"}"#)?;
        Ok(met(ready == 0.0, "the target is still listed as ready"))
    });
    lost.await.unwrap();
    for page in ["/live", "/startup", "/ready"] {
        assert_eq!(admin::get(address, page).unwrap().0, 200, "{page}");
    }
}

fn check_coordinator(before: &Page, after: &Page, completion: &Completion) {
    let total = |series: &str| after.value(series).unwrap() - before.value(series).unwrap();
    let tokens = completion.ids.len() as f64;
    let walks = completion.statistics.walks.clone().unwrap();
    for (series, expected) in [
        ("vllm:generation_tokens_total", tokens),
        (
            "vllm:request_success_total{finished_reason=\"length\"}",
            1.0,
        ),
        ("vllm:request_success_total{finished_reason=\"abort\"}", 0.0),
        ("vllm:time_to_first_token_seconds_count", 1.0),
        ("vllm:e2e_request_latency_seconds_count", 1.0),
        (
            "vllm:spec_decode_num_draft_tokens_total",
            walks.guesses_submitted as f64,
        ),
        (
            "vllm:spec_decode_num_accepted_tokens_total",
            walks.guesses_accepted as f64,
        ),
        ("offshoot_target_steps_total", walks.steps as f64),
        ("offshoot_hits_total", walks.hits as f64),
        ("offshoot_misses_total", walks.misses as f64),
        ("offshoot_starved_steps_total", walks.starved_steps as f64),
        (
            "offshoot_drafted_nodes_total",
            completion.statistics.drafted_nodes as f64,
        ),
        ("offshoot_migrations_total", 0.0),
    ] {
        assert_eq!(total(series), expected, "{series}");
    }
    assert!(total("vllm:prompt_tokens_total") >= 1.0);
    assert!(walks.steps > 0 && walks.guesses_accepted > 0, "{walks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_metrics_are_those_of_the_processes() {
    let observed = Observed::start();
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let mut documented: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
    let mut section = "";
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = if heading.starts_with("Worker") {
                "worker"
            } else {
                "coordinator"
            };
        }
        let cells: Vec<_> = line.split('|').map(str::trim).collect();
        if let [_, name, kind, ..] = cells[..]
            && let Some(name) = name
                .strip_prefix('`')
                .and_then(|name| name.strip_suffix('`'))
        {
            let listed = documented.entry(section).or_default();
            let again = listed.insert(name.to_owned(), kind.to_owned());
            assert!(again.is_none(), "{name} is listed twice");
        }
    }
    let pages = observed.all();
    assert_eq!(documented["coordinator"], pages["coordinator"].types);
    for role in ["target", "qualifier", "draft"] {
        assert_eq!(documented["worker"], pages[role].types, "{role}");
    }
    for page in pages.values() {
        assert_eq!(page.described.len(), page.types.len());
    }
}

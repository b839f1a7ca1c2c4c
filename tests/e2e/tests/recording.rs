//! A coordinator that records, and what can be done with the recording: it has no token, and it is a profile.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use offshoot_e2e::client::{Client, request};
use offshoot_e2e::cluster::{Cluster, Process, Shape, binary};
use offshoot_e2e::{model, prompts};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_running_cluster_records_can_be_simulated() {
    let shape = Shape {
        drafts: 1,
        qualifiers: 1,
        target_pace: 0,
    };
    let profile = model("profiles/nano.json").display().to_string();
    // Drafts have to be ahead of the target, or nothing is seen.
    let flags = ["--synthetic", &profile, "--step-ms", "1:6,64:8"];
    let cluster = Cluster::start_with(shape, &flags).unwrap();
    let tokenizer = model("target").display().to_string();
    let (target, draft) = (&cluster.target.addr, &cluster.drafts[0].addr);
    let coordinator = Process::start(
        &[
            "coordinator",
            "--record",
            "4096",
            "--tokenizer",
            &tokenizer,
            "--target",
            target,
            "--draft",
            draft,
            "--qualifier",
            &cluster.qualifiers[0].addr,
        ]
        .map(str::to_owned),
    )
    .unwrap();
    let client = Client::connect(&coordinator.addr, 3).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("traffic.json").display().to_string();
    let offshoot = |arguments: &[&str]| {
        let output = Command::new(binary().unwrap())
            .args(arguments)
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), stdout, stderr)
    };
    let record = ["record", "--connect", &coordinator.addr, "--out", &file];
    let (is_done, _, stderr) = offshoot(&record);
    assert!(
        !is_done && stderr.contains("nothing is recorded yet"),
        "{stderr}"
    );
    for prompt in prompts(3).unwrap() {
        let asked = request(&prompt, 64, 0.0, "serial");
        assert_eq!(client.generate(asked).await.unwrap().ids.len(), 64);
    }
    let (is_done, _, stderr) = offshoot(&record);
    assert!(is_done && stderr.contains("3 completions"), "{stderr}");
    let written: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(written["format"], "offshoot-profile");
    let (is_done, table, stderr) = offshoot(&[
        "simulate",
        "--recording",
        &file,
        "--strategies",
        "ar,serial",
        "--requests",
        "2",
    ]);
    assert!(
        is_done && table.contains("profile recording"),
        "{table} {stderr}"
    );
    // The other coordinator was not told to record.
    let (is_done, _, stderr) = offshoot(&[
        "record",
        "--connect",
        &cluster.coordinator.addr,
        "--out",
        &file,
    ]);
    assert!(!is_done && stderr.contains("--record N"), "{stderr}");
}

/// The bundled models, in processes of their own: what each step of the target committed is committed again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_steps_of_a_running_cluster_are_taken_again() {
    let shape = Shape {
        drafts: 2,
        qualifiers: 1,
        // So that drafts are ahead of it.
        target_pace: 8,
    };
    let cluster = Cluster::start(shape).unwrap();
    let tokenizer = model("target").display().to_string();
    let mut flags = vec!["coordinator", "--record", "4096", "--tokenizer", &tokenizer];
    flags.extend(["--target", &cluster.target.addr]);
    flags.extend(["--qualifier", &cluster.qualifiers[0].addr]);
    for draft in &cluster.drafts {
        flags.extend(["--draft", &draft.addr]);
    }
    let flags: Vec<String> = flags.into_iter().map(str::to_owned).collect();
    let coordinator = Process::start(&flags).unwrap();
    let client = Client::connect(&coordinator.addr, 4).await.unwrap();
    let prompts = prompts(2).unwrap();
    let mut seen = Vec::new();
    for (strategy, temperature) in [
        ("serial", 0.0),
        ("parallel", 0.0),
        ("ssd", 1.0),
        ("auto", 1.0),
    ] {
        for prompt in &prompts {
            let asked = request(prompt, 40, temperature, strategy);
            let mut borders = Vec::new();
            let completion = client
                .generate_observed(asked, |tokens| borders.push(tokens))
                .await
                .unwrap();
            let walks = completion.statistics.walks.unwrap();
            seen.push((strategy, borders, walks, completion.ids.len()));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (file, json) = (path("traffic.json"), path("steps.json"));
    let offshoot = |arguments: &[&str]| {
        let output = Command::new(binary().unwrap())
            .args(arguments)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text} {stderr}");
        text
    };
    offshoot(&["record", "--connect", &coordinator.addr, "--out", &file]);
    let table = offshoot(&["simulate", "--replay", &file, "--json", &json]);
    assert!(table.starts_with("REPLAYED"), "{table}");
    let rows: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), seen.len(), "{table}");
    for (row, (strategy, borders, walks, tokens)) in rows.iter().zip(seen) {
        assert_eq!(
            (&row["strategy"], &row["is_same"]),
            (&strategy.into(), &true.into())
        );
        let steps = |name: &str| -> Vec<u64> {
            let steps = row[name].as_array().unwrap();
            steps.iter().map(|step| step.as_u64().unwrap()).collect()
        };
        let (recorded, replayed) = (steps("recorded"), steps("replayed"));
        assert_eq!(recorded, replayed, "{strategy}");
        // Beside the recording there is what the target counted and what the client has seen: a message may hold the tokens of
        // several steps, but none ends within one.
        assert_eq!(replayed.len() as u64, walks.steps, "{strategy}");
        assert_eq!(replayed.iter().sum::<u64>(), walks.tokens, "{strategy}");
        assert_eq!(tokens as u64, walks.tokens, "{strategy}");
        let submitted: u64 = steps("submitted").iter().sum();
        assert_eq!(submitted, walks.guesses_submitted, "{strategy}");
        let ends: Vec<u64> = (replayed.iter())
            .scan(0, |sum, tokens| {
                *sum += tokens;
                Some(*sum)
            })
            .collect();
        for border in borders {
            assert!(
                ends.contains(&(border as u64)),
                "{strategy}: {border} in {ends:?}"
            );
        }
    }
}

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

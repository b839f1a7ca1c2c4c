//! A cluster whose models compute on a GPU: the fake one of tests/cuda, whose kernels run on the CPU. Real processes, and the real
//! backend; only the driver is not.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use cuda_kernels::compile::{compiler, fake_driver};
use cuda_kernels::root;
use offshoot_e2e::cluster::binary;
use offshoot_e2e::model;
use serde_json::Value;

/// Draft and target share the GPU, each with a part of its memory, so that `auto` sees that they do.
#[test]
fn the_text_of_a_gpu_is_the_same_under_every_strategy() {
    let Some(compiler) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    fake_driver(&root(), &compiler, folder.path(), &[]).unwrap();
    let report = folder.path().join("report.json");
    let smallest = model("draft");
    let output = Command::new(binary().unwrap())
        .arg("bench")
        .arg("--prompts")
        .arg(root().join("tests/prompts/rust.jsonl"))
        .args([
            "--devices",
            "cuda:0",
            "--gpu-memory-utilization",
            "target=0.5,draft=0.4",
        ])
        .arg("--target")
        .arg(&smallest)
        .arg("--draft")
        .arg(&smallest)
        .args([
            "--no-qualifier",
            "--strategies",
            "ar,serial-tree,parallel,auto",
        ])
        .args([
            "--limit",
            "1",
            "--max-tokens",
            "12",
            "--temperature",
            "1",
            "--tune-prompts",
            "0",
        ])
        .arg("--json")
        .arg(&report)
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let text = report.to_string();
    let equal = text.matches("\"differing_requests\":0").count();
    assert_eq!(equal, 4, "{text}");
    // Guesses were made, and some of them were right.
    let longest = report["strategies"].as_array().unwrap().iter();
    let accepted = longest.filter_map(|strategy| strategy["acceptance_length"].as_f64());
    assert!(accepted.fold(0.0, f64::max) > 1.0, "{text}");
}

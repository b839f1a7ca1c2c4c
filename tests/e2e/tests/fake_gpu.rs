//! A cluster whose models compute on a GPU: the fake one of tests/cuda, whose kernels run on the CPU. Real processes, and the real
//! backend; only the driver is not.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::process::Command;

use cuda_kernels::compile::{compiler, fake_driver};
use cuda_kernels::root;
use offshoot_e2e::cluster::binary;
use offshoot_e2e::model;
use serde_json::Value;

#[test]
fn the_text_of_a_gpu_is_the_same_under_every_strategy() {
    let Some(compiler) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    fake_driver(&root(), &compiler, folder.path(), &[]).unwrap();
    // Draft and target on one GPU, each with a part of its memory, so that `auto` may take turns; then on one each.
    for (devices, strategies) in [
        ("cuda:0", ["ar", "serial-tree", "auto"]),
        ("target=cuda:1,draft=cuda:0", ["ar", "parallel", "auto"]),
    ] {
        let longest = bench(folder.path(), devices, &strategies);
        // A tree that is waited for has guesses that are right; how soon others come is a matter of time.
        assert!(longest > 1.0 || !strategies.contains(&"serial-tree"));
    }
}

/// Compares strategies on devices over the driver of a folder; the tokens of a step of whichever has most.
fn bench(driver: &Path, devices: &str, strategies: &[&str]) -> f64 {
    let report = driver.join("report.json");
    let smallest = model("draft");
    let output = Command::new(binary().unwrap())
        .arg("bench")
        .arg("--prompts")
        .arg(root().join("tests/prompts/rust.jsonl"))
        .args(["--devices", devices, "--kv-mib", "16"])
        .arg("--target")
        .arg(&smallest)
        .arg("--draft")
        .arg(&smallest)
        .args(["--no-qualifier", "--strategies", &strategies.join(",")])
        .args(["--limit", "1", "--max-tokens", "12", "--temperature", "1"])
        .args(["--tune-prompts", "0"])
        .arg("--json")
        .arg(&report)
        .env("LD_LIBRARY_PATH", driver)
        .env("FAKE_CUDA_GPUS", "2")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    let text = report.to_string();
    let equal = text.matches("\"differing_requests\":0").count();
    assert_eq!(equal, strategies.len(), "{text}");
    let found = report["strategies"].as_array().unwrap().iter();
    let accepted = found.filter_map(|strategy| strategy["acceptance_length"].as_f64());
    accepted.fold(0.0, f64::max)
}

//! The commands of the laboratory: predictions against a real bench of the synthetic rig, tables, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::fs;
use std::process::Output;

use assert_cmd::Command;

fn offshoot(arguments: &[&str]) -> Output {
    let mut command = Command::cargo_bin("offshoot").unwrap();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OFFSHOOT_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).output().unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = offshoot(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} printed {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(arguments: &[&str]) -> String {
    let output = offshoot(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn the_texts_of_a_bench_are_predicted_to_the_last_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (prompts, out) = (path("prompts.jsonl"), path("out.json"));
    let lines = "{\"prompt\": \"fn main() {\"}\n{\"prompt\": \"pub struct\"}\n";
    fs::write(&prompts, lines).unwrap();
    // Slow steps, so that how busy this machine is hardly matters.
    let bench = "bench --synthetic nano --step-ms target=40,qualifier=20,draft=8 --strategies ar,serial:gamma=3 \
                 --max-tokens 24 --temperature 1 --seed 5 --tune-prompts 0 --repeats 2";
    let mut arguments: Vec<&str> = bench.split_whitespace().collect();
    arguments.extend(["--prompts", &prompts, "--json", &out]);
    stdout(&arguments);
    let against = ["simulate", "--against", &out, "--prompts", &prompts];
    // The speed of a machine that others use is nothing to test by.
    let table = stdout(&[&against[..], &["--within", "400"]].concat());
    assert!(table.starts_with("SIMULATED against"), "{table}");
    for name in ["ar ", "serial:gamma=3 "] {
        let row = table.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(row.ends_with("4 of 4"), "{table}");
    }
    let error = refusal(&[&against[..], &["--within", "0"]].concat());
    assert!(
        error.contains("predictions differ by more than 0 %"),
        "{error}"
    );
}

#[test]
fn advice_ranks_workers_at_equal_devices() {
    let few = "--requests 2 --max-tokens 48 --strategies serial:gamma=4,auto --devices 3";
    let flags: Vec<&str> = ["advise"].into_iter().chain(few.split(' ')).collect();
    let table = stdout(&flags);
    assert!(table.starts_with("SIMULATED"), "{table}");
    for found in [
        "1T+1Q+1D",
        "best: auto",
        "speculation: pays",
        "drafts of auto",
        "a qualifier on 3 devices",
    ] {
        assert!(table.contains(found), "{found} is not in {table}");
    }
    // A draft and a qualifier that are never right are worth nothing.
    let hopeless = stdout(
        &[
            &flags[..],
            &["--accept", "0.001", "--qualifier-accept", "0.001"],
        ]
        .concat(),
    );
    assert!(
        hopeless.contains("speculation: does not pay here"),
        "{hopeless}"
    );
}

#[test]
fn mistakes_are_explained() {
    for (flags, why) in [
        ("simulate --profile no-such-profile", "no-such-profile"),
        ("simulate --accept 0.9,0.2", "sum of at most 1"),
        (
            "simulate --step-ms draft=2",
            "says nothing of the role target",
        ),
        ("simulate --strategies warp", "known are"),
        (
            "simulate --strategies serial:acceptance=rejection",
            "only acceptance=exact",
        ),
        ("simulate --delay-ms fast", "not a number of milliseconds"),
        (
            "simulate --concurrency 10000 --max-tokens 65536",
            "positions of all texts",
        ),
        (
            "simulate --against no-such-file.json",
            "cannot read no-such-file.json",
        ),
        (
            "record --connect 127.0.0.1:1 --out /no/such/folder/out.json",
            "cannot write",
        ),
    ] {
        let flags: Vec<&str> = flags.split(' ').collect();
        let error = refusal(&flags);
        assert!(error.contains(why), "{flags:?} gave {error}");
    }
}

//! Error messages: one line that says what to do, exit status 1, and no panic. Nothing here needs a cluster.
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

/// Runs a command that must fail with `status`, and returns its standard error.
fn failure(arguments: &[&str], status: i32) -> String {
    let output = offshoot(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(status),
        "{arguments:?} printed {stderr}"
    );
    assert!(
        output.stdout.is_empty(),
        "a failure writes nothing to standard output"
    );
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

fn fails_with(arguments: &[&str], parts: &[&str]) {
    let stderr = failure(arguments, 1);
    assert!(stderr.starts_with("error: "), "{stderr}");
    for part in parts {
        assert!(
            stderr.contains(part),
            "{arguments:?} printed {stderr:?}, not {part:?}"
        );
    }
}

#[test]
fn an_unknown_model_is_named_before_anything_starts() {
    for role in ["--target", "--qualifier", "--draft"] {
        fails_with(
            &["generate", "x", role, "no/such/model"],
            &["no/such/model", "no such folder"],
        );
    }
    fails_with(
        &["bench-engine", "--model", "no/such/model"],
        &["no/such/model"],
    );
    fails_with(
        &["up", "--models", "no/such/models"],
        &["no/such/models", "target/config.json"],
    );
}

#[test]
fn a_folder_without_a_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    fails_with(
        &["generate", "x", "--target", path],
        &[path, "config.json", "Hugging Face"],
    );
}

#[test]
fn a_worker_that_cannot_load_says_why_through_the_command() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{\"model_type\": \"llama\"").unwrap();
    let path = dir.path().to_str().unwrap();
    fails_with(
        &[
            "generate",
            "x",
            "--target",
            path,
            "--no-qualifier",
            "--drafts",
            "0",
        ],
        &[
            "the target process exited before it was ready",
            "its log ends with",
            "config.json",
        ],
    );
}

#[test]
fn a_bad_flag_is_a_usage_error() {
    for (arguments, part) in [
        (
            &["generate", "x", "--pace", "target=fast"][..],
            "milliseconds",
        ),
        (&["generate", "x", "--pace", "judge=3"][..], "not a role"),
        (
            &["generate", "x", "--strategy", "magic"][..],
            "unknown strategy \"magic\"; known are ar, serial, serial-tree",
        ),
        (
            &["generate", "x", "--strategy", "serial", "--depth", "4"][..],
            "strategy serial: there is no knob \"depth\"; it has gamma",
        ),
        (
            &["generate", "x", "--width", "1.5"][..],
            "width is 1.5; allowed are whole numbers",
        ),
        (
            &["generate", "x", "--knob", "rows=many"][..],
            "not a number",
        ),
        (&["generate", "x", "--drafts", "1000"][..], "1000"),
        (&["generate"][..], "PROMPT"),
        (
            &["bench", "--prompts", "p", "--strategies", "serial:gamma=99"][..],
            "gamma is 99; allowed are whole numbers from 0 to 64",
        ),
        (&["bench-engine", "--rows", "0"][..], "0"),
        (&["models", "deepen", "--layers", "9"][..], "--out"),
    ] {
        let stderr = failure(arguments, 2);
        assert!(
            stderr.contains(part),
            "{arguments:?} printed {stderr:?}, not {part:?}"
        );
    }
}

#[test]
fn an_address_at_which_nothing_listens() {
    // Bound and dropped again, so nothing listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    fails_with(
        &["generate", "x", "--connect", &free],
        &[&free, "is the process running"],
    );
    fails_with(
        &["generate", "x", "--connect", "localhost"],
        &["port is missing", "HOST:PORT"],
    );
}

#[test]
fn bench_inputs_are_checked_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fails_with(
        &["bench", "--prompts", &path("none.jsonl")],
        &["none.jsonl"],
    );
    fs::write(path("bad.jsonl"), "{\"prompt\": \"a\"}\nnot json\n").unwrap();
    fails_with(
        &["bench", "--prompts", &path("bad.jsonl")],
        &["bad.jsonl", "line 2"],
    );
    fs::write(path("good.jsonl"), "{\"prompt\": \"a\"}\n").unwrap();
    fails_with(
        &[
            "bench",
            "--prompts",
            &path("good.jsonl"),
            "--json",
            &path("no/such/out.json"),
        ],
        &["cannot write", "out.json"],
    );
}

#[test]
fn deepening_needs_more_layers_and_an_empty_place() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("deep").to_str().unwrap().to_owned();
    fails_with(
        &["models", "deepen", "--layers", "1", "--out", &out],
        &["1", "layers"],
    );
    let written = offshoot(&["models", "deepen", "--layers", "9", "--out", &out]);
    assert!(written.status.success());
    assert!(
        String::from_utf8(written.stdout)
            .unwrap()
            .contains("9 layers instead of 8")
    );
    fails_with(
        &["models", "deepen", "--layers", "9", "--out", &out],
        &["already holds"],
    );
}

#[test]
fn help_and_version_go_to_standard_output() {
    let version = offshoot(&["--version"]);
    assert!(
        String::from_utf8(version.stdout)
            .unwrap()
            .starts_with("offshoot ")
    );
    for command in [
        "generate",
        "up",
        "draft-worker",
        "target-worker",
        "coordinator",
        "strategies",
        "bench",
        "bench-engine",
    ] {
        let help = offshoot(&[command, "--help"]);
        assert!(help.status.success() && help.stderr.is_empty(), "{command}");
    }
}

#[test]
fn every_strategy_is_listed_with_its_knobs() {
    let listed = offshoot(&["strategies"]);
    assert!(listed.status.success() && listed.stderr.is_empty());
    let text = String::from_utf8(listed.stdout).unwrap();
    for part in [
        "ar\n",
        "auto (default)\n",
        "arXiv 2305.09781",
        "gamma    tokens drafted per round; 0: as many as pay for the time that the target waits; whole numbers from 0 to 64 [default: 0]",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let help = offshoot(&["generate", "--help"]);
    let help = String::from_utf8(help.stdout).unwrap();
    for part in [
        "--gamma <N>",
        "serial: tokens drafted per round",
        "Plain decoding",
    ] {
        assert!(help.contains(part), "{part} is not in {help}");
    }
}

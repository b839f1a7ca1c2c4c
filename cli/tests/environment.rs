//! The environment as the second source of flags: what others put there does no harm, and an error names its variable.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/target");

/// `offshoot` with these variables and no others of its own.
fn offshoot(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin("offshoot"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OFFSHOOT_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).envs(variables.iter().copied());
    command.stdin(Stdio::null());
    command
}

/// Runs a command that must fail with `status`; its standard error.
fn failure(mut command: Command, status: i32) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{command:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr
}

fn fails(arguments: &[&str], variables: &[(&str, &str)], status: i32) -> String {
    failure(offshoot(arguments, variables), status)
}

/// What a coordinator needs, beside a target at which nothing listens.
fn coordinator() -> Vec<&'static str> {
    vec!["coordinator", "--tokenizer", TOKENIZER]
}

#[test]
fn a_process_starts_in_an_environment_that_orchestrators_have_filled() {
    let mut coordinator = offshoot(
        &["coordinator", "--announce", "--exit-with-parent"],
        &[
            // A service called "offshoot", and one called "offshoot-target".
            ("OFFSHOOT_SERVICE_HOST", "10.0.0.1"),
            ("OFFSHOOT_SERVICE_PORT", "7000"),
            ("OFFSHOOT_PORT", "tcp://10.0.0.1:7000"),
            ("OFFSHOOT_PORT_7000_TCP", "tcp://10.0.0.1:7000"),
            ("OFFSHOOT_PORT_7000_TCP_PROTO", "tcp"),
            ("OFFSHOOT_PORT_7000_TCP_PORT", "7000"),
            ("OFFSHOOT_PORT_7000_TCP_ADDR", "10.0.0.1"),
            ("OFFSHOOT_TARGET_PORT", "tcp://10.0.0.2:7001"),
            ("OFFSHOOT_ADMIN_PORT", "tcp://10.0.0.3:9090"),
            // Templates whose values are not there.
            ("OFFSHOOT_HOST", ""),
            ("OFFSHOOT_ADMIN", ""),
            ("OFFSHOOT_DRAFTS", ""),
            ("OFFSHOOT_WORKERS_FILE", ""),
            ("OFFSHOOT_DNS_SERVER", ""),
            ("OFFSHOOT_MAX_SESSIONS", ""),
            ("OFFSHOOT_ALLOW_PLAINTEXT_BIND", ""),
            ("OFFSHOOT_LOG", ""),
            ("OFFSHOOT_TLS_CERT", ""),
            ("OFFSHOOT_OTLP_TRACES_ENDPOINT", ""),
            // And what is meant.
            ("OFFSHOOT_TOKENIZER", TOKENIZER),
            ("OFFSHOOT_TARGETS", " 127.0.0.1:1,,"),
        ],
    )
    .stdin(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut line = String::new();
    let stdout = coordinator.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    assert!(line.contains("coordinator"), "{line:?}");
    assert!(line.contains("127.0.0.1:"), "{line:?}");
    // It ends with its parent, whose end is that of standard input.
    drop(coordinator.stdin.take());
    assert!(coordinator.wait().unwrap().success());
}

#[test]
fn an_error_names_its_variable_and_what_to_do() {
    for (name, value) in [
        ("OFFSHOOT_PORT", "seven"),
        ("OFFSHOOT_PORT", "70000"),
        ("OFFSHOOT_MAX_SESSIONS", "0"),
        ("OFFSHOOT_LOG_FORMAT", "xml"),
        ("OFFSHOOT_DRAIN_GRACE", "soon"),
        ("OFFSHOOT_ALLOW_PLAINTEXT_BIND", "perhaps"),
    ] {
        // Another variable is right, and not to blame.
        let variables = [
            (name, value),
            ("OFFSHOOT_TENANT", "t"),
            ("OFFSHOOT_TARGETS", "127.0.0.1:1"),
        ];
        let stderr = fails(&coordinator(), &variables, 2);
        let note = format!("the environment variable {name} is set to {value:?}");
        assert!(stderr.contains(&note), "{stderr}");
        assert!(stderr.contains("unset it"), "{stderr}");
        assert!(!stderr.contains("OFFSHOOT_TENANT"), "{stderr}");
        assert!(!stderr.contains("OFFSHOOT_TARGETS"), "{stderr}");
    }
    // What the command line says is not the variable's fault, and a flag overrides it.
    let mut arguments = coordinator();
    arguments.extend(["--target", "127.0.0.1:1", "--port", "70000"]);
    let stderr = fails(&arguments, &[("OFFSHOOT_PORT", "7000")], 2);
    assert!(
        stderr.contains("70000") && !stderr.contains("OFFSHOOT_PORT is set"),
        "{stderr}"
    );
    let conflict = [
        ("OFFSHOOT_CONNECT", "127.0.0.1:1"),
        ("OFFSHOOT_MODELS", "m"),
    ];
    let stderr = fails(&["generate", "x", "--target", "m"], &conflict, 2);
    assert!(
        stderr.contains("OFFSHOOT_CONNECT is set") && !stderr.contains("OFFSHOOT_MODELS is set"),
        "{stderr}"
    );
}

#[test]
fn a_variable_that_is_not_text_is_named() {
    let mut command = offshoot(&coordinator(), &[("OFFSHOOT_TARGETS", "127.0.0.1:1")]);
    command.env("OFFSHOOT_TENANT", OsStr::from_bytes(b"\xff\xfe"));
    let stderr = failure(command, 2);
    assert!(stderr.contains("OFFSHOOT_TENANT"), "{stderr}");
}

#[test]
fn what_is_missing_can_also_be_a_variable() {
    let targets = ("OFFSHOOT_TARGETS", "127.0.0.1:1");
    let stderr = fails(&["coordinator"], &[targets], 2);
    let note = "can also be given as the environment variable OFFSHOOT_TOKENIZER";
    assert!(stderr.contains(note), "{stderr}");
    let stderr = fails(&["coordinator"], &[targets, ("OFFSHOOT_TOKENIZER", "")], 2);
    assert!(stderr.contains("OFFSHOOT_TOKENIZER"), "{stderr}");
    assert!(
        stderr.contains("is empty: that counts as not set"),
        "{stderr}"
    );
}

/// Arguments, variables, and what the error has to say.
type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);

#[test]
fn what_is_found_wrong_later_names_the_variable_too() {
    let tokenizer = ("OFFSHOOT_TOKENIZER", TOKENIZER);
    let target = ("OFFSHOOT_TARGETS", "127.0.0.1:1");
    let cases: [Case<'_>; 8] = [
        (
            &["coordinator"],
            &[tokenizer, ("OFFSHOOT_TARGETS", "target")],
            &["OFFSHOOT_TARGETS", "port is missing", "HOST:PORT"],
        ),
        (
            &["coordinator"],
            &[tokenizer, target, ("OFFSHOOT_WORKERS_DNS", "127.0.0.1:1")],
            &["OFFSHOOT_WORKERS_DNS", "--worker"],
        ),
        (
            &["coordinator"],
            &[tokenizer, target, ("OFFSHOOT_STRATEGY", "warp")],
            &["OFFSHOOT_STRATEGY", "known are"],
        ),
        (
            &["coordinator"],
            &[("OFFSHOOT_TOKENIZER", "no/such/folder"), target],
            &["OFFSHOOT_TOKENIZER", "no/such/folder"],
        ),
        (
            &["target-worker"],
            &[("OFFSHOOT_MODEL", "no/such/model")],
            &["OFFSHOOT_MODEL", "no/such/model"],
        ),
        (
            &["generate", "x"],
            &[("OFFSHOOT_CONNECT", "localhost")],
            &["OFFSHOOT_CONNECT", "port is missing"],
        ),
        (
            &["top", "--once"],
            &[("OFFSHOOT_CONNECT", "localhost")],
            &["OFFSHOOT_CONNECT", "port is missing"],
        ),
        (
            &["coordinator"],
            &[tokenizer, target, ("OFFSHOOT_LOG", "a=b=c")],
            &["log filter", "a=b=c"],
        ),
    ];
    for (arguments, variables, parts) in cases {
        let stderr = fails(arguments, variables, 1);
        for part in parts {
            assert!(stderr.contains(part), "{variables:?}: {stderr}");
        }
    }
}

#[test]
fn a_switch_may_be_written_as_people_write_it() {
    // An address of a documentation network, which this machine does not have.
    let host = ("OFFSHOOT_HOST", "192.0.2.1");
    let mut arguments = coordinator();
    arguments.extend(["--target", "127.0.0.1:1"]);
    for (value, part) in [
        ("1", "cannot listen on 192.0.2.1"),
        ("true", "cannot listen on 192.0.2.1"),
        ("yes", "cannot listen on 192.0.2.1"),
        ("0", "refusing to listen on 192.0.2.1"),
        ("false", "refusing to listen on 192.0.2.1"),
        ("", "refusing to listen on 192.0.2.1"),
    ] {
        let allow = ("OFFSHOOT_ALLOW_PLAINTEXT_BIND", value);
        let stderr = fails(&arguments, &[host, allow], 1);
        assert!(stderr.contains(part), "{value:?}: {stderr}");
    }
}

/// Not twice, as a chain of causes would have it whose messages contain each other.
#[test]
fn what_the_system_says_is_printed_once() {
    let once = |stderr: &str| {
        assert_eq!(stderr.matches("(os error").count(), 1, "{stderr}");
    };
    let mut arguments = coordinator();
    arguments.extend(["--target", "127.0.0.1:1", "--host", "192.0.2.1"]);
    arguments.push("--allow-plaintext-bind");
    once(&fails(&arguments, &[], 1));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    once(&fails(&["generate", "x", "--connect", &address], &[], 1));
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("config.json")).unwrap();
    let model = folder.path().to_str().unwrap();
    for role in ["draft-worker", "target-worker"] {
        once(&fails(&[role, "--model", model], &[], 1));
    }
    let coordinator = Path::new(model).join("missing.pem");
    let coordinator = coordinator.to_str().unwrap();
    let tls = [
        "top",
        "--once",
        "--connect",
        "127.0.0.1:1",
        "--tls-ca",
        coordinator,
    ];
    once(&fails(&tls, &[], 1));
}

//! Signals, the exit of the parent and the announcement, with real processes.
//!
//! The child is this test binary again, running [`child`] alone.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests may panic")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use offshoot_runtime::drain::FORCED_EXIT;
use offshoot_runtime::{
    AnnounceArgs, Announcement, Drain, Listener, NetArgs, ParentArgs, announce, parent,
};

/// What the child does when it is told to stop: `leave`, `linger`, or `delay`: it says so and goes on for a day first.
const BEHAVIOUR: &str = "OFFSHOOT_RUNTIME_TEST_CHILD";

/// Not a test of its own: the body of the child process.
#[test]
#[ignore = "the child process of the tests in this file"]
fn child() {
    let Ok(behaviour) = std::env::var(BEHAVIOUR) else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let drain = Drain::new();
        let delay = Duration::from_secs(if behaviour == "delay" { 86_400 } else { 0 });
        drain.on_signals_after(delay).unwrap();
        let parent = ParentArgs {
            exit_with_parent: true,
        };
        parent::exit_with_parent(&parent, &drain).unwrap();
        let listener = Listener::bind(&NetArgs::default()).await.unwrap();
        let ready = AnnounceArgs { announce: true };
        announce::announce(&ready, "draft", listener.local_addr(), None).unwrap();
        drain.leaving().await;
        if behaviour == "delay" {
            assert!(!drain.is_stopping());
        } else {
            drain.stopping().await;
        }
        // Another line tells the test that the first signal has arrived.
        announce::announce(&ready, "stopping", listener.local_addr(), None).unwrap();
        if behaviour != "leave" {
            drain.spawn(std::future::pending::<()>());
        }
        drain.shutdown(Duration::from_secs(600)).await;
    });
    std::process::exit(0);
}

struct Spawned {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Drop for Spawned {
    fn drop(&mut self) {
        // It has already exited, unless an assertion failed first.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(behaviour: &str) -> Spawned {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture"])
        .env(BEHAVIOUR, behaviour)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    Spawned { process, lines }
}

impl Spawned {
    /// The next announcement; the output of the test runner is skipped.
    fn announcement(&mut self) -> Announcement {
        loop {
            let line = self.lines.next().expect("the child ended early").unwrap();
            if let Some(start) = line.find('{') {
                return Announcement::from_line(&line[start..]).unwrap();
            }
        }
    }

    fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.process.id());
        let sent = Command::new("sh").args(["-c", &command]).status().unwrap();
        assert!(sent.success());
    }

    fn status(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

#[test]
fn a_child_announces_itself_and_drains_on_sigterm() {
    let mut child = spawn("leave");
    let found = child.announcement();
    assert_eq!(found.role, "draft");
    assert!(std::net::TcpStream::connect(found.addr).is_ok());
    child.signal("TERM");
    assert_eq!(child.announcement().role, "stopping");
    assert_eq!(child.status().code(), Some(0));
}

#[test]
fn a_second_signal_ends_a_lingering_child_at_once() {
    let mut child = spawn("linger");
    child.announcement();
    child.signal("INT");
    assert_eq!(child.announcement().role, "stopping");
    child.signal("TERM");
    assert_eq!(child.status().code(), Some(FORCED_EXIT));
}

#[test]
fn a_child_that_leaves_with_a_delay_has_not_begun_to_drain() {
    let mut child = spawn("delay");
    child.announcement();
    child.signal("TERM");
    assert_eq!(child.announcement().role, "stopping");
    child.signal("TERM");
    assert_eq!(child.status().code(), Some(FORCED_EXIT));
}

#[test]
fn a_child_exits_when_its_standard_input_is_closed() {
    let mut child = spawn("leave");
    child.announcement();
    drop(child.process.stdin.take());
    assert_eq!(child.announcement().role, "stopping");
    assert_eq!(child.status().code(), Some(0));
}

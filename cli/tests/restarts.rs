//! `offshoot up` starts a process again that has exited, at its address, and gives up on one that goes on exiting.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(60);

/// A running `offshoot up`; its processes end with it.
struct Up {
    process: Child,
    /// Process id and address by role.
    roles: BTreeMap<String, (String, String)>,
    stderr: Receiver<String>,
}

fn lines(of: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(of).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn offshoot(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OFFSHOOT_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

impl Up {
    /// A target, a draft and a coordinator.
    fn start(flags: &[&str]) -> Up {
        let mut command = offshoot(&[&["up", "--no-qualifier"], flags].concat());
        let mut process = (command.stdout(Stdio::piped()).stderr(Stdio::piped()))
            .spawn()
            .unwrap();
        let stdout = lines(process.stdout.take().unwrap());
        let stderr = lines(process.stderr.take().unwrap());
        let mut roles = BTreeMap::new();
        while roles.len() < 3 {
            let line = stdout.recv_timeout(LIMIT).unwrap();
            let mut words = line.split_whitespace().map(str::to_owned);
            let (role, addr, pid) = (words.next(), words.next(), words.next());
            roles.insert(role.unwrap(), (pid.unwrap(), addr.unwrap()));
        }
        Up {
            process,
            roles,
            stderr,
        }
    }

    fn kill(&self, role: &str) {
        let pid = &self.roles[role].0;
        let killed = Command::new("sh")
            .args(["-c", "kill -s KILL \"$0\"", pid])
            .status();
        assert!(killed.unwrap().success());
    }

    /// Reads standard error up to a line with these words.
    fn says(&self, words: &[&str]) -> String {
        let mut read = Vec::new();
        loop {
            let line = self.stderr.recv_timeout(LIMIT);
            let line = line.unwrap_or_else(|_| panic!("{words:?} not in {read:#?}"));
            if words.iter().all(|word| line.contains(word)) {
                return line;
            }
            read.push(line);
        }
    }

    fn text(&self) -> String {
        let address = &self.roles["coordinator"].1;
        let asked = [
            "generate",
            "fn main() {",
            "--max-tokens",
            "16",
            "--connect",
            address,
        ];
        let output = offshoot(&asked).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn every_process_is_started_again_where_it_was() {
    let up = Up::start(&[]);
    up.says(&["ready"]);
    let text = up.text();
    for role in ["draft", "target", "coordinator"] {
        up.kill(role);
        up.says(&["warning", role, "exited", "started again in"]);
        up.says(&["the", role, "process runs again, process id"]);
        assert_eq!(up.text(), text, "after the end of the {role}");
    }
}

#[test]
fn a_process_that_cannot_start_any_more_is_given_up_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    for model in ["target", "draft"] {
        let copy = dir.path().join(model);
        std::fs::create_dir(&copy).unwrap();
        for entry in std::fs::read_dir(bundled.join(model)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    let named = |model: &str| dir.path().join(model).display().to_string();
    let mut up = Up::start(&["--target", &named("target"), "--draft", &named("draft")]);
    up.says(&["ready"]);
    std::fs::remove_dir_all(dir.path().join("draft")).unwrap();
    up.kill("draft");
    up.says(&[
        "draft",
        "5 times in a row",
        "is given up; requests go on without it",
    ]);
    up.text();
    std::fs::remove_dir_all(dir.path().join("target")).unwrap();
    up.kill("target");
    up.says(&["started again in 4 s"]);
    up.says(&["target", "5 times in a row", "is given up"]);
    assert_eq!(up.process.wait().unwrap().code(), Some(1));
}

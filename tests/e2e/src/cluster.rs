//! One process per role, on ephemeral loopback ports.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use runtime::Announcement;

use crate::model;

/// One process of a cluster; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Where it listens.
    pub addr: String,
    /// Where its admin port is, if the arguments ask for one.
    pub admin: Option<std::net::SocketAddr>,
}

/// The `offshoot` binary that was built beside this test.
pub fn binary() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let dir = test.parent().and_then(|deps| deps.parent());
    let binary = dir
        .context("the test has no build folder")?
        .join("offshoot");
    anyhow::ensure!(
        binary.exists(),
        "{} does not exist; run the tests of the whole workspace, or `cargo build --release` first",
        binary.display()
    );
    Ok(binary)
}

impl Process {
    /// Starts a role and waits until it says where it listens.
    pub fn start(arguments: &[String]) -> anyhow::Result<Process> {
        let mut child = Command::new(binary()?)
            .args(arguments)
            .args([
                "--host",
                "127.0.0.1",
                "--port",
                "0",
                "--announce",
                "--exit-with-parent",
            ])
            .args(["--log-level", "error"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {arguments:?}"))?;
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said = Announcement::from_line(&line)
            .with_context(|| format!("{arguments:?} said {line:?}"))?;
        Ok(Process {
            child,
            addr: said.addr.to_string(),
            admin: said.admin,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`, and nothing else.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the process to stop and waits for its exit status.
    pub fn terminate(&mut self) -> anyhow::Result<std::process::ExitStatus> {
        drop(self.child.stdin.take());
        Ok(self.child.wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a cluster is made of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of drafts.
    pub drafts: usize,
    /// Number of qualifiers.
    pub qualifiers: usize,
    /// Milliseconds that a step of the target takes at least.
    pub target_pace: u32,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// The drafts.
    pub drafts: Vec<Process>,
    /// The qualifiers.
    pub qualifiers: Vec<Process>,
    /// The target.
    pub target: Process,
    /// The coordinator.
    pub coordinator: Process,
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

impl Cluster {
    /// Starts all processes of a cluster.
    pub fn start(shape: Shape) -> anyhow::Result<Cluster> {
        let worker = |role: &[&str], name: &str, pace: u32| {
            let mut arguments = words(role);
            arguments.extend(["--model".to_owned(), model(name).display().to_string()]);
            arguments.extend(["--pace".to_owned(), pace.to_string()]);
            Process::start(&arguments)
        };
        let drafts = (0..shape.drafts)
            .map(|_| worker(&["draft-worker"], "draft", 0))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let qualifiers = (0..shape.qualifiers)
            .map(|_| worker(&["target-worker", "--role", "qualifier"], "qualifier", 0))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let target = worker(&["target-worker"], "target", shape.target_pace)?;
        let tokenizer = model("target").display().to_string();
        let mut arguments = words(&[
            "coordinator",
            "--tokenizer",
            &tokenizer,
            "--target",
            &target.addr,
            // There is no second target to wait for.
            "--replay-wait",
            "1",
        ]);
        for draft in &drafts {
            arguments.extend(["--draft".to_owned(), draft.addr.clone()]);
        }
        for qualifier in &qualifiers {
            arguments.extend(["--qualifier".to_owned(), qualifier.addr.clone()]);
        }
        let coordinator = Process::start(&arguments)?;
        Ok(Cluster {
            drafts,
            qualifiers,
            target,
            coordinator,
        })
    }
}

//! One process per role, on ephemeral loopback ports.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::Context;
use runtime::Announcement;

use crate::model;

/// One process of a cluster; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Disconnects when its standard output closes, which is when it exits.
    exited: mpsc::Receiver<()>,
    /// Where it listens.
    pub addr: String,
    /// Where its admin port is, if the arguments ask for one.
    pub admin: Option<SocketAddr>,
}

/// The signals that tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: drain and exit.
    Terminate,
    /// SIGSTOP: freeze.
    Stop,
    /// SIGCONT: continue.
    Continue,
}

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Signal::Terminate => "TERM",
            Signal::Stop => "STOP",
            Signal::Continue => "CONT",
        }
    }
}

/// The `offshoot` binary that was built beside this program, or beside the folder of this test.
pub fn binary() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let mut folders = program.ancestors().skip(1).take(2);
    let found = folders.find_map(|folder| {
        let binary = folder.join("offshoot");
        binary.exists().then_some(binary)
    });
    found.with_context(|| {
        format!(
            "there is no offshoot binary beside {}; run the tests of the whole workspace, or \
             `cargo build --release --workspace` first",
            program.display()
        )
    })
}

/// The log filter of the processes; `OFFSHOOT_E2E_LOG=warn` shows what a coordinator makes of a fault.
fn log_level() -> String {
    std::env::var("OFFSHOOT_E2E_LOG").unwrap_or_else(|_| "error".to_owned())
}

impl Process {
    /// Starts a role on a free port and waits for the announcement of its address.
    pub fn start(arguments: &[String]) -> anyhow::Result<Process> {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Process::start_at(arguments, free)
    }

    /// Starts a role at an address of this machine and waits for its announcement.
    pub fn start_at(arguments: &[String], addr: SocketAddr) -> anyhow::Result<Process> {
        let mut command = Command::new(binary()?);
        command
            .args(arguments)
            .args(["--host", &addr.ip().to_string()])
            .args(["--port", &addr.port().to_string()])
            .args(["--announce", "--exit-with-parent"])
            .args(["--log-level", &log_level()])
            .stderr(Stdio::piped());
        Process::spawn(command, arguments)
    }

    /// Starts a role on a free port with its log, warnings and errors, in a file. It can open `descriptors` files and
    /// connections, if that is given.
    pub fn start_logged(
        arguments: &[String],
        log: &Path,
        descriptors: Option<u32>,
    ) -> anyhow::Result<Process> {
        let limit = descriptors.map_or(String::new(), |limit| format!("ulimit -n {limit}; "));
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("{limit}exec \"$0\" \"$@\"")])
            .arg(binary()?)
            .args(arguments)
            .args(["--announce", "--exit-with-parent", "--log-level", "warn"])
            .stderr(File::create(log)?);
        Process::spawn(command, arguments)
    }

    fn spawn(mut command: Command, arguments: &[String]) -> anyhow::Result<Process> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {arguments:?}"))?;
        if let Some(stderr) = child.stderr.take() {
            std::thread::spawn(move || pass_on(BufReader::new(stderr)));
        }
        let stdout = child.stdout.take().context("stdout is piped")?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let announced = Announcement::from_line(&line)
            .with_context(|| format!("{arguments:?} printed {line:?}"))?;
        let (running, exited) = mpsc::channel();
        std::thread::spawn(move || {
            // Whether it ends with an error makes no difference: it ends.
            let _ = std::io::copy(&mut stdout, &mut std::io::sink());
            drop(running);
        });
        Ok(Process {
            child,
            exited,
            addr: announced.addr.to_string(),
            admin: announced.admin,
        })
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has exited by itself.
    pub fn has_exited(&self) -> bool {
        self.exited.try_recv() == Err(mpsc::TryRecvError::Disconnected)
    }

    /// `kill -9`, and nothing else.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        // The shell's own `kill` is on every system, and sending signals from here would take unsafe code.
        let status = Command::new("sh")
            .args(["-c", "kill -s \"$0\" \"$1\"", signal.name()])
            .arg(self.child.id().to_string())
            .status()?;
        anyhow::ensure!(status.success(), "SIG{} was not sent", signal.name());
        Ok(())
    }

    /// Waits until it exits by itself; `None` if it does not within `limit`.
    pub fn exits_within(&mut self, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
        match self.exited.recv_timeout(limit) {
            Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => Ok(Some(self.child.wait()?)),
        }
    }

    /// Asks the process to stop and waits for its exit status.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        drop(self.child.stdin.take());
        Ok(self.child.wait()?)
    }
}

/// Panics of which processes started here have told, those with a log of their own left out. One in a task ends the task
/// and not the process.
pub fn panics() -> usize {
    PANICS.load(Ordering::Relaxed)
}

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Passes the standard error of a process on, and counts its panics.
fn pass_on(stderr: impl BufRead) {
    for line in stderr.lines().map_while(Result::ok) {
        if line.contains("panicked at") {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        // Nobody is left to tell when this fails.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have exited already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The size of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Number of drafts.
    pub drafts: usize,
    /// Number of qualifiers.
    pub qualifiers: usize,
    /// Minimum milliseconds of a target step.
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

fn coordinator(
    drafts: &[Process],
    qualifiers: &[Process],
    target: &Process,
) -> anyhow::Result<Process> {
    let tokenizer = model("target").display().to_string();
    let mut arguments = words(&[
        "coordinator",
        "--tokenizer",
        &tokenizer,
        "--target",
        &target.addr,
        // There is no second target to wait for; the one may stand still for some seconds where machines are shared.
        "--failover-wait",
        "5",
    ]);
    for draft in drafts {
        arguments.extend(["--draft".to_owned(), draft.addr.clone()]);
    }
    for qualifier in qualifiers {
        arguments.extend(["--qualifier".to_owned(), qualifier.addr.clone()]);
    }
    Process::start(&arguments)
}

impl Cluster {
    /// Starts all processes of a cluster.
    pub fn start(shape: Shape) -> anyhow::Result<Cluster> {
        Cluster::start_with(shape, &[])
    }

    /// Starts all processes of a cluster, its workers with further flags.
    pub fn start_with(shape: Shape, flags: &[&str]) -> anyhow::Result<Cluster> {
        let worker = |role: &[&str], name: &str, pace: u32| {
            let mut arguments = words(role);
            arguments.extend(["--model".to_owned(), model(name).display().to_string()]);
            if pace > 0 {
                arguments.extend(["--pace".to_owned(), pace.to_string()]);
            }
            arguments.extend(words(flags));
            Process::start(&arguments)
        };
        let drafts = (0..shape.drafts)
            .map(|_| worker(&["draft-worker"], "draft", 0))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let qualifiers = (0..shape.qualifiers)
            .map(|_| worker(&["target-worker", "--role", "qualifier"], "qualifier", 0))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let target = worker(&["target-worker"], "target", shape.target_pace)?;
        let coordinator = coordinator(&drafts, &qualifiers, &target)?;
        Ok(Cluster {
            drafts,
            qualifiers,
            target,
            coordinator,
        })
    }

    /// Starts another coordinator for the same workers.
    pub fn another_coordinator(&self) -> anyhow::Result<Process> {
        coordinator(&self.drafts, &self.qualifiers, &self.target)
    }
}

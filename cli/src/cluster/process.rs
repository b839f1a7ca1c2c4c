//! One child process: start it, wait for its announcement, forward its logs, stop it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use runtime::Announcement;
use runtime::announce::MAX_LINE;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::console::Progress;

/// Lines of a failed child's standard error that are part of the error message.
const TAIL: usize = 20;
/// What a worker's line has in front of how far its model is.
const LOADING: &str = " INFO loading: ";
/// How long the last lines of a child may take to arrive after it exited.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How to start a child.
#[derive(Clone, Debug)]
pub(crate) struct ChildSpec {
    /// Its name in messages, for example `draft 2`.
    pub(crate) name: String,
    /// The role that it must announce.
    pub(crate) role: &'static str,
    /// The subcommand and its flags.
    pub(crate) arguments: Vec<OsString>,
    /// How long it may take to announce its address.
    pub(crate) limit: Duration,
    /// Whether what it logs while it is being stopped is shown.
    pub(crate) shutdown_logs: ShutdownLogs,
}

impl ChildSpec {
    /// The same, at the addresses that it has found.
    pub(super) fn at(mut self, addr: SocketAddr, admin: Option<SocketAddr>) -> ChildSpec {
        self.set("--port", addr.port().to_string());
        if let Some(admin) = admin {
            self.set("--admin", admin.to_string());
        }
        self
    }

    fn set(&mut self, flag: &str, value: String) {
        let at = self.arguments.iter().position(|word| word == flag);
        if let Some(old) = at.and_then(|at| self.arguments.get_mut(at + 1)) {
            *old = value.into();
        }
    }
}

/// What happens to the log lines of a child that was asked to stop. All children stop at the same time, so each logs
/// that it lost the others; that is only of interest to a user who asked for details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShutdownLogs {
    /// Shown like any other line.
    Shown,
    /// Dropped.
    Hidden,
}

/// A running role of the cluster. Dropping it kills it.
pub(crate) struct Process {
    name: String,
    role: &'static str,
    addr: SocketAddr,
    admin: Option<SocketAddr>,
    child: Child,
    /// The child exits when this pipe closes, even if this process is killed.
    stdin: Option<ChildStdin>,
    /// Forwards the child's log lines; ends with the child.
    log: JoinHandle<Vec<String>>,
    shutdown_logs: ShutdownLogs,
    /// Set when what the child logs is no longer shown.
    muted: Arc<AtomicBool>,
    /// Kept open, because otherwise the child's next write to it would fail.
    _stdout: BufReader<tokio::io::Take<ChildStdout>>,
}

impl Process {
    /// Starts this same executable as another role and waits for the announcement of its address.
    ///
    /// # Errors
    /// When it cannot be started, exits, or does not announce itself correctly and in time. The message contains the
    /// end of its log.
    pub(crate) async fn start(spec: ChildSpec, progress: &Progress) -> Result<Process> {
        let ChildSpec {
            name,
            role,
            arguments,
            limit,
            shutdown_logs,
        } = spec;
        let executable =
            std::env::current_exe().context("cannot find the path of this executable")?;
        let mut command = Command::new(executable);
        command
            .args(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // The environment configures this process; the child gets everything it needs as flags.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("OFFSHOOT_") {
                command.env_remove(variable);
            }
        }
        // In its own process group it does not get the terminal's Ctrl-C; this process stops the children in order.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start the {name} process"))?;
        let stdin = child.stdin.take();
        let stdout = child
            .stdout
            .take()
            .context("the child's standard output was piped")?;
        let stderr = child
            .stderr
            .take()
            .context("the child's standard error was piped")?;
        let mut stdout = BufReader::new(stdout.take(MAX_LINE as u64 + 1));
        let (started, is_started) = oneshot::channel();
        let muted = Arc::new(AtomicBool::new(false));
        let forwarder = LogForwarder {
            name: name.clone(),
            progress: progress.clone(),
            muted: Arc::clone(&muted),
        };
        let log = tokio::spawn(forwarder.run(BufReader::new(stderr).lines(), is_started));
        let mut line = String::new();
        let failure = match timeout(limit, stdout.read_line(&mut line)).await {
            Ok(Ok(0)) => None,
            Ok(Ok(_)) => match Announcement::from_line(line.trim_end()) {
                Ok(announced) if announced.role == role => {
                    let _ = started.send(());
                    return Ok(Process {
                        name,
                        role,
                        addr: announced.addr,
                        admin: announced.admin,
                        child,
                        stdin,
                        log,
                        shutdown_logs,
                        muted,
                        _stdout: stdout,
                    });
                }
                Ok(announced) => Some(format!("announced the role {}", announced.role)),
                Err(error) => Some(format!("announced something else: {error}")),
            },
            Ok(Err(error)) => Some(format!("cannot be read: {error}")),
            Err(_) => Some(format!(
                "was not ready after {} s; large models may need a longer --start-timeout",
                limit.as_secs()
            )),
        };
        let how = match failure {
            Some(how) => {
                child
                    .kill()
                    .await
                    .with_context(|| format!("cannot stop the {name} process"))?;
                how
            }
            // Its standard output closed, so it is about to exit; if it does not, dropping it kills it.
            None => match timeout(LAST_LINES, child.wait()).await {
                Ok(status) => format!("exited before it was ready ({})", describe(status)),
                Err(_) => "closed its standard output before it was ready".to_owned(),
            },
        };
        drop(started);
        let tail = timeout(LAST_LINES, log)
            .await
            .ok()
            .and_then(Result::ok)
            .unwrap_or_default();
        if tail.is_empty() {
            bail!("the {name} process {how}");
        }
        bail!(
            "the {name} process {how}; its log ends with:\n  {}",
            tail.join("\n  ")
        );
    }

    /// Its name in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its role.
    pub(crate) fn role(&self) -> &'static str {
        self.role
    }

    /// The address of its gRPC port.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address of its admin port, if it has one.
    pub(crate) fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Its process id while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it exited, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().transpose().map(describe)
    }

    /// Waits until it exits by itself, and returns how.
    pub(crate) async fn end(&mut self) -> String {
        describe(self.child.wait().await)
    }

    /// Announces that it is about to be stopped, so that what it logs about that can be hidden.
    pub(crate) fn mute(&self) {
        match self.shutdown_logs {
            ShutdownLogs::Shown => {}
            ShutdownLogs::Hidden => self.muted.store(true, Ordering::Relaxed),
        }
    }

    /// Lets it drain for `grace`, then kills it.
    pub(crate) async fn stop(mut self, grace: Duration) {
        drop(self.stdin.take());
        if timeout(grace, self.child.wait()).await.is_err() {
            // This fails only if the child has exited in the meantime.
            let _ = self.child.kill().await;
        }
        // If the end of its log does not arrive in time, it is not shown.
        let _ = timeout(LAST_LINES, self.log).await;
    }
}

/// Forwards what a child logs.
struct LogForwarder {
    name: String,
    progress: Progress,
    muted: Arc<AtomicBool>,
}

impl LogForwarder {
    /// Runs until the child closes its standard error. Lines are buffered until the child is ready. If it never is, the
    /// last [`TAIL`] of them are returned for the error message, and are not shown otherwise.
    async fn run(
        self,
        mut lines: Lines<BufReader<ChildStderr>>,
        started: oneshot::Receiver<()>,
    ) -> Vec<String> {
        let mut held = VecDeque::new();
        let mut may_start = true;
        tokio::pin!(started);
        loop {
            tokio::select! {
                // Lines first, so that everything that was written before the exit is part of the tail.
                biased;
                line = next(&mut lines) => match line {
                    Some(line) if self.tell(&line) => {}
                    Some(line) => {
                        held.push_back(line);
                        if held.len() > TAIL {
                            held.pop_front();
                        }
                    }
                    None => return held.into(),
                },
                result = &mut started, if may_start => match result {
                    Ok(()) => break,
                    Err(_) => may_start = false,
                },
            }
        }
        for line in held {
            self.forward(&line);
        }
        while let Some(line) = next(&mut lines).await {
            self.forward(&line);
        }
        Vec::new()
    }

    /// Shows how far the child's model is, if that is what a line says.
    fn tell(&self, line: &str) -> bool {
        let told = line.split_once(LOADING);
        if let Some((_, how_far)) = told {
            self.progress
                .tell(&format!("{}: loading {how_far}", self.name));
        }
        told.is_some()
    }

    fn forward(&self, line: &str) {
        if !self.muted.load(Ordering::Relaxed) {
            self.progress.say(&format!("[{}] {line}", self.name));
        }
    }
}

/// The next line that is valid UTF-8; `None` at the end. Reading goes on to the end, because a full pipe would block
/// the child.
async fn next(lines: &mut Lines<BufReader<ChildStderr>>) -> Option<String> {
    loop {
        match lines.next_line().await {
            Ok(line) => return line,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(_) => return None,
        }
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => format!("exit status unknown: {error}"),
    }
}

//! One child process: started, announced, watched, stopped.

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

/// Lines of a failed child's standard error that go into the message about it.
const TAIL: usize = 20;
/// How long a dead child's last lines may take to arrive.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How to start a child.
pub(crate) struct Launch {
    /// What messages call it, for example `draft 2`.
    pub(crate) name: String,
    /// The role it has to announce.
    pub(crate) role: &'static str,
    /// The subcommand and its flags.
    pub(crate) arguments: Vec<OsString>,
    /// How long it may take to announce itself.
    pub(crate) limit: Duration,
    /// Whether it is heard while it is being stopped.
    pub(crate) last_words: LastWords,
}

/// What happens to the log lines of a child that was told to stop. All of them end at the same time, so each sees
/// the others go; nobody needs to read about it who has not asked for details.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastWords {
    /// Passed on like any other.
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
    /// The child ends when this pipe closes, even if this process is killed.
    stdin: Option<ChildStdin>,
    /// Passes the child's log lines on; ends with the child.
    log: JoinHandle<Vec<String>>,
    last_words: LastWords,
    /// Set when what the child logs is of no interest any more.
    hushed: Arc<AtomicBool>,
    /// Kept open, or the child's next write to it would fail.
    _stdout: BufReader<tokio::io::Take<ChildStdout>>,
}

impl Process {
    /// Starts this same executable as another role and waits until it says where it serves.
    ///
    /// # Errors
    /// When it cannot be started, ends, says something else or says nothing in time; the message holds the end of
    /// what it logged.
    pub(crate) async fn start(launch: Launch, progress: &Progress) -> Result<Process> {
        let Launch {
            name,
            role,
            arguments,
            limit,
            last_words,
        } = launch;
        let executable = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(executable);
        command
            .args(&arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Settings of this process are not meant for that one: it gets everything it needs as flags.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("OFFSHOOT_") {
                command.env_remove(variable);
            }
        }
        // A group of its own keeps the terminal's Ctrl-C for this process, which stops the roles in order.
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
        let hushed = Arc::new(AtomicBool::new(false));
        let relay = LogRelay {
            name: name.clone(),
            progress: progress.clone(),
            hushed: Arc::clone(&hushed),
        };
        let log = tokio::spawn(relay.run(BufReader::new(stderr).lines(), is_started));
        let mut line = String::new();
        let failure = match timeout(limit, stdout.read_line(&mut line)).await {
            Ok(Ok(0)) => None,
            Ok(Ok(_)) => match Announcement::from_line(line.trim_end()) {
                Ok(said) if said.role == role => {
                    let _ = started.send(());
                    return Ok(Process {
                        name,
                        role,
                        addr: said.addr,
                        admin: said.admin,
                        child,
                        stdin,
                        log,
                        last_words,
                        hushed,
                        _stdout: stdout,
                    });
                }
                Ok(said) => Some(format!("announced itself as {}", said.role)),
                Err(error) => Some(format!("wrote {error}")),
            },
            Ok(Err(error)) => Some(format!("cannot be read: {error}")),
            Err(_) => Some(format!(
                "was not ready after {} s; a large model may need a longer --start-timeout",
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
            // Its standard output closed, so it is ending; if it lingers, dropping it ends it.
            None => match timeout(LAST_LINES, child.wait()).await {
                Ok(status) => format!("ended before it was ready ({})", describe(status)),
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
            "the {name} process {how}; it said:\n  {}",
            tail.join("\n  ")
        );
    }

    /// What messages call it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The role it announced.
    pub(crate) fn role(&self) -> &'static str {
        self.role
    }

    /// Where it serves.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where its admin port is, if it was asked for one.
    pub(crate) fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Its process id, while it runs.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().transpose().map(describe)
    }

    /// Waits until it ends by itself, and says how.
    pub(crate) async fn end(&mut self) -> String {
        describe(self.child.wait().await)
    }

    /// From now on its end is expected.
    pub(crate) fn hush(&self) {
        match self.last_words {
            LastWords::Shown => {}
            LastWords::Hidden => self.hushed.store(true, Ordering::Relaxed),
        }
    }

    /// Lets it drain for `grace`, then ends it.
    pub(crate) async fn stop(mut self, grace: Duration) {
        drop(self.stdin.take());
        if timeout(grace, self.child.wait()).await.is_err() {
            // It fails only if the child has ended in the meantime.
            let _ = self.child.kill().await;
        }
        // Its last words are not worth waiting for any longer.
        let _ = timeout(LAST_LINES, self.log).await;
    }
}

/// Passes on what a child logs.
struct LogRelay {
    name: String,
    progress: Progress,
    hushed: Arc<AtomicBool>,
}

impl LogRelay {
    /// Runs until the child closes its standard error. Until the child is ready, its lines are held back: if it
    /// never is, they are the return value, at most [`TAIL`] of them, and belong into the error message, once.
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
                // Lines first: what was written before the end belongs to the tail.
                biased;
                line = next(&mut lines) => match line {
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
            self.pass(&line);
        }
        while let Some(line) = next(&mut lines).await {
            self.pass(&line);
        }
        Vec::new()
    }

    fn pass(&self, line: &str) {
        if !self.hushed.load(Ordering::Relaxed) {
            self.progress.say(&format!("[{}] {line}", self.name));
        }
    }
}

/// The next line that is text; `None` at the end. To stop reading earlier would stop the child at its next line.
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
        Err(error) => format!("its status is unknown: {error}"),
    }
}

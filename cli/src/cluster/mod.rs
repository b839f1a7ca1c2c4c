//! A local cluster: one operating-system process per role, all of them this same executable.
//!
//! Workers start in parallel, because loading models takes most of the time. Then the coordinator starts with their
//! addresses, and the cluster is ready once the coordinator reports every worker as ready. Each child ends when its
//! standard input closes, so none survives this process, however it ends.

mod args;
mod choice;
mod keeping;
mod per_role;
mod process;
mod profile;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::{join_all, try_join_all};
use futures::stream::{FuturesUnordered, StreamExt};
use proto::v1;
use runtime::{Caller, Purpose};
use speculation::duty::Role;
use tokio::time::Instant;

pub(crate) use args::{ClusterArgs, ClusterPlan};
pub(crate) use per_role::{PerRole, step_ms};
pub(crate) use process::Process;
pub(crate) use profile::{Drawn, Use};

use crate::client::Client;
use crate::console::Progress;
use keeping::Kept;
use process::{ChildSpec, ShutdownLogs};

/// Seconds that a process may drain; no request runs any more when a cluster is stopped.
const DRAIN_S: u64 = 2;
/// A process that was asked to stop is killed after this time.
const STOP_GRACE: Duration = Duration::from_secs(DRAIN_S + 1);
/// Additional time where the last spans have to reach a collector.
const FLUSH_GRACE: Duration = Duration::from_secs(4);
/// Time between two `Cluster` calls while the cluster is not ready yet.
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// A running local cluster. Dropping it kills its processes; [`Cluster::stop`] lets them drain.
pub(crate) struct Cluster {
    coordinator: Kept,
    workers: Vec<Kept>,
    stop_grace: Duration,
}

impl Cluster {
    /// Starts the processes and waits until all of them are ready.
    ///
    /// # Errors
    /// When one of them fails or is not ready in time; those already started are killed.
    pub(crate) async fn start(plan: &ClusterPlan, progress: &Progress) -> Result<Cluster> {
        let begun = Instant::now();
        if let Some(note) = &plan.left_out {
            progress.say(note);
        }
        let caller = Caller::new(plan.tls.load(Purpose::ServeAndCall)?);
        let started = workers(plan)
            .into_iter()
            .map(|child| Kept::start(child, progress));
        let workers = try_join_all(started).await?;
        let processes: Vec<_> = workers.iter().map(|worker| &worker.process).collect();
        let coordinator = Kept::start(coordinator(plan, &processes), progress).await?;
        let mut cluster = Cluster {
            coordinator,
            workers,
            stop_grace: match plan.trace.otlp_traces_endpoint {
                Some(_) => STOP_GRACE + FLUSH_GRACE,
                None => STOP_GRACE,
            },
        };
        cluster
            .wait_until_ready(&caller, begun + plan.start_timeout)
            .await?;
        Ok(cluster)
    }

    /// The address for clients on this machine.
    pub(crate) fn address(&self) -> String {
        reachable(self.coordinator.process.addr()).to_string()
    }

    /// All processes: target, qualifier, drafts, coordinator.
    pub(crate) fn processes(&self) -> impl Iterator<Item = &Process> {
        let all = self.workers.iter().chain([&self.coordinator]);
        all.map(|kept| &kept.process)
    }

    async fn wait_until_ready(&mut self, caller: &Caller, deadline: Instant) -> Result<()> {
        let mut client = Client::connect(&self.address(), caller)
            .await
            .context("cannot connect to the coordinator")?;
        loop {
            for Kept { process, .. } in self.workers.iter_mut().chain([&mut self.coordinator]) {
                if let Some(how) = process.ended() {
                    bail!(
                        "the {} process exited while the cluster was starting ({how})",
                        process.name()
                    );
                }
            }
            let reply = client.cluster().await?;
            if let Some(refused) = reply
                .workers
                .iter()
                .find(|worker| worker.state.starts_with("refused"))
            {
                bail!(
                    "the coordinator cannot use the {} at {}: {}",
                    refused.role,
                    refused.address,
                    refused.state
                );
            }
            let waiting: Vec<_> = reply
                .workers
                .iter()
                .filter(|worker| worker.state != "ready")
                .collect();
            if waiting.is_empty() && reply.workers.len() == self.workers.len() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!("the cluster was not ready in time: {}", states(&waiting));
            }
            tokio::time::sleep(READY_INTERVAL).await;
        }
    }

    /// Starts every process again that exits by itself, at its address, and tells `say`. Returns why when it gives up on one
    /// without which no request is served.
    pub(crate) async fn keep(&mut self, say: &impl Fn(&str)) -> String {
        let all = self.workers.iter_mut().chain([&mut self.coordinator]);
        let mut given_up: FuturesUnordered<_> = all
            .map(|kept| async move { (kept.process.role(), kept.keep(say).await) })
            .collect();
        while let Some((role, why)) = given_up.next().await {
            if role == "coordinator" || role == Role::Target.name() {
                return why;
            }
            say(&format!("{why}; requests go on without it"));
        }
        // The coordinator is kept until it is given up.
        std::future::pending().await
    }

    /// Lets the processes drain, the coordinator first because workers serve it, and kills those that do not exit.
    pub(crate) async fn stop(self) {
        self.processes().for_each(Process::mute);
        let grace = self.stop_grace;
        self.coordinator.process.stop(grace).await;
        join_all((self.workers.into_iter()).map(|worker| worker.process.stop(grace))).await;
    }
}

/// The address at which a process that listens on `addr` can be called from this machine. The unspecified address can be
/// listened on, but neither called nor found in a certificate.
fn reachable(mut addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    addr
}

fn states(workers: &[&v1::WorkerInfo]) -> String {
    if workers.is_empty() {
        return "the coordinator does not list every worker".to_owned();
    }
    let states: Vec<_> = workers
        .iter()
        .map(|worker| format!("{} at {} is {}", worker.role, worker.address, worker.state))
        .collect();
    states.join(", ")
}

/// The workers' command lines: target, qualifier, drafts.
fn workers(plan: &ClusterPlan) -> Vec<ChildSpec> {
    let mut children = vec![worker(plan, Role::Target, &plan.target, 0)];
    if let Some(model) = &plan.qualifier {
        children.push(worker(plan, Role::Qualifier, model, 0));
    }
    if let Some(model) = &plan.draft {
        children.extend(
            (0..usize::from(plan.drafts)).map(|number| worker(plan, Role::Draft, model, number)),
        );
    }
    children
}

/// By how much the priority of drafts and qualifiers is lower that compute on the processors of the target.
const BESIDE_TARGET: &str = "10";

/// The command line of a worker, the one with this number among those of its role.
fn worker(plan: &ClusterPlan, role: Role, model: &Path, number: usize) -> ChildSpec {
    let name = match role {
        Role::Draft if plan.drafts > 1 => format!("draft {}", number + 1),
        Role::Target | Role::Qualifier | Role::Draft => role.name().to_owned(),
    };
    let mut line = CommandLine::default();
    match role {
        Role::Target | Role::Qualifier => line.word("target-worker").flag("--role", role.name()),
        Role::Draft => line.word("draft-worker"),
    };
    line.flag("--model", model)
        .every_process(plan)
        .flag("--host", "127.0.0.1")
        .flag("--port", "0");
    if let Some(device) = plan.devices.get(role) {
        line.flag("--device", device.to_string());
    }
    if let Some(mib) = plan.kv_mib.get(role) {
        line.flag("--kv-mib", mib.to_string());
    }
    if let Some(share) = plan.gpu_memory_utilization.get(role) {
        line.flag("--gpu-memory-utilization", share.to_string());
    }
    if let Some(threads) = plan.threads.get(role) {
        line.flag("--threads", threads.to_string());
    }
    if role != Role::Target && !plan.stands_in(role) {
        line.flag("--nice", BESIDE_TARGET);
    }
    if let Some(pace) = plan.pace.get(role) {
        line.flag("--pace", pace.to_string());
    }
    if let Some(times) = plan.step_ms.get(role) {
        line.flag("--step-ms", times.to_string());
    }
    if let Some(drawn) = &plan.drawn {
        line.flag(drawn.flag(), &drawn.file);
    }
    if let Some(first) = plan.pin.get(role) {
        line.flag("--pin", (first + number).to_string());
    }
    if role == Role::Target {
        for (flag, dir) in &plan.beside {
            if let Some(dir) = dir {
                line.flag(flag, dir);
            }
        }
    }
    if let Some(dtype) = &plan.dtype {
        line.flag("--dtype", dtype);
    }
    if let (Role::Target, Some(tokens)) = (role, plan.history_tokens) {
        line.flag("--history-tokens", tokens.to_string());
    }
    if let Some(sessions) = plan.sessions {
        line.flag("--max-num-seqs", sessions.to_string());
    }
    if plan.admin.is_some() {
        line.flag("--admin", "127.0.0.1:0");
    }
    ChildSpec {
        name,
        role: role.name(),
        arguments: line.words,
        limit: plan.start_timeout,
        shutdown_logs: shutdown_logs(plan),
    }
}

fn coordinator(plan: &ClusterPlan, workers: &[&Process]) -> ChildSpec {
    let mut line = CommandLine::default();
    line.word("coordinator")
        .flag("--tokenizer", &plan.target)
        .every_process(plan);
    for worker in workers {
        line.flag(&format!("--{}", worker.role()), worker.addr().to_string());
    }
    if plan.coordinator_flags.is_empty() {
        line.flag("--host", "127.0.0.1").flag("--port", "0");
    }
    for flag in &plan.coordinator_flags {
        line.word(flag);
    }
    if let Some(sessions) = plan.sessions {
        line.flag("--max-sessions", sessions.to_string());
    }
    if let Some(admin) = &plan.admin {
        line.flag("--admin", admin);
    }
    ChildSpec {
        name: "coordinator".to_owned(),
        role: "coordinator",
        arguments: line.words,
        limit: plan.start_timeout,
        shutdown_logs: shutdown_logs(plan),
    }
}

/// Everything is shown to a user who asked for more logs than the default.
fn shutdown_logs(plan: &ClusterPlan) -> ShutdownLogs {
    if plan.log_level == args::QUIET {
        ShutdownLogs::Hidden
    } else {
        ShutdownLogs::Shown
    }
}

/// A command line under construction.
#[derive(Default)]
struct CommandLine {
    words: Vec<OsString>,
}

impl CommandLine {
    fn word(&mut self, word: impl Into<OsString>) -> &mut CommandLine {
        self.words.push(word.into());
        self
    }

    fn flag(&mut self, name: &str, value: impl Into<OsString>) -> &mut CommandLine {
        self.word(name).word(value)
    }

    /// The flags of every process of a local cluster.
    fn every_process(&mut self, plan: &ClusterPlan) -> &mut CommandLine {
        self.word("--announce")
            .word("--exit-with-parent")
            .flag("--log-level", &plan.log_level)
            .flag("--drain-grace-s", DRAIN_S.to_string());
        self.words.extend(plan.tls.to_flags());
        for word in plan.trace.to_flags() {
            self.word(word);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::Parser;

    #[derive(Parser)]
    struct Probe {
        #[command(flatten)]
        cluster: ClusterArgs,
    }

    fn plan(flags: &[&str]) -> ClusterPlan {
        Probe::try_parse_from(["probe"].iter().chain(flags))
            .unwrap()
            .cluster
            .plan()
            .unwrap()
    }

    #[test]
    fn every_role_understands_its_command_line() {
        let mut plan = plan(&[
            "--drafts",
            "3",
            "--pace",
            "target=20,qualifier=7,draft=0.5",
            "--devices",
            "draft=cuda:0,target=cuda:1",
            "--kv-mib",
            "target=512,draft=64",
            "--gpu-memory-utilization",
            "0.4",
            "--threads",
            "2",
            "--pin",
            "target=0,draft=1",
            "--dtype",
            "f32",
            "--heads",
            "none",
            "--otlp-traces-endpoint",
            "127.0.0.1:4317",
        ]);
        plan.sessions = Some(9);
        plan.admin = Some("127.0.0.1:9090".to_owned());
        let children = workers(&plan);
        let names: Vec<_> = children.iter().map(|child| child.name.as_str()).collect();
        assert_eq!(
            names,
            ["target", "qualifier", "draft 1", "draft 2", "draft 3"]
        );
        for child in children.iter().chain([&coordinator(&plan, &[])]) {
            // Clap would refuse a flag that the role does not have. The coordinator lacks its workers here.
            let words = [OsString::from("offshoot")]
                .into_iter()
                .chain(child.arguments.iter().cloned());
            let addresses = if child.role == "coordinator" {
                &["--target", "127.0.0.1:1"][..]
            } else {
                &[]
            };
            let line: Vec<_> = words.chain(addresses.iter().map(OsString::from)).collect();
            if let Err(error) = Cli::try_parse_from(&line) {
                panic!("{line:?}: {error}");
            }
        }
    }

    #[test]
    fn workers_get_the_profile_and_the_coordinator_does_not() {
        let plan = plan(&[
            "--synthetic",
            "nano",
            "--step-ms",
            "target=1:20,64:40,draft=2",
        ]);
        for child in workers(&plan) {
            let words = [OsString::from("offshoot")]
                .into_iter()
                .chain(child.arguments.clone());
            let line: Vec<_> = words.collect();
            assert!(line.iter().any(|word| word == "--synthetic"), "{line:?}");
            if let Err(error) = Cli::try_parse_from(&line) {
                panic!("{line:?}: {error}");
            }
            let times = line.windows(2).find(|pair| pair[0] == "--step-ms");
            let expected = match child.role {
                "target" => Some("1:20,64:40"),
                "draft" => Some("1:2"),
                _ => None,
            };
            assert_eq!(
                times.map(|pair| pair[1].as_os_str()),
                expected.map(std::ffi::OsStr::new)
            );
        }
        let words = coordinator(&plan, &[]).arguments;
        assert!(!words.iter().any(|word| word == "--synthetic"));
    }

    #[test]
    fn every_role_gets_the_tls_flags() {
        let mut plan = plan(&[]);
        plan.tls.tls_ca = Some("ca.pem".into());
        for child in workers(&plan).iter().chain([&coordinator(&plan, &[])]) {
            let words = &child.arguments;
            let pair = ["--tls-ca", "ca.pem"];
            assert!(words.windows(2).any(|found| found == pair), "{words:?}");
        }
    }

    #[test]
    fn a_cluster_on_every_address_is_called_on_loopback() {
        for (listens, called) in [
            ("0.0.0.0:7", "127.0.0.1:7"),
            ("[::]:7", "[::1]:7"),
            ("10.0.0.1:7", "10.0.0.1:7"),
        ] {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), called);
        }
    }

    #[test]
    fn flags_that_were_not_given_are_not_passed() {
        let children = workers(&plan(&["--no-qualifier"]));
        assert_eq!(children.len(), 2);
        for child in children {
            for absent in [
                "--pace",
                "--step-ms",
                "--synthetic",
                "--overlay",
                "--pin",
                "--kv-mib",
                "--gpu-memory-utilization",
                "--threads",
                "--dtype",
                "--heads",
                "--hrad",
                "--max-num-seqs",
                "--admin",
                "--otlp-traces-endpoint",
            ] {
                assert!(
                    !child.arguments.iter().any(|word| word == absent),
                    "{absent}"
                );
            }
        }
    }
}

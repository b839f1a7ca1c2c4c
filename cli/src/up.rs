//! `offshoot up`: a local cluster that runs until Ctrl-C.

use anyhow::{Result, bail};
use clap::Args;
use runtime::{AdminArgs, Drain, NetArgs, TlsArgs};
use speculation::duty::Role;
use speculation::strategy::DEFAULT;

use crate::End;
use crate::cluster::{Cluster, ClusterArgs};
use crate::console::{self, Progress};
use crate::strategy;

/// Arguments of `offshoot up`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  offshoot up --port 7000
  offshoot up --drafts 3 --pace target=20,qualifier=7,draft=2
  offshoot up --port 7000 --admin 127.0.0.1:9090
  offshoot up --drafts 8 --synthetic nano --step-ms target=1:20,64:40,qualifier=7,draft=2

Prints one line per process: role, address, process id, model. --admin sets the address of the coordinator's admin
port; each worker gets one on a free port, and the lines show the addresses. A process that exits is started again, at
its address; one that exits six times, each time within a minute, is given up. Ctrl-C stops the cluster.")]
pub(crate) struct UpArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Where the coordinator listens; workers listen on free loopback ports.
    #[command(flatten)]
    net: NetArgs,
    /// The certificate of every process of the cluster.
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    admin: AdminArgs,
    /// Strategy of requests that name none; it changes the speed, never the text.
    #[arg(long, value_name = "NAME", default_value = DEFAULT, value_parser = strategy::known)]
    strategy: String,
}

impl UpArgs {
    /// The cluster that would be started.
    pub(crate) fn models(&mut self) -> &mut ClusterArgs {
        &mut self.cluster
    }
}

/// Starts the cluster, prints its addresses, and runs it until the process is asked to stop.
///
/// # Errors
/// When the cluster does not start, or its target or coordinator exits again and again.
pub(crate) async fn run(args: UpArgs) -> Result<End> {
    let drain = Drain::new();
    drain.on_signals()?;
    let mut plan = args.cluster.plan()?;
    plan.coordinator_flags = net_flags(&args.net);
    plan.coordinator_flags
        .extend(["--strategy".to_owned(), args.strategy]);
    plan.tls = args.tls;
    plan.admin = args.admin.admin;
    let progress = Progress::spinner("starting the cluster");
    let mut cluster = tokio::select! {
        started = Cluster::start(&plan, &progress) => started?,
        () = drain.stopping() => return Ok(End::Interrupted),
    };
    progress.clear();
    for process in cluster.processes() {
        let role = (Role::ALL.into_iter()).find(|role| role.name() == process.role());
        let model = role.and_then(|role| plan.model(role)).unwrap_or_default();
        let pid = process.pid().map(|pid| pid.to_string()).unwrap_or_default();
        let line = format!(
            "{:<11} {:<21} {pid:<8} {model}",
            process.role(),
            process.addr().to_string()
        );
        let admin = process.admin().map(|addr| format!(" admin={addr}"));
        let line = line.trim_end();
        console::put(&format!("{line}{}\n", admin.unwrap_or_default()))?;
    }
    console::say(&format!(
        "ready; try: offshoot generate --connect {} \"fn main() {{\" (Ctrl-C stops the cluster)",
        cluster.address()
    ));
    let given_up = tokio::select! {
        why = cluster.keep(&console::say) => Some(why),
        () = drain.stopping() => None,
    };
    cluster.stop().await;
    match given_up {
        Some(why) => bail!("{why}"),
        // Ctrl-C is the normal end of this command.
        None => Ok(End::Done),
    }
}

fn net_flags(net: &NetArgs) -> Vec<String> {
    let mut flags = vec![
        "--host".to_owned(),
        net.host.clone(),
        "--port".to_owned(),
        net.port.to_string(),
        "--max-connections".to_owned(),
        net.max_connections.to_string(),
    ];
    if net.allow_plaintext_bind {
        flags.push("--allow-plaintext-bind".to_owned());
    }
    flags
}

//! The cluster that a client command talks to: a running one, or one of its own for as long as the command runs.

use anyhow::{Context, Result, bail};
use clap::Args;
use runtime::{Caller, Purpose, TlsArgs};

use crate::End;
use crate::cluster::{Cluster, ClusterArgs};
use crate::console::Progress;

/// Which cluster, and how to reach or start it.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServingArgs {
    /// Use a running cluster: the address of its coordinator. With several addresses, separated by commas, the next
    /// coordinator resumes the completion when one is lost
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "OFFSHOOT_CONNECT",
        value_delimiter = ',',
        conflicts_with_all = ["target", "qualifier", "draft", "pace", "step_ms", "synthetic", "overlay", "devices", "threads", "pin", "dtype"]
    )]
    pub(crate) connect: Vec<String>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// How to connect to the running cluster of --connect.
    #[command(flatten)]
    tls: TlsArgs,
}

impl ServingArgs {
    /// Starts the cluster unless a running one is named, and has `talk` talk to its coordinators. Where `interrupted` resolves
    /// before the cluster runs, that is the end.
    ///
    /// # Errors
    /// When the cluster does not start, its flags contradict each other, or `talk` fails.
    pub(crate) async fn serve(
        &self,
        interrupted: impl Future<Output = ()>,
        talk: impl AsyncFnOnce(&[String], &Caller) -> Result<End>,
    ) -> Result<End> {
        let connect: Vec<String> = runtime::items(&self.connect).map(str::to_owned).collect();
        if !connect.is_empty() {
            let caller = Caller::new(self.tls.load(Purpose::Call)?);
            for address in &connect {
                let checked = caller.authority(address);
                checked.context("--connect or OFFSHOOT_CONNECT")?;
            }
            return talk(&connect, &caller).await;
        }
        if self.tls.given() {
            bail!(
                "the --tls flags are for a running cluster; give its address with --connect, or omit them"
            );
        }
        let plan = self.cluster.clone().plan()?;
        let progress = Progress::spinner("starting the cluster");
        let cluster = tokio::select! {
            started = Cluster::start(&plan, &progress) => started?,
            () = interrupted => return Ok(End::Interrupted),
        };
        progress.clear();
        let outcome = talk(&[cluster.address()], &Caller::default()).await;
        cluster.stop().await;
        outcome
    }
}

//! A worker process from its flags to its end; the same for every kind.

use std::time::Duration;

use anyhow::Context;
use runtime::{
    ClientAuth, CommonArgs, Drain, Listener, NetArgs, Purpose, Readiness, ServerLimits, TlsArgs,
};
use speculation::message::WorkerInfo;
use tonic::transport::server::Router;

use crate::handle::WorkerHandle;
use crate::kind::Kind;
use crate::model::{self, ModelArgs};
use crate::thread;

/// Flags that every worker has.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// The model and its thread.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where to listen.
    #[command(flatten)]
    pub net: NetArgs,
    /// The identity; coordinators have to show one too.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// What every process has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// How long connections get to close after everything else has ended.
const CLOSING: Duration = Duration::from_secs(1);

/// Runs a worker until it is told to stop.
///
/// `role` is what it announces, `scratch_rows` how many tree rows one session may hold in the cache, `kind` what it
/// does with sessions, and `serve` adds its gRPC service to the server.
///
/// # Errors
/// When the model cannot be loaded, the address cannot be bound, or the model thread or the server ends by itself.
pub async fn run<K: Kind>(
    args: WorkerArgs,
    role: &'static str,
    scratch_rows: u16,
    kind: impl FnOnce(&WorkerInfo) -> K,
    serve: impl FnOnce(Router, WorkerHandle<K::Report>, &Drain) -> Router,
) -> anyhow::Result<()> {
    runtime::telemetry::init(&args.common.telemetry)?;
    let drain = Drain::new();
    drain.on_signals()?;
    runtime::parent::exit_with_parent(&args.common.parent, &drain)?;
    let readiness = Readiness::new();
    let loading = readiness.latch();
    let tls = match args.tls.load(Purpose::Serve)? {
        Some(tls) => {
            tls.follow(&drain)?;
            Some(tls.acceptor(ClientAuth::Required)?)
        }
        None => None,
    };
    let listener = Listener::bind_with(&args.net, tls).await?;
    let addr = listener.local_addr();
    let model = args.model.clone();
    let loaded = tokio::task::spawn_blocking(move || model::load(&model, scratch_rows)).await??;
    let kind = kind(&loaded.info);
    let handle = thread::start(loaded, kind)?;
    let router = runtime::serve::server(&ServerLimits::default())
        .add_service(runtime::health::service(&readiness, &drain).await);
    let router = serve(router, handle.clone(), &drain);
    let mut serving = tokio::spawn(runtime::serve::serve(listener, router, drain.clone()));
    drop(loading);
    runtime::announce::announce(&args.common.announce, role, addr)?;
    tracing::info!(%addr, role, model = handle.info.model, "worker ready");
    tokio::select! {
        () = drain.stopping() => {}
        () = handle.ended() => anyhow::bail!("the model thread has ended by itself; its last words are in the log"),
        served = &mut serving => return served?.context("the server has ended by itself"),
    }
    drain.shutdown(args.common.drain_grace()).await;
    handle.stop();
    match tokio::time::timeout(CLOSING, serving).await {
        Ok(served) => Ok(served??),
        // A peer that does not close its connection is not waited for.
        Err(_) => Ok(()),
    }
}

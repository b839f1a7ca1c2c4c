//! A worker process from its flags to its end; the same for every role.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hub::{Source, Wanted};
use runtime::{
    ClientAuth, CommonArgs, Drain, KeepAlive, Listener, Metrics, NetArgs, Purpose, Readiness,
    ServerLimits, TlsArgs, admin, reflection, trace,
};
use speculation::strategy::Registry;
use tokio::sync::oneshot;

use crate::metrics::WorkerMetrics;
use crate::model::{self, ModelArgs, Offer};
use crate::{service, thread};

/// Flags that every worker has.
#[derive(Clone, Debug, clap::Args)]
pub struct WorkerArgs {
    /// The model and its thread.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where to listen.
    #[command(flatten)]
    pub net: NetArgs,
    /// The worker's TLS identity; coordinators have to present one too.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Longest step in seconds; after that the model counts as hung, and the process exits so that other workers take
    /// over its sessions.
    #[arg(
        long,
        env = "OFFSHOOT_STEP_TIMEOUT",
        value_name = "SECONDS",
        default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    pub step_timeout: u64,
    /// What every process has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// How long connections get to close after everything else has ended.
const CLOSING: Duration = Duration::from_secs(1);

/// Runs a worker until it is told to stop.
///
/// # Errors
/// When the model cannot be loaded, the address cannot be bound, or the model thread or the server ends by itself.
pub async fn run(args: WorkerArgs, offer: Offer) -> anyhow::Result<()> {
    let role = offer.role.name();
    runtime::telemetry::init(&args.common.telemetry)?;
    if let Source::Path(model) = Source::parse(&args.model.model)? {
        anyhow::ensure!(
            model.exists(),
            "there is nothing at {}, which --model or OFFSHOOT_MODEL names",
            model.display()
        );
    }
    let drain = Drain::new();
    drain.on_signals_after(args.common.stop_delay())?;
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
    let exporting = trace::init(&args.common.trace, role, &addr.to_string())?;
    let (counters, metrics) = (WorkerMetrics::default(), Arc::new(Metrics::new()));
    metrics.register(|registry| counters.register(registry, offer.role));
    let shown = admin::ProcessState {
        role,
        metrics: Arc::clone(&metrics),
        readiness: readiness.clone(),
        drain: drain.clone(),
        port: listener.port(),
    };
    let admin = admin::start(&args.common.admin, &args.net, shown)?;
    let mut model = args.model.clone();
    model.model = tokio::select! {
        path = fetched(model.model) => path?,
        // The process need not wait for the rest of a download, which goes on at the next start.
        () = drain.stopping() => return Ok(()),
    };
    let mut loaded = tokio::task::spawn_blocking(move || model::load(&model, &offer)).await??;
    loaded.metrics = counters.clone();
    let clock = Arc::clone(&loaded.clock);
    let step_timeout = Duration::from_secs(args.step_timeout);
    let device = loaded.computer.clone();
    let handle = thread::start(loaded, Registry::default())?;
    let seen = handle.clone();
    metrics.refresh(move || {
        counters.sessions.set(seen.sessions() as i64);
        counters.inbox.set(seen.queued() as i64);
    });
    let limits = ServerLimits {
        keep_alive: KeepAlive::LINK,
        ..ServerLimits::default()
    };
    let names = [proto::v1::worker_server::SERVICE_NAME];
    let router = runtime::serve::server(&limits)
        .add_service(runtime::health::service(&readiness, &drain, &names).await)
        .add_service(service::service(handle.clone(), &drain, &readiness));
    let router = reflection::add(router, &args.net, &names, proto::FILE_DESCRIPTOR_SET)?;
    // Connections outlast the drain: a coordinator that opens a session meanwhile learns that the worker stops, and not that
    // it cannot be reached, which would say nothing about the sessions that it still has there.
    let connections = Drain::new();
    let serving = runtime::serve::serve(listener, router, connections.clone());
    let mut serving = connections.spawn(serving);
    drop(loading);
    runtime::announce::announce(&args.common.announce, role, addr, admin)?;
    let kv_positions = handle.info.kv_positions;
    tracing::info!(%addr, role, model = handle.info.model, device, kv_positions, "worker ready");
    tokio::select! {
        // In this order: without a connection the server ends as soon as the drain begins.
        biased;
        () = drain.stopping() => {}
        () = clock.outlasts(step_timeout) => hung(args.step_timeout),
        () = handle.ended() => anyhow::bail!("the model thread has ended by itself; the log says why"),
        served = &mut serving => return served?.context("the server has ended by itself"),
    }
    tokio::select! {
        _ = drain.shutdown(args.common.drain_grace()) => {}
        () = clock.outlasts(step_timeout) => hung(args.step_timeout),
    }
    handle.stop();
    connections.begin();
    let served = tokio::time::timeout(CLOSING, serving).await;
    // The spans of sessions end with the thread that served them.
    let _ = tokio::time::timeout(CLOSING, handle.ended()).await;
    exporting.flush().await;
    match served {
        Ok(served) => Ok(served??),
        // A peer that does not close its connection is not waited for.
        Err(_) => Ok(()),
    }
}

/// The path of the model. One of a hub is fetched by a thread of its own, which the end of the process does not wait for.
async fn fetched(given: PathBuf) -> anyhow::Result<PathBuf> {
    let (done, path) = oneshot::channel();
    std::thread::Builder::new()
        .name("fetch".to_owned())
        .spawn(move || {
            // Nobody waits any more where the process ends.
            let _ = done.send(hub::resolve(&given, Wanted::Model, &mut hub::Log::new()));
        })?;
    Ok(path.await??)
}

/// Ends the process. Nothing less would do: threads that wait for the hung one are never done, and the runtime would
/// wait for them.
fn hung(limit_s: impl std::fmt::Display) -> ! {
    tracing::error!("a step has lasted longer than {limit_s} s; the model hangs, exiting");
    std::process::exit(1)
}

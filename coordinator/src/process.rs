//! The coordinator as a process: bind, serve, announce, drain.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hub::Wanted;
use proto::MAX_REQUEST_BYTES;
use proto::v1::generation_server::{Generation, GenerationServer};
use runtime::{
    Caller, Drain, Drained, Listener, Metrics, Readiness, ServerLimits, admin, announce, health,
    parent, reflection, seed, serve as grpc, telemetry, trace,
};
use text::Tokenizer;

use crate::cluster::{Cluster, Policy};
use crate::config::{Args, Config};
use crate::discovery::Discovery;
use crate::registry::Registry;
use crate::service::Service;

/// The name under which a coordinator announces itself.
const ROLE: &str = "coordinator";

/// Asynchronous threads, at most. Relaying is light, and on one machine a coordinator has workers beside it.
const MOST_THREADS: usize = 8;

/// Once every request has ended, how long connections may take to close.
const CLOSING_LIMIT: Duration = Duration::from_secs(1);

/// Runs a coordinator until a signal ends it. Call it outside of any tokio runtime.
///
/// # Errors
/// When the configuration, the tokenizer or the address cannot be used.
pub fn run(args: Args) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .thread_name(ROLE)
        .build()
        .context("cannot start the async runtime")?;
    let served = runtime.block_on(serve(args));
    // What still computes for a client that has gone must not hold the process up.
    runtime.shutdown_background();
    served
}

/// Runs a coordinator inside a tokio runtime until a signal ends it.
///
/// # Errors
/// As [`run`].
pub async fn serve(args: Args) -> anyhow::Result<()> {
    telemetry::init(&args.common.telemetry)?;
    let config = Config::try_from(&args)?;
    let named = "--tokenizer or OFFSHOOT_TOKENIZER";
    let path = hub::resolve(&args.tokenizer, Wanted::Texts, &mut hub::Log::new()).context(named)?;
    let tokenizer = Tokenizer::load(&path).context(named)?;
    let drain = Drain::new();
    drain
        .on_signals_after(args.common.stop_delay())
        .context("cannot watch signals")?;
    parent::exit_with_parent(&args.common.parent, &drain)?;
    let tls = match &config.tls {
        Some(tls) => {
            tls.follow(&drain).context("cannot watch signals")?;
            Some(tls.acceptor(args.tls_client_auth)?)
        }
        None => None,
    };
    let listener = Listener::bind_with(&args.net, tls).await?;
    let addr = listener.local_addr();
    let exporting = trace::init(&args.common.trace, ROLE, &addr.to_string())?;

    let readiness = Readiness::new();
    let coordinator = Coordinator::start(&config, tokenizer, &readiness, &drain)?;
    let metrics = Arc::new(Metrics::new());
    coordinator.expose(&metrics);
    let shown = admin::ProcessState {
        role: ROLE,
        metrics,
        readiness: readiness.clone(),
        drain: drain.clone(),
        port: listener.port(),
    };
    let admin = admin::start(&args.common.admin, &args.net, shown)?;
    let names = [proto::v1::generation_server::SERVICE_NAME];
    let router = grpc::server(&ServerLimits::default())
        .add_service(health::service(&readiness, &drain, &names).await)
        .add_service(coordinator.service());
    let router = reflection::add(router, &args.net, &names, proto::FILE_DESCRIPTOR_SET)?;
    // Connections outlast the drain of the requests: a client that sends one meanwhile gets an answer (UNAVAILABLE)
    // and not a connection that closes under it.
    let connections = Drain::new();
    let mut serving = connections.spawn(grpc::serve(listener, router, connections.clone()));
    tracing::info!(%addr, workers = config.workers.len(), "serving");

    // Whoever waits for the announcement wants to use the workers, so each that is known is tried once before it.
    tokio::select! {
        () = coordinator.tried() => announce::announce(&args.common.announce, ROLE, addr, admin)?,
        () = drain.stopping() => {}
    }
    let stopping = drain.stopping();
    let outcome = tokio::select! {
        () = stopping => {
            coordinator.stop(args.common.drain_grace()).await;
            connections.shutdown(CLOSING_LIMIT).await;
            Ok(())
        }
        // It ends by itself only when the transport has failed.
        ended = &mut serving => {
            coordinator.stop(args.common.drain_grace()).await;
            ended?.context("the transport failed")
        }
    };
    exporting.flush().await;
    outcome
}

/// The coordinator without its process: for tests, and for whoever serves it beside something else.
#[derive(Clone, Debug)]
pub struct Coordinator {
    cluster: Arc<Cluster>,
    discovery: Discovery,
}

impl Coordinator {
    /// Starts connecting to the workers and looking for more; `readiness` is held back until a target was ready, and while
    /// the queue is full. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// When the system has no random numbers to name sessions by.
    pub fn start(
        config: &Config,
        tokenizer: Tokenizer,
        readiness: &Readiness,
        drain: &Drain,
    ) -> io::Result<Self> {
        let name = seed::fresh()?;
        let first = seed::fresh()?;
        let registry = Registry::start(config, name, tokenizer, readiness.clone());
        let policy = Policy {
            failover_wait: config.failover_wait,
            park_after: config.park_after,
            client_timeout: config.client_timeout,
            strategy: config.strategy.clone(),
            tenant: config.tenant.clone(),
            record: config.record,
        };
        let cluster = Cluster::new(registry, drain.clone(), policy, first);
        let caller = Caller::new(config.tls.clone());
        let (registry, metrics) = (&cluster.registry, &cluster.metrics);
        let discovery = Discovery::start(&config.discovery, &caller, registry, metrics);
        Ok(Coordinator {
            cluster: Arc::new(cluster),
            discovery,
        })
    }

    /// Adds what this coordinator counts to what its process shows.
    pub fn expose(&self, metrics: &Metrics) {
        metrics.register(|registry| self.cluster.metrics.register(registry));
        let cluster = Arc::clone(&self.cluster);
        metrics.refresh(move || {
            let registry = &cluster.registry;
            let (running, waiting) = registry.completions();
            let (targets, workers) = (registry.targets(), registry.states());
            (cluster.metrics).refresh(running, waiting, &targets, &workers);
        });
    }

    /// The `Generation` service.
    #[must_use]
    pub fn service(&self) -> GenerationServer<impl Generation + use<>> {
        GenerationServer::new(Service {
            cluster: Arc::clone(&self.cluster),
        })
        .max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    /// Completions that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        let (running, _) = self.cluster.registry.completions();
        running
    }

    /// Completions that have looked for a target in vain: new ones, and those that have lost theirs.
    #[must_use]
    pub fn seeking(&self) -> usize {
        self.cluster.registry.seeking()
    }

    /// Resolves when every source of workers has answered or failed once, at the latest after five seconds, and every
    /// worker that is known then was reached, refused or found missing once.
    pub async fn tried(&self) {
        self.discovery.answered().await;
        self.cluster.registry.tried().await;
    }

    /// Begins the drain: new requests are refused with UNAVAILABLE. Running requests have nine tenths of `grace` to finish;
    /// the others end with UNAVAILABLE. Then the links to the workers end.
    pub async fn stop(&self, grace: Duration) -> Drained {
        let drain = &self.cluster.drain;
        drain.begin();
        drain.tracker().close();
        let patience = grace - grace / 10;
        let finished = tokio::time::timeout(patience, drain.tracker().wait()).await;
        let drained = match finished {
            Ok(()) => Drained::Clean,
            Err(_) => {
                self.cluster.cut.cancel();
                drain.shutdown(grace / 10).await
            }
        };
        self.cluster.registry.stop().await;
        drained
    }
}

//! The draft worker: service `Draft`. It drives the growth of speculation trees from a small model's output.
//!
//! [`grow`] translates between the state machine ([`speculation::draft`]) and the model; [`service`] between both and
//! the wire. What to grow is decided in `speculation`, how a model is run in `worker` and `engine`; this crate knows
//! nothing of targets or clients.

pub mod grow;
pub mod service;

use runtime::{CommonArgs, Drain, Listener, NetArgs, Readiness, ServerLimits};
use worker::ModelArgs;

/// Flags of the draft worker.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The model and its thread.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Where to listen.
    #[command(flatten)]
    pub net: NetArgs,
    /// What every process has.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Tree rows one session may hold in the cache: a whole tree of `auto`, and room.
const SCRATCH_ROWS: u16 = 768;

/// Runs the worker until it is told to stop.
pub async fn run(args: Args) -> anyhow::Result<()> {
    runtime::telemetry::init(&args.common.telemetry)?;
    let drain = Drain::new();
    drain.on_signals()?;
    runtime::parent::exit_with_parent(&args.common.parent, &drain)?;
    let readiness = Readiness::new();
    let loading = readiness.latch();
    let listener = Listener::bind(&args.net).await?;
    let addr = listener.local_addr();
    let model = args.model.clone();
    let loaded =
        tokio::task::spawn_blocking(move || worker::model::load(&model, SCRATCH_ROWS)).await??;
    let kind = grow::Grow::new(loaded.info.vocabulary_len);
    let handle = worker::start(loaded, kind)?;
    let router = runtime::serve::server(&ServerLimits::default())
        .add_service(runtime::health::service(&readiness, &drain).await)
        .add_service(service::service(handle.clone(), "draft", &drain));
    let serving = drain.spawn(runtime::serve::serve(listener, router, drain.clone()));
    drop(loading);
    runtime::announce::announce(&args.common.announce, "draft", addr)?;
    tracing::info!(%addr, model = handle.info.model, "draft worker ready");
    drain.stopping().await;
    drain.shutdown(args.common.drain_grace()).await;
    handle.stop();
    Ok(serving.await??)
}

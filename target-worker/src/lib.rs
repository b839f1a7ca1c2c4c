//! The target worker: service `Verify`. It walks speculation trees with the tokens its own model picks.
//!
//! The same binary serves as target and as qualifier: the role is announced in the handshake, and whether a session's
//! picks are the text or advice is part of how a coordinator opens it, never a branch in the code here. [`walk`]
//! translates between the state machine ([`speculation::verify`]) and the model; [`service`] between both and the
//! wire. This crate knows nothing of drafts or clients.

pub mod service;
pub mod walk;

use runtime::{CommonArgs, Drain, Listener, NetArgs, Readiness, ServerLimits};
use worker::ModelArgs;

/// What the worker is used for; told to coordinators in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Decides the text.
    Target,
    /// Gives advice ahead of the target.
    Qualifier,
}

impl Role {
    /// The name in the handshake.
    pub fn name(self) -> &'static str {
        match self {
            Role::Target => "target",
            Role::Qualifier => "qualifier",
        }
    }
}

/// Flags of the target worker.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What the worker is used for.
    #[arg(long, env = "OFFSHOOT_ROLE", value_enum, default_value = "target")]
    pub role: Role,
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

/// Tree rows one session may hold in the cache: a step's rows and what a qualifier has computed ahead.
const SCRATCH_ROWS: u16 = 256;

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
    let kind = walk::Walk::new(loaded.info.vocabulary_len);
    let handle = worker::start(loaded, kind)?;
    let router = runtime::serve::server(&ServerLimits::default())
        .add_service(runtime::health::service(&readiness, &drain).await)
        .add_service(service::service(handle.clone(), args.role.name(), &drain));
    let serving = drain.spawn(runtime::serve::serve(listener, router, drain.clone()));
    drop(loading);
    runtime::announce::announce(&args.common.announce, args.role.name(), addr)?;
    tracing::info!(%addr, model = handle.info.model, role = args.role.name(), "worker ready");
    drain.stopping().await;
    drain.shutdown(args.common.drain_grace()).await;
    handle.stop();
    Ok(serving.await??)
}

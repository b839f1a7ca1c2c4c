//! The draft worker: service `Draft`. It drives the growth of speculation trees from a small model's output.
//!
//! [`grow`] translates between the state machine ([`speculation::draft`]) and the model; [`service`] between both and
//! the wire. What to grow is decided in `speculation`, how a model is run in `worker` and `engine`; this crate knows
//! nothing of targets or clients.

pub mod grow;
pub mod service;

pub use runtime::tls::install_provider as install_crypto;
use worker::WorkerArgs;

/// Flags of the draft worker.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What every worker has.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// Tree rows one session may hold in the cache: a whole tree of `auto`, and room.
const SCRATCH_ROWS: u16 = 768;

/// Runs the worker until it is told to stop.
///
/// # Errors
/// As [`worker::run`].
pub async fn run(args: Args) -> anyhow::Result<()> {
    worker::run(
        args.worker,
        "draft",
        SCRATCH_ROWS,
        |info| grow::Grow::new(info.vocabulary_len),
        |router, handle, drain| router.add_service(service::service(handle, "draft", drain)),
    )
    .await
}

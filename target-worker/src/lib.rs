//! The target worker: service `Verify`. It walks speculation trees with the tokens its own model picks.
//!
//! The same binary serves as target and as qualifier: the role is announced in the handshake, and whether a session's
//! picks are the text or advice is part of how a coordinator opens it, never a branch in the code here. [`walk`]
//! translates between the state machine ([`speculation::verify`]) and the model; [`service`] between both and the
//! wire. This crate knows nothing of drafts or clients.

pub mod service;
pub mod walk;

pub use runtime::tls::install_provider as install_crypto;
use worker::WorkerArgs;

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
    /// What every worker has.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// Tree rows one session may hold in the cache: a step's rows and what a qualifier has computed ahead.
const SCRATCH_ROWS: u16 = 256;

/// Runs the worker until it is told to stop.
///
/// # Errors
/// As [`worker::run`].
pub async fn run(args: Args) -> anyhow::Result<()> {
    let role = args.role.name();
    worker::run(
        args.worker,
        role,
        SCRATCH_ROWS,
        |info| walk::Walk::new(info.vocabulary_len),
        |router, handle, drain| router.add_service(service::service(handle, role, drain)),
    )
    .await
}

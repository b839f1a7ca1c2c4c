//! The draft worker: a worker of role `draft`, which proposes tokens.
//!
//! It says what it offers; the work is done in the crate `worker`. This crate knows nothing of models, sessions or the
//! wire.

use worker::{Duties, Duty, Offer, Role, WorkerArgs};

pub use worker::install_crypto;

/// Flags of the draft worker.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What every worker has.
    #[command(flatten)]
    pub worker: WorkerArgs,
}

/// Tree rows that the cache holds for one session: a whole tree of `auto`, and room.
const TREE_ROWS: u16 = 768;

/// Runs the worker until it is told to stop.
///
/// # Errors
/// As [`worker::run`].
pub async fn run(args: Args) -> anyhow::Result<()> {
    let offer = Offer {
        role: Role::Draft,
        duties: Duties::of(Duty::Propose),
        tree_rows: TREE_ROWS,
        history_tokens: 0,
    };
    worker::run(args.worker, offer).await
}

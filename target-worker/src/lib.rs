//! The target worker: a worker of role `target`, which verifies guesses and commits tokens, or of role `qualifier`, which
//! verifies them ahead of the target and whose picks are advice.
//!
//! It says what it offers; the work is done in the crate `worker`. This crate knows nothing of models, sessions or the
//! wire.

use worker::{Duties, Duty, Offer, WorkerArgs};

pub use worker::install_crypto;

/// What the worker is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Decides the text.
    Target,
    /// Gives advice ahead of the target.
    Qualifier,
}

impl Role {
    /// What a worker of this role offers to coordinators.
    #[must_use]
    pub fn offer(self) -> Offer {
        let (role, duties) = match self {
            Role::Target => (
                worker::Role::Target,
                Duties::of(Duty::Advise).and(Duty::Commit),
            ),
            Role::Qualifier => (worker::Role::Qualifier, Duties::of(Duty::Advise)),
        };
        Offer {
            role,
            duties,
            tree_rows: TREE_ROWS,
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

/// Tree rows that the cache holds for one session: a step's rows and what a qualifier has computed ahead.
const TREE_ROWS: u16 = 256;

/// Runs the worker until it is told to stop.
///
/// # Errors
/// As [`worker::run`].
pub async fn run(args: Args) -> anyhow::Result<()> {
    worker::run(args.worker, args.role.offer()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_target_offers_to_commit_and_neither_proposes() {
        let (target, qualifier) = (Role::Target.offer(), Role::Qualifier.offer());
        assert_eq!(
            (target.role.name(), qualifier.role.name()),
            ("target", "qualifier")
        );
        assert!(target.duties.has(Duty::Commit) && !qualifier.duties.has(Duty::Commit));
        for offer in [target, qualifier] {
            assert!(offer.duties.has(Duty::Advise) && !offer.duties.has(Duty::Propose));
        }
    }
}

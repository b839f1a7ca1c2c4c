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
    /// What a worker of this role offers to coordinators, with room for so many tokens of completed texts.
    #[must_use]
    pub fn offer(self, history_tokens: usize) -> Offer {
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
            history_tokens,
        }
    }
}

/// Flags of the target worker.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What the worker is used for.
    #[arg(long, env = "OFFSHOOT_ROLE", value_enum, default_value = "target")]
    pub role: Role,
    /// Tokens of completed texts that are kept for requests that name a history, at most, at about 50 bytes each; one
    /// history has at most a quarter of them. 0 keeps none.
    #[arg(long, env = "OFFSHOOT_HISTORY_TOKENS", value_name = "N", default_value_t = 1 << 18)]
    pub history_tokens: u32,
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
    let offer = args.role.offer(args.history_tokens as usize);
    worker::run(args.worker, offer).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_target_offers_to_commit_and_neither_proposes() {
        let (target, qualifier) = (Role::Target.offer(9), Role::Qualifier.offer(0));
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

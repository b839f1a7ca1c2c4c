//! What a verifier counts about its walks.

use alloc::vec::Vec;

use crate::by_source::BySource;
use crate::message::Activity;
use crate::misses::Misses;

/// Totals since a session was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkStats {
    /// Steps that ended in a walk (prefill steps do not).
    pub steps: u64,
    /// Of those, steps without a single live guess.
    pub starved_steps: u64,
    /// Time inside starved steps, microseconds.
    pub starved_us: u64,
    /// Steps without guesses because guesses were measured not to pay; they are not starved.
    pub resting_steps: u64,
    /// Tokens picked.
    pub tokens: u64,
    /// Walks whose last token was already a node.
    pub hits: u64,
    /// Walks whose last token was not.
    pub misses: u64,
    /// Tokens on the best path of each submitted tree.
    pub chain_submitted: u64,
    /// Of those, tokens that the walk accepted.
    pub chain_accepted: u64,
    /// Guesses submitted as rows.
    pub guesses_submitted: u64,
    /// Guesses accepted.
    pub guesses_accepted: u64,
    /// Of those, guesses that are not the model's own tokens, but were tolerated (rule `fuzzy`).
    pub tolerated: u64,
    /// Steps in which heads beside the target were evaluated.
    pub heads_steps: u64,
    /// What each source of guesses gave a target. Only sessions that commit count it.
    pub sources: BySource<SourceStats>,
}

/// What one source of guesses gave a target. A node that several sources gave counts for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceStats {
    /// Nodes of the target's tree that came from it.
    pub nodes: u64,
    /// Of those, nodes whose token was committed.
    pub committed: u64,
    /// Walks whose last token was such a node.
    pub hits: u64,
}

impl SourceStats {
    /// The totals of both.
    #[must_use]
    pub fn plus(self, other: SourceStats) -> SourceStats {
        SourceStats {
            nodes: self.nodes.saturating_add(other.nodes),
            committed: self.committed.saturating_add(other.committed),
            hits: self.hits.saturating_add(other.hits),
        }
    }
}

impl WalkStats {
    /// The totals of both.
    #[must_use]
    pub fn plus(self, other: WalkStats) -> WalkStats {
        let mut sources = self.sources;
        for (source, &more) in other.sources.iter() {
            sources[source] = sources[source].plus(more);
        }
        WalkStats {
            sources,
            steps: self.steps.saturating_add(other.steps),
            starved_steps: self.starved_steps.saturating_add(other.starved_steps),
            starved_us: self.starved_us.saturating_add(other.starved_us),
            resting_steps: self.resting_steps.saturating_add(other.resting_steps),
            tokens: self.tokens.saturating_add(other.tokens),
            hits: self.hits.saturating_add(other.hits),
            misses: self.misses.saturating_add(other.misses),
            chain_submitted: self.chain_submitted.saturating_add(other.chain_submitted),
            chain_accepted: self.chain_accepted.saturating_add(other.chain_accepted),
            guesses_submitted: self
                .guesses_submitted
                .saturating_add(other.guesses_submitted),
            guesses_accepted: self.guesses_accepted.saturating_add(other.guesses_accepted),
            tolerated: self.tolerated.saturating_add(other.tolerated),
            heads_steps: self.heads_steps.saturating_add(other.heads_steps),
        }
    }

    /// Acceptance length M: tokens per step; 0 before the first step.
    pub fn acceptance_length(&self) -> f64 {
        ratio(self.tokens, self.steps)
    }

    /// Path rollback RB: share of the submitted main chain that was discarded.
    pub fn path_rollback(&self) -> f64 {
        ratio(
            self.chain_submitted.saturating_sub(self.chain_accepted),
            self.chain_submitted,
        )
    }

    /// Share of walks whose last token was already guessed.
    pub fn hit_rate(&self) -> f64 {
        ratio(self.hits, self.hits.saturating_add(self.misses))
    }
}

/// How a finished session went, for the client and the bench.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionStats {
    /// Totals of the target's walks; of all targets, when one was lost.
    pub walks: WalkStats,
    /// Why tokens were not guessed, as drafts know it.
    pub misses: Misses,
    /// How the target spent its time.
    pub target: Activity,
    /// How each draft spent its time.
    pub drafts: Vec<Activity>,
    /// How each qualifier spent its time.
    pub qualifiers: Vec<Activity>,
    /// Nodes that drafts contributed.
    pub drafted_nodes: u64,
    /// Of those, nodes whose token was committed.
    pub drafted_committed: u64,
    /// Advised tokens the target has decided about, and how many came true.
    pub advised: (u64, u64),
}

impl SessionStats {
    /// Drafted nodes that were never committed, as a share of all.
    pub fn waste(&self) -> f64 {
        1.0 - ratio(
            self.drafted_committed,
            self.drafted_nodes.max(self.drafted_committed),
        )
    }
}

/// `part / whole`, 0 for an empty whole.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

//! What a verifier counts about its walks.

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
    /// Of those, guesses that were looked up in the text, whoever else made them too.
    pub lookup_accepted: u64,
    /// Of those, guesses of heads beside the target, whoever else made them too.
    pub heads_accepted: u64,
    /// Steps in which the heads were evaluated.
    pub heads_steps: u64,
}

impl WalkStats {
    /// The totals of both.
    #[must_use]
    pub fn plus(self, other: WalkStats) -> WalkStats {
        WalkStats {
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
            lookup_accepted: self.lookup_accepted.saturating_add(other.lookup_accepted),
            heads_accepted: self.heads_accepted.saturating_add(other.heads_accepted),
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

/// `part / whole`, 0 for an empty whole.
pub fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

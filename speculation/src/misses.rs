//! Why a target's walk ended in a token that was not in its tree. A draft counts it: it knows what it ranked, made and
//! expanded, and the target tells it how often it missed.

/// Why a token was not in the target's tree when its walk ended there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MissCause {
    /// The draft expanded the node before it, and did not rank the token among its guesses.
    Unranked,
    /// It was ranked, and not made because its path was too unlikely.
    Pruned,
    /// It was ranked, and not made because the tree was full.
    Full,
    /// The draft had the node before it, and had not expanded that.
    Unexpanded,
    /// The same, where a qualifier had picked another token on the way there.
    Contradicted,
    /// The draft did not have the node before it: it heard of it with the commit.
    Behind,
    /// The draft had made it in its last step: it was on its way.
    InFlight,
    /// The draft had made it before that; it had not been passed on.
    Withheld,
}

impl MissCause {
    /// All of them.
    pub const ALL: [MissCause; 8] = [
        MissCause::Unranked,
        MissCause::Pruned,
        MissCause::Full,
        MissCause::Unexpanded,
        MissCause::Contradicted,
        MissCause::Behind,
        MissCause::InFlight,
        MissCause::Withheld,
    ];

    /// The name in reports and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            MissCause::Unranked => "unranked",
            MissCause::Pruned => "pruned",
            MissCause::Full => "full",
            MissCause::Unexpanded => "unexpanded",
            MissCause::Contradicted => "contradicted",
            MissCause::Behind => "behind",
            MissCause::InFlight => "in_flight",
            MissCause::Withheld => "withheld",
        }
    }
}

/// Misses by cause since a session was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misses([u64; MissCause::ALL.len()]);

impl Misses {
    /// Those of this cause.
    #[must_use]
    pub fn of(self, cause: MissCause) -> u64 {
        self.0[cause as usize]
    }

    /// Sets the count of a cause.
    pub fn set(&mut self, cause: MissCause, count: u64) {
        self.0[cause as usize] = count;
    }

    /// Counts more of a cause.
    pub fn add(&mut self, cause: MissCause, count: u64) {
        let counted = &mut self.0[cause as usize];
        *counted = counted.saturating_add(count);
    }

    /// The counts of both.
    #[must_use]
    pub fn plus(mut self, other: Misses) -> Misses {
        for cause in MissCause::ALL {
            self.add(cause, other.of(cause));
        }
        self
    }

    /// All causes together.
    #[must_use]
    pub fn total(self) -> u64 {
        self.0
            .iter()
            .fold(0, |sum, &count| sum.saturating_add(count))
    }
}

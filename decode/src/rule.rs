//! Acceptance rules: when a walk accepts a guess.
//!
//! Whatever the rule, a row answers with the token that follows it ([`Answer::Pick`](crate::Answer::Pick)), and the walk
//! goes on along the guess that has this token. What differs is how the token is found: drawn without a look at the
//! guesses ([`Ask::Pick`](crate::Ask::Pick)), or by a [`Judgement`] of them ([`Ask::Judge`](crate::Ask::Judge)).

use alloc::vec::Vec;

use crate::sampling::Drawn;

/// How a guess is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Rule {
    /// Token equality under shared noise (arXiv 2408.07978): the text is the one that plain decoding gives, token for
    /// token.
    #[default]
    Exact,
    /// Rejection sampling: a guess is accepted with probability min(1, p/q), and a rejection continues with the residual
    /// (arXiv 2211.17192, arXiv 2302.01318; several siblings as in SpecInfer, arXiv 2305.09781, without replacement). The
    /// text has the distribution of plain decoding, but it is another text. At temperature 0 it is the same.
    Rejection,
    /// A guess is tolerated where two models find it about equally likely (PyramidSD, arXiv 2510.12966). Lossy: neither
    /// the text nor its distribution is that of plain decoding.
    Fuzzy(Tolerance),
}

/// How far the log-probabilities that two models give a guess may differ. 0 tolerates nothing: then the rule is
/// [`Rule::Exact`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Between draft and qualifier (`tau_Q`).
    pub draft: f32,
    /// Between qualifier and target (`tau_T`).
    pub qualifier: f32,
}

/// The largest tolerance that is accepted, in nats: beyond it every guess passes.
pub const MAX_TOLERANCE: f32 = 100.0;

impl Default for Tolerance {
    /// As the paper advises (section 4): the lower one between draft and qualifier.
    fn default() -> Self {
        Tolerance {
            draft: 0.4,
            qualifier: 0.5,
        }
    }
}

impl Tolerance {
    /// Whether both are in range.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        [self.draft, self.qualifier]
            .iter()
            .all(|tolerance| (0.0..=MAX_TOLERANCE).contains(tolerance))
    }
}

/// The names of the rules, in the order in which they are listed.
pub const NAMES: [&str; 3] = ["exact", "rejection", "fuzzy"];

impl Rule {
    /// The name that requests give it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Rule::Exact => NAMES[0],
            Rule::Rejection => NAMES[1],
            Rule::Fuzzy(_) => NAMES[2],
        }
    }

    /// The rule of this name, with this tolerance if it has one.
    #[must_use]
    pub fn from_name(name: &str, tolerance: Tolerance) -> Option<Rule> {
        match name {
            "exact" => Some(Rule::Exact),
            "rejection" => Some(Rule::Rejection),
            "fuzzy" => Some(Rule::Fuzzy(tolerance)),
            _ => None,
        }
    }

    /// Whether texts have the distribution of plain decoding.
    #[must_use]
    pub fn is_lossless(self) -> bool {
        match self {
            Rule::Exact | Rule::Rejection => true,
            Rule::Fuzzy(_) => false,
        }
    }
}

/// What a row is judged by: the guesses that follow it, and what their source says of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Judgement {
    /// By [`Rule::Rejection`]: all siblings that a draft drew, and what it drew them from.
    Rejection(Drawn),
    /// By [`Rule::Fuzzy`].
    Fuzzy {
        /// How far the log-probabilities may differ.
        tolerance: f32,
        /// The guesses with what their source finds of them.
        guesses: Vec<(u32, Surprisal)>,
    },
}

impl Judgement {
    /// The token ids that it names.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        let (drawn, guesses) = match self {
            Judgement::Rejection(drawn) => (Some(drawn), &[][..]),
            Judgement::Fuzzy { guesses, .. } => (None, &guesses[..]),
        };
        (drawn.into_iter())
            .flat_map(|drawn| drawn.support().map(|(id, _)| id))
            .chain(guesses.iter().map(|&(id, _)| id))
    }
}

/// How surprising a model finds a token: minus the natural logarithm of its probability, in steps of 1/2048, saturating
/// at almost 32. It crosses the network in this form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Surprisal(pub u16);

impl Surprisal {
    /// Rounds; NaN counts as 0.
    #[must_use]
    pub fn from_logprob(logprob: f32) -> Self {
        // `as` saturates and maps NaN to 0.
        Surprisal((-logprob * 2048.0 + 0.5) as u16)
    }

    /// The log-probability.
    #[must_use]
    pub fn logprob(self) -> f32 {
        -f32::from(self.0) / 2048.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_that_of_its_rule() {
        for name in NAMES {
            let rule = Rule::from_name(name, Tolerance::default()).expect("it is listed");
            assert_eq!((rule.name(), rule.is_lossless()), (name, name != "fuzzy"));
        }
        assert_eq!(Rule::from_name("lenient", Tolerance::default()), None);
    }

    #[test]
    fn surprisals_are_rounded_and_saturate() {
        for logprob in [0.0, -0.25, -7.3, -31.9] {
            let near = Surprisal::from_logprob(logprob).logprob();
            assert!((near - logprob).abs() <= 0.5 / 2048.0 + 1e-6, "{logprob}");
        }
        assert_eq!(Surprisal::from_logprob(f32::NEG_INFINITY).0, u16::MAX);
        assert_eq!(Surprisal::from_logprob(f32::NAN).0, 0);
        assert_eq!(Surprisal::from_logprob(0.1).0, 0);
    }

    #[test]
    fn tolerances_are_distances() {
        let valid = |draft, qualifier| Tolerance { draft, qualifier }.is_valid();
        assert!(valid(0.0, MAX_TOLERANCE) && Tolerance::default().is_valid());
        assert!(!valid(-0.1, 0.0) && !valid(0.0, f32::NAN) && !valid(100.5, 0.0));
    }
}

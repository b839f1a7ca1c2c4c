//! Acceptance rules: which guess a walk accepts, given what the model picked at its position.

/// How a guess is judged. Every rule here is lossless unless its documentation says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// Token equality under shared noise (arXiv 2408.07978): the text is the one that plain decoding gives, token for
    /// token.
    #[default]
    Exact,
}

impl Rule {
    /// Whether `guess` is accepted where the model picked `picked`.
    #[must_use]
    pub fn accepts(self, guess: u32, picked: u32) -> bool {
        match self {
            Rule::Exact => guess == picked,
        }
    }
}

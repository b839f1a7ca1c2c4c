//! Seeds for requests that name none.
//!
//! The text of a request is a function of its seed, so the seed that was drawn
//! is part of the answer: whoever wants the text again sends it back. This is
//! the only place where a process draws a random number.

/// A seed from the system's random source.
///
/// # Errors
/// When the system has no random source to read, which an early boot or a
/// sandbox without `/dev/urandom` can cause.
pub fn fresh() -> std::io::Result<u64> {
    getrandom::u64().map_err(std::io::Error::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use std::collections::BTreeSet;

    #[test]
    fn seeds_differ() {
        // A repetition among 64 has a chance below 2^-52.
        let drawn: BTreeSet<u64> = (0..64).map(|_| super::fresh().unwrap()).collect();
        assert_eq!(drawn.len(), 64);
    }
}

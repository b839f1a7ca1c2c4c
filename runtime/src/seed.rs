//! Seeds for requests that do not set one.
//!
//! The text of a request is a function of its seed, so the seed is part of the response: a client that wants the same
//! text again sends it back. This is the only place where a process draws a random number.

/// Draws a seed from the system's random source.
///
/// # Errors
/// When the system's random source cannot be read, as in early boot or in a sandbox without `/dev/urandom`.
pub fn fresh() -> std::io::Result<u64> {
    getrandom::u64().map_err(std::io::Error::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use std::collections::BTreeSet;

    #[test]
    fn seeds_differ() {
        // The chance of a repeated value among 64 is below 2^-52.
        let drawn: BTreeSet<u64> = (0..64).map(|_| super::fresh().unwrap()).collect();
        assert_eq!(drawn.len(), 64);
    }
}

//! Closed forms of the literature, for independent acceptance with the probability `a` and no network.
//!
//! Times are in the unit of `draft` and `target`, the durations of their steps. `a` lies in `0..1`.

/// `serial`: tokens of a target step over a chain of `gamma` guesses, `(1 - a^(gamma+1)) / (1 - a)` (Leviathan et al., arXiv
/// 2211.17192, equation 1).
#[must_use]
pub fn serial_tokens(a: f64, gamma: u32) -> f64 {
    accepted(a, gamma) + 1.0
}

/// `serial`: tokens per unit of time. A round is `gamma` draft steps and one target step (arXiv 2211.17192, theorem 3.8).
#[must_use]
pub fn serial_speed(a: f64, gamma: u32, draft: f64, target: f64) -> f64 {
    serial_tokens(a, gamma) / (f64::from(gamma) * draft + target)
}

/// Guesses of a chain of `gamma` that are accepted, `a (1 - a^gamma) / (1 - a)` (SpecBranch, arXiv 2506.01979: a
/// truncated geometric distribution).
#[must_use]
pub fn accepted(a: f64, gamma: u32) -> f64 {
    a * (1.0 - a.powi(gamma.cast_signed())) / (1.0 - a)
}

/// `parallel`: tokens of a target step where the draft makes more than `gamma` tokens meanwhile (`target > (gamma + 1) draft`),
/// so that a step that follows a miss and a hit finds all its guesses.
///
/// Target steps are of two kinds (PEARL, arXiv 2408.11850: pre-verify and post-verify). After a miss: one row, which gives one token and hits
/// the chain that is being made with the probability `a`. After a hit: `gamma` guesses, `(1 - a^(gamma+1)) / (1 - a)` tokens,
/// and a hit with the probability `a^(gamma+1)`. The shares of the two are those of the chain's stationary state.
#[must_use]
pub fn parallel_tokens(a: f64, gamma: u32) -> f64 {
    let goes_on = a.powi(gamma.cast_signed() + 1);
    // One step after a miss is followed by `a / (1 - goes_on)` steps after hits.
    let after_hits = a / (1.0 - goes_on);
    (1.0 + after_hits * serial_tokens(a, gamma)) / (1.0 + after_hits)
}

/// `parallel`: tokens per unit of time, under the same condition as [`parallel_tokens`].
///
/// The draft of Offshoot's `parallel` holds at most `2 gamma` guesses ahead. Where a step after a hit is followed by another one,
/// all of them but `gamma - 1` have become text, and the target waits one draft step for the last one it verifies.
#[must_use]
pub fn parallel_speed(a: f64, gamma: u32, draft: f64, target: f64) -> f64 {
    let goes_on = a.powi(gamma.cast_signed() + 1);
    let after_hits = a / (1.0 - goes_on);
    let steps = 1.0 + after_hits;
    let waited = after_hits * goes_on * draft;
    parallel_tokens(a, gamma) * steps / (steps * target + waited)
}

/// Theorem 1 of SpecBranch (arXiv 2506.01979): the time per token of parallel decoding with rollback,
/// `2 max(gamma t, c t) / ((1 + a^gamma) a (1 - a^gamma) / (1 - a))`, here as tokens per unit of time.
///
/// Its round ends with the accepted guesses: a step gives no token of its own, and a rejection costs the whole round that was
/// drafted meanwhile.
#[must_use]
pub fn rollback_speed(a: f64, gamma: u32, draft: f64, target: f64) -> f64 {
    let round = (f64::from(gamma) * draft).max(target);
    (1.0 + a.powi(gamma.cast_signed())) * accepted(a, gamma) / (2.0 * round)
}

/// The chain at which [`rollback_speed`] is highest, of those up to `most`.
#[must_use]
pub fn best_rollback_gamma(a: f64, draft: f64, target: f64, most: u32) -> u32 {
    let speed = |gamma: &u32| rollback_speed(a, *gamma, draft, target);
    (1..=most)
        .max_by(|one, other| speed(one).total_cmp(&speed(other)))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_properties_hold() {
        // Leviathan et al., table of section 3: a = 0.8, gamma = 5 gives 3.69 tokens.
        assert!((serial_tokens(0.8, 5) - 3.689).abs() < 1e-3);
        // SpecBranch: the optimum is at gamma <= c, and without rollback the gain over serial is at most 2.
        for (a, c) in [(0.5, 4.0), (0.7, 10.0), (0.9, 20.0), (0.99, 15.0)] {
            assert!(
                f64::from(best_rollback_gamma(a, 1.0, c, 64)) <= c,
                "{a} {c}"
            );
        }
        let sure = 1.0 - 1e-9;
        let gain = rollback_speed(sure, 10, 1.0, 10.0) * 20.0 / accepted(sure, 10);
        assert!((gain - 2.0).abs() < 1e-6, "{gain}");
    }

    #[test]
    fn a_chain_that_never_fails_is_never_interrupted() {
        let sure = 1.0 - 1e-9;
        assert!((parallel_tokens(sure, 7) - 8.0).abs() < 1e-4);
        assert!((parallel_tokens(1e-9, 7) - 1.0).abs() < 1e-4);
    }
}

//! When a chain is long enough, where nobody has said it: by the marginal value theorem, as in
//! [`wait`](crate::wait).
//!
//! While the target waits for the draft, another draft step is worth taking if what it is expected to add, per step of the
//! draft, is more than what draft and target earn together in the long run. So chains are long where the draft is sure and
//! end early where it is not.

use super::Round;
use crate::agreement::Pace;

/// Steps of a round before both step times are known.
const UNKNOWN: u16 = 4;

/// No chain is longer, unless a knob says so: beyond it even a sure draft is rarely right.
pub(super) const LONGEST: u16 = 32;

/// Whether another step pays that continues guesses of which one comes true with probability `open`.
pub(super) fn pays(open: f32, round: &Round<'_>) -> bool {
    match round.pace.earns {
        Some(earns) => open * round.pace.agreement > earns,
        None => round.steps < UNKNOWN,
    }
}

/// The draft's steps in one step of the target, as far as a chain may use them.
pub(super) fn steps_beside(pace: &Pace) -> u16 {
    // `as` rounds down and saturates.
    let steps = pace.ratio.map_or(UNKNOWN, |ratio| ratio as u16);
    steps.clamp(1, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::view::tests::round;

    #[test]
    fn a_chain_goes_on_while_its_next_token_is_worth_more_than_time_is() {
        let mut round = round(&[]);
        round.pace = Pace {
            ratio: Some(10.0),
            agreement: 0.6,
            earns: Some(0.18),
        };
        assert!(pays(0.5, &round) && !pays(0.2, &round));
        // A slow target earns less per step of the draft: then even unlikely tokens are worth a step.
        round.pace.earns = Some(0.05);
        assert!(pays(0.2, &round));
    }

    #[test]
    fn a_few_steps_are_made_before_anything_is_known() {
        let mut round = round(&[]);
        round.steps = UNKNOWN - 1;
        assert!(pays(0.01, &round));
        round.steps = UNKNOWN;
        assert!(!pays(0.99, &round));
        assert_eq!(steps_beside(&round.pace), UNKNOWN);
        round.pace.ratio = Some(0.3);
        assert_eq!(steps_beside(&round.pace), 1);
        round.pace.ratio = Some(9.9);
        assert_eq!(steps_beside(&round.pace), 9);
    }
}

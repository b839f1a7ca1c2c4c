//! Guesses without a model: what followed the last tokens when they occurred before, in the prompt or in the text
//! (prompt lookup decoding; suffix decoding, arXiv 2411.04975).
//!
//! They are there in the very step after a miss, when no draft has had time yet, and cost no draft at all. How far they
//! can be trusted is calibrated like any other [`Source`](crate::duty::Source), by the length of the match.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::calibration::Feature;

/// The bounds of what is looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LookupBounds {
    /// Continuations of one text, at most; 0: nothing is looked up.
    pub branches: u16,
    /// Tokens of a continuation, at most.
    pub length: u16,
}

/// One continuation of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// How many tokens before it agree with the end of the text, at least [`SHORTEST`].
    pub matched: usize,
    /// The tokens that followed there.
    pub tokens: Vec<u32>,
}

impl Continuation {
    /// What is known of the token `depth` in the continuation that is the best but `rank`: were it reached, that many
    /// more tokens would match.
    pub fn feature(&self, rank: usize, depth: usize) -> Feature {
        let odds = (self.matched + depth) as f32 / 3.0;
        let odds = odds * odds;
        Feature::new(rank, odds / (1.0 + odds))
    }
}

/// The shortest match that counts, in tokens.
pub const SHORTEST: usize = 2;

/// Matches are not compared beyond this many tokens.
const LONGEST: usize = 64;

/// Places that are remembered for each pair of tokens; older ones are forgotten.
const PLACES: usize = 8;

/// The index of one text. It only grows, like the text.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    /// For each pair of adjacent tokens, the positions behind it, oldest first.
    places: BTreeMap<[u32; SHORTEST], Vec<u32>>,
    /// Tokens that are indexed.
    len: usize,
}

impl Lookup {
    /// Takes up to `most` more tokens of `text` into the index; everything before was taken in already.
    pub fn extend(&mut self, text: &[u32], most: usize) {
        let until = text.len().min(self.len.saturating_add(most));
        for end in self.len.max(SHORTEST - 1)..until {
            let pair = [text[end - 1], text[end]];
            let places = self.places.entry(pair).or_default();
            if places.len() >= PLACES {
                places.remove(0);
            }
            places.push(end as u32 + 1);
        }
        self.len = self.len.max(until);
    }

    /// What followed the end of `text` before: the longest matches first, the most recent first among equals, no two that
    /// begin alike. `text` is in the index as a whole; one that is not gives what is known so far.
    pub fn continuations(&self, text: &[u32], bounds: LookupBounds) -> Vec<Continuation> {
        let Some(&pair) = text.last_chunk::<SHORTEST>() else {
            return Vec::new();
        };
        let places = self.places.get(&pair).map_or(&[][..], Vec::as_slice);
        let mut found: Vec<(usize, usize)> = places
            .iter()
            .map(|&place| place as usize)
            .filter(|&place| place < text.len())
            .map(|place| (matched(text, place), place))
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        let mut continuations: Vec<Continuation> = Vec::new();
        for (matched, place) in found {
            if continuations.len() >= usize::from(bounds.branches) {
                break;
            }
            let tokens = following(text, place, usize::from(bounds.length));
            if (continuations.iter()).all(|other| other.tokens.first() != tokens.first()) {
                continuations.push(Continuation { matched, tokens });
            }
        }
        continuations
    }
}

/// How many tokens before `place` agree with the end of the text.
fn matched(text: &[u32], place: usize) -> usize {
    let before = text[..place].iter().rev();
    let pairs = before.zip(text.iter().rev()).take(LONGEST);
    pairs.take_while(|(a, b)| a == b).count()
}

/// The tokens from `place` on; at the end of the text it goes on as from `place`, as a text does that repeats itself.
fn following(text: &[u32], place: usize, length: usize) -> Vec<u32> {
    text[place..].iter().copied().cycle().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: LookupBounds = LookupBounds {
        branches: 3,
        length: 4,
    };

    fn find(text: &[u32]) -> Vec<Continuation> {
        let mut lookup = Lookup::default();
        // In parts, as a text grows.
        for until in 0..=text.len() {
            lookup.extend(&text[..until], usize::MAX);
        }
        lookup.continuations(text, BOUNDS)
    }

    #[test]
    fn the_longest_match_comes_first_and_then_the_most_recent() {
        let text = [9, 1, 2, 3, 4, 8, 1, 2, 5, 6, 7, 1, 2, 6, 9, 1, 2];
        let found = find(&text);
        assert_eq!(found[0].tokens, [3, 4, 8, 1]);
        assert_eq!(found[0].matched, 3);
        assert_eq!(found[1].tokens, [6, 9, 1, 2]);
        assert_eq!(found[2].tokens, [5, 6, 7, 1]);
        assert_eq!((found[1].matched, found[2].matched), (2, 2));
    }

    #[test]
    fn a_text_that_repeats_itself_goes_on_repeating_itself() {
        let found = find(&[5, 1, 2, 3, 1, 2, 3, 1, 2]);
        assert_eq!(found[0].tokens, [3, 1, 2, 3]);
        assert_eq!(found.len(), 1, "both places go on alike");
    }

    #[test]
    fn a_text_without_a_match_gives_nothing() {
        for text in [&[][..], &[1], &[1, 1], &[1, 2, 3, 4]] {
            assert_eq!(find(text), [], "{text:?}");
        }
    }

    #[test]
    fn what_is_found_did_follow_the_end_of_the_text() {
        let mut state = 1_u32;
        for _ in 0..300 {
            let mut text = Vec::new();
            for _ in 0..40 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                text.push(state >> 30);
            }
            for found in find(&text) {
                let end = &text[text.len() - found.matched..];
                let begins = [end, &found.tokens[..1]].concat();
                assert!(text.windows(begins.len()).any(|part| part == begins));
            }
        }
    }
}

//! Guesses without a model: what followed the last tokens when they occurred before, in the prompt or in the text
//! (prompt lookup decoding; suffix decoding, arXiv 2411.04975).
//!
//! They are there in the very step after a miss, when no draft has had time yet, and cost no draft at all. How far they
//! can be trusted is calibrated like any other [`Source`](crate::duty::Source), by the length of the match.

use alloc::borrow::Cow;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use decode::{Guess, History, Proposal, Proposed, Proposer, Seen};

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
    /// How likely the token `depth` in it is thought to be: were it reached, that many more tokens would match.
    fn weight(&self, depth: usize) -> f32 {
        let odds = (self.matched + depth) as f32 / 3.0;
        let odds = odds * odds;
        odds / (1.0 + odds)
    }
}

/// Continuations as a tree of at most so many guesses: the best first, no two of which begin alike.
pub(crate) fn proposal(continuations: &[Continuation], most: usize) -> Proposal {
    let mut proposal = Proposal::default();
    for (rank, continuation) in continuations.iter().enumerate() {
        let mut parent = None;
        for (depth, &token) in continuation.tokens.iter().enumerate() {
            if proposal.len() >= most {
                return proposal;
            }
            parent = proposal.push(Proposed {
                parent,
                rank,
                guess: Guess::rated(token, continuation.weight(depth)),
            });
        }
    }
    proposal
}

/// The text and the path behind it as one.
pub(crate) fn whole<'a>(before: &History<'a>) -> Cow<'a, [u32]> {
    if before.path.is_empty() {
        Cow::Borrowed(before.text)
    } else {
        Cow::Owned([before.text, before.path].concat())
    }
}

/// The shortest match that counts, in tokens.
pub const SHORTEST: usize = 2;

/// Matches are not compared beyond this many tokens.
const LONGEST: usize = 64;

/// Places that are remembered for each pair of tokens; older ones are forgotten.
pub(crate) const PLACES: usize = 8;

/// Tokens of a text that are indexed before one step, so that a long one delays nobody.
pub(crate) const INDEXED_AT_ONCE: usize = 4096;

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
            .map(|place| (matched(&text[..place], text), place))
            .collect();
        found.sort_by(|a, b| b.cmp(a));
        let length = usize::from(bounds.length);
        let continuations = found.into_iter().map(|(matched, place)| Continuation {
            matched,
            tokens: following(text, place, length),
        });
        unlike(continuations, usize::from(bounds.branches))
    }
}

/// The first so many continuations of which no two begin alike, and none is empty.
pub(crate) fn unlike(
    continuations: impl Iterator<Item = Continuation>,
    most: usize,
) -> Vec<Continuation> {
    let mut kept: Vec<Continuation> = Vec::new();
    for continuation in continuations {
        if kept.len() >= most {
            break;
        }
        let first = continuation.tokens.first();
        if first.is_some() && kept.iter().all(|other| other.tokens.first() != first) {
            kept.push(continuation);
        }
    }
    kept
}

/// How many tokens at the end of both texts agree.
pub(crate) fn matched(before: &[u32], text: &[u32]) -> usize {
    let pairs = before.iter().rev().zip(text.iter().rev()).take(LONGEST);
    pairs.take_while(|(a, b)| a == b).count()
}

/// The tokens from `place` on; at the end of the text it goes on as from `place`, as a text does that repeats itself.
fn following(text: &[u32], place: usize, length: usize) -> Vec<u32> {
    text[place..].iter().copied().cycle().take(length).collect()
}

/// Looks up one text in itself.
#[derive(Clone, Debug)]
pub struct TextLookup {
    index: Lookup,
    bounds: LookupBounds,
}

impl TextLookup {
    /// `None` where nothing is to be looked up.
    #[must_use]
    pub fn new(bounds: LookupBounds) -> Option<Self> {
        (bounds.branches > 0).then(|| TextLookup {
            index: Lookup::default(),
            bounds,
        })
    }

    /// Takes a part of the text into the index that it does not have yet.
    pub fn index(&mut self, text: &[u32]) {
        self.index.extend(text, INDEXED_AT_ONCE);
    }
}

impl Proposer for TextLookup {
    fn propose(&mut self, seen: &Seen<'_>, most: usize) -> Proposal {
        self.index(seen.before.text);
        let found = (self.index).continuations(&whole(&seen.before), self.bounds);
        proposal(&found, most)
    }
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
    fn a_lookup_is_a_proposer_that_looks_behind_guesses_too() {
        let text = [9, 1, 2, 3, 4, 8, 1, 2, 5, 6, 7];
        let mut lookup = TextLookup::new(BOUNDS).expect("it looks up");
        let mut tokens = |path: &[u32], most| {
            let before = History {
                text: &text,
                path,
                prompt_len: 1,
            };
            let proposal = lookup.propose(&Seen { before, taps: &[] }, most);
            let nodes = proposal
                .iter()
                .map(|node| (node.parent, node.rank, node.guess.token));
            nodes.collect::<Vec<_>>()
        };
        assert_eq!(tokens(&[], 9), []);
        let both = [
            (None, 0, 5),
            (Some(0), 0, 6),
            (Some(1), 0, 7),
            (Some(2), 0, 1),
            (None, 1, 3),
        ];
        // Behind the guesses the text goes on as from the place, and the later place is the better of two.
        assert_eq!(tokens(&[1, 2], 5)[..3], both[..3]);
        assert_eq!(tokens(&[1, 2], 5)[4], both[4]);
        assert_eq!(tokens(&[1, 2], 2), both[..2], "no more than were asked for");
        assert!(TextLookup::new(LookupBounds::default()).is_none());
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

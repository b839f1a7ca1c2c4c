//! Guesses from other requests: what followed the last tokens in texts that were completed before under the same key
//! (the "cached history" of Leviathan et al., arXiv 2211.17192, section 6; suffix decoding, arXiv 2411.04975).
//!
//! A request that names no key neither gives nor gets anything. Texts of different keys never meet: each key has its own
//! texts and its own index. All is bounded in tokens, overall and for each key. For a new text the oldest ones of its key
//! make room, and then whole keys, the least recently used one first.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use decode::{Proposal, Proposer, Seen};

use crate::lookup::{
    Continuation, INDEXED_AT_ONCE, LookupBounds, PLACES, SHORTEST, matched, proposal, unlike, whole,
};

/// Names the requests that share their texts. A coordinator makes it of a tenant and a salt; nothing here knows either.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HistoryKey(pub [u8; 32]);

impl fmt::Debug for HistoryKey {
    /// Whoever knows a key can use it, so logs do not have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HistoryKey(..)")
    }
}

/// One key has at most this part of the room.
const SHARE: usize = 4;

/// What a text takes besides its tokens, in tokens, so that many short ones are bounded too.
const OVERHEAD: usize = 32;

/// Runs of so many tokens are indexed. The newest places of a long run are the better ones to look at where a text repeats
/// itself, as code does; the short run finds something where no long one does.
const RUNS: [usize; 2] = [6, SHORTEST];

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct HistoryCache {
    /// Tokens of all texts, at most; 0: it keeps none.
    most: usize,
    size: usize,
    /// Counts what happens, to tell which key was used last.
    uses: u64,
    keys: BTreeMap<HistoryKey, Texts>,
}

/// The texts of one key.
#[derive(Clone, Debug, Default)]
struct Texts {
    /// By their age: the oldest has the lowest number.
    texts: BTreeMap<u64, Text>,
    next: u64,
    size: usize,
    used: u64,
    /// Texts that are not in the index as a whole.
    behind: BTreeSet<u64>,
    /// A hash of each run, and the text and the position behind it.
    places: BTreeSet<(u64, u64, u32)>,
}

#[derive(Clone, Debug)]
struct Text {
    tokens: Vec<u32>,
    /// Positions below it are in the index.
    indexed: usize,
}

impl Text {
    fn size(&self) -> usize {
        self.tokens.len() + OVERHEAD
    }

    /// The runs that end before a position.
    fn runs(&self, place: usize) -> impl Iterator<Item = u64> + '_ {
        let before = &self.tokens[..place];
        (RUNS.into_iter()).filter_map(move |run| end(before, run).map(hash))
    }
}

/// The last so many tokens, if there are as many.
fn end(tokens: &[u32], len: usize) -> Option<&[u32]> {
    tokens.get(tokens.len().checked_sub(len)?..)
}

/// A hash of a run (FNV-1a over whole tokens). Runs that collide are told apart by their tokens.
fn hash(run: &[u32]) -> u64 {
    run.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &token| {
        (hash ^ u64::from(token))
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(29)
    })
}

impl Texts {
    /// Takes up to `most` more positions into the index, those of the newest text first.
    fn index(&mut self, most: usize) {
        let mut left = most;
        while left > 0
            && let Some(&id) = self.behind.last()
        {
            let Some(text) = self.texts.get_mut(&id) else {
                self.behind.remove(&id);
                continue;
            };
            let until = text.tokens.len().min(text.indexed + left);
            for place in text.indexed..until {
                let runs = text.runs(place).map(|run| (run, id, place as u32));
                self.places.extend(runs);
            }
            left -= until - text.indexed;
            text.indexed = until;
            if until == text.tokens.len() {
                self.behind.remove(&id);
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<Text> {
        let text = self.texts.remove(&id)?;
        self.behind.remove(&id);
        for place in 0..text.indexed {
            for run in text.runs(place) {
                self.places.remove(&(run, id, place as u32));
            }
        }
        self.size -= text.size();
        Some(text)
    }

    /// The continuations of the end of a text, in any order.
    fn find(&self, text: &[u32]) -> Vec<(usize, u64, u32)> {
        let mut found = Vec::new();
        for run in RUNS {
            let Some(run) = end(text, run).map(hash) else {
                continue;
            };
            let places = self.places.range((run, 0, 0)..=(run, u64::MAX, u32::MAX));
            for &(_, id, place) in places.rev().take(PLACES) {
                let before = &self.texts[&id].tokens[..place as usize];
                let matched = matched(before, text);
                if matched >= SHORTEST {
                    found.push((matched, id, place));
                }
            }
        }
        found
    }
}

impl HistoryCache {
    /// One that keeps at most this many tokens; 0: none.
    #[must_use]
    pub fn new(most: usize) -> Self {
        HistoryCache {
            most,
            ..HistoryCache::default()
        }
    }

    /// What it holds, in tokens; what a text takes besides its tokens is counted too.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Keys that it has texts of.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Whether it has texts of a key.
    #[must_use]
    pub fn has(&self, key: HistoryKey) -> bool {
        self.keys.contains_key(&key)
    }

    fn used(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// Keeps a text. Of one that is longer than a key's share the end is kept. One that goes on from an older text takes its
    /// place, and one that an older text goes on from adds nothing.
    pub fn record(&mut self, key: HistoryKey, text: &[u32]) {
        let share = self.most / SHARE;
        let room = share.saturating_sub(OVERHEAD);
        let tokens = &text[text.len().saturating_sub(room)..];
        if tokens.len() <= SHORTEST {
            return;
        }
        let used = self.used();
        let texts = self.keys.entry(key).or_default();
        let before = texts.size;
        texts.used = used;
        let is_older =
            |old: &Text| old.tokens.len() > tokens.len() && old.tokens.starts_with(tokens);
        if texts.texts.values().any(is_older) {
            return;
        }
        let replaced: Vec<u64> = (texts.texts.iter())
            .filter(|(_, old)| tokens.starts_with(&old.tokens))
            .map(|(&id, _)| id)
            .collect();
        for id in replaced {
            texts.remove(id);
        }
        let text = Text {
            tokens: tokens.to_vec(),
            indexed: 0,
        };
        while texts.size + text.size() > share
            && let Some((&oldest, _)) = texts.texts.first_key_value()
        {
            texts.remove(oldest);
        }
        texts.size += text.size();
        texts.texts.insert(texts.next, text);
        texts.behind.insert(texts.next);
        texts.next += 1;
        self.size = self.size - before + texts.size;
        while self.size > self.most {
            let others = self.keys.iter().filter(|(other, _)| **other != key);
            let Some((&least, _)) = others.min_by_key(|(_, texts)| texts.used) else {
                break;
            };
            let gone = self.keys.remove(&least);
            self.size -= gone.map_or(0, |texts| texts.size);
        }
    }

    /// Takes a part of a key's texts into the index that it does not have yet.
    pub fn index(&mut self, key: HistoryKey) {
        let used = self.used();
        if let Some(texts) = self.keys.get_mut(&key) {
            texts.used = used;
            texts.index(INDEXED_AT_ONCE);
        }
    }

    /// What followed the end of `text` in texts of this key, as far as they are in the index: the longest matches first, the
    /// newest text first among equals, no two that begin alike. Of each run of tokens only the newest places are looked at.
    #[must_use]
    pub fn continuations(
        &self,
        key: HistoryKey,
        text: &[u32],
        bounds: LookupBounds,
    ) -> Vec<Continuation> {
        let Some(texts) = self.keys.get(&key) else {
            return Vec::new();
        };
        let mut found = texts.find(text);
        found.sort_unstable_by(|a, b| b.cmp(a));
        let continuations = found.into_iter().map(|(matched, id, place)| {
            let behind = &texts.texts[&id].tokens[place as usize..];
            Continuation {
                matched,
                tokens: behind[..behind.len().min(usize::from(bounds.length))].to_vec(),
            }
        });
        unlike(continuations, usize::from(bounds.branches))
    }
}

/// Looks up a text in the texts of a key.
#[derive(Debug)]
pub struct HistoryLookup<'a> {
    /// Where they are.
    pub cache: &'a mut HistoryCache,
    /// Whose.
    pub key: HistoryKey,
    /// How much is looked up.
    pub bounds: LookupBounds,
}

impl Proposer for HistoryLookup<'_> {
    fn propose(&mut self, seen: &Seen<'_>, most: usize) -> Proposal {
        self.cache.index(self.key);
        let text = whole(&seen.before);
        let found = self.cache.continuations(self.key, &text, self.bounds);
        proposal(&found, most)
    }
}

#[cfg(test)]
mod tests;

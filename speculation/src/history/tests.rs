//! The index against a slow one that has nothing but the texts.

use super::*;
use alloc::vec;
use std::collections::VecDeque;

const BOUNDS: LookupBounds = LookupBounds {
    branches: 3,
    length: 5,
};

fn key(of: u8) -> HistoryKey {
    HistoryKey([of; 32])
}

struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 = (self.0)
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % most
    }

    fn text(&mut self, vocab: usize, longest: usize) -> Vec<u32> {
        let len = self.below(longest + 1);
        (0..len).map(|_| self.below(vocab) as u32).collect()
    }
}

/// The texts of each key, the oldest first, and the keys by their last use.
#[derive(Default)]
struct Naive {
    most: usize,
    keys: Vec<(HistoryKey, VecDeque<Vec<u32>>)>,
}

impl Naive {
    fn size(texts: &VecDeque<Vec<u32>>) -> usize {
        texts.iter().map(|text| text.len() + OVERHEAD).sum()
    }

    fn total(&self) -> usize {
        (self.keys.iter())
            .map(|(_, texts)| Naive::size(texts))
            .sum()
    }

    /// Moves a key to the end.
    fn touch(&mut self, key: HistoryKey) {
        if let Some(at) = self.keys.iter().position(|(other, _)| *other == key) {
            let found = self.keys.remove(at);
            self.keys.push(found);
        }
    }

    fn record(&mut self, key: HistoryKey, text: &[u32]) {
        let share = self.most / SHARE;
        let kept = text.len().min(share.saturating_sub(OVERHEAD));
        let text = text[text.len() - kept..].to_vec();
        if text.len() <= SHORTEST {
            return;
        }
        if self.keys.iter().all(|(other, _)| *other != key) {
            self.keys.push((key, VecDeque::new()));
        }
        self.touch(key);
        let texts = &mut self.keys.last_mut().expect("it was touched").1;
        if (texts.iter()).any(|old| old.len() > text.len() && old.starts_with(&text)) {
            return;
        }
        texts.retain(|old| !text.starts_with(old));
        texts.push_back(text);
        while Naive::size(texts) > share {
            texts.pop_front();
        }
        while self.total() > self.most {
            self.keys.remove(0);
        }
    }

    /// Every place where a run ends as the text does, by run; of each run the newest places, and of those the best.
    fn find(&self, key: HistoryKey, text: &[u32]) -> Vec<Continuation> {
        let texts = (self.keys.iter()).find(|(other, _)| *other == key);
        let mut found = Vec::new();
        for run in RUNS {
            let mut places = Vec::new();
            for (age, old) in texts.iter().flat_map(|(_, texts)| texts.iter().enumerate()) {
                for place in 0..old.len() {
                    let agree = (1..=place.min(text.len()))
                        .take_while(|n| old[place - n] == text[text.len() - n])
                        .count();
                    if agree >= run {
                        places.push((age, place, agree.min(64), old));
                    }
                }
            }
            let oldest = places.len().saturating_sub(PLACES);
            found.extend(places.drain(oldest..));
        }
        found.sort_by_key(|&(age, place, agree, _)| std::cmp::Reverse((agree, age, place)));
        let mut kept: Vec<Continuation> = Vec::new();
        for (_, place, matched, old) in found {
            let tokens: Vec<u32> = old[place..].iter().copied().take(5).collect();
            if kept.len() < 3 && kept.iter().all(|other| other.tokens[0] != tokens[0]) {
                kept.push(Continuation { matched, tokens });
            }
        }
        kept
    }
}

#[test]
fn it_finds_what_a_slow_search_of_the_same_texts_finds() {
    let mut dice = Dice(11);
    let (mut compared, mut dropped) = (0, 0);
    for round in 0..60 {
        let most = 300 + dice.below(2500);
        let mut cache = HistoryCache::new(most);
        let mut naive = Naive {
            most,
            ..Naive::default()
        };
        let vocab = 2 + dice.below(5);
        let keys = 1 + dice.below(7);
        for _ in 0..60 {
            let whose = key(dice.below(keys) as u8);
            let mut text = dice.text(vocab, 120);
            if dice.below(4) == 0
                && let Some((_, texts)) = naive.keys.first()
                && let Some(old) = texts.front()
            {
                // A text that goes on from another, or is a part of one.
                text.splice(0..0, old.iter().copied());
                text.truncate(old.len() + dice.below(9) - 4.min(old.len()));
            }
            let had = naive.keys.len();
            cache.record(whose, &text);
            naive.record(whose, &text);
            dropped += usize::from(naive.keys.len() < had);
            assert_eq!(cache.size(), naive.total(), "round {round}");
            assert_eq!(cache.keys(), naive.keys.len());
            assert!(cache.size() <= most);
            for texts in cache.keys.values() {
                assert!(texts.size <= most / SHARE);
                let places = texts.texts.values().map(|text| RUNS.len() * text.indexed);
                assert!(texts.places.len() <= places.sum(), "nothing is left behind");
            }
            let asked = key(dice.below(keys) as u8);
            cache.index(asked);
            naive.touch(asked);
            let text = dice.text(vocab, 30);
            let found = cache.continuations(asked, &text, BOUNDS);
            assert_eq!(found, naive.find(asked, &text), "round {round}, {text:?}");
            compared += found.len();
        }
    }
    assert!(compared > 2000, "{compared} continuations");
    assert!(dropped > 50, "{dropped} keys made room");
}

#[test]
fn no_key_sees_the_texts_of_another() {
    let mut cache = HistoryCache::new(10_000);
    let text: Vec<u32> = (0..40).collect();
    cache.record(key(1), &text);
    for of in [1, 2] {
        cache.index(key(of));
    }
    assert_eq!(cache.continuations(key(1), &text[..9], BOUNDS).len(), 1);
    assert_eq!(cache.continuations(key(2), &text[..9], BOUNDS), []);
    let mut other = key(1);
    other.0[31] ^= 1;
    assert_eq!(cache.continuations(other, &text[..9], BOUNDS), []);
}

#[test]
fn the_key_that_was_used_last_stays() {
    let mut cache = HistoryCache::new(4 * (100 + OVERHEAD));
    let text = |of: u32| (0..100).map(|at| of * 1000 + at).collect::<Vec<u32>>();
    for of in 1..=4 {
        cache.record(key(of), &text(of.into()));
    }
    assert_eq!((cache.keys(), cache.size()), (4, 4 * (100 + OVERHEAD)));
    cache.index(key(1));
    cache.record(key(5), &text(5));
    let is_there = |cache: &HistoryCache, of: u8| cache.keys.contains_key(&key(of));
    assert!(is_there(&cache, 1), "it was used after the second");
    assert!(!is_there(&cache, 2));
    assert_eq!(cache.keys(), 4);
}

#[test]
fn a_text_that_comes_again_takes_no_more_room() {
    let mut cache = HistoryCache::new(10_000);
    let text: Vec<u32> = (0..50).collect();
    cache.record(key(1), &text);
    let size = cache.size();
    cache.record(key(1), &text);
    cache.record(key(1), &text[..30]);
    assert_eq!(cache.size(), size);
    let longer: Vec<u32> = (0..60).collect();
    cache.record(key(1), &longer);
    assert_eq!(
        cache.size(),
        size + 10,
        "it took the place of the shorter one"
    );
}

#[test]
fn one_without_room_keeps_nothing() {
    for most in [0, 1, SHARE * OVERHEAD, SHARE * (OVERHEAD + SHORTEST)] {
        let mut cache = HistoryCache::new(most);
        cache.record(key(1), &(0..500).collect::<Vec<u32>>());
        cache.index(key(1));
        assert_eq!((cache.size(), cache.keys()), (0, 0), "{most}");
        assert_eq!(cache.continuations(key(1), &[3, 4, 5], BOUNDS), []);
    }
}

#[test]
fn a_long_text_is_indexed_in_parts_and_its_end_is_kept() {
    let mut cache = HistoryCache::new(SHARE * (10_000 + OVERHEAD));
    let text: Vec<u32> = (0..12_000).collect();
    cache.record(key(1), &text);
    assert_eq!(cache.size(), 10_000 + OVERHEAD);
    let found =
        |cache: &HistoryCache, end: usize| cache.continuations(key(1), &text[end - 9..end], BOUNDS);
    let mut calls = 0;
    while found(&cache, 11_990).is_empty() {
        cache.index(key(1));
        calls += 1;
    }
    assert_eq!(calls, 10_000_usize.div_ceil(INDEXED_AT_ONCE));
    let continuation = Continuation {
        matched: 9,
        tokens: vec![11_990, 11_991, 11_992, 11_993, 11_994],
    };
    assert_eq!(found(&cache, 11_990), [continuation]);
    assert!(found(&cache, 1500).is_empty(), "the beginning is gone");
}

#[test]
fn a_key_says_nothing_in_logs() {
    assert_eq!(std::format!("{:?}", key(7)), "HistoryKey(..)");
}

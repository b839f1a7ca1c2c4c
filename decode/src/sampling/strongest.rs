//! The strongest logits of a row, ties to the lowest id.

use super::scan::{self, BLOCK, Survey, Width};
use alloc::vec::Vec;

/// A token as one integer: a larger key is a stronger logit, or the lower id
/// among equal logits.
pub(super) type Key = u64;

/// The key of a token. Both zeros are equal, as they are as numbers.
#[inline]
pub(super) fn key(logit: f32, id: u32) -> Key {
    let bits = (logit + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 {
        bits | 1 << 31
    } else {
        !bits
    };
    u64::from(ordered) << 32 | u64::from(!id)
}

/// The token id of a key.
#[inline]
pub(super) fn id(key: Key) -> u32 {
    !(key as u32)
}

/// Leaves the keys of the `count` strongest tokens in `keys`, in no order. Minus
/// infinity counts as no token.
pub(super) fn select(
    width: Width,
    logits: &[f32],
    survey: &Survey,
    count: usize,
    keys: &mut Vec<Key>,
) {
    keys.clear();
    if count == 0 {
        return;
    }
    let mut floor = starting_floor(survey, count);
    // Twice the wanted number, so that a selection is paid by as many arrivals.
    let room = count.saturating_mul(2).saturating_add(BLOCK);
    let add = |keys: &mut Vec<Key>, first: usize, block: &[f32], floor: &mut f32| {
        for (offset, &logit) in block.iter().enumerate() {
            if logit >= *floor {
                keys.push(key(logit, (first + offset) as u32));
            }
        }
        if keys.len() >= room {
            keep_largest(keys, count);
            let weakest = keys.iter().copied().min().expect("count is above zero");
            *floor = logits[id(weakest) as usize];
        }
    };
    let mut from = 0;
    while let Some(block) = scan::next_strong_block(width, logits, from, floor) {
        let first = block * BLOCK;
        add(keys, first, &logits[first..first + BLOCK], &mut floor);
        from = block + 1;
    }
    let tail = logits.len() - logits.len() % BLOCK;
    add(keys, tail, &logits[tail..], &mut floor);
    keep_largest(keys, count);
}

/// The lanes hold distinct tokens, so the `count`-th strongest of them bounds the
/// `count`-th strongest token from below.
fn starting_floor(survey: &Survey, count: usize) -> f32 {
    let mut lanes = survey.logits;
    lanes.sort_unstable_by(|a, b| b.total_cmp(a));
    lanes
        .get(count - 1)
        .copied()
        .unwrap_or(f32::MIN)
        .max(f32::MIN)
}

fn keep_largest(keys: &mut Vec<Key>, count: usize) {
    if keys.len() > count {
        keys.select_nth_unstable_by(count - 1, |a, b| b.cmp(a));
        keys.truncate(count);
    }
}

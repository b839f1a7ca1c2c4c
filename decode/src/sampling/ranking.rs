//! The best noisy scores seen so far.

use alloc::vec::Vec;
/// A token and its noisy score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scored {
    pub(super) token: u32,
    /// `(l - strongest) / T + noise`; at `T = 0` the logit itself.
    pub(super) score: f64,
}

/// At most `capacity` tokens, best first, ties to the lowest id.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    entries: Vec<Scored>,
    capacity: usize,
}

impl Ranking {
    pub(super) fn restart(&mut self, capacity: usize) {
        self.entries.clear();
        self.capacity = capacity;
    }

    /// Best first.
    pub(super) fn entries(&self) -> &[Scored] {
        &self.entries
    }

    /// The score that a further token has to reach to matter; `None` while there
    /// is room for any.
    pub(super) fn bar(&self) -> Option<f64> {
        let full = self.entries.len() == self.capacity;
        self.entries.last().filter(|_| full).map(|last| last.score)
    }

    /// Puts a token where it belongs; a token that is there already stays once.
    /// Says whether the ranking changed.
    pub(super) fn offer(&mut self, new: Scored) -> Change {
        let ahead = |old: &Scored| {
            old.score > new.score || (old.score == new.score && old.token < new.token)
        };
        let place = self.entries.partition_point(ahead);
        let known = self
            .entries
            .get(place)
            .is_some_and(|old| old.token == new.token);
        if place == self.capacity || known {
            return Change::None;
        }
        if self.entries.len() == self.capacity {
            self.entries.pop();
        }
        self.entries.insert(place, new);
        Change::Entered
    }
}

/// What an offer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    Entered,
}

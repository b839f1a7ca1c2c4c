//! One slot per session and direction of a link: *state, not events*.
//!
//! The owner of a session puts the session's latest state into its slot; the task that writes to the link sends what
//! the slots hold. Nothing queues: a slow link holds at most one value per session, and neither side waits for the
//! other.

use std::collections::BTreeMap;
use std::ops::Bound;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The slots of one direction of one link. `K` identifies a session, `T` is the state it sends.
#[derive(Debug)]
pub struct Outbox<K, T> {
    slots: Mutex<Slots<K, T>>,
    filled: Notify,
}

#[derive(Debug)]
struct Slots<K, T> {
    filled: BTreeMap<K, T>,
    /// The session whose state was taken last: those behind it come next, so that a link that is too slow for all
    /// sessions serves them in turn.
    last: Option<K>,
}

impl<K: Ord + Copy, T> Default for Outbox<K, T> {
    fn default() -> Self {
        Outbox {
            slots: Mutex::new(Slots {
                filled: BTreeMap::new(),
                last: None,
            }),
            filled: Notify::new(),
        }
    }
}

impl<K: Ord + Copy, T> Outbox<K, T> {
    /// Whether the session's slot is empty. Only the owner of the session fills it, so for the owner `true` stays true
    /// until its next [`Outbox::put`].
    pub fn is_vacant(&self, key: K) -> bool {
        !self.slots.lock().filled.contains_key(&key)
    }

    /// Puts `state` into the session's slot; a state that has not been taken yet is replaced.
    pub fn put(&self, key: K, state: T) {
        self.slots.lock().filled.insert(key, state);
        self.filled.notify_one();
    }

    /// Takes the states of up to `most` sessions, and waits until there is at least one.
    pub async fn take(&self, most: usize) -> Vec<(K, T)> {
        loop {
            let taken = self.try_take(most);
            if !taken.is_empty() {
                return taken;
            }
            self.filled.notified().await;
        }
    }

    fn try_take(&self, most: usize) -> Vec<(K, T)> {
        let mut slots = self.slots.lock();
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(slot) = slots.take_next()
        {
            taken.push(slot);
        }
        if !slots.filled.is_empty() {
            self.filled.notify_one();
        }
        taken
    }

    /// Empties the session's slot without sending its state.
    pub fn discard(&self, key: K) {
        self.slots.lock().filled.remove(&key);
    }
}

impl<K: Ord + Copy, T> Slots<K, T> {
    fn take_next(&mut self) -> Option<(K, T)> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut next = self.filled.range((behind, Bound::Unbounded));
        let key = *next.next().or_else(|| self.filled.first_key_value())?.0;
        self.last = Some(key);
        self.filled.remove_entry(&key)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[tokio::test]
    async fn the_latest_state_wins_and_nothing_is_left_behind() {
        let outbox = Outbox::default();
        outbox.put(1, "old");
        outbox.put(1, "new");
        outbox.put(2, "other");
        assert!(!outbox.is_vacant(1));
        assert_eq!(outbox.take(1).await, [(1, "new")]);
        assert!(outbox.is_vacant(1));
        assert_eq!(outbox.take(8).await, [(2, "other")]);
    }

    #[tokio::test]
    async fn a_link_that_is_too_slow_for_all_sessions_serves_them_in_turn() {
        let outbox = Outbox::default();
        let mut taken = Vec::new();
        for _ in 0..4 {
            // All of them have something new before each message.
            for session in 1..=3 {
                outbox.put(session, ());
            }
            taken.extend(outbox.take(1).await);
        }
        assert_eq!(taken, [(1, ()), (2, ()), (3, ()), (1, ())]);
    }
}

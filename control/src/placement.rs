//! The placement queue: everybody that waits for a reservation on a target, or for one of the completions that may run
//! at one time, in the order of turns. What becomes free goes by turn, not to the first that asks.

use alloc::collections::BTreeMap;
use alloc::string::String;

use speculation::relay::WorkerKey;

/// The order of turns: sessions that have lost their target, then requests by priority, each in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    rank: Rank,
    arrival: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Running,
    /// By priority; lower goes first.
    New(i32),
}

/// What a waiting request or session needs of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetNeed {
    /// Only one of this numerics_id will do.
    pub numerics: Option<String>,
    /// Not this one: it has refused.
    pub not: Option<WorkerKey>,
    /// Positions that its context has to hold.
    pub context: u32,
    /// Positions that the text is expected to take, where the context holds them.
    pub positions: u32,
}

impl TargetNeed {
    /// Whether a target with these properties would do.
    pub(crate) fn could_use(&self, key: WorkerKey, numerics: &str, context: u32) -> bool {
        self.not != Some(key)
            && self.context <= context
            && (self.numerics.as_deref()).is_none_or(|wanted| wanted == numerics)
    }
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct PlacementQueue {
    waiting: BTreeMap<Turn, TargetNeed>,
    arrivals: u64,
}

impl PlacementQueue {
    fn turn(&mut self, rank: Rank) -> Turn {
        let arrival = self.arrivals;
        self.arrivals += 1;
        Turn { rank, arrival }
    }

    /// The turn of a request that has just arrived.
    pub fn request(&mut self, priority: i32) -> Turn {
        self.turn(Rank::New(priority))
    }

    /// The turn of a session that has lost its target.
    pub fn running(&mut self) -> Turn {
        self.turn(Rank::Running)
    }

    /// From now on later turns leave it the targets that it could use.
    pub fn wait(&mut self, turn: Turn, need: TargetNeed) {
        self.waiting.insert(turn, need);
    }

    /// It no longer waits. Returns whether others are next for it.
    pub fn leave(&mut self, turn: Turn) -> bool {
        self.waiting.remove(&turn).is_some() && !self.waiting.is_empty()
    }

    /// Whether no earlier turn could use this target.
    pub fn may_take(&self, turn: Turn, key: WorkerKey, numerics: &str, context: u32) -> bool {
        let mut earlier = self.waiting.range(..turn);
        !earlier.any(|(_, need)| need.could_use(key, numerics, context))
    }

    /// The requests that wait and have an earlier turn, in their order.
    pub(crate) fn earlier_requests(&self, turn: Turn) -> impl Iterator<Item = (Turn, &TargetNeed)> {
        (self.waiting.range(..turn))
            .filter(|(earlier, _)| matches!(earlier.rank, Rank::New(_)))
            .map(|(&earlier, need)| (earlier, need))
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const HERE: WorkerKey = WorkerKey(0);

    #[test]
    fn sessions_go_before_requests_and_these_by_priority_then_arrival() {
        let mut queue = PlacementQueue::default();
        let turns = [5, -1, 5].map(|priority| queue.request(priority));
        for turn in turns {
            queue.wait(turn, TargetNeed::default());
        }
        let lost = queue.running();
        queue.wait(lost, TargetNeed::default());
        let first = |queue: &PlacementQueue, turn| queue.may_take(turn, HERE, "a", 8);
        assert!(first(&queue, lost) && !turns.iter().any(|&turn| first(&queue, turn)));
        let before = |queue: &PlacementQueue, turn| -> Vec<Turn> {
            (queue.earlier_requests(turn))
                .map(|(turn, _)| turn)
                .collect()
        };
        assert_eq!(before(&queue, turns[2]), [turns[1], turns[0]]);
        assert!(queue.leave(lost), "somebody still waits");
        assert!(first(&queue, turns[1]));
        assert!(!first(&queue, turns[0]) && !first(&queue, turns[2]));
        for turn in turns {
            queue.leave(turn);
        }
        assert!(first(&queue, turns[2]) && queue.is_empty());
    }

    #[test]
    fn only_those_who_could_use_a_target_are_waited_for() {
        let mut queue = PlacementQueue::default();
        let turn = queue.running();
        let need = TargetNeed {
            numerics: Some("a".into()),
            not: Some(HERE),
            context: 8,
            positions: 8,
        };
        queue.wait(turn, need);
        let late = queue.request(0);
        let may = |key, numerics, context| queue.may_take(late, key, numerics, context);
        assert!(may(HERE, "a", 8), "it has refused");
        assert!(may(WorkerKey(1), "b", 8), "other numerics");
        assert!(may(WorkerKey(1), "a", 7), "too small");
        assert!(!may(WorkerKey(1), "a", 8));
    }
}

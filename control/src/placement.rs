//! The placement queue: everybody that waits for a reservation on a target, or for one of the completions that may run
//! at one time, in the order of turns. What becomes free goes by turn, not to the first that asks.
//!
//! Clients take turns: among equal priorities the completions of one client are in one round each, and the rounds of a
//! client that comes later begin with the one that is placed now. (Start-time fair queueing, Goyal, Vin and Cheng 1996, with
//! every completion of the same size.) So a client with sixteen completions delays another one by one of them.

use alloc::collections::BTreeMap;
use alloc::string::String;

use speculation::relay::WorkerKey;

/// Names a client within one coordinator: who shares a key shares turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientKey(pub u64);

/// The order of turns: sessions that have lost their target, then requests by priority, then by the rounds of their clients,
/// each in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Turn {
    rank: Rank,
    arrival: u64,
    /// Whose completion it is; none of a session that has lost its target.
    client: Option<ClientKey>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Running,
    New {
        /// Lower goes first.
        priority: i32,
        /// Each client has one completion in a round.
        round: u64,
    },
}

/// A client with completions that wait or run.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// The round of its next completion, if that is not over.
    next: u64,
    completions: usize,
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
    /// The round of the newest completion that was placed.
    round: u64,
    /// Forgotten with its last completion, so that there are not more than completions.
    shares: BTreeMap<ClientKey, Share>,
}

impl PlacementQueue {
    fn turn(&mut self, rank: Rank, client: Option<ClientKey>) -> Turn {
        let arrival = self.arrivals;
        self.arrivals += 1;
        Turn {
            rank,
            arrival,
            client,
        }
    }

    /// The client's next turn.
    fn next(&mut self, priority: i32, client: ClientKey) -> Turn {
        let share = self.shares.entry(client).or_default();
        let round = share.next.max(self.round);
        share.next = round + 1;
        self.turn(Rank::New { priority, round }, Some(client))
    }

    /// Completions of a client that wait or run.
    pub(crate) fn completions(&self, client: ClientKey) -> usize {
        (self.shares.get(&client)).map_or(0, |share| share.completions)
    }

    /// The turn of a completion that a client has just asked for. [`PlacementQueue::handle_over`] ends it.
    pub fn request(&mut self, priority: i32, client: ClientKey) -> Turn {
        self.shares.entry(client).or_default().completions += 1;
        self.next(priority, client)
    }

    /// The turn of a completion that was parked: behind what its client has asked for since.
    pub(crate) fn again(&mut self, own: Turn) -> Turn {
        match (own.rank, own.client) {
            (Rank::New { priority, .. }, Some(client)) => self.next(priority, client),
            (Rank::Running, _) | (_, None) => self.running(),
        }
    }

    /// The completion of this turn is placed.
    pub(crate) fn handle_placed(&mut self, turn: Turn) {
        if let Rank::New { round, .. } = turn.rank {
            self.round = self.round.max(round);
        }
    }

    /// The completion that was given this turn on its arrival has ended, or has left.
    pub(crate) fn handle_over(&mut self, turn: Turn) {
        let share = turn.client.and_then(|client| self.shares.get_mut(&client));
        if let (Some(share), Some(client)) = (share, turn.client) {
            share.completions -= 1;
            if share.completions == 0 {
                self.shares.remove(&client);
            }
        }
    }

    /// The turn of a session that has lost its target.
    pub fn running(&mut self) -> Turn {
        self.turn(Rank::Running, None)
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
            .filter(|(earlier, _)| matches!(earlier.rank, Rank::New { .. }))
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
    const CLIENT: ClientKey = ClientKey(7);

    #[test]
    fn sessions_go_before_requests_and_these_by_priority_then_arrival() {
        let mut queue = PlacementQueue::default();
        let turns = [5, -1, 5].map(|priority| queue.request(priority, CLIENT));
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

    /// The clients in the order in which those that wait are placed.
    fn order(queue: &PlacementQueue) -> Vec<u64> {
        (queue.waiting.keys())
            .map(|turn| turn.client.map_or(0, |client| client.0))
            .collect()
    }

    fn arrives(queue: &mut PlacementQueue, client: u64) -> Turn {
        let turn = queue.request(0, ClientKey(client));
        queue.wait(turn, TargetNeed::default());
        turn
    }

    /// The first of those that wait is placed.
    fn place(queue: &mut PlacementQueue) -> Turn {
        let turn = *queue.waiting.keys().next().expect("somebody waits");
        queue.handle_placed(turn);
        queue.leave(turn);
        turn
    }

    #[test]
    fn a_client_with_many_completions_delays_another_by_one() {
        let mut queue = PlacementQueue::default();
        for _ in 0..4 {
            arrives(&mut queue, 1);
        }
        arrives(&mut queue, 2);
        arrives(&mut queue, 2);
        assert_eq!(order(&queue), [1, 2, 1, 2, 1, 1]);
        // Who comes while the third of them runs is next, and cannot have saved turns up.
        let placed = [place(&mut queue), place(&mut queue), place(&mut queue)];
        arrives(&mut queue, 3);
        arrives(&mut queue, 3);
        assert_eq!(order(&queue), [2, 3, 1, 3, 1]);
        for turn in placed {
            queue.handle_over(turn);
        }
    }

    #[test]
    fn nobody_starves_and_who_is_parked_waits_behind_what_its_client_asked_for_since() {
        let mut queue = PlacementQueue::default();
        let own = arrives(&mut queue, 1);
        assert_eq!(place(&mut queue), own);
        arrives(&mut queue, 1);
        let again = queue.again(own);
        queue.wait(again, TargetNeed::default());
        // Client 2 always has one that waits, and one that runs.
        let mut before = 0;
        let mut running = None;
        while queue.waiting.contains_key(&again) {
            arrives(&mut queue, 2);
            let placed = place(&mut queue);
            before += 1;
            assert!(before < 9, "it never has its turn");
            if placed != again
                && let Some(over) = running.replace(placed)
            {
                queue.handle_over(over);
            }
        }
        assert!(before > 2, "it goes before its client's own");
    }

    #[test]
    fn clients_are_forgotten_with_their_last_completion() {
        let mut queue = PlacementQueue::default();
        let turns: Vec<Turn> = (0..50)
            .map(|client| arrives(&mut queue, client / 2))
            .collect();
        assert_eq!(queue.shares.len(), 25);
        for turn in turns {
            queue.leave(turn);
            queue.handle_over(turn);
        }
        assert!(queue.shares.is_empty() && queue.is_empty());
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
        let late = queue.request(0, CLIENT);
        let may = |key, numerics, context| queue.may_take(late, key, numerics, context);
        assert!(may(HERE, "a", 8), "it has refused");
        assert!(may(WorkerKey(1), "b", 8), "other numerics");
        assert!(may(WorkerKey(1), "a", 7), "too small");
        assert!(!may(WorkerKey(1), "a", 8));
    }
}

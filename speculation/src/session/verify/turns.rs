//! Waiting for others where the text depends on what they have made, so that it depends on nobody's speed.

use decode::{NodeId, Rule};

use super::Verifier;
use crate::Time;
use crate::strategy::NextStep;

/// The longest that a target waits for what is drawn for a round. The text depends on it, so it should not depend on how
/// busy a machine is; but a draft that hangs is not waited for.
const LONGEST_ROUND: Time = Time::from_secs(1);

/// The same where three models take turns: a round is several steps of the qualifier.
const LONGEST_TURN: Time = Time::from_secs(5);

/// Guesses that drafts grow in one step, about.
const GROWN: usize = 12;

impl Verifier {
    /// Whether everybody takes turns in this session.
    pub(in crate::session) fn takes_turns(&self) -> bool {
        self.strategy.takes_turns(self.rule)
    }

    /// Whether nobody has had a turn yet: the target picks the first token by itself, while the others only compute the prompt.
    /// What a step computes says nothing of that: a prompt may come in parts, and the last of them may be a single row.
    pub(super) fn is_before_turns(&self) -> bool {
        self.takes_turns() && self.replica.len() <= self.replica.stopping.prompt_len
    }

    /// Whether the client has to take something first. A qualifier has its turn before that, so that the target never goes on
    /// without it once the client has, however late.
    pub(super) fn is_out_of_credit(&self) -> bool {
        let has_turn = self.takes_turns() && self.advice.is_some();
        self.replica.len() >= self.replica.allowed_len && !has_turn
    }

    /// Until when the next step, which would submit these guesses, waits for others.
    pub(super) fn awaits_others(&self, next: &NextStep, guesses: &[NodeId]) -> Option<Time> {
        let longest = match self.rule {
            Rule::Exact => return None,
            Rule::Rejection => next.round.map(|_| LONGEST_ROUND)?,
            Rule::Fuzzy(_) => self.takes_turns().then_some(LONGEST_TURN)?,
        };
        let is_whole = match self.advice {
            None => self.is_before_turns(),
            Some(_) => self.is_whole(guesses),
        };
        let since = self.step_ended.unwrap_or_default().max(self.base_since);
        let until = since + longest;
        (!next.is_round_done && !is_whole && next.now < until).then_some(until)
    }

    /// Whether no further guess of a chain below the tip is to come.
    fn is_whole(&self, chain: &[NodeId]) -> bool {
        let stopping = &self.replica.stopping;
        let last = chain.last().or(self.ahead.last());
        let last = last.and_then(|&id| self.replica.tree.get(id));
        let end = last.map_or(self.replica.len(), |node| node.position + 1);
        let is_end = last.is_some_and(|node| stopping.stop_ids.contains(&node.token));
        chain.len() >= usize::from(self.bounds.rows) || is_end || end + 1 >= stopping.max_len
    }

    /// Whether a qualifier has nothing more to say before the text goes on.
    pub(super) fn is_far_enough(&self) -> bool {
        self.advice.is_some_and(|advice| {
            let full = self.ahead.len() >= usize::from(advice.ahead);
            full || self.is_stuck || self.ahead_finish.is_some()
        })
    }

    /// The text for which a qualifier has finished its turn.
    pub(super) fn turn_done(&self) -> Option<u32> {
        let is_over = self.is_far_enough() || (self.advice.is_some() && self.finish.is_some());
        (self.takes_turns() && is_over).then(|| self.replica.len())
    }

    /// The probability that the text goes on behind one of the guesses that drafts grow next: the best of those that have
    /// none behind them.
    pub(super) fn open(&self, guesses: &[NodeId], values: &[f64]) -> f64 {
        if guesses.is_empty() {
            return 1.0;
        }
        let is_leaf = |id: NodeId| self.replica.tree.children(Some(id)).is_empty();
        (guesses.iter().zip(values))
            .filter(|&(&id, _)| is_leaf(id))
            .map(|(_, &value)| value)
            .take(GROWN)
            .sum()
    }
}

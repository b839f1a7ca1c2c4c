//! The duty to propose: grows the tree best-first, whatever the target is doing.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use decode::{Answer, Guess, NodeId, Rule, StepPlan};

use super::account::MissAccount;
use super::{Capacity, rules};
use crate::allocation::{Share, Work};
use crate::bypass::Mode;
use crate::calibration::{Calibration, Feature};
use crate::duty::Source;
use crate::learned::Learned;
use crate::limits::MAX_NODES_PER_UPDATE;
use crate::message::{
    Activity, Margin, Origin, Outlook, Prob16, ReplicaUpdate, Report, SessionSpec, Shard,
};
use crate::misses::MissCause;
use crate::numbering::{Outbound, PeerError};
use crate::replica::{Held, Poll, Replica};
use crate::strategy::{Chosen, Frontier, Growth, Round};
use crate::tree::{Graft, Grafted};

/// What a proposer keeps about a node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Grown {
    /// Set when it made the guess itself.
    pub(super) guess: Option<Feature>,
    origin: Origin,
    pub(super) expanded: bool,
    /// The step that made it, counted from the first.
    pub(super) made: u32,
}

impl Grown {
    /// A guess that was drawn.
    pub(super) fn drawn(origin: Origin) -> Self {
        Grown {
            origin,
            ..Grown::default()
        }
    }
}

/// After this long, in microseconds, an account of its time is worth a message of its own.
const REPORT_US: u64 = 50_000;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Proposer {
    pub(super) replica: Replica<Grown>,
    strategy: Chosen,
    pub(super) rule: Rule,
    pub(super) growth: Growth,
    shard: Shard,
    source: Source,
    outlook: Outlook,
    root_expanded: bool,
    pub(super) outbound: Outbound,
    /// Steps since the last commit.
    round_steps: u16,
    reported_round: Option<u32>,
    reported_any: bool,
    reported_life_us: u64,
    offered: Offered,
    /// All its steps.
    steps: u32,
    misses: MissAccount,
}

/// The work that was offered last, as it is planned if it is taken.
#[derive(Debug, Default)]
struct Offered {
    /// Rows of text.
    appended: usize,
    /// The last of them is expanded.
    is_root: bool,
    /// Nodes to expand.
    nodes: Vec<NodeId>,
}

impl Proposer {
    pub(super) fn new(
        spec: &SessionSpec,
        strategy: Chosen,
        capacity: Capacity,
        cached: u32,
    ) -> Self {
        let growth = strategy.growth();
        Proposer {
            replica: Replica::new(spec, capacity.vocab, cached),
            growth: Growth {
                width: growth.width.min(capacity.rows),
                nodes: growth.nodes.min(capacity.rows),
                ..growth
            },
            rule: strategy.settings.rule,
            strategy,
            shard: spec.shard,
            source: capacity.source,
            outlook: Outlook::default(),
            root_expanded: false,
            outbound: Outbound::default(),
            round_steps: 0,
            reported_round: None,
            reported_any: false,
            reported_life_us: 0,
            offered: Offered::default(),
            steps: 0,
            misses: MissAccount::default(),
        }
    }

    pub(super) fn handle_update(
        &mut self,
        update: &ReplicaUpdate,
        learned: &mut Learned,
    ) -> Result<(), PeerError> {
        let fresh = self.replica.fresh(update)?;
        if !fresh.is_empty() {
            let calibration = learned.calibration.of(self.source);
            // One account for each request is enough.
            if self.shard.index == 0 {
                let outlook = update.outlook;
                (self.misses).heard(&self.replica, fresh, outlook, self.steps, calibration);
            }
            (self.replica).learn(fresh, calibration, |grown| grown.guess);
            let committed = self.replica.extend(fresh);
            self.misses.committed(&committed, &self.replica);
            self.outbound.committed(&self.replica.tree);
            self.root_expanded = committed.hit
                && (committed.matched.last()).is_some_and(|(_, node)| node.payload.own.expanded);
            self.round_steps = 0;
        }
        for (node, edge) in self.replica.graft(update)? {
            self.outbound.received(node, edge);
        }
        if let Some(shard) = update.shard {
            self.shard = shard;
        }
        if update.outlook.accepted.is_some() {
            self.outlook = update.outlook;
        }
        Ok(())
    }

    fn pauses(&self) -> bool {
        self.strategy.pauses(&Round {
            steps: self.round_steps,
            outlook: self.outlook,
        })
    }

    pub(super) fn poll_step(&mut self, room: usize) -> Poll {
        self.offered = Offered::default();
        let len = self.replica.len();
        if len >= self.replica.stopping.max_len {
            return Poll::Done;
        }
        if self.outlook.mode == Mode::Rest {
            return Poll::Parked;
        }
        if self.replica.lags(room) {
            self.offered.appended = room;
            return Poll::Work(Work {
                base: room,
                ..Work::default()
            });
        }
        let frontier = if self.pauses() {
            Vec::new()
        } else {
            self.frontier(room)
        };
        if frontier.is_empty() && self.root_expanded {
            return match self.growth.round {
                // There is nothing left to grow: the round is over, however few steps it had.
                Some(_) => {
                    self.round_steps = u16::MAX;
                    Poll::Wait(None, None)
                }
                None => Poll::Parked,
            };
        }
        if !self.root_expanded {
            self.offered.appended = self.replica.pending().len();
            self.offered.is_root = true;
        }
        let appended = self.offered.appended;
        let (nodes, values) = self.with_ancestors(&frontier, room.saturating_sub(appended));
        self.offered.nodes = nodes;
        Poll::Work(Work {
            base: appended,
            // The root is a frontier node too, the best of all.
            base_value: if appended > 0 { 1.0 } else { 0.0 },
            values,
            choice: self.strategy.choice(),
        })
    }

    /// The plan of this share of the work that was offered last.
    pub(super) fn plan_step(&mut self, share: Share) -> StepPlan {
        let Offered {
            appended,
            is_root,
            nodes,
        } = core::mem::take(&mut self.offered);
        let mut plan = self.replica.prefill(share.base.min(appended));
        if share.base < appended {
            return plan;
        }
        let ask = self.ask(self.growth.branch);
        if is_root {
            plan.asks = alloc::vec![ask];
        }
        let nodes = nodes.into_iter().take(share.guesses);
        plan.rows = nodes.filter_map(|id| self.replica.row(id, ask)).collect();
        plan
    }

    /// The unexpanded nodes worth a row of the next step, with their worth, best first.
    fn frontier(&self, room: usize) -> Vec<(f32, NodeId)> {
        let tree = &self.replica.tree;
        if tree.len() >= usize::from(self.growth.nodes) && self.root_expanded {
            return Vec::new();
        }
        let last = (self.replica.stopping.max_len - 1)
            .min(self.replica.len() + u32::from(self.growth.depth) - 1);
        let mut candidates: Vec<(f32, NodeId)> = tree
            .iter()
            .filter(|(_, node)| !node.payload.own.expanded && node.position < last)
            .filter(|(_, node)| !self.replica.stopping.stop_ids.contains(&node.token))
            .filter_map(|(id, node)| {
                let is_own = node.owner % self.shard.count.max(1) == self.shard.index;
                let worth = self.strategy.worth(&Frontier {
                    path: node.path(),
                    is_own,
                })?;
                (worth >= self.growth.min_path).then_some((worth, id))
            })
            .collect();
        candidates.sort_by(|(a, a_id), (b, b_id)| b.total_cmp(a).then(a_id.cmp(b_id)));
        let base_rows = if self.root_expanded { 0 } else { 1 };
        let width = usize::from(self.growth.width)
            .saturating_sub(base_rows)
            .min(room);
        candidates.truncate(width);
        let worth: Vec<f64> = candidates.iter().map(|(p, _)| f64::from(*p)).collect();
        candidates.truncate(self.strategy.expands(&worth));
        candidates
    }

    /// The nodes and those of their ancestors that the cache lacks, parents first, at most `room`, with what each row is
    /// worth.
    fn with_ancestors(&self, nodes: &[(f32, NodeId)], room: usize) -> (Vec<NodeId>, Vec<f64>) {
        let tree = &self.replica.tree;
        let mut taken = BTreeSet::new();
        let mut rows = Vec::new();
        let mut values = Vec::new();
        for &(worth, id) in nodes {
            let mut missing: Vec<NodeId> = tree
                .ancestors(id)
                .take_while(|(id, node)| !node.payload.computed && !taken.contains(id))
                .map(|(id, _)| id)
                .collect();
            // What does not fit is cut off at the bottom: a branch deeper than the room still advances by a few rows.
            missing.reverse();
            missing.truncate(room - rows.len());
            taken.extend(missing.iter().copied());
            values.resize(values.len() + missing.len(), f64::from(worth));
            rows.append(&mut missing);
        }
        (rows, values)
    }

    pub(super) fn is_obsolete(&self, plan: &StepPlan, update: &ReplicaUpdate) -> bool {
        let Ok(fresh) = self.replica.fresh(update) else {
            return false;
        };
        if fresh.is_empty() || plan.rows.is_empty() || !plan.append.is_empty() {
            return false;
        }
        let tree = &self.replica.tree;
        let path = tree.descend(fresh);
        if path.len() < fresh.len() {
            return true;
        }
        let root = path.last().copied();
        !plan
            .rows
            .iter()
            .any(|row| tree.ancestors(row.node).any(|(id, _)| Some(id) == root))
    }

    pub(super) fn handle_step(
        &mut self,
        plan: &StepPlan,
        answers: &[Answer],
        learned: &mut Learned,
    ) {
        self.replica.computed(plan);
        if plan.asks.is_empty() && plan.rows.is_empty() {
            return;
        }
        self.round_steps = self.round_steps.saturating_add(1);
        self.steps = self.steps.saturating_add(1);
        let calibration = learned.calibration.of(self.source);
        // A model whose answer is not a number gives no guesses; the target continues without them.
        let mut answers = answers.iter();
        if !plan.asks.is_empty() {
            self.root_expanded = true;
            let owner = (self.replica.len() % u32::from(self.shard.count.max(1))) as u8;
            self.take(None, owner, answers.next(), calibration);
        }
        for row in &plan.rows {
            let answer = answers.next();
            let Some(node) = self.replica.tree.get(row.node) else {
                continue;
            };
            let owner = node.owner;
            if let Some(payload) = self.replica.tree.payload_mut(row.node) {
                payload.own.expanded = true;
            }
            self.take(Some(row.node), owner, answer, calibration);
        }
    }

    fn take(
        &mut self,
        parent: Option<NodeId>,
        owner: u8,
        answer: Option<&Answer>,
        calibration: &Calibration,
    ) {
        match answer {
            Some(Answer::Guesses(guesses)) => self.grow(parent, owner, guesses, calibration),
            Some(Answer::Drawn(drawn)) => self.take_drawn(parent, owner, drawn),
            _ => {}
        }
    }

    fn grow(
        &mut self,
        parent: Option<NodeId>,
        owner: u8,
        guesses: &[Guess],
        calibration: &Calibration,
    ) {
        let tree = &mut self.replica.tree;
        let above = tree.path_score(parent);
        let rule = self.rule;
        for (rank, guess) in guesses.iter().enumerate() {
            let feature = Feature::new(rank, guess.weight);
            let edge = calibration.probability(feature);
            let is_worthless = above * edge < self.growth.min_path;
            if is_worthless || tree.len() >= usize::from(self.growth.nodes) {
                let cause = match is_worthless {
                    true => MissCause::Pruned,
                    false => MissCause::Full,
                };
                self.misses.left_out(parent, guess.token, cause);
                continue;
            }
            let own = Grown {
                guess: Some(feature),
                origin: Origin {
                    source: self.source,
                    q: Prob16::from_f32(guess.q),
                    margin: Margin::from_f32(guess.margin),
                },
                expanded: false,
                made: self.steps,
            };
            let graft = Graft {
                token: guess.token,
                edge,
                owner: owner.wrapping_add(rank as u8),
                payload: Held {
                    computed: false,
                    surprisal: rules::surprisal(rule, guess.q),
                    own,
                },
            };
            if let Some(Grafted::Existing(id)) = tree.graft(parent, graft) {
                // Another contributor was faster; this draft still learns from its own guess.
                if let Some(held) = tree.payload_mut(id) {
                    held.surprisal = rules::surprisal(rule, guess.q);
                    held.own.guess = own.guess;
                    held.own.origin = own.origin;
                    held.own.made = own.made;
                }
            }
        }
    }

    pub(super) fn poll_report(&mut self, activity: Activity) -> Option<Report> {
        let (mut nodes, _) = self.outbound.diff(
            &self.replica.tree,
            self.growth.min_path,
            MAX_NODES_PER_UPDATE,
            Some(|held: &Held<Grown>| held.own.origin),
        );
        self.add_ratings(&mut nodes);
        let round_done = (self.growth.round.is_some() && self.pauses()).then(|| self.replica.len());
        // An idle draft still reports its activity from time to time.
        let is_aged = activity.life_us >= self.reported_life_us + REPORT_US;
        let is_new = is_aged
            || !nodes.is_empty()
            || (round_done.is_some() && round_done != self.reported_round);
        if !is_new && self.reported_any {
            return None;
        }
        self.reported_any = true;
        self.reported_life_us = activity.life_us;
        self.reported_round = round_done;
        Some(Report {
            base_len: self.replica.len(),
            nodes,
            round_done,
            activity,
            misses: self.misses.counts,
            ..Report::default()
        })
    }
}

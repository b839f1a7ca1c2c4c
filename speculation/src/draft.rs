//! A draft's session: grows the tree best-first, whatever the target is doing.

use std::collections::BTreeSet;

use crate::calibration::{Calibration, Feature, Outcome};
use crate::cost::CostModel;
use crate::limits::MAX_NODES_PER_UPDATE;
use crate::link::{LinkError, Outbound};
use crate::message::{Activity, DraftReport, ReplicaUpdate, SessionSpec, Shard, Task};
use crate::policy::{GrowthPolicy, Pause};
use crate::replica::{CacheOp, History, Poll, Replica, Row, RowAt, StepPlan, TailLogits};
use crate::tree::{Graft, NodeId};
use crate::verify::WrongTask;

/// One of the best tokens at a place, under the noise of that position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// The token id.
    pub token: u32,
    /// Softmax of the noisy scores among the guesses of that place.
    pub weight: f32,
}

/// What a draft keeps about a node.
#[derive(Clone, Copy, Debug, Default)]
struct Grown {
    /// Set when this draft made the guess itself.
    guess: Option<Feature>,
    expanded: bool,
}

/// A node that another draft should grow is worth this much less here: it is grown when nothing else is left.
const FOREIGN: f32 = 0.2;

/// An account of its time is worth a message of its own after this long, microseconds.
const REPORT_US: u64 = 50_000;

/// See the module documentation. `handle_*` takes what happened, `poll_*` gives what is to be done.
#[derive(Debug)]
pub struct DraftSession {
    replica: Replica<Grown>,
    policy: GrowthPolicy,
    shard: Shard,
    root_expanded: bool,
    outbound: Outbound,
    /// Steps since the last commit.
    round_steps: u16,
    told_round: Option<u32>,
    told_any: bool,
    told_life_us: u64,
}

impl DraftSession {
    /// A session whose cache holds the first `cached` tokens of its text. `vocab` bounds every token id it will accept.
    pub fn new(spec: &SessionSpec, vocab: u32, cached: u32) -> Result<Self, WrongTask> {
        let Task::Grow { policy, shard } = spec.task else {
            return Err(WrongTask);
        };
        Ok(DraftSession {
            replica: Replica::new(spec, vocab, cached),
            policy,
            shard,
            root_expanded: false,
            outbound: Outbound::default(),
            round_steps: 0,
            told_round: None,
            told_any: false,
            told_life_us: 0,
        })
    }

    /// The tokens whose keys and values the cache holds once [`poll_cache_ops`](Self::poll_cache_ops) is done.
    pub fn cached_text(&self) -> &[u32] {
        self.replica.cached_text()
    }

    /// Takes the coordinator's newest state, and learns from what was committed.
    pub fn handle_update(
        &mut self,
        update: &ReplicaUpdate,
        calibration: &mut Calibration,
    ) -> Result<(), LinkError> {
        let fresh = self.replica.fresh(update)?;
        if !fresh.is_empty() {
            self.learn(fresh, calibration);
            let committed = self.replica.extend(fresh);
            self.outbound.committed(&self.replica.tree);
            self.root_expanded = committed.hit
                && (committed.matched.last()).is_some_and(|(_, node)| node.payload.own.expanded);
            self.round_steps = 0;
        }
        for (node, edge) in self.replica.graft(update)? {
            self.outbound.heard(node, edge);
        }
        if let Some(shard) = update.shard {
            self.shard = shard;
        }
        Ok(())
    }

    fn learn(&self, tokens: &[u32], calibration: &mut Calibration) {
        let tree = &self.replica.tree;
        let mut at = None;
        for &token in tokens {
            for &child in tree.children(at) {
                if let Some(node) = tree.get(child)
                    && let Some(feature) = node.payload.own.guess
                {
                    calibration.observe(feature, Outcome::of(node.token, token));
                }
            }
            at = match tree.child(at, token) {
                Some(child) => Some(child),
                None => return,
            };
        }
    }

    /// What to do now. `room` is how many rows the worker's step has left, `cost` what rows cost it.
    pub fn poll_step(&mut self, cost: &CostModel, room: usize) -> Poll {
        let len = self.replica.len();
        if len >= self.replica.stopping.max_len {
            return Poll::Done;
        }
        if let Some(plan) = self.replica.prefill(room) {
            return Poll::Step(plan);
        }
        let paused = match self.policy.pause {
            Pause::AfterSteps(steps) => self.round_steps >= steps,
            Pause::WhenWorthless => false,
        };
        let frontier = if paused {
            Vec::new()
        } else {
            self.frontier(cost, room)
        };
        if frontier.is_empty() && self.root_expanded {
            return match self.policy.pause {
                Pause::AfterSteps(_) => {
                    self.round_steps = u16::MAX;
                    Poll::Wait(None)
                }
                Pause::WhenWorthless => Poll::Parked,
            };
        }
        let (append, tail) = if self.root_expanded {
            (Vec::new(), TailLogits::Skip)
        } else {
            (self.replica.pending().to_vec(), TailLogits::Keep)
        };
        let rows = self.with_ancestors(&frontier, room.saturating_sub(append.len()));
        Poll::Step(StepPlan {
            append,
            tail,
            rows: rows
                .into_iter()
                .filter_map(|id| self.replica.row(id))
                .collect(),
        })
    }

    /// The unexpanded nodes worth a row of the next step, best first.
    fn frontier(&self, cost: &CostModel, room: usize) -> Vec<NodeId> {
        let tree = &self.replica.tree;
        if tree.len() >= usize::from(self.policy.nodes) && self.root_expanded {
            return Vec::new();
        }
        let last = (self.replica.stopping.max_len - 1)
            .min(self.replica.len() + u32::from(self.policy.depth) - 1);
        let steals = self.policy.pause == Pause::WhenWorthless;
        let mut candidates: Vec<(f32, NodeId)> = tree
            .iter()
            .filter(|(_, node)| !node.payload.own.expanded && node.position < last)
            .filter(|(_, node)| !self.replica.stopping.stop_ids.contains(&node.token))
            .filter_map(|(id, node)| {
                let mine = node.owner % self.shard.count.max(1) == self.shard.index;
                let score = match (mine, steals) {
                    (true, _) => node.path(),
                    (false, true) => node.path() * FOREIGN,
                    (false, false) => return None,
                };
                (score >= self.policy.min_path).then_some((score, id))
            })
            .collect();
        candidates.sort_by(|(a, a_id), (b, b_id)| b.total_cmp(a).then(a_id.cmp(b_id)));
        // The root is a frontier node too, the best of all.
        let (base_rows, base_value) = if self.root_expanded {
            (0, 0.0)
        } else {
            (1, 1.0)
        };
        let width = usize::from(self.policy.width)
            .saturating_sub(base_rows)
            .min(room);
        candidates.truncate(width);
        let values: Vec<f64> = candidates.iter().map(|(p, _)| f64::from(*p)).collect();
        let take = match self.policy.pause {
            Pause::AfterSteps(_) => candidates.len(),
            Pause::WhenWorthless => cost.best_prefix(base_rows, base_value, &values),
        };
        candidates.iter().take(take).map(|&(_, id)| id).collect()
    }

    /// The nodes and those of their ancestors that the cache lacks, parents first, at most `room`.
    fn with_ancestors(&self, nodes: &[NodeId], room: usize) -> Vec<NodeId> {
        let tree = &self.replica.tree;
        let mut taken = BTreeSet::new();
        let mut rows = Vec::new();
        for &id in nodes {
            let mut missing: Vec<NodeId> = tree
                .ancestors(id)
                .take_while(|(id, node)| !node.payload.computed && !taken.contains(id))
                .map(|(id, _)| id)
                .collect();
            // What does not fit is cut from below: a branch deeper than the room still gets on by a few rows.
            missing.reverse();
            missing.truncate(room - rows.len());
            taken.extend(missing.iter().copied());
            rows.append(&mut missing);
        }
        rows
    }

    /// What the cache has to do before the next step.
    pub fn poll_cache_ops(&mut self) -> Vec<CacheOp> {
        self.replica.take_ops()
    }

    /// Whether the commit in `update` leaves nothing of a step in flight that would be of use.
    pub fn obsoletes(&self, plan: &StepPlan, update: &ReplicaUpdate) -> bool {
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

    /// A plan was computed; `guesses` gives up to so many tokens for what follows one of its rows, best first, or
    /// nothing when the model's answer is not a number.
    pub fn handle_step(
        &mut self,
        plan: &StepPlan,
        calibration: &Calibration,
        mut guesses: impl FnMut(RowAt, History<'_>, usize) -> Vec<Guess>,
    ) {
        self.replica.computed(plan);
        if plan.tail == TailLogits::Skip && plan.rows.is_empty() {
            return;
        }
        self.round_steps = self.round_steps.saturating_add(1);
        let branch = usize::from(self.policy.branch);
        if plan.tail == TailLogits::Keep {
            self.root_expanded = true;
            let position = self.replica.len();
            let found = guesses(RowAt::Tail, self.replica.history(&[]), branch);
            let owner = (position % u32::from(self.shard.count.max(1))) as u8;
            self.grow(None, owner, &found, calibration);
        }
        for (at, row) in plan.rows.iter().enumerate() {
            let Some(node) = self.replica.tree.get(row.node) else {
                continue;
            };
            let owner = node.owner;
            let path = self.replica.tree.tokens_to(row.node);
            let found = guesses(RowAt::Row(at), self.replica.history(&path), branch);
            if let Some(payload) = self.replica.tree.payload_mut(row.node) {
                payload.own.expanded = true;
            }
            self.grow(Some(row.node), owner, &found, calibration);
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
        for (rank, guess) in guesses.iter().enumerate() {
            let feature = Feature::new(rank, guess.weight);
            let edge = calibration.probability(feature);
            let worthless = above * edge < self.policy.min_path;
            if worthless || tree.len() >= usize::from(self.policy.nodes) {
                continue;
            }
            let own = Grown {
                guess: Some(feature),
                expanded: false,
            };
            let graft = Graft {
                token: guess.token,
                edge,
                owner: owner.wrapping_add(rank as u8),
                payload: Row {
                    computed: false,
                    own,
                },
            };
            if let Some(crate::tree::Grafted::Existing(id)) = tree.graft(parent, graft) {
                // Another contributor was faster; what we know of it still teaches.
                if let Some(row) = tree.payload_mut(id) {
                    row.own.guess = Some(feature);
                }
            }
        }
    }

    /// What to tell the coordinator, if there is anything.
    pub fn poll_report(&mut self, activity: Activity) -> Option<DraftReport> {
        let (nodes, _) = self.outbound.diff(
            &self.replica.tree,
            self.policy.min_path,
            MAX_NODES_PER_UPDATE,
        );
        let round_done = match self.policy.pause {
            Pause::AfterSteps(steps) if self.round_steps >= steps => Some(self.replica.len()),
            Pause::AfterSteps(_) | Pause::WhenWorthless => None,
        };
        // An idle draft still says from time to time how it has spent its life.
        let aged = activity.life_us >= self.told_life_us + REPORT_US;
        let news =
            aged || !nodes.is_empty() || (round_done.is_some() && round_done != self.told_round);
        if !news && self.told_any {
            return None;
        }
        self.told_any = true;
        self.told_life_us = activity.life_us;
        self.told_round = round_done;
        Some(DraftReport {
            base_len: self.replica.len(),
            nodes,
            round_done,
            activity,
        })
    }
}

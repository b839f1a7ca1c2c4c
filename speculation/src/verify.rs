//! A verifier's session: walks the tree with the tokens its own model picks. A target's picks are the text; a
//! qualifier's picks are advice, which it follows ahead of the target and takes back when the target disagrees.

use crate::Time;
use crate::cost::CostModel;
use crate::launch::{Decision, LaunchRule};
use crate::ledger::Ledger;
use crate::link::LinkError;
use crate::message::{
    Activity, Finish, ReplicaUpdate, Score, Scoring, SessionSpec, Task, VerifyReport,
};
use crate::policy::{AdvicePolicy, Launch, VerifyPolicy};
use crate::replica::{CacheOp, History, PlannedRow, Poll, Replica, RowAt, StepPlan, TailLogits};
use crate::stats::WalkStats;
use crate::tree::{Graft, NodeId};
use crate::walk::{Picked, walk};

/// What a verifier keeps about a node.
#[derive(Clone, Copy, Debug, Default)]
struct Advised {
    margin: f32,
}

/// A session cannot be served by this worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session's task is for another kind of worker")]
pub struct WrongTask;

/// See the module documentation. `handle_*` takes what happened, `poll_*` gives what is to be done.
#[derive(Debug)]
pub struct VerifySession {
    replica: Replica<Advised>,
    policy: VerifyPolicy,
    advice: Option<AdvicePolicy>,
    /// Nodes picked ahead of the text, from the root down; the last one has not been computed. Empty in a target.
    ahead: Vec<NodeId>,
    /// The advice has come to an end of the text.
    ahead_finish: Option<Finish>,
    /// There is no room in the tree for more advice.
    is_stuck: bool,
    /// Text that the coordinator has.
    acked: u32,
    ledger: Ledger,
    finish: Option<Finish>,
    round_done: Option<u32>,
    base_since: Time,
    step_ended: Option<Time>,
    launch: LaunchRule,
    /// Recent share of steps without a guess below the tip, for the cap of [`AdvicePolicy::bare_share`].
    bare_share: f32,
    walks: WalkStats,
    /// The last walk's token was not in the tree, but guesses that arrived during the step are still to be looked at.
    undecided: bool,
    changed: bool,
}

/// The model's answer is not a number; the session is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite;

impl VerifySession {
    /// A session that starts at `now` and whose cache holds the first `cached` tokens of its text. `vocab` bounds every
    /// token id it will accept.
    pub fn new(now: Time, spec: &SessionSpec, vocab: u32, cached: u32) -> Result<Self, WrongTask> {
        let (policy, advice) = match spec.task {
            Task::Commit(policy) => (policy, None),
            Task::Advise(policy, advice) => (policy, Some(advice)),
            Task::Grow { .. } => return Err(WrongTask),
        };
        let replica = Replica::new(spec, vocab, cached);
        // Advice is nobody's text: its scores would be of no use.
        let scoring = match advice {
            None => spec.scoring,
            Some(_) => Scoring::default(),
        };
        // A session may be reopened on a text that is complete already; one more token would be one too many.
        let last = replica.text.last().copied();
        let finish = (replica.len() > spec.stopping.prompt_len)
            .then(|| last.and_then(|token| spec.stopping.check(token, replica.len())))
            .flatten();
        Ok(VerifySession {
            acked: replica.len(),
            ledger: Ledger::new(scoring, spec.stopping.prompt_len, vocab),
            replica,
            policy,
            advice,
            ahead: Vec::new(),
            ahead_finish: None,
            is_stuck: false,
            finish,
            round_done: None,
            base_since: now,
            step_ended: None,
            launch: LaunchRule::default(),
            bare_share: 0.0,
            walks: WalkStats::default(),
            undecided: false,
            changed: finish.is_some(),
        })
    }

    /// The tokens whose keys and values the cache holds once [`poll_cache_ops`](Self::poll_cache_ops) is done.
    pub fn cached_text(&self) -> &[u32] {
        self.replica.cached_text()
    }

    /// The committed text, prompt included.
    pub fn text(&self) -> &[u32] {
        &self.replica.text
    }

    /// The scores that [`VerifySession::handle_step`] wants with its picks.
    pub fn scoring(&self) -> Scoring {
        self.ledger.scoring()
    }

    /// Takes the coordinator's newest state. On an error nothing has changed but possibly the text.
    pub fn handle_update(&mut self, now: Time, update: &ReplicaUpdate) -> Result<(), LinkError> {
        let fresh = self.replica.fresh(update)?;
        if !fresh.is_empty() {
            self.follow(now, fresh);
        }
        self.replica.graft(update)?;
        if self.undecided && self.replica.foreseen() >= self.replica.len() {
            self.undecided = false;
            self.walks.misses -= 1;
            self.walks.hits += 1;
        }
        let told = update.base_len + update.commit.len() as u32;
        self.ledger.picks_acked(told.saturating_sub(self.acked));
        self.acked = self.acked.max(told);
        self.changed |= self.ledger.prompt_acked(update.prompt_scored);
        if update.round_done.is_some() {
            self.round_done = update.round_done;
        }
        Ok(())
    }

    /// The text went on without us: true for a qualifier, whose advice either led there or is void.
    fn follow(&mut self, now: Time, tokens: &[u32]) {
        let committed = self.replica.extend(tokens);
        self.is_stuck = false;
        let led_here = (committed.matched.iter())
            .zip(&self.ahead)
            .all(|((id, _), ahead)| id == ahead)
            && (committed.hit || committed.matched.len() >= self.ahead.len());
        let walked = committed.matched.len().min(self.ahead.len());
        if led_here {
            self.ahead.drain(..walked);
        } else {
            self.ahead.clear();
        }
        if self.ahead.is_empty() || !led_here {
            self.ahead_finish = None;
        }
        if let Some(&last) = self.replica.text.last() {
            self.finish = self.replica.stopping.check(last, self.replica.len());
        }
        self.base_since = now;
        self.changed = true;
    }

    /// What to do now. `room` is how many rows the worker's step has left, `cost` what rows cost it.
    pub fn poll_step(&mut self, now: Time, cost: &CostModel, room: usize) -> Poll {
        self.undecided = false;
        let scored = self
            .ledger
            .plan(&self.replica.text, self.replica.cached, room);
        if let Some(plan) = scored
            && self.finish != Some(Finish::NotFinite)
        {
            return Poll::Step(plan);
        }
        if self.finish.is_some() {
            return Poll::Done;
        }
        if self.replica.len() >= self.replica.allowed_len {
            return Poll::Parked;
        }
        if let Some(plan) = self.replica.prefill(room) {
            return Poll::Step(plan);
        }
        if let Some(advice) = self.advice {
            let full = self.ahead.len() >= usize::from(advice.ahead);
            if full || self.is_stuck || self.ahead_finish.is_some() {
                return Poll::Parked;
            }
        }
        let tip = self.ahead.last().copied();
        let base: Vec<PlannedRow> = (self.ahead.iter())
            .filter(|&&id| !self.replica.is_computed(id))
            .filter_map(|&id| self.replica.row(id))
            .collect();
        let append = if base.is_empty() {
            self.replica.pending().to_vec()
        } else {
            self.replica.text[self.replica.cached as usize..].to_vec()
        };
        let base_rows = append.len() + base.len();
        if base_rows > room {
            // Advice that has to be computed again comes in parts, as a prompt does.
            let rows = base.into_iter().take(room.saturating_sub(append.len()));
            return Poll::Step(StepPlan {
                append,
                tail: TailLogits::Skip,
                rows: rows.collect(),
            });
        }
        let tail = if tip.is_none() {
            TailLogits::Keep
        } else {
            TailLogits::Skip
        };
        let (guesses, gain) = self.choose(tip, base_rows, cost, room);
        if let Some(wait) = self.wait(now, guesses.len(), gain, base_rows, cost) {
            return wait;
        }
        let rows = base
            .into_iter()
            .chain(guesses.iter().filter_map(|&id| self.replica.row(id)))
            .collect();
        Poll::Step(StepPlan { append, tail, rows })
    }

    /// The guesses worth computing below the tip, and how many of them are expected to be accepted.
    fn choose(
        &self,
        tip: Option<NodeId>,
        base_rows: usize,
        cost: &CostModel,
        room: usize,
    ) -> (Vec<NodeId>, f64) {
        let tree = &self.replica.tree;
        let above = f64::from(tree.path_score(tip)).max(1e-9);
        let limit = usize::from(self.policy.rows).min(room.saturating_sub(base_rows));
        let min_path = self.policy.min_path * above as f32;
        let mut guesses = tree.best_below(tip, limit, min_path);
        // The walk ends at max_len: a row there could pick nothing.
        guesses.retain(|&id| {
            tree.get(id)
                .is_some_and(|node| node.position + 1 < self.replica.stopping.max_len)
        });
        let values: Vec<f64> = (guesses.iter())
            .map(|&id| f64::from(tree.path_score(Some(id))) / above)
            .collect();
        let take = match self.policy.launch {
            // The turn-taking strategies verify exactly what they were told to.
            Launch::Round(_) => guesses.len(),
            Launch::AtOnce | Launch::WhenWaitingCosts => cost.best_prefix(base_rows, 1.0, &values),
        };
        guesses.truncate(take);
        (guesses, values[..take].iter().sum())
    }

    fn wait(
        &mut self,
        now: Time,
        guesses: usize,
        gain: f64,
        base_rows: usize,
        cost: &CostModel,
    ) -> Option<Poll> {
        if let (Some(advice), 0) = (self.advice, guesses)
            && self.bare_share > advice.bare_share
        {
            // Not for ever: what keeps it waiting is its own history, which fades here.
            self.bare_share *= 0.9;
            return Some(Poll::Parked);
        }
        match self.policy.launch {
            Launch::AtOnce => None,
            Launch::Round(deadline) => {
                let until = self.base_since + deadline;
                let ready = self.round_done.is_some_and(|len| len >= self.replica.len());
                (!ready && now < until).then_some(Poll::Wait(Some(until)))
            }
            // A step that has a prompt to compute never waits: the first token is worth more than the next few.
            Launch::WhenWaitingCosts if base_rows > 1 => None,
            Launch::WhenWaitingCosts => {
                let step_us = cost.estimate_us(base_rows + guesses);
                match self.launch.decide(now, gain, step_us) {
                    Decision::Go => None,
                    Decision::WaitUntil(until) => Some(Poll::Wait(Some(until))),
                }
            }
        }
    }

    /// What the cache has to do before the next step.
    pub fn poll_cache_ops(&mut self) -> Vec<CacheOp> {
        self.replica.take_ops()
    }

    /// A plan was computed in `took` and ended at `now`; `pick` gives the model's token for one of its rows, with
    /// its score if [`VerifySession::scoring`] wants the picks scored.
    pub fn handle_step(
        &mut self,
        now: Time,
        plan: &StepPlan,
        took: Time,
        mut pick: impl FnMut(RowAt, History<'_>) -> Result<Picked, NotFinite>,
    ) {
        self.replica.computed(plan);
        let tip = self.ahead.last().copied();
        let is_decided = match tip {
            None => plan.tail != TailLogits::Skip,
            Some(tip) => plan.rows.iter().any(|row| row.node == tip),
        };
        // Only the text was caught up with, for which the step had no more room.
        if !is_decided {
            return;
        }
        let len = self.replica.len() + self.ahead.len() as u32;
        let place = |id: Option<NodeId>| match id {
            None => Some(RowAt::Tail),
            Some(id) => (plan.rows.iter().position(|row| row.node == id)).map(RowAt::Row),
        };
        let tree = &self.replica.tree;
        let mut path = tip.map_or_else(Vec::new, |tip| tree.tokens_to(tip));
        let walked = walk(
            tree,
            tip,
            len,
            &self.replica.stopping,
            |id| place(Some(id)).is_some(),
            |id| {
                let at = place(id).expect("the walk asks only for computed rows");
                if let Some(node) = id.filter(|_| id != tip).and_then(|id| tree.get(id)) {
                    path.push(node.token);
                }
                pick(at, self.replica.history(&path))
            },
        );
        let Ok(walked) = walked else {
            self.finish = Some(Finish::NotFinite);
            self.changed = true;
            return;
        };
        let tip_rows = plan
            .rows
            .iter()
            .filter(|row| self.ahead.contains(&row.node))
            .count();
        self.count(now, plan, tip_rows, tip, &walked, took);
        if self.advice.is_some() {
            self.advise(&walked, plan);
        } else {
            self.commit(now, &walked);
        }
        self.changed = true;
    }

    /// A plan with [`TailLogits::All`] was computed: `score` gives the score of the token that follows one of its
    /// rows.
    pub fn handle_scored(
        &mut self,
        plan: &StepPlan,
        mut score: impl FnMut(RowAt, u32) -> Result<Score, NotFinite>,
    ) {
        let first = self.replica.cached as usize;
        self.replica.computed(plan);
        self.changed = true;
        let following = self.replica.text.get(first + 1..).unwrap_or(&[]);
        for (at, &token) in following.iter().take(plan.append.len()).enumerate() {
            match score(RowAt::Appended(at), token) {
                Ok(score) => self.ledger.scored(&score),
                Err(NotFinite) => {
                    self.finish = Some(Finish::NotFinite);
                    return;
                }
            }
        }
    }

    /// Whether the commit in `update` leaves nothing of a step in flight that would be of use: the advice it
    /// continues has been overtaken or contradicted. A target's step is always of use, it makes the commits.
    pub fn obsoletes(&self, plan: &StepPlan, update: &ReplicaUpdate) -> bool {
        let Some(&tip) = self.ahead.last() else {
            return false;
        };
        let Ok(fresh) = self.replica.fresh(update) else {
            return false;
        };
        if fresh.is_empty() || !plan.append.is_empty() {
            return false;
        }
        let tree = &self.replica.tree;
        let advised: Vec<u32> = tree.tokens_to(tip);
        !advised.starts_with(fresh)
    }

    fn commit(&mut self, now: Time, walked: &crate::walk::Walked) {
        let tokens: Vec<u32> = walked.picks.iter().map(|picked| picked.token).collect();
        for picked in &walked.picks {
            self.ledger.picked(picked.score.as_ref());
        }
        let committed = self.replica.extend(&tokens);
        if committed.hit {
            self.walks.hits += 1;
        } else {
            self.walks.misses += 1;
            self.undecided = true;
        }
        self.finish = walked.finish;
        self.base_since = now;
    }

    fn advise(&mut self, walked: &crate::walk::Walked, plan: &StepPlan) {
        let losers: Vec<NodeId> = (plan.rows.iter().map(|row| row.node))
            .filter(|id| !walked.path.contains(id) && !self.ahead.contains(id))
            .collect();
        self.replica.drop_rows(losers);
        let mut hit = true;
        for picked in &walked.picks {
            let parent = self.ahead.last().copied();
            let graft = Graft {
                token: picked.token,
                edge: 0.7,
                owner: 0,
                payload: crate::replica::Row::default(),
            };
            hit = self.replica.tree.child(parent, picked.token).is_some();
            let Some(grafted) = self.replica.tree.graft(parent, graft) else {
                // The tree is full until text is committed. What comes next is the token behind `parent` again, so
                // its row has to be computed again.
                self.is_stuck = true;
                let again = parent.filter(|&id| self.replica.is_computed(id));
                self.replica.drop_rows(again.into_iter().collect());
                break;
            };
            if let Some(row) = self.replica.tree.payload_mut(grafted.id()) {
                row.own.margin = picked.margin;
            }
            self.ahead.push(grafted.id());
        }
        if hit {
            self.walks.hits += 1;
        } else {
            self.walks.misses += 1;
        }
        self.ahead_finish = walked.finish;
    }

    fn count(
        &mut self,
        now: Time,
        plan: &StepPlan,
        tip_rows: usize,
        tip: Option<NodeId>,
        walked: &crate::walk::Walked,
        took: Time,
    ) {
        let guesses = &plan.rows[tip_rows..];
        self.walks.steps += 1;
        self.walks.tokens += walked.picks.len() as u64;
        if guesses.is_empty() && self.policy.rows > 0 {
            self.walks.starved_steps += 1;
            self.walks.starved_us += took.as_micros() as u64;
        }
        let bare = if guesses.is_empty() { 1.0 } else { 0.0 };
        self.bare_share += 0.1 * (bare - self.bare_share);
        let (submitted, accepted) = self.main_chain(guesses, tip, &walked.path);
        self.walks.chain_submitted += submitted;
        self.walks.chain_accepted += accepted;
        self.walks.guesses_submitted += guesses.len() as u64;
        self.walks.guesses_accepted += walked.path.len() as u64;
        let since = self.step_ended.unwrap_or(self.base_since);
        self.launch
            .stepped(walked.picks.len(), now.saturating_sub(since));
        self.step_ended = Some(now);
    }

    /// Length of the best path through the submitted guesses, and how much of it was accepted.
    fn main_chain(
        &self,
        guesses: &[PlannedRow],
        tip: Option<NodeId>,
        accepted: &[NodeId],
    ) -> (u64, u64) {
        let mut chain: Vec<NodeId> = Vec::new();
        loop {
            let at = chain.last().copied().or(tip);
            let next = guesses
                .iter()
                .filter(|row| row.parent == at)
                .map(|row| row.node)
                .max_by(|&a, &b| {
                    let score = |id| self.replica.tree.path_score(Some(id));
                    score(a).total_cmp(&score(b)).then(b.cmp(&a))
                });
            match next {
                Some(next) => chain.push(next),
                None => break,
            }
        }
        let common = chain.iter().zip(accepted).take_while(|(a, b)| a == b);
        (chain.len() as u64, common.count() as u64)
    }

    /// The newest report, if anything changed since the last one.
    pub fn poll_report(&mut self, activity: Activity) -> Option<VerifyReport> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let tree = &self.replica.tree;
        let advised = self.ahead.iter().filter_map(|&id| tree.get(id));
        let text = &self.replica.text[self.acked as usize..];
        let mut picks = text.to_vec();
        let mut margins = vec![0; picks.len()];
        for node in advised {
            picks.push(node.token);
            margins.push((node.payload.own.margin * 16.0) as u8);
        }
        let scores = self.ledger.picks(picks.len());
        Some(VerifyReport {
            base_len: self.acked,
            picks,
            margins,
            scores,
            prompt_scores: self.ledger.prompt(),
            finish: self.finish,
            activity,
            walks: self.walks,
        })
    }
}

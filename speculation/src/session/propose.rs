//! The duty to propose: grows the tree best-first, whatever the target is doing.

use alloc::vec::Vec;

use decode::{Answer, Guess, NodeId, Rule, StepPlan};

use super::account::MissAccount;
use super::outline::Outline;
use super::{Capacity, rules};
use crate::agreement::{Pace, Progress};
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
use crate::strategy::{Chosen, Frontier, Growth, Round, Strategy};
use crate::tree::{Graft, Grafted};

/// What a proposer keeps about a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Grown {
    /// Set when it made the guess itself.
    pub(super) guess: Option<Feature>,
    origin: Origin,
    pub(super) expanded: bool,
    /// The step that made it, counted from the first.
    pub(super) made: u32,
    spare: Spare,
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

/// What the model ranked behind a node, as long as the strategy has not had all of it made guesses.
#[derive(Clone, Debug, Default)]
struct Spare {
    ranked: Vec<Guess>,
    made: usize,
}

/// After this long, in microseconds, an account of its time is worth a message of its own.
const REPORT_US: u64 = 50_000;

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Proposer {
    pub(super) replica: Replica<Grown>,
    strategy: Chosen,
    capacity: Capacity,
    pub(super) rule: Rule,
    pub(super) growth: Growth,
    shard: Shard,
    source: Source,
    outlook: Outlook,
    root_expanded: bool,
    /// Behind the end of the text.
    root_spare: Spare,
    /// There was one anywhere.
    has_spares: bool,
    pub(super) outbound: Outbound,
    /// Steps since the last commit.
    round_steps: u16,
    /// Levels of the tree that were computed before the text got there.
    levels_before: u16,
    /// There was nothing left to grow since the last commit.
    is_over: bool,
    progress: Progress,
    pace: Pace,
    /// Of a chain in this round.
    length: u16,
    /// The tree when it was looked at last.
    outline: Outline,
    /// Its text, its changes and this draft's part of it by then; `None`: guesses have changed in another way.
    looked_at: Option<(u32, u64, Shard)>,
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
            growth: growth.within(capacity.rows),
            capacity,
            rule: strategy.settings.rule,
            strategy,
            shard: spec.shard,
            source: capacity.source,
            outlook: Outlook::default(),
            root_expanded: false,
            root_spare: Spare::default(),
            has_spares: false,
            outbound: Outbound::default(),
            round_steps: 0,
            levels_before: 0,
            is_over: false,
            progress: Progress::default(),
            pace: Pace::default(),
            length: 0,
            outline: Outline::default(),
            looked_at: None,
            reported_round: None,
            reported_any: false,
            reported_life_us: 0,
            offered: Offered::default(),
            steps: 0,
            misses: MissAccount::default(),
        }
    }

    /// How it grows now.
    fn strategy(&self) -> &dyn Strategy {
        self.strategy.within(self.outlook.mode)
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
            self.learn_agreement(fresh, learned);
            let mut committed = self.replica.extend(fresh);
            self.misses.committed(&committed, &self.replica);
            self.outbound.committed(&self.replica.tree);
            let end = committed.matched.pop().filter(|_| committed.hit);
            let end = end.map(|(_, node)| node.payload.own).unwrap_or_default();
            self.root_expanded = end.expanded;
            self.root_spare = end.spare;
            self.round_steps = 0;
            self.levels_before = u16::from(end.expanded);
            self.is_over = false;
        }
        for (node, edge) in self.replica.graft(update)? {
            self.outbound.received(node, edge);
        }
        if let Some(shard) = update.shard {
            self.shard = shard;
        }
        if update.outlook.accepted.is_some() {
            let before = core::mem::replace(&mut self.outlook, update.outlook);
            if before.mode != self.outlook.mode {
                self.growth = self.strategy().growth().within(self.capacity.rows);
            }
        }
        self.measure(learned);
        self.make_spares(learned);
        Ok(())
    }

    /// Learns from tokens that are about to be committed how often the first guess was right, and what the round earned.
    fn learn_agreement(&mut self, tokens: &[u32], learned: &mut Learned) {
        let tree = &self.replica.tree;
        let mut at = None;
        for &token in tokens {
            let best = tree.best_child(at).and_then(|id| tree.get(id));
            let Some(best) = best else { break };
            let is_right = best.token == token;
            (learned.agreement).guessed(if is_right { 1.0 } else { 0.0 });
            at = match tree.child(at, token) {
                Some(child) => Some(child),
                None => break,
            };
        }
        if let Some(ratio) = self.pace.ratio {
            let steps = ratio + f32::from(self.round_steps);
            self.progress.earned(tokens.len(), steps);
        }
    }

    fn measure(&mut self, learned: &Learned) {
        let step_us = learned.cost.measured_us(usize::from(self.growth.width));
        self.pace = (self.progress).pace(&learned.agreement, &self.outlook, step_us);
        if self.round_steps == 0 {
            self.length = self.strategy().length(&self.pace).max(1);
        }
    }

    /// Looks at the tree as the strategy sees it.
    fn look(&mut self) {
        let tree = &self.replica.tree;
        let now = Some((self.replica.len(), tree.change_count(), self.shard));
        if core::mem::replace(&mut self.looked_at, now) == now {
            return;
        }
        let Shard { index, count } = self.shard;
        self.outline.look(
            &self.replica.tree,
            |node| node.owner % count.max(1) == index,
            |node| match node.payload.own.guess {
                Some(_) => node.payload.own.origin.q.to_f32(),
                None => node.edge(),
            },
        );
    }

    fn round_now(&self) -> Round<'_> {
        Round {
            steps: self.round_steps,
            levels: self.round_steps.saturating_add(self.levels_before),
            is_over: self.is_over,
            outlook: self.outlook,
            main_chain: &self.outline.main_chain,
            pace: self.pace,
            length: self.length,
        }
    }

    pub(super) fn poll_step(&mut self, room: usize, learned: &Learned) -> Poll {
        self.measure(learned);
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
        self.look();
        let frontier = if self.strategy().pauses(&self.round_now()) {
            Vec::new()
        } else {
            self.frontier(room)
        };
        if frontier.is_empty() && self.root_expanded {
            return match self.growth.round {
                // There is nothing left to grow: the round is over, however few steps it had.
                Some(_) => {
                    self.is_over = true;
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
            choice: self.strategy().choice(),
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
        let round = self.round_now();
        if tree.len() >= usize::from(self.growth.nodes) && self.root_expanded {
            return Vec::new();
        }
        let last = (self.replica.stopping.max_len - 1)
            .min(self.replica.len() + u32::from(self.growth.depth) - 1);
        let mut candidates: Vec<(f32, NodeId)> = (self.outline.places.iter())
            .filter(|&&(id, _)| {
                tree.get(id).is_some_and(|node| {
                    !node.payload.own.expanded
                        && node.position < last
                        && !self.replica.stopping.stop_ids.contains(&node.token)
                })
            })
            .filter_map(|&(id, place)| {
                let worth = self.strategy().worth(&place, &round)?;
                (worth >= self.growth.min_path).then_some((worth, id))
            })
            .collect();
        let base_rows = if self.root_expanded { 0 } else { 1 };
        let width = usize::from(self.growth.width)
            .saturating_sub(base_rows)
            .min(room);
        let better = |(a, a_id): &(f32, NodeId), (b, b_id): &(f32, NodeId)| {
            b.total_cmp(a).then(a_id.cmp(b_id))
        };
        if width < candidates.len() {
            candidates.select_nth_unstable_by(width, better);
            candidates.truncate(width);
        }
        candidates.sort_unstable_by(better);
        let worth: Vec<f64> = candidates.iter().map(|(p, _)| f64::from(*p)).collect();
        candidates.truncate(self.strategy().expands(&worth, &round));
        candidates
    }

    /// The nodes and those of their ancestors that the cache lacks, parents first, at most `room`, with what each row is
    /// worth.
    fn with_ancestors(&self, nodes: &[(f32, NodeId)], room: usize) -> (Vec<NodeId>, Vec<f64>) {
        let tree = &self.replica.tree;
        let mut rows: Vec<NodeId> = Vec::new();
        let mut values = Vec::new();
        for &(worth, id) in nodes {
            let mut missing: Vec<NodeId> = tree
                .ancestors(id)
                .take_while(|(id, node)| !node.payload.computed && !rows.contains(id))
                .map(|(id, _)| id)
                .collect();
            // What does not fit is cut off at the bottom: a branch deeper than the room still advances by a few rows.
            missing.reverse();
            missing.truncate(room - rows.len());
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
        self.look();
        self.round_steps = self.round_steps.saturating_add(1);
        self.steps = self.steps.saturating_add(1);
        let calibration = learned.calibration.of(self.source);
        // A model whose answer is not a number gives no guesses; the target continues without them.
        let mut answers = answers.iter();
        if !plan.asks.is_empty() {
            self.root_expanded = true;
            let owner = self.root_owner();
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
        self.measure(learned);
        self.make_spares(learned);
        if self.growth.round.is_some() && self.root_expanded {
            // Said with the guesses of this step: the target waits for it.
            self.look();
            self.is_over |= self.frontier(usize::MAX).is_empty();
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

    /// Makes guesses of what the model ranked behind a node, as many as the strategy wants now.
    fn grow(
        &mut self,
        parent: Option<NodeId>,
        owner: u8,
        guesses: &[Guess],
        calibration: &Calibration,
    ) {
        let place = self.outline.place(parent);
        let wanted = (self.strategy()).children(&place, guesses, &self.round_now());
        let wanted = wanted.min(guesses.len());
        self.make(parent, owner, &guesses[..wanted], 0, calibration);
        let spare = Spare {
            ranked: if wanted < guesses.len() {
                guesses.to_vec()
            } else {
                Vec::new()
            },
            made: wanted,
        };
        self.set_spare(parent, spare);
    }

    fn set_spare(&mut self, parent: Option<NodeId>, spare: Spare) {
        self.has_spares |= !spare.ranked.is_empty();
        match parent {
            None => self.root_spare = spare,
            Some(id) => {
                if let Some(held) = self.replica.tree.payload_mut(id) {
                    held.own.spare = spare;
                }
            }
        }
    }

    /// Makes guesses that were ranked before and are wanted only now.
    fn make_spares(&mut self, learned: &mut Learned) {
        if !self.has_spares {
            return;
        }
        let tree = &self.replica.tree;
        let has_spare = |spare: &Spare| spare.made < spare.ranked.len();
        let is_any = has_spare(&self.root_spare)
            || (tree.iter()).any(|(_, node)| has_spare(&node.payload.own.spare));
        if !is_any {
            return;
        }
        self.look();
        let (tree, round) = (&self.replica.tree, self.round_now());
        let mut wanted = Vec::new();
        let mut want = |parent: Option<NodeId>, place: &Frontier, spare: &Spare, owner: u8| {
            if has_spare(spare) {
                let most = self.strategy().children(place, &spare.ranked, &round);
                let most = most.min(spare.ranked.len());
                if most > spare.made {
                    wanted.push((parent, owner, most));
                }
            }
        };
        want(None, &Frontier::TEXT, &self.root_spare, self.root_owner());
        for (id, place) in &self.outline.places {
            if let Some(node) = tree.get(*id) {
                want(Some(*id), place, &node.payload.own.spare, node.owner);
            }
        }
        let calibration = learned.calibration.of(self.source);
        for (parent, owner, most) in wanted {
            let spare = match parent {
                None => Some(&mut self.root_spare),
                Some(id) => (self.replica.tree.payload_mut(id)).map(|held| &mut held.own.spare),
            };
            let Some(spare) = spare else { continue };
            let spare = core::mem::take(spare);
            self.make(
                parent,
                owner,
                &spare.ranked[..most],
                spare.made,
                calibration,
            );
            self.set_spare(
                parent,
                Spare {
                    made: most,
                    ..spare
                },
            );
        }
    }

    fn root_owner(&self) -> u8 {
        (self.replica.len() % u32::from(self.shard.count.max(1))) as u8
    }

    /// Makes guesses of ranked tokens, those after the first `done`.
    fn make(
        &mut self,
        parent: Option<NodeId>,
        owner: u8,
        guesses: &[Guess],
        done: usize,
        calibration: &Calibration,
    ) {
        let tree = &mut self.replica.tree;
        let above = tree.path_score(parent);
        let (rule, made) = (self.rule, self.steps);
        let mut left_out = Vec::new();
        for (rank, guess) in guesses.iter().enumerate().skip(done) {
            let feature = Feature::new(rank, guess.weight);
            let edge = calibration.probability(feature);
            let is_worthless = above * edge < self.growth.min_path;
            if is_worthless || tree.len() >= usize::from(self.growth.nodes) {
                let cause = match is_worthless {
                    true => MissCause::Pruned,
                    false => MissCause::Full,
                };
                if left_out.is_empty() {
                    left_out.reserve(guesses.len() - rank);
                }
                left_out.push((guess.token, cause));
                continue;
            }
            let origin = Origin {
                source: self.source,
                q: Prob16::from_f32(guess.q),
                margin: Margin::from_f32(guess.margin),
            };
            let own = Grown {
                guess: Some(feature),
                origin,
                expanded: false,
                made,
                spare: Spare::default(),
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
                    held.own.guess = Some(feature);
                    held.own.origin = origin;
                    held.own.made = made;
                    self.looked_at = None;
                }
            }
        }
        self.misses.left_out(parent, left_out);
    }

    fn is_round_done(&mut self) -> bool {
        self.look();
        self.is_over || self.strategy().is_round_done(&self.round_now())
    }

    pub(super) fn poll_report(&mut self, activity: Activity) -> Option<Report> {
        let (mut nodes, _) = self.outbound.diff(
            &self.replica.tree,
            self.growth.min_path,
            MAX_NODES_PER_UPDATE,
            Some(|held: &Held<Grown>| held.own.origin),
        );
        self.add_ratings(&mut nodes);
        let round_done =
            (self.growth.round.is_some() && self.is_round_done()).then(|| self.replica.len());
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

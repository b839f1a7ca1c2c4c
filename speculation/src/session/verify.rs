//! The duties to advise and to commit: walks the tree with the tokens the model itself picks. A target's picks are the
//! text; a qualifier's picks are advice, which it follows ahead of the target and takes back when the target disagrees.

mod advise;
mod count;
mod journal;
mod trail;
mod turns;

use alloc::vec::Vec;

use decode::{
    Answer, Ask, EndAnswer, EndAsk, History, Judgement, NodeId, NotFinite, Row, Rule, StepPlan,
    Surprisal,
};

use super::Capacity;
use super::find::{Finder, graft};
use super::heads::{self, HeadGuess, Maker};
use crate::Time;
use crate::allocation::{Choice, Share, Work};
use crate::by_source::{BySource, Sources};
use crate::bypass::{Mode, Way};
use crate::calibration::Feature;
use crate::duty::Duty;
use crate::journal::Journal;
use crate::learned::{Evaluated, Learned};
use crate::logprobs::TargetScores;
use crate::message::{
    Activity, Finish, Margin, Outlook, ReplicaUpdate, Report, Scoring, SessionSpec,
};
use crate::numbering::PeerError;
use crate::replica::{Poll, Replica};
use crate::stats::WalkStats;
use crate::strategy::{Advice, Chosen, NextStep, Shape, Verification};
use crate::wait::{Start, Waiting, Waits};
use crate::walk::{Walked, walk};
pub use trail::{Guesser, Trail};

/// What a verifier keeps about a node.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Advised {
    margin: f32,
    /// What its own sources know of it.
    pub(super) guessed: BySource<Option<Feature>>,
    /// Where it came from.
    pub(super) sources: Sources,
    /// How surprising its own model finds it, under the rule `fuzzy`.
    surprisal: Surprisal,
    /// Set when a head beside the model guessed it.
    pub(super) head: Option<HeadGuess>,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) replica: Replica<Advised>,
    pub(super) duty: Duty,
    strategy: Chosen,
    pub(super) rule: Rule,
    bounds: Verification,
    /// Of a session that advises.
    advice: Option<Advice>,
    /// Nodes picked ahead of the text, from the root down; the last one has not been computed. Empty in a target.
    ahead: Vec<NodeId>,
    /// The advice has come to an end of the text.
    ahead_finish: Option<Finish>,
    /// There is no room in the tree for more advice.
    is_stuck: bool,
    /// Text that the coordinator has.
    acked: u32,
    pub(super) scores: TargetScores,
    finder: Finder,
    finish: Option<Finish>,
    round_done: Option<u32>,
    /// The text for which a walk was begun last.
    begun: Option<u32>,
    base_since: Time,
    step_ended: Option<Time>,
    waiting: Option<Waiting>,
    is_after_miss: bool,
    outlook: Outlook,
    /// Recent share of steps without a guess below the tip, for the cap of [`Advice::bare_share`].
    bare_share: f32,
    walks: WalkStats,
    trail: Trail,
    journal: Option<Journal>,
    offered: Offered,
    /// Which guesses are in the step that was offered last.
    way: Way,
    /// The target makes no use of advice now.
    is_told_to_rest: bool,
    /// Drafts or qualifiers of the session compute on the same device.
    pub(super) is_shared: bool,
    /// What the step that is offered asks where its walk ends.
    end: EndAsk,
    /// What the heads cost whose guesses the next step can accept, as a share of a step.
    heads_share: Option<f32>,
    /// The last walk's token was not in the tree, but guesses that arrived during the step are still to be looked at.
    undecided: bool,
    changed: bool,
}

/// The work that was offered last, as it is planned if it is taken.
#[derive(Debug, Default)]
enum Offered {
    #[default]
    Nothing,
    /// Tokens of the prompt that are to be scored.
    Scores,
    /// Text that the cache lacks.
    Prompt,
    /// A walk from the end of the text or from the tip.
    Walk {
        /// Rows of text.
        appended: usize,
        /// Nodes ahead of the text that the cache lacks.
        base: Vec<NodeId>,
        guesses: Vec<NodeId>,
    },
}

/// Rows without which nothing can be picked.
fn part(rows: usize) -> Work {
    Work {
        base: rows,
        ..Work::default()
    }
}

/// Weight of the newest step in the outlook.
const NEWEST: f32 = 0.1;

impl Verifier {
    pub(super) fn new(
        now: Time,
        spec: &SessionSpec,
        duty: Duty,
        strategy: Chosen,
        capacity: Capacity,
        cached: u32,
    ) -> Self {
        let mut bounds = strategy.verification(duty);
        let advice = match duty {
            // What it has computed ahead takes rows of the cache too.
            Duty::Advise => {
                let half = capacity.rows / 2;
                bounds.rows = bounds.rows.min(half);
                let advice = strategy.advice();
                Some(Advice {
                    ahead: advice.ahead.min(half),
                    ..advice
                })
            }
            Duty::Propose | Duty::Commit => {
                bounds.rows = bounds.rows.min(capacity.rows);
                None
            }
        };
        let replica = Replica::new(spec, capacity.vocab, cached);
        // Advice is not text: its scores would be of no use.
        let scoring = match advice {
            None => spec.scoring,
            Some(_) => Scoring::default(),
        };
        // A session may be reopened on a text that is complete already; one more token would be one too many.
        let last = replica.text.last().copied();
        let finish = (replica.len() > spec.stopping.prompt_len)
            .then(|| last.and_then(|token| spec.stopping.check(token, replica.len())))
            .flatten();
        Verifier {
            acked: replica.len(),
            scores: TargetScores::new(scoring, spec.stopping.prompt_len, capacity.vocab),
            finder: Finder::new(duty, &strategy, spec.history),
            replica,
            duty,
            rule: strategy.settings.rule,
            strategy,
            bounds,
            advice,
            ahead: Vec::new(),
            ahead_finish: None,
            is_stuck: false,
            finish,
            round_done: None,
            begun: None,
            base_since: now,
            step_ended: None,
            waiting: None,
            is_after_miss: true,
            outlook: Outlook::default(),
            bare_share: 0.0,
            walks: WalkStats::default(),
            trail: Trail::default(),
            journal: Self::new_journal(now, spec, duty),
            offered: Offered::Nothing,
            way: Way::default(),
            is_told_to_rest: false,
            is_shared: spec.is_shared,
            end: EndAsk::default(),
            heads_share: None,
            undecided: false,
            changed: finish.is_some(),
        }
    }

    pub(super) fn handle_update(
        &mut self,
        now: Time,
        update: &ReplicaUpdate,
        learned: &mut Learned,
    ) -> Result<(), PeerError> {
        let fresh = self.replica.fresh(update)?;
        if !fresh.is_empty() {
            self.follow(now, fresh);
        }
        let walks = &mut self.walks;
        let is_target = self.advice.is_none();
        self.replica.graft_noting(update, |own, source| {
            if is_target {
                own.came_from(source, walks);
            }
        })?;
        self.note_guesses();
        if update.outlook.accepted.is_some() {
            // A target decides that itself.
            self.is_told_to_rest = self.advice.is_some() && update.outlook.mode != Mode::Speculate;
        }
        if self.undecided && self.replica.foreseen() >= self.replica.len() {
            self.undecided = false;
            self.is_after_miss = false;
            self.walks.misses -= 1;
            self.walks.hits += 1;
            self.walks.sources[self.replica.foreseen_by().0].hits += 1;
            self.note_late();
        }
        let confirmed = update.base_len + update.commit.len() as u32;
        self.scores
            .picks_acked(confirmed.saturating_sub(self.acked));
        self.acked = self.acked.max(confirmed);
        self.changed |= self.scores.prompt_acked(update.prompt_scored);
        if let Some(len) = update.round_done {
            // A round that the step in flight did not wait for says little of how long rounds take.
            if let Some(steps) = self.strategy.within(self.outlook.mode).growth().round
                && len == self.replica.len()
                && self.round_done < Some(len)
                && self.begun < Some(len)
            {
                let took = now.saturating_sub(self.base_since);
                learned.waits.round_took(steps, took);
            }
            self.round_done = Some(len);
        }
        Ok(())
    }

    /// The target has extended the text: the advice of this session either led there or is void.
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

    /// Grafts what the session finds itself, once for each text.
    fn look_up(&mut self, learned: &mut Learned) {
        let before = History {
            text: &self.replica.text,
            path: &[],
            prompt_len: self.replica.stopping.prompt_len,
        };
        let found = (self.finder).propose(self.way, before, &mut learned.history);
        for (source, proposal) in found {
            let calibration = learned.calibration.of(source);
            let (replica, walks) = (&mut self.replica, &mut self.walks);
            graft(replica, source, &proposal, calibration, walks);
        }
    }

    /// The session ends: what its text has become may be of use to others.
    pub(super) fn handle_closed(&mut self, learned: &mut Learned) {
        let is_more = self.replica.len() > self.replica.stopping.prompt_len;
        if is_more && self.finish != Some(Finish::NotFinite) {
            (self.finder).record(&self.replica.text, &mut learned.history);
        }
    }

    pub(super) fn poll_step(&mut self, now: Time, room: usize, learned: &mut Learned) -> Poll {
        self.undecided = false;
        if self.way(learned) != Way::Plain {
            self.finder.index(&self.replica.text);
        }
        self.offered = Offered::Nothing;
        let scored = self
            .scores
            .plan(&self.replica.text, self.replica.cached, room);
        if let Some(plan) = scored
            && self.finish != Some(Finish::NotFinite)
        {
            self.offered = Offered::Scores;
            return Poll::Work(part(plan.len()));
        }
        if self.finish.is_some() {
            return Poll::Done;
        }
        if self.is_out_of_credit() || self.is_told_to_rest {
            return Poll::Parked;
        }
        if self.replica.lags(room) {
            self.offered = Offered::Prompt;
            return Poll::Work(part(room));
        }
        if self.is_far_enough() {
            return Poll::Parked;
        }
        if self.advice.is_some() && self.is_before_turns() {
            // Its turns begin behind the target's first token; until then it has only the prompt to compute.
            let rows = self.replica.text.len() - self.replica.cached as usize;
            if rows == 0 {
                return Poll::Parked;
            }
            self.offered = Offered::Prompt;
            return Poll::Work(part(rows));
        }
        let tip = self.ahead.last().copied();
        // What was advised before only has to be in the cache; the walk begins at the tip.
        let base: Vec<NodeId> = (self.ahead.iter().copied())
            .filter(|&id| !self.replica.is_computed(id))
            .collect();
        let appended = if base.is_empty() {
            self.replica.pending().len()
        } else {
            self.replica.text.len() - self.replica.cached as usize
        };
        let base_rows = appended + base.len();
        if base_rows > room {
            // Advice that has to be computed again comes in parts, as a prompt does.
            self.offered = Offered::Walk {
                appended,
                base,
                guesses: Vec::new(),
            };
            return Poll::Work(part(room));
        }
        self.way = self.way(learned);
        let has_history = self.finder.has_history(&learned.history);
        let (guesses, values) = if self.way == Way::Plain && !has_history {
            (Vec::new(), Vec::new())
        } else {
            self.look_up(learned);
            self.note_guesses();
            self.choose(tip, base_rows, room)
        };
        self.note_room(room - base_rows);
        self.end = self.end_ask(learned);
        let choice = self.strategy.choice();
        let taken = match choice {
            Choice::All => values.len(),
            Choice::WhileTheyPay => learned.cost.best_prefix(base_rows, 1.0, &values),
        };
        let next = NextStep {
            duty: self.duty,
            now,
            base_since: self.base_since,
            is_round_done: self.round_done.is_some_and(|len| len >= self.replica.len()),
            is_after_miss: self.is_after_miss,
            base_rows,
            guesses: taken,
            held: self.replica.tree.len(),
            gain: values[..taken].iter().sum(),
            open: self.open(&guesses, &values),
            step_us: learned.cost.estimate_us(base_rows + taken),
            round: self.strategy.within(self.outlook.mode).growth().round,
        };
        let awaited = self.awaits_others(&next, &guesses);
        self.offered = Offered::Walk {
            appended,
            base,
            guesses,
        };
        let work = Work {
            base: base_rows,
            base_value: 1.0,
            values,
            choice,
        };
        let is_alone = self.strategy.shape(self.duty, &self.outlook) == Shape::Nothing;
        if !self.way.has_others() || is_alone {
            // There is nobody to wait for.
            return Poll::Work(work);
        }
        if let (Some(advice), 0) = (self.advice, taken)
            && self.bare_share > advice.bare_share
        {
            // Not forever: the share that keeps it waiting decays here.
            self.bare_share *= 0.9;
            return Poll::Parked;
        }
        if let Some(until) = awaited {
            return Poll::Wait(Some(until), None);
        }
        let mut waits = Waits {
            model: &mut learned.waits,
            waiting: &mut self.waiting,
        };
        match (self.strategy.within(self.outlook.mode)).starts(&next, &mut waits) {
            Start::Now => Poll::Work(work),
            Start::WaitUntil(until) => Poll::Wait(Some(until), None),
            Start::WaitAlone(until) => Poll::Wait(Some(until), Some(work)),
        }
    }

    /// The plan of this share of the work that was offered last.
    pub(super) fn plan_step(&mut self, share: Share) -> StepPlan {
        match core::mem::take(&mut self.offered) {
            Offered::Nothing => StepPlan::default(),
            Offered::Scores => (self.scores)
                .plan(&self.replica.text, self.replica.cached, share.base)
                .unwrap_or_default(),
            Offered::Prompt => self.replica.prefill(share.base),
            Offered::Walk {
                appended,
                base,
                guesses,
            } => {
                self.begun = Some(self.replica.len());
                self.plan_walk(appended, &base, &guesses, share)
            }
        }
    }

    fn plan_walk(
        &self,
        appended: usize,
        base: &[NodeId],
        guesses: &[NodeId],
        share: Share,
    ) -> StepPlan {
        let row = |&id: &NodeId, ask| self.replica.row(id, ask);
        let append = self.replica.prefill(appended.min(share.base)).append;
        if share.base < appended + base.len() {
            let rows = base.iter().take(share.base - append.len());
            return StepPlan {
                rows: rows.filter_map(|id| row(id, Ask::Nothing)).collect(),
                append,
                ..StepPlan::default()
            };
        }
        let score = self.pick_score();
        let guesses = &guesses[..share.guesses.min(guesses.len())];
        let mut judgements: Vec<Judgement> = Vec::new();
        let mut pick = |id: Option<NodeId>| match self.judgement(id, guesses) {
            None => Ask::Pick { score },
            Some(by) => {
                judgements.push(by);
                // There are fewer rows in a step than that.
                let judgement = (judgements.len() - 1) as u16;
                Ask::Judge { judgement, score }
            }
        };
        let tip = self.ahead.last().copied();
        let asks = match tip {
            None => alloc::vec![pick(None)],
            Some(_) => Vec::new(),
        };
        let mut rows: Vec<Row> = Vec::with_capacity(base.len() + share.guesses);
        for &id in base {
            let ask = if Some(id) == tip {
                pick(Some(id))
            } else {
                Ask::Nothing
            };
            rows.extend(row(&id, ask));
        }
        for id in guesses {
            rows.extend(row(id, pick(Some(*id))));
        }
        let mut end = self.end.clone();
        if end.heads > 0 {
            let asked: Vec<Option<NodeId>> = (core::iter::once(None))
                .chain(guesses.iter().map(|&id| Some(id)))
                .collect();
            end.known = heads::known(&self.replica, &asked);
        }
        StepPlan {
            append,
            asks,
            rows,
            judgements,
            end,
        }
    }

    /// What is asked where the next walk ends. Only a target is, whose walk begins at the end of the text.
    fn end_ask(&self, learned: &mut Learned) -> EndAsk {
        if self.duty != Duty::Commit || self.way == Way::Plain {
            return EndAsk::default();
        }
        let bounds = self.strategy.heads();
        let tokens = self.outlook.accepted.unwrap_or(0.0) + 1.0;
        let asks = bounds.nodes > 0 && learned.heads.pays(tokens);
        EndAsk {
            heads: if asks { bounds.guesses } else { 0 },
            known: Vec::new(),
            forecast: self.strategy.forecast(),
        }
    }

    fn way(&self, learned: &Learned) -> Way {
        if self.may_rest() {
            learned.bypass.way()
        } else {
            Way::Together
        }
    }

    /// Whether it goes on without guesses where that is faster.
    pub(super) fn may_rest(&self) -> bool {
        self.duty == Duty::Commit && self.strategy.choice() == Choice::WhileTheyPay
    }

    /// The guesses that could be computed below the tip, and the probability of each.
    fn choose(
        &self,
        tip: Option<NodeId>,
        base_rows: usize,
        room: usize,
    ) -> (Vec<NodeId>, Vec<f64>) {
        let tree = &self.replica.tree;
        let above = f64::from(tree.path_score(tip)).max(1e-9);
        let limit = match self.is_before_turns() {
            true => 0,
            false => usize::from(self.bounds.rows).min(room.saturating_sub(base_rows)),
        };
        let min_path = self.bounds.min_path * above as f32;
        let mut guesses = match self.strategy.shape(self.duty, &self.outlook) {
            Shape::Tree => tree.best_below(tip, limit, min_path),
            Shape::Chain => tree.chain_below(tip, limit, usize::MAX),
            Shape::ToBranch => match tree.chain_below(tip, limit, 1) {
                chain if chain.is_empty() => tree.best_children(tip, limit),
                chain => chain,
            },
            Shape::Nothing => Vec::new(),
        };
        // The walk ends at max_len: a row there could pick nothing.
        guesses.retain(|&id| {
            tree.get(id)
                .is_some_and(|node| node.position + 1 < self.replica.stopping.max_len)
        });
        let mut values: Vec<f64> = (guesses.iter())
            .map(|&id| f64::from(tree.path_score(Some(id))) / above)
            .collect();
        let most = self.strategy.submits(&values).min(guesses.len());
        guesses.truncate(most);
        values.truncate(most);
        (guesses, values)
    }

    pub(super) fn handle_step(
        &mut self,
        now: Time,
        took: Time,
        plan: &StepPlan,
        answers: &[Answer],
        learned: &mut Learned,
    ) {
        self.replica.computed(plan);
        if let Some(Ask::Score { .. }) = plan.asks.first() {
            return self.handle_scores(answers);
        }
        let tip = self.ahead.last().copied();
        let is_decided = match tip {
            None => !plan.asks.is_empty(),
            Some(tip) => (plan.rows.iter()).any(|row| row.node == tip && row.ask != Ask::Nothing),
        };
        // The step had room only to catch up with the text.
        if !is_decided {
            return;
        }
        let len = self.replica.len() + self.ahead.len() as u32;
        let tree = &self.replica.tree;
        let asked: Vec<Option<NodeId>> = (plan.asks.iter().map(|_| None))
            .chain(
                (plan.rows.iter())
                    .filter(|row| row.ask != Ask::Nothing)
                    .map(|row| Some(row.node)),
            )
            .collect();
        let place = |id: Option<NodeId>| asked.iter().position(|&at| at == id);
        let walked = walk(
            tree,
            tip,
            len,
            &self.replica.stopping,
            |id| place(Some(id)).is_some(),
            |id| match place(id).and_then(|at| answers.get(at)) {
                Some(Answer::Pick(pick)) => Ok(pick.clone()),
                // A backend skips only what no walk reaches.
                _ => Err(NotFinite),
            },
        );
        let tip_rows = (plan.rows.iter())
            .filter(|row| self.ahead.contains(&row.node))
            .count();
        if !walked.picks.is_empty() {
            self.count(now, &plan.rows[tip_rows..], tip, &walked, took, learned);
        }
        if self.advice.is_some() {
            self.advise(&walked, plan);
        } else {
            self.outlook.mode = self.way(learned).mode();
            let step_us = learned.cost.measured_us(plan.len());
            self.outlook.step_us = step_us.map(|step_us| step_us as u32);
            self.judge_heads(&walked, learned);
            self.note_step(now, took, &plan.rows, &walked);
            self.commit(now, &walked, learned);
            let ended_at = place(walked.path.last().copied());
            let end =
                (walked.picks.last()).and_then(|pick| heads::at_end(answers, ended_at, pick.token));
            let evaluated = self.take_end(end, learned);
            self.note_forecast();
            if self.strategy.heads().nodes > 0 {
                let expected = learned.cost.estimate_us(plan.len());
                let times = took.as_micros() as f64 / expected.max(1.0);
                learned.heads.took(times as f32, evaluated);
            }
        }
        self.changed = true;
    }

    /// What the walk says about the heads that were evaluated in the step before.
    fn judge_heads(&mut self, walked: &Walked, learned: &mut Learned) {
        if let Some(share) = self.heads_share.take() {
            let own = (walked
                .path
                .iter()
                .filter_map(|&id| self.replica.tree.get(id)))
            .filter(|node| (node.payload.own.head).is_some_and(|guess| guess.maker == Maker::Head));
            learned.heads.observe(share, own.count());
        }
    }

    /// Takes what was answered where the walk ended; the text ends with the pick there.
    fn take_end(&mut self, end: Option<&EndAnswer>, learned: &mut Learned) -> Evaluated {
        self.outlook.forecast = end.and_then(|end| end.forecast);
        let Some(guesses) = end.and_then(|end| end.heads.as_ref()) else {
            return Evaluated::No;
        };
        self.walks.heads_steps += 1;
        if self.finish.is_none() {
            let bounds = self.strategy.heads();
            heads::graft(&mut self.replica, guesses, bounds, learned, &mut self.walks);
            self.heads_share = Some(guesses.share);
        }
        Evaluated::Yes
    }

    /// Scores of the prompt were computed.
    fn handle_scores(&mut self, answers: &[Answer]) {
        self.changed = true;
        for answer in answers {
            match answer {
                Answer::Score(score) => self.scores.prompt_scored(score),
                _ => {
                    self.finish = Some(Finish::NotFinite);
                    return;
                }
            }
        }
    }

    /// Whether the commit in `update` makes a step in flight useless: the advice it continues has been overtaken or
    /// contradicted. A target's step is always useful: it makes the commits.
    pub(super) fn is_obsolete(&self, plan: &StepPlan, update: &ReplicaUpdate) -> bool {
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

    fn commit(&mut self, now: Time, walked: &Walked, learned: &mut Learned) {
        self.finish = walked.finish;
        if walked.picks.is_empty() {
            return;
        }
        let tokens: Vec<u32> = walked.picks.iter().map(|picked| picked.token).collect();
        for picked in &walked.picks {
            self.scores.picked(picked.score.as_deref());
        }
        for source in Finder::SOURCES {
            let calibration = learned.calibration.of(source);
            (self.replica).learn(&tokens, calibration, |held| held.guessed[source]);
        }
        if self.strategy.heads().nodes > 0 {
            heads::learn(&self.replica, &tokens, learned);
        }
        self.note_guessers(&tokens, &walked.path);
        let committed = self.replica.extend(&tokens);
        for (_, node) in &committed.matched {
            for source in node.payload.own.sources.iter() {
                self.walks.sources[source].committed += 1;
            }
        }
        if committed.hit {
            self.walks.hits += 1;
            let last = committed.matched.last();
            for source in last
                .map_or(Sources::default(), |(_, node)| node.payload.own.sources)
                .iter()
            {
                self.walks.sources[source].hits += 1;
            }
        } else {
            self.walks.misses += 1;
            self.undecided = true;
        }
        self.is_after_miss = !committed.hit;
        let accepted = walked.path.len() as f32;
        self.outlook.accepted = Some(match self.outlook.accepted {
            None => accepted,
            Some(mean) => mean + NEWEST * (accepted - mean),
        });
        self.base_since = now;
        if self.finish.is_some() {
            self.handle_closed(learned);
        }
    }

    /// Misses that no guess can undo any more.
    fn settled_misses(&self) -> u32 {
        let settled = self.walks.misses - u64::from(self.undecided);
        u32::try_from(settled).unwrap_or(u32::MAX)
    }

    /// The newest report, if anything changed since the last one.
    pub(super) fn poll_report(&mut self, activity: Activity) -> Option<Report> {
        if !core::mem::take(&mut self.changed) {
            return None;
        }
        let tree = &self.replica.tree;
        let advised = self.ahead.iter().filter_map(|&id| tree.get(id));
        let text = &self.replica.text[self.acked as usize..];
        let mut picks = text.to_vec();
        let mut margins = alloc::vec![Margin::default(); picks.len()];
        let mut surprisals = alloc::vec![Surprisal::default(); picks.len()];
        for node in advised {
            picks.push(node.token);
            surprisals.push(node.payload.own.surprisal);
            margins.push(Margin::from_f32(node.payload.own.margin));
        }
        Some(Report {
            base_len: self.acked,
            scores: self.scores.picks(picks.len()),
            picks,
            margins,
            surprisals: match (self.rule, self.duty) {
                (Rule::Fuzzy(_), Duty::Advise) => surprisals,
                _ => Vec::new(),
            },
            prompt_scores: self.scores.prompt(),
            finish: self.finish,
            round_done: self.turn_done(),
            outlook: Outlook {
                misses: self.settled_misses(),
                ..self.outlook
            },
            activity,
            walks: self.walks,
            journal: self.take_journal(),
            ..Report::default()
        })
    }
}

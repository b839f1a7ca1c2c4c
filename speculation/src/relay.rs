//! The coordinator's side of a session: merges every contribution into one tree, keeps every replica up to date, and
//! owns the committed text. It never waits for one worker on behalf of another.

mod advice;
mod record;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use decode::{Rule, Surprisal};

use crate::bypass::Mode;
use crate::calibration::Feature;
use crate::duty::{Duties, Duty, Role, Source};
use crate::groups::Groups;
use crate::history::HistoryKey;
use crate::learned::Calibrations;
use crate::limits::{CLIENT_CREDIT, MAX_COMMIT, MAX_DRAFTS, MAX_NODES_PER_UPDATE};
use crate::logprobs::ClientScores;
use crate::message::{
    Activity, Addressed, Finish, Margin, NodeBatch, Origin, Outlook, Prob16, PromptScores,
    ReplicaUpdate, Report, Scores, Scoring, SessionId, SessionSpec, Shard, Stopping, Term,
};
use crate::misses::Misses;
use crate::numbering::{Inbound, Outbound, PeerError, len_u32, source_of};
use crate::recording::Recording;
use crate::stats::{SessionStats, WalkStats};
use crate::strategy::Chosen;
use crate::tree::{Grafted, NodeId, Tree};

/// Names a worker within one coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerKey(pub u32);

/// What the coordinator keeps about a node.
#[derive(Clone, Copy, Debug, Default)]
struct Merged {
    /// The best edge a proposer gave it.
    proposed: Option<f32>,
    /// Set while a qualifier's newest advice runs through it.
    advised: Option<Feature>,
    /// How surprising a draft and a qualifier find it, under the rule `fuzzy`.
    drafted: Option<Surprisal>,
    judged: Option<Surprisal>,
    /// Who gave it first.
    source: Source,
    /// How the first draft rated it that guessed it.
    rated: Option<(Prob16, Margin)>,
}

impl Merged {
    /// What a target is told of where it came from.
    fn origin(&self) -> Origin {
        Origin {
            source: self.source,
            ..Origin::default()
        }
    }
}

/// How a draft model rated a node of its batch; none of another source.
fn rated(batch: &NodeBatch, at: usize) -> Option<(Prob16, Margin)> {
    let origin = batch.origins.get(at)?;
    (origin.source == Source::Draft).then_some((origin.q, origin.margin))
}

/// A worker that has the session, or is asked to take it.
#[derive(Debug)]
struct Member {
    role: Role,
    duties: Duties,
    /// The session was given to this worker under this term; what it sends under another one is ignored.
    term: Term,
    /// Tokens that a text may have on this worker.
    reach: u32,
    opened: bool,
    inbound: Inbound,
    outbound: Outbound,
    sent_len: u32,
    sent_round: Option<u32>,
    sent_allowed: u32,
    sent_scored: u32,
    sent_shard: Option<Shard>,
    sent_mode: Mode,
    round_done: Option<u32>,
    advice: Vec<NodeId>,
    activity: Activity,
    walks: WalkStats,
    misses: Misses,
}

/// Why a report is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// A malformed message.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// A report beyond the worker's duties.
    #[error("a report with {0} from a worker that has no such duty in the session")]
    Duty(&'static str),
    /// Scores that do not fit the tokens or were not asked for.
    #[error("scores that were not asked for in this form: {0}")]
    Scores(&'static str),
}

/// Everything that defines a session.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The session.
    pub session: SessionId,
    /// Prompt token ids, followed by what the client of a resumed request has already.
    pub text: Vec<u32>,
    /// When the text ends.
    pub stopping: Stopping,
    /// The scores that are wanted.
    pub scoring: Scoring,
    /// How it is decoded.
    pub strategy: Chosen,
    /// Number of tokens in the vocabulary.
    pub vocab: u32,
}

/// A worker that a session may be given to.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// What it is for.
    pub role: Role,
    /// Tokens that a text may have there.
    pub context: u32,
    /// Of a target: whether drafts or qualifiers of the session compute on its device.
    pub is_shared: bool,
}

impl Candidate {
    /// One with a device of its own and room for every text.
    pub fn new(role: Role) -> Self {
        Candidate {
            role,
            context: u32::MAX,
            is_shared: false,
        }
    }
}

/// See the module documentation. `handle_*` takes what happened, `poll_*` gives what is to be sent.
#[derive(Debug)]
pub struct Relay {
    config: RelayConfig,
    /// The last term that was assigned.
    term: Term,
    text: Vec<u32>,
    tree: Tree<Merged>,
    /// What the draft drew, under the rule `rejection`.
    groups: Groups,
    members: BTreeMap<WorkerKey, Member>,
    finish: Option<Finish>,
    scores: ClientScores,
    outlook: Outlook,
    /// Text that was handed to the client.
    delivered: u32,
    /// Text that the client has taken.
    consumed: u32,
    calibration: Calibrations,
    drafted_nodes: u64,
    drafted_committed: u64,
    advised: (u64, u64),
    gone: SessionStats,
    history: Option<HistoryKey>,
    /// Tokens that may be committed beyond what the client has taken.
    credit: u32,
    /// How the models agree, if that is recorded.
    recording: Option<Recording>,
}

impl Relay {
    /// A session without workers.
    pub fn new(mut config: RelayConfig) -> Self {
        // A long text is kept once.
        let text = core::mem::take(&mut config.text);
        let len = len_u32(&text);
        Relay {
            term: Term(0),
            text,
            tree: Tree::new(len),
            groups: Groups::default(),
            members: BTreeMap::new(),
            finish: None,
            scores: ClientScores::new(config.scoring),
            outlook: Outlook::default(),
            delivered: len,
            consumed: len,
            calibration: Calibrations::default(),
            drafted_nodes: 0,
            drafted_committed: 0,
            advised: (0, 0),
            gone: SessionStats::default(),
            history: None,
            credit: CLIENT_CREDIT,
            recording: None,
            config,
        }
    }

    /// Lets the text get this many tokens ahead of its client, instead of [`CLIENT_CREDIT`].
    #[must_use]
    pub fn with_credit(mut self, tokens: u32) -> Self {
        self.credit = tokens;
        self
    }

    /// Replaces what is known about how far each source can be trusted, so that sessions learn from each other.
    #[must_use]
    pub fn with_calibration(mut self, calibration: Calibrations) -> Self {
        self.calibration = calibration;
        self
    }

    /// Has targets look up guesses in completed texts of this key, and keep this one with them.
    #[must_use]
    pub fn with_history(mut self, key: Option<HistoryKey>) -> Self {
        self.history = key;
        self
    }

    /// What drafts and qualifiers of the target do, as it said last.
    pub fn mode(&self) -> Mode {
        self.outlook.mode
    }

    /// What they did for the target before it has said anything about this session.
    pub fn set_mode(&mut self, mode: Mode) {
        self.outlook.mode = mode;
    }

    /// What was learned about how far each source can be trusted.
    pub fn calibration(&self) -> &Calibrations {
        &self.calibration
    }

    /// The term under which a worker holds the session; `None` when it does not.
    pub fn term_of(&self, key: WorkerKey) -> Option<Term> {
        self.members.get(&key).map(|member| member.term)
    }

    /// The term that was given out last.
    pub fn last_term(&self) -> Term {
        self.term
    }

    /// The committed text, prompt included.
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    /// Gives the session to a worker, under a new term, and says how to open it there; `None` when the strategy has no use
    /// for it, or the text has outgrown it already. A worker that held it before starts over: what it sent under its older
    /// term changes nothing.
    pub fn add_worker(&mut self, key: WorkerKey, candidate: Candidate) -> Option<SessionSpec> {
        let Candidate {
            role,
            context,
            is_shared,
        } = candidate;
        let duties = self.config.strategy.duties(role);
        if duties.is_empty()
            || (duties.has(Duty::Propose) && self.proposers() >= self.max_proposers())
        {
            return None;
        }
        let mut stopping = self.config.stopping.clone();
        let is_short = context < stopping.max_len;
        if is_short && (duties.has(Duty::Commit) || self.needed_len(duties) >= context) {
            return None;
        }
        if is_short {
            stopping.max_len = context;
            stopping.max_len_is_context = true;
        }
        let allowed_len = self.allowed_len();
        self.handle_lost(key);
        self.term.0 += 1;
        self.members.insert(
            key,
            Member {
                role,
                duties,
                term: self.term,
                reach: stopping.max_len,
                opened: false,
                inbound: Inbound::default(),
                outbound: Outbound::default(),
                sent_len: len_u32(&self.text),
                sent_round: None,
                sent_allowed: allowed_len,
                sent_scored: self.scores.prompt_next(),
                sent_shard: None,
                sent_mode: self.outlook.mode,
                round_done: None,
                advice: Vec::new(),
                activity: Activity::default(),
                walks: WalkStats::default(),
                misses: Misses::default(),
            },
        );
        Some(SessionSpec {
            session: self.config.session,
            term: self.term,
            text: self.text.clone(),
            stopping,
            allowed_len,
            scoring: if duties.has(Duty::Commit) {
                self.scores.wanted()
            } else {
                Scoring::default()
            },
            strategy: self.config.strategy.settings.clone(),
            duties,
            shard: Shard::default(),
            is_shared,
            history: self.history.filter(|_| duties.has(Duty::Commit)),
            has_journal: self.recording.is_some() && duties.has(Duty::Commit),
        })
    }

    /// Whether the text has as many tokens as it may have on this worker, and goes on.
    pub fn is_outgrown(&self, key: WorkerKey) -> bool {
        let most = self.config.stopping.max_len;
        (self.members.get(&key)).is_some_and(|member| {
            member.reach < most
                && self.needed_len(member.duties) >= member.reach
                && len_u32(&self.text) < most
        })
    }

    /// The tokens for which a worker with these duties has to have room: a qualifier that takes turns with a draft waits for
    /// whole chains.
    fn needed_len(&self, duties: Duties) -> u32 {
        let strategy = &self.config.strategy;
        let has_turns = duties.has(Duty::Propose) && strategy.takes_turns(self.rule());
        let ahead = if has_turns {
            strategy.growth().depth
        } else {
            0
        };
        len_u32(&self.text).saturating_add(ahead.into())
    }

    /// What several drafts drew could not be told apart from what one of them drew in order.
    fn max_proposers(&self) -> usize {
        match self.rule() {
            Rule::Exact | Rule::Fuzzy(_) => MAX_DRAFTS,
            Rule::Rejection => 1,
        }
    }

    fn rule(&self) -> Rule {
        self.config.strategy.settings.rule
    }

    fn proposers(&self) -> usize {
        (self.members.values())
            .filter(|member| member.duties.has(Duty::Propose))
            .count()
    }

    /// The worker has acknowledged the open call: from now on it gets updates.
    pub fn handle_opened(&mut self, key: WorkerKey) {
        if let Some(member) = self.members.get_mut(&key) {
            member.opened = true;
        }
    }

    /// The worker is gone. The text goes on without a draft or a qualifier; without a target it cannot.
    pub fn handle_lost(&mut self, key: WorkerKey) -> Option<Role> {
        let member = self.members.remove(&key)?;
        for &id in &member.advice {
            advice::retract(&mut self.tree, id);
        }
        match member.role {
            Role::Draft => {
                self.gone.drafts.push(member.activity);
                self.gone.misses = self.gone.misses.plus(member.misses);
            }
            Role::Qualifier => self.gone.qualifiers.push(member.activity),
            Role::Target => {
                self.gone.target = self.gone.target.plus(member.activity);
                self.gone.walks = self.gone.walks.plus(member.walks);
            }
        }
        Some(member.role)
    }

    /// A worker has something new: picks that are committed or merged as advice, guesses, or both.
    ///
    /// # Errors
    /// When no correct worker would send this.
    pub fn handle_report(
        &mut self,
        key: WorkerKey,
        term: Term,
        report: &Report,
    ) -> Result<(), RelayError> {
        let duties = match self.members.get(&key) {
            Some(member) if member.term == term => member.duties,
            Some(_) | None => return Ok(()),
        };
        self.check_picks(report)?;
        // A qualifier that takes turns has rounds too, without guesses.
        let has_turns = duties.has(Duty::Advise) && self.config.strategy.takes_turns(self.rule());
        let ends_round = report.round_done.is_some() && !has_turns;
        let proposes = !report.nodes.is_empty() || ends_round;
        if proposes && !duties.has(Duty::Propose) {
            return Err(RelayError::Duty("guesses"));
        }
        if !report.nodes.groups.is_empty() && self.rule() != Rule::Rejection {
            return Err(RelayError::Duty("drawn siblings"));
        }
        if duties.has(Duty::Commit) {
            self.commit(report)?;
            self.record_steps(term, report);
            self.outlook = report.outlook;
        } else if duties.has(Duty::Advise) {
            self.take_advice(key, report);
        } else if !report.picks.is_empty() {
            return Err(RelayError::Duty("picks"));
        }
        if proposes {
            self.take_guesses(key, report)?;
        }
        if let Some(member) = self.members.get_mut(&key) {
            member.activity = report.activity;
            member.walks = report.walks;
            member.misses = report.misses;
            member.round_done = report.round_done.or(member.round_done);
        }
        Ok(())
    }

    fn check_picks(&self, report: &Report) -> Result<(), PeerError> {
        let is_told = [0, report.picks.len()].contains(&report.surprisals.len());
        if report.picks.len() > MAX_COMMIT || report.margins.len() != report.picks.len() || !is_told
        {
            return Err(PeerError::TooLong(report.picks.len()));
        }
        let vocab = self.config.vocab;
        if let Some(&token) = report.picks.iter().find(|&&token| token >= vocab) {
            return Err(PeerError::Token { token, vocab });
        }
        let have = len_u32(&self.text);
        if report.base_len > have {
            let got = report.base_len;
            return Err(PeerError::Gap { got, have });
        }
        Ok(())
    }

    fn take_guesses(&mut self, key: WorkerKey, report: &Report) -> Result<(), RelayError> {
        let Some(member) = self.members.get_mut(&key) else {
            return Ok(());
        };
        let named = member.inbound.receive(
            &mut self.tree,
            &self.text,
            self.config.vocab,
            report.base_len.saturating_add(len_u32(&report.picks)),
            &report.nodes,
            |batch, at| Merged {
                proposed: Some(batch.edges[at].to_f32()),
                source: source_of(batch, at),
                rated: rated(batch, at),
                ..Merged::default()
            },
        )?;
        let sender_len = report.base_len.saturating_add(len_u32(&report.picks));
        for (parent, drawn) in (member.inbound).groups(&self.tree, sender_len, &report.nodes) {
            self.groups.insert(parent, drawn);
        }
        for &(number, surprisal) in &report.nodes.surprisals {
            let node = member.inbound.node(number);
            if let Some(merged) = node.and_then(|id| self.tree.payload_mut(id)) {
                merged.drafted = Some(surprisal);
            }
        }
        self.drafted_nodes += report.nodes.len() as u64;
        let mut places: Vec<Option<NodeId>> = Vec::with_capacity(named.len());
        for (at, grafted) in named {
            places.extend(self.tree.get(grafted.id()).map(|node| node.parent));
            let edge = report.nodes.edges[at].to_f32();
            if let Grafted::Existing(id) = grafted {
                let Some(node) = self.tree.get(id) else {
                    continue;
                };
                let best = node.payload.proposed.unwrap_or(0.0).max(edge);
                let is_advised = node.payload.advised.is_some();
                if let Some(merged) = self.tree.payload_mut(id) {
                    merged.proposed = Some(best);
                    merged.rated = merged.rated.or_else(|| rated(&report.nodes, at));
                }
                if !is_advised {
                    self.tree.set_edge(id, best);
                }
            }
            member
                .outbound
                .received(grafted.id(), report.nodes.edges[at]);
        }
        self.yield_to_advice(&places);
        Ok(())
    }

    fn commit(&mut self, report: &Report) -> Result<(), RelayError> {
        let known = self.text.len() - report.base_len as usize;
        for (offset, &token) in report.picks.iter().enumerate().take(known) {
            let position = report.base_len as usize + offset;
            let committed = self.text[position];
            if committed != token {
                return Err(PeerError::Conflict {
                    position: position as u32,
                    got: token,
                    have: committed,
                }
                .into());
            }
        }
        let fresh = report.picks.get(known..).unwrap_or(&[]);
        if self.text.len() + fresh.len() > self.config.stopping.max_len as usize {
            return Err(PeerError::TooLong(fresh.len()).into());
        }
        self.scores.take(
            report,
            known,
            self.config.stopping.prompt_len,
            self.config.vocab,
        )?;
        if !fresh.is_empty() {
            self.learn(fresh);
            self.record(fresh, report.margins.get(known..).unwrap_or(&[]));
            self.text.extend_from_slice(fresh);
            let committed = self.tree.commit(fresh);
            self.groups.committed(&committed, &self.tree);
            self.drafted_committed += (committed.matched.iter())
                .filter(|(_, node)| node.payload.proposed.is_some())
                .count() as u64;
            for member in self.members.values_mut() {
                member.inbound.committed(&committed);
                member.outbound.committed(&self.tree);
                let tree = &self.tree;
                member.advice.retain(|&id| tree.get(id).is_some());
            }
        }
        if report.finish.is_some() {
            self.finish = report.finish;
        }
        Ok(())
    }

    /// The client has taken this many more tokens.
    pub fn handle_consumed(&mut self, tokens: u32) {
        self.consumed = self.consumed.saturating_add(tokens).min(self.delivered);
    }

    fn allowed_len(&self) -> u32 {
        self.consumed.saturating_add(self.credit)
    }

    /// Credit that has grown by less is not worth a message of its own.
    fn credit_step(&self) -> u32 {
        (self.credit / 4).max(1)
    }

    /// Whether the client leaves so much of the text untaken that the target stands, or will without being told of more
    /// credit.
    pub fn is_left_standing(&self) -> bool {
        let most = self.credit - self.credit_step();
        len_u32(&self.text) > self.consumed.saturating_add(most)
    }

    /// Tokens for the client that were not handed out yet, with their scores if the session has any.
    pub fn poll_text(&mut self) -> (Vec<u32>, Option<Scores>) {
        let fresh = self.text[self.delivered as usize..].to_vec();
        self.delivered = len_u32(&self.text);
        (fresh, self.scores.poll_picks())
    }

    /// Scores of the prompt that were not handed out yet.
    pub fn poll_prompt_scores(&mut self) -> Option<PromptScores> {
        self.scores.poll_prompt()
    }

    /// Why the request is done, if it is: the text is complete, and so is what was asked about the prompt.
    pub fn finish(&self) -> Option<Finish> {
        (self.finish).filter(|&why| why == Finish::NotFinite || self.is_prompt_done())
    }

    /// Whether everything that was asked about the prompt was handed out or is ready to be.
    pub fn is_prompt_done(&self) -> bool {
        self.scores.is_prompt_done(self.config.stopping.prompt_len)
    }

    /// The next update for a worker, if there is anything new. Call it when the stream has taken the previous update.
    pub fn poll_update(&mut self, key: WorkerKey) -> Option<Addressed<ReplicaUpdate>> {
        let round_done = (self.members.get(&key)).and_then(|member| self.round_done(member));
        let (allowed_len, step) = (self.allowed_len(), self.credit_step());
        let shard = self.shard_of(key);
        let rule = self.rule();
        let member = self.members.get_mut(&key)?;
        if !member.opened {
            return None;
        }
        // Who has been told that the target rests has no use for the text until it does not. The target itself has: what the client
        // takes is its credit.
        let is_told = member.sent_mode == Mode::Rest && self.outlook.mode == Mode::Rest;
        if is_told && !member.duties.has(Duty::Commit) {
            return None;
        }
        let base_len = member.sent_len;
        let until = self.text.len().min(base_len as usize + MAX_COMMIT);
        // Guesses hang off the end of the text: a worker that gets only a part of it is sent them later.
        let room = if until == self.text.len() {
            MAX_NODES_PER_UPDATE
        } else {
            0
        };
        let min_path = self.config.strategy.min_path_sent(member.role);
        let origin = member
            .duties
            .has(Duty::Commit)
            .then_some(Merged::origin as fn(&Merged) -> Origin);
        let (mut nodes, rescored) = member.outbound.diff(&self.tree, min_path, room, origin);
        let (tree, outbound) = (&self.tree, &mut member.outbound);
        match (rule, room) {
            (Rule::Exact, _) | (_, 0) => {}
            (Rule::Rejection, _) if member.duties.has(Duty::Commit) => {
                nodes.groups = outbound.diff_groups(tree, &self.groups);
            }
            (Rule::Fuzzy(_), _) if member.duties.has(Duty::Commit) => {
                nodes.surprisals = outbound.diff_surprisals(tree, |merged| merged.judged);
            }
            (Rule::Fuzzy(_), _) if member.duties.has(Duty::Advise) => {
                nodes.surprisals = outbound.diff_surprisals(tree, |merged| merged.drafted);
            }
            (Rule::Rejection | Rule::Fuzzy(_), _) => {}
        }
        let commit = self.text[base_len as usize..until].to_vec();
        let round_done = round_done.filter(|_| member.sent_round != round_done);
        let more_credit = allowed_len >= member.sent_allowed + step;
        let new_shard = shard.filter(|_| member.sent_shard != shard);
        let scored = self.scores.prompt_next();
        let more_scored = member.duties.has(Duty::Commit) && scored > member.sent_scored;
        let is_quiet = nodes.is_empty()
            && rescored.is_empty()
            && commit.is_empty()
            && round_done.is_none()
            && !more_credit
            && !more_scored
            && new_shard.is_none();
        if is_quiet {
            return None;
        }
        member.sent_len = until as u32;
        member.sent_round = round_done.or(member.sent_round);
        member.sent_allowed = allowed_len;
        member.sent_scored = scored;
        member.sent_shard = new_shard.or(member.sent_shard);
        let outlook = if !member.duties.has(Duty::Commit) && !commit.is_empty() {
            member.sent_mode = self.outlook.mode;
            self.outlook
        } else {
            Outlook::default()
        };
        Some(Addressed {
            session: self.config.session,
            term: member.term,
            message: ReplicaUpdate {
                base_len,
                commit,
                nodes,
                rescored,
                round_done,
                allowed_len,
                prompt_scored: if more_scored { scored } else { 0 },
                shard: new_shard,
                outlook,
            },
        })
    }

    /// The committed length for which all those that this worker waits for have finished their round; at once where there
    /// is none.
    fn round_done(&self, waiting: &Member) -> Option<u32> {
        let len = len_u32(&self.text);
        let strategy = &self.config.strategy;
        let takes_turns = strategy.takes_turns(self.rule());
        let awaited = match takes_turns {
            true if waiting.duties.has(Duty::Commit) => Duty::Advise,
            // Its drafts have no rounds: it knows itself when it has a whole chain of theirs.
            true => Duty::Propose,
            false => {
                let now = strategy.within(self.outlook.mode);
                now.growth().round.map(|_| Duty::Propose)?
            }
        };
        // One that has not opened the session yet has nothing to finish.
        let is_awaited = |member: &Member| member.opened || self.awaits_everybody();
        let mut others = (self.members.values())
            .filter(|member| member.duties.has(awaited) && is_awaited(member));
        others
            .all(|member| member.round_done == Some(len))
            .then_some(len)
    }

    /// Whether the text depends on what others than the target have made, and they take turns with it, so that it must not
    /// depend on who is opened first.
    pub fn awaits_everybody(&self) -> bool {
        let strategy = &self.config.strategy;
        let has_rounds = strategy.growth().round.is_some() || strategy.takes_turns(self.rule());
        self.rule() != Rule::Exact && has_rounds
    }

    fn shard_of(&self, key: WorkerKey) -> Option<Shard> {
        let proposers =
            (self.members.iter()).filter(|(_, member)| member.duties.has(Duty::Propose));
        let index = proposers.clone().position(|(&other, _)| other == key)?;
        Some(Shard {
            index: index as u8,
            count: proposers.count() as u8,
        })
    }

    /// How the session went so far.
    pub fn stats(&self) -> SessionStats {
        let mut stats = self.gone.clone();
        for member in self.members.values() {
            match member.role {
                Role::Target => {
                    stats.target = stats.target.plus(member.activity);
                    stats.walks = stats.walks.plus(member.walks);
                }
                Role::Draft => {
                    stats.drafts.push(member.activity);
                    stats.misses = stats.misses.plus(member.misses);
                }
                Role::Qualifier => stats.qualifiers.push(member.activity),
            }
        }
        stats.drafted_nodes = self.drafted_nodes;
        stats.drafted_committed = self.drafted_committed;
        stats.advised = self.advised;
        stats
    }
}

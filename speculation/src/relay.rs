//! The coordinator's side of a session: merges every contribution into one tree, brings every replica up to date,
//! and owns the committed text. It never waits for one worker on behalf of another.

use std::collections::BTreeMap;

use crate::calibration::{Calibration, Feature, Outcome};
use crate::limits::{CLIENT_CREDIT, MAX_COMMIT, MAX_DRAFTS, MAX_NODES_PER_UPDATE, MAX_TREE};
use crate::link::{Inbound, LinkError, Outbound, len_u32};
use crate::message::{
    Activity, Addressed, DraftReport, Finish, PromptScores, ReplicaUpdate, Scores, Scoring,
    SessionId, SessionSpec, Shard, Stopping, Task, Term, VerifyReport,
};
use crate::policy::Strategy;
use crate::scored::Scored;
use crate::stats::{WalkStats, ratio};
use crate::tree::{Graft, Grafted, NodeId, Tree};

/// Names a worker within one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkKey(pub u32);

/// What a worker does for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Grows guesses.
    Draft,
    /// Gives advice.
    Qualifier,
    /// Decides the text.
    Target,
}

/// What the coordinator keeps about a node.
#[derive(Clone, Copy, Debug, Default)]
struct Merged {
    /// The best edge a draft gave it.
    drafted: Option<f32>,
    /// Set while a qualifier's newest advice runs through it.
    advised: Option<Feature>,
}

#[derive(Debug)]
struct Link {
    role: Role,
    /// The session was given to this worker under this term; what it says under another is not for us.
    term: Term,
    opened: bool,
    inbound: Inbound,
    outbound: Outbound,
    told_len: u32,
    told_round: Option<u32>,
    told_allowed: u32,
    told_scored: u32,
    told_shard: Option<Shard>,
    round_done: Option<u32>,
    advice: Vec<NodeId>,
    activity: Activity,
    walks: WalkStats,
}

/// What a relayed worker did wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// A malformed message.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A report of a worker of another role.
    #[error("report from a worker that does not serve the session in that role")]
    WrongRole,
    /// Scores that do not fit the tokens or were not asked for.
    #[error("scores that were not asked for in this form: {0}")]
    Scores(&'static str),
}

/// How a finished session went, for the client and the bench.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SessionStats {
    /// Totals of the target's walks; of all targets, when one was lost.
    pub walks: WalkStats,
    /// How the target spent its time.
    pub target: Activity,
    /// How each draft spent its time.
    pub drafts: Vec<Activity>,
    /// How each qualifier spent its time.
    pub qualifiers: Vec<Activity>,
    /// Nodes that drafts contributed.
    pub drafted_nodes: u64,
    /// Of those, nodes whose token was committed.
    pub drafted_committed: u64,
    /// Advised tokens the target has decided about, and how many came true.
    pub advised: (u64, u64),
}

impl SessionStats {
    /// Drafted nodes that were never committed, as a share of all.
    pub fn waste(&self) -> f64 {
        1.0 - ratio(
            self.drafted_committed,
            self.drafted_nodes.max(self.drafted_committed),
        )
    }
}

/// Everything that defines a session.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The session.
    pub session: SessionId,
    /// Prompt token ids, and behind them what the client of a resumed request has already.
    pub text: Vec<u32>,
    /// When the text ends.
    pub stopping: Stopping,
    /// The scores that are wanted.
    pub scoring: Scoring,
    /// How it is decoded.
    pub strategy: Strategy,
    /// Number of tokens in the vocabulary.
    pub vocab: u32,
}

/// See the module documentation. `handle_*` takes what happened, `poll_*` gives what is to be sent.
#[derive(Debug)]
pub struct Relay {
    config: RelayConfig,
    /// The last one that was given out.
    term: Term,
    text: Vec<u32>,
    tree: Tree<Merged>,
    links: BTreeMap<LinkKey, Link>,
    finish: Option<Finish>,
    scored: Scored,
    /// Text that was handed to the client.
    delivered: u32,
    /// Text that the client has taken.
    consumed: u32,
    advice_calibration: Calibration,
    drafted_nodes: u64,
    drafted_committed: u64,
    advised: (u64, u64),
    gone: SessionStats,
}

impl Relay {
    /// A session without workers.
    pub fn new(config: RelayConfig) -> Self {
        let len = len_u32(&config.text);
        Relay {
            term: Term(0),
            text: config.text.clone(),
            tree: Tree::new(len),
            links: BTreeMap::new(),
            finish: None,
            scored: Scored::new(config.scoring),
            delivered: len,
            consumed: len,
            advice_calibration: Calibration::default(),
            drafted_nodes: 0,
            drafted_committed: 0,
            advised: (0, 0),
            gone: SessionStats::default(),
            config,
        }
    }

    /// Replaces what is known about how well qualifiers advise, so that sessions learn from each other.
    pub fn with_calibration(mut self, calibration: Calibration) -> Self {
        self.advice_calibration = calibration;
        self
    }

    /// What was learned about how well qualifiers advise.
    pub fn calibration(&self) -> &Calibration {
        &self.advice_calibration
    }

    /// The term under which a worker holds the session; `None` when it does not.
    pub fn term_of(&self, key: LinkKey) -> Option<Term> {
        self.links.get(&key).map(|link| link.term)
    }

    /// The committed text, prompt included.
    pub fn text(&self) -> &[u32] {
        &self.text
    }

    /// Gives the session to a worker, under a new term, and says how to open it there; `None` when the strategy has no
    /// use for it. A worker that held it before starts anew: what it said under its older term changes nothing.
    pub fn add_link(&mut self, key: LinkKey, role: Role) -> Option<SessionSpec> {
        let task = match role {
            Role::Target => Task::Commit(self.config.strategy.verify()),
            Role::Qualifier => {
                let (verify, advice) = self.config.strategy.advice()?;
                Task::Advise(verify, advice)
            }
            Role::Draft => {
                if self.drafts() >= MAX_DRAFTS {
                    return None;
                }
                Task::Grow {
                    policy: self.config.strategy.growth()?,
                    shard: Shard::default(),
                }
            }
        };
        let allowed_len = self.allowed_len();
        self.handle_lost(key);
        self.term.0 += 1;
        self.links.insert(
            key,
            Link {
                role,
                term: self.term,
                opened: false,
                inbound: Inbound::default(),
                outbound: Outbound::default(),
                told_len: len_u32(&self.text),
                told_round: None,
                told_allowed: allowed_len,
                told_scored: self.scored.prompt_next(),
                told_shard: None,
                round_done: None,
                advice: Vec::new(),
                activity: Activity::default(),
                walks: WalkStats::default(),
            },
        );
        Some(SessionSpec {
            session: self.config.session,
            term: self.term,
            text: self.text.clone(),
            stopping: self.config.stopping.clone(),
            allowed_len,
            scoring: match role {
                Role::Target => self.scored.wanted(),
                Role::Draft | Role::Qualifier => Scoring::default(),
            },
            task,
        })
    }

    fn drafts(&self) -> usize {
        (self.links.values())
            .filter(|link| link.role == Role::Draft)
            .count()
    }

    /// The worker has acknowledged the open: from now on it is told.
    pub fn handle_opened(&mut self, key: LinkKey) {
        if let Some(link) = self.links.get_mut(&key) {
            link.opened = true;
        }
    }

    /// The worker is gone. The text goes on without a draft or a qualifier; without a target it cannot.
    pub fn handle_lost(&mut self, key: LinkKey) -> Option<Role> {
        let link = self.links.remove(&key)?;
        for &id in &link.advice {
            retract(&mut self.tree, id);
        }
        match link.role {
            Role::Draft => self.gone.drafts.push(link.activity),
            Role::Qualifier => self.gone.qualifiers.push(link.activity),
            Role::Target => {
                self.gone.target = self.gone.target.plus(link.activity);
                self.gone.walks = self.gone.walks.plus(link.walks);
            }
        }
        Some(link.role)
    }

    /// A draft has grown something.
    pub fn handle_draft(
        &mut self,
        key: LinkKey,
        term: Term,
        report: &DraftReport,
    ) -> Result<(), RelayError> {
        let link = match self.links.get_mut(&key) {
            Some(link) if link.term != term => return Ok(()),
            None => return Ok(()),
            Some(link) if link.role == Role::Draft => link,
            Some(_) => return Err(RelayError::WrongRole),
        };
        link.activity = report.activity;
        link.round_done = report.round_done.or(link.round_done);
        let named = link.inbound.receive(
            &mut self.tree,
            &self.text,
            self.config.vocab,
            report.base_len,
            &report.nodes,
            |batch, at| Merged {
                drafted: Some(batch.edges[at].to_f32()),
                advised: None,
            },
        )?;
        self.drafted_nodes += report.nodes.len() as u64;
        for (at, grafted) in named {
            let edge = report.nodes.edges[at].to_f32();
            if let Grafted::Existing(id) = grafted {
                let Some(node) = self.tree.get(id) else {
                    continue;
                };
                let best = node.payload.drafted.unwrap_or(0.0).max(edge);
                let advised = node.payload.advised.is_some();
                if let Some(merged) = self.tree.payload_mut(id) {
                    merged.drafted = Some(best);
                }
                if !advised {
                    self.tree.set_edge(id, best);
                }
            }
            link.outbound.heard(grafted.id(), report.nodes.edges[at]);
        }
        Ok(())
    }

    /// A verifier has picked: a target's picks are committed, a qualifier's are merged as advice.
    pub fn handle_verify(
        &mut self,
        key: LinkKey,
        term: Term,
        report: &VerifyReport,
    ) -> Result<(), RelayError> {
        let role = match self.links.get(&key) {
            Some(link) if link.term == term => link.role,
            Some(_) | None => return Ok(()),
        };
        if report.picks.len() > MAX_COMMIT || report.margins.len() != report.picks.len() {
            return Err(LinkError::TooLong(report.picks.len()).into());
        }
        if let Some(&token) = report.picks.iter().find(|&&t| t >= self.config.vocab) {
            let vocab = self.config.vocab;
            return Err(LinkError::Token { token, vocab }.into());
        }
        let have = len_u32(&self.text);
        if report.base_len > have {
            let got = report.base_len;
            return Err(LinkError::Gap { got, have }.into());
        }
        match role {
            Role::Target => self.commit(report)?,
            Role::Qualifier => self.take_advice(key, report),
            Role::Draft => return Err(RelayError::WrongRole),
        }
        if let Some(link) = self.links.get_mut(&key) {
            link.activity = report.activity;
            link.walks = report.walks;
        }
        Ok(())
    }

    fn commit(&mut self, report: &VerifyReport) -> Result<(), RelayError> {
        let known = self.text.len() - report.base_len as usize;
        for (offset, &token) in report.picks.iter().enumerate().take(known) {
            let position = report.base_len as usize + offset;
            let committed = self.text[position];
            if committed != token {
                return Err(LinkError::Conflict {
                    position: position as u32,
                    got: token,
                    have: committed,
                }
                .into());
            }
        }
        let fresh = report.picks.get(known..).unwrap_or(&[]);
        if self.text.len() + fresh.len() > self.config.stopping.max_len as usize {
            return Err(LinkError::TooLong(fresh.len()).into());
        }
        self.scored.take(
            report,
            known,
            self.config.stopping.prompt_len,
            self.config.vocab,
        )?;
        if !fresh.is_empty() {
            self.learn(fresh);
            self.text.extend_from_slice(fresh);
            let committed = self.tree.commit(fresh);
            self.drafted_committed += (committed.matched.iter())
                .filter(|(_, node)| node.payload.drafted.is_some())
                .count() as u64;
            for link in self.links.values_mut() {
                link.inbound.committed(&committed);
                link.outbound.committed(&self.tree);
                let tree = &self.tree;
                link.advice.retain(|&id| tree.get(id).is_some());
            }
        }
        if report.finish.is_some() {
            self.finish = report.finish;
        }
        Ok(())
    }

    /// Compares the advice with what was committed.
    fn learn(&mut self, tokens: &[u32]) {
        let mut at = None;
        for &token in tokens {
            for &child in self.tree.children(at) {
                let Some(node) = self.tree.get(child) else {
                    continue;
                };
                if let Some(feature) = node.payload.advised {
                    let outcome = Outcome::of(node.token, token);
                    self.advice_calibration.observe(feature, outcome);
                    self.advised.0 += 1;
                    self.advised.1 += u64::from(outcome == Outcome::True);
                }
            }
            at = match self.tree.child(at, token) {
                Some(child) => Some(child),
                None => return,
            };
        }
    }

    fn take_advice(&mut self, key: LinkKey, report: &VerifyReport) {
        let known = self.text.len() - report.base_len as usize;
        let agreed = self.text[report.base_len as usize..]
            .iter()
            .zip(&report.picks)
            .all(|(text, pick)| text == pick);
        let ahead = if agreed {
            report.picks.get(known..).unwrap_or(&[])
        } else {
            &[]
        };
        let previous = match self.links.get_mut(&key) {
            Some(link) => std::mem::take(&mut link.advice),
            None => return,
        };
        for id in previous {
            retract(&mut self.tree, id);
        }
        let mut advice: Vec<NodeId> = Vec::new();
        let last = self.config.stopping.max_len;
        for (offset, &token) in ahead.iter().enumerate() {
            let parent = advice.last().copied();
            let position = len_u32(&self.text) + offset as u32;
            let new = self.tree.child(parent, token).is_none();
            if position >= last || (new && self.tree.len() >= MAX_TREE) {
                break;
            }
            let margin = f32::from(report.margins[known + offset]) / 16.0;
            let feature = Feature::from_margin(margin);
            let edge = self.advice_calibration.probability(feature);
            let graft = Graft {
                token,
                edge,
                owner: position as u8,
                payload: Merged::default(),
            };
            let Some(grafted) = self.tree.graft(parent, graft) else {
                break;
            };
            let id = grafted.id();
            if let Some(merged) = self.tree.payload_mut(id) {
                merged.advised = Some(feature);
            }
            self.tree.set_edge(id, edge);
            self.discount_rivals(parent, id, 1.0 - edge);
            advice.push(id);
        }
        if let Some(link) = self.links.get_mut(&key) {
            link.advice = advice;
        }
    }

    /// What advice leaves to the other guesses at its place: they share `left` in their own proportions.
    fn discount_rivals(&mut self, parent: Option<NodeId>, chosen: NodeId, left: f32) {
        let rivals: Vec<(NodeId, f32)> = (self.tree.children(parent).iter())
            .filter(|&&id| id != chosen)
            .filter_map(|&id| {
                let merged = self.tree.get(id)?.payload;
                Some((id, merged.drafted?))
            })
            .collect();
        let total: f32 = rivals.iter().map(|(_, edge)| edge).sum();
        let scale = if total > left { left / total } else { 1.0 };
        for (id, edge) in rivals {
            self.tree.set_edge(id, edge * scale);
        }
    }

    /// The client has taken this many more tokens.
    pub fn handle_consumed(&mut self, tokens: u32) {
        self.consumed = self.consumed.saturating_add(tokens).min(self.delivered);
    }

    fn allowed_len(&self) -> u32 {
        self.consumed.saturating_add(CLIENT_CREDIT)
    }

    /// Tokens for the client that were not handed out yet, with their scores if the session has any.
    pub fn poll_text(&mut self) -> (Vec<u32>, Option<Scores>) {
        let fresh = self.text[self.delivered as usize..].to_vec();
        self.delivered = len_u32(&self.text);
        (fresh, self.scored.poll_picks())
    }

    /// Scores of the prompt that were not handed out yet.
    pub fn poll_prompt_scores(&mut self) -> Option<PromptScores> {
        self.scored.poll_prompt()
    }

    /// Why the request is done, if it is: the text is complete, and so is what was asked about the prompt.
    pub fn finish(&self) -> Option<Finish> {
        (self.finish).filter(|&why| why == Finish::NotFinite || self.is_prompt_done())
    }

    /// Whether everything that was asked about the prompt was handed out or is there to be.
    pub fn is_prompt_done(&self) -> bool {
        self.scored.is_prompt_done(self.config.stopping.prompt_len)
    }

    /// What a worker has to be told, if anything. Call it when the link has taken the previous update.
    pub fn poll_update(&mut self, key: LinkKey) -> Option<Addressed<ReplicaUpdate>> {
        let round_done = self.round_done();
        let allowed_len = self.allowed_len();
        let shard = self.shard_of(key);
        let link = self.links.get_mut(&key)?;
        if !link.opened {
            return None;
        }
        let (room, min_path) = match link.role {
            Role::Target | Role::Qualifier => (MAX_NODES_PER_UPDATE, 0.0008),
            Role::Draft => (MAX_NODES_PER_UPDATE, 0.01),
        };
        let base_len = link.told_len;
        let until = self.text.len().min(base_len as usize + MAX_COMMIT);
        // Guesses hang off the end of the text: a worker that is told only a part of it gets them later.
        let room = if until == self.text.len() { room } else { 0 };
        let (nodes, rescored) = link.outbound.diff(&self.tree, min_path, room);
        let commit = self.text[base_len as usize..until].to_vec();
        let round_done = round_done.filter(|_| link.told_round != round_done);
        // Credit that has barely moved is not worth a message of its own.
        let more_credit = allowed_len >= link.told_allowed + CLIENT_CREDIT / 4;
        let new_shard = shard.filter(|_| link.told_shard != shard);
        let scored = self.scored.prompt_next();
        let more_scored = link.role == Role::Target && scored > link.told_scored;
        let quiet = nodes.is_empty()
            && rescored.is_empty()
            && commit.is_empty()
            && round_done.is_none()
            && !more_credit
            && !more_scored
            && new_shard.is_none();
        if quiet {
            return None;
        }
        link.told_len = until as u32;
        link.told_round = round_done.or(link.told_round);
        link.told_allowed = allowed_len;
        link.told_scored = scored;
        link.told_shard = new_shard.or(link.told_shard);
        Some(Addressed {
            session: self.config.session,
            term: link.term,
            message: ReplicaUpdate {
                base_len,
                commit,
                nodes,
                rescored,
                round_done,
                allowed_len,
                prompt_scored: if more_scored { scored } else { 0 },
                shard: new_shard,
            },
        })
    }

    /// The committed length for which every draft has finished its round; at once where there is none.
    fn round_done(&self) -> Option<u32> {
        let len = len_u32(&self.text);
        // A draft that has not opened the session yet has nothing to finish.
        let mut drafts =
            (self.links.values()).filter(|link| link.role == Role::Draft && link.opened);
        self.config.strategy.growth()?;
        drafts
            .all(|link| link.round_done == Some(len))
            .then_some(len)
    }

    fn shard_of(&self, key: LinkKey) -> Option<Shard> {
        let drafts = (self.links.iter()).filter(|(_, link)| link.role == Role::Draft);
        let index = drafts.clone().position(|(&other, _)| other == key)?;
        Some(Shard {
            index: index as u8,
            count: drafts.count() as u8,
        })
    }

    /// How the session went so far.
    pub fn stats(&self) -> SessionStats {
        let mut stats = self.gone.clone();
        for link in self.links.values() {
            match link.role {
                Role::Target => {
                    stats.target = stats.target.plus(link.activity);
                    stats.walks = stats.walks.plus(link.walks);
                }
                Role::Draft => stats.drafts.push(link.activity),
                Role::Qualifier => stats.qualifiers.push(link.activity),
            }
        }
        stats.drafted_nodes = self.drafted_nodes;
        stats.drafted_committed = self.drafted_committed;
        stats.advised = self.advised;
        stats
    }
}

/// What a guess is worth that only withdrawn advice has made.
const WITHDRAWN: f32 = 0.05;

/// Advice no longer runs through this node: its score and its rivals' are again what drafts gave them.
fn retract(tree: &mut Tree<Merged>, id: NodeId) {
    let Some(node) = tree.get(id) else { return };
    let parent = node.parent;
    if let Some(merged) = tree.payload_mut(id) {
        merged.advised = None;
    }
    for sibling in tree.children(parent).to_vec() {
        let merged = tree.get(sibling).map(|node| node.payload);
        if let Some(Merged {
            drafted,
            advised: None,
        }) = merged
        {
            tree.set_edge(sibling, drafted.unwrap_or(WITHDRAWN));
        }
    }
}

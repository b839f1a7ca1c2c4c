//! The acceptance rules in a session: what a draft makes of what it drew, and what a verifier's rows are judged by.

use alloc::vec::Vec;

use decode::{Ask, Basis, Drawn, Judgement, NodeId, Rule, Surprisal, math};

use super::propose::{Grown, Proposer};
use super::verify::Verifier;
use crate::duty::{Duty, Source};
use crate::message::{Margin, NodeBatch, Origin, Prob16};
use crate::replica::Held;
use crate::tree::Graft;

/// The edges of drawn siblings: the first, and how much less each further one has. They only order rows, and say nothing
/// of the tokens, so that no limit of a tree can depend on what was drawn.
const FIRST_EDGE: f32 = 0.65;
const NEXT_EDGE: f32 = 0.3;

/// What a draft says of a guess of this probability.
pub(super) fn surprisal(rule: Rule, q: f32) -> Option<Surprisal> {
    match rule {
        Rule::Exact | Rule::Rejection => None,
        Rule::Fuzzy(_) => Some(Surprisal::from_logprob(math::ln(f64::from(q)) as f32)),
    }
}

impl Proposer {
    /// Adds to a report what others judge guesses by.
    pub(super) fn add_ratings(&mut self, nodes: &mut NodeBatch) {
        let (tree, groups) = (&self.replica.tree, &self.replica.groups);
        match self.rule {
            Rule::Exact => {}
            Rule::Rejection => nodes.groups = self.outbound.diff_groups(tree, groups),
            Rule::Fuzzy(_) => {
                nodes.surprisals = (self.outbound).diff_surprisals(tree, |held| held.surprisal);
            }
        }
    }

    /// What a row of a draft is asked, for `most` guesses.
    pub(super) fn ask(&self, most: u16) -> Ask {
        match self.rule {
            Rule::Exact | Rule::Fuzzy(_) => Ask::Guesses(most),
            Rule::Rejection => Ask::Draw(most),
        }
    }

    /// Keeps what was drawn behind a node, and grafts as many of the tokens as there is room for.
    pub(super) fn take_drawn(&mut self, parent: Option<NodeId>, owner: u8, drawn: &Drawn) {
        self.replica.groups.insert(parent, drawn.clone());
        let total: f32 = drawn.support().map(|(_, weight)| f32::from(weight)).sum();
        let mut edge = FIRST_EDGE;
        for token in drawn.tokens() {
            let tree = &mut self.replica.tree;
            let is_worthless = tree.path_score(parent) * edge < self.growth.min_path;
            if is_worthless || tree.len() >= usize::from(self.growth.nodes) {
                return;
            }
            let own = (drawn.support()).find_map(|(id, weight)| (id == token).then_some(weight));
            let origin = Origin {
                source: Source::Draft,
                q: Prob16::from_f32(own.map_or(0.0, f32::from) / total),
                margin: Margin::default(),
            };
            let graft = Graft {
                token,
                edge,
                owner,
                payload: Held {
                    computed: false,
                    surprisal: None,
                    own: Grown::drawn(origin),
                },
            };
            tree.graft(parent, graft);
            edge *= NEXT_EDGE;
        }
    }
}

impl Verifier {
    /// What the row of a node is judged by (`None`: that of the end of the text) in a step that submits these guesses;
    /// nothing where its token is picked without a look at the guesses.
    pub(super) fn judgement(&self, id: Option<NodeId>, submitted: &[NodeId]) -> Option<Judgement> {
        match self.rule {
            Rule::Exact => None,
            Rule::Fuzzy(tolerance) => {
                let tree = &self.replica.tree;
                // Beyond a chain there is what a draft has happened to have made by now.
                let is_judged = |child| !self.takes_turns() || submitted.contains(&child);
                let guesses = tree.children(id).iter().filter_map(|&child| {
                    let node = tree.get(child).filter(|_| is_judged(child))?;
                    Some((node.token, node.payload.surprisal?))
                });
                let guesses: Vec<_> = guesses.collect();
                let tolerance = match self.duty {
                    Duty::Advise => tolerance.draft,
                    Duty::Propose | Duty::Commit => tolerance.qualifier,
                };
                (!guesses.is_empty()).then_some(Judgement::Fuzzy { tolerance, guesses })
            }
            Rule::Rejection => {
                (self.replica.groups.get(id)).map(|drawn| Judgement::Rejection(drawn.clone()))
            }
        }
    }

    /// The score that comes with a pick: what the client has asked for, or what a qualifier says of its picks.
    pub(super) fn pick_score(&self) -> Option<(Basis, u8)> {
        let scoring = self.scores.scoring();
        match (self.rule, self.duty) {
            (Rule::Fuzzy(_), Duty::Advise) => Some((Basis::Tempered, 0)),
            _ => scoring.picks.map(|top| (scoring.basis, top)),
        }
    }
}

//! What a target's steps have made of guesses, for whoever draws it: token by token, who had guessed it.

use alloc::vec::Vec;

use decode::NodeId;

use super::{Advised, Verifier};
use crate::duty::Source;
use crate::numbering::rank;
use crate::replica::Held;
use crate::tree::{Node, Tree};

/// Who had guessed a token before it became text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guesser {
    /// The source; none where nobody had: the token is the target's own. Where several had it, a draft counts first and a
    /// qualifier, which endorses what drafts guess, last.
    pub source: Option<Source>,
    /// Its place among the guesses of that source behind the same text, by probability, from 1; 0 without a source.
    pub rank: u8,
}

/// What steps have done since it was last asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trail {
    /// Tokens that became text.
    pub committed: u32,
    /// Length of the main chain that was submitted.
    pub submitted: u32,
    /// How much of it was accepted.
    pub accepted: u32,
    /// The position of the first token of `guessers` in the text.
    pub from: u32,
    /// Who had guessed those tokens. The last token of a step is told with the next step: what arrives meanwhile may have
    /// guessed it too.
    pub guessers: Vec<Guesser>,
}

/// Sources, the one that counts first.
const ORDER: [Source; 7] = [
    Source::Draft,
    Source::Rule,
    Source::Lookup,
    Source::History,
    Source::Heads,
    Source::Qualifier,
    Source::Unknown,
];

impl Guesser {
    /// Of a node that came true.
    fn of(tree: &Tree<Held<Advised>>, node: &Node<Held<Advised>>) -> Guesser {
        let has = |node: &Node<Held<Advised>>, source: Source| {
            node.payload.own.sources.iter().any(|one| one == source)
        };
        let Some(source) = ORDER.into_iter().find(|&source| has(node, source)) else {
            return Guesser::default();
        };
        let better = (tree.children(node.parent).iter())
            .filter_map(|&id| tree.get(id))
            .filter(|other| has(other, source) && other.edge() > node.edge());
        Guesser {
            source: Some(source),
            rank: rank(better.count()),
        }
    }
}

impl Verifier {
    /// Notes who had guessed tokens that are about to be committed, of which the first ones are the nodes of `path`.
    pub(super) fn note_guessers(&mut self, tokens: &[u32], path: &[NodeId]) {
        let tree = &self.replica.tree;
        let last = (tokens.len() > path.len())
            .then(|| tree.child(path.last().copied(), *tokens.last()?))
            .flatten();
        let nodes = path.iter().copied().map(Some).chain([last]);
        let guessers = nodes.map(|id| {
            let node = id.and_then(|id| tree.get(id));
            node.map_or(Guesser::default(), |node| Guesser::of(tree, node))
        });
        self.trail.guessers.extend(guessers.take(tokens.len()));
        self.trail.committed += tokens.len() as u32;
    }

    /// The last token was guessed after all.
    pub(super) fn note_late(&mut self) {
        let (source, rank) = self.replica.foreseen_by();
        if let Some(last) = self.trail.guessers.last_mut() {
            *last = Guesser {
                source: Some(source),
                rank,
            };
        }
    }

    /// See [`Session::take_trail`](crate::session::Session::take_trail).
    pub(in crate::session) fn take_trail(&mut self) -> Trail {
        let mut trail = core::mem::take(&mut self.trail);
        trail.from = self.replica.len() - trail.guessers.len() as u32;
        if self.finish.is_none() {
            self.trail.guessers.extend(trail.guessers.pop());
        }
        trail
    }
}

//! What a target's steps were: which guesses were there, how many of them it submitted, and what it picked. With that every
//! step can be taken again ([`Replay`](crate::replay::Replay)).
//!
//! Guesses are numbered as they come, and a token is named by the guess that it was: no token and no text is in a journal.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use decode::{Forecast, NodeId};

use crate::Time;
use crate::duty::Source;
use crate::limits::{MAX_JOURNAL_NODES, MAX_JOURNAL_STEPS};
use crate::strategy::Settings;
use crate::tree::Tree;

/// The number of a guess in a journal, counted from 1; 0 stands for the end of the text, or for no guess.
pub type Number = u32;

/// A guess when it has come to the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrived {
    /// The guess that it continues; 0: the text.
    pub parent: Number,
    /// Estimated probability that its token is committed if its parent is, in `0..=1`.
    pub edge: f32,
    /// The contributor that gave it first.
    pub source: Source,
}

/// One step in which a target walked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taken {
    /// Guesses that have come since the step before, each behind its parent.
    pub nodes: Vec<Arrived>,
    /// Guesses that have another estimate since, in the order in which that was learned.
    pub rescored: Vec<(Number, f32)>,
    /// Rows that there were for guesses.
    pub room: u16,
    /// Guesses that were submitted.
    pub submitted: u16,
    /// The committed tokens: the guess that each of them was, or 0.
    pub picks: Vec<Number>,
    /// When it ended, since the target got the session.
    pub ended: Time,
    /// How long it lasted.
    pub took: Time,
    /// What was expected of the next step.
    pub forecast: Option<Forecast>,
}

impl Taken {
    /// Numbers that it has beside those of a step that has none.
    pub(crate) fn numbers(&self) -> usize {
        self.nodes.len() + self.rescored.len() + self.picks.len()
    }
}

/// The steps of one target for one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// How it was decoded.
    pub strategy: Settings,
    /// Tokens that the text could have in addition when the target got it.
    pub room: u32,
    /// The steps, from the first.
    pub steps: Vec<Taken>,
}

/// Keeps the journal of a session until it is reported.
#[derive(Debug)]
pub(crate) struct Journal {
    /// The number of each live guess, and its estimate.
    known: BTreeMap<NodeId, (Number, f32)>,
    /// The number that was given last.
    last: Number,
    /// Changes of the tree that were looked at.
    seen: u64,
    /// The step that is to be taken next.
    next: Taken,
    steps: Vec<Taken>,
    /// Numbers in all of them.
    numbers: usize,
    /// When the target got the session.
    since: Time,
    /// There was no room for more, or it missed something: it has ended.
    is_over: bool,
}

impl Journal {
    /// Of a session that a target gets now, with an empty tree.
    pub(crate) fn new(now: Time) -> Self {
        Journal {
            known: BTreeMap::new(),
            last: 0,
            seen: 0,
            next: Taken::default(),
            steps: Vec::new(),
            numbers: 0,
            since: now,
            is_over: false,
        }
    }

    /// There is room for so many guesses in the next step.
    pub(crate) fn offer(&mut self, room: usize) {
        self.next.room = u16::try_from(room).unwrap_or(u16::MAX);
    }

    /// Guesses may have come, or have other estimates.
    pub(crate) fn follow<P>(&mut self, tree: &Tree<P>, source: impl Fn(&P) -> Source) {
        if self.is_over {
            return;
        }
        let changes = tree.changes(self.seen).map(<[NodeId]>::to_vec);
        self.seen = tree.change_count();
        let Some(changes) = changes else {
            return self.end();
        };
        for id in changes {
            let Some(node) = tree.get(id) else { continue };
            match self.known.get_mut(&id) {
                Some((_, edge)) if edge.to_bits() == node.edge().to_bits() => {}
                Some((number, edge)) => {
                    *edge = node.edge();
                    self.next.rescored.push((*number, *edge));
                }
                None => {
                    let parent = node.parent.map(|parent| self.known.get(&parent));
                    let Some(parent) = parent.map_or(Some(0), |known| Some(known?.0)) else {
                        return self.end();
                    };
                    self.last += 1;
                    self.known.insert(id, (self.last, node.edge()));
                    self.next.nodes.push(Arrived {
                        parent,
                        edge: node.edge(),
                        source: source(&node.payload),
                    });
                }
            }
        }
        if self.numbers + self.next.numbers() > MAX_JOURNAL_NODES {
            self.end();
        }
    }

    /// The number of a guess; 0 where there is none.
    pub(crate) fn number(&self, id: Option<NodeId>) -> Number {
        let known = id.and_then(|id| self.known.get(&id));
        known.map_or(0, |&(number, _)| number)
    }

    /// The step was taken, and `tree` has followed it. `taken` says what is not known yet.
    pub(crate) fn step<P>(&mut self, tree: &Tree<P>, taken: Taken) {
        if self.is_over {
            return;
        }
        let next = core::mem::take(&mut self.next);
        let taken = Taken {
            nodes: next.nodes,
            rescored: next.rescored,
            room: next.room,
            ended: taken.ended.saturating_sub(self.since),
            ..taken
        };
        self.numbers += taken.numbers();
        self.steps.push(taken);
        self.known.retain(|&id, _| tree.get(id).is_some());
        if self.numbers > MAX_JOURNAL_NODES || self.steps.len() > MAX_JOURNAL_STEPS {
            self.end();
        }
    }

    /// What the target expects of its next step, after the last one.
    pub(crate) fn forecast(&mut self, forecast: Option<Forecast>) {
        if let Some(last) = self.steps.last_mut() {
            last.forecast = forecast;
        }
    }

    /// The steps since it was last asked.
    pub(crate) fn take(&mut self) -> Vec<Taken> {
        self.numbers = 0;
        core::mem::take(&mut self.steps)
    }

    /// What was handed out before is whole; nothing comes after it.
    fn end(&mut self) {
        self.is_over = true;
        self.steps.clear();
        self.known.clear();
        self.next = Taken::default();
    }
}

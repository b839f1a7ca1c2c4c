//! Guesses of the heads beside a target (Medusa, arXiv 2401.10774): asked for where they are of use, and grafted right
//! behind the walk, so that they are there in the very step after a miss.
//!
//! The published method verifies one fixed tree of products of the heads' best tokens. Here the tree of products grows
//! best-first by what each head's guess of that rank and weight has been worth so far, and its nodes compete for rows with
//! everybody else's.

use alloc::vec::Vec;

use decode::{Answer, EndAnswer, HeadGuesses};

use super::verify::Advised;
use crate::calibration::{Feature, Outcome};
use crate::duty::Source;
use crate::learned::Learned;
use crate::replica::{Held, Replica};
use crate::stats::WalkStats;
use crate::strategy::HeadBounds;
use crate::tree::{Graft, Grafted, Node, NodeId};

/// A guess of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeadGuess {
    /// Which head, from 0.
    head: u8,
    /// What was known of it.
    feature: Feature,
    /// Whose node it is.
    pub(super) maker: Maker,
}

/// Whether a node is there because of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Maker {
    /// Yes.
    Head,
    /// No, another contributor was faster.
    Other,
}

/// A node of the tree of products that could be made next.
struct Product {
    parent: Option<NodeId>,
    head: usize,
    rank: usize,
    edge: f32,
    /// Probability of the whole path.
    path: f32,
}

/// Paths with a smaller probability are not made.
const MIN_PATH: f32 = 0.002;

/// Grafts the tree of products behind the text, at most `bounds.nodes` nodes. Returns how many are new.
pub(super) fn graft(
    replica: &mut Replica<Advised>,
    guesses: &HeadGuesses,
    bounds: HeadBounds,
    learned: &mut Learned,
    walks: &mut WalkStats,
) -> usize {
    let mut made = 0;
    let mut open = Vec::new();
    widen(&mut open, guesses, (None, 0, 1.0), learned);
    for _ in 0..bounds.nodes {
        let best = (open.iter().enumerate())
            .max_by(|(i, a), (j, b)| a.path.total_cmp(&b.path).then(j.cmp(i)))
            .map(|(at, _)| at);
        let Some(Product {
            parent,
            head,
            rank,
            edge,
            path,
        }) = best.map(|at| open.swap_remove(at))
        else {
            break;
        };
        let guess = guesses.ranked[head][rank];
        if guess.token >= replica.vocab {
            continue;
        }
        let graft = Graft {
            token: guess.token,
            edge,
            owner: 0,
            payload: Held::default(),
        };
        let Some(grafted) = replica.tree.graft(parent, graft) else {
            break;
        };
        let maker = match grafted {
            Grafted::New(_) => Maker::Head,
            Grafted::Existing(_) => Maker::Other,
        };
        made += usize::from(maker == Maker::Head);
        if let Some(held) = replica.tree.payload_mut(grafted.id()) {
            held.own.head.get_or_insert(HeadGuess {
                head: u8::try_from(head).unwrap_or(u8::MAX),
                feature: Feature::new(rank, guess.weight),
                maker,
            });
            held.own.came_from(Source::Heads, walks);
        }
        widen(
            &mut open,
            guesses,
            (Some(grafted.id()), head + 1, path),
            learned,
        );
    }
    made
}

/// Adds what the head may guess below a node.
fn widen(
    open: &mut Vec<Product>,
    guesses: &HeadGuesses,
    (parent, head, above): (Option<NodeId>, usize, f32),
    learned: &mut Learned,
) {
    let Some(ranked) = guesses.ranked.get(head) else {
        return;
    };
    let calibration = learned.calibration.of_head(head);
    open.extend(ranked.iter().enumerate().filter_map(|(rank, guess)| {
        let edge = calibration.probability(Feature::new(rank, guess.weight));
        let path = above * edge;
        (path >= MIN_PATH).then_some(Product {
            parent,
            head,
            rank,
            edge,
            path,
        })
    }));
}

/// Learns from the tokens that are about to be committed, as [`Replica::learn`] does for other sources, but head by head.
pub(super) fn learn(replica: &Replica<Advised>, tokens: &[u32], learned: &mut Learned) {
    let mut at = None;
    for &token in tokens {
        for &child in replica.tree.children(at) {
            if let Some(node) = replica.tree.get(child)
                && let Some(HeadGuess { head, feature, .. }) = node.payload.own.head
            {
                (learned.calibration.of_head(usize::from(head)))
                    .observe(feature, Outcome::of(node.token, token));
            }
        }
        at = match replica.tree.child(at, token) {
            Some(child) => Some(child),
            None => return,
        };
    }
}

/// Where others' guesses are thought to be right with this probability, heads have little to add.
const COVERED: f32 = 0.6;

/// Picks behind which the guesses of others go on already. `asked` are the rows of the step that are asked for a pick, in
/// order.
pub(super) fn known(replica: &Replica<Advised>, asked: &[Option<NodeId>]) -> Vec<(u16, u32)> {
    let tree = &replica.tree;
    let covered = |id: &NodeId| {
        let others = (tree
            .children(Some(*id))
            .iter()
            .filter_map(|&id| tree.get(id)))
        .filter(|node| (node.payload.own.head).is_none_or(|guess| guess.maker == Maker::Other));
        others.map(Node::edge).sum::<f32>() >= COVERED
    };
    let mut known: Vec<(u16, u32)> = Vec::new();
    for (place, &at) in asked.iter().enumerate() {
        let Ok(place) = u16::try_from(place) else {
            break;
        };
        let children = tree.children(at).iter().filter(|id| covered(id));
        known.extend(children.filter_map(|&id| Some((place, tree.get(id)?.token))));
    }
    known.sort_unstable();
    known
}

/// What was answered where a walk ended, if it ended at this place with this token.
pub(super) fn at_end(answers: &[Answer], place: Option<usize>, token: u32) -> Option<&EndAnswer> {
    let Some(Answer::End(end)) = answers.last() else {
        return None;
    };
    (Some(usize::from(end.place)) == place && end.token == token).then_some(end)
}

//! The tree as a set of token paths.

use std::collections::BTreeMap;

use proptest::prelude::*;
use speculation::tree::{Graft, Grafted, NodeId, Tree};

const VOCAB: u32 = 3;

#[derive(Clone, Debug)]
enum Change {
    /// Graft below the nth known id, the root included, dead ones too.
    Graft(usize, u32, f32),
    SetEdge(usize, f32),
    Commit(Vec<u32>),
}

fn edge() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => 0.0f32..=1.0,
        1 => Just(f32::NAN),
        1 => Just(7.0f32),
        1 => Just(-1.0f32),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (any::<usize>(), 0..VOCAB, edge()).prop_map(|(at, token, p)| Change::Graft(at, token, p)),
        2 => (any::<usize>(), edge()).prop_map(|(at, p)| Change::SetEdge(at, p)),
        2 => prop::collection::vec(0..VOCAB, 0..4).prop_map(Change::Commit),
    ]
}

fn sane(p: f32) -> f32 {
    if p.is_nan() { 0.0 } else { p.clamp(0.0, 1.0) }
}

#[derive(Debug)]
struct Guess {
    id: NodeId,
    edge: f32,
    payload: usize,
}

/// Every guess by its path from the committed text.
#[derive(Debug, Default)]
struct Model {
    len: u32,
    guesses: BTreeMap<Vec<u32>, Guess>,
}

impl Model {
    fn path_of(&self, id: NodeId) -> Option<Vec<u32>> {
        let found = self.guesses.iter().find(|(_, guess)| guess.id == id);
        found.map(|(path, _)| path.clone())
    }

    fn score(&self, path: &[u32]) -> f32 {
        (1..=path.len()).fold(1.0, |score, end| score * self.guesses[&path[..end]].edge)
    }

    fn remove(&mut self, doomed: impl Fn(&[u32]) -> bool) -> Vec<NodeId> {
        let gone: Vec<Vec<u32>> = self
            .guesses
            .keys()
            .filter(|path| doomed(path))
            .cloned()
            .collect();
        gone.iter()
            .map(|path| self.guesses.remove(path).unwrap().id)
            .collect()
    }

    /// Commits tokens; returns the matched, the removed, and whether it was a hit.
    fn commit(&mut self, tokens: &[u32]) -> (Vec<NodeId>, Vec<NodeId>, bool) {
        let known = |end: &usize| self.guesses.contains_key(&tokens[..*end]);
        let matched = (1..=tokens.len()).take_while(known).count();
        let ids = (1..=matched)
            .map(|end| self.guesses[&tokens[..end]].id)
            .collect();
        for end in 1..=matched {
            self.guesses.remove(&tokens[..end]);
        }
        let removed = self.remove(|path| !path.starts_with(tokens));
        let below = std::mem::take(&mut self.guesses);
        let shorter = |path: Vec<u32>| path[tokens.len()..].to_vec();
        self.guesses = below
            .into_iter()
            .map(|(path, guess)| (shorter(path), guess))
            .collect();
        self.len += tokens.len() as u32;
        (ids, removed, matched == tokens.len())
    }

    fn check(&self, tree: &Tree<usize>) {
        assert_eq!(
            (tree.len(), tree.committed_len()),
            (self.guesses.len(), self.len)
        );
        assert_eq!(tree.is_empty(), self.guesses.is_empty());
        assert_eq!(tree.iter().count(), self.guesses.len());
        for (path, guess) in &self.guesses {
            let node = tree.get(guess.id).expect("live in the model");
            assert_eq!(&tree.tokens_to(guess.id), path);
            assert_eq!(tree.descend(path).last(), Some(&guess.id));
            assert_eq!(node.position, self.len + path.len() as u32 - 1);
            assert_eq!((node.payload, node.edge()), (guess.payload, guess.edge));
            assert!((node.path() - self.score(path)).abs() < 1e-5);
            let parent = node.parent.map(|id| tree.tokens_to(id)).unwrap_or_default();
            assert_eq!(parent, path[..path.len() - 1]);
            assert!(tree.children(node.parent).contains(&guess.id));
        }
    }

    /// The simple best-first: again and again the best node whose parent was taken.
    fn check_best(&self, tree: &Tree<usize>, limit: usize, min_path: f32) {
        let best = tree.best_below(None, limit, min_path);
        let mut taken: Vec<NodeId> = Vec::new();
        for id in &best {
            let node = tree.get(*id).unwrap();
            assert!(node.path() >= min_path);
            assert!(node.parent.is_none_or(|parent| taken.contains(&parent)));
            let better = tree.iter().any(|(other, rival)| {
                other != *id
                    && !taken.contains(&other)
                    && rival.parent.is_none_or(|parent| taken.contains(&parent))
                    && rival.path() > node.path()
            });
            assert!(!better, "a better guess was left out");
            taken.push(*id);
        }
        let worthy = tree
            .iter()
            .filter(|(_, node)| node.path() >= min_path)
            .count();
        assert_eq!(best.len(), worthy.min(limit));
    }
}

fn ids(nodes: &[(NodeId, speculation::tree::Node<usize>)]) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = nodes.iter().map(|(id, _)| *id).collect();
    ids.sort();
    ids
}

fn sorted(mut ids: Vec<NodeId>) -> Vec<NodeId> {
    ids.sort();
    ids
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn it_is_a_set_of_paths(changes in prop::collection::vec(change(), 1..60)) {
        let mut tree = Tree::new(0);
        let mut model = Model::default();
        let mut known: Vec<NodeId> = Vec::new();
        for (turn, change) in changes.into_iter().enumerate() {
            let pick = |at: usize| (!known.is_empty()).then(|| known[at % known.len()]);
            match change {
                Change::Graft(at, token, p) => {
                    let parent = match at % (known.len() + 1) {
                        0 => None,
                        nth => Some(known[nth - 1]),
                    };
                    let graft = Graft { token, edge: p, owner: 0, payload: turn };
                    let grafted = tree.graft(parent, graft);
                    let above = match parent {
                        None => Some(Vec::new()),
                        Some(id) => model.path_of(id),
                    };
                    let Some(mut path) = above else {
                        assert_eq!(grafted, None, "a dead node grows no children");
                        continue;
                    };
                    path.push(token);
                    match grafted.expect("the parent lives") {
                        Grafted::Existing(id) => assert_eq!(model.guesses[&path].id, id),
                        Grafted::New(id) => {
                            assert!(!known.contains(&id), "an id came back");
                            known.push(id);
                            let guess = Guess { id, edge: sane(p), payload: turn };
                            assert!(model.guesses.insert(path, guess).is_none());
                        }
                    }
                }
                Change::SetEdge(at, p) => {
                    let Some(id) = pick(at) else { continue };
                    tree.set_edge(id, p);
                    if let Some(path) = model.path_of(id) {
                        model.guesses.get_mut(&path).unwrap().edge = sane(p);
                    }
                }
                Change::Commit(tokens) => {
                    let committed = tree.commit(&tokens);
                    let (matched, removed, hit) = model.commit(&tokens);
                    let found: Vec<NodeId> = committed.matched.iter().map(|(id, _)| *id).collect();
                    assert_eq!(found, matched, "the matched nodes come from the root down");
                    assert_eq!(ids(&committed.removed), sorted(removed));
                    assert_eq!(committed.hit, hit);
                }
            }
            model.check(&tree);
            model.check_best(&tree, 1 + turn % 7, [0.0, 0.01, 0.3][turn % 3]);
        }
    }
}

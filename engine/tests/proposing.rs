//! A backend whose guesses a proposer makes: the proposer is asked once for what it gives at once, and sees the text of its
//! own sequence and nothing else.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

extern crate offshoot_engine as engine;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use decode::{
    Answer, Ask, CacheOp, Guess, NodeId, Proposal, Proposed, Proposer, Row, SamplerState, Sampling,
    Seen, StepPlan,
};
use engine::{Backend, EngineOptions, Proposing, ProposingSpec, SeqId, SeqStep, StepEnd};

const VOCAB: u32 = 50;

/// Counts on from the last token, four tokens at a time; beside the first one it likes the token 7 less, and one that is not
/// in the vocabulary.
struct Counting {
    calls: Arc<AtomicUsize>,
    /// The text that it has seen; it only grows.
    text: Vec<u32>,
}

impl Proposer for Counting {
    fn propose(&mut self, seen: &Seen<'_>, most: usize) -> Proposal {
        self.calls.fetch_add(1, Relaxed);
        assert!(seen.before.text.starts_with(&self.text), "another text");
        self.text = seen.before.text.to_vec();
        let last = *seen.before.path.last().or(self.text.last()).unwrap();
        let mut proposal = Proposal::default();
        let guess = |token, parent, rank| Proposed {
            parent,
            rank,
            guess: Guess::rated(token, 0.5),
        };
        proposal.push(guess(VOCAB + 1, None, 1));
        proposal.push(guess(7, None, 2));
        let mut parent = None;
        for token in (last + 1)..(last + 5).min(VOCAB) {
            parent = proposal.push(guess(token, parent, 0));
        }
        assert!(proposal.len() <= most);
        proposal
    }
}

struct Rig {
    backend: Proposing,
    calls: Arc<AtomicUsize>,
    seq: SeqId,
    text: Vec<u32>,
    sampler: SamplerState,
}

fn rig(text: &[u32]) -> Rig {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let spec = ProposingSpec {
        name: "counting".to_owned(),
        vocab: VOCAB,
        max_positions: 64,
        make: Box::new(move || {
            Box::new(Counting {
                calls: Arc::clone(&counted),
                text: Vec::new(),
            })
        }),
    };
    let mut backend = Proposing::new(spec, &EngineOptions::for_sequences(64, 2)).unwrap();
    let seq = backend.open(64).unwrap();
    Rig {
        backend,
        calls,
        seq,
        text: text.to_vec(),
        sampler: Sampling::default().into(),
    }
}

fn node(index: u32) -> NodeId {
    NodeId {
        index,
        generation: 0,
    }
}

/// A row for each token of a path, one below the other, from the number `first` on.
fn chain(first: u32, path: &[u32]) -> Vec<Row> {
    (path.iter().enumerate())
        .map(|(at, &token)| Row {
            node: node(first + at as u32),
            parent: (at > 0).then(|| node(first + at as u32 - 1)),
            token,
            path: path[..=at].to_vec(),
            ask: Ask::Guesses(8),
        })
        .collect()
}

impl Rig {
    fn step(&mut self, plan: &StepPlan) -> Vec<Answer> {
        let mut batch = [SeqStep {
            seq: self.seq,
            plan,
            text: &self.text,
            prompt_len: 1,
            sampler: &mut self.sampler,
        }];
        let end = self
            .backend
            .step(&mut batch, &mut |_| ControlFlow::Continue(()));
        match end.unwrap() {
            StepEnd::Done(mut answers) => answers.remove(0),
            StepEnd::Interrupted => panic!("nobody interrupts it"),
        }
    }

    /// The tokens that are guessed, and how often the proposer was asked for them.
    fn guesses(&mut self, plan: &StepPlan) -> (Vec<Vec<u32>>, usize) {
        let before = self.calls.load(Relaxed);
        let answers = self.step(plan);
        let tokens = |answer: &Answer| match answer {
            Answer::Guesses(guesses) => guesses.iter().map(|guess| guess.token).collect(),
            other => panic!("{other:?} instead of guesses"),
        };
        let guesses = answers.iter().map(tokens).collect();
        (guesses, self.calls.load(Relaxed) - before)
    }

    /// The tokens that the cache lacks; the last one is asked for guesses.
    fn appended(&self) -> StepPlan {
        StepPlan {
            append: self.text[self.backend.len(self.seq)..].to_vec(),
            asks: vec![Ask::Guesses(8)],
            ..StepPlan::default()
        }
    }
}

fn rows(rows: Vec<Row>) -> StepPlan {
    StepPlan {
        rows,
        ..StepPlan::default()
    }
}

#[test]
fn a_tree_that_was_given_at_once_is_asked_for_once() {
    let mut rig = rig(&[1, 10]);
    let (guesses, calls) = rig.guesses(&rig.appended());
    assert_eq!(
        guesses,
        [vec![11, 7]],
        "best first, and none beyond the vocabulary"
    );
    assert_eq!(calls, 1);
    let (guesses, calls) = rig.guesses(&rows(chain(0, &[11, 12, 13])));
    assert_eq!(guesses, [[12], [13], [14]]);
    assert_eq!(calls, 0, "all of it is in the tree");
    // What it has guessed is committed: the tree still says what comes then.
    rig.backend
        .apply(rig.seq, &CacheOp::Keep((0..3).map(node).collect()))
        .unwrap();
    rig.text.extend([11, 12, 13]);
    let (guesses, calls) = rig.guesses(&rows(chain(5, &[14])));
    assert_eq!(
        (guesses, calls),
        (vec![vec![15, 7]], 1),
        "it ends there, and is asked"
    );
}

#[test]
fn who_leaves_the_tree_is_answered_too() {
    let mut rig = rig(&[1, 10]);
    rig.guesses(&rig.appended());
    let (guesses, calls) = rig.guesses(&rows(chain(0, &[30, 31])));
    assert_eq!(guesses, [vec![31, 7], vec![32]]);
    assert_eq!(calls, 1);
}

#[test]
fn a_text_that_was_cut_off_gets_another_proposer() {
    let mut rig = rig(&[1, 10, 11]);
    rig.guesses(&rig.appended());
    rig.backend.apply(rig.seq, &CacheOp::Shorten(1)).unwrap();
    // The proposer itself checks that its text only grows.
    rig.text = vec![1, 20];
    assert_eq!(rig.guesses(&rig.appended()).0, [[21, 7]]);
    let released = rig.seq;
    rig.backend.release(released);
    rig.seq = rig.backend.open(64).unwrap();
    rig.text = vec![40];
    assert_eq!(rig.guesses(&rig.appended()).0, [[41, 7]]);
}

#[test]
fn it_decides_nothing() {
    let mut rig = rig(&[1, 10]);
    let plan = StepPlan {
        append: rig.text.clone(),
        asks: vec![Ask::Pick { score: None }],
        ..StepPlan::default()
    };
    assert_eq!(rig.step(&plan), [Answer::NotFinite]);
    assert_eq!(rig.calls.load(Relaxed), 0);
}

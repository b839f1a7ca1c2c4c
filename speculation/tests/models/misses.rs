//! A draft's account of why the target missed.

use speculation::Time;
use speculation::duty::{Duties, Duty};
use speculation::message::{Outlook, ReplicaUpdate, SessionSpec};
use speculation::misses::{MissCause, Misses};
use speculation::strategy::Settings;

use crate::rig::{AMPLE, VOCAB, Worker, next, spec};

const TEXT: [u32; 4] = [1, 2, 3, 4];

/// A draft with a chain of guesses, which has heard of one commit and no miss.
struct Draft {
    worker: Worker,
    text: Vec<u32>,
    missed: u32,
}

impl Draft {
    fn new() -> Draft {
        let spec = SessionSpec {
            duties: Duties::of(Duty::Propose),
            strategy: Settings::new("serial").with("gamma", 8.0),
            ..spec(&TEXT)
        };
        let mut draft = Draft {
            worker: Worker::new(&spec, AMPLE),
            text: TEXT.to_vec(),
            missed: 0,
        };
        draft.commit(&[next(&TEXT)]);
        draft
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.worker.step(Time::ZERO, 256);
        }
    }

    /// What the target says with a commit holds for the commits before it.
    fn commit(&mut self, tokens: &[u32]) {
        let update = ReplicaUpdate {
            base_len: self.text.len() as u32,
            commit: tokens.to_vec(),
            outlook: Outlook {
                accepted: Some(1.0),
                misses: self.missed,
                ..Outlook::default()
            },
            ..ReplicaUpdate::default()
        };
        self.worker.update(Time::ZERO, &update);
        self.text.extend_from_slice(tokens);
    }

    /// A walk ends in the last of these tokens, and the next one in the draft's guess; only the first was a miss.
    fn miss(&mut self, tokens: &[u32]) -> Misses {
        self.commit(tokens);
        self.missed += 1;
        self.hit()
    }

    fn hit(&mut self) -> Misses {
        self.commit(&[next(&self.text)]);
        self.steps(1);
        // A report is made when there are new guesses.
        self.worker.report().expect("it has grown").misses
    }
}

/// The draft's guess behind the text, and a token that it does not guess.
fn right_and_wrong(draft: &Draft) -> (u32, u32) {
    let right = next(&draft.text);
    (right, (right + 1) % VOCAB)
}

#[test]
fn every_miss_has_the_cause_that_the_draft_knows() {
    let mut draft = Draft::new();
    let (right, _) = right_and_wrong(&draft);
    let counts = draft.miss(&[right]);
    assert_eq!((counts.of(MissCause::Unexpanded), counts.total()), (1, 1));

    let (right, _) = right_and_wrong(&draft);
    let counts = draft.miss(&[right]);
    assert_eq!((counts.of(MissCause::InFlight), counts.total()), (1, 2));

    draft.steps(3);
    let (right, _) = right_and_wrong(&draft);
    let counts = draft.miss(&[right]);
    assert_eq!((counts.of(MissCause::Withheld), counts.total()), (1, 3));

    let (_, wrong) = right_and_wrong(&draft);
    let counts = draft.miss(&[wrong]);
    assert_eq!((counts.of(MissCause::Unranked), counts.total()), (1, 4));

    let (_, wrong) = right_and_wrong(&draft);
    let counts = draft.miss(&[wrong, 0, 0]);
    assert_eq!((counts.of(MissCause::Behind), counts.total()), (1, 5));
}

#[test]
fn a_hit_has_no_cause() {
    let mut draft = Draft::new();
    draft.steps(2);
    for _ in 0..3 {
        assert_eq!(draft.hit().total(), 0);
    }
}

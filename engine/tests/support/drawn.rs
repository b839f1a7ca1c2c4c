//! A small synthetic backend.

use decode::{CacheOp, SamplerState, StepPlan};
use engine::synthetic::{Member, Profile, Spec, Synthetic};
use engine::{Backend, EngineOptions, SeqId, SeqStep, StepEnd};
use offshoot_engine as engine;

/// A stated profile of four guesses, in blocks of eight.
pub(crate) const STATED: &str = r#"{
    "format": "offshoot-profile", "version": 1, "name": "test", "guesses": 4, "block": 8,
    "temperatures": [
        {"temperature": 0, "stated": {"draft": [0.6, 0.2, 0.1], "qualifier": [0.9, 0.6], "streak": 4}},
        {"temperature": 1, "stated": {"draft": [0.5, 0.2, 0.1, 0.1], "qualifier": [0.9, 0.6]}}
    ]
}"#;

/// Ids of the vocabulary.
pub(crate) const VOCAB: u32 = 101;

/// One member over a vocabulary whose last token ends a text.
pub(crate) fn spec(member: Member, vocab: u32) -> Spec {
    Spec {
        profile: Profile::parse(STATED.as_bytes(), "the test").unwrap(),
        member,
        vocab,
        tokens: (0..vocab).collect(),
        max_positions: 256,
        eos: vec![vocab - 1],
    }
}

/// Two sequences of 32 positions and 8 tree rows each, 16 rows a step.
pub(crate) fn small(member: Member) -> Synthetic {
    let options = EngineOptions {
        scratch_rows: 8,
        max_rows: 16,
        ..EngineOptions::for_sequences(32, 2)
    };
    Synthetic::new(spec(member, VOCAB), &options).unwrap()
}

/// One sequence with its text, and how it samples.
pub(crate) struct Line {
    pub(crate) seq: SeqId,
    pub(crate) text: Vec<u32>,
    pub(crate) sampler: SamplerState,
}

impl Line {
    pub(crate) fn open(backend: &mut dyn Backend, max_len: usize, sampler: SamplerState) -> Line {
        Line {
            seq: backend.open(max_len).unwrap(),
            text: Vec::new(),
            sampler,
        }
    }

    /// One step of this sequence alone.
    pub(crate) fn step(&mut self, backend: &mut dyn Backend, plan: &StepPlan) -> StepEnd {
        self.text.extend(&plan.append);
        let batch = &mut [SeqStep {
            seq: self.seq,
            plan,
            text: &self.text,
            prompt_len: 0,
            sampler: &mut self.sampler,
        }];
        let go_on = &mut |_| std::ops::ControlFlow::Continue(());
        backend.step(batch, go_on).unwrap()
    }

    /// Applies an operation; `tokens` are those that a chain of kept rows adds to the text.
    pub(crate) fn apply(&mut self, backend: &mut dyn Backend, op: &CacheOp, tokens: &[u32]) {
        backend.apply(self.seq, op).unwrap();
        self.text.extend(tokens);
        self.text.truncate(backend.len(self.seq));
    }
}

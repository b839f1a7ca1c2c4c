//! The plainest decoder there is, and a small generator of random numbers.

use std::collections::HashMap;

use super::schedule::Subject;
use super::{Asked, append, bits};
use decode::{Answer, Ask, History, Sampler, SamplerState, Sampling};

/// What is right, from the most obvious way to get there.
pub(crate) trait Reference {
    /// The answer to a row behind a text and a path.
    fn answer(&mut self, ask: Ask, history: &History<'_>, sampling: &Sampling) -> Answer;

    /// The bits of the logits behind `path`, where there are logits.
    fn bits(&mut self, path: &[u32]) -> &[u32];
}

/// Logits by token path, from an engine that appends one token a step and nothing else.
pub(crate) struct Plain {
    sampler: Sampler,
    engine: Box<dyn Subject>,
    known: HashMap<Vec<u32>, Vec<u32>>,
}

impl Plain {
    pub(crate) fn new(engine: impl Subject + 'static) -> Plain {
        Plain {
            sampler: Sampler::new(engine.facts().vocab),
            engine: Box::new(engine),
            known: HashMap::new(),
        }
    }
}

impl Reference for Plain {
    fn answer(&mut self, ask: Ask, history: &History<'_>, sampling: &Sampling) -> Answer {
        let path = [history.text, history.path].concat();
        let logits: Vec<f32> = (self.bits(&path).iter())
            .map(|bits| f32::from_bits(*bits))
            .collect();
        // A state that has seen nothing before: what it remembers must not matter.
        let mut state = SamplerState::from(sampling.clone());
        let answer = self.sampler.answer(ask, &logits, &mut state, history);
        answer.unwrap()
    }

    fn bits(&mut self, path: &[u32]) -> &[u32] {
        if !self.known.contains_key(path) {
            let seq = self.engine.open(path.len()).unwrap();
            for i in 0..path.len() {
                let plan = append(&path[i..=i], Asked::Last);
                let logits = self.engine.read(&[(seq, &plan)]);
                self.known.insert(path[..=i].to_vec(), bits(&logits[0]));
            }
            self.engine.release(seq);
        }
        &self.known[path]
    }
}

/// A small generator, so that a schedule is one number.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

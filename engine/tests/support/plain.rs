//! The plainest decoder there is, and a small generator of random numbers.

use std::collections::HashMap;

use super::schedule::Subject;
use super::{Asked, append, bits};
use decode::{Answer, Ask, CacheOp, History, Sampler, SamplerState, Sampling};
use offshoot_engine::SeqId;

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
    /// A sequence that is kept, with its tokens; none where every path is computed from its beginning.
    kept: Option<(SeqId, Vec<u32>)>,
}

impl Plain {
    pub(crate) fn new(engine: impl Subject + 'static) -> Plain {
        Plain {
            sampler: Sampler::new(engine.facts().vocab),
            engine: Box::new(engine),
            known: HashMap::new(),
            kept: None,
        }
    }

    /// One that keeps its sequence, of `max_len` tokens at most, and goes back to where paths part: for engines that are slow.
    #[allow(dead_code, reason = "not every test has a slow engine")]
    pub(crate) fn keeping(engine: impl Subject + 'static, max_len: usize) -> Plain {
        let mut plain = Plain::new(engine);
        plain.kept = Some((plain.engine.open(max_len).unwrap(), Vec::new()));
        plain
    }

    /// The sequence that a path is computed in, and how many of its tokens are there.
    fn begin(&mut self, path: &[u32]) -> (SeqId, usize) {
        let Some((seq, held)) = &mut self.kept else {
            return (self.engine.open(path.len()).unwrap(), 0);
        };
        let same = held.iter().zip(path).take_while(|(a, b)| a == b).count();
        // Another path's logits may not be known this far.
        let len = same.min(path.len() - 1);
        if len < held.len() {
            let op = CacheOp::Shorten(len as u32);
            self.engine.apply(*seq, &op).unwrap();
        }
        *held = path.to_vec();
        (*seq, len)
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
            let (seq, begun) = self.begin(path);
            for i in begun..path.len() {
                let plan = append(&path[i..=i], Asked::Last);
                let logits = self.engine.read(&[(seq, &plan)]);
                self.known.insert(path[..=i].to_vec(), bits(&logits[0]));
            }
            if self.kept.is_none() {
                self.engine.release(seq);
            }
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

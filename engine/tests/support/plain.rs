//! The plainest decoder there is, and a small generator of random numbers.

use std::collections::HashMap;

use engine::{Backend, CpuEngine};
use offshoot_engine as engine;

use super::{Asked, append_to, bits};

/// Logits by token path, from an engine that appends one token a step and nothing else.
pub(crate) struct Plain {
    engine: CpuEngine,
    known: HashMap<Vec<u32>, Vec<u32>>,
}

impl Plain {
    pub(crate) fn new(engine: CpuEngine) -> Plain {
        Plain {
            engine,
            known: HashMap::new(),
        }
    }

    /// The bits of the logits behind `path`.
    pub(crate) fn bits(&mut self, path: &[u32]) -> &[u32] {
        if !self.known.contains_key(path) {
            let seq = self.engine.open(path.len()).unwrap();
            for i in 0..path.len() {
                let logits = append_to(&mut self.engine, seq, &path[i..=i], Asked::Last);
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

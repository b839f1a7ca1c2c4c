//! The stupid reference: languages of three tokens whose every answer is a hash of everything before it.

use speculation::draft::Guess;
use speculation::message::{Finish, Score, Stopping};
use speculation::walk::Picked;

/// Small, so that guesses often meet, agree and collide.
pub(crate) const VOCAB: u32 = 3;

/// Dice for schedules (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Dice(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }

    pub(crate) fn percent(&mut self, percent: u32) -> bool {
        self.roll() % 100 < u64::from(percent)
    }

    #[cfg(test)]
    pub(crate) fn permille(&mut self, permille: u32) -> bool {
        self.roll() % 1000 < u64::from(permille)
    }
}

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of a whole text.
pub(crate) fn hash(seed: u64, text: &[u32]) -> u64 {
    text.iter()
        .fold(mix(seed ^ text.len() as u64), |hash, &token| {
            mix(hash ^ (u64::from(token) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        })
}

/// What the target says: a pure function of the whole text before it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Language {
    pub(crate) seed: u64,
}

impl Language {
    /// The token behind `prefix`. Token 2 is rare, so that it can serve as a stop token.
    pub(crate) fn next(self, prefix: &[u32]) -> u32 {
        let hash = hash(self.seed, prefix);
        if hash.is_multiple_of(12) {
            2
        } else {
            (hash >> 8) as u32 % 2
        }
    }

    /// Plain decoding: the text every strategy has to give.
    pub(crate) fn plain(self, prompt: &[u32], stopping: &Stopping) -> (Vec<u32>, Finish) {
        let mut text = prompt.to_vec();
        loop {
            let token = self.next(&text);
            text.push(token);
            if stopping.stop_ids.contains(&token) {
                return (text, Finish::Stop);
            }
            if text.len() >= stopping.max_len as usize {
                let finish = if stopping.max_len_is_context {
                    Finish::Context
                } else {
                    Finish::Length
                };
                return (text, finish);
            }
        }
    }
}

/// What the target finds of the last token of `text`: a pure function of the whole text, as a score is.
pub(crate) fn score(language: Language, text: &[u32], top: u8) -> Score {
    let hash = hash(language.seed ^ 0x5c02e, text);
    Score {
        logprob: -((hash % 1000) as f32) / 100.0,
        rank: 1 + (hash >> 32) as u32 % VOCAB,
        top: (0..u32::from(top))
            .map(|rank| (rank % VOCAB, -((hash >> 8) as u16 as f32) - rank as f32))
            .collect(),
    }
}

/// A model that agrees with the target at `agreement` percent of all texts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Speaker {
    pub(crate) language: Language,
    pub(crate) salt: u64,
    pub(crate) agreement: u32,
}

impl Speaker {
    /// The target itself.
    pub(crate) fn target(language: Language) -> Self {
        Speaker {
            language,
            salt: 0,
            agreement: 100,
        }
    }

    pub(crate) fn next(self, prefix: &[u32]) -> u32 {
        let right = self.language.next(prefix);
        let hash = hash(self.language.seed ^ self.salt, prefix);
        if hash % 100 < u64::from(self.agreement) {
            right
        } else {
            (right + 1 + (hash >> 20) as u32 % 2) % VOCAB
        }
    }

    /// Up to `branch` guesses, best first; now and then none, as from a model whose answer is not a number.
    pub(crate) fn guesses(self, prefix: &[u32], branch: usize) -> Vec<Guess> {
        let hash = hash(!self.salt, prefix);
        if hash.is_multiple_of(61) {
            return Vec::new();
        }
        let first = self.next(prefix);
        let top = [0.97, 0.8, 0.6, 0.4][(hash >> 8) as usize % 4];
        let weights = [top, (1.0 - top) * 0.7, (1.0 - top) * 0.3];
        (0..branch.min(VOCAB as usize))
            .map(|rank| Guess {
                token: (first + rank as u32) % VOCAB,
                weight: weights[rank],
            })
            .collect()
    }

    pub(crate) fn pick(self, prefix: &[u32]) -> Picked {
        Picked {
            token: self.next(prefix),
            margin: (hash(self.salt, prefix) % 400) as f32 / 20.0,
            score: None,
        }
    }
}

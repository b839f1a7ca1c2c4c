//! The stupid reference: languages of three tokens whose every answer is a hash of everything before it.

use decode::{Answer, Guess, Pick, Score};
use speculation::message::{Finish, Stopping};

/// Small, so that guesses often meet, agree and collide.
pub const VOCAB: u32 = 3;

/// Random numbers for schedules (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Dice(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }

    /// Whether something happens that has so many chances in a hundred.
    pub fn percent(&mut self, percent: u32) -> bool {
        self.roll() % 100 < u64::from(percent)
    }

    /// Whether something happens that has so many chances in a thousand.
    pub fn permille(&mut self, permille: u32) -> bool {
        self.roll() % 1000 < u64::from(permille)
    }

    /// One of these.
    pub fn pick<T: Copy, const N: usize>(&mut self, of: [T; N]) -> T {
        of[self.below(N)]
    }
}

fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of a whole text.
pub fn hash(seed: u64, text: &[u32]) -> u64 {
    text.iter()
        .fold(mix(seed ^ text.len() as u64), |hash, &token| {
            mix(hash ^ (u64::from(token) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        })
}

/// What the target says: a pure function of the whole text before it.
#[derive(Clone, Copy, Debug)]
pub struct Language {
    /// Two seeds are two languages.
    pub seed: u64,
    /// Behind a text of this length the target's answer is not a number.
    pub breaks_at: Option<usize>,
}

impl Language {
    /// A language in which every text goes on.
    pub fn new(seed: u64) -> Self {
        Language {
            seed,
            breaks_at: None,
        }
    }

    /// The token behind `prefix`. Token 2 is rare, so that it can serve as a stop token.
    pub fn next(self, prefix: &[u32]) -> u32 {
        let hash = hash(self.seed, prefix);
        if hash.is_multiple_of(12) {
            2
        } else {
            (hash >> 8) as u32 % 2
        }
    }

    /// Plain decoding: the text every strategy has to give.
    pub fn plain(self, prompt: &[u32], stopping: &Stopping) -> (Vec<u32>, Finish) {
        let mut text = prompt.to_vec();
        loop {
            if self.breaks_at == Some(text.len()) {
                return (text, Finish::NotFinite);
            }
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
pub fn score(language: Language, text: &[u32], top: u8) -> Score {
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
pub struct Model {
    /// The target's language.
    pub language: Language,
    /// Two salts disagree with the target at different places.
    pub salt: u64,
    /// Percent.
    pub agreement: u32,
    /// Whether it decides the text.
    pub is_target: bool,
}

impl Model {
    /// The target itself.
    pub fn target(language: Language) -> Self {
        Model {
            language,
            salt: 0,
            agreement: 100,
            is_target: true,
        }
    }

    /// Its own token behind `prefix`.
    fn next(self, prefix: &[u32]) -> u32 {
        let right = self.language.next(prefix);
        let hash = hash(self.language.seed ^ self.salt, prefix);
        if hash % 100 < u64::from(self.agreement) {
            right
        } else {
            (right + 1 + (hash >> 20) as u32 % 2) % VOCAB
        }
    }

    /// Up to `most` guesses, best first; now and then none, or an answer that is not a number.
    pub fn guesses(self, prefix: &[u32], most: usize) -> Answer {
        let hash = hash(!self.salt, prefix);
        match hash % 122 {
            0 => return Answer::NotFinite,
            1 => return Answer::Guesses(Vec::new()),
            _ => {}
        }
        let first = self.next(prefix);
        let top = [0.97, 0.8, 0.6, 0.4][(hash >> 8) as usize % 4];
        let weights = [top, (1.0 - top) * 0.7, (1.0 - top) * 0.3];
        let guess = |rank: usize| Guess {
            token: (first + rank as u32) % VOCAB,
            q: weights[rank],
            margin: if rank == 0 { 2.0 } else { -2.0 },
            weight: weights[rank],
        };
        Answer::Guesses((0..most.min(VOCAB as usize)).map(guess).collect())
    }

    /// The token it picks behind `prefix`, with its score if one is wanted.
    pub fn pick(self, prefix: &[u32], score_top: Option<u8>) -> Answer {
        let hash = hash(self.salt, prefix);
        let is_broken = match self.is_target {
            true => self.language.breaks_at == Some(prefix.len()),
            false => hash.is_multiple_of(211),
        };
        if is_broken {
            return Answer::NotFinite;
        }
        let token = self.next(prefix);
        let known = || [prefix, &[token]].concat();
        Answer::Pick(Pick {
            token,
            margin: (hash % 400) as f32 / 20.0,
            score: score_top.map(|top| Box::new(score(self.language, &known(), top))),
        })
    }
}

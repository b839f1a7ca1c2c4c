//! What the CPU's sampler answers to random rows and requests, written for the emulator to be compared with.
//!
//! A case is a stream of 32-bit words, floats by their bits: what is asked and how, the row, and the answer. `cases` in
//! `emulator/sampling_cases.hpp` reads it.

use decode::sampling::{SamplingParams, Shaping};
use decode::{Answer, Ask, Basis, Guess, History, Sampler, SamplerState, Sampling, Score};

/// Random numbers from a seed: xorshift64* (Vigna, 2016).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u32) -> u32 {
        ((self.next() >> 16) % u64::from(limit)) as u32
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// Roughly normal.
    fn bell(&mut self) -> f64 {
        (0..6).map(|_| self.unit() - 0.5).sum::<f64>() * 1.4
    }

    fn params(&mut self) -> SamplingParams {
        let few = self.below(40);
        let share = (self.unit() as f32).max(1e-6);
        SamplingParams {
            temperature: self.of(&[0.0, 1e-45, 1e-30, 1e-3, 0.3, 0.7, 1.0, 1.0, 1.0, 2.0, 100.0]),
            top_k: self.of(&[0, 0, 0, 1, 2, 5, 17, few, 1000, u32::MAX]),
            top_p: self.of(&[1.0, 1.0, 1.0, 0.999_999_94, 0.99, 0.9, 0.5, 1e-30, share]),
            min_p: self.of(&[0.0, 0.0, 0.0, 1e-40, 1e-6, 0.01, 0.1, 1.0, share]),
            seed: self.of(&[0, 1, u64::MAX, few.into(), 0x8000_0000_0000_0000]),
            choice: self.of(&[0, 0, 1, u32::MAX]),
        }
    }

    fn logits(&mut self, vocab: u32) -> Vec<f32> {
        let scale = self.of(&[0.0, 1e-30, 0.1, 1.0, 3.0, 10.0, 1000.0, 1e30]);
        let shift = self.of(&[0.0, 0.0, -50.0, 1e6, -1e30]);
        let mut logits: Vec<f32> = (0..vocab)
            .map(|_| (self.bell() * scale + shift) as f32)
            .collect();
        match self.below(8) {
            // Many exact ties, both zeros among them.
            0 => logits
                .iter_mut()
                .for_each(|l| *l = (*l).clamp(-2.0, 2.0).round() * 0.5),
            // The ends of the number range.
            1 => {
                for logit in &mut logits {
                    if self.below(4) == 0 {
                        *logit = self.of(&[f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0, 1e-45]);
                    }
                }
            }
            // A row that is broken.
            2 if self.below(4) == 0 => {
                let at = self.below(vocab) as usize;
                logits[at] = self.of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            }
            _ => {}
        }
        logits
    }

    fn shaping(&mut self, vocab: u32) -> Shaping {
        let mut bias: Vec<(u32, f32)> = Vec::new();
        for _ in 0..self.of(&[0, 0, 1, 3, vocab]).min(1024) {
            let id = self.below(vocab);
            if bias.iter().all(|&(other, _)| other != id) {
                let odd = (self.bell() * 5.0) as f32;
                bias.push((
                    id,
                    self.of(&[0.0, -0.0, 100.0, -100.0, odd.clamp(-100.0, 100.0)]),
                ));
            }
        }
        let share = self.unit() as f32;
        Shaping {
            bias,
            repetition_penalty: self.of(&[1.0, 1.0, 1.1, 0.5, 10.0, 1e-30, share.max(0.1)]),
            presence_penalty: self.of(&[0.0, 0.0, 2.0, -2.0, share]),
            frequency_penalty: self.of(&[0.0, 0.0, 2.0, -2.0, 0.1, -share]),
            min_tokens: self.below(8),
            // Never every token: something has to be left to pick.
            stop_ids: (0..self.below(4).min(vocab - 1)).collect(),
        }
    }
}

/// 32-bit words, one after another.
#[derive(Default)]
struct Words(Vec<u8>);

impl Words {
    fn word(&mut self, word: u32) {
        self.0.extend_from_slice(&word.to_le_bytes());
    }

    fn float(&mut self, number: f32) {
        self.word(number.to_bits());
    }

    fn count(&mut self, len: usize) {
        self.word(u32::try_from(len).expect("a case is small"));
    }

    fn score(&mut self, score: &Score) {
        self.float(score.logprob);
        self.word(score.rank);
        self.count(score.top.len());
        for &(id, logprob) in &score.top {
            self.word(id);
            self.float(logprob);
        }
    }

    fn guesses(&mut self, guesses: &[Guess]) {
        self.count(guesses.len());
        for guess in guesses {
            self.word(guess.token);
            self.float(guess.q);
            self.float(guess.margin);
            self.float(guess.weight);
        }
    }
}

/// How often each token is in a text: in its prompt, in its output.
fn seen(text: &[u32], prompt_len: usize, vocab: u32) -> Vec<(u32, bool, u32)> {
    let (prompt, output) = text.split_at(prompt_len);
    let count = |id| output.iter().filter(|&&token| token == id).count() as u32;
    (0..vocab)
        .map(|id| (id, prompt.contains(&id), count(id)))
        .filter(|&(_, in_prompt, in_output)| in_prompt || in_output > 0)
        .collect()
}

/// `count` cases from a seed.
#[must_use]
pub fn cases(seed: u64, count: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    let mut words = Words::default();
    words.count(count);
    for _ in 0..count {
        case(&mut dice, &mut words);
    }
    words.0
}

fn case(dice: &mut Dice, words: &mut Words) {
    let vocab = dice.of(&[
        1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 100, 256, 300, 700, 2100, 5000,
    ]);
    let logits = dice.logits(vocab);
    let sampling = Sampling {
        params: dice.params(),
        shaping: if dice.below(2) == 0 {
            Shaping::default()
        } else {
            dice.shaping(vocab)
        },
    };
    let text: Vec<u32> = (0..1 + dice.below(30))
        .map(|_| dice.below(vocab.min(12)))
        .collect();
    let prompt_len = dice.below(text.len() as u32 + 1);
    let kind = 1 + dice.below(3);
    let guesses = dice.of(&[1_u16, 2, 3, 8, 40, 64]);
    let top = dice.of(&[0_u8, 1, 5, 20]);
    let token = dice.below(vocab);
    let raw = dice.below(2) == 0;

    let Shaping {
        bias,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        min_tokens,
        stop_ids,
    } = &sampling.shaping;
    let shapes = kind != 3 || !raw;
    let defaults = SamplingParams::default();
    let params = if shapes { &sampling.params } else { &defaults };
    for word in [
        kind,
        vocab,
        u32::from(guesses),
        u32::from(top),
        token,
        params.temperature.to_bits(),
        params.top_k,
        params.top_p.to_bits(),
        params.min_p.to_bits(),
        params.seed as u32,
        (params.seed >> 32) as u32,
        params.choice,
        text.len() as u32,
        repetition_penalty.to_bits(),
        presence_penalty.to_bits(),
        frequency_penalty.to_bits(),
    ] {
        words.word(word);
    }
    let counts =
        *repetition_penalty != 1.0 || *presence_penalty != 0.0 || *frequency_penalty != 0.0;
    let masks = text.len() - (prompt_len as usize) < *min_tokens as usize;
    words.count(if shapes { bias.len() } else { 0 });
    for &(id, value) in bias.iter().filter(|_| shapes) {
        words.word(id);
        words.float(value);
    }
    let seen = seen(&text, prompt_len as usize, vocab);
    words.count(if shapes && counts { seen.len() } else { 0 });
    for &(id, in_prompt, in_output) in seen.iter().filter(|_| shapes && counts) {
        words.word(id);
        words.word(u32::from(in_prompt));
        words.word(in_output);
    }
    words.count(if shapes && masks { stop_ids.len() } else { 0 });
    for &id in stop_ids.iter().filter(|_| shapes && masks) {
        words.word(id);
    }
    for &logit in &logits {
        words.float(logit);
    }

    let mut sampler = Sampler::new(vocab);
    let mut state = SamplerState::from(sampling.clone());
    let history = History {
        text: &text,
        path: &[],
        prompt_len,
    };
    // As the engine has it: a row with a number that is none is broken, whatever a mask may hide.
    let answer = if !logits.iter().all(|logit| logit.is_finite()) {
        Answer::NotFinite
    } else if kind == 3 {
        let basis = if raw { Basis::Raw } else { Basis::Processed };
        let scored = (basis, usize::from(top));
        match sampler.score_after(&logits, &mut state, &history, token, scored) {
            Ok(score) => Answer::Score(Box::new(score)),
            Err(_) => Answer::NotFinite,
        }
    } else {
        let ask = if kind == 1 {
            Ask::Pick { score: None }
        } else {
            Ask::Guesses(guesses)
        };
        let answer = sampler.answer(ask, &logits, &mut state, &history);
        answer.expect("something is asked")
    };
    match answer {
        Answer::NotFinite | Answer::Skipped | Answer::Drawn(_) | Answer::End(_) => words.word(2),
        Answer::Pick(pick) => {
            words.word(1);
            words.word(pick.token);
            words.float(pick.margin);
        }
        Answer::Guesses(guesses) => {
            words.word(1);
            words.guesses(&guesses);
        }
        Answer::Score(score) => {
            words.word(1);
            words.score(&score);
        }
    }
}

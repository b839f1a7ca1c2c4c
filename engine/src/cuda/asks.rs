//! What rows are asked, answered on the device: ids come back, and never logits.
//!
//! Picks, guesses and scores have kernels. What has none (drawn siblings, judged picks, more guesses or strongest tokens than
//! the kernels hold, more changes to logits than there is room for) is left to the CPU's sampler, which gives the same answers to
//! the same logits.

use std::sync::Arc;

use decode::{Answer, Ask, Basis, Guess, Pick, Score};

use super::driver::{CudaError, Gpu, Memory};
use super::kernels::Kernels;
use super::parameters::{
    Answered, Asks, Bias, CANDIDATE_BYTES, CANDIDATES, FOUND_BYTES, GUESSES, Guessed, HERE,
    MAXIMA_BYTES, MOST_GUESSES, MOST_TOP, PICK, SCORE, SHARES, Seen, Task,
};
use crate::answers::before;
use crate::backend::SeqStep;
use crate::step::{Asked, Group, Plan};

/// Rooms of the kernels, for so many tasks.
pub(super) struct Asking {
    most: Most,
    tasks: Memory,
    answers: Memory,
    found: Memory,
    shaped: Memory,
    maxima: Memory,
    sound: Memory,
    candidates: Memory,
    biases: Memory,
    seen: Memory,
    masks: Memory,
    vocab: u32,
    stride: u32,
}

/// Rows whose biased, seen and masked tokens there is room for, whatever they are; further ones have what the others leave.
const LISTED_ROWS: usize = 64;
/// Biases of all rows.
const BIASES: usize = LISTED_ROWS * decode::sampling::MAX_BIASED;

/// The most that the kernels are asked at a time.
#[derive(Clone, Copy)]
pub(super) struct Most {
    pub(super) tasks: usize,
    /// Tokens that are answered.
    vocab: usize,
    seen: usize,
    masks: usize,
}

impl Most {
    /// So many tasks over so many tokens, by texts of so many positions.
    pub(super) fn of(tasks: usize, vocab: u32, positions: usize) -> Most {
        let vocab = vocab as usize;
        Most {
            tasks,
            vocab,
            seen: LISTED_ROWS * positions.min(vocab),
            masks: LISTED_ROWS * vocab,
        }
    }

    /// Bytes of what is reserved by task, and of the lists of all tasks.
    fn sizes(self) -> ([usize; 7], [usize; 3]) {
        let by_task = [
            size_of::<Task>(),
            size_of::<Answered>(),
            FOUND_BYTES,
            self.vocab.next_multiple_of(16) * size_of::<f32>(),
            MAXIMA_BYTES,
            SHARES * 4,
            CANDIDATES * CANDIDATE_BYTES,
        ];
        let lists = [
            BIASES * size_of::<Bias>(),
            self.seen * size_of::<Seen>(),
            self.masks * size_of::<u32>(),
        ];
        (by_task.map(|bytes| bytes * self.tasks), lists)
    }

    /// Bytes of all that is reserved.
    pub(super) fn bytes(self) -> usize {
        let (by_task, lists) = self.sizes();
        by_task.iter().chain(&lists).sum()
    }
}

/// The tasks of a step.
#[derive(Default)]
struct Tasks {
    tasks: Vec<Task>,
    biases: Vec<Bias>,
    seen: Vec<Seen>,
    masks: Vec<u32>,
    /// By asked row; none where it is left to the CPU.
    of: Vec<Option<Of>>,
}

/// Which tasks answer an asked row.
#[derive(Clone, Copy)]
enum Of {
    Pick { task: usize, score: Option<usize> },
    Guesses(usize),
    Score(usize),
}

/// What the device has answered.
pub(super) struct Answers {
    answered: Vec<Answered>,
    of: Vec<Option<Of>>,
}

impl Asking {
    /// Reserves room; rows have `stride` logits.
    pub(super) fn new(gpu: &Arc<Gpu>, most: Most, stride: usize) -> Result<Asking, CudaError> {
        let (by_task, lists) = most.sizes();
        let [tasks, answers, found, shaped, maxima, sound, candidates] = by_task;
        let [biases, seen, masks] = lists;
        Ok(Asking {
            most,
            tasks: gpu.memory(tasks)?,
            answers: gpu.memory(answers)?,
            found: gpu.memory(found)?,
            shaped: gpu.memory(shaped)?,
            maxima: gpu.memory(maxima)?,
            sound: gpu.memory(sound)?,
            candidates: gpu.memory(candidates)?,
            biases: gpu.memory(biases)?,
            seen: gpu.memory(seen)?,
            masks: gpu.memory(masks)?,
            vocab: most.vocab as u32,
            stride: stride as u32,
        })
    }

    /// Answers what the rows of a step are asked, from their logits; waits until all of the step is computed.
    pub(super) fn answer(
        &mut self,
        kernels: &Kernels,
        logits: &Memory,
        plan: &Plan,
        batch: &mut [SeqStep<'_>],
    ) -> Result<Answers, CudaError> {
        let tasks = Tasks::of(plan, batch, self.most);
        let mut answered = vec![Answered::NONE; tasks.tasks.len()];
        if !answered.is_empty() {
            let asks = Asks {
                logits: logits.at(),
                tasks: self.tasks.at(),
                answers: self.answers.at(),
                found: self.found.at(),
                shaped: self.shaped.at(),
                maxima: self.maxima.at(),
                sound: self.sound.at(),
                candidates: self.candidates.at(),
                biases: self.biases.at(),
                seen: self.seen.at(),
                masks: self.masks.at(),
                vocab: self.vocab,
                stride: self.stride,
                room: CANDIDATES as u32,
                unused: 0,
            };
            let scores = tasks.tasks.iter().any(|task| task.kind == SCORE);
            self.biases.send(tasks.biases)?;
            self.seen.send(tasks.seen)?;
            self.masks.send(tasks.masks)?;
            self.tasks.send(tasks.tasks)?;
            kernels.ask(&asks, answered.len(), scores)?;
        }
        self.answers.read(0, &mut answered)?;
        Ok(Answers {
            answered,
            of: tasks.of,
        })
    }
}

impl Tasks {
    /// What the kernels are to answer; the rest is left to the CPU.
    fn of(plan: &Plan, batch: &mut [SeqStep<'_>], most: Most) -> Tasks {
        let mut tasks = Tasks::default();
        for (part, group) in batch.iter_mut().zip(&plan.groups) {
            for place in group.asked.clone() {
                // A pick with its score is two.
                let task = if tasks.tasks.len() + 2 > most.tasks {
                    None
                } else {
                    tasks.add(part, group, place, plan.asked[place], most)
                };
                tasks.of.push(task);
            }
        }
        tasks
    }

    fn add(
        &mut self,
        part: &mut SeqStep<'_>,
        group: &Group,
        place: usize,
        asked: Asked,
        most: Most,
    ) -> Option<Of> {
        let raw = Task {
            row: place as u32,
            ..Task::RAW
        };
        let scored = |top: u8| usize::from(top) <= MOST_TOP;
        match asked.ask {
            Ask::Pick { score: None } => {
                let pick = self.shaped(part, group, asked, raw, most)?;
                let task = self.push(Task { kind: PICK, ..pick });
                Some(Of::Pick { task, score: None })
            }
            Ask::Pick {
                score: Some((basis, top)),
            } if scored(top) => {
                let shaped = self.shaped(part, group, asked, raw, most)?;
                let task = self.push(Task {
                    kind: PICK,
                    ..shaped
                });
                let basis = match basis {
                    Basis::Raw => raw,
                    Basis::Processed => shaped,
                    Basis::Tempered => Task {
                        top_k: raw.top_k,
                        top_p: raw.top_p,
                        min_p: raw.min_p,
                        ..shaped
                    },
                };
                let score = self.push(Task {
                    kind: SCORE,
                    top: top.into(),
                    of: task as i32,
                    ..basis
                });
                Some(Of::Pick {
                    task,
                    score: Some(score),
                })
            }
            Ask::Guesses(count) if usize::from(count) <= MOST_GUESSES => {
                let shaped = self.shaped(part, group, asked, raw, most)?;
                let guesses = Task {
                    kind: GUESSES,
                    guesses: count.into(),
                    ..shaped
                };
                Some(Of::Guesses(self.push(guesses)))
            }
            Ask::Score { token, top } if scored(top) => {
                let score = Task {
                    kind: SCORE,
                    token,
                    top: top.into(),
                    ..raw
                };
                Some(Of::Score(self.push(score)))
            }
            Ask::Nothing
            | Ask::Pick { .. }
            | Ask::Judge { .. }
            | Ask::Draw(_)
            | Ask::Guesses(_)
            | Ask::Score { .. } => None,
        }
    }

    fn push(&mut self, task: Task) -> usize {
        self.tasks.push(task);
        self.tasks.len() - 1
    }

    /// A task by the session's settings, and what they do to the row; none where there is no room for that.
    fn shaped(
        &mut self,
        part: &mut SeqStep<'_>,
        group: &Group,
        asked: Asked,
        task: Task,
        most: Most,
    ) -> Option<Task> {
        let history = before(part, group, asked);
        let params = part.sampler.sampling().params;
        let changes = part.sampler.changes(&history);
        let shaping = changes.shaping;
        let (first_bias, first_seen, first_mask) =
            (self.biases.len(), self.seen.len(), self.masks.len());
        if first_bias + shaping.bias.len() > BIASES
            || first_seen + changes.seen.len() > most.seen
            || first_mask + changes.masked.len() > most.masks
        {
            return None;
        }
        let biases = shaping.bias.iter();
        self.biases
            .extend(biases.map(|&(token, value)| Bias { token, value }));
        let seen = changes.seen.iter();
        self.seen
            .extend(seen.map(|&(token, in_prompt, in_output)| Seen {
                token,
                in_prompt: in_prompt.into(),
                in_output,
            }));
        self.masks.extend_from_slice(changes.masked);
        Some(Task {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            choice: params.choice,
            position: history.position(),
            seed: [params.seed as u32, (params.seed >> 32) as u32],
            first_bias: first_bias as u32,
            biases: (self.biases.len() - first_bias) as u32,
            first_seen: first_seen as u32,
            seens: (self.seen.len() - first_seen) as u32,
            first_mask: first_mask as u32,
            masks: (self.masks.len() - first_mask) as u32,
            repetition: shaping.repetition_penalty,
            presence: shaping.presence_penalty,
            frequency: shaping.frequency_penalty,
            ..task
        })
    }
}

impl Answers {
    /// The answer to the asked row `place`; none where it is left to the CPU.
    pub(super) fn get(&self, place: usize) -> Option<Answer> {
        let answer = match self.of[place]? {
            Of::Pick { task, score } => self.pick(task, score).map(Answer::Pick),
            Of::Guesses(task) => self.here(task).map(|here| {
                let guesses = here.guesses.iter().take(here.count as usize);
                Answer::Guesses(guesses.map(Guessed::guess).collect())
            }),
            Of::Score(task) => self.score(task).map(|score| Answer::Score(Box::new(score))),
        };
        Some(answer.unwrap_or(Answer::NotFinite))
    }

    fn here(&self, task: usize) -> Option<&Answered> {
        Some(&self.answered[task]).filter(|answered| answered.state == HERE)
    }

    fn pick(&self, task: usize, score: Option<usize>) -> Option<Pick> {
        let best = self.here(task)?.guesses[0];
        let score = match score {
            Some(score) => Some(Box::new(self.score(score)?)),
            None => None,
        };
        Some(Pick {
            token: best.token,
            margin: best.margin,
            score,
        })
    }

    fn score(&self, task: usize) -> Option<Score> {
        let here = self.here(task)?;
        let top = here.top_ids.iter().zip(&here.top_logprobs);
        Some(Score {
            logprob: here.logprob,
            rank: here.rank,
            top: top
                .take(here.tops as usize)
                .map(|(&id, &logprob)| (id, logprob))
                .collect(),
        })
    }
}

impl Guessed {
    fn guess(&self) -> Guess {
        Guess {
            token: self.token,
            q: self.q,
            margin: self.margin,
            weight: self.weight,
        }
    }
}

impl Task {
    /// The model's own distribution, and nothing asked.
    const RAW: Task = Task {
        kind: 0,
        row: 0,
        guesses: 0,
        top: 0,
        token: 0,
        of: -1,
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        choice: 0,
        position: 0,
        seed: [0; 2],
        first_bias: 0,
        biases: 0,
        first_seen: 0,
        seens: 0,
        first_mask: 0,
        masks: 0,
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        unused: 0,
    };
}

impl Answered {
    const NONE: Answered = Answered {
        state: 0,
        count: 0,
        logprob: 0.0,
        rank: 0,
        tops: 0,
        top_ids: [0; MOST_TOP],
        top_logprobs: [0.0; MOST_TOP],
        guesses: [Guessed {
            token: 0,
            q: 0.0,
            margin: 0.0,
            weight: 0.0,
        }; MOST_GUESSES],
    };
}

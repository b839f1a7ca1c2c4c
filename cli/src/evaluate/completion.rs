//! Completions of functions: the second half of a body that no model has seen, written by each model.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use decode::StepPlan;
use decode::sampling::{Sampler, SamplingParams};
use engine::{Backend, SeqId};
use serde::Serialize;
use text::{Special, Tokenizer};

use super::Settings;
use super::family::{CHUNK, Family, Model, SIDE_BY_SIDE, append};
use super::function::{self, Function};
use super::text_file::Document;
use crate::console::Progress;

/// Completions are written greedily and at this temperature.
const TEMPERATURES: [f32; 2] = [0.0, 0.7];
/// Functions of one document, so that no file dominates.
const MOST_PER_DOCUMENT: usize = 3;
/// Completions that are kept for people to read.
const SAMPLES: usize = 12;

/// How many completions of one model parse.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ParseRate {
    pub(super) model: &'static str,
    pub(super) temperature: f32,
    pub(super) functions: usize,
    /// Share whose closing brace came within the tokens allowed.
    pub(super) closed: f64,
    /// Share that was closed and parses.
    pub(super) parsed: f64,
}

/// A completion to read: the target's, greedy.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Sample {
    pub(super) source: String,
    pub(super) prompt: String,
    pub(super) completion: String,
    pub(super) parsed: bool,
}

/// Everything that completions say about a family.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Completions {
    pub(super) rates: Vec<ParseRate>,
    pub(super) samples: Vec<Sample>,
}

/// A function to complete.
struct Task {
    source: String,
    function: Function,
    ids: Vec<u32>,
}

/// What became of one function.
struct Outcome {
    completion: String,
    closed: bool,
    parsed: bool,
}

/// Lets every model of the family complete the functions of the documents.
///
/// # Errors
/// When a model fails or gives logits that are not finite.
pub(super) fn complete(
    family: &mut Family,
    documents: &[Document],
    settings: Settings,
) -> Result<Completions> {
    let tasks = tasks(&family.tokenizer, documents, settings)?;
    let mut completions = Completions::default();
    if tasks.is_empty() {
        return Ok(completions);
    }
    let mut sampler = Sampler::new(family.vocabulary);
    let runs = family.models.len() * TEMPERATURES.len();
    let progress = Progress::counted(tasks.len() * runs, "completing");
    for model in &mut family.models {
        for temperature in TEMPERATURES {
            let mut outcomes = Vec::new();
            for batch in tasks.chunks(SIDE_BY_SIDE) {
                let params = SamplingParams {
                    temperature,
                    seed: settings.seed,
                    ..SamplingParams::default()
                };
                let mut writer = Writer {
                    model: &mut *model,
                    sampler: &mut sampler,
                    tokenizer: &family.tokenizer,
                    vocabulary: family.vocabulary as usize,
                    params,
                    most: settings.max_tokens,
                };
                outcomes.extend(writer.write(batch, outcomes.len())?);
                batch.iter().for_each(|_| progress.step());
            }
            let share = |count: usize| count as f64 / outcomes.len() as f64;
            completions.rates.push(ParseRate {
                model: model.name,
                temperature,
                functions: outcomes.len(),
                closed: share(outcomes.iter().filter(|outcome| outcome.closed).count()),
                parsed: share(outcomes.iter().filter(|outcome| outcome.parsed).count()),
            });
            if completions.samples.is_empty() {
                completions.samples = samples(&tasks, outcomes);
            }
        }
    }
    Ok(completions)
}

/// The functions to complete, in the documents' order, a few of each.
fn tasks(tokenizer: &Tokenizer, documents: &[Document], settings: Settings) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    let mut seen = BTreeSet::new();
    for document in documents {
        if !document.source.ends_with(".rs") {
            continue;
        }
        let mut taken = 0;
        for function in function::functions(&document.text) {
            if tasks.len() == settings.functions {
                return Ok(tasks);
            }
            if taken == MOST_PER_DOCUMENT {
                break;
            }
            let ids = tokenizer.encode(&function.text[..function.middle], Special::Add)?;
            let fits = ids.len() + settings.max_tokens <= settings.window;
            if fits && seen.insert(function.text.clone()) {
                taken += 1;
                tasks.push(Task {
                    source: document.source.clone(),
                    function,
                    ids,
                });
            }
        }
    }
    Ok(tasks)
}

/// Samples from all over the tasks.
fn samples(tasks: &[Task], outcomes: Vec<Outcome>) -> Vec<Sample> {
    let every = tasks.len().div_ceil(SAMPLES);
    tasks
        .iter()
        .zip(outcomes)
        .step_by(every)
        .map(|(task, outcome)| Sample {
            source: task.source.clone(),
            prompt: task.function.text[..task.function.middle].to_owned(),
            completion: outcome.completion,
            parsed: outcome.parsed,
        })
        .collect()
}

/// One completion in progress.
struct Line {
    /// Place in the batch.
    task: usize,
    seq: SeqId,
    /// The token that was picked last; not yet in the sequence.
    next: u32,
    ids: Vec<u32>,
}

/// One model at one temperature.
struct Writer<'a> {
    model: &'a mut Model,
    sampler: &'a mut Sampler,
    tokenizer: &'a Tokenizer,
    vocabulary: usize,
    params: SamplingParams,
    /// Tokens of one completion at most.
    most: usize,
}

impl Writer<'_> {
    /// Completes a batch side by side; `first` is the number of its first task and varies the noise.
    fn write(&mut self, batch: &[Task], first: usize) -> Result<Vec<Outcome>> {
        let mut outcomes: Vec<Option<Outcome>> = batch.iter().map(|_| None).collect();
        let mut lines = Vec::new();
        for (index, task) in batch.iter().enumerate() {
            let seq = self.model.engine.open(task.ids.len() + self.most)?;
            for chunk in task.ids.chunks(CHUNK) {
                self.model.append(seq, chunk)?;
            }
            let last = self.model.output.len() - 1;
            let next = self.pick(last, first + index, task.ids.len())?;
            lines.push(Line {
                task: index,
                seq,
                next,
                ids: Vec::new(),
            });
        }
        while !lines.is_empty() {
            let mut going = Vec::new();
            for mut line in lines {
                let ended = self.model.engine.config().eos.contains(&line.next);
                if !ended {
                    line.ids.push(line.next);
                }
                let outcome = self.outcome(&batch[line.task].function, &line.ids)?;
                if ended || outcome.closed || line.ids.len() == self.most {
                    self.model.engine.release(line.seq);
                    outcomes[line.task] = Some(outcome);
                } else {
                    going.push(line);
                }
            }
            lines = going;
            self.advance(&mut lines, batch, first)?;
        }
        outcomes
            .into_iter()
            .collect::<Option<_>>()
            .context("a completion was never ended")
    }

    /// One step of all lines.
    fn advance(&mut self, lines: &mut [Line], batch: &[Task], first: usize) -> Result<()> {
        let plans: Vec<StepPlan> = lines.iter().map(|line| append(&[line.next], 1)).collect();
        let step: Vec<(SeqId, &StepPlan)> = (lines.iter().zip(&plans))
            .map(|(line, plan)| (line.seq, plan))
            .collect();
        self.model.compute(&step)?;
        for (row, line) in lines.iter_mut().enumerate() {
            let position = batch[line.task].ids.len() + line.ids.len();
            line.next = self.pick(row, first + line.task, position)?;
        }
        Ok(())
    }

    fn pick(&mut self, row: usize, task: usize, position: usize) -> Result<u32> {
        let logits = &self.model.output[row][..self.vocabulary];
        let params = SamplingParams {
            seed: self.params.seed.wrapping_add(task as u64),
            ..self.params
        };
        let position = u32::try_from(position).context("a prompt has more than 2^32 tokens")?;
        Ok(self.sampler.pick(logits, &params, position)?.token)
    }

    /// What stands there so far, cut at the function's closing brace.
    fn outcome(&self, function: &Function, ids: &[u32]) -> Result<Outcome> {
        let mut completion = self.tokenizer.decode(ids)?;
        let prompt = &function.text[..function.middle];
        let whole = format!("{prompt}{completion}");
        let end = function::closing_brace(&whole);
        let parsed = end.is_some_and(|end| function::parses(&whole[..end]));
        if let Some(end) = end {
            completion.truncate(end - prompt.len());
        }
        Ok(Outcome {
            completion,
            closed: end.is_some(),
            parsed,
        })
    }
}

//! Texts as the target generates them, with the hidden states that they leave behind.

use anyhow::{Context, Result};
use decode::sampling::SamplingParams;
use decode::{Ask, Sampler, StepPlan};
use engine::{Backend, CpuEngine, EngineOptions};

use crate::console::Progress;

/// Texts that are generated side by side.
const SIDE_BY_SIDE: usize = 32;
/// Rows of one step.
const CHUNK: usize = 128;

/// A generated text.
pub(super) struct Text {
    /// Prompt and generated tokens.
    pub(super) tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub(super) prompt: usize,
    /// How it was sampled.
    pub(super) params: SamplingParams,
    /// For each row from the last of the prompt on, what was asked for: `[rows][width]`. Row `i` has picked the token
    /// `prompt + i`.
    pub(super) states: Vec<f32>,
}

/// Which hidden states are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// What the model's head reads.
    Last,
    /// Those of the last four layers.
    LastFour,
}

/// How text `number` is sampled: a third of them at T = 0, 0.7 and 1 each.
fn params(seed: u64, number: usize) -> SamplingParams {
    SamplingParams {
        temperature: [0.0, 0.7, 1.0][number % 3],
        seed: seed.wrapping_mul(1_000_003).wrapping_add(number as u64),
        ..SamplingParams::default()
    }
}

/// Sizes that generate texts of `positions` tokens.
pub(super) fn options(positions: usize, threads: std::num::NonZeroUsize) -> EngineOptions {
    EngineOptions {
        threads,
        ..EngineOptions::for_sequences(positions, SIDE_BY_SIDE)
    }
}

/// Continues every prompt by up to `most` tokens, and hands each text over when it is complete, a batch at a time.
///
/// # Errors
/// When the engine refuses.
pub(super) fn generate(
    engine: &mut CpuEngine,
    prompts: &[Vec<u32>],
    (most, seed, keep): (usize, u64, Keep),
    mut take: impl FnMut(Vec<Text>) -> Result<()>,
) -> Result<()> {
    let progress = Progress::counted(prompts.len(), "texts");
    let vocab = engine.facts().vocab;
    let (eos, hidden) = (engine.facts().eos.clone(), engine.config().hidden);
    let mut sampler = Sampler::new(vocab);
    for (batch, prompts) in prompts.chunks(SIDE_BY_SIDE).enumerate() {
        let mut texts: Vec<Text> = (prompts.iter().enumerate())
            .map(|(at, prompt)| Text {
                tokens: prompt.clone(),
                prompt: prompt.len(),
                params: params(seed, batch * SIDE_BY_SIDE + at),
                states: Vec::new(),
            })
            .collect();
        let seqs: Vec<_> = (texts.iter())
            .map(|text| engine.open(text.prompt + most))
            .collect::<Result<_, _>>()?;
        for (text, &seq) in texts.iter().zip(&seqs) {
            for chunk in text.tokens[..text.prompt - 1].chunks(CHUNK) {
                engine.read_logits(&[(seq, &StepPlan::append(chunk))], &mut |_, _, _| {})?;
            }
        }
        let mut running: Vec<usize> = (0..texts.len()).collect();
        for _ in 0..most {
            let plans: Vec<StepPlan> = (running.iter())
                .map(|&at| StepPlan {
                    asks: vec![Ask::Guesses(0)],
                    ..StepPlan::append(&texts[at].tokens[texts[at].tokens.len() - 1..])
                })
                .collect();
            let step: Vec<_> = (running.iter().zip(&plans))
                .map(|(&at, plan)| (seqs[at], plan))
                .collect();
            let mut picks = vec![None; running.len()];
            engine.read_states(&step, &mut |row| {
                let text = &mut texts[running[row.entry]];
                let skip = match keep {
                    Keep::Last => row.states.len() - hidden,
                    Keep::LastFour => 0,
                };
                text.states.extend_from_slice(&row.states[skip..]);
                let position = text.tokens.len() as u32;
                picks[row.entry] = sampler.pick(row.logits, &text.params, position).ok();
            })?;
            for (&at, pick) in running.iter().zip(picks) {
                let pick = pick.context("the target's logits are not finite")?;
                texts[at].tokens.push(pick.token);
            }
            running.retain(|&at| {
                let ended = texts[at]
                    .tokens
                    .last()
                    .is_some_and(|last| eos.contains(last));
                !ended
            });
            if running.is_empty() {
                break;
            }
        }
        seqs.into_iter().for_each(|seq| engine.release(seq));
        prompts.iter().for_each(|_| progress.step());
        take(texts)?;
    }
    progress.clear();
    Ok(())
}

/// For each generated token of a text, whether it is what a draft guesses first there, given the text before it.
///
/// # Errors
/// When the engine refuses.
pub(super) fn agreement(draft: &mut CpuEngine, text: &Text) -> Result<Vec<bool>> {
    let mut sampler = Sampler::new(draft.facts().vocab);
    let seq = draft.open(text.tokens.len())?;
    let mut agrees = Vec::with_capacity(text.tokens.len() - text.prompt);
    let end = text.tokens.len() - 1;
    for from in (0..end).step_by(CHUNK) {
        let plan = StepPlan::append(&text.tokens[from..(from + CHUNK).min(end)]);
        let plan = StepPlan {
            asks: vec![Ask::Guesses(0); plan.append.len()],
            ..plan
        };
        draft.read_logits(&[(seq, &plan)], &mut |_, place, logits| {
            let position = from + place + 1;
            if position >= text.prompt {
                let pick = sampler.pick(logits, &text.params, position as u32);
                agrees.push(pick.is_ok_and(|pick| pick.token == text.tokens[position]));
            }
        })?;
    }
    draft.release(seq);
    Ok(agrees)
}

//! Teacher-forced scores: every document goes through the three models in step.

use anyhow::{Context, Result};
use decode::Sampler;
use engine::{Backend, SeqId};
use serde::Serialize;
use text::Special;

use super::Settings;
use super::agreement::{Agreement, Counter, TEMPERATURES, View};
use super::family::{CHUNK, Family};
use super::text_file::Document;
use crate::console::Progress;

/// Which model guesses for which: smaller and larger, as indices into the family.
const PAIRS: [(usize, usize); 3] = [(2, 0), (1, 0), (2, 1)];

/// What the text costs one model.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Loss {
    pub(super) model: &'static str,
    pub(super) nats_per_token: f64,
    pub(super) bits_per_byte: f64,
}

/// Everything that teacher-forced text says about a family.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Scores {
    pub(super) tokens: usize,
    pub(super) bytes: usize,
    pub(super) documents: usize,
    pub(super) losses: Vec<Loss>,
    pub(super) agreement: Vec<Agreement>,
}

/// Scores documents, in order, until the tokens asked for are reached.
///
/// A document starts behind the separator and is cut into windows; each of its tokens is predicted once, from what
/// stands before it in its window.
///
/// # Errors
/// When a model fails or gives logits that are not finite.
pub(super) fn score(
    family: &mut Family,
    documents: &[Document],
    settings: Settings,
) -> Result<Scores> {
    let mut sampler = Sampler::new(family.vocabulary);
    let mut views: [View; 3] = Default::default();
    let mut counters: [[Counter; TEMPERATURES.len()]; PAIRS.len()] = Default::default();
    let mut costs = [0.0; 3];
    let (mut tokens, mut bytes, mut read) = (0, 0, 0);
    let progress = Progress::counted(settings.tokens, "scoring");
    for (number, document) in documents.iter().enumerate() {
        if tokens >= settings.tokens {
            break;
        }
        let mut ids = vec![family.separator];
        ids.extend(family.tokenizer.encode(&document.text, Special::Omit)?);
        // Every document has noise of its own, the same in each family.
        let seed = settings.seed.wrapping_add(number as u64);
        for (window, start) in (0..ids.len() - 1).step_by(settings.window).enumerate() {
            let inputs = &ids[start..(start + settings.window).min(ids.len() - 1)];
            let seqs = open(family, inputs.len())?;
            for (chunk, rows) in inputs.chunks(CHUNK).enumerate() {
                for (model, seq) in family.models.iter_mut().zip(seqs) {
                    model.append(seq, rows)?;
                }
                for row in 0..rows.len() {
                    let at = chunk * CHUNK + row + 1;
                    let position = u32::try_from(window * settings.window + at)
                        .context("a document has more than 2^32 tokens")?;
                    for ((model, view), cost) in
                        family.models.iter().zip(&mut views).zip(&mut costs)
                    {
                        let logits = &model.output[row][..family.vocabulary as usize];
                        view.look(&mut sampler, logits, seed, position, ids[start + at])?;
                        *cost += view.cost;
                    }
                    for ((smaller, larger), counters) in PAIRS.into_iter().zip(&mut counters) {
                        views[smaller].count_against(&views[larger], counters);
                    }
                    progress.step();
                }
            }
            for (model, seq) in family.models.iter_mut().zip(seqs) {
                model.engine.release(seq);
            }
        }
        tokens += ids.len() - 1;
        bytes += document.text.len();
        read += 1;
    }
    let names = [0, 1, 2].map(|index| family.models[index].name);
    let losses = names.into_iter().zip(costs).map(|(model, cost)| Loss {
        model,
        nats_per_token: cost / tokens.max(1) as f64,
        bits_per_byte: cost / std::f64::consts::LN_2 / bytes.max(1) as f64,
    });
    let mut agreement = Vec::new();
    for ((smaller, larger), counters) in PAIRS.into_iter().zip(&counters) {
        for (counter, temperature) in counters.iter().zip(TEMPERATURES) {
            agreement.push(counter.agreement(names[smaller], names[larger], temperature));
        }
    }
    Ok(Scores {
        tokens,
        bytes,
        documents: read,
        losses: losses.collect(),
        agreement,
    })
}

/// Opens one sequence per model.
fn open(family: &mut Family, len: usize) -> Result<[SeqId; 3]> {
    let [target, qualifier, draft] = &mut family.models;
    Ok([
        target.engine.open(len)?,
        qualifier.engine.open(len)?,
        draft.engine.open(len)?,
    ])
}

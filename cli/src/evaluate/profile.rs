//! A profile of a family: how its draft and its qualifier stand to its target's tokens, on text that the target writes.
//!
//! The target continues held-out text as it does for a request, and the other two follow it token by token, under the same
//! noise. What they find at each place becomes a position of the profile.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use decode::Sampler;
use decode::sampling::{Drawn, Guess, JudgeNoise, NotFinite, SamplingParams};
use engine::synthetic::{Class, Gap, Position, Profile, Q_BUCKETS, QualifierPick};
use engine::{Backend, SeqId};
use text::Special;

use super::Settings;
use super::family::{CHUNK, Family, append};
use super::text_file::Document;
use crate::console::Progress;

/// Guesses at a position: as many as the widest strategy asks for.
const GUESSES: usize = 24;
/// Tokens that the target writes behind a prompt, and positions that are replayed in one go.
const TOKENS: usize = 64;
/// The longest prompt, in tokens; of longer text its beginning is one.
const PROMPT: usize = 192;

/// What a profile is called, and how much goes into it.
pub(super) struct Recorded<'a> {
    /// Its name.
    pub(super) name: &'a str,
    /// What the text is, in words.
    pub(super) source: String,
    /// Texts to continue, at each temperature.
    pub(super) texts: usize,
    /// Ascending.
    pub(super) temperatures: &'a [f32],
    /// What the draft knows of the target's noise.
    pub(super) noise: DraftNoise,
}

/// What a draft knows of the target's noise, at temperatures above 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum DraftNoise {
    /// All of it, as under the rule `exact`.
    #[default]
    Shared,
    /// Nothing, as under the rule `rejection` and in SSD (arXiv 2603.03251): its first guess is drawn from its own distribution and
    /// accepted with min(1, p/q); where it is not, the text goes on with a token of the residual, and the other guesses are the
    /// draft's likeliest.
    Independent,
}

/// Records a profile from texts all over `documents`.
///
/// # Errors
/// When a model fails, gives logits that are not finite, or has no room for a prompt.
pub(super) fn record(
    family: &mut Family,
    documents: &[Document],
    settings: Settings,
    what: &Recorded<'_>,
) -> Result<Profile> {
    ensure!(
        family.vocabulary as usize >= GUESSES,
        "a profile needs a vocabulary of at least {GUESSES} tokens"
    );
    let every = documents.len().div_ceil(what.texts).max(1);
    let chosen: Vec<&Document> = documents.iter().step_by(every).collect();
    let progress = Progress::counted(chosen.len() * what.temperatures.len(), "recording");
    let mut classes = Vec::new();
    for &temperature in what.temperatures {
        let mut recording = Recording::new(family, settings, what.noise);
        for (number, document) in chosen.iter().enumerate() {
            let params = SamplingParams {
                temperature,
                seed: settings.seed.wrapping_add(number as u64),
                ..SamplingParams::default()
            };
            recording.text(&document.text, &params)?;
            progress.step();
        }
        classes.push(recording.class(temperature));
    }
    progress.clear();
    let about = format!(
        "{}, continued by the target for up to {TOKENS} tokens each; {} texts at each temperature, seed {}{}",
        what.source,
        chosen.len(),
        settings.seed,
        match what.noise {
            DraftNoise::Shared => "",
            DraftNoise::Independent => "; drafts draw with noise of their own",
        }
    );
    let profile = Profile::new(what.name.to_owned(), about, GUESSES, TOKENS, classes);
    profile.context("what was recorded is not a profile")
}

/// What is recorded at one temperature.
struct Recording<'a> {
    family: &'a mut Family,
    sampler: Sampler,
    window: usize,
    noise: DraftNoise,
    positions: Vec<Position>,
    /// By place and bucket: sum of the draft's probabilities, and how many they are.
    q: Vec<[(f64, u32); Q_BUCKETS]>,
}

impl Recording<'_> {
    fn new(family: &mut Family, settings: Settings, noise: DraftNoise) -> Recording<'_> {
        Recording {
            sampler: Sampler::new(family.vocabulary),
            family,
            window: settings.window,
            noise,
            positions: Vec::new(),
            q: vec![[(0.0, 0); Q_BUCKETS]; GUESSES],
        }
    }

    /// Lets the target continue a text until its end or that of the window.
    fn text(&mut self, text: &str, params: &SamplingParams) -> Result<()> {
        let mut ids = self.family.tokenizer.encode(text, Special::Add)?;
        ids.truncate(PROMPT.min(self.window.saturating_sub(TOKENS)));
        if ids.is_empty() {
            ids.push(self.family.separator);
        }
        let seqs = self.open(ids.len() + TOKENS)?;
        for chunk in ids.chunks(CHUNK) {
            self.advance(seqs, chunk)?;
        }
        for _ in 0..TOKENS.min(self.window - ids.len()) {
            let token = self.look(params, ids.len())?;
            if self.family.models[0].engine.config().eos.contains(&token) {
                break;
            }
            ids.push(token);
            self.advance(seqs, &[token])?;
        }
        for (model, seq) in self.family.models.iter_mut().zip(seqs) {
            model.engine.release(seq);
        }
        Ok(())
    }

    fn open(&mut self, len: usize) -> Result<[SeqId; 3]> {
        let len = len.min(self.window);
        let [target, qualifier, draft] = &mut self.family.models;
        Ok([
            target.engine.open(len)?,
            qualifier.engine.open(len)?,
            draft.engine.open(len)?,
        ])
    }

    /// Appends tokens to all models, and reads the logits of the last one.
    fn advance(&mut self, seqs: [SeqId; 3], tokens: &[u32]) -> Result<()> {
        let plan = append(tokens, 1);
        for (model, seq) in self.family.models.iter_mut().zip(seqs) {
            model.compute(&[(seq, &plan)])?;
        }
        Ok(())
    }

    /// Records what all models find at a position, and returns the target's token there.
    fn look(&mut self, params: &SamplingParams, position: usize) -> Result<u32> {
        let position = u32::try_from(position).context("a text has more than 2^32 tokens")?;
        let mut found: [Vec<Guess>; 3] = Default::default();
        for (model, guesses) in self.family.models.iter().zip(&mut found) {
            let logits = model.output.last().context("a step gave no logits")?;
            let logits = &logits[..self.family.vocabulary as usize];
            (self.sampler).guesses(logits, params, position, GUESSES, guesses)?;
        }
        let mut token = found[0].first().ok_or(NotFinite)?.token;
        if self.noise == DraftNoise::Independent && params.temperature > 0.0 {
            let [target, _, draft] = &self.family.models;
            let logits = |output: &[Vec<f32>]| -> Result<Vec<f32>> {
                let logits = output.last().context("a step gave no logits")?;
                Ok(logits[..self.family.vocabulary as usize].to_vec())
            };
            let (target, draft) = (logits(&target.output)?, logits(&draft.output)?);
            let drawn = self.sampler.draw(&draft, params, position, 1)?;
            let noise = JudgeNoise::at(params, position);
            let picked = (self.sampler).reject(&target, params, position, (&drawn, &noise))?;
            token = picked.token;
            found[2] = guesses_of(&drawn);
        }
        let [target, qualifier, draft] = &found;
        self.positions.push(seen(token, target, qualifier, draft));
        for (cells, guess) in self.q.iter_mut().zip(draft) {
            let cell = &mut cells[Gap::from_nats(guess.margin.abs()).bucket()];
            *cell = (cell.0 + f64::from(guess.q), cell.1 + 1);
        }
        Ok(token)
    }

    fn class(self, temperature: f32) -> Class {
        let mean = |cells: &[(f64, u32)]| {
            let (sum, count) = cells.iter().fold((0.0, 0), |(sum, count), cell| {
                (sum + cell.0, count + cell.1)
            });
            // Four digits are more than a mean over so few positions is worth.
            (count > 0).then(|| ((sum / f64::from(count) * 1e4).round() / 1e4) as f32)
        };
        let row = |cells: &[(f64, u32); Q_BUCKETS]| {
            let overall = mean(cells).unwrap_or(0.0);
            // A distance that was never seen says what the place says.
            (*cells).map(|cell| mean(&[cell]).unwrap_or(overall))
        };
        Class {
            temperature,
            q: self.q.iter().map(row).collect(),
            positions: self.positions,
        }
    }
}

/// What a draft that has drawn its guess guesses besides: the likeliest of what it could have drawn. None of them has a lead; how far
/// they lie behind it is by their probability.
fn guesses_of(drawn: &Drawn) -> Vec<Guess> {
    let first = drawn.tokens().next();
    let mut support: Vec<(u32, u16)> = drawn.support().collect();
    let total: f32 = support.iter().map(|&(_, weight)| f32::from(weight)).sum();
    support.sort_by_key(|&(token, weight)| (Some(token) != first, std::cmp::Reverse(weight)));
    let own = support
        .first()
        .map_or(1.0, |&(_, weight)| f32::from(weight));
    let mut guesses: Vec<Guess> = (support.into_iter().take(GUESSES).enumerate())
        .map(|(place, (token, weight))| Guess {
            token,
            q: f32::from(weight) / total,
            margin: match place {
                0 => 0.0,
                _ => (f32::from(weight) / own).ln().min(0.0),
            },
            weight: 0.0,
        })
        .collect();
    // Where it could have drawn fewer, those that are missing are no token.
    let none = Guess {
        token: u32::MAX,
        q: 0.0,
        margin: guesses.last().map_or(0.0, |last| last.margin),
        weight: 0.0,
    };
    guesses.resize(GUESSES, none);
    guesses
}

/// A position from the guesses of the three models, of which the target's first is `token`.
fn seen(token: u32, target: &[Guess], qualifier: &[Guess], draft: &[Guess]) -> Position {
    let place = |token: u32| {
        let found = draft.iter().position(|guess| guess.token == token);
        // There are GUESSES of them.
        found.map(|place| place as u8)
    };
    let lead =
        |guesses: &[Guess]| Gap::from_nats(guesses.first().map_or(0.0, |guess| guess.margin));
    let pick = qualifier.first().map(|guess| guess.token);
    Position {
        draft: place(token),
        qualifier: match pick {
            Some(pick) if pick == token => QualifierPick::Targets,
            other => other
                .and_then(place)
                .map_or(QualifierPick::Other, QualifierPick::Drafts),
        },
        qualifier_lead: lead(qualifier),
        target_lead: lead(target),
        gaps: draft
            .iter()
            .skip(1)
            .map(|guess| Gap::from_nats(-guess.margin))
            .collect(),
    }
}

/// What a profile says, in Markdown.
pub(super) fn table(profile: &Profile) -> String {
    let mut out = String::from(
        "| T | positions | draft 1 | 2 | 4 | 8 | 12 | streak | qualifier | where draft 1 is right | where not |\n",
    );
    out.push_str(&format!("|{}\n", " --- |".repeat(11)));
    for class in profile.classes() {
        let positions = &class.positions;
        let count = |is: &dyn Fn(&Position) -> bool| {
            positions.iter().filter(|position| is(position)).count()
        };
        let agrees = |position: &Position| position.qualifier == QualifierPick::Targets;
        let right = |position: &Position| position.draft == Some(0);
        let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
        let _ = write!(out, "| {} | {} |", class.temperature, positions.len());
        for most in [1, 2, 4, 8, 12] {
            let found = count(&|position| position.draft.is_some_and(|place| place < most));
            let _ = write!(out, " {:.3} |", share(found, positions.len()));
        }
        let ended = positions
            .windows(2)
            .filter(|pair| right(&pair[0]) && !right(&pair[1]));
        let _ = write!(out, " {:.2} |", share(count(&right), ended.count()));
        let _ = write!(out, " {:.3} |", share(count(&agrees), positions.len()));
        for draft in [true, false] {
            let whole = count(&|position| right(position) == draft);
            let part = count(&|position| right(position) == draft && agrees(position));
            let _ = write!(out, " {:.3} |", share(part, whole));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guesses(tokens: &[u32]) -> Vec<Guess> {
        let guess = |(&token, place): (&u32, i32)| Guess {
            token,
            q: 0.0,
            margin: if place == 0 { 0.5 } else { -0.5 * place as f32 },
            weight: 0.0,
        };
        tokens.iter().zip(0..).map(guess).collect()
    }

    #[test]
    fn a_position_is_what_the_models_found() {
        let draft = guesses(&[5, 6, 7]);
        for (target, qualifier, place, pick) in [
            (5, 5, Some(0), QualifierPick::Targets),
            (7, 6, Some(2), QualifierPick::Drafts(1)),
            (9, 8, None, QualifierPick::Other),
            (9, 9, None, QualifierPick::Targets),
        ] {
            let found = seen(
                target,
                &guesses(&[target, 1]),
                &guesses(&[qualifier, 2]),
                &draft,
            );
            assert_eq!((found.draft, found.qualifier), (place, pick));
            assert_eq!(found.target_lead, Gap::from_nats(0.5));
            assert_eq!(found.gaps, [Gap::from_nats(0.5), Gap::from_nats(1.0)]);
        }
    }
}

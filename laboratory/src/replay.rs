//! A recorded run taken again, step by step: with the guesses that were there, does the product's session commit what the real
//! one committed?

use speculation::Time;
use speculation::journal::{Number, Run};
use speculation::replay::{Again, Replay, ReplayError};
use speculation::stats::WalkStats;
use speculation::strategy::Registry;

/// A run that was taken again.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    /// What each step submitted and committed.
    pub steps: Vec<Again>,
    /// The same as it was recorded.
    pub recorded: Vec<Again>,
    /// What the walks counted. A hit whose guess came while the step ran is counted as a miss.
    pub walks: WalkStats,
    /// Tokens that each step would have committed had all guesses that were there been in it.
    pub possible: Vec<usize>,
    /// From the end of the first step to the end of the last one, as it was recorded.
    pub took: Time,
}

impl Replayed {
    /// The first step that did something else, if there is one.
    #[must_use]
    pub fn first_difference(&self) -> Option<usize> {
        let mut pairs = self.steps.iter().zip(&self.recorded);
        let differs = pairs.position(|(again, recorded)| again != recorded);
        differs.or_else(|| (self.steps.len() < self.recorded.len()).then_some(self.steps.len()))
    }
}

/// Takes every step of a run again. It ends behind the first step that differs: what was there for the next one was there
/// because of another text.
///
/// # Errors
/// When the journal is none.
pub fn replay(run: &Run, registry: &Registry) -> Result<Replayed, ReplayError> {
    let recorded: Vec<Again> = (run.steps.iter())
        .map(|step| Again {
            submitted: step.submitted.into(),
            tokens: step.picks.len(),
        })
        .collect();
    let mut replay = Replay::new(run, registry)?;
    let mut steps = Vec::with_capacity(recorded.len());
    for (step, expected) in run.steps.iter().zip(&recorded) {
        let again = replay.step(step)?;
        steps.push(again);
        if again != *expected {
            break;
        }
    }
    let ends = (run.steps.first().zip(run.steps.last())).map_or(Time::ZERO, |(first, last)| {
        last.ended.saturating_sub(first.ended)
    });
    Ok(Replayed {
        possible: possible(run),
        walks: replay.walks(),
        steps,
        recorded,
        took: ends,
    })
}

/// How far the text that came is spelt by guesses that were there, and one token more.
fn possible(run: &Run) -> Vec<usize> {
    let text: Vec<Number> = (run.steps.iter())
        .flat_map(|step| step.picks.iter().copied())
        .collect();
    let (mut at, mut known) = (0, 0);
    (run.steps.iter())
        .map(|step| {
            known += step.nodes.len();
            let left = text.get(at..).unwrap_or(&[]);
            at += step.picks.len();
            let was_there = |&&number: &&Number| number > 0 && number as usize <= known;
            let spelt = left.iter().take_while(was_there).count();
            (spelt + 1).min(left.len())
        })
        .collect()
}

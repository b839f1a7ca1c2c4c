//! What a relay sees of how the models of a session agree: at each committed position the places and distances of guesses, and
//! never a token. A recording says as much of a traffic as a profile of the synthetic rig does, and nothing of its texts.

use alloc::vec::Vec;

use crate::journal::{Run, Taken};
use crate::message::{Margin, Prob16, Term};

/// Guesses of a position that are recorded, at most.
pub const MAX_GUESSES: usize = 12;

/// Guesses, estimates and picks of the journals of one text that are recorded, at most.
pub const MAX_JOURNAL: usize = 1 << 16;

/// What a qualifier made of a position.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Picked {
    /// It said nothing before the token was committed.
    #[default]
    Nothing,
    /// The committed token.
    Committed,
    /// Another token: the draft's guess of this place, from 0.
    Guess(u8),
    /// Another token, which the draft had not guessed.
    Other,
}

/// A committed position behind which a draft had guessed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The place of the committed token among the draft's guesses, from 0; none if it was none of them.
    pub place: Option<u8>,
    /// What a qualifier picked.
    pub picked: Picked,
    /// How far the target's pick led.
    pub lead: Margin,
    /// How far each guess but the first lay behind the first, ascending; where there is one guess alone, how far it led.
    pub gaps: Vec<Margin>,
    /// The probabilities that the draft gave its guesses, the first one first. Never empty.
    pub q: Vec<Prob16>,
}

/// The recording of one text, bounded when it is made.
#[derive(Clone, Debug, PartialEq)]
pub struct Recording {
    seen: Vec<Seen>,
    /// The steps of each target that had the text, with the term that it had it under.
    runs: Vec<(Term, Run)>,
    /// Numbers in them.
    numbers: usize,
    /// Committed positions that no draft had reached, or for which there was no room.
    unseen: u64,
    most: usize,
}

impl Recording {
    /// Room for this many positions; what comes later is only counted.
    pub fn new(most: usize) -> Self {
        Recording {
            seen: Vec::new(),
            runs: Vec::new(),
            numbers: 0,
            unseen: 0,
            most,
        }
    }

    /// The positions, in the order of the text.
    pub fn seen(&self) -> &[Seen] {
        &self.seen
    }

    /// The positions, in the order of the text.
    pub fn into_seen(self) -> Vec<Seen> {
        self.seen
    }

    /// Committed positions that are not recorded.
    pub fn unseen(&self) -> u64 {
        self.unseen
    }

    /// The steps of each target that had the text, one after the other. Those of a target of an older version are not known,
    /// nor those for which there was no room: then the last ones are missing.
    pub fn runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().map(|(_, run)| run)
    }

    /// More steps of the target that has the text under this term; its run is made where they are its first.
    pub fn extend_run(&mut self, term: Term, steps: &[Taken], run: impl FnOnce() -> Run) {
        let more: usize = steps.iter().map(|step| 1 + step.numbers()).sum();
        let is_known = self.runs.last().is_some_and(|(last, _)| *last == term);
        // Beyond the bound, nothing more fits in: later steps mean nothing without these.
        self.numbers = self.numbers.saturating_add(more);
        if self.numbers > MAX_JOURNAL {
            self.numbers = usize::MAX;
            return;
        }
        if !is_known {
            self.runs.push((term, run()));
        }
        if let Some((_, run)) = self.runs.last_mut() {
            run.steps.extend_from_slice(steps);
        }
    }

    /// More positions; none where no draft had reached one.
    pub fn extend(&mut self, positions: impl IntoIterator<Item = Option<Seen>>) {
        for seen in positions {
            match seen.filter(|_| self.seen.len() < self.most) {
                Some(seen) => self.seen.push(seen),
                None => self.unseen += 1,
            }
        }
    }
}

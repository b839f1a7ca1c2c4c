//! What a relay sees of how the models of a session agree: at each committed position the places and distances of guesses, and
//! never a token. A recording says as much of a traffic as a profile of the synthetic rig does, and nothing of its texts.

use alloc::vec::Vec;

use crate::message::{Margin, Prob16};

/// Guesses of a position that are recorded, at most.
pub const MAX_GUESSES: usize = 12;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    seen: Vec<Seen>,
    /// Committed positions that no draft had reached, or for which there was no room.
    unseen: u64,
    most: usize,
}

impl Recording {
    /// Room for this many positions; what comes later is only counted.
    pub fn new(most: usize) -> Self {
        Recording {
            seen: Vec::new(),
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

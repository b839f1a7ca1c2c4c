//! How the models agreed in the newest completions, for whoever asks. It holds places and distances of guesses, and no token.

use std::collections::VecDeque;

use proto::{outward, v1};
use speculation::recording::Recording;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Recorder {
    texts: VecDeque<v1::RecordedText>,
    /// Positions of all of them.
    held: usize,
    most: usize,
}

impl Recorder {
    /// Room for this many positions.
    pub(crate) fn new(most: usize) -> Self {
        Recorder {
            texts: VecDeque::new(),
            held: 0,
            most,
        }
    }

    /// A completion has ended. The oldest ones make room for it.
    pub(crate) fn add(&mut self, temperature: f32, recording: &Recording) {
        let text = outward::recorded(temperature, recording);
        if text.positions.is_empty() || text.positions.len() > self.most {
            return;
        }
        self.held += text.positions.len();
        self.texts.push_back(text);
        while self.held > self.most
            && let Some(oldest) = self.texts.pop_front()
        {
            self.held -= oldest.positions.len();
        }
    }

    /// The newest completions, oldest first.
    pub(crate) fn texts(&self) -> Vec<v1::RecordedText> {
        self.texts.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use speculation::recording::Seen;

    fn recording(positions: usize) -> Recording {
        let mut recording = Recording::new(64);
        recording.extend((0..positions).map(|_| Some(Seen::default())));
        recording
    }

    #[test]
    fn the_newest_completions_are_kept() {
        let mut recorder = Recorder::new(10);
        for (temperature, positions) in [(0.0, 4), (0.25, 0), (0.5, 5), (1.0, 3), (2.0, 11)] {
            recorder.add(temperature, &recording(positions));
        }
        let kept: Vec<_> = (recorder.texts().iter())
            .map(|text| (text.temperature, text.positions.len()))
            .collect();
        assert_eq!(kept, [(0.5, 5), (1.0, 3)]);
        let mut off = Recorder::new(0);
        off.add(0.0, &recording(1));
        assert!(off.texts().is_empty());
    }
}

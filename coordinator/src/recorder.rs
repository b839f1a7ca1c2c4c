//! How the models agreed in the newest completions, and what the steps of their targets were, for whoever asks. It holds places,
//! distances and numbers of guesses, and no token.

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
    /// Numbers in the journals of all of them.
    numbers: usize,
}

/// Numbers in journals that are kept, at most: they travel in one message.
const MOST_NUMBERS: usize = 1 << 17;

/// Completions that are kept, at most: a message has no more parts than [`MAX_FIELDS`](proto::codec::MAX_FIELDS).
const MOST_TEXTS: usize = proto::codec::MAX_FIELDS / 2;

impl Recorder {
    /// Room for this many positions.
    pub(crate) fn new(most: usize) -> Self {
        Recorder {
            texts: VecDeque::new(),
            held: 0,
            most,
            numbers: 0,
        }
    }

    /// A completion has ended. The oldest ones make room for it.
    pub(crate) fn add(&mut self, temperature: f32, recording: &Recording) {
        let text = outward::recorded(temperature, recording);
        let is_nothing = text.positions.is_empty() && text.runs.is_empty();
        if is_nothing || text.positions.len() > self.most || self.most == 0 {
            return;
        }
        self.held += text.positions.len();
        self.numbers += numbers(&text);
        self.texts.push_back(text);
        while (self.held > self.most || self.texts.len() > MOST_TEXTS)
            && let Some(oldest) = self.texts.pop_front()
        {
            self.held -= oldest.positions.len();
            self.numbers -= numbers(&oldest);
        }
        // Positions are small, so that the steps of older completions make room first.
        for text in &mut self.texts {
            if self.numbers <= MOST_NUMBERS {
                break;
            }
            self.numbers -= numbers(text);
            text.runs.clear();
        }
        self.texts
            .retain(|text| !(text.positions.is_empty() && text.runs.is_empty()));
    }

    /// The newest completions, oldest first.
    pub(crate) fn texts(&self) -> Vec<v1::RecordedText> {
        self.texts.iter().cloned().collect()
    }
}

/// Numbers in the journals of a completion.
fn numbers(text: &v1::RecordedText) -> usize {
    let journals = text.runs.iter().filter_map(|run| run.journal.as_ref());
    journals
        .map(|journal| {
            // Each step has a handful of its own.
            let steps = 8 * journal.node_counts.len();
            steps + journal.parents.len() + journal.rescored.len() + journal.picks.len()
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use speculation::Time;
    use speculation::journal::{Arrived, Run, Taken};
    use speculation::message::Term;
    use speculation::recording::Seen;
    use speculation::strategy::Settings;

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

    #[test]
    fn steps_of_the_newest_completions_are_kept() {
        let arrived = Arrived {
            parent: 0,
            edge: 0.5,
            source: speculation::duty::Source::Draft,
        };
        let step = Taken {
            nodes: vec![arrived; 50_000],
            took: Time::from_millis(1),
            ..Taken::default()
        };
        let mut recorder = Recorder::new(100);
        for _ in 0..4 {
            let mut recording = recording(5);
            recording.extend_run(Term(1), std::slice::from_ref(&step), || Run {
                strategy: Settings::new("serial"),
                room: 9,
                steps: Vec::new(),
            });
            recorder.add(0.0, &recording);
        }
        let texts = recorder.texts();
        let runs: Vec<usize> = texts.iter().map(|text| text.runs.len()).collect();
        assert_eq!(runs, [0, 0, 1, 1]);
        assert!(texts.iter().all(|text| text.positions.len() == 5));
    }
}

//! The simplest replica there is: every guess is the whole text that it would make.

use std::collections::BTreeMap;

use proto::v1;

/// One session on one fake worker.
#[derive(Debug)]
pub(crate) struct FakeReplica {
    pub(crate) term: u32,
    pub(crate) text: Vec<u32>,
    /// Length the coordinator has acknowledged.
    pub(crate) acked: usize,
    pub(crate) allowed_len: usize,
    pub(crate) stopping: v1::Stopping,
    /// Numbers given to our own nodes so far.
    pub(crate) last_id: u32,
    guesses: BTreeMap<u32, Vec<u32>>,
}

impl FakeReplica {
    pub(crate) fn open(request: &v1::OpenRequest) -> Self {
        FakeReplica {
            term: request.term,
            acked: request.text.len(),
            text: request.text.clone(),
            allowed_len: request.allowed_len as usize,
            stopping: request.stopping.clone().unwrap(),
            last_id: 0,
            guesses: BTreeMap::new(),
        }
    }

    /// Takes an update; a coordinator that breaks the protocol fails the test.
    pub(crate) fn update(&mut self, update: &v1::SessionUpdate) {
        let base = update.base_len as usize;
        let len = base + update.commit.len();
        assert!(base <= self.text.len(), "an update beyond the text");
        let known = (self.text.len() - base).min(update.commit.len());
        assert_eq!(
            self.text[base..base + known],
            update.commit[..known],
            "a commit that contradicts the text"
        );
        self.text.extend_from_slice(&update.commit[known..]);
        self.acked = self.acked.max(len);
        if update.allowed_len > 0 {
            self.allowed_len = update.allowed_len as usize;
        }
        let Some(nodes) = &update.nodes else { return };
        for (at, token) in nodes.tokens.iter().enumerate() {
            let parent = match nodes.parents[at] {
                0 => Some(self.text[..len].to_vec()),
                id => self.guesses.get(&id).cloned(),
            };
            if let Some(mut guess) = parent {
                guess.push(*token);
                self.guesses.insert(nodes.first_id + at as u32, guess);
            }
        }
    }

    /// Whether somebody has guessed exactly this text.
    pub(crate) fn is_guessed(&self, text: &[u32]) -> bool {
        self.guesses.values().any(|guess| guess == text)
    }

    /// Guesses that hang off the text.
    pub(crate) fn has_guess(&self) -> bool {
        let len = self.text.len();
        (self.guesses.values()).any(|guess| guess.len() > len && guess[..len] == self.text[..])
    }
}

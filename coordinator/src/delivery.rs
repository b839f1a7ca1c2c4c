//! From committed tokens to the client. The session never waits here: what the client's channel has no room for stays
//! pending, and the session's credit bounds how much that can be.

use proto::v1::generate_event::Event;
use proto::{outward, v1};
use speculation::message::{PromptScores, Scores};
use text::Detokenizer;
use tokio::time::Instant;
use tonic::Status;

use crate::client::{Client, Gone, Room};
use crate::failure::Failure;
use crate::stop::StopTexts;

/// The text of one completion on its way to its client.
#[derive(Debug)]
pub(crate) struct Delivery {
    client: Client,
    /// Room for the next event.
    room: Option<Room>,
    /// Since when there has been something that the client's stream has no room for.
    pending_since: Option<Instant>,
    choice: u32,
    detokenizer: Detokenizer,
    stops: StopTexts,
    /// Stop texts do not count within the first so many tokens.
    min_tokens: usize,
    /// Tokens of the completion so far.
    tokens: usize,
    /// A stop text has come; nothing is taken behind it.
    stopped: Option<usize>,
    /// Goes first, once the target has accepted the session.
    started: Option<v1::Started>,
    prompt_scores: Option<PromptScores>,
    ids: Vec<u32>,
    scores: Option<Scores>,
    text: String,
    /// Whether the log has been told that a token has no text: once is enough.
    is_told: bool,
}

impl Delivery {
    pub(crate) fn new(
        client: Client,
        choice: u32,
        detokenizer: Detokenizer,
        stops: StopTexts,
        min_tokens: u32,
    ) -> Self {
        Delivery {
            client,
            room: None,
            pending_since: None,
            choice,
            detokenizer,
            stops,
            min_tokens: min_tokens as usize,
            tokens: 0,
            stopped: None,
            started: None,
            prompt_scores: None,
            ids: Vec::new(),
            scores: None,
            text: String::new(),
            is_told: false,
        }
    }

    /// The target serves the session.
    pub(crate) fn start(&mut self, started: v1::Started) {
        self.started = Some(started);
    }

    /// Skips tokens that the client has already, with the text that came with them.
    pub(crate) fn skip(&mut self, ids: &[u32]) {
        self.push(ids, None);
        self.ids.clear();
        self.text.clear();
    }

    /// Adds scores of the prompt.
    pub(crate) fn push_prompt(&mut self, scores: PromptScores) {
        match &mut self.prompt_scores {
            // They come one after the other, all of one kind.
            Some(pending) => {
                let _ = pending.scores.append(&scores.scores);
            }
            None => self.prompt_scores = Some(scores),
        }
    }

    /// Adds committed tokens, up to the one with which a stop text has come.
    pub(crate) fn push(&mut self, ids: &[u32], scores: Option<Scores>) {
        let mut taken = 0;
        for &id in ids {
            if self.stopped.is_some() {
                break;
            }
            taken += 1;
            self.tokens += 1;
            if let Some(number) = self.stops.token(id)
                && self.tokens > self.min_tokens
            {
                let released = (self.stops).stop_at_token(number, &self.detokenizer.finish());
                self.text.push_str(&released.text);
                self.stopped = released.stopped;
                break;
            }
            let piece = match self.detokenizer.push(id) {
                Ok(piece) => piece,
                Err(error) => {
                    // The id itself still reaches the client.
                    if !std::mem::replace(&mut self.is_told, true) {
                        tracing::warn!(id, %error, "a token has no text");
                    }
                    continue;
                }
            };
            let released = if self.tokens > self.min_tokens {
                self.stops.push(&piece)
            } else {
                self.stops.pass(&piece)
            };
            self.text.push_str(&released.text);
            self.stopped = released.stopped;
        }
        self.ids.extend_from_slice(&ids[..taken]);
        if let Some(scores) = scores {
            let fresh = scores.slice(0..taken);
            match &mut self.scores {
                Some(pending) => {
                    let _ = pending.append(&fresh);
                }
                None => self.scores = Some(fresh),
            }
        }
    }

    /// Whether a stop text has ended the completion.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// Tokens of the completion so far, those behind a stop text left out.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.started.is_some() || self.prompt_scores.is_some() || !self.ids.is_empty()
    }

    /// There is room for an event of this completion.
    pub(crate) fn take_room(&mut self, room: Room) {
        self.room = Some(room);
    }

    /// Hands over what there is room for. Returns how many tokens the client has taken with that.
    pub(crate) fn flush(&mut self) -> u32 {
        let mut taken = 0;
        while self.is_pending() {
            // Several completions of one request share the stream, so room is reserved first.
            let Some(room) = self.room.take().or_else(|| self.client.try_room()) else {
                break;
            };
            let Some((event, tokens)) = self.next() else {
                break;
            };
            room.send(Ok(event));
            taken += tokens;
        }
        self.pending_since = match self.is_pending() {
            true => self.pending_since.or_else(|| Some(Instant::now())),
            false => None,
        };
        taken
    }

    fn next(&mut self) -> Option<(v1::GenerateEvent, u32)> {
        if let Some(started) = self.started.take() {
            return Some((self.wrap(Event::Started(started)), 0));
        }
        if let Some(scores) = self.prompt_scores.take() {
            let event = Event::PromptScores(v1::PromptScores {
                first: scores.first,
                scores: Some(outward::token_scores(scores.scores)),
            });
            return Some((self.wrap(event), 0));
        }
        if self.ids.is_empty() {
            return None;
        }
        let tokens = v1::Tokens {
            text: std::mem::take(&mut self.text),
            token_ids: std::mem::take(&mut self.ids),
            scores: self.scores.take().map(outward::token_scores),
        };
        let count = tokens.token_ids.len() as u32;
        Some((self.wrap(Event::Tokens(tokens)), count))
    }

    fn wrap(&self, event: Event) -> v1::GenerateEvent {
        v1::GenerateEvent {
            event: Some(event),
            choice: self.choice,
        }
    }

    /// Resolves with room for an event, which is to be given to [`Delivery::take_room`]. None when the client has
    /// disconnected.
    pub(crate) async fn room(&self) -> Option<Room> {
        self.client.room().await
    }

    /// Resolves when the client has taken nothing for too long, although something is there for it.
    pub(crate) async fn stalled(&self) -> Failure {
        match self.pending_since {
            Some(since) => self.client.stalled(since).await,
            None => std::future::pending().await,
        }
        self.client.unread()
    }

    /// Resolves when the client has disconnected.
    pub(crate) async fn disconnected(&self) {
        self.client.closed().await;
    }

    /// Sends the rest and the end, as fast as the client reads.
    pub(crate) async fn finish(mut self, mut finished: v1::Finished) {
        if self.drain().await.is_err() {
            return;
        }
        match self.stopped {
            Some(number) => finished.stop_text = self.stops.text_of(number).map(str::to_owned),
            None => {
                finished.text = self.stops.finish();
                finished.text.push_str(&self.detokenizer.finish());
            }
        }
        let _ = (self.client.send(Ok(self.wrap(Event::Finished(finished))))).await;
    }

    /// Sends the rest and an error, as fast as the client reads.
    pub(crate) async fn fail(mut self, status: Status) {
        if self.drain().await.is_ok() {
            let _ = self.client.send(Err(status)).await;
        }
    }

    /// Ends the stream at once: the client does not read.
    pub(crate) fn give_up(self, status: Status) {
        self.client.give_up(status);
    }

    async fn drain(&mut self) -> Result<(), Gone> {
        if let Some(room) = self.room.take()
            && let Some((event, _)) = self.next()
        {
            room.send(Ok(event));
        }
        while let Some((event, _)) = self.next() {
            self.client.send(Ok(event)).await?;
        }
        Ok(())
    }
}

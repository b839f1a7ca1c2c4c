//! From committed tokens to the client. The session never waits here: what the client's channel has no room for stays
//! pending, and the session's credit bounds how much that can be.

use proto::v1;
use proto::v1::generate_event::Event;
use text::Detokenizer;
use tokio::sync::mpsc;
use tonic::Status;

/// What the client's stream carries.
pub(crate) type Item = Result<v1::GenerateEvent, Status>;

/// Events on their way to one client. Few, because a client that does not read should be noticed soon.
pub(crate) const CLIENT_EVENTS: usize = 8;

/// The text of one session on its way to its client.
#[derive(Debug)]
pub(crate) struct Delivery {
    client: mpsc::Sender<Item>,
    detokenizer: Detokenizer,
    /// Goes first, once the target has accepted the session.
    started: Option<v1::Started>,
    ids: Vec<u32>,
    text: String,
}

impl Delivery {
    pub(crate) fn new(client: mpsc::Sender<Item>, detokenizer: Detokenizer) -> Self {
        Delivery {
            client,
            detokenizer,
            started: None,
            ids: Vec::new(),
            text: String::new(),
        }
    }

    /// The target serves the session.
    pub(crate) fn start(&mut self, started: v1::Started) {
        self.started = Some(started);
    }

    /// Adds committed tokens.
    pub(crate) fn push(&mut self, ids: &[u32]) {
        for &id in ids {
            match self.detokenizer.push(id) {
                Ok(text) => self.text.push_str(&text),
                // The id itself still reaches the client.
                Err(error) => tracing::warn!(id, %error, "a token has no text"),
            }
        }
        self.ids.extend_from_slice(ids);
    }

    pub(crate) fn is_pending(&self) -> bool {
        self.started.is_some() || !self.ids.is_empty()
    }

    /// Hands over what there is room for. Returns how many tokens the client has taken with that.
    pub(crate) fn flush(&mut self) -> u32 {
        let mut taken = 0;
        while self.is_pending() {
            // Nobody else sends here, so room that is there stays there.
            if self.client.capacity() == 0 {
                break;
            }
            let Some((event, tokens)) = self.next() else {
                break;
            };
            // It fails only when the client is gone, which `gone` tells.
            let _ = self.client.try_send(Ok(event));
            taken += tokens;
        }
        taken
    }

    fn next(&mut self) -> Option<(v1::GenerateEvent, u32)> {
        if let Some(started) = self.started.take() {
            return Some((wrap(Event::Started(started)), 0));
        }
        if self.ids.is_empty() {
            return None;
        }
        let tokens = v1::Tokens {
            text: std::mem::take(&mut self.text),
            token_ids: std::mem::take(&mut self.ids),
        };
        let count = tokens.token_ids.len() as u32;
        Some((wrap(Event::Tokens(tokens)), count))
    }

    /// Resolves when there is room, or nobody will ever make any.
    pub(crate) async fn room(&self) {
        let _ = self.client.reserve().await;
    }

    /// Resolves when the client is gone.
    pub(crate) async fn gone(&self) {
        self.client.closed().await;
    }

    /// Sends the rest and the end, as fast as the client reads.
    pub(crate) async fn finish(mut self, mut finished: v1::Finished) {
        self.drain().await;
        finished.text = self.detokenizer.finish();
        let _ = (self.client.send(Ok(wrap(Event::Finished(finished))))).await;
    }

    /// Sends the rest and an error, as fast as the client reads.
    pub(crate) async fn fail(mut self, status: Status) {
        self.drain().await;
        let _ = self.client.send(Err(status)).await;
    }

    async fn drain(&mut self) {
        while let Some((event, _)) = self.next() {
            // A client that is gone needs nothing more.
            if self.client.send(Ok(event)).await.is_err() {
                return;
            }
        }
    }
}

fn wrap(event: Event) -> v1::GenerateEvent {
    v1::GenerateEvent { event: Some(event) }
}

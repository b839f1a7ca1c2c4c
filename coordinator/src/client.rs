//! The stream of events to one client. The completions of a request share it, and it is bounded: a completion waits for room
//! and for nobody else. A client that takes nothing for too long is given up: the stream ends with a status, and what it had
//! not taken is dropped.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use proto::v1;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Status;

use crate::failure::Failure;

/// What the stream carries.
pub(crate) type Item = Result<v1::GenerateEvent, Status>;

/// Room for one event.
pub(crate) type Room = mpsc::OwnedPermit<Item>;

/// Events on their way to one client, by completion. Few, so that a client that does not read is noticed soon.
const EVENTS: usize = 8;

/// The coordinator's end.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    events: mpsc::Sender<Item>,
    shared: Arc<Mutex<State>>,
    /// How long it may take nothing although something is there.
    patience: Duration,
}

/// The transport's end: what it takes is sent as far as the client's flow control allows. Dropped when the client has
/// disconnected.
#[derive(Debug)]
pub(crate) struct ClientStream {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    source: Source,
    /// When something was taken last.
    taken: Instant,
    /// Of the transport, while it waits for an event.
    waker: Option<Waker>,
}

#[derive(Debug)]
enum Source {
    Open(mpsc::Receiver<Item>),
    /// It was given up; this is all it still gets.
    Ended(Status),
    Over,
}

/// The client has gone, or was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// A stream for so many completions, whose client may take nothing for as long as `patience` says.
pub(crate) fn stream(completions: u32, patience: Duration) -> (Client, ClientStream) {
    let (events, source) = mpsc::channel(EVENTS * completions as usize);
    let shared = Arc::new(Mutex::new(State {
        source: Source::Open(source),
        taken: Instant::now(),
        waker: None,
    }));
    let client = Client {
        events,
        shared: Arc::clone(&shared),
        patience,
    };
    (client, ClientStream { shared })
}

impl Client {
    /// Room for an event, if there is some.
    pub(crate) fn try_room(&self) -> Option<Room> {
        self.events.clone().try_reserve_owned().ok()
    }

    /// Resolves with room for an event; completions get it in the order in which they ask. None when the client has gone.
    pub(crate) async fn room(&self) -> Option<Room> {
        self.events.clone().reserve_owned().await.ok()
    }

    /// Resolves when the client has disconnected or was given up.
    pub(crate) async fn closed(&self) {
        self.events.closed().await;
    }

    /// Resolves when it has taken nothing for too long, although something is there since then.
    pub(crate) async fn stalled(&self, since: Instant) {
        loop {
            let at = since.max(self.shared.lock().taken) + self.patience;
            if Instant::now() >= at {
                return;
            }
            tokio::time::sleep_until(at).await;
        }
    }

    /// Sends an event as soon as there is room; a client that takes nothing is given up.
    ///
    /// # Errors
    /// When there is no client any more.
    pub(crate) async fn send(&self, item: Item) -> Result<(), Gone> {
        tokio::select! {
            sent = self.events.send(item) => sent.map_err(|_| Gone),
            () = self.stalled(Instant::now()) => {
                self.give_up(self.unread());
                Err(Gone)
            }
        }
    }

    /// Why a client that takes nothing is given up.
    pub(crate) fn unread(&self) -> Failure {
        Failure::Unread(self.patience)
    }

    /// Ends the stream of all completions of the request.
    pub(crate) fn give_up(&self, why: impl Into<Status>) {
        let mut state = self.shared.lock();
        if let Source::Open(_) = state.source {
            state.source = Source::Ended(why.into());
        }
        if let Some(waker) = state.waker.take() {
            waker.wake();
        }
    }
}

impl Stream for ClientStream {
    type Item = Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let mut state = self.shared.lock();
        let next = match &mut state.source {
            Source::Open(events) => events.poll_recv(cx),
            Source::Ended(why) => Poll::Ready(Some(Err(why.clone()))),
            Source::Over => Poll::Ready(None),
        };
        match &next {
            Poll::Pending => state.waker = Some(cx.waker().clone()),
            Poll::Ready(_) => {
                state.taken = Instant::now();
                if let Source::Ended(_) = state.source {
                    state.source = Source::Over;
                }
            }
        }
        next
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        self.shared.lock().source = Source::Over;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use futures::{FutureExt, StreamExt};
    use tonic::Code;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn event(choice: u32) -> Item {
        Ok(v1::GenerateEvent {
            choice,
            ..v1::GenerateEvent::default()
        })
    }

    /// Fills a stream for one completion.
    fn full() -> (Client, ClientStream) {
        let (client, stream) = stream(1, PATIENCE);
        while let Some(room) = client.try_room() {
            room.send(event(0));
        }
        (client, stream)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_and_told_why_and_its_events_are_dropped() {
        let (client, mut stream) = full();
        let begun = Instant::now();
        let other = client.clone();
        assert_eq!(client.send(event(1)).await, Err(Gone));
        assert_eq!(begun.elapsed(), PATIENCE);
        other.closed().now_or_never().unwrap();
        let status = stream.next().await.unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Aborted);
        assert!(status.message().contains("60 s"), "{status}");
        assert!(stream.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_completion_has_taken_is_time_for_all() {
        let (client, mut stream) = full();
        let since = Instant::now();
        for _ in 0..3 {
            tokio::time::advance(PATIENCE / 2).await;
            stream.next().await.unwrap().unwrap();
            client.try_room().unwrap().send(event(2));
            assert!(client.stalled(since).now_or_never().is_none());
        }
        client.stalled(since).await;
        assert_eq!(since.elapsed(), PATIENCE * 5 / 2);
    }

    /// A permit that is handed on without being used would go round among those that wait, and nobody would get on.
    #[tokio::test]
    async fn room_goes_to_those_that_wait_in_their_order() {
        let (client, mut stream) = full();
        let mut waiting: Vec<_> = (0..3).map(|_| Box::pin(client.room())).collect();
        for each in &mut waiting {
            assert!(each.now_or_never().is_none());
        }
        stream.next().await.unwrap().unwrap();
        assert!(client.try_room().is_none(), "it is the first one's");
        assert!((&mut waiting[1]).now_or_never().is_none());
        let room = (&mut waiting[0]).now_or_never().unwrap().unwrap();
        room.send(event(3));
        stream.next().await.unwrap().unwrap();
        assert!((&mut waiting[1]).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_client_that_waits_for_an_event_when_it_is_given_up_is_woken() {
        let (client, mut stream) = stream(1, PATIENCE);
        let reading = tokio::spawn(async move { stream.next().await });
        tokio::task::yield_now().await;
        client.give_up(Failure::Stopping);
        let status = reading.await.unwrap().unwrap().unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
    }

    #[tokio::test]
    async fn a_client_that_disconnects_closes_the_stream() {
        let (client, stream) = full();
        assert!(client.closed().now_or_never().is_none());
        drop(stream);
        client.closed().now_or_never().unwrap();
        assert_eq!(client.send(event(1)).await, Err(Gone));
    }
}

//! How much of messages that have not arrived yet this process holds.
//!
//! A gRPC message is decoded when all of it is there, and its sender may take long. Before a message of more than
//! [`SMALL`] bytes is read any further than its first frame, there has to be room for all of it: in the share of its
//! client, and in what the process has for all of them. Until then the sender waits, by the flow control of HTTP/2. A
//! message has room for all of itself or for nothing, so that no two of them wait for each other.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Bytes, http};
use tower::{Layer, Service};

use crate::peer::{Client, Peer};

/// Messages up to this size, in bytes, need no room: they are small beside what a stream costs anyway.
const SMALL: u32 = 16 * 1024;

/// Bytes before a gRPC message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Gives each request body the room of its client. One for each server.
#[derive(Clone, Debug)]
pub struct Arrivals(Arc<Rooms>);

impl Arrivals {
    /// Room for `all` bytes of unfinished messages, of which one client can have `of_client`.
    pub(crate) fn new(all: u32, of_client: u32) -> Self {
        Arrivals(Arc::new(Rooms {
            all: Arc::new(Semaphore::new(all as usize)),
            of_client: of_client.min(all),
            clients: Mutex::default(),
        }))
    }
}

impl<S> Layer<S> for Arrivals {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted {
            inner,
            rooms: Arc::clone(&self.0),
        }
    }
}

/// A service whose request bodies wait for room.
#[derive(Clone, Debug)]
pub struct Counted<S> {
    inner: S,
    rooms: Arc<Rooms>,
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> S::Future {
        let client = Client::of(request.extensions().get::<Peer>());
        let room = self.rooms.of(client);
        self.inner
            .call(request.map(|body| Body::new(Arriving::new(body, room))))
    }
}

#[derive(Debug)]
struct Rooms {
    all: Arc<Semaphore>,
    /// Bytes.
    of_client: u32,
    /// The shares of clients that have a call open.
    clients: Mutex<HashMap<Client, Weak<Semaphore>>>,
}

impl Rooms {
    fn of(&self, client: Client) -> Room {
        let mut clients = self.clients.lock();
        let known = clients.get(&client).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            clients.retain(|_, share| share.strong_count() > 0);
            let share = Arc::new(Semaphore::new(self.of_client as usize));
            clients.insert(client, Arc::downgrade(&share));
            share
        });
        Room {
            own,
            all: Arc::clone(&self.all),
            most: self.of_client,
        }
    }
}

/// Where the messages of one client have room.
#[derive(Clone, Debug)]
struct Room {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
    /// Bytes that one message can have. The server refuses a longer one as soon as it sees its length.
    most: u32,
}

impl Room {
    async fn take(self, bytes: u32) -> Option<[OwnedSemaphorePermit; 2]> {
        let bytes = bytes.min(self.most);
        // In this order: who waits for others' room keeps that of its own client only.
        let own = self.own.acquire_many_owned(bytes).await.ok()?;
        let all = self.all.acquire_many_owned(bytes).await.ok()?;
        Some([own, all])
    }
}

type Taking = Pin<Box<dyn Future<Output = Option<[OwnedSemaphorePermit; 2]>> + Send>>;

/// The body of a request. What is held of an unfinished message has room here.
struct Arriving {
    body: Body,
    room: Room,
    messages: Messages,
    /// The room of the unfinished message. Given back when it is complete, or with the body.
    held: Option<[OwnedSemaphorePermit; 2]>,
    /// A frame that waits for the room of the message that begins in it.
    waiting: Option<(Frame<Bytes>, Taking)>,
}

impl Arriving {
    fn new(body: Body, room: Room) -> Self {
        Arriving {
            body,
            room,
            messages: Messages::default(),
            held: None,
            waiting: None,
        }
    }
}

impl http_body::Body for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.waiting.is_none() {
            let next = ready!(Pin::new(&mut self.body).poll_frame(cx));
            let Some(Ok(frame)) = next else {
                return Poll::Ready(next);
            };
            let Some(data) = frame.data_ref() else {
                return Poll::Ready(Some(Ok(frame)));
            };
            match self.messages.read(data) {
                Unfinished::Same => return Poll::Ready(Some(Ok(frame))),
                Unfinished::Another(bytes) => {
                    self.held = None;
                    if bytes <= SMALL {
                        return Poll::Ready(Some(Ok(frame)));
                    }
                    let taking = Box::pin(self.room.clone().take(bytes));
                    self.waiting = Some((frame, taking));
                }
            }
        }
        if let Some((_, taking)) = &mut self.waiting {
            self.held = ready!(taking.as_mut().poll(cx));
        }
        Poll::Ready(self.waiting.take().map(|(frame, _)| Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.waiting {
            Some(_) => SizeHint::default(),
            None => self.body.size_hint(),
        }
    }
}

/// The message at the end of what was read.
#[derive(Debug, PartialEq, Eq)]
enum Unfinished {
    /// The one that was unfinished before.
    Same,
    /// Another one, of so many bytes; 0 if none is unfinished.
    Another(u32),
}

/// Where one message ends and the next begins.
#[derive(Debug, Default)]
struct Messages {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that were read.
    known: usize,
    /// Bytes of the message that are still to come.
    left: u32,
}

impl Messages {
    fn read(&mut self, mut data: &[u8]) -> Unfinished {
        let mut last = Unfinished::Same;
        while !data.is_empty() {
            if self.left > 0 {
                let taken = data.len().min(self.left as usize);
                data = &data[taken..];
                self.left -= taken as u32;
                if self.left == 0 {
                    last = Unfinished::Another(0);
                }
                continue;
            }
            self.prefix[self.known] = data[0];
            data = &data[1..];
            self.known += 1;
            if self.known == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.known = 0;
                self.left = u32::from_be_bytes(length);
                last = Unfinished::Another(self.left);
            }
        }
        last
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use std::convert::Infallible;
    use std::net::IpAddr;

    use tokio::sync::mpsc;

    use super::*;

    /// A body that is sent piece by piece.
    struct Pieces(mpsc::UnboundedReceiver<Vec<u8>>);

    impl http_body::Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0
                .poll_recv(cx)
                .map(|piece| piece.map(|piece| Ok(Frame::data(piece.into()))))
        }
    }

    fn message(bytes: usize) -> Vec<u8> {
        let mut message = vec![0];
        message.extend((bytes as u32).to_be_bytes());
        message.extend(vec![7; bytes]);
        message
    }

    fn client(last: u8) -> Client {
        Client::Address(IpAddr::from([10, 0, 0, last]))
    }

    /// A body of this client with the first bytes of a message, and where the rest is sent.
    fn begun(
        rooms: &Arrivals,
        client: Client,
        bytes: usize,
    ) -> (Reading, mpsc::UnboundedSender<Vec<u8>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        sender.send(message(bytes)[..100].to_vec()).unwrap();
        let body = Body::new(Pieces(receiver));
        let arriving = Arriving::new(body, rooms.0.of(client));
        (Reading(Box::pin(arriving)), sender)
    }

    struct Reading(Pin<Box<Arriving>>);

    impl Reading {
        /// Bytes of the next frame, if there is one now.
        fn now(&mut self) -> Option<usize> {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            match http_body::Body::poll_frame(self.0.as_mut(), &mut cx) {
                Poll::Ready(Some(Ok(frame))) => Some(frame.data_ref().unwrap().len()),
                Poll::Ready(other) => panic!("{other:?}"),
                Poll::Pending => None,
            }
        }
    }

    #[test]
    fn messages_are_told_apart_wherever_they_are_cut() {
        let mut stream = message(40);
        stream.extend(message(0));
        stream.extend(message(7));
        for cut in 1..stream.len() {
            let mut messages = Messages::default();
            messages.read(&stream[..cut]);
            messages.read(&stream[cut..]);
            assert_eq!((messages.known, messages.left), (0, 0), "cut at {cut}");
        }
        let mut messages = Messages::default();
        assert_eq!(messages.read(&stream[..20]), Unfinished::Another(40));
        assert_eq!(messages.read(&stream[20..30]), Unfinished::Same);
        assert_eq!(messages.read(&stream[30..55]), Unfinished::Another(7));
        assert_eq!(messages.read(&stream[55..]), Unfinished::Another(0));
    }

    #[test]
    fn a_client_waits_for_its_own_share_and_others_do_not() {
        let rooms = Arrivals::new(300_000, 100_000);
        let (mut first, rest) = begun(&rooms, client(1), 60_000);
        assert_eq!(first.now(), Some(100));
        let (mut second, _open) = begun(&rooms, client(1), 60_000);
        assert_eq!(second.now(), None, "120 kB of 100");
        let (mut small, _open) = begun(&rooms, client(1), 16_000);
        assert_eq!(small.now(), Some(100));
        let (mut other, _open) = begun(&rooms, client(2), 60_000);
        assert_eq!(other.now(), Some(100));

        rest.send(message(60_000)[100..].to_vec()).unwrap();
        assert_eq!(first.now(), Some(60_005 - 100));
        assert_eq!(second.now(), Some(100), "the first is complete");
        drop(second);
        let (mut third, _open) = begun(&rooms, client(1), 100_000);
        assert_eq!(third.now(), Some(100), "the second is gone");
    }

    #[test]
    fn all_clients_together_have_their_bound() {
        let rooms = Arrivals::new(150_000, 100_000);
        let (mut first, _open) = begun(&rooms, client(1), 100_000);
        assert_eq!(first.now(), Some(100));
        let (mut second, _open) = begun(&rooms, client(2), 100_000);
        assert_eq!(second.now(), None);
        // Longer than any share: refused by the server, and no reason to wait for ever.
        drop(first);
        assert_eq!(second.now(), Some(100));
        drop(second);
        let (mut long, _open) = begun(&rooms, client(3), 1_000_000);
        assert_eq!(long.now(), Some(100));
    }

    #[test]
    fn shares_of_clients_that_left_are_forgotten() {
        let rooms = Arrivals::new(150_000, 100_000);
        for last in 0..100 {
            drop(rooms.0.of(client(last)));
        }
        assert_eq!(rooms.0.clients.lock().len(), 1);
    }
}

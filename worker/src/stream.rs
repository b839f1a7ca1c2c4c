//! A coordinator's stream on its worker: the reading half feeds the model thread's inbox, the sending half takes what the
//! model thread puts into the slots.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use control::table::Slots;
use flume::Sender;
use futures::{Stream, StreamExt};
use runtime::outbox::Outbox;
use speculation::message::{Addressed, CoordinatorFrame, FromWorker, SessionId, StreamName, Term};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::event::Event;

/// What was reported on one stream and has not been taken yet: filled by the model thread, which never waits for it.
pub(crate) type StreamOutbox = Arc<Outbox<SessionId, (Term, FromWorker)>>;

/// The model thread's side of a [`StreamOutbox`].
#[derive(Debug)]
pub(crate) struct StreamSlots(pub(crate) StreamOutbox);

impl Slots for StreamSlots {
    fn discard(&mut self, session: SessionId) {
        self.0.discard(session);
    }

    fn is_vacant(&self, session: SessionId) -> bool {
        self.0.is_vacant(session)
    }

    fn put(&mut self, session: SessionId, term: Term, message: FromWorker) {
        self.0.put(session, (term, message));
    }
}

/// The stream is over; the reason is the coordinator's mistake, if it was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOver(pub Option<String>);

/// The two halves of a stream end together: when one is over, so is the other.
#[derive(Clone, Debug)]
struct End {
    over: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

/// The sending half of a stream: what the model thread reports. Dropping it ends the stream.
#[derive(Debug)]
pub struct Reports {
    outbox: StreamOutbox,
    events: Sender<Event>,
    end: End,
}

impl Drop for Reports {
    fn drop(&mut self) {
        self.end.over.cancel();
    }
}

impl Reports {
    /// The newest messages of up to `most` sessions, once there is at least one.
    ///
    /// # Errors
    /// When the stream is over: its reading half has ended, or the model thread has.
    pub async fn next(&self, most: usize) -> Result<Vec<Addressed<FromWorker>>, StreamOver> {
        let taken = self.end.over.run_until_cancelled(self.outbox.take(most));
        let Some(taken) = taken.await else {
            return Err(StreamOver(self.end.reason.get().cloned()));
        };
        // A full inbox means that the model thread is busy and will look at the slots anyway.
        let _ = self.events.try_send(Event::Taken);
        let addressed = |(session, (term, message))| Addressed {
            session,
            term,
            message,
        };
        Ok(taken.into_iter().map(addressed).collect())
    }
}

/// Takes over a stream; see [`WorkerHandle::stream`](crate::WorkerHandle::stream).
pub(crate) async fn start<S>(
    events: Sender<Event>,
    over: CancellationToken,
    (name, stream): (StreamName, u64),
    frames: S,
    tasks: &TaskTracker,
) -> Reports
where
    S: Stream<Item = Result<CoordinatorFrame, String>> + Unpin + Send + 'static,
{
    let outbox = StreamOutbox::default();
    let end = End {
        over,
        reason: Arc::default(),
    };
    let (queued, is_queued) = oneshot::channel();
    let reader = Reader {
        events: events.clone(),
        stream,
        end: end.clone(),
    };
    let up = Event::Stream {
        name,
        stream,
        outbox: Arc::clone(&outbox),
    };
    // A task of its own from the start: a caller that gives up while the inbox is full must not leave a stream behind
    // whose loss nobody reports.
    tasks.spawn(reader.run(up, queued, frames));
    let reports = Reports {
        outbox,
        events,
        end,
    };
    // An open call may follow at once. If the model thread has ended, `Reports::next` says so.
    let _ = is_queued.await;
    reports
}

/// The reading half of a stream.
struct Reader {
    events: Sender<Event>,
    stream: u64,
    end: End,
}

impl Reader {
    async fn run<S>(self, up: Event, queued: oneshot::Sender<()>, mut frames: S)
    where
        S: Stream<Item = Result<CoordinatorFrame, String>> + Unpin,
    {
        if self.events.send_async(up).await.is_ok() {
            // Nobody waits if the call was dropped.
            let _ = queued.send(());
            let over = self.end.over.clone();
            over.run_until_cancelled(self.read(&mut frames)).await;
            let stream = self.stream;
            let _ = self.events.send_async(Event::Lost { stream }).await;
        }
        self.end.over.cancel();
    }

    /// Feeds the model thread until the stream ends or breaks. While the inbox is full this waits, and so, by the
    /// transport's flow control, does the coordinator that fills it.
    async fn read<S>(&self, frames: &mut S)
    where
        S: Stream<Item = Result<CoordinatorFrame, String>> + Unpin,
    {
        let stream = self.stream;
        while let Some(frame) = frames.next().await {
            match frame {
                Ok(frame) => {
                    let at = Instant::now();
                    let event = Event::Frame { stream, frame, at };
                    if self.events.send_async(event).await.is_err() {
                        return;
                    }
                }
                Err(why) => {
                    tracing::warn!(
                        stream,
                        why,
                        "closing the stream: invalid frame or broken connection"
                    );
                    self.end.reason.get_or_init(|| why);
                    return;
                }
            }
        }
    }
}

//! One incarnation of the stream to one worker, as sessions and the registry see it.

use std::collections::VecDeque;
use std::sync::Arc;

use dashmap::DashMap;
use futures::{Stream, StreamExt, stream};
use prost::Message;
use proto::v1::worker_client::WorkerClient;
use proto::{MAX_FRAME_BYTES, MAX_SESSIONS_PER_FRAME, outward, v1};
use runtime::outbox::Outbox;
use speculation::duty::Role;
use speculation::message::{Addressed, FromWorker, ReplicaUpdate, SessionId, StreamName, Term};
use speculation::relay::WorkerKey;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::hello::Hello;
use crate::mailbox::Mailbox;
use crate::worker_totals::WorkerTotals;

/// What a worker is sent about one session.
#[derive(Debug)]
pub(crate) enum ToWorker {
    /// The newest state.
    Update(Term, Box<ReplicaUpdate>),
    /// Forget the session that was opened under this term.
    Close(Term),
}

/// A stream that is up, or was. Sessions that hold a lost one leave it as soon as they run.
#[derive(Debug)]
pub(crate) struct WorkerStream {
    /// Names the worker within this coordinator.
    pub(crate) key: WorkerKey,
    /// Names the stream on both ends.
    pub(crate) name: StreamName,
    pub(crate) role: Role,
    pub(crate) address: Arc<str>,
    pub(crate) hello: Hello,
    pub(crate) client: WorkerClient<Channel>,
    /// What each session sends to this worker; taken by the writer.
    pub(crate) outbox: Outbox<SessionId, ToWorker>,
    /// Where the worker's messages about each session go.
    mailboxes: DashMap<SessionId, Arc<Mailbox>>,
    /// Cancelled when the stream is lost; never reset.
    pub(crate) lost: CancellationToken,
    /// Where what sessions receive from this worker is added up.
    totals: Arc<WorkerTotals>,
}

/// The worker at the other end of a stream.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) key: WorkerKey,
    pub(crate) role: Role,
    pub(crate) address: Arc<str>,
    pub(crate) totals: Arc<WorkerTotals>,
}

impl WorkerStream {
    pub(crate) fn new(
        peer: Peer,
        name: StreamName,
        hello: Hello,
        client: WorkerClient<Channel>,
    ) -> Self {
        let Peer {
            key,
            role,
            address,
            totals,
        } = peer;
        WorkerStream {
            key,
            name,
            role,
            address,
            hello,
            client,
            outbox: Outbox::default(),
            mailboxes: DashMap::new(),
            lost: CancellationToken::new(),
            totals,
        }
    }

    /// From now on the session receives what the worker says about it.
    pub(crate) fn join(&self, session: SessionId, mailbox: Arc<Mailbox>) {
        self.mailboxes.insert(session, Arc::clone(&mailbox));
        // `lose` cancels first and then goes over the mailboxes, so either it finds this one or the stream is lost here.
        if self.lost.is_cancelled() {
            mailbox.lose();
        }
    }

    /// The session receives nothing more, and the worker is told to free everything.
    pub(crate) fn leave(&self, session: SessionId) {
        if let Some((_, mailbox)) = self.mailboxes.remove(&session) {
            (self.outbox).put(session, ToWorker::Close(mailbox.term()));
        }
    }

    /// Passes on what the worker said. A session that has left receives nothing.
    pub(crate) fn deliver(&self, message: Addressed<FromWorker>) {
        let Addressed {
            session,
            term,
            message,
        } = message;
        if let Some(mailbox) = self.mailboxes.get(&session) {
            self.totals.add(&mailbox.totals, &message);
            mailbox.deliver(term, message);
        }
    }

    /// The stream is lost, for every session.
    pub(crate) fn lose(&self) {
        self.lost.cancel();
        for mailbox in &self.mailboxes {
            mailbox.lose();
        }
    }

    /// What the worker is sent, for as long as the stream is read: first who is calling, then whatever the slots hold. It
    /// never waits for the reading half.
    pub(crate) fn frames(
        self: Arc<Self>,
    ) -> impl Stream<Item = v1::CoordinatorFrame> + Send + 'static {
        let lost = self.lost.clone();
        let writer = Writer {
            first: Some(outward::greeting(self.name)),
            stream: self,
            taken: VecDeque::new(),
        };
        stream::unfold(writer, |mut writer| async move {
            let frame = writer.next().await;
            Some((frame, writer))
        })
        // Without this a lost stream and its connection would live on until somebody has something to send.
        .take_until(lost.cancelled_owned())
    }
}

struct Writer {
    stream: Arc<WorkerStream>,
    first: Option<v1::CoordinatorFrame>,
    /// Taken from the slots and not yet sent, because the last frame was full.
    taken: VecDeque<(SessionId, ToWorker)>,
}

impl Writer {
    async fn next(&mut self) -> v1::CoordinatorFrame {
        if let Some(first) = self.first.take() {
            return first;
        }
        if self.taken.is_empty() {
            self.taken = self.stream.outbox.take(MAX_SESSIONS_PER_FRAME).await.into();
            for (session, _) in &self.taken {
                if let Some(mailbox) = self.stream.mailboxes.get(session) {
                    mailbox.handle_taken();
                }
            }
        }
        let mut frame = v1::CoordinatorFrame::default();
        let mut bytes = 0;
        // One update is far below half of what a frame may have, so a frame that is not half full has room for it.
        while bytes < MAX_FRAME_BYTES / 2
            && let Some((session, message)) = self.taken.pop_front()
        {
            match message {
                ToWorker::Close(term) => {
                    frame.closed.push(session.0);
                    frame.closed_terms.push(term.0);
                }
                ToWorker::Update(term, message) => {
                    let update = outward::update(Addressed {
                        session,
                        term,
                        message: *message,
                    });
                    bytes += update.encoded_len();
                    frame.updates.push(update);
                }
            }
        }
        frame
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::mailbox::MailboxMaker;
    use futures::StreamExt;
    use speculation::message::{NodeBatch, Prob16};
    use tokio::sync::mpsc;
    use tonic::transport::Endpoint;

    const NAME: StreamName = StreamName {
        coordinator: 77,
        incarnation: 3,
    };

    fn worker_stream() -> Arc<WorkerStream> {
        let channel = Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
        let hello = Hello {
            instance: 0,
            model: String::new(),
            numerics_id: String::new(),
            max_context: 8,
            max_sessions: 2,
            eos_ids: Vec::new(),
            kv_pages: 3,
            kv_page: 4,
            device: String::new(),
        };
        let peer = Peer {
            key: WorkerKey(0),
            role: Role::Draft,
            address: "127.0.0.1:1".into(),
            totals: Arc::default(),
        };
        let client = WorkerClient::new(channel);
        Arc::new(WorkerStream::new(peer, NAME, hello, client))
    }

    fn mailbox() -> Arc<Mailbox> {
        let (inbox, _) = mpsc::channel(1);
        let wake = Arc::default();
        MailboxMaker { inbox, wake }.mailbox(WorkerKey(0))
    }

    /// An update as large as they get.
    fn largest() -> ToWorker {
        let nodes = NodeBatch {
            first_id: u32::MAX - 1024,
            parents: vec![u32::MAX; 512],
            tokens: vec![u32::MAX; 512],
            edges: vec![Prob16(u16::MAX); 512],
            owners: vec![255; 512],
            origins: Vec::new(),
            groups: Vec::new(),
            surprisals: Vec::new(),
        };
        let update = ReplicaUpdate {
            commit: vec![u32::MAX; 1024],
            nodes,
            rescored: vec![(u32::MAX, Prob16(u16::MAX)); 1024],
            ..ReplicaUpdate::default()
        };
        ToWorker::Update(Term(1), Box::new(update))
    }

    #[tokio::test]
    async fn frames_stay_below_their_limit_and_lose_nothing() {
        let stream = worker_stream();
        for session in 0..MAX_SESSIONS_PER_FRAME as u64 {
            stream.outbox.put(SessionId(session), largest());
        }
        (stream.outbox).put(SessionId(u64::MAX), ToWorker::Close(Term(3)));
        let mut frames = Box::pin(Arc::clone(&stream).frames());
        assert_eq!(frames.next().await.unwrap(), outward::greeting(NAME));
        let mut sessions = Vec::new();
        let mut count = 0;
        loop {
            let frame = frames.next().await.unwrap();
            assert!(frame.encoded_len() <= MAX_FRAME_BYTES);
            count += 1;
            sessions.extend(frame.updates.iter().map(|update| update.session));
            if !frame.closed.is_empty() {
                assert_eq!(
                    (frame.closed, frame.closed_terms),
                    (vec![u64::MAX], vec![3])
                );
                break;
            }
        }
        assert!(
            count > 2,
            "{count} frames: the updates were too small to prove anything"
        );
        assert_eq!(
            sessions,
            (0..MAX_SESSIONS_PER_FRAME as u64).collect::<Vec<_>>()
        );
    }

    #[tokio::test]
    async fn a_lost_stream_reaches_all_mailboxes_also_those_that_come_later() {
        let stream = worker_stream();
        let (early, late) = (mailbox(), mailbox());
        stream.join(SessionId(1), Arc::clone(&early));
        assert!(!early.is_lost());
        stream.lose();
        assert!(early.is_lost());
        stream.join(SessionId(2), Arc::clone(&late));
        assert!(late.is_lost());
    }

    #[tokio::test]
    async fn leaving_closes_once_and_under_the_term_of_the_open() {
        let stream = worker_stream();
        let mailbox = mailbox();
        mailbox.set_term(Term(5));
        stream.join(SessionId(1), mailbox);
        stream.outbox.put(SessionId(1), largest());
        stream.leave(SessionId(1));
        stream.leave(SessionId(1));
        stream.leave(SessionId(2));
        let taken = stream.outbox.take(8).await;
        assert!(
            matches!(taken[..], [(SessionId(1), ToWorker::Close(Term(5)))]),
            "{taken:?}"
        );
    }
}

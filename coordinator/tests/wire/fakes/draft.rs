//! A draft that guesses a chain by [`next_token`](super::next_token) whenever the text has grown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proto::v1;
use proto::v1::worker_server::{Worker, WorkerServer};
use tokio::sync::watch;
use tonic::transport::Server as Grpc;
use tonic::{Request, Response, Status, Streaming};

use super::replica::FakeReplica;
use super::{FakeStream, Frames, Server, hello, next_token};

/// Tokens of one guessed chain.
pub(crate) const CHAIN: usize = 3;

/// What the fake has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) opened: BTreeSet<u64>,
    pub(crate) closed: BTreeSet<u64>,
    /// The newest text length by session.
    pub(crate) lens: BTreeMap<u64, usize>,
    /// Streams that were opened.
    pub(crate) streams: usize,
}

#[derive(Debug)]
pub(crate) struct Inner {
    hello: v1::HelloReply,
    refusal: Mutex<Option<Status>>,
    sessions: Mutex<BTreeMap<u64, FakeReplica>>,
    stream: FakeStream,
    pub(crate) seen: watch::Sender<Seen>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct FakeDraft {
    pub(crate) server: Server,
    pub(crate) inner: Arc<Inner>,
}

#[derive(Clone)]
struct FakeService(Arc<Inner>);

impl FakeDraft {
    pub(crate) async fn start() -> FakeDraft {
        FakeDraft::with(hello("draft", 100_000)).await
    }

    pub(crate) async fn with(hello: v1::HelloReply) -> FakeDraft {
        let inner = Arc::new(Inner {
            hello,
            refusal: Mutex::new(None),
            sessions: Mutex::default(),
            stream: FakeStream::default(),
            seen: watch::Sender::new(Seen::default()),
        });
        let service = WorkerServer::new(FakeService(Arc::clone(&inner)));
        let server = Server::start(|alive| {
            inner.stream.ends_with(alive);
            Grpc::builder().add_service(service)
        })
        .await;
        FakeDraft { server, inner }
    }

    /// From now on open calls get this answer.
    pub(crate) fn refuse(&self, status: Status) {
        *self.inner.refusal.lock().unwrap() = Some(status);
    }

    /// Ends the stream; the server stays.
    pub(crate) fn drop_stream(&self) {
        self.inner.stream.drop();
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: v1::WorkerFrame) {
        self.inner.stream.send(frame);
    }
}

impl Inner {
    fn guess(&self, session: u64) {
        let mut sessions = self.sessions.lock().unwrap();
        let Some(replica) = sessions.get_mut(&session) else {
            return;
        };
        let base_len = replica.text.len() as u32;
        let first_id = replica.last_id + 1;
        let mut text = replica.text.clone();
        let mut nodes = v1::Nodes {
            first_id,
            ..v1::Nodes::default()
        };
        for at in 0..CHAIN as u32 {
            let token = next_token(&text);
            text.push(token);
            nodes
                .parents
                .push(if at == 0 { 0 } else { first_id + at - 1 });
            nodes.tokens.push(token);
            nodes.edges.push(60_000);
            nodes.owners.push(0);
            nodes.sources.push(1);
            nodes.qs.push(50_000);
            nodes.margins.push(16);
        }
        replica.last_id += CHAIN as u32;
        let report = v1::SessionReport {
            session,
            term: replica.term,
            base_len,
            nodes: Some(nodes),
            round_done: Some(base_len),
            activity: Some(v1::Activity {
                steps: u64::from(replica.last_id),
                ..v1::Activity::default()
            }),
            ..v1::SessionReport::default()
        };
        let len = base_len as usize;
        self.seen.send_modify(|seen| {
            seen.lens.insert(session, len);
        });
        self.stream.report(report);
    }

    fn receive(&self, frame: v1::CoordinatorFrame) {
        for update in &frame.updates {
            let grown = match self.sessions.lock().unwrap().get_mut(&update.session) {
                Some(replica) => {
                    let before = replica.text.len();
                    replica.update(update);
                    replica.text.len() > before
                }
                None => false,
            };
            if grown {
                self.guess(update.session);
            }
        }
        for (session, term) in frame.closed.into_iter().zip(frame.closed_terms) {
            let mut sessions = self.sessions.lock().unwrap();
            if sessions.get(&session).is_some_and(|held| held.term <= term) {
                sessions.remove(&session);
            }
            drop(sessions);
            self.seen.send_modify(|seen| {
                seen.closed.insert(session);
            });
        }
    }
}

#[tonic::async_trait]
impl Worker for FakeService {
    async fn hello(
        &self,
        _: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        Ok(Response::new(self.0.hello.clone()))
    }

    async fn open(
        &self,
        request: Request<v1::OpenRequest>,
    ) -> Result<Response<v1::OpenReply>, Status> {
        if let Some(refusal) = self.0.refusal.lock().unwrap().clone() {
            return Err(refusal);
        }
        let request = request.into_inner();
        let session = request.session;
        let replica = FakeReplica::open(&request);
        self.0.sessions.lock().unwrap().insert(session, replica);
        self.0.seen.send_modify(|seen| {
            seen.opened.insert(session);
        });
        self.0.guess(session);
        Ok(Response::new(v1::OpenReply {}))
    }

    type LinkStream = Frames;

    async fn link(
        &self,
        request: Request<Streaming<v1::CoordinatorFrame>>,
    ) -> Result<Response<Frames>, Status> {
        let inner = Arc::clone(&self.0);
        let opened = (self.0.stream).open(request, move |frame| inner.receive(frame));
        let opened = opened.await;
        self.0.seen.send_modify(|seen| seen.streams += 1);
        opened
    }
}

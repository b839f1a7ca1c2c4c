//! A draft that guesses a chain by [`next_token`](super::next_token) whenever the text has grown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proto::v1;
use proto::v1::draft_server::{Draft, DraftServer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server as Grpc;
use tonic::{Request, Response, Status, Streaming};

use super::replica::FakeReplica;
use super::{Server, hello, next_token};

/// Tokens of one guessed chain.
pub(crate) const CHAIN: usize = 3;

/// What the fake has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) opened: BTreeSet<u64>,
    pub(crate) closed: BTreeSet<u64>,
    /// The newest text length by session.
    pub(crate) lens: BTreeMap<u64, usize>,
    pub(crate) links: usize,
}

type Out = mpsc::UnboundedSender<Result<v1::DraftFrame, Status>>;

#[derive(Debug)]
pub(crate) struct Inner {
    hello: v1::HelloReply,
    refusal: Mutex<Option<Status>>,
    sessions: Mutex<BTreeMap<u64, FakeReplica>>,
    out: Mutex<Option<Out>>,
    pub(crate) seen: watch::Sender<Seen>,
    alive: Mutex<CancellationToken>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct FakeDraft {
    pub(crate) server: Server,
    pub(crate) inner: Arc<Inner>,
}

#[derive(Clone)]
struct FakeGrow(Arc<Inner>);

impl FakeDraft {
    pub(crate) async fn start() -> FakeDraft {
        FakeDraft::with(hello("draft", 100_000)).await
    }

    pub(crate) async fn with(hello: v1::HelloReply) -> FakeDraft {
        let inner = Arc::new(Inner {
            hello,
            refusal: Mutex::new(None),
            sessions: Mutex::default(),
            out: Mutex::default(),
            seen: watch::Sender::new(Seen::default()),
            alive: Mutex::new(CancellationToken::new()),
        });
        let service = DraftServer::new(FakeGrow(Arc::clone(&inner)));
        let server = Server::start(|alive| {
            *inner.alive.lock().unwrap() = alive;
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
    pub(crate) fn drop_link(&self) {
        *self.inner.out.lock().unwrap() = None;
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: v1::DraftFrame) {
        self.inner.send(frame);
    }
}

impl Inner {
    fn send(&self, frame: v1::DraftFrame) {
        if let Some(out) = &*self.out.lock().unwrap() {
            // A link that is gone takes nothing, as in life.
            let _ = out.send(Ok(frame));
        }
    }

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
        }
        replica.last_id += CHAIN as u32;
        let report = v1::DraftSessionReport {
            session,
            term: replica.term,
            base_len,
            nodes: Some(nodes),
            round_done: Some(base_len),
            activity: Some(v1::Activity {
                steps: u64::from(replica.last_id),
                ..v1::Activity::default()
            }),
        };
        let len = base_len as usize;
        self.seen.send_modify(|seen| {
            seen.lens.insert(session, len);
        });
        self.send(v1::DraftFrame {
            reports: vec![report],
            faults: Vec::new(),
        });
    }

    fn told(&self, frame: v1::RelayFrame) {
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
impl Draft for FakeGrow {
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

    type LinkStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<v1::DraftFrame, Status>> + Send + 'static>>;

    async fn link(
        &self,
        request: Request<Streaming<v1::RelayFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut told = request.into_inner();
        let first = told.message().await?.unwrap();
        assert_ne!(first.coordinator, 0, "the first frame says who is calling");
        let (out, reports) = mpsc::unbounded_channel();
        *self.0.out.lock().unwrap() = Some(out);
        let alive = self.0.alive.lock().unwrap().clone();
        self.0.seen.send_modify(|seen| seen.links += 1);
        let inner = Arc::clone(&self.0);
        let reading = alive.clone();
        tokio::spawn(reading.run_until_cancelled_owned(async move {
            while let Ok(Some(frame)) = told.message().await {
                inner.told(frame);
            }
        }));
        let reports = UnboundedReceiverStream::new(reports);
        let ends = futures::StreamExt::take_until(reports, alive.cancelled_owned());
        Ok(Response::new(Box::pin(StreamExt::map(ends, |report| {
            report
        }))))
    }
}

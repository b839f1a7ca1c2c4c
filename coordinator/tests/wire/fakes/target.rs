//! A target or qualifier that picks by [`next_token`](super::next_token).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proto::v1;
use proto::v1::worker_server::{Worker, WorkerServer};
use tokio::sync::watch;
use tonic::transport::Server as Grpc;
use tonic::{Request, Response, Status, Streaming};

use super::replica::FakeReplica;
use super::{FakeStream, Frames, Server, hello, next_token};

/// When the fake takes its next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// As soon as its last picks are acknowledged.
    OnAck,
    /// Only when there is also a guess to verify.
    OnGuess,
    /// Never.
    Hold,
}

/// How long a refusal lasts.
#[derive(Clone, Copy, Debug)]
enum Lasts {
    Once,
    Always,
}

/// What the fake has seen of a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) opened: BTreeMap<u64, v1::OpenRequest>,
    /// The sessions, in the order in which they were opened.
    pub(crate) order: Vec<u64>,
    pub(crate) closed: BTreeSet<u64>,
    /// Steps by session.
    pub(crate) steps: BTreeMap<u64, usize>,
    /// Sessions that stand at the length they are allowed, with that length.
    pub(crate) parked: BTreeMap<u64, usize>,
    /// Open calls that were refused.
    pub(crate) refused: usize,
    /// Updates that brought guesses.
    pub(crate) guess_updates: usize,
    /// Streams that were opened.
    pub(crate) streams: usize,
}

#[derive(Debug)]
pub(crate) struct Inner {
    hello: v1::HelloReply,
    pace: Mutex<Pace>,
    refusal: Mutex<Option<(Status, Lasts)>>,
    finish: Mutex<Option<v1::FinishReason>>,
    sessions: Mutex<BTreeMap<u64, FakeReplica>>,
    stream: FakeStream,
    pub(crate) seen: watch::Sender<Seen>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct FakeTarget {
    pub(crate) server: Server,
    pub(crate) inner: Arc<Inner>,
}

#[derive(Clone)]
struct FakeService(Arc<Inner>);

impl FakeTarget {
    pub(crate) async fn start(pace: Pace) -> FakeTarget {
        FakeTarget::with(pace, hello("target", 512)).await
    }

    pub(crate) async fn with(pace: Pace, hello: v1::HelloReply) -> FakeTarget {
        let inner = Arc::new(Inner {
            hello,
            pace: Mutex::new(pace),
            refusal: Mutex::new(None),
            finish: Mutex::new(None),
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
        FakeTarget { server, inner }
    }

    pub(crate) fn set(&self, pace: Pace) {
        *self.inner.pace.lock().unwrap() = pace;
        let sessions: Vec<u64> = (self.inner.sessions.lock().unwrap().keys().copied()).collect();
        for session in sessions {
            self.inner.step(session);
        }
    }

    /// Ends the stream; sessions are forgotten.
    pub(crate) fn drop_stream(&self) {
        self.inner.sessions.lock().unwrap().clear();
        self.inner.stream.drop();
    }

    /// From now on open calls get this answer.
    pub(crate) fn refuse(&self, status: Status) {
        *self.inner.refusal.lock().unwrap() = Some((status, Lasts::Always));
    }

    /// From now on open calls are carried out.
    pub(crate) fn accept(&self) {
        *self.inner.refusal.lock().unwrap() = None;
    }

    /// The next open call gets this answer.
    pub(crate) fn refuse_once(&self, status: Status) {
        *self.inner.refusal.lock().unwrap() = Some((status, Lasts::Once));
    }

    /// The next step of any session ends it so.
    pub(crate) fn finish_with(&self, reason: v1::FinishReason) {
        *self.inner.finish.lock().unwrap() = Some(reason);
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: v1::WorkerFrame) {
        self.inner.stream.send(frame);
    }
}

impl Inner {
    /// Takes one step of a session if it may: the picks along what was guessed, and one more.
    fn step(&self, session: u64) {
        let pace = *self.pace.lock().unwrap();
        let mut sessions = self.sessions.lock().unwrap();
        let Some(replica) = sessions.get_mut(&session) else {
            return;
        };
        let may = match pace {
            Pace::OnAck => true,
            Pace::OnGuess => replica.has_guess(),
            Pace::Hold => false,
        };
        let end = replica.stopping.max_len as usize;
        if !may || replica.acked < replica.text.len() || replica.text.len() >= end {
            return;
        }
        if replica.text.len() >= replica.allowed_len {
            let len = replica.text.len();
            self.seen.send_modify(|seen| {
                seen.parked.insert(session, len);
            });
            return;
        }
        let base_len = replica.text.len();
        let mut finish = v1::FinishReason::Unspecified;
        let mut guesses_accepted = 0;
        let forced = self.finish.lock().unwrap().take();
        loop {
            let token = next_token(&replica.text);
            replica.text.push(token);
            if replica.stopping.stop_ids.contains(&token) {
                finish = v1::FinishReason::Stop;
            } else if replica.text.len() >= end {
                finish = match replica.stopping.max_len_is_context {
                    true => v1::FinishReason::Context,
                    false => v1::FinishReason::Length,
                };
            }
            if finish != v1::FinishReason::Unspecified || !replica.is_guessed(&replica.text) {
                break;
            }
            guesses_accepted += 1;
        }
        let picks = replica.text[base_len..].to_vec();
        let report = v1::SessionReport {
            session,
            term: replica.term,
            base_len: base_len as u32,
            margins: vec![40; picks.len()],
            walks: Some(v1::WalkStats {
                tokens: (replica.text.len() - replica.stopping.prompt_len as usize) as u64,
                guesses_accepted,
                ..v1::WalkStats::default()
            }),
            picks,
            finish: forced.unwrap_or(finish).into(),
            activity: None,
            ..v1::SessionReport::default()
        };
        self.seen.send_modify(|seen| {
            seen.parked.remove(&session);
            *seen.steps.entry(session).or_default() += 1;
        });
        self.stream.report(report);
    }

    /// A text may be complete when it is opened: then that is all there is to say.
    fn end_if_complete(&self, session: u64) {
        let sessions = self.sessions.lock().unwrap();
        let Some(replica) = sessions.get(&session) else {
            return;
        };
        let len = replica.text.len();
        if len > replica.stopping.prompt_len as usize && len >= replica.stopping.max_len as usize {
            let report = v1::SessionReport {
                session,
                term: replica.term,
                base_len: len as u32,
                finish: v1::FinishReason::Length.into(),
                ..v1::SessionReport::default()
            };
            self.stream.report(report);
        }
    }

    fn receive(&self, frame: v1::CoordinatorFrame) {
        for update in &frame.updates {
            if update.nodes.is_some() {
                self.seen.send_modify(|seen| seen.guess_updates += 1);
            }
            if let Some(replica) = self.sessions.lock().unwrap().get_mut(&update.session) {
                replica.update(update);
            }
            self.step(update.session);
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
        let refusal = {
            let mut refusal = self.0.refusal.lock().unwrap();
            match &*refusal {
                Some((_, Lasts::Once)) => refusal.take(),
                other => other.clone(),
            }
        };
        if let Some((status, _)) = refusal {
            self.0.seen.send_modify(|seen| seen.refused += 1);
            return Err(status);
        }
        let request = request.into_inner();
        let session = request.session;
        let replica = FakeReplica::open(&request);
        self.0.sessions.lock().unwrap().insert(session, replica);
        self.0.seen.send_modify(|seen| {
            seen.order.push(session);
            seen.opened.insert(session, request);
        });
        self.0.end_if_complete(session);
        self.0.step(session);
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

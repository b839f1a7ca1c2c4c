//! Workers that speak the real wire over real sockets and hold no model: a target that picks by a fixed function, and
//! drafts that guess by it.
//!
//! They are driven by what they are told, never by a clock: a fake target takes one step per acknowledged text.
#[cfg(feature = "endpointslice")]
pub(crate) mod api_server;
#[path = "../../../../tests/e2e/src/dns.rs"]
#[allow(
    unreachable_pub,
    missing_docs,
    reason = "a module of the end-to-end tests, which use it too"
)]
pub(crate) mod dns;
pub(crate) mod draft;
pub(crate) mod replica;
pub(crate) mod rig;
pub(crate) mod target;
pub(crate) mod vocabulary;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Mutex;
use std::time::Duration;

use futures::{Stream, StreamExt};
use proto::v1;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

/// The token that the fake model puts behind a text: a lower-case letter.
pub(crate) fn next_token(text: &[u32]) -> u32 {
    let last = text.last().copied().unwrap_or_default();
    u32::from(b'a') + (last * 31 + text.len() as u32 * 7 + 3) % 26
}

/// What the fake model alone makes of a prompt.
pub(crate) fn plain(prompt: &[u32], tokens: usize) -> Vec<u32> {
    let mut text = prompt.to_vec();
    for _ in 0..tokens {
        text.push(next_token(&text));
    }
    text.split_off(prompt.len())
}

/// Longer than any test should take; a test that hangs fails by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until what a fake has seen is as expected.
pub(crate) async fn until<T: Clone + std::fmt::Debug>(
    seen: &watch::Sender<T>,
    mut expected: impl FnMut(&T) -> bool,
) -> T {
    let mut watcher = seen.subscribe();
    let found = tokio::time::timeout(PATIENCE, watcher.wait_for(|seen| expected(seen))).await;
    match found {
        Ok(found) => found.unwrap().clone(),
        Err(_) => panic!("never came to pass; seen so far: {:?}", seen.borrow()),
    }
}

/// A server that can be killed.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) alive: CancellationToken,
}

impl Server {
    /// Binds first, so that the address is known to who builds the router.
    pub(crate) async fn start(router: impl FnOnce(CancellationToken) -> Router) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let alive = CancellationToken::new();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let router = router(alive.clone());
        let stop = alive.clone().cancelled_owned();
        tokio::spawn(router.serve_with_incoming_shutdown(incoming, stop));
        Server { addr, alive }
    }

    /// Breaks its streams and closes its port.
    pub(crate) fn kill(&self) {
        self.alive.cancel();
    }
}

/// The stream of a fake worker: what it sends on the newest one, and until when.
#[derive(Debug, Default)]
pub(crate) struct FakeStream {
    out: Mutex<Option<mpsc::UnboundedSender<Result<v1::WorkerFrame, Status>>>>,
    alive: Mutex<CancellationToken>,
}

/// What a fake worker sends.
pub(crate) type Frames = Pin<Box<dyn Stream<Item = Result<v1::WorkerFrame, Status>> + Send>>;

impl FakeStream {
    /// Streams end with this server.
    pub(crate) fn ends_with(&self, alive: CancellationToken) {
        *self.alive.lock().unwrap() = alive;
    }

    /// Ends the stream; the server stays.
    pub(crate) fn drop(&self) {
        *self.out.lock().unwrap() = None;
    }

    /// Sends a frame as it is.
    pub(crate) fn send(&self, frame: v1::WorkerFrame) {
        if let Some(out) = &*self.out.lock().unwrap() {
            // A stream that is lost takes nothing, as in life.
            let _ = out.send(Ok(frame));
        }
    }

    /// Sends one report.
    pub(crate) fn report(&self, report: v1::SessionReport) {
        self.send(v1::WorkerFrame {
            reports: vec![report],
            faults: Vec::new(),
        });
    }

    /// Answers the link call; every frame that comes in goes to `receive`.
    pub(crate) async fn open(
        &self,
        request: Request<Streaming<v1::CoordinatorFrame>>,
        mut receive: impl FnMut(v1::CoordinatorFrame) + Send + 'static,
    ) -> Result<Response<Frames>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.unwrap();
        assert_ne!(first.coordinator, 0, "the first frame says who is calling");
        assert_ne!(first.incarnation, 0, "the first frame names the stream");
        let (out, reports) = mpsc::unbounded_channel();
        *self.out.lock().unwrap() = Some(out);
        let alive = self.alive.lock().unwrap().clone();
        let reading = alive.clone();
        tokio::spawn(reading.run_until_cancelled_owned(async move {
            while let Ok(Some(frame)) = frames.message().await {
                receive(frame);
            }
        }));
        let reports = UnboundedReceiverStream::new(reports);
        let reports = reports.take_until(alive.cancelled_owned());
        Ok(Response::new(Box::pin(reports)))
    }
}

/// A handshake that fits the rig's tokenizer.
pub(crate) fn hello(role: &str, max_context: u32) -> v1::HelloReply {
    let tokenizer = vocabulary::tokenizer(vocabulary::TOKENS);
    v1::HelloReply {
        protocol: proto::PROTOCOL,
        oldest_protocol: proto::OLDEST_PROTOCOL,
        capabilities: capabilities(role),
        role: role.to_owned(),
        model: format!("fake-{role}"),
        numerics_id: "fake-numerics".to_owned(),
        vocabulary_hash: tokenizer.vocabulary().hash().to_owned(),
        vocabulary_len: tokenizer.vocabulary().len() as u32,
        max_context,
        max_sessions: 8,
        eos_ids: vec![vocabulary::END],
        kv_positions: 8 * max_context,
        kv_page: 16,
        instance: 0,
        device: String::new(),
    }
}

/// What a worker of a role can do.
fn capabilities(role: &str) -> Vec<String> {
    let names: &[&str] = match role {
        "draft" => &["propose"],
        "qualifier" => &["verify"],
        _ => &["verify", "commit"],
    };
    names.iter().map(|&name| name.to_owned()).collect()
}

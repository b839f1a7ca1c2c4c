//! The admin port: `/metrics`, `/live`, `/startup`, `/ready` and `/version` over plain HTTP.
//!
//! It runs on a thread and an event loop of its own, so that it still answers when the rest of the process is
//! overloaded, which is when it is needed most. So what it says of the rest of the process it has to ask: `/live` has the
//! event loop run a task, `/startup` and `/ready` have the serving port accept a connection. It is off by default. Its traffic is not encrypted, so it binds to
//! loopback only, unless `--allow-plaintext-bind` is given. It only reads: no request changes the state of the process.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use clap::Args;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::metrics::{self, Metrics};
use crate::serve::is_loopback;
use crate::{Drain, NetArgs, Port, Readiness};

/// Open connections at most; a scraper needs one.
const MAX_CONNECTIONS: usize = 32;
/// Time limit for receiving the head of a request; it also closes idle connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest lifetime of a connection, so that a peer that never reads its response cannot hold one forever.
const MAX_LIFETIME: Duration = Duration::from_secs(300);
/// Largest head of a request, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after a failed accept. The usual cause is that the process has run out of file descriptors, and retrying at
/// once would only use up a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether and where the admin port listens.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminArgs {
    /// Serve /metrics, /live, /startup, /ready and /version on this address; port 0 picks a free port [default: off]
    #[arg(long, env = "OFFSHOOT_ADMIN", value_name = "HOST:PORT")]
    pub admin: Option<String>,
}

/// Why the admin port cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Other machines can reach the address, and the admin port has no encryption.
    #[error(
        "refusing to serve --admin on {addr}: other machines can reach it and the traffic is not encrypted; use \
         127.0.0.1, or --allow-plaintext-bind if the network is trusted"
    )]
    Plaintext {
        /// The address that the host resolved to.
        addr: SocketAddr,
    },
    /// The value of the flag is not an address.
    #[error(
        "cannot resolve --admin {given:?}: {source}; give HOST:PORT, for example 127.0.0.1:9090"
    )]
    Resolve {
        /// The value of the flag.
        given: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// The address cannot be bound, or the thread cannot be started.
    #[error("cannot serve --admin on {addr}: {source}; pick another port (0 for a free one)")]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// The state of the process that the admin port reports.
#[derive(Clone, Debug)]
pub struct ProcessState {
    /// The role of the process, for `/version`.
    pub role: &'static str,
    /// The source of `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The source of `/ready`.
    pub readiness: Readiness,
    /// A process that leaves is not ready.
    pub drain: Drain,
    /// The port that the process serves; while it does not answer, the process is not ready.
    pub port: Port,
}

/// How long the event loop of the process may take to run a task, as long as it counts as alive.
const LIVE_LIMIT: Duration = Duration::from_secs(5);

/// What the pages are made from.
#[derive(Clone)]
struct Pages {
    process: ProcessState,
    /// The event loop of the process, which is another one than that of the admin port.
    event_loop: Handle,
}

/// Starts the admin port if `args` ask for one, and returns its address. Its thread runs until the process exits. Call it
/// inside the tokio runtime of the process.
///
/// # Errors
/// When the address does not resolve, needs encryption, or cannot be bound.
pub fn start(
    args: &AdminArgs,
    net: &NetArgs,
    state: ProcessState,
) -> Result<Option<SocketAddr>, AdminError> {
    let Some(given) = &args.admin else {
        return Ok(None);
    };
    let resolve = |source| AdminError::Resolve {
        given: given.clone(),
        source,
    };
    let candidates: Vec<_> = given.to_socket_addrs().map_err(resolve)?.collect();
    let addr = *candidates
        .first()
        .ok_or_else(|| resolve(io::ErrorKind::NotFound.into()))?;
    if !net.allow_plaintext_bind
        && let Some(&addr) = candidates.iter().find(|addr| !is_loopback(addr.ip()))
    {
        return Err(AdminError::Plaintext { addr });
    }
    let bind = |source| AdminError::Bind { addr, source };
    let listener = TcpListener::bind(addr).map_err(bind)?;
    listener.set_nonblocking(true).map_err(bind)?;
    let local = listener.local_addr().map_err(bind)?;
    let pages = Pages {
        process: state,
        event_loop: Handle::current(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(bind)?;
    let listener = {
        let _entered = runtime.enter();
        tokio::net::TcpListener::from_std(listener).map_err(bind)?
    };
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || runtime.block_on(serve(listener, router(pages))))
        .map_err(bind)?;
    tracing::info!(addr = %local, "serving the admin port");
    Ok(Some(local))
}

/// Accepts connections forever and closes those above [`MAX_CONNECTIONS`]. `axum::serve` has no limits on the number
/// of connections, the head of a request or the lifetime of a connection, so the router is served here.
async fn serve(listener: tokio::net::TcpListener, router: Router) {
    let connections = TaskTracker::new();
    loop {
        match listener.accept().await {
            Ok((tcp, _)) if connections.len() < MAX_CONNECTIONS => {
                connections.spawn(serve_connection(tcp, router.clone()));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection within its limits.
async fn serve_connection<C>(connection: C, router: Router)
where
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut http = auto::Builder::new(TokioExecutor::new()).http1_only();
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD);
    let served = http.serve_connection(TokioIo::new(connection), TowerToHyperService::new(router));
    // Errors of a single connection, such as a scraper that hangs up, need no action and are not logged.
    let _ = tokio::time::timeout(MAX_LIFETIME, served).await;
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(live))
        .route("/startup", get(startup))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .fallback(async || {
            let pages = "the pages are /metrics, /live, /startup, /ready and /version\n";
            (StatusCode::NOT_FOUND, pages)
        })
        .method_not_allowed_fallback(async || (StatusCode::METHOD_NOT_ALLOWED, "use GET\n"))
        .layer(map_response(no_store))
        .with_state(pages)
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, metrics::CONTENT_TYPE)],
        pages.process.metrics.render(),
    )
}

/// The answer to a probe: a status and a line.
type Answer = (StatusCode, &'static str);

const NO_ANSWER: Answer = (
    StatusCode::SERVICE_UNAVAILABLE,
    "the serving port does not answer\n",
);

/// Whether the event loop runs. A process that does not answer here should be restarted.
async fn live(State(pages): State<Pages>) -> Answer {
    let task = pages.event_loop.spawn(async {});
    match tokio::time::timeout(LIVE_LIMIT, task).await {
        Ok(Ok(())) => (StatusCode::OK, "live\n"),
        Ok(Err(_)) | Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the event loop does not run\n",
        ),
    }
}

/// Whether the process has come as far as serving its port; a worker loads its model first.
async fn startup(State(pages): State<Pages>) -> Answer {
    if pages.process.port.answers().await {
        (StatusCode::OK, "started\n")
    } else {
        NO_ANSWER
    }
}

async fn ready(State(pages): State<Pages>) -> Answer {
    let process = &pages.process;
    if process.drain.is_leaving() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if !process.readiness.is_ready() {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    } else if !process.port.answers().await {
        NO_ANSWER
    } else {
        (StatusCode::OK, "ready\n")
    }
}

async fn version(State(pages): State<Pages>) -> impl IntoResponse {
    let version = serde_json::json!({
        "name": "offshoot",
        "version": env!("CARGO_PKG_VERSION"),
        "role": pages.process.role,
    });
    ([(CONTENT_TYPE, "application/json")], format!("{version}\n"))
}

/// Keeps proxies from answering with old figures.
async fn no_store(mut response: Response) -> Response {
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use crate::{Listener, ServerLimits};
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    /// A process whose port is bound and not served yet, and its event loop.
    struct Process {
        event_loop: tokio::runtime::Runtime,
        listener: Option<Listener>,
        state: ProcessState,
    }

    impl Process {
        fn new() -> Self {
            let event_loop = tokio::runtime::Runtime::new().unwrap();
            let bound = event_loop.block_on(Listener::bind(&NetArgs::default()));
            let listener = bound.unwrap();
            let state = ProcessState {
                role: "draft",
                metrics: Arc::new(Metrics::new()),
                readiness: Readiness::new(),
                drain: Drain::new(),
                port: listener.port(),
            };
            Process {
                event_loop,
                listener: Some(listener),
                state,
            }
        }

        fn start(&self, args: &AdminArgs, net: &NetArgs) -> Result<Option<SocketAddr>, AdminError> {
            let _entered = self.event_loop.enter();
            start(args, net, self.state.clone())
        }

        fn admin(&self) -> SocketAddr {
            let started = self.start(&on("127.0.0.1:0"), &NetArgs::default());
            started.unwrap().unwrap()
        }

        /// Serves the port until the drain begins.
        fn serve(&mut self) {
            let listener = self.listener.take().unwrap();
            let (readiness, drain) = (self.state.readiness.clone(), self.state.drain.clone());
            self.event_loop.spawn(async move {
                let health = crate::health::service(&readiness, &drain, &[]).await;
                let router = crate::serve::server(&ServerLimits::default()).add_service(health);
                crate::serve::serve(listener, router, drain).await
            });
        }
    }

    async fn pages() -> Pages {
        let listener = Listener::bind(&NetArgs::default()).await.unwrap();
        Pages {
            process: ProcessState {
                role: "draft",
                metrics: Arc::new(Metrics::new()),
                readiness: Readiness::new(),
                drain: Drain::new(),
                port: listener.port(),
            },
            event_loop: Handle::current(),
        }
    }

    fn on(addr: &str) -> AdminArgs {
        AdminArgs {
            admin: Some(addr.to_owned()),
        }
    }

    fn ask(addr: SocketAddr, head: &str) -> String {
        try_ask(addr, head).unwrap()
    }

    /// The port of the process has a second to answer, and a machine may be away for that long.
    fn answers_well(addr: SocketAddr, page: &str) {
        let is_well = |_| ask(addr, page).starts_with("HTTP/1.1 200 ");
        assert!((0..30).any(is_well), "{page}: {}", ask(addr, page));
    }

    fn try_ask(addr: SocketAddr, head: &str) -> io::Result<String> {
        let mut tcp = TcpStream::connect(addr)?;
        write!(
            tcp,
            "{head} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Whether the server has answered on this connection, which it then keeps open.
    fn is_served(tcp: &mut TcpStream) -> bool {
        let sent = tcp.write_all(b"GET /live HTTP/1.1\r\nhost: a\r\n\r\n");
        sent.is_ok() && matches!(tcp.read(&mut [0; 512]), Ok(read) if read > 0)
    }

    #[test]
    fn readiness_follows_the_latches_and_the_drain() {
        let mut process = Process::new();
        let loading = process.state.readiness.latch();
        let addr = process.admin();
        process.serve();
        assert!(ask(addr, "GET /live").starts_with("HTTP/1.1 200 "));
        assert!(ask(addr, "GET /ready").starts_with("HTTP/1.1 503 "));
        drop(loading);
        answers_well(addr, "GET /ready");
        process.state.drain.begin();
        let stopping = ask(addr, "GET /ready");
        assert!(stopping.starts_with("HTTP/1.1 503 ") && stopping.ends_with("stopping\n"));
        assert!(ask(addr, "GET /live").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn a_process_whose_port_does_not_answer_is_never_ready() {
        let mut process = Process::new();
        let addr = process.admin();
        // Bound, not served: connections would wait in the system's queue.
        for page in ["GET /startup", "GET /ready"] {
            let answer = ask(addr, page);
            assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
            assert!(answer.contains("does not answer"), "{answer}");
        }
        process.serve();
        for page in ["GET /startup", "GET /ready", "GET /ready"] {
            answers_well(addr, page);
        }
    }

    #[test]
    fn a_process_whose_event_loop_is_stuck_is_not_live() {
        let event_loop = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut process = Process::new();
        // Nobody drives this one, as if its only thread were stuck.
        process.event_loop = event_loop;
        let addr = process.admin();
        let answer = ask(addr, "GET /live");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }

    #[test]
    fn every_page_says_what_it_is() {
        let process = Process::new();
        let addr = process.admin();
        let metrics = ask(addr, "GET /metrics");
        assert!(metrics.contains(metrics::CONTENT_TYPE) && metrics.ends_with("# EOF\n"));
        let version = ask(addr, "GET /version");
        let json = version.split("\r\n\r\n").nth(1).unwrap();
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(json["role"], "draft");
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
        assert!(ask(addr, "GET /secret").starts_with("HTTP/1.1 404 "));
        let refused = ask(addr, "POST /metrics").to_lowercase();
        assert!(refused.starts_with("http/1.1 405 ") && refused.contains("allow: get,head"));
        for page in ["GET /live", "GET /metrics", "GET /secret", "POST /live"] {
            let answer = ask(addr, page);
            assert!(answer.contains("cache-control: no-store"), "{answer}");
        }
        assert!(ask(addr, "HEAD /live").ends_with("\r\n\r\n"));
    }

    #[test]
    fn connections_above_the_cap_are_closed_and_closed_ones_make_room() {
        let process = Process::new();
        let addr = process.admin();
        let mut open: Vec<_> = (0..MAX_CONNECTIONS)
            .map(|_| TcpStream::connect(addr).unwrap())
            .collect();
        assert!(open.iter_mut().all(is_served));
        assert!(!is_served(&mut TcpStream::connect(addr).unwrap()));
        open.pop();
        // The server learns of the closed connection in its own time; every attempt is a real exchange.
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !try_ask(addr, "GET /live").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 ")) {
            assert!(std::time::Instant::now() < deadline, "no room again");
        }
    }

    #[tokio::test]
    async fn a_head_that_is_too_long_is_refused() {
        let (mut peer, server) = duplex(4 * MAX_HEAD);
        let head = format!("GET /live HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(MAX_HEAD));
        peer.write_all(head.as_bytes()).await.unwrap();
        serve_connection(server, router(pages().await)).await;
        let mut answer = String::new();
        peer.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_end_at_their_time_limits() {
        let unread = b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n";
        // The smaller buffer has no room for a response, and the peer never reads one.
        for (sent, buffer, limit) in [
            (&b""[..], 4096, HEAD_TIMEOUT),
            (b"GET /live HTTP/1.1\r\nhost", 4096, HEAD_TIMEOUT),
            (b"GET /live HTTP/1.1\r\nhost: a\r\n\r\n", 4096, HEAD_TIMEOUT),
            (unread, 64, MAX_LIFETIME),
        ] {
            let (mut peer, server) = duplex(buffer);
            peer.write_all(sent).await.unwrap();
            let began = Instant::now();
            serve_connection(server, router(pages().await)).await;
            let took = began.elapsed();
            assert!(
                took >= limit && took < limit + Duration::from_secs(1),
                "{took:?}"
            );
        }
    }

    #[test]
    fn off_unless_asked_for_and_loopback_unless_allowed() {
        let process = Process::new();
        let net = NetArgs::default();
        let off = process.start(&AdminArgs::default(), &net).unwrap();
        assert_eq!(off, None);
        let refused = process.start(&on("0.0.0.0:0"), &net).unwrap_err();
        assert!(matches!(refused, AdminError::Plaintext { .. }), "{refused}");
        let open = NetArgs {
            allow_plaintext_bind: true,
            ..NetArgs::default()
        };
        assert!(process.start(&on("0.0.0.0:0"), &open).unwrap().is_some());
        for bad in ["", "9090", "127.0.0.1", "127.0.0.1:70000"] {
            let error = process.start(&on(bad), &net).unwrap_err().to_string();
            assert!(error.contains("HOST:PORT"), "{bad:?} gave {error}");
        }
    }
}

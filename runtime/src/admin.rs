//! The admin port: `/metrics`, `/live`, `/ready` and `/version` over plain HTTP.
//!
//! It runs on a thread and an event loop of its own, so that it still answers when the rest of the process is
//! overloaded, which is when it is needed most. It is off by default. Its traffic is not encrypted, so it binds to
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
use tokio_util::task::TaskTracker;

use crate::metrics::{self, Metrics};
use crate::serve::is_loopback;
use crate::{Drain, NetArgs, Readiness};

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
    /// Serve /metrics, /live, /ready and /version on this address; port 0 picks a free port [default: off]
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
    /// A draining process is not ready.
    pub drain: Drain,
}

/// Starts the admin port if `args` ask for one, and returns its address. Its thread runs until the process exits.
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
        .spawn(move || runtime.block_on(serve(listener, router(state))))
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

fn router(state: ProcessState) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready))
        .route("/version", get(version))
        .fallback(async || {
            let pages = "the pages are /metrics, /live, /ready and /version\n";
            (StatusCode::NOT_FOUND, pages)
        })
        .method_not_allowed_fallback(async || (StatusCode::METHOD_NOT_ALLOWED, "use GET\n"))
        .layer(map_response(no_store))
        .with_state(state)
}

async fn metrics(State(state): State<ProcessState>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, metrics::CONTENT_TYPE)],
        state.metrics.render(),
    )
}

async fn ready(State(state): State<ProcessState>) -> (StatusCode, &'static str) {
    if state.drain.is_stopping() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else if state.readiness.is_ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn version(State(state): State<ProcessState>) -> impl IntoResponse {
    let version = serde_json::json!({
        "name": "offshoot",
        "version": env!("CARGO_PKG_VERSION"),
        "role": state.role,
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
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::Instant;

    fn state() -> ProcessState {
        ProcessState {
            role: "draft",
            metrics: Arc::new(Metrics::new()),
            readiness: Readiness::new(),
            drain: Drain::new(),
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
        let state = state();
        let loading = state.readiness.latch();
        let addr = start(&on("127.0.0.1:0"), &NetArgs::default(), state.clone())
            .unwrap()
            .unwrap();
        assert!(ask(addr, "GET /live").starts_with("HTTP/1.1 200 "));
        assert!(ask(addr, "GET /ready").starts_with("HTTP/1.1 503 "));
        drop(loading);
        assert!(ask(addr, "GET /ready").starts_with("HTTP/1.1 200 "));
        state.drain.begin();
        let stopping = ask(addr, "GET /ready");
        assert!(stopping.starts_with("HTTP/1.1 503 ") && stopping.ends_with("stopping\n"));
        assert!(ask(addr, "GET /live").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn every_page_says_what_it_is() {
        let addr = start(&on("127.0.0.1:0"), &NetArgs::default(), state())
            .unwrap()
            .unwrap();
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
        let addr = start(&on("127.0.0.1:0"), &NetArgs::default(), state())
            .unwrap()
            .unwrap();
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
        serve_connection(server, router(state())).await;
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
            serve_connection(server, router(state())).await;
            let took = began.elapsed();
            assert!(
                took >= limit && took < limit + Duration::from_secs(1),
                "{took:?}"
            );
        }
    }

    #[test]
    fn off_unless_asked_for_and_loopback_unless_allowed() {
        let net = NetArgs::default();
        let off = start(&AdminArgs::default(), &net, state()).unwrap();
        assert_eq!(off, None);
        let refused = start(&on("0.0.0.0:0"), &net, state()).unwrap_err();
        assert!(matches!(refused, AdminError::Plaintext { .. }), "{refused}");
        let open = NetArgs {
            allow_plaintext_bind: true,
            ..NetArgs::default()
        };
        assert!(start(&on("0.0.0.0:0"), &open, state()).unwrap().is_some());
        for bad in ["", "9090", "127.0.0.1", "127.0.0.1:70000"] {
            let error = start(&on(bad), &net, state()).unwrap_err().to_string();
            assert!(error.contains("HOST:PORT"), "{bad:?} gave {error}");
        }
    }
}

//! The admin port: `/metrics`, `/live`, `/ready` and `/version` over plain HTTP.
//!
//! It has a thread and a small event loop of its own, so that it still answers when the process is at its limit: that
//! is when somebody wants to look. It is off unless asked for, and follows the same rule as the port for gRPC: without
//! encryption only on loopback, unless told otherwise. Nothing here changes the state of the process.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use crate::metrics::{self, Metrics};
use crate::serve::is_loopback;
use crate::{Drain, NetArgs, Readiness};

/// Connections at one time; a scraper needs one.
const MAX_CONNECTIONS: usize = 32;
/// How long a peer may take to send a request's head, between requests too.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// How long one connection may live in all: a peer that does not read its answer gives its place back.
const LIFE_LIMIT: Duration = Duration::from_secs(300);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after a failed accept, as on the port for gRPC.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether and where the admin port listens.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminArgs {
    /// Serve /metrics, /live, /ready and /version here; port 0 asks the system for a free one [default: off]
    #[arg(long, env = "OFFSHOOT_ADMIN", value_name = "HOST:PORT")]
    pub admin: Option<String>,
}

/// Why there is no admin port.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address can be reached from other machines and nothing is encrypted.
    #[error(
        "refusing to serve --admin on {addr}: other machines can reach it and the traffic is not encrypted; use \
         127.0.0.1, or --allow-plaintext-bind if the network is trusted"
    )]
    Plaintext {
        /// What the host resolved to.
        addr: SocketAddr,
    },
    /// The text is no address.
    #[error(
        "cannot resolve --admin {given:?}: {source}; give HOST:PORT, for example 127.0.0.1:9090"
    )]
    Resolve {
        /// What was given.
        given: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The address cannot be bound, or the thread not started.
    #[error("cannot serve --admin on {addr}: {source}; pick another port (0 for a free one)")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// What the admin port shows.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The process's role, for `/version`.
    pub role: &'static str,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For `/ready`.
    pub readiness: Readiness,
    /// A process that drains is not ready.
    pub drain: Drain,
}

/// Starts serving if `args` ask for it; returns where. The thread lives as long as the process.
///
/// # Errors
/// When the address does not resolve, may not be used without encryption, or cannot be bound.
pub fn start(
    args: &AdminArgs,
    net: &NetArgs,
    shown: Shown,
) -> Result<Option<SocketAddr>, AdminError> {
    let Some(given) = &args.admin else {
        return Ok(None);
    };
    let resolve = |source| AdminError::Resolve {
        given: given.clone(),
        source,
    };
    let mut candidates = given.to_socket_addrs().map_err(resolve)?;
    let addr = candidates
        .next()
        .ok_or_else(|| resolve(io::ErrorKind::NotFound.into()))?;
    if !net.allow_plaintext_bind
        && let Some(addr) = [addr]
            .into_iter()
            .chain(candidates)
            .find(|addr| !is_loopback(addr.ip()))
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
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || runtime.block_on(serve(listener, Arc::new(shown))))
        .map_err(bind)?;
    tracing::info!(addr = %local, "admin port");
    Ok(Some(local))
}

async fn serve(listener: TcpListener, shown: Arc<Shown>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the admin port cannot be served");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = tokio_util::task::TaskTracker::new();
    loop {
        let tcp = match listener.accept().await {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection to the admin port");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            continue;
        };
        let shown = Arc::clone(&shown);
        connections.spawn(async move {
            let answer = service_fn(move |request| {
                let response = answer(&shown, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(tcp), answer);
            // A scraper that breaks off has its reasons, and its next visit is a new connection.
            let _ = tokio::time::timeout(LIFE_LIMIT, connection).await;
            drop(place);
        });
    }
}

fn answer(shown: &Shown, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
        refusal
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    page(shown, request.uri().path())
}

fn page(shown: &Shown, path: &str) -> Response<Full<Bytes>> {
    match path {
        "/metrics" => typed(
            StatusCode::OK,
            metrics::CONTENT_TYPE,
            shown.metrics.render(),
        ),
        "/live" => text(StatusCode::OK, "live\n"),
        "/ready" if shown.drain.is_stopping() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        }
        "/ready" if shown.readiness.is_ready() => text(StatusCode::OK, "ready\n"),
        "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
        "/version" => {
            let version = serde_json::json!({
                "name": "offshoot",
                "version": env!("CARGO_PKG_VERSION"),
                "role": shown.role,
            });
            typed(StatusCode::OK, "application/json", format!("{version}\n"))
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /live, /ready and /version\n",
        ),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn shown() -> Shown {
        Shown {
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
        let mut tcp = TcpStream::connect(addr).unwrap();
        write!(
            tcp,
            "{head} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn readiness_follows_the_latches_and_the_drain() {
        let shown = shown();
        let loading = shown.readiness.latch();
        let addr = start(&on("127.0.0.1:0"), &NetArgs::default(), shown.clone())
            .unwrap()
            .unwrap();
        assert!(ask(addr, "GET /live").starts_with("HTTP/1.1 200 "));
        assert!(ask(addr, "GET /ready").starts_with("HTTP/1.1 503 "));
        drop(loading);
        assert!(ask(addr, "GET /ready").starts_with("HTTP/1.1 200 "));
        shown.drain.begin();
        let stopping = ask(addr, "GET /ready");
        assert!(stopping.starts_with("HTTP/1.1 503 ") && stopping.ends_with("stopping\n"));
        assert!(ask(addr, "GET /live").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn every_page_says_what_it_is() {
        let addr = start(&on("127.0.0.1:0"), &NetArgs::default(), shown())
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
        assert!(ask(addr, "POST /metrics").starts_with("HTTP/1.1 405 "));
    }

    #[test]
    fn off_unless_asked_for_and_loopback_unless_allowed() {
        let net = NetArgs::default();
        let off = start(&AdminArgs::default(), &net, shown()).unwrap();
        assert_eq!(off, None);
        let refused = start(&on("0.0.0.0:0"), &net, shown()).unwrap_err();
        assert!(matches!(refused, AdminError::Plaintext { .. }), "{refused}");
        let open = NetArgs {
            allow_plaintext_bind: true,
            ..NetArgs::default()
        };
        assert!(start(&on("0.0.0.0:0"), &open, shown()).unwrap().is_some());
        for bad in ["", "9090", "127.0.0.1", "127.0.0.1:70000"] {
            let error = start(&on(bad), &net, shown()).unwrap_err().to_string();
            assert!(error.contains("HOST:PORT"), "{bad:?} gave {error}");
        }
    }
}

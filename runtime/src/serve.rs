//! A listening socket that knows its address before it serves, and a gRPC
//! server with limits.
//!
//! The transport library has no cap on connections and no limit on the time a
//! peer may take to say its first word, so connections are accepted here:
//! counted, timed, and handed over with the count attached to them.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router, TcpConnectInfo};

use crate::{Drain, NetArgs};

/// How often an HTTP/2 ping goes out on every connection, both ways.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a ping may go unanswered before the connection counts as lost.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes that may be under way on one stream and not yet read, both ways. What a link says is only worth its newest
/// state, so a link that is slow should not have more than this to catch up with.
pub(crate) const STREAM_WINDOW: u32 = 64 * 1024;
/// The same for a connection. The transport library also derives from it how many small frames may wait unread before
/// it takes the peer for an attacker and ends the connection (half of it, at 256 bytes a frame): a stream's whole
/// window in frames of a few bytes, as a link has them after a stall, has to stay below that.
pub(crate) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// How long a new connection may take to send the HTTP/2 preface. Pings start
/// only after it, so without this limit a silent peer would hold its place.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of the HTTP/2 connection preface (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// Pause after a failed accept: the usual cause is that the process has run out
/// of descriptors, and trying again at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Limits of a gRPC server; the defaults suit every role.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Calls per connection that may wait for their first answer; more are
    /// refused with RESOURCE_EXHAUSTED.
    pub pending_calls: usize,
    /// Open streams per connection.
    pub streams: u32,
    /// Bytes of one request's headers.
    pub header_list: u32,
    /// Reset streams kept per connection (the rapid-reset attack's lever).
    pub reset_streams: usize,
    /// How long a call may take until its first answer. Streams may then last.
    pub first_answer: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            pending_calls: 256,
            streams: 1024,
            header_list: 16 * 1024,
            reset_streams: 64,
            first_answer: Duration::from_secs(60),
        }
    }
}

/// Why a process does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address can be reached from other machines and nothing is encrypted.
    #[error(
        "refusing to listen on {addr}: other machines can reach it and the traffic is not \
         encrypted; use --host 127.0.0.1, or --allow-plaintext-bind if the network is trusted"
    )]
    Plaintext {
        /// What the host resolved to.
        addr: SocketAddr,
    },
    /// The host has no address.
    #[error("cannot resolve --host {host:?}: {source}; give an address such as 127.0.0.1")]
    Resolve {
        /// What was given.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {addr}: {source}; pick another --port (0 for a free one) or --host")]
    Bind {
        /// The last address tried.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A bound socket that does not serve yet.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    local: SocketAddr,
    max_connections: usize,
}

impl Listener {
    /// Binds `args.host:args.port`. Peers that connect from now on wait in the
    /// system's queue until [`serve`] takes them.
    ///
    /// # Errors
    /// When the host does not resolve, is not loopback without
    /// `--allow-plaintext-bind`, or cannot be bound.
    pub async fn bind(args: &NetArgs) -> Result<Self, BindError> {
        let candidates = resolve(&args.host, args.port).await?;
        if let Some(addr) = candidates.iter().find(|addr| !is_loopback(addr.ip()))
            && !args.allow_plaintext_bind
        {
            return Err(BindError::Plaintext { addr: *addr });
        }
        let mut failed = None;
        for addr in candidates {
            let bound = match TcpListener::bind(addr).await {
                Ok(tcp) => tcp.local_addr().map(|local| (tcp, local)),
                Err(error) => Err(error),
            };
            match bound {
                Ok((tcp, local)) => {
                    return Ok(Self {
                        tcp,
                        local,
                        max_connections: args.max_connections as usize,
                    });
                }
                Err(source) => failed = Some(BindError::Bind { addr, source }),
            }
        }
        Err(failed.expect("resolve returns at least one address and each failed"))
    }

    /// Where peers reach this process, with the port that the system picked.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, BindError> {
    let refuse = |source| BindError::Resolve {
        host: host.to_owned(),
        source,
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'))
        .unwrap_or(host);
    let found: Vec<_> = tokio::net::lookup_host((bare, port))
        .await
        .map_err(refuse)?
        .collect();
    if found.is_empty() {
        return Err(refuse(io::Error::new(
            io::ErrorKind::NotFound,
            "the name has no address",
        )));
    }
    Ok(found)
}

/// Loopback also in the mapped form `::ffff:127.0.0.1`.
fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// A gRPC server builder with `limits` and keep-alive set.
#[must_use]
pub fn server(limits: &ServerLimits) -> Server {
    Server::builder()
        .concurrency_limit_per_connection(limits.pending_calls)
        .load_shed(true)
        .timeout(limits.first_answer)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(limits.header_list)
        .http2_max_pending_accept_reset_streams(Some(limits.reset_streams))
        .http2_max_local_error_reset_streams(Some(limits.reset_streams))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Serves `router` on `listener` until `drain` begins, then until the calls
/// that are running have ended.
///
/// # Errors
/// When the transport fails as a whole; a single connection's failure is its
/// own.
pub async fn serve(
    listener: Listener,
    router: Router,
    drain: Drain,
) -> Result<(), tonic::transport::Error> {
    let incoming = Incoming {
        places: Arc::new(Semaphore::new(listener.max_connections)),
        tcp: listener.tcp,
        preface_limit: PREFACE_TIMEOUT,
        pause: None,
    };
    router
        .serve_with_incoming_shutdown(incoming, drain.stopping())
        .await
}

/// Accepts connections under a cap.
struct Incoming {
    tcp: TcpListener,
    /// One permit per open connection.
    places: Arc<Semaphore>,
    /// How long a peer may take to send its preface.
    preface_limit: Duration,
    /// Set after a failed accept, until it has passed.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Stream for Incoming {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let (tcp, peer) = match std::task::ready!(self.tcp.poll_accept(cx)) {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    continue;
                }
            };
            // Closing at once tells the peer to go elsewhere; leaving it in the
            // system's queue would look to it like a hung process.
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                tracing::warn!(%peer, "closing a connection: all places are taken");
                continue;
            };
            // It has already gone if this fails, and reading will say so.
            let _ = tcp.set_nodelay(true);
            return Poll::Ready(Some(Ok(Connection {
                tcp,
                preface: Some(Preface {
                    missing: PREFACE_BYTES,
                    deadline: Box::pin(tokio::time::sleep(self.preface_limit)),
                }),
                _place: place,
            })));
        }
    }
}

/// An accepted connection; its place is free again when it is dropped.
struct Connection {
    tcp: TcpStream,
    /// Present until the peer has sent its preface.
    preface: Option<Preface>,
    _place: OwnedSemaphorePermit,
}

/// What the peer has yet to send, and by when.
struct Preface {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        let Some(preface) = &mut self.preface else {
            return read;
        };
        preface.missing = preface.missing.saturating_sub(buf.filled().len() - before);
        if preface.missing == 0 {
            self.preface = None;
        } else if read.is_pending() && preface.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the peer did not send the HTTP/2 preface in time",
            )));
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    /// A peer that has sent `first`, and its connection as the server sees it.
    async fn accept(first: &[u8], preface_limit: Duration) -> (TcpStream, Connection) {
        let listener = Listener::bind(&NetArgs::default()).await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr()).await.unwrap();
        peer.write_all(first).await.unwrap();
        let mut incoming = Incoming {
            tcp: listener.tcp,
            places: Arc::new(Semaphore::new(1)),
            preface_limit,
            pause: None,
        };
        let connection = incoming.next().await.unwrap().unwrap();
        (peer, connection)
    }

    #[tokio::test]
    async fn a_peer_without_a_preface_is_given_up() {
        for said in [&b""[..], &[0; PREFACE_BYTES - 1]] {
            let (_peer, mut connection) = accept(said, Duration::from_millis(1)).await;
            let error = connection.read_to_end(&mut Vec::new()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test]
    async fn a_peer_with_a_preface_may_be_silent_afterwards() {
        let (_peer, mut connection) = accept(&[0; PREFACE_BYTES], Duration::from_secs(60)).await;
        connection
            .read_exact(&mut [0; PREFACE_BYTES])
            .await
            .unwrap();
        assert!(connection.preface.is_none(), "the limit still stands");
    }

    #[test]
    fn mapped_loopback_is_loopback() {
        for (ip, loopback) in [
            ("127.9.9.9", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("0.0.0.0", false),
            ("::", false),
            ("::ffff:10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(ip.parse().unwrap()), loopback, "{ip}");
        }
    }
}

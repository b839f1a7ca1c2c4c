//! A listening socket that knows its address before it serves, and a gRPC server with limits.
//!
//! Connections are accepted by the module `accept`, with TLS if the process has an identity. Without one, the process
//! listens on loopback only, unless `--allow-plaintext-bind` is given.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::{Server, server};
use tower::layer::util::{Identity, Stack};

use crate::accept::Incoming;
use crate::arrivals::Arrivals;
use crate::port::{Port, Visits};
use crate::tls::Acceptor;
use crate::{Drain, KeepAlive, NetArgs};

/// Time between HTTP/2 pings on every connection, in both directions.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long the answer to a ping may take before the connection is considered lost.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Flow-control window of a stream in bytes, in both directions: data sent and not yet read. Only the newest state on a
/// link matters, so a slow link should not have much more than that to catch up on.
pub(crate) const STREAM_WINDOW: u32 = 64 * 1024;
/// Flow-control window of a connection in bytes. h2 also derives from it how many small frames may wait unread before
/// it treats the peer as an attacker and closes the connection (half of the window, at 256 bytes per frame). A full
/// stream window in frames of a few bytes, which a link can have after a stall, must stay below that.
pub(crate) const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// The layers of a server of [`server`].
pub type Layers = Stack<Arrivals, Identity>;
/// The services of a server of [`server`].
pub type Router = server::Router<Layers>;

/// Limits of a gRPC server; the defaults suit every role.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Calls per connection that may wait for the start of their response; further calls fail with
    /// RESOURCE_EXHAUSTED.
    pub pending_calls: usize,
    /// Open streams per connection.
    pub streams: u32,
    /// Size of the headers of a request, in bytes.
    pub header_list: u32,
    /// Calls per connection that may be cancelled before the server has begun with them, and that many more that it has
    /// to reset itself. A connection with more is closed (GOAWAY with ENHANCE_YOUR_CALM, which clients see as
    /// UNAVAILABLE), because what comes so fast is an attack. As many as may be open, so that a client may cancel all its
    /// calls at once.
    pub reset_streams: usize,
    /// Bytes of messages that have not arrived completely, of one client. More wait.
    pub arriving_of_client: u32,
    /// The same of all clients together.
    pub arriving: u32,
    /// How long a call may take until its response starts. A stream may then last as long as it likes.
    pub response_start: Duration,
    /// How soon a silent peer is considered lost.
    pub keep_alive: KeepAlive,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            pending_calls: 256,
            streams: 1024,
            header_list: 16 * 1024,
            reset_streams: 1024,
            arriving_of_client: 32 << 20,
            arriving: 256 << 20,
            response_start: Duration::from_secs(60),
            keep_alive: KeepAlive::default(),
        }
    }
}

/// Why a process cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Other machines can reach the address, and TLS is off.
    #[error(
        "refusing to listen on {addr}: other machines can reach it and the traffic is not \
         encrypted; give --tls-cert, --tls-key and --tls-ca, or use --host 127.0.0.1, or \
         --allow-plaintext-bind if the network is trusted"
    )]
    Plaintext {
        /// The address that the host resolved to.
        addr: SocketAddr,
    },
    /// The host does not resolve to an address.
    #[error("cannot resolve --host {host:?}: {source}; give an address such as 127.0.0.1")]
    Resolve {
        /// The value of `--host`.
        host: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// The address cannot be bound.
    #[error("cannot listen on {addr}: {source}; pick another --port (0 for a free one) or --host")]
    Bind {
        /// The last address tried.
        addr: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// A bound socket that is not served yet.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    local: SocketAddr,
    max_connections: usize,
    tls: Option<Acceptor>,
    visits: Visits,
}

impl Listener {
    /// Binds `args.host:args.port` for plaintext. Peers that connect from now on wait in the system's queue until
    /// [`serve`] accepts them.
    ///
    /// # Errors
    /// When the host does not resolve, cannot be bound, or is not loopback and `--allow-plaintext-bind` is not given.
    pub async fn bind(args: &NetArgs) -> Result<Self, BindError> {
        Self::bind_with(args, None).await
    }

    /// As [`Listener::bind`], but with `tls` connections are encrypted and any address may be bound.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn bind_with(args: &NetArgs, tls: Option<Acceptor>) -> Result<Self, BindError> {
        let candidates = resolve(&args.host, args.port).await?;
        if let Some(addr) = candidates.iter().find(|addr| !is_loopback(addr.ip()))
            && tls.is_none()
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
                        tls,
                        visits: Visits::default(),
                    });
                }
                Err(source) => failed = Some(BindError::Bind { addr, source }),
            }
        }
        Err(failed.expect("resolve returns at least one address, and binding to each failed"))
    }

    /// The bound address, with the port that the system picked.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Asks whether the port answers, which it does once it is served.
    #[must_use]
    pub fn port(&self) -> Port {
        Port::new(self.local, self.visits.clone())
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
            "the host has no address",
        )));
    }
    Ok(found)
}

/// Whether `ip` is loopback, also in the IPv4-mapped form `::ffff:127.0.0.1`.
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// A gRPC server builder with `limits` and keep-alive set.
#[must_use]
pub fn server(limits: &ServerLimits) -> Server<Layers> {
    Server::builder()
        .layer(Arrivals::new(limits.arriving, limits.arriving_of_client))
        .concurrency_limit_per_connection(limits.pending_calls)
        .load_shed(true)
        .timeout(limits.response_start)
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_max_header_list_size(limits.header_list)
        .http2_max_pending_accept_reset_streams(Some(limits.reset_streams))
        .http2_max_local_error_reset_streams(Some(limits.reset_streams))
        .http2_keepalive_interval(Some(limits.keep_alive.interval))
        .http2_keepalive_timeout(Some(limits.keep_alive.timeout))
}

/// Serves `router` on `listener` until `drain` begins, and then until the running calls have ended.
///
/// # Errors
/// When the server itself fails; the failure of a single connection is no error here.
pub async fn serve(
    listener: Listener,
    router: Router,
    drain: Drain,
) -> Result<(), tonic::transport::Error> {
    let incoming = Incoming::new(
        listener.tcp,
        listener.max_connections,
        listener.tls,
        listener.visits,
    );
    router
        .serve_with_incoming_shutdown(incoming, drain.stopping())
        .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

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

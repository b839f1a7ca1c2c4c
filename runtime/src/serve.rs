//! A listening socket that knows its address before it serves, and a gRPC
//! server with limits.
//!
//! Connections are accepted by [`crate::accept`], encrypted where there is an
//! identity for it. Without one, only this machine is listened to.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::Router;

use crate::accept::Incoming;
use crate::tls::Acceptor;
use crate::{Drain, NetArgs, Pulse};

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
    /// How soon a silent peer counts as lost.
    pub pulse: Pulse,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            pending_calls: 256,
            streams: 1024,
            header_list: 16 * 1024,
            reset_streams: 64,
            first_answer: Duration::from_secs(60),
            pulse: Pulse::default(),
        }
    }
}

/// Why a process does not listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address can be reached from other machines and nothing is encrypted.
    #[error(
        "refusing to listen on {addr}: other machines can reach it and the traffic is not \
         encrypted; give --tls-cert, --tls-key and --tls-ca, or use --host 127.0.0.1, or \
         --allow-plaintext-bind if the network is trusted"
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
    tls: Option<Acceptor>,
}

impl Listener {
    /// Binds `args.host:args.port` for plaintext. Peers that connect from now
    /// on wait in the system's queue until [`serve`] takes them.
    ///
    /// # Errors
    /// When the host does not resolve, is not loopback without
    /// `--allow-plaintext-bind`, or cannot be bound.
    pub async fn bind(args: &NetArgs) -> Result<Self, BindError> {
        Self::bind_with(args, None).await
    }

    /// As [`Listener::bind`]; with `tls`, connections are encrypted and any
    /// address may be bound.
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
pub(crate) fn is_loopback(ip: IpAddr) -> bool {
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
        .http2_keepalive_interval(Some(limits.pulse.interval))
        .http2_keepalive_timeout(Some(limits.pulse.timeout))
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
    let incoming = Incoming::new(listener.tcp, listener.max_connections, listener.tls);
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

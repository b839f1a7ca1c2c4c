//! Whether the process's own serving port answers.
//!
//! A readiness probe on the admin port would otherwise say nothing about the port that is served: the admin port has a
//! thread of its own and answers whatever else is stuck. So the question is put to the port itself: a connection from this
//! process, which the accept loop recognises by its source address and confirms instead of serving it. It needs no
//! certificate, and it fails when the accept loop has ended, the event loop hangs, or no more connections are accepted.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;

/// How long the port may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Source addresses of the connections that are under way, and who waits for each.
#[derive(Clone, Debug, Default)]
pub(crate) struct Visits(Arc<Mutex<BTreeMap<Source, oneshot::Sender<()>>>>);

/// Where a connection comes from, without its flow label and scope.
type Source = (IpAddr, u16);

impl Visits {
    /// Confirms a connection if it comes from this process; it is to be closed then.
    pub(crate) fn confirm(&self, peer: SocketAddr) -> bool {
        let waiting = self.0.lock().remove(&source(peer));
        waiting.is_some_and(|waiting| waiting.send(()).is_ok())
    }
}

fn source(peer: SocketAddr) -> Source {
    (peer.ip().to_canonical(), peer.port())
}

/// A port that this process has bound. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct Port {
    addr: SocketAddr,
    visits: Visits,
}

impl Port {
    pub(crate) fn new(bound: SocketAddr, visits: Visits) -> Self {
        let ip = match bound.ip() {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        Port {
            addr: SocketAddr::new(ip, bound.port()),
            visits,
        }
    }

    /// Whether it accepts a connection now. Takes at most a second.
    pub async fn answers(&self) -> bool {
        matches!(
            tokio::time::timeout(PATIENCE, self.visit()).await,
            Ok(Ok(()))
        )
    }

    async fn visit(&self) -> io::Result<()> {
        let socket = match self.addr {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.bind(SocketAddr::new(self.addr.ip(), 0))?;
        let (waiting, confirmed) = oneshot::channel();
        let visit = Visit {
            visits: self.visits.clone(),
            source: source(socket.local_addr()?),
        };
        self.visits.0.lock().insert(visit.source, waiting);
        // Held until the answer is there: closed earlier, the connection might never be accepted.
        let _connection = socket.connect(self.addr).await?;
        confirmed.await.map_err(io::Error::other)
    }
}

/// An entry of [`Visits`], which is gone when nobody waits any more.
struct Visit {
    visits: Visits,
    source: Source,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.visits.0.lock().remove(&self.source);
    }
}

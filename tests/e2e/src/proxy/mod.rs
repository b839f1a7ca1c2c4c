//! A TCP proxy that disturbs the connections that it forwards.
//!
//! It is controlled by its handle, from the same process. Bytes of a connection keep their order, and none is added or lost;
//! the proxy only delays them and ends connections. Each connection has two bounded queues. It does not interpret the
//! bytes.
//!
//! | fault      | call                  | existing connections             | new connections   |
//! |------------|-----------------------|----------------------------------|-------------------|
//! | slow       | [`Proxy::disturb`]    | delay, jitter, limit by direction | the same          |
//! | black hole | [`Proxy::black_hole`] | blocked, nothing is lost         | hang              |
//! | half-open  | [`Proxy::half_open`]  | one direction stays dead         | work              |
//! | reset      | [`Proxy::reset`]      | both sides get an RST            | work              |
//! | no process | [`Proxy::forward_to`] | end as the process ends them     | are reset         |

mod forward;
mod settings;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use settings::{Conditions, Direction};

use forward::{Ended, Jitter, Lane, forward};
use settings::{Blocked, Settings};

/// Concurrent connections; more are reset.
const MAX_CONNECTIONS: usize = 256;

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A running proxy; dropping it ends its connections.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    settings: watch::Sender<Settings>,
    counters: Arc<Counters>,
    ending: CancellationToken,
}

#[derive(Debug, Default)]
struct Counters {
    /// The number of the next connection.
    next: AtomicU64,
    /// Connections that reach a server.
    open: AtomicUsize,
    /// Bytes forwarded up and down.
    forwarded: [AtomicU64; 2],
}

impl Proxy {
    /// Listens on a free loopback port. `seed` decides the jitter.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: Option<SocketAddr>, seed: u64) -> io::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (settings, current) = watch::channel(Settings::forwarding_to(upstream));
        let counters = Arc::<Counters>::default();
        let ending = CancellationToken::new();
        let accepting = Accepting {
            listener,
            settings: current,
            counters: Arc::clone(&counters),
            seed,
            tasks: TaskTracker::new(),
            ending: ending.clone(),
        };
        let tasks = accepting.tasks.clone();
        tasks.spawn(ending.clone().run_until_cancelled_owned(accepting.run()));
        Ok(Proxy {
            addr,
            settings,
            counters,
            ending,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on connections are forwarded to this address, or reset without one.
    pub fn forward_to(&self, upstream: Option<SocketAddr>) {
        self.settings.send_modify(|now| now.upstream = upstream);
    }

    /// Makes one direction of all connections slow, for bytes that arrive from now on.
    pub fn disturb(&self, direction: Direction, conditions: Conditions) {
        self.settings
            .send_modify(|now| now.lane_mut(direction).conditions = conditions);
    }

    /// From now on nothing is forwarded in this direction, not even the end of a connection, and new connections hang.
    pub fn block(&self, direction: Direction) {
        self.settings
            .send_modify(|now| now.lane_mut(direction).blocked = Some(Blocked));
    }

    /// Blocks both directions.
    pub fn black_hole(&self) {
        Direction::BOTH.into_iter().for_each(|way| self.block(way));
    }

    /// Ends delays, limits and blocks; what was queued is forwarded. Half-open connections stay half-open.
    pub fn clear(&self) {
        self.settings.send_modify(Settings::clear);
    }

    /// This direction of all existing connections stays dead; only new connections work.
    pub fn half_open(&self, direction: Direction) {
        let next = self.counters.next.load(Ordering::SeqCst);
        self.settings.send_modify(|now| now.stop(direction, next));
    }

    /// Resets all existing connections, on both sides.
    pub fn reset(&self) {
        let next = self.counters.next.load(Ordering::SeqCst);
        self.settings.send_modify(|now| now.reset(next));
    }

    /// Connections that reach the server.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counters.open.load(Ordering::SeqCst)
    }

    /// Bytes forwarded in a direction since the start.
    #[must_use]
    pub fn forwarded(&self, direction: Direction) -> u64 {
        self.counters.forwarded(direction).load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

impl Counters {
    fn forwarded(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Up => &self.forwarded[0],
            Direction::Down => &self.forwarded[1],
        }
    }
}

/// The task that accepts connections.
struct Accepting {
    listener: TcpListener,
    settings: watch::Receiver<Settings>,
    counters: Arc<Counters>,
    seed: u64,
    tasks: TaskTracker,
    ending: CancellationToken,
}

impl Accepting {
    async fn run(self) {
        loop {
            let Ok((client, _)) = self.listener.accept().await else {
                // Either the peer has closed already, or there are no more file descriptors for now.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if self.tasks.len() > MAX_CONNECTIONS {
                abort(&client);
                continue;
            }
            let connection = Connection {
                number: self.counters.next.fetch_add(1, Ordering::SeqCst),
                settings: self.settings.clone(),
                counters: Arc::clone(&self.counters),
                seed: self.seed,
            };
            let ending = self.ending.clone();
            (self.tasks).spawn(async move {
                ending.run_until_cancelled(connection.run(client)).await;
            });
        }
    }
}

/// The task of one connection.
struct Connection {
    number: u64,
    settings: watch::Receiver<Settings>,
    counters: Arc<Counters>,
    seed: u64,
}

/// Counts an open connection while it exists.
struct Open<'a>(&'a AtomicUsize);

impl<'a> Open<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Open(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Connection {
    async fn run(self, mut client: TcpStream) {
        let Some(mut server) = self.reach().await else {
            abort(&client);
            return;
        };
        // They fail only on a closed socket, and then reading fails as well.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let _open = Open::new(&self.counters.open);
        match self.pipe(&mut client, &mut server).await {
            Ended::Finished => {}
            Ended::Broken => {
                abort(&client);
                abort(&server);
            }
        }
    }

    /// The connection to the server, when new connections are admitted and there is a server.
    async fn reach(&self) -> Option<TcpStream> {
        let mut settings = self.settings.clone();
        let upstream = tokio::select! {
            admitted = settings.wait_for(Settings::admits) => admitted.ok()?.upstream?,
            () = self.is_reset() => return None,
        };
        TcpStream::connect(upstream).await.ok()
    }

    async fn pipe(&self, client: &mut TcpStream, server: &mut TcpStream) -> Ended {
        let (client_in, client_out) = client.split();
        let (server_in, server_out) = server.split();
        let up = forward(self.lane(Direction::Up), client_in, server_out);
        let down = forward(self.lane(Direction::Down), server_in, client_out);
        tokio::pin!(up, down);
        let (first, rest) = tokio::select! {
            ended = &mut up => (ended, Direction::Down),
            ended = &mut down => (ended, Direction::Up),
            () = self.is_reset() => return Ended::Broken,
        };
        if first == Ended::Broken {
            return first;
        }
        let number = self.number;
        let mut settings = self.settings.clone();
        let other = async {
            match rest {
                Direction::Up => up.await,
                Direction::Down => down.await,
            }
        };
        tokio::select! {
            ended = other => ended,
            () = self.is_reset() => Ended::Broken,
            // A dead direction never finishes.
            _ = settings.wait_for(|now| now.is_stopped(rest, number)) => Ended::Broken,
        }
    }

    fn lane(&self, direction: Direction) -> Lane<'_> {
        let way = match direction {
            Direction::Up => 0,
            Direction::Down => 1,
        };
        Lane {
            connection: self.number,
            direction,
            settings: self.settings.clone(),
            jitter: Jitter::new(self.seed.wrapping_add((self.number << 1) | way)),
            forwarded: self.counters.forwarded(direction),
        }
    }

    async fn is_reset(&self) {
        let number = self.number;
        // It fails only when the proxy was dropped, which ends this task as well.
        let _ = (self.settings.clone().wait_for(|now| now.is_reset(number))).await;
    }
}

/// Closing this socket from now on sends an RST.
fn abort(socket: &TcpStream) {
    // A socket that is closed already needs no reset.
    let _ = socket.set_zero_linger();
}

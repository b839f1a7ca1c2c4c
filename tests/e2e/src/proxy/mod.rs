//! A TCP proxy that disturbs what it carries.
//!
//! It stands on one link and is controlled by its handle, from the same process. Bytes keep their order and none is
//! invented or lost within a connection; what it adds is time, and ends. Each connection has two bounded queues. It
//! knows nothing of what the bytes mean.
//!
//! | fault      | call                  | connections that are there       | new connections   |
//! |------------|-----------------------|----------------------------------|-------------------|
//! | slow       | [`Proxy::disturb`]    | delay, jitter, limit by direction | the same          |
//! | black hole | [`Proxy::black_hole`] | nothing passes, nothing is lost  | hang              |
//! | half-open  | [`Proxy::half_open`]  | one direction is dead for good   | are as usual      |
//! | reset      | [`Proxy::reset`]      | both sides get an RST            | are as usual      |
//! | no process | [`Proxy::lead_to`]    | end as the process ends them     | are reset         |

mod carry;
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

use carry::{Ended, Jitter, Lane, carry};
use settings::{Held, Settings};

/// Connections at one time; more are reset.
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
    /// Connections that lead somewhere.
    open: AtomicUsize,
    /// Bytes carried up and down.
    carried: [AtomicU64; 2],
}

impl Proxy {
    /// Listens on a free loopback port. `seed` decides the jitter.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: Option<SocketAddr>, seed: u64) -> io::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (settings, watched) = watch::channel(Settings::leading_to(upstream));
        let counters = Arc::<Counters>::default();
        let ending = CancellationToken::new();
        let accepting = Accepting {
            listener,
            settings: watched,
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

    /// Connections from now on lead there, or are reset if there is nobody.
    pub fn lead_to(&self, upstream: Option<SocketAddr>) {
        self.settings.send_modify(|now| now.upstream = upstream);
    }

    /// Makes one direction slow. It holds for bytes that arrive from now on, and for all connections.
    pub fn disturb(&self, direction: Direction, conditions: Conditions) {
        self.settings
            .send_modify(|now| now.lane_mut(direction).conditions = conditions);
    }

    /// From now on nothing passes in this direction, not even the end of a connection, and new connections hang.
    pub fn hold(&self, direction: Direction) {
        self.settings
            .send_modify(|now| now.lane_mut(direction).held = Some(Held));
    }

    /// Holds both directions.
    pub fn black_hole(&self) {
        Direction::BOTH.into_iter().for_each(|way| self.hold(way));
    }

    /// Ends delays, limits and holds: what was kept flows on. What was made half-open stays so.
    pub fn clear(&self) {
        self.settings.send_modify(Settings::clear);
    }

    /// On the connections that are there, this direction is dead for good; whoever wants to go on has to connect anew.
    pub fn half_open(&self, direction: Direction) {
        let next = self.counters.next.load(Ordering::SeqCst);
        self.settings.send_modify(|now| now.stop(direction, next));
    }

    /// Resets the connections that are there, towards both sides.
    pub fn reset(&self) {
        let next = self.counters.next.load(Ordering::SeqCst);
        self.settings.send_modify(|now| now.reset(next));
    }

    /// Connections that lead through to the other side.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.counters.open.load(Ordering::SeqCst)
    }

    /// Bytes carried in a direction since the start.
    #[must_use]
    pub fn carried(&self, direction: Direction) -> u64 {
        self.counters.carried(direction).load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ending.cancel();
    }
}

impl Counters {
    fn carried(&self, direction: Direction) -> &AtomicU64 {
        match direction {
            Direction::Up => &self.carried[0],
            Direction::Down => &self.carried[1],
        }
    }
}

/// The task that takes connections in.
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
                // Either the peer was gone already, or descriptors have run out, which only time can mend.
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

/// What the task of one connection knows.
struct Connection {
    number: u64,
    settings: watch::Receiver<Settings>,
    counters: Arc<Counters>,
    seed: u64,
}

/// Counts an open connection for as long as it lives.
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
        // Neither fails on a socket that is still there, and otherwise reading says so.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let _open = Open::new(&self.counters.open);
        match self.ferry(&mut client, &mut server).await {
            Ended::Finished => {}
            Ended::Broken => {
                abort(&client);
                abort(&server);
            }
        }
    }

    /// The other side, when the link lets new connections through and there is somebody.
    async fn reach(&self) -> Option<TcpStream> {
        let mut settings = self.settings.clone();
        let upstream = tokio::select! {
            admitted = settings.wait_for(Settings::admits) => admitted.ok()?.upstream?,
            () = self.is_reset() => return None,
        };
        TcpStream::connect(upstream).await.ok()
    }

    async fn ferry(&self, client: &mut TcpStream, server: &mut TcpStream) -> Ended {
        let (client_in, client_out) = client.split();
        let (server_in, server_out) = server.split();
        let up = carry(self.lane(Direction::Up), client_in, server_out);
        let down = carry(self.lane(Direction::Down), server_in, client_out);
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
            // A direction that is dead will never finish, so nobody waits for it.
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
            carried: self.counters.carried(direction),
        }
    }

    async fn is_reset(&self) {
        let number = self.number;
        // It fails only when the proxy has ended, which ends this task as well.
        let _ = (self.settings.clone().wait_for(|now| now.is_reset(number))).await;
    }
}

/// Closing this socket from now on sends an RST.
fn abort(socket: &TcpStream) {
    // A socket that is already gone needs no reset.
    let _ = socket.set_zero_linger();
}

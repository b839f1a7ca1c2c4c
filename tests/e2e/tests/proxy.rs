//! The fault proxy itself, in front of a plain echo server.
//!
//! Only lower bounds on time are checked, because those cannot fail on a busy machine. That nothing arrives is checked for
//! a short time.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use offshoot_e2e::proxy::{Conditions, Direction, Proxy};
use offshoot_e2e::wait::{met, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Long enough for anything that is not blocked, even on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// How long to check that nothing arrives.
const WHILE: Duration = Duration::from_millis(100);

/// Sends back what it receives, until it is dropped.
struct Echo {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Echo {
    async fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut peers = JoinSet::new();
            loop {
                let (mut peer, _) = listener.accept().await.unwrap();
                peers.spawn(async move {
                    let (mut from, mut to) = peer.split();
                    // A peer that is reset ends only its own task.
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Echo {
            addr,
            _tasks: tasks,
        }
    }
}

async fn proxied() -> (Echo, Proxy) {
    let echo = Echo::start().await;
    let proxy = Proxy::start(Some(echo.addr), 7).await.unwrap();
    (echo, proxy)
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect(proxy.addr()).await.unwrap()
}

/// Sends bytes and expects the same bytes back; returns how long that took.
async fn round_trip(peer: &mut TcpStream, sent: &[u8]) -> Duration {
    let begun = Instant::now();
    peer.write_all(sent).await.unwrap();
    receives(peer, sent).await;
    begun.elapsed()
}

async fn receives(peer: &mut TcpStream, expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    timeout(SOON, peer.read_exact(&mut received))
        .await
        .expect("nothing arrived")
        .unwrap();
    assert_eq!(received, expected);
}

async fn receives_nothing(peer: &mut TcpStream) {
    let received = timeout(WHILE, peer.read_u8()).await;
    assert!(received.is_err(), "{received:?} arrived");
}

async fn is_reset(peer: &mut TcpStream) {
    let error = timeout(SOON, peer.read_u8()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

fn slow(delay_ms: u64, jitter_ms: u64) -> Conditions {
    Conditions {
        delay: Duration::from_millis(delay_ms),
        jitter: Duration::from_millis(jitter_ms),
        rate: None,
    }
}

#[tokio::test]
async fn it_forwards_both_ways_and_forwards_the_end() {
    let (_echo, proxy) = proxied().await;
    let mut peer = connect(&proxy).await;
    round_trip(&mut peer, b"hello").await;
    assert_eq!(proxy.connections(), 1);
    peer.shutdown().await.unwrap();
    assert_eq!(
        timeout(SOON, peer.read(&mut [0])).await.unwrap().unwrap(),
        0
    );
    assert_eq!(
        Direction::BOTH.map(|direction| proxy.forwarded(direction)),
        [5, 5]
    );
}

#[tokio::test]
async fn each_direction_has_its_own_delay() {
    let (_echo, proxy) = proxied().await;
    let mut peer = connect(&proxy).await;
    proxy.disturb(Direction::Up, slow(60, 0));
    assert!(round_trip(&mut peer, b"a").await >= Duration::from_millis(60));
    proxy.disturb(Direction::Down, slow(40, 0));
    assert!(round_trip(&mut peer, b"b").await >= Duration::from_millis(100));
}

#[tokio::test]
async fn jitter_changes_no_byte_and_no_order() {
    let (_echo, proxy) = proxied().await;
    for direction in Direction::BOTH {
        proxy.disturb(direction, slow(3, 3));
    }
    let mut peer = connect(&proxy).await;
    let sent: Vec<u8> = (0..100_000_u32).map(|at| (at * 31 % 251) as u8).collect();
    let (mut from, mut to) = peer.split();
    let sending = async {
        // Many small writes, so that each is delayed by itself.
        for part in sent.chunks(997) {
            to.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let mut received = vec![0; sent.len()];
    let receiving = timeout(SOON, from.read_exact(&mut received));
    let ((), read) = tokio::join!(sending, receiving);
    read.unwrap().unwrap();
    assert!(received == sent, "bytes were changed");
}

#[tokio::test]
async fn a_rate_limit_slows_the_connection() {
    let (_echo, proxy) = proxied().await;
    let mut peer = connect(&proxy).await;
    let limited = Conditions {
        rate: NonZeroU32::new(40_000),
        ..Conditions::default()
    };
    proxy.disturb(Direction::Down, limited);
    // 8000 bytes at 40,000 per second; the first part is sent at once.
    assert!(round_trip(&mut peer, &[9; 8000]).await >= Duration::from_millis(175));
    proxy.clear();
    round_trip(&mut peer, b"fast again").await;
}

#[tokio::test]
async fn a_black_hole_forwards_nothing_until_it_ends() {
    let (_echo, proxy) = proxied().await;
    let mut old = connect(&proxy).await;
    round_trip(&mut old, b"before").await;
    proxy.black_hole();
    let mut new = connect(&proxy).await;
    new.write_all(b"new").await.unwrap();
    old.write_all(b"during").await.unwrap();
    old.shutdown().await.unwrap();
    receives_nothing(&mut old).await;
    receives_nothing(&mut new).await;
    assert_eq!(proxy.connections(), 1);
    proxy.clear();
    receives(&mut old, b"during").await;
    receives(&mut new, b"new").await;
}

#[tokio::test]
async fn one_blocked_direction_does_not_affect_the_other() {
    let (_echo, proxy) = proxied().await;
    let mut peer = connect(&proxy).await;
    round_trip(&mut peer, b"before").await;
    proxy.block(Direction::Down);
    peer.write_all(b"during").await.unwrap();
    receives_nothing(&mut peer).await;
    forwards(&proxy, Direction::Up, 12).await;
    assert_eq!(proxy.forwarded(Direction::Down), 6);
}

#[tokio::test]
async fn a_half_open_connection_stays_half_open_and_a_new_one_works() {
    for dead in Direction::BOTH {
        let (_echo, proxy) = proxied().await;
        let mut old = connect(&proxy).await;
        round_trip(&mut old, b"before").await;
        proxy.half_open(dead);
        proxy.clear();
        old.write_all(b"during").await.unwrap();
        receives_nothing(&mut old).await;
        forwards(
            &proxy,
            Direction::Up,
            if dead == Direction::Up { 6 } else { 12 },
        )
        .await;
        let mut new = connect(&proxy).await;
        round_trip(&mut new, b"new").await;
        drop((old, new));
        // Closing a half-open connection ends it, if that can still be forwarded.
        has_connections(&proxy, usize::from(dead == Direction::Up)).await;
    }
}

async fn forwards(proxy: &Proxy, direction: Direction, wanted: u64) {
    let reached = until(SOON, async || {
        let sent = proxy.forwarded(direction);
        Ok(met(sent == wanted, &format!("{sent} bytes are forwarded")))
    });
    reached.await.unwrap();
}

async fn has_connections(proxy: &Proxy, wanted: usize) {
    let reached = until(SOON, async || {
        let open = proxy.connections();
        Ok(met(open == wanted, &format!("{open} connections are open")))
    });
    reached.await.unwrap();
}

#[tokio::test]
async fn a_reset_reaches_old_connections_also_in_a_black_hole() {
    let (_echo, proxy) = proxied().await;
    let mut old = connect(&proxy).await;
    round_trip(&mut old, b"before").await;
    proxy.reset();
    is_reset(&mut old).await;
    let mut held = connect(&proxy).await;
    round_trip(&mut held, b"fine").await;
    proxy.black_hole();
    proxy.reset();
    is_reset(&mut held).await;
}

#[tokio::test]
async fn without_a_server_connections_are_reset() {
    let proxy = Proxy::start(None, 1).await.unwrap();
    is_reset(&mut connect(&proxy).await).await;
    let echo = Echo::start().await;
    proxy.forward_to(Some(echo.addr));
    let mut peer = connect(&proxy).await;
    round_trip(&mut peer, b"server").await;
    drop(echo);
    // The connection ends with the server.
    let ended = timeout(SOON, peer.read(&mut [0])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
}

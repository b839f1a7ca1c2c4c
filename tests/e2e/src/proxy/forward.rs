//! One direction of one connection: read, queue until it is due, write.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::settings::{Direction, Settings};

/// Bytes read at a time, at most.
const PIECE: usize = 16 * 1024;
/// Queued pieces, at most; after that the sender's own buffers fill, as on a slow network.
const PIECES: usize = 256;
/// A limited lane writes in pieces of this fraction of a second, so that bytes arrive evenly.
const TRICKLE: u32 = 50;

/// What is queued, in order.
enum Piece {
    Bytes {
        bytes: Vec<u8>,
        due: Instant,
    },
    /// The sender has finished; the other direction may continue.
    Finished,
    /// The sender's side of the connection is broken.
    Broken,
}

/// How one direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The sender finished, and that was forwarded.
    Finished,
    /// One of the two sides is broken.
    Broken,
}

/// The context of one direction of a connection.
pub(super) struct Lane<'a> {
    pub(super) connection: u64,
    pub(super) direction: Direction,
    pub(super) settings: watch::Receiver<Settings>,
    pub(super) jitter: Jitter,
    /// Bytes written so far, over all connections.
    pub(super) forwarded: &'a AtomicU64,
}

/// Forwards everything from `from` to `to` until either ends.
pub(super) async fn forward(
    lane: Lane<'_>,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
) -> Ended {
    let (sender, receiver) = mpsc::channel(PIECES);
    let settings = lane.settings.clone();
    let reading = read(from, sender, settings, lane.direction, lane.jitter);
    let writing = write(
        to,
        receiver,
        lane.settings,
        lane.direction,
        lane.connection,
        lane.forwarded,
    );
    tokio::pin!(reading, writing);
    tokio::select! {
        // The reader queues its end for the writer, which decides.
        () = &mut reading => writing.await,
        ended = &mut writing => ended,
    }
    .unwrap_or(Ended::Broken)
}

async fn read(
    mut from: impl AsyncRead + Unpin,
    queue: mpsc::Sender<Piece>,
    settings: watch::Receiver<Settings>,
    direction: Direction,
    mut jitter: Jitter,
) {
    let mut buffer = vec![0; PIECE];
    let mut last = Instant::now();
    loop {
        let piece = match from.read(&mut buffer).await {
            Ok(0) => Piece::Finished,
            Ok(count) => {
                let conditions = settings.borrow().lane(direction).conditions;
                let delay = jitter.around(conditions.delay, conditions.jitter);
                last = last.max(Instant::now() + delay);
                Piece::Bytes {
                    bytes: buffer[..count].to_vec(),
                    due: last,
                }
            }
            Err(_) => Piece::Broken,
        };
        let is_last = !matches!(piece, Piece::Bytes { .. });
        if queue.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Piece>,
    mut settings: watch::Receiver<Settings>,
    direction: Direction,
    connection: u64,
    forwarded: &AtomicU64,
) -> io::Result<Ended> {
    // When a limited lane may write again.
    let mut free = Instant::now();
    while let Some(piece) = queue.recv().await {
        let (bytes, due) = match piece {
            Piece::Bytes { bytes, due } => (bytes, due),
            end @ (Piece::Finished | Piece::Broken) => {
                // The end of a connection is blocked as well.
                passable(&mut settings, direction, connection).await;
                if matches!(end, Piece::Broken) {
                    return Ok(Ended::Broken);
                }
                to.shutdown().await?;
                return Ok(Ended::Finished);
            }
        };
        until(due).await;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            passable(&mut settings, direction, connection).await;
            let rate = settings.borrow().lane(direction).conditions.rate;
            let part = match rate {
                None => rest,
                Some(rate) => {
                    until(free).await;
                    let most = (rate.get() / TRICKLE).max(1) as usize;
                    let part = &rest[..rest.len().min(most)];
                    let takes = Duration::from_secs_f64(part.len() as f64 / f64::from(rate.get()));
                    free = free.max(Instant::now()) + takes;
                    part
                }
            };
            to.write_all(part).await?;
            forwarded.fetch_add(part.len() as u64, Ordering::Relaxed);
            rest = &rest[part.len()..];
        }
    }
    // The reader always queues a last piece.
    Ok(Ended::Broken)
}

/// Timers have a resolution of a millisecond, so this only waits if the time is not reached.
async fn until(due: Instant) {
    if due > Instant::now() {
        sleep_until(due).await;
    }
}

/// Resolves when bytes of this connection may be forwarded.
async fn passable(settings: &mut watch::Receiver<Settings>, direction: Direction, connection: u64) {
    // It fails only when the proxy was dropped, which ends this task as well.
    let _ = (settings.wait_for(|now| now.passes(direction, connection))).await;
}

/// Varies delays, the same way for the same seed (splitmix64, Steele and others, OOPSLA 2014).
#[derive(Clone, Debug)]
pub(super) struct Jitter {
    state: u64,
}

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Jitter { state: seed }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// `delay`, up to `span` more or less, and never below zero.
    fn around(&mut self, delay: Duration, span: Duration) -> Duration {
        // The top 53 bits are a fraction in [0, 1).
        let fraction = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        (delay + span.mul_f64(2.0 * fraction)).saturating_sub(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_a_function_of_its_seed_and_stays_in_its_span() {
        let (delay, span) = (Duration::from_millis(20), Duration::from_millis(10));
        let sequence = |seed| {
            let mut jitter = Jitter::new(seed);
            (0..1000)
                .map(|_| jitter.around(delay, span))
                .collect::<Vec<_>>()
        };
        let one = sequence(1);
        assert_eq!(one, sequence(1));
        assert_ne!(one, sequence(2));
        let (least, most) = (one.iter().min(), one.iter().max());
        assert!(least >= Some(&(delay - span)) && least < Some(&Duration::from_millis(11)));
        assert!(most <= Some(&(delay + span)) && most > Some(&Duration::from_millis(29)));
    }

    #[test]
    fn a_delay_is_never_negative() {
        let mut jitter = Jitter::new(3);
        let span = Duration::from_millis(10);
        let delays: Vec<_> = (0..100)
            .map(|_| jitter.around(Duration::ZERO, span))
            .collect();
        assert!(delays.contains(&Duration::ZERO));
        assert!(delays.iter().all(|&delay| delay <= span));
    }
}

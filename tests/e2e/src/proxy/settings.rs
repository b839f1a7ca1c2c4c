//! The settings of a proxy, which every connection watches.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the side that connected to the side that listens.
    Up,
    /// From the side that listens to the side that connected.
    Down,
}

impl Direction {
    /// Both ways.
    pub const BOTH: [Direction; 2] = [Direction::Up, Direction::Down];
}

/// How one direction behaves while it is not blocked. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The delay of each byte.
    pub delay: Duration,
    /// The delay varies by up to this much in both directions; bytes keep their order.
    pub jitter: Duration,
    /// Bytes per second; `None`: unlimited.
    pub rate: Option<NonZeroU32>,
}

/// One direction of a proxy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lane {
    pub(super) conditions: Conditions,
    /// Nothing is forwarded, on any connection, until this is cleared; what is sent meanwhile is queued.
    pub(super) blocked: Option<Blocked>,
    /// Connections with smaller numbers never forward anything in this direction again.
    stopped_below: u64,
}

/// Marks a lane that is blocked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocked;

/// The state of a proxy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settings {
    /// Where connections are forwarded to; without it they are reset.
    pub(super) upstream: Option<SocketAddr>,
    up: Lane,
    down: Lane,
    /// Connections with smaller numbers are reset.
    reset_below: u64,
}

impl Settings {
    pub(super) fn forwarding_to(upstream: Option<SocketAddr>) -> Self {
        Settings {
            upstream,
            ..Settings::default()
        }
    }

    pub(super) fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    pub(super) fn lane_mut(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Up => &mut self.up,
            Direction::Down => &mut self.down,
        }
    }

    /// Whether a new connection reaches the server.
    pub(super) fn admits(&self) -> bool {
        self.up.blocked.is_none() && self.down.blocked.is_none()
    }

    /// Whether bytes of this connection may be forwarded now.
    pub(super) fn passes(&self, direction: Direction, connection: u64) -> bool {
        self.lane(direction).blocked.is_none() && !self.is_stopped(direction, connection)
    }

    /// Whether this direction of the connection is dead.
    pub(super) fn is_stopped(&self, direction: Direction, connection: u64) -> bool {
        connection < self.lane(direction).stopped_below
    }

    pub(super) fn is_reset(&self, connection: u64) -> bool {
        connection < self.reset_below
    }

    /// One direction of every connection with a number below `next` is dead from now on.
    pub(super) fn stop(&mut self, direction: Direction, next: u64) {
        self.lane_mut(direction).stopped_below = next;
    }

    /// Every connection with a number below `next` is reset.
    pub(super) fn reset(&mut self, next: u64) {
        self.reset_below = next;
    }

    /// Ends delays, limits and blocks; stopped and reset connections stay so.
    pub(super) fn clear(&mut self) {
        for direction in Direction::BOTH {
            let lane = self.lane_mut(direction);
            lane.conditions = Conditions::default();
            lane.blocked = None;
        }
    }
}

//! What a proxy is told to do: plain data that every connection watches.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// The way that bytes go.
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

/// How a link behaves in one direction while it carries bytes at all. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// How long each byte is under way.
    pub delay: Duration,
    /// The delay varies by up to this much either way; bytes never overtake each other.
    pub jitter: Duration,
    /// Bytes per second; `None` is as fast as the machine goes.
    pub rate: Option<NonZeroU32>,
}

/// One direction of a proxy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lane {
    pub(super) conditions: Conditions,
    /// Nothing passes, on any connection, until this is cleared; what was sent meanwhile is kept.
    pub(super) held: Option<Held>,
    /// Connections with smaller numbers never carry anything in this direction again.
    stopped_below: u64,
}

/// Marks a lane that is held. There is nothing to say about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held;

/// The state of a proxy.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Settings {
    /// Where connections lead; without it they are reset.
    pub(super) upstream: Option<SocketAddr>,
    up: Lane,
    down: Lane,
    /// Connections with smaller numbers are reset.
    reset_below: u64,
}

impl Settings {
    pub(super) fn leading_to(upstream: Option<SocketAddr>) -> Self {
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

    /// Whether a new connection gets through to the other side.
    pub(super) fn admits(&self) -> bool {
        self.up.held.is_none() && self.down.held.is_none()
    }

    /// Whether bytes of this connection may pass now.
    pub(super) fn passes(&self, direction: Direction, connection: u64) -> bool {
        self.lane(direction).held.is_none() && !self.is_stopped(direction, connection)
    }

    /// Whether this direction of the connection is dead for good.
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

    /// No more delay, limit or hold; what was stopped or reset stays so.
    pub(super) fn clear(&mut self) {
        for direction in Direction::BOTH {
            let lane = self.lane_mut(direction);
            lane.conditions = Conditions::default();
            lane.held = None;
        }
    }
}

//! The coordinator over real loopback sockets, between a real client and fake workers.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod clients;
mod completions;
mod discovery;
#[cfg(feature = "endpointslice")]
mod endpoint_slices;
mod fakes;
mod generate;
mod latency;
mod limits;
mod losses;
mod recording;
mod replays;
mod shutdown;
mod unread;

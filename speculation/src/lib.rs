//! The pure core of Offshoot: *whatever the workers, the network and the clock do, the committed text of a
//! request is the text its target decodes alone*; speculation only finds it sooner.
//!
//! A request is a committed token sequence plus a [`tree::Tree`] of guesses that hangs off its last token. Every
//! process that serves the request holds its own replica of that tree and drives it with one state machine:
//!
//! - [`session::Session`] on a worker proposes, advises or commits, according to its duty;
//! - [`relay::Relay`] at the coordinator merges contributions and keeps every replica up to date.
//!
//! How a request is decoded is a [`strategy`], one file each. Both machines are used the same way: feed inputs with
//! `handle_*`, ask for work with `poll_*` until there is none.
//!
//! This crate is `no_std`. It uses no clock, no random numbers, no socket and no thread: `now` is an argument
//! ([`Time`]), tokens are picked by the owner of a model, and iteration order never depends on a hash. It knows nothing
//! of gRPC, tokio or candle, of how a model is evaluated, or of which workers there are.

#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod agreement;
pub mod allocation;
pub mod by_source;
pub mod bypass;
pub mod calibration;
pub mod cost;
pub mod duty;
pub mod groups;
pub mod history;
pub mod journal;
pub mod learned;
pub mod limits;
mod logprobs;
pub mod lookup;
pub mod message;
pub mod misses;
mod node_map;
pub mod numbering;
pub mod recording;
pub mod relay;
pub mod replay;
pub mod replica;
pub mod session;
pub mod stats;
pub mod strategy;
pub mod tree;
pub mod wait;
pub mod walk;

/// A point on a monotonic clock: the time since an epoch of the caller's choice.
///
/// Only differences mean anything, and only within one process.
pub type Time = core::time::Duration;

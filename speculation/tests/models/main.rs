//! The parts of the core, each against a model too simple to be wrong.

#![allow(
    clippy::unwrap_used,
    reason = "a panic in a test is a failure with a place"
)]

extern crate offshoot_speculation as speculation;

mod estimates;
mod heads;
mod history;
mod misses;
mod numbering;
mod rejection;
mod rig;
mod rounds;
mod scores;
mod session;
mod strategies;
mod tolerance;
mod tree;

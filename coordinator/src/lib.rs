//! The coordinator: it owns the clients and the committed text, and holds no model.
//!
//! A request becomes a session: a task that owns one pure [`speculation::relay::Relay`] and only ferries. What workers
//! say comes in by the session's inbox, what they are to be told goes out by one slot per worker
//! ([`runtime::outbox::Outbox`]), what the client gets goes out by a bounded channel; the session never waits for any of
//! them on behalf of another.
//!
//! ```text
//!  client <- delivery <- session (Relay) <- inbox <- link reader <- worker
//!                               |-> outbox slot -> link writer -> worker
//! ```
//!
//! The registry keeps one task and one link per worker: connect, compare protocol, role and vocabulary, pump. A lost
//! draft or qualifier is bypassed; the sessions of a lost target are replayed on another of equal numerics.
//!
//! This crate never links candle, decides nothing about trees or acceptance (that is `speculation`), and parses no
//! protobuf by hand (that is `proto`).

mod admission;
pub mod config;
mod delivery;
mod failure;
mod hello;
mod link;
mod metrics;
mod news;
mod open;
mod process;
mod pump;
mod registry;

mod request;
mod seat;
mod seekers;
mod service;
mod session;
mod shore;
mod start;
mod stop;
mod tally;
mod watched;

pub use config::{Args, Config, ConfigError};
pub use process::{Coordinator, run, serve};
pub use request::check as check_request;
pub use runtime::tls::install_provider as install_crypto;

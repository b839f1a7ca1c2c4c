//! The coordinator: it owns the clients and the committed text, and holds no model.
//!
//! A request becomes a session: one task whose driver owns a pure [`control::session::SessionMachine`] and the io around
//! it. What workers say comes in by the session's inbox, what they are sent goes out by one slot per worker
//! ([`runtime::outbox::Outbox`]), what the client gets goes out by a bounded channel; the session never waits for any of
//! them on behalf of another.
//!
//! ```text
//!  client <- delivery <- session driver <- inbox <- worker link (reads) <- worker
//!                              |-> slot -> worker stream (writes) -------> worker
//! ```
//!
//! The registry keeps one link per worker: connect, compare protocol, role, capabilities and vocabulary, read the stream.
//! Workers come from flags, and from sources that are followed while the coordinator runs (`discovery`).
//! Which worker a session gets, and who waits, is decided by the pure [`control::fleet::Fleet`] behind one lock. A lost
//! draft or qualifier is bypassed; the sessions of a lost target go on at another of equal numerics.
//!
//! This crate never links the engine. It decides nothing about trees or acceptance (that is `speculation`), nothing about
//! placement, admission or failover (that is `control`), and parses no protobuf by hand (that is `proto`).

mod change;
mod client;
mod client_key;
mod cluster;
pub mod config;
mod delivery;
mod discovery;
mod encode;
mod failure;
mod fleet_handle;
mod hello;
mod history;
mod links;
mod mailbox;
mod metrics;
mod open;
mod process;
mod recorder;
mod registry;
mod request;
mod request_metrics;
mod reservation;
mod service;
mod session_driver;
mod start;
mod stop;
mod worker;
mod worker_link;
mod worker_stream;
mod worker_totals;

pub use config::{Args, Config, ConfigError};
pub use process::{Coordinator, run, serve};
pub use request::check as check_request;
pub use runtime::tls::install_provider as install_crypto;

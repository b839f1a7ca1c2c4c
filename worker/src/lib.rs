//! What draft and target workers share: the model on its own thread, its sessions, and the links to coordinators.
//!
//! One OS thread owns the engine and every session ([`thread`]). It is fed through a bounded channel of plain data and
//! speaks through one slot per session ([`runtime::outbox`]), so it never blocks on output. What a worker *does* with
//! a session is a [`Kind`]; the thread, the slots of the cache, batching, pacing and the accounting of idle time are
//! the same for all.
//!
//! This crate knows nothing of the wire format and of what its kinds decide.

mod activity;
pub mod handle;
pub mod kind;
pub mod metrics;
pub mod model;
pub mod process;
mod rows;
pub mod thread;
mod trace;
mod watch;
mod watchdog;

pub use handle::{LinkEnd, LinkOver, OpenError, WorkerHandle};
pub use kind::{Computed, Kind, Logits};
pub use metrics::WorkerMetrics;
pub use model::ModelArgs;
pub use process::{WorkerArgs, run};
pub use thread::start;

//! A worker of any role: a model on its own thread, the sessions it serves, and the service that coordinators call.
//!
//! One OS thread owns the model ([`engine::Backend`]) and every session ([`thread`]). It is fed through a bounded channel
//! of plain data and reports through one slot per session ([`runtime::outbox`]), so it never blocks on output. What is
//! done with a session is decided by [`control::host`] and [`speculation::session`]; here are the clock, the model, the
//! streams ([`service`]) and what is counted. What a worker is used for and which duties it offers is said by its binary
//! ([`Offer`]).
//!
//! This crate knows nothing of clients, of other workers, or of how a model is evaluated.

mod admitted;
mod error;
mod event;
pub mod handle;
mod loading;
pub mod metrics;
pub mod model;
pub mod process;
pub mod proposing;
pub mod service;
mod step;
mod step_times;
mod stream;
#[cfg(test)]
mod tests;
pub mod thread;
mod trace;
mod watch;
mod watchdog;

pub use error::OpenError;
pub use handle::WorkerHandle;
pub use metrics::WorkerMetrics;
pub use model::{ModelArgs, Offer};
pub use process::{WorkerArgs, run};
pub use runtime::tls::install_provider as install_crypto;
pub use runtime::{ended, parse};
pub use speculation::duty::{Duties, Duty, Role};
pub use step_times::{StepTimes, StepTimesError};
pub use stream::{Reports, StreamOver};
pub use thread::start;

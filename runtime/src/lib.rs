//! What every Offshoot process needs, whatever its role: command-line
//! settings, logs, metrics, traces, health, orderly shutdown, a listening socket with limits, a
//! channel to a peer, encryption of both, and the line by which a child tells its parent where it
//! listens.
//!
//! The order in a `main` is always the same:
//!
//! ```no_run
//! # use clap::Parser;
//! # #[derive(Parser)]
//! # struct Args { #[command(flatten)] common: offshoot_runtime::CommonArgs, #[command(flatten)] net: offshoot_runtime::NetArgs }
//! # async fn main_() -> Result<(), Box<dyn std::error::Error>> {
//! # let args = Args::parse();
//! use offshoot_runtime::{Drain, Listener, Readiness, ServerLimits, announce, health, parent, serve, telemetry};
//!
//! telemetry::init(&args.common.telemetry)?;
//! let drain = Drain::new();
//! drain.on_signals()?;
//! parent::exit_with_parent(&args.common.parent, &drain)?;
//! let readiness = Readiness::new();
//! let loading = readiness.latch();
//! let listener = Listener::bind(&args.net).await?;
//! let router = serve::server(&ServerLimits::default())
//!     .add_service(health::service(&readiness, &drain).await);
//! let addr = listener.local_addr();
//! drain.spawn(serve::serve(listener, router, drain.clone()));
//! // ... load the model ...
//! drop(loading);
//! announce::announce(&args.common.announce, "draft", addr, None)?;
//! drain.stopping().await;
//! drain.shutdown(args.common.drain_grace()).await;
//! # Ok(())
//! # }
//! ```
//!
//! This crate knows nothing of models, tokens, trees or the wire's messages. It
//! never links candle, and no other Offshoot crate stands below it.

mod accept;
pub mod admin;
pub mod announce;
pub mod args;
pub mod client;
mod dial;
pub mod drain;
pub mod health;
pub mod metrics;
pub mod outbox;
pub mod parent;
pub mod seed;
pub mod serve;
pub mod telemetry;
pub mod tls;
pub mod trace;

pub use admin::{AdminArgs, AdminError};
pub use announce::{AnnounceArgs, Announcement};
pub use args::{CommonArgs, NetArgs};
pub use client::{AddressError, Caller, ConnectError, Pulse, channel, connect};
pub use drain::{Drain, Drained};
pub use health::{Latch, Readiness};
pub use metrics::Metrics;
pub use parent::ParentArgs;
pub use serve::{BindError, Listener, ServerLimits};
pub use telemetry::{LogFormat, TelemetryArgs, TelemetryError};
pub use tls::{ClientAuth, Purpose, Tls, TlsArgs, TlsError};
pub use trace::{TraceArgs, TraceContext};

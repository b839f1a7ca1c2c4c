//! What every Offshoot process needs, whatever its role: command-line flags, logs, metrics, traces, health checks,
//! graceful shutdown, a gRPC server with limits, client channels, TLS for both, and the line on standard output by
//! which a child process tells its parent its address.
//!
//! Every `main` has the same order:
//!
//! ```no_run
//! # use clap::Parser;
//! # #[derive(Parser)]
//! # struct Args { #[command(flatten)] common: offshoot_runtime::CommonArgs, #[command(flatten)] net: offshoot_runtime::NetArgs }
//! # async fn main_() -> Result<(), Box<dyn std::error::Error>> {
//! # let args: Args = offshoot_runtime::parse();
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
//!     .add_service(health::service(&readiness, &drain, &[]).await);
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
//! This crate knows nothing of models, tokens, trees or the messages of the wire protocol. It never links candle, and
//! depends on no other Offshoot crate.

mod accept;
pub mod admin;
pub mod announce;
pub mod args;
mod arrivals;
pub mod client;
mod command_line;
mod dial;
pub mod drain;
pub mod health;
pub mod metrics;
pub mod outbox;
pub mod parent;
pub mod peer;
pub mod port;
mod rarely;
pub mod reflection;
mod report;
pub mod seed;
pub mod serve;
pub mod telemetry;
pub mod tls;
pub mod trace;

pub use admin::{AdminArgs, AdminError};
pub use announce::{AnnounceArgs, Announcement};
pub use args::{CommonArgs, NetArgs};
pub use client::{AddressError, Caller, ConnectError, KeepAlive, channel, connect};
pub use command_line::{items, parse};
pub use drain::{Drain, Drained};
pub use health::{Latch, Readiness};
pub use metrics::Metrics;
pub use parent::ParentArgs;
pub use port::Port;
pub use report::{ended, report};
pub use serve::{BindError, Listener, ServerLimits};
pub use telemetry::{LogFormat, TelemetryArgs, TelemetryError};
pub use tls::{ClientAuth, Purpose, Tls, TlsArgs, TlsError};
pub use trace::{TraceArgs, TraceContext};

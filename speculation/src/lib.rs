//! The pure core of Offshoot: *whatever the workers, the network and the clock do, the committed text of a
//! request is the text its target decodes alone*; speculation only finds it sooner.
//!
//! A request is a committed token sequence plus a [`tree::Tree`] of guesses that hangs off its last token. Every
//! process that serves the request holds its own replica of that tree and drives it with one state machine:
//!
//! - [`draft::DraftSession`] grows guesses, [`verify::VerifySession`] walks and commits (target) or advises
//!   (qualifier), [`relay::Relay`] merges contributions and brings every replica up to date (coordinator).
//!
//! All three are used the same way: feed inputs with `handle_*`, ask for work with `poll_*` until there is none.
//!
//! This crate takes no clock, no dice, no socket and no thread: `now` is an argument ([`Time`]), tokens are picked
//! by whoever owns a model, and iteration order never depends on a hash. It knows nothing of gRPC, tokio, candle
//! or of how a model is evaluated.

pub mod calibration;
pub mod cost;
pub mod draft;
pub mod ferry;
pub mod holdings;
pub mod launch;
pub mod lease;
mod ledger;
pub mod limits;
pub mod link;
pub mod message;
pub mod policy;
pub mod relay;
pub mod replay;
pub mod replica;
pub mod score;
mod scored;
pub mod stats;
pub mod tree;
pub mod verify;
pub mod walk;

/// A point on a monotonic clock: the time since an epoch of the caller's choice.
///
/// Only differences mean anything, and only within one process.
pub type Time = std::time::Duration;

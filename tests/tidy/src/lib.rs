//! The workspace held to its own rules.
//!
//! ARCHITECTURE.md says who may depend on whom and what no crate contains. The
//! tests of this crate prove it, from `cargo metadata` for the arrows and from
//! the sources for the rest, so that a wall that moves is a decision and never
//! an accident.
//!
//! It checks what the compiler and clippy cannot see, and nothing that they
//! can. It links none of the crates that it judges.

mod graph;
mod sources;

pub use graph::{GraphError, Kind, Workspace, cargo};
pub use sources::{Source, checks, walk};

//! The workspace held to its own rules.
//!
//! ARCHITECTURE.md says who may depend on whom and what no crate contains. The
//! tests of this crate prove it, from `cargo metadata` for the arrows and from
//! the sources for the rest, so that a wall that moves is a decision and never
//! an accident. Every check is a function over text or a graph, and is shown to
//! find what it is for.
//!
//! It checks what the compiler and clippy cannot see, and nothing that they
//! can. It links none of the crates that it judges.

pub mod checks;
pub mod code;
mod graph;
pub mod pure;
pub mod sleeps;
mod sources;
pub mod walls;
pub mod words;

pub use graph::{GraphError, Kind, Workspace, cargo};
pub use sources::{Source, walk};

/// The members that are held to the rules that came with the folders of today; `None`: all of them.
pub const HELD: Option<&[&str]> = None;

/// Whether a member, or a file by its path, is held to those rules.
#[must_use]
pub fn is_held(path: &str) -> bool {
    let is_below = |member: &str| {
        path.strip_prefix(member)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    HELD.is_none_or(|members| members.iter().any(|member| is_below(member)))
}

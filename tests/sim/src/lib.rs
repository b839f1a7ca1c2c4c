//! Tests of the pure core in the simulated cluster: schedules with seeds, planted bugs, strategies that are not built in,
//! and one session looked at closely.
//!
//! The cluster itself is the crate `simulation`; this one has the command that runs it, and nothing else depends on it.

#[cfg(test)]
mod session;

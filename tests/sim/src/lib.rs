//! Tests of the pure core in the simulated cluster: schedules with seeds, planted bugs, strategies that are not built in,
//! and one session looked at closely. The cluster itself is the crate `simulation`; what it runs is `control` and
//! `speculation` as they are. There is no thread, no socket and no clock here either.

#[cfg(test)]
mod session;

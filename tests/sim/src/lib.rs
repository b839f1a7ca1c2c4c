//! Tests of the pure core in the simulated cluster: schedules with seeds, planted bugs, strategies that are not built in,
//! and one session looked at closely.

#[cfg(test)]
mod session;

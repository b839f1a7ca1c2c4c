//! Log-probabilities of one session: what its target has computed, and what its client has not got yet.

mod client;
mod target;

pub(crate) use client::ClientScores;
pub(crate) use target::TargetScores;

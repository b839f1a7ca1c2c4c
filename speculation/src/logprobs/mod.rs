//! Log-probabilities of one session: what its target has worked out, and what its client is still to get.

mod client;
mod target;

pub(crate) use client::ClientScores;
pub(crate) use target::TargetScores;

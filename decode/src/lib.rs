//! What decides a token: *logits, parameters and a seed in, one token out*, the same on every machine.
//!
//! - [`sampling`]: the sampling contract (bias, penalties, filters, noise, argmax, ranked guesses).
//! - [`scores`]: log-probabilities of tokens and what a request asks of them.
//! - [`step`]: what a session asks of a model in one step, row by row, and what the model answers.
//! - [`propose`]: the contract of whatever makes guesses.
//! - [`rule`]: when a walk accepts a guess.
//! - [`math`]: elementary functions in one fixed order of arithmetic, shared by every kernel.
//!
//! This crate is `no_std`. It knows nothing of trees, sessions, models or networks, and has no clock and no random
//! numbers. Only [`math`] links `std`: for the machine's fused multiply-add and square root, and to ask which
//! instructions it has.

#![no_std]

extern crate alloc;
// Tests print, compare and collect as everywhere.
#[cfg(test)]
#[macro_use]
extern crate std;

pub mod math;
pub mod propose;
pub mod rule;
pub mod sampling;
pub mod scores;
pub mod step;

pub use propose::{Proposal, Proposed, Proposer, Seen, Taps};
pub use rule::{Judgement, Rule, Surprisal, Tolerance};
pub use sampling::{Drawn, Guess, NotFinite, ParamError, Pick, Sampler, SamplerState, Sampling};
pub use scores::{Basis, PromptScores, PromptScoring, Score, Scores, Scoring};
pub use step::{
    Answer, Ask, CacheOp, EndAnswer, EndAsk, Forecast, HeadGuesses, History, NodeId, Row, StepPlan,
    Wanted,
};

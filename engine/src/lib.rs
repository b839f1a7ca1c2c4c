//! The model: weights, row-invariant kernels, ragged batches of tree rows, key/value cache, sampling.
//!
//! The contract in one sentence: **a row's logits depend on nothing but its own token path**, bit for bit, whatever
//! the row count, the tree's shape, the prefill chunks, the batch mates, the threads or the instruction set.
//!
//! The canonical loop: [`Engine::open`] a sequence, [`Engine::step`] with its prompt as `append`, then again and
//! again: step with the next committed token and some guesses, [`Engine::commit`] the accepted path, let the rest
//! go. What this crate does *not* know: gRPC, threads that own it, clocks, or why a guess was made.

#[cfg(not(target_endian = "little"))]
compile_error!("weights are packed for little-endian machines");

mod attention;
pub mod bench;
mod cache;
mod candle_op;
mod config;
mod deepen;
mod engine;
mod error;
mod identity;
pub mod kernels;
mod llama;
mod load;
pub mod math;
mod options;
mod output;
mod rope;
pub mod sampling;
mod sequence;
mod step;

pub use cache::PAGE;
pub use candle_op::LaneMatmul;
pub use config::{ModelConfig, Rope, RopeScaling, Tied};
pub use deepen::{DeepenError, DeepenReport, deepen};
pub use engine::{Engine, StepEnd};
pub use error::EngineError;
pub use kernels::{Isa, WeightDtype};
pub use load::LoadError;
pub use options::EngineOptions;
pub use output::StepOutput;
pub use sequence::{Parent, SeqId, Slot};
pub use step::{AppendLogits, SeqRows, TreeRow};

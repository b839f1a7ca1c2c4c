//! The model: weights, row-invariant kernels, ragged batches of tree rows, key/value cache, answers.
//!
//! The contract in one sentence: **a row's answer depends on nothing but its own token path, what it is asked and how its
//! session samples**, bit for bit, whatever the row count, the tree's shape, the prefill chunks, the batch mates, the
//! threads or the instruction set.
//!
//! The canonical loop: [`load`] a [`Backend`], [`Backend::open`] a sequence, [`Backend::step`] with its prompt as
//! `append`, then again and again: step with the next committed token and some guesses, read the answers, and
//! [`Backend::apply`] what the session has decided: keep the accepted path, let the rest go. Logits never leave a backend.
//!
//! From the inside: `model` holds one file for each family, written in the operations of a `device`, of which [`cpu`] is one;
//! `cuda` launches fused kernels on an NVIDIA GPU instead. Which pages and rows belong to which sequence, and whether a step is a valid one, is worked out without it;
//! [`synthetic`] is a backend of that alone, whose answers are drawn from a profile instead of computed, and
//! [`Proposing`] one whose guesses a [`Proposer`](decode::Proposer) makes.
//!
//! What this crate does *not* know: gRPC, threads that own it, clocks, trees and their policy, or why a guess was made.

#[cfg(not(target_endian = "little"))]
compile_error!("weights are packed for little-endian machines");

mod answers;
mod backend;
mod computer;
mod config;
pub mod cpu;
mod cuda;
mod deepen;
mod device;
mod end;
mod engine;
mod error;
mod gguf;
mod identity;
mod inspect;
mod load;
mod model;
mod opened;
mod options;
mod proposing;
mod sequence;
mod step;
pub mod synthetic;

use std::path::Path;

pub use ::gguf::is_gguf;
pub use backend::{Backend, Facts, SeqStep, StepEnd};
pub use computer::{Computer, DeviceName};
pub use config::{Bias, LayerAttention, ModelConfig, Rope, RopeScaling, Tied, Turn};
pub use cpu::CpuEngine;
pub use cuda::{Cuda, CudaEngine};
pub use deepen::{DeepenError, DeepenReport, deepen};
pub use engine::RowStates;
pub use error::EngineError;
pub use inspect::{Inspection, TensorType};
pub use load::{LoadError, Progress};
pub use model::Family;
pub use options::{Beside, EngineOptions, WeightDtype};
pub use proposing::{Maker, Proposing, ProposingSpec};
pub use sequence::{PAGE, SeqId};

/// Loads a Hugging Face checkpoint folder or a GGUF file for a worker. `watch` hears now and then how far it is, if it is loaded
/// for the CPU.
///
/// # Errors
/// As [`CpuEngine::load`]; [`LoadError::Device`] where the model does not fit a GPU or is not one that its kernels serve.
pub fn load(
    dir: &Path,
    options: &EngineOptions,
    computer: &Computer,
    watch: &mut dyn FnMut(Progress),
) -> Result<Box<dyn Backend>, LoadError> {
    Ok(match computer {
        Computer::Cpu => Box::new(CpuEngine::load_with_progress(dir, options, watch)?),
        Computer::Cuda(device) => Box::new(CudaEngine::load(dir, options, device)?),
    })
}

//! The engine on the CPU, as what measures and judges it sees it.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;

use decode::{CacheOp, StepPlan};

use crate::backend::{Backend, Facts, SeqStep, StepEnd};
use crate::config::ModelConfig;
use crate::cpu::Cpu;
use crate::cpu::kernels::{Isa, LaneKernels, Matmul, Pool};
use crate::device::Device;
use crate::engine::{Engine, RowStates};
use crate::error::EngineError;
use crate::load::{LoadError, Progress};
use crate::options::EngineOptions;
use crate::sequence::SeqId;

/// A model on the CPU. Workers see a [`Backend`] of it; oracles, evaluations and benches may see more.
pub struct CpuEngine(Engine<Cpu>);

impl CpuEngine {
    /// Loads a Hugging Face checkpoint folder, `config.json` with `model.safetensors` or a sharded index, in f32, bf16 or f16;
    /// or a GGUF file.
    ///
    /// # Errors
    /// A typed [`LoadError`] that says what to do. Everything is checked before it is allocated.
    pub fn load(dir: &Path, options: &EngineOptions) -> Result<CpuEngine, LoadError> {
        CpuEngine::load_with_progress(dir, options, &mut |_| ())
    }

    /// As [`CpuEngine::load`], telling how far it is now and then.
    ///
    /// # Errors
    /// As [`CpuEngine::load`].
    pub fn load_with_progress(
        dir: &Path,
        options: &EngineOptions,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<CpuEngine, LoadError> {
        options.check()?;
        let pool = Pool::new(options.threads).map_err(LoadError::Threads)?;
        let device = Cpu::new(LaneKernels::new(Isa::best(), pool), options.max_rows);
        Engine::load(dir, options, device, watch).map(CpuEngine)
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.0.model.config
    }

    /// Bytes of matmul weights that one step reads.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.0.model.weight_bytes(&self.0.device)
    }

    /// Computes plans as [`Backend::step`] does, but answers nothing: every row that is asked for something has its
    /// logits read instead, whatever it is asked. `read(entry, place, logits)` gets the entry of the batch, the row's
    /// place in [`StepPlan::asked`] and one logit for each id of the model, padding included.
    ///
    /// For who judges the model itself; a worker has no use for it.
    ///
    /// # Errors
    /// As [`Backend::step`].
    pub fn read_logits(
        &mut self,
        batch: &[(SeqId, &StepPlan)],
        read: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.0.read_logits(batch, read)
    }

    /// As [`CpuEngine::read_logits`], with the hidden states of the last layers.
    ///
    /// # Errors
    /// As [`Backend::step`].
    pub fn read_states(
        &mut self,
        batch: &[(SeqId, &StepPlan)],
        read: &mut dyn FnMut(RowStates<'_>),
    ) -> Result<(), EngineError> {
        self.0.read_states(batch, read)
    }

    /// The embedding of a token below [`ModelConfig::vocab_size`], `[hidden]`.
    #[must_use]
    pub fn embedding(&self, token: u32) -> Vec<f32> {
        self.0.model.embedding(&self.0.device, token)
    }

    /// What the model's head multiplies a hidden state with for the logit of such a token, `[hidden]`.
    #[must_use]
    pub fn output_row(&self, token: u32) -> Vec<f32> {
        (self.0.device).weight_row(self.0.model.head(), token as usize)
    }

    /// Runs the kernels of another instruction set. Results stay the same, bit for bit.
    pub fn set_isa(&mut self, isa: Isa) {
        self.0.device.kernels.set_isa(isa);
    }

    /// Runs steps on this many threads. Results stay the same, bit for bit.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn set_threads(&mut self, threads: NonZeroUsize) -> std::io::Result<()> {
        let kernels = &mut self.0.device.kernels;
        *kernels = LaneKernels::new(kernels.isa(), Pool::new(threads)?);
        Ok(())
    }

    /// Replaces the lane matmul, so that a test can show what the engine's law needs it for.
    #[doc(hidden)]
    pub fn set_matmul(&mut self, matmul: Box<dyn Matmul>) {
        self.0.device.substitute = Some(matmul);
    }
}

impl Backend for CpuEngine {
    fn facts(&self) -> &Facts {
        self.0.facts()
    }

    fn free_pages(&self) -> usize {
        self.0.free_pages()
    }

    fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError> {
        self.0.open(max_len)
    }

    fn release(&mut self, seq: SeqId) {
        self.0.release(seq);
    }

    fn len(&self, seq: SeqId) -> usize {
        self.0.len(seq)
    }

    fn vacant_rows(&self, seq: SeqId) -> usize {
        self.0.vacant_rows(seq)
    }

    fn apply(&mut self, seq: SeqId, op: &CacheOp) -> Result<(), EngineError> {
        self.0.apply(seq, op)
    }

    fn step(
        &mut self,
        batch: &mut [SeqStep<'_>],
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError> {
        self.0.step(batch, at_layer)
    }
}

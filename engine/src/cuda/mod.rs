//! NVIDIA GPUs: kernels that compute a row alike whatever is beside it, and the backend that launches them.
//!
//! `kernels/` holds the kernels in CUDA C and `ptx/` what a compiler made of them, which the driver compiles for the GPU at hand.
//! The driver's library is loaded when a GPU is asked for: a build needs no toolkit, and a machine without a GPU runs the same
//! binary. Weights and cache are bf16, sums f32; texts differ from those of the CPU, and `numerics_id` says so.

mod asks;
mod driver;
mod kernels;
mod model;
mod parameters;
mod weights;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use decode::{CacheOp, Sampler, StepPlan};

use self::asks::{Asking, Most};
use self::driver::{CudaError, Gpu};
use self::kernels::ATTENTION;
use self::model::{Failure, Model, Room};
use crate::answers;
use crate::backend::{Backend, Facts, SeqStep, StepEnd};
use crate::config::ModelConfig;
use crate::config::features::{BIASES, FUSED, HEAD_NORMS, NO_POSITIONS, PART_TURNED};
use crate::error::EngineError;
use crate::identity::{Arithmetic, numerics_id};
use crate::load::LoadError;
use crate::model::AttentionShape;
use crate::opened::{Opened, Sizes, pages, positions};
use crate::options::{Beside, EngineOptions, WeightDtype};
use crate::sequence::{PAGE, Place, SeqId, Sequences};
use crate::step::{Limits, Plan};

/// The widest model that the norm's kernel serves.
const MOST_HIDDEN: usize = 8192;
/// The most outputs of a matrix: blocks of 128 along a side of a grid, which has 65,535.
const MOST_OUTPUTS: usize = 65_535 * 128;
/// What a model may need beyond the operations of Llama.
const SERVED: [&str; 5] = [BIASES, HEAD_NORMS, NO_POSITIONS, PART_TURNED, FUSED];
/// The most rows of a step: two tasks for each, along a side of a grid.
const MOST_ROWS: usize = 1 << 14;
/// What is left free for the kernels themselves, their local memory and the recorded steps, which the driver reserves when it
/// pleases.
const SPARE_BYTES: usize = 256 << 20;
/// What an open GPU takes of its own memory before anything is loaded: a part of a worker's share.
const CONTEXT_BYTES: usize = 512 << 20;
/// Positions of the least cache that is worth a share.
const LEAST_POSITIONS: usize = 2048;

/// An NVIDIA GPU that can be computed on.
pub struct Cuda {
    gpu: Arc<Gpu>,
    number: u32,
}

impl Cuda {
    /// Opens a GPU by its number, counted from 0.
    ///
    /// # Errors
    /// [`LoadError::Device`] says in one line what is missing: a driver, a new enough one, or a GPU that the kernels serve.
    pub fn open(number: u32) -> Result<Cuda, LoadError> {
        let gpu = Gpu::open(number).map_err(|reason| LoadError::Device { number, reason })?;
        Ok(Cuda { gpu, number })
    }

    /// How many GPUs there are.
    ///
    /// # Errors
    /// One line that says what is missing: a driver, or a new enough one.
    pub fn count() -> Result<u32, String> {
        Gpu::count()
    }

    /// Bytes of its memory that nobody uses.
    ///
    /// # Errors
    /// [`LoadError::Device`] with what the driver says.
    pub fn free_bytes(&self) -> Result<usize, LoadError> {
        let free = self.gpu.enter().and_then(|()| self.gpu.free_bytes());
        free.map_err(|error| self.error(error.to_string()))
    }

    /// Its number, from 0.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What the manufacturer calls it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.gpu.name
    }

    /// Names this GPU among all there are.
    #[must_use]
    pub fn uuid(&self) -> &str {
        &self.gpu.uuid
    }

    fn error(&self, reason: String) -> LoadError {
        let number = self.number;
        LoadError::Device { number, reason }
    }
}

/// A model on a GPU. Workers see a [`Backend`] of it; what judges it may see more.
pub struct CudaEngine {
    gpu: Arc<Gpu>,
    model: Model,
    asking: Asking,
    sequences: Sequences,
    /// What the cache is to copy before the next step.
    moves: Vec<(Place, Place)>,
    sampler: Sampler,
    limits: Limits,
    facts: Facts,
    reserved: usize,
    /// One row's logits, for what is left to the CPU.
    row: Vec<f32>,
}

/// What a load reserves, all of it before the first step.
struct Reserve {
    room: Room,
    most: Most,
}

impl Reserve {
    fn of(config: &ModelConfig, vocab: u32, options: &EngineOptions) -> Reserve {
        let positions = positions(config, options);
        let room = Room::new(
            options.max_rows,
            positions,
            options.scratch_rows,
            pages(options),
        );
        let most = Most::of(room.rows(), vocab, positions);
        Reserve { room, most }
    }

    fn bytes(&self, config: &ModelConfig) -> usize {
        self.room.bytes(config) + self.most.bytes()
    }
}

impl CudaEngine {
    /// Loads a Hugging Face checkpoint folder, `config.json` with `model.safetensors` or a sharded index, or a GGUF file; weights
    /// become bf16.
    ///
    /// # Errors
    /// A typed [`LoadError`] that says what to do; [`LoadError::Device`] where the kernels do not serve the model, or it does not
    /// fit. Everything is checked before it is allocated.
    pub fn load(
        dir: &Path,
        options: &EngineOptions,
        device: &Cuda,
    ) -> Result<CudaEngine, LoadError> {
        options.check()?;
        let Opened {
            config,
            checkpoint,
            vocab,
        } = Opened::open(dir, options)?;
        check(&config, options).map_err(|reason| device.error(reason))?;
        let gpu = &device.gpu;
        let unloaded = |failure| match failure {
            Failure::Load(error) => error,
            Failure::Cuda(error) => device.error(error.to_string()),
        };
        let cuda = |error: CudaError| device.error(error.to_string());
        gpu.enter().map_err(cuda)?;
        let free = gpu.free_bytes().map_err(cuda)?;
        let options = &EngineOptions {
            kv_pages: fitting_pages(options, [free, gpu.total_bytes], |kv_pages| {
                let options = EngineOptions {
                    kv_pages,
                    ..options.clone()
                };
                Reserve::of(&config, vocab, &options).bytes(&config)
            })
            .map_err(|reason| device.error(reason))?,
            ..options.clone()
        };
        let reserve = Reserve::of(&config, vocab, options);
        let reserved = reserve.bytes(&config);
        // The text depends on which of the kernels' versions runs, and on how this generation's matrix unit adds.
        let (major, minor) = gpu.compute;
        let kernels = format!("cuda-{major}.{minor} {}", kernels::sources());
        let arithmetic = Arithmetic {
            kernels: &kernels,
            cache: "cache-bf16",
        };
        let id = numerics_id(
            arithmetic,
            &checkpoint,
            &config,
            WeightDtype::Bf16,
            options.threads,
        );
        let Sizes {
            sequences,
            limits,
            facts,
            ..
        } = Sizes::of(&config, vocab, options, id);
        let asking = Asking::new(gpu, reserve.most, config.vocab_size).map_err(cuda)?;
        let row = vec![0.0; config.vocab_size];
        let model = Model::load(gpu, &checkpoint, config, reserve.room).map_err(unloaded)?;
        gpu.wait().map_err(cuda)?;
        Ok(CudaEngine {
            gpu: gpu.clone(),
            model,
            asking,
            sequences,
            moves: Vec::new(),
            sampler: Sampler::new(vocab),
            limits,
            facts,
            reserved,
            row,
        })
    }

    /// Bytes of the GPU's memory that the model takes. What the driver reserves for itself is not among them.
    #[must_use]
    pub fn reserved_bytes(&self) -> usize {
        self.reserved
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
        let plan = Plan::new(batch.iter().copied(), &mut self.sequences, self.limits)?;
        if plan.rows.is_empty() {
            return Ok(());
        }
        self.forward(&plan).map_err(failed)?;
        for (entry, group) in plan.groups.iter().enumerate() {
            for (place, row) in group.asked.clone().enumerate() {
                let first = row * size_of_val(&self.row[..]);
                (self.model.logits().read(first, &mut self.row)).map_err(failed)?;
                read(entry, place, &self.row);
            }
        }
        plan.done(&mut self.sequences);
        Ok(())
    }

    /// Computes a checked step.
    fn forward(&mut self, plan: &Plan) -> Result<(), CudaError> {
        self.gpu.enter()?;
        self.model.copy(&self.moves)?;
        self.moves.clear();
        self.model.forward(plan)
    }

    /// Computes a checked step and answers it.
    fn compute(
        &mut self,
        plan: &Plan,
        batch: &mut [SeqStep<'_>],
    ) -> Result<Vec<Vec<decode::Answer>>, CudaError> {
        self.forward(plan)?;
        let (model, row, sampler) = (&self.model, &mut self.row, &mut self.sampler);
        let logits = model.logits();
        let answered = self.asking.answer(&model.kernels, logits, plan, batch)?;
        let mut failed = Ok(());
        let tokens = self.facts.vocab as usize;
        let answers = answers::answer(plan, batch, |part, group, place, asked| {
            answered.get(place).unwrap_or_else(|| {
                let first = place * size_of_val(&row[..]);
                if let Err(error) = logits.read(first, row) {
                    failed = Err(error);
                }
                answers::sample(sampler, part, group, asked, &row[..tokens])
            })
        });
        failed.map(|()| answers)
    }
}

fn failed(error: CudaError) -> EngineError {
    EngineError::Device(error.to_string())
}

/// Pages of the cache that fit: all that are wanted, or, where the options give a share of the GPU's memory, what the rest of the
/// model leaves of it. `[free, total]` are bytes of the GPU, and `bytes` what a load with so many pages reserves.
///
/// # Errors
/// One line that says what is needed and what there is.
fn fitting_pages(
    options: &EngineOptions,
    [free, total]: [usize; 2],
    bytes: impl Fn(usize) -> usize,
) -> Result<usize, String> {
    let wanted = options.kv_pages;
    let Some(share) = options.gpu_memory else {
        let needed = bytes(wanted) + SPARE_BYTES;
        if needed <= free {
            return Ok(wanted);
        }
        let (needed, free) = (needed.div_ceil(1 << 20), free >> 20);
        return Err(format!(
            "the model needs {needed} MiB and {free} MiB are free; lower the memory of the key/value cache, or end what uses the GPU"
        ));
    };
    // The share is checked to be a part of one.
    let budget = (total as f64 * share) as usize;
    let room = budget.saturating_sub(CONTEXT_BYTES).min(free);
    let fits = |kv_pages: usize| bytes(kv_pages) + SPARE_BYTES <= room;
    let least = (LEAST_POSITIONS / PAGE)
        .max(options.max_sequences)
        .min(wanted);
    if !fits(least) {
        let needed = (bytes(least) + SPARE_BYTES + CONTEXT_BYTES).div_ceil(1 << 20);
        let (budget, free) = (budget >> 20, free >> 20);
        return Err(format!(
            "the model needs {needed} MiB with the smallest key/value cache, {share} of the GPU's memory are {budget} MiB, and {free} MiB are free"
        ));
    }
    let (mut fitting, mut beyond) = (least, wanted + 1);
    while beyond - fitting > 1 {
        let middle = fitting + (beyond - fitting) / 2;
        if fits(middle) {
            fitting = middle;
        } else {
            beyond = middle;
        }
    }
    Ok(fitting)
}

/// Whether the kernels serve a model and these options.
fn check(config: &ModelConfig, options: &EngineOptions) -> Result<(), String> {
    let shape = AttentionShape::of(config);
    if !ATTENTION.contains(&(shape.group(), shape.head_dim)) {
        let built = ATTENTION
            .map(|(group, dim)| format!("{group} x {dim}"))
            .join(", ");
        return Err(format!(
            "there are no kernels for {} query heads to a key/value head of width {}; there are for {built}",
            shape.group(),
            shape.head_dim
        ));
    }
    if config.hidden > MOST_HIDDEN || !config.hidden.is_multiple_of(4) {
        return Err(format!(
            "there are no kernels for a width of {}; it has to be a multiple of 4, at most {MOST_HIDDEN}",
            config.hidden
        ));
    }
    let widest = config.vocab_size.max(2 * config.intermediate);
    if widest.max(config.qkv_width()) > MOST_OUTPUTS {
        return Err(format!(
            "there are no kernels for matrices of more than {MOST_OUTPUTS} outputs"
        ));
    }
    if options
        .dtype
        .is_some_and(|dtype| dtype != WeightDtype::Bf16)
    {
        return Err("weights are bf16 there; other types are for the CPU".to_owned());
    }
    let mut features = config.features();
    features.retain(|feature| !SERVED.contains(feature));
    if !features.is_empty() {
        return Err(format!(
            "there are no kernels for {}, which {} models need; use --device cpu",
            features.join(", "),
            config.family.model_type()
        ));
    }
    if options.beside != Beside::default() {
        return Err("networks beside a model are for the CPU; name none".to_owned());
    }
    if options.max_rows > MOST_ROWS {
        return Err(format!("steps have at most {MOST_ROWS} rows there"));
    }
    match i32::try_from(pages(options) * PAGE) {
        Ok(_) => Ok(()),
        Err(_) => Err("the cache has more positions than the kernels count".to_owned()),
    }
}

impl Backend for CudaEngine {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    fn free_pages(&self) -> usize {
        self.sequences.free_pages()
    }

    fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError> {
        self.facts.check_len(max_len)?;
        self.sequences.open(max_len)
    }

    fn release(&mut self, seq: SeqId) {
        self.sequences.release(seq);
    }

    fn len(&self, seq: SeqId) -> usize {
        self.sequences.len(seq)
    }

    fn vacant_rows(&self, seq: SeqId) -> usize {
        self.sequences.vacant_rows(seq)
    }

    fn apply(&mut self, seq: SeqId, op: &CacheOp) -> Result<(), EngineError> {
        self.moves.extend(self.sequences.apply(seq, op)?);
        Ok(())
    }

    /// A step is given up before it is launched or not at all.
    fn step(
        &mut self,
        batch: &mut [SeqStep<'_>],
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError> {
        let Some(plan) = answers::plan(batch, &mut self.sequences, self.limits)? else {
            return Ok(StepEnd::Done(vec![Vec::new(); batch.len()]));
        };
        if at_layer(0).is_break() {
            return Ok(StepEnd::Interrupted);
        }
        let answers = self.compute(&plan, batch).map_err(failed)?;
        plan.done(&mut self.sequences);
        Ok(StepEnd::Done(answers))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

    use super::*;

    const GIB: usize = 1 << 30;

    /// A model of 1 GiB whose pages have 1 MiB.
    fn bytes(pages: usize) -> usize {
        GIB + (pages << 20)
    }

    fn options(kv_pages: usize, gpu_memory: Option<f64>) -> EngineOptions {
        EngineOptions {
            kv_pages,
            gpu_memory,
            ..EngineOptions::default()
        }
    }

    #[test]
    fn a_share_of_the_memory_decides_how_long_the_cache_is() {
        let pages =
            |wanted, share, free| fitting_pages(&options(wanted, share), [free, 16 * GIB], bytes);
        // 8 GiB less the model, what is spare and what the open GPU takes.
        assert_eq!(
            pages(100_000, Some(0.5), 16 * GIB),
            Ok(8192 - 1024 - 256 - 512)
        );
        // No more than is wanted.
        assert_eq!(pages(100, Some(0.5), 16 * GIB), Ok(100));
        // Others have taken more than the share leaves.
        assert_eq!(pages(100_000, Some(0.5), 2 * GIB), Ok(2048 - 1024 - 256));
        assert_eq!(pages(700, None, 2 * GIB), Ok(700));
    }

    #[test]
    fn what_does_not_fit_is_said_in_one_line() {
        for (share, free, words) in [
            (None, GIB, "the model needs 2304 MiB and 1024 MiB are free"),
            (Some(0.05), 16 * GIB, "0.05 of the GPU's memory are 819 MiB"),
            (Some(0.9), GIB, "and 1024 MiB are free"),
        ] {
            let error = fitting_pages(&options(1024, share), [free, 16 * GIB], bytes).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{error}");
        }
    }
}

//! The engine: a loaded model, its cache, and steps over ragged batches of tree rows.

use std::num::NonZeroUsize;
use std::ops::{ControlFlow, Range};
use std::path::Path;

use crate::attention::{HeadTask, attend};
use crate::cache::{KvCache, PAGE};
use crate::config::ModelConfig;
use crate::error::EngineError;
use crate::identity;
use crate::kernels::{Isa, LaneKernels, Matmul, PANEL, Pool, Rows, RowsMut};
use crate::llama::{Model, add, rms_norm, swiglu};
use crate::load::{Checkpoint, LoadError};
use crate::math;
use crate::options::EngineOptions;
use crate::output::StepOutput;
use crate::rope::{RopeTable, rotate};
use crate::sequence::{SeqId, Sequences, Slot};
use crate::step::{Limits, Plan, SeqRows};

/// Rows of one attention task: few enough to share out, many enough to reuse a page while it is in the cache.
const ROWS_PER_TASK: usize = 16;
/// Below this many multiply-adds a step's attention stays on the calling thread.
const WORTH_SHARING: usize = 100_000;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepEnd {
    /// All rows were computed; appended tokens are committed and tree rows are evaluated.
    Done,
    /// Given up at a layer boundary: nothing appended, the step's slots are free, caches as before.
    Interrupted,
}

/// Activations of a step, row-major, sized for `max_rows` at load.
struct Buffers {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    gate_up: Vec<f32>,
    inner: Vec<f32>,
    delta: Vec<f32>,
}

/// A loaded model with its key/value cache. Owned by one thread, which calls [`Engine::step`] in a loop.
///
/// A row's logits depend on nothing but its own token path, bit for bit.
pub struct Engine {
    model: Model,
    cache: KvCache,
    sequences: Sequences,
    rope: RopeTable,
    kernels: LaneKernels,
    /// A stand-in for the lane matmul, set by tests that show what it is for.
    substitute: Option<Box<dyn Matmul>>,
    buffers: Buffers,
    max_rows: usize,
    numerics_id: String,
}

impl Engine {
    /// Loads a Hugging Face checkpoint folder: `config.json` with `model.safetensors` or a sharded index; f32, bf16
    /// or f16.
    ///
    /// # Errors
    /// A typed [`LoadError`] that says what to do. Everything is checked before it is allocated.
    pub fn load(dir: &Path, options: &EngineOptions) -> Result<Engine, LoadError> {
        options.check()?;
        if !dir.join("config.json").is_file() {
            return Err(LoadError::NotAModel {
                path: dir.to_owned(),
            });
        }
        let config = ModelConfig::read(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        checkpoint.refuse_unexpected()?;
        let dtype = options.dtype.unwrap_or_else(|| checkpoint.dtype());
        let model = Model::load(&checkpoint, config, dtype)?;
        let config = &model.config;
        let numerics_id = identity::numerics_id(&checkpoint, config, dtype);
        let scratch = usize::from(options.scratch_rows).div_ceil(PAGE) * options.max_sequences;
        let cache = KvCache::new(config, options.kv_pages, scratch)?;
        let sequences = Sequences::new(
            options.max_sequences,
            options.scratch_rows,
            options.kv_pages,
        );
        let reachable = options.kv_pages * PAGE + usize::from(options.scratch_rows);
        let rope = RopeTable::new(config, config.max_positions.min(reachable));
        let pool = Pool::new(options.threads).map_err(LoadError::Threads)?;
        let rows = |width: usize| vec![0.0; options.max_rows * width.next_multiple_of(PANEL)];
        let buffers = Buffers {
            hidden: rows(config.hidden),
            normed: rows(config.hidden),
            qkv: rows(config.qkv_width()),
            attended: rows(config.heads * config.head_dim),
            gate_up: rows(2 * config.intermediate),
            inner: rows(config.intermediate),
            delta: rows(config.hidden),
        };
        Ok(Engine {
            cache,
            sequences,
            rope,
            kernels: LaneKernels::new(Isa::best(), pool),
            substitute: None,
            buffers,
            max_rows: options.max_rows,
            numerics_id,
            model,
        })
    }

    /// The model's configuration.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.model.config
    }

    /// Hex blake3 of everything a logit depends on besides its token path. Engines with equal ids compute equal bits.
    #[must_use]
    pub fn numerics_id(&self) -> &str {
        &self.numerics_id
    }

    /// Bytes of matmul weights that one step reads.
    #[must_use]
    pub fn weight_bytes(&self) -> usize {
        self.model.weight_bytes()
    }

    /// Opens a sequence and reserves the pages of `max_len` committed positions and its scratch region.
    ///
    /// # Errors
    /// [`EngineError::ContextExceeded`], [`EngineError::TooManySequences`] or [`EngineError::CacheFull`].
    pub fn open(&mut self, max_len: usize) -> Result<SeqId, EngineError> {
        let most = self.model.config.max_positions;
        if max_len > most {
            return Err(EngineError::ContextExceeded { len: max_len, most });
        }
        self.sequences.open(max_len, &mut self.cache)
    }

    /// Gives back a sequence's pages. Releasing one that is not open does nothing.
    pub fn release(&mut self, seq: SeqId) {
        self.sequences.release(seq, &mut self.cache);
    }

    /// Committed positions of a sequence; 0 for one that is not open.
    #[must_use]
    pub fn len(&self, seq: SeqId) -> usize {
        self.sequences.get(seq).map_or(0, |s| s.len)
    }

    /// Free pages for committed positions.
    #[must_use]
    pub fn free_pages(&self) -> usize {
        self.cache.free_pages()
    }

    /// All pages for committed positions.
    #[must_use]
    pub fn total_pages(&self) -> usize {
        self.cache.total_pages()
    }

    /// Rows that one step may have.
    #[must_use]
    pub fn max_rows(&self) -> usize {
        self.max_rows
    }

    /// Commits a chain of scratch rows from the tail: copies their keys and values behind it. Children of the last
    /// one then hang from the tail; rows whose chain is broken are freed.
    ///
    /// # Errors
    /// [`EngineError::BrokenPath`], [`EngineError::SequenceFull`] or [`EngineError::UnknownSequence`].
    pub fn commit(&mut self, seq: SeqId, path: &[Slot]) -> Result<(), EngineError> {
        self.sequences.commit(seq, path, &mut self.cache)
    }

    /// Frees scratch rows and everything that hangs from them. A slot that is free already is skipped.
    pub fn free(&mut self, seq: SeqId, slots: &[Slot]) {
        if let Ok(sequence) = self.sequences.get_mut(seq) {
            sequence.free_rows(slots);
        }
    }

    /// Drops the committed positions beyond `len`, and all scratch rows.
    ///
    /// # Errors
    /// [`EngineError::TruncateBeyondEnd`] or [`EngineError::UnknownSequence`].
    pub fn truncate(&mut self, seq: SeqId, len: usize) -> Result<(), EngineError> {
        self.sequences.truncate(seq, len)
    }

    /// Runs the kernels of another instruction set. Results stay the same, bit for bit.
    pub fn set_isa(&mut self, isa: Isa) {
        self.kernels.set_isa(isa);
    }

    /// Runs steps on this many threads. Results stay the same, bit for bit.
    ///
    /// # Errors
    /// When the operating system gives no thread.
    pub fn set_threads(&mut self, threads: NonZeroUsize) -> std::io::Result<()> {
        self.kernels = LaneKernels::new(self.kernels.isa(), Pool::new(threads)?);
        Ok(())
    }

    /// Replaces the lane matmul, so that a test can show what the engine's law needs it for.
    #[doc(hidden)]
    pub fn set_matmul(&mut self, matmul: Box<dyn Matmul>) {
        self.substitute = Some(matmul);
    }

    /// Evaluates a batch: appends tokens, evaluates tree rows, and writes the logits of the kept rows to `output`.
    ///
    /// `at_layer` is called with the layer's number before each layer; `Break` gives the step up.
    ///
    /// # Errors
    /// Everything is checked first; on an error nothing has been computed or changed.
    pub fn step(
        &mut self,
        batch: &[SeqRows<'_>],
        output: &mut StepOutput,
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError> {
        output.clear();
        let limits = Limits {
            vocab: self.model.config.vocab_size,
            positions: self.rope.positions(),
            rows: self.max_rows,
        };
        let mut plan = Plan::new(batch, &self.sequences, limits)?;
        if !plan.rows.is_empty() && self.forward(&mut plan, output, at_layer).is_break() {
            return Ok(StepEnd::Interrupted);
        }
        for group in &plan.groups {
            let sequence = self.sequences.at_mut(group.sequence);
            sequence.len += group.appended;
            if group.appended > 0 {
                sequence.clear_rows();
            }
            for (slot, parent) in &group.tree {
                sequence.set_row(*slot, *parent);
            }
        }
        Ok(StepEnd::Done)
    }

    fn forward(
        &mut self,
        plan: &mut Plan,
        output: &mut StepOutput,
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut rows = plan.rows.len();
        let stride = self.model.config.hidden.next_multiple_of(PANEL);
        for (row, at) in plan
            .rows
            .iter()
            .zip(self.buffers.hidden.chunks_exact_mut(stride))
        {
            self.model.embed(row.token, at);
        }
        let mut tasks = self.attention_tasks(plan);
        for layer in 0..self.model.layers.len() {
            at_layer(layer)?;
            self.project_and_store(layer, plan);
            if layer + 1 == self.model.layers.len() && plan.kept.len() < rows {
                // Once the last layer's keys and values are stored, rows without logits have done their part.
                rows = plan.kept.len();
                self.keep_rows(&plan.kept);
                plan.keep_only_kept();
                tasks = self.attention_tasks(plan);
            }
            self.attend(layer, plan, &tasks);
            self.finish_layer(layer, rows);
        }
        self.head(rows, output);
        ControlFlow::Continue(())
    }

    /// Splits the step's attention into tasks: group, key/value head, rows.
    fn attention_tasks(&self, plan: &Plan) -> Vec<(usize, usize, Range<usize>)> {
        let mut tasks = Vec::new();
        for (g, group) in plan.groups.iter().enumerate() {
            for head in 0..self.model.config.kv_heads {
                for start in group.rows.clone().step_by(ROWS_PER_TASK) {
                    tasks.push((g, head, start..(start + ROWS_PER_TASK).min(group.rows.end)));
                }
            }
        }
        tasks
    }

    /// Norm, fused query/key/value projection, rotation; keys and values go to the cache.
    fn project_and_store(&mut self, layer: usize, plan: &Plan) {
        let rows = plan.rows.len();
        let isa = self.kernels.isa();
        let (config, weights) = (&self.model.config, &self.model.layers[layer]);
        let (dim, stride) = (config.head_dim, config.hidden.next_multiple_of(PANEL));
        let Buffers {
            hidden,
            normed,
            qkv,
            ..
        } = &mut self.buffers;
        for (x, y) in hidden
            .chunks_exact(stride)
            .zip(normed.chunks_exact_mut(stride))
            .take(rows)
        {
            rms_norm(
                isa,
                &x[..config.hidden],
                &weights.attention_norm,
                config.norm_eps,
                &mut y[..config.hidden],
            );
        }
        let width = weights.qkv.padded_outputs();
        let mut to = RowsMut::new(qkv, width, rows);
        matmul(
            &self.kernels,
            self.substitute.as_deref(),
            Rows::new(normed, stride, rows),
            &weights.qkv,
            &mut to,
        );
        let (keys, values) = (config.heads * dim, (config.heads + config.kv_heads) * dim);
        let cache = &mut self.cache.layers[layer];
        for (row, qkv) in plan.rows.iter().zip(qkv.chunks_exact_mut(width)) {
            let (cos, sin) = self.rope.at(row.position);
            rotate(isa, &mut qkv[..values], cos, sin);
            for head in 0..config.kv_heads {
                let key = &qkv[keys + head * dim..keys + (head + 1) * dim];
                let value = &qkv[values + head * dim..values + (head + 1) * dim];
                cache.store(self.cache.layout, row.place, head, key, value);
            }
        }
    }

    /// Moves the kept rows to the front.
    fn keep_rows(&mut self, kept: &[usize]) {
        let config = &self.model.config;
        for (buffer, width) in [
            (&mut self.buffers.hidden, config.hidden),
            (&mut self.buffers.qkv, config.qkv_width()),
        ] {
            let stride = width.next_multiple_of(PANEL);
            for (to, from) in kept.iter().enumerate() {
                buffer.copy_within(from * stride..from * stride + width, to * stride);
            }
        }
    }

    fn attend(&mut self, layer: usize, plan: &Plan, tasks: &[(usize, usize, Range<usize>)]) {
        let config = &self.model.config;
        let rows = plan.sights.len();
        let Buffers { qkv, attended, .. } = &mut self.buffers;
        let queries = Rows::new(qkv, config.qkv_width().next_multiple_of(PANEL), rows);
        let mut attended = RowsMut::new(
            attended,
            (config.heads * config.head_dim).next_multiple_of(PANEL),
            rows,
        );
        let out = attended.share();
        let (kernels, cache, sequences) = (&self.kernels, &self.cache, &self.sequences);
        let run = |i: usize| {
            let (group, head, rows) = &tasks[i];
            let sequence = sequences.at(plan.groups[*group].sequence);
            let task = HeadTask {
                layout: cache.layout,
                cache: &cache.layers[layer],
                pages: &sequence.pages,
                scratch: &sequence.scratch,
                head: *head,
                group: config.group(),
                queries,
                rows: rows.clone(),
                sights: &plan.sights,
                paths: &plan.paths,
                scale: math::rsqrt(config.head_dim as f32),
            };
            attend(kernels.isa(), &task, &out);
        };
        let positions: usize = plan.sights.iter().map(|s| s.committed + s.path.len()).sum();
        if kernels.pool().threads() == 1
            || positions * config.heads * config.head_dim * 2 < WORTH_SHARING
        {
            (0..tasks.len()).for_each(run);
        } else {
            kernels.pool().run(tasks.len(), &run);
        }
    }

    /// Output projection, residual, norm, SwiGLU, residual.
    fn finish_layer(&mut self, layer: usize, rows: usize) {
        let isa = self.kernels.isa();
        let (config, weights) = (&self.model.config, &self.model.layers[layer]);
        let stride = config.hidden.next_multiple_of(PANEL);
        let Buffers {
            hidden,
            normed,
            attended,
            gate_up,
            inner,
            delta,
            ..
        } = &mut self.buffers;
        let (kernels, substitute) = (&self.kernels, self.substitute.as_deref());

        let from = Rows::new(
            attended,
            (config.heads * config.head_dim).next_multiple_of(PANEL),
            rows,
        );
        matmul(
            kernels,
            substitute,
            from,
            &weights.output,
            &mut RowsMut::new(delta, stride, rows),
        );
        for ((x, d), y) in hidden
            .chunks_exact_mut(stride)
            .zip(delta.chunks_exact(stride))
            .zip(normed.chunks_exact_mut(stride))
            .take(rows)
        {
            add(isa, &mut x[..config.hidden], &d[..config.hidden]);
            rms_norm(
                isa,
                &x[..config.hidden],
                &weights.mlp_norm,
                config.norm_eps,
                &mut y[..config.hidden],
            );
        }

        let (width, inner_stride) = (
            weights.gate_up.padded_outputs(),
            config.intermediate.next_multiple_of(PANEL),
        );
        let mut to = RowsMut::new(gate_up, width, rows);
        matmul(
            kernels,
            substitute,
            Rows::new(normed, stride, rows),
            &weights.gate_up,
            &mut to,
        );
        for (gate_up, y) in gate_up
            .chunks_exact(width)
            .zip(inner.chunks_exact_mut(inner_stride))
            .take(rows)
        {
            let (gate, up) = gate_up[..2 * config.intermediate].split_at(config.intermediate);
            swiglu(isa, gate, up, &mut y[..config.intermediate]);
        }

        let mut to = RowsMut::new(delta, stride, rows);
        matmul(
            kernels,
            substitute,
            Rows::new(inner, inner_stride, rows),
            &weights.down,
            &mut to,
        );
        for (x, d) in hidden
            .chunks_exact_mut(stride)
            .zip(delta.chunks_exact(stride))
            .take(rows)
        {
            add(isa, &mut x[..config.hidden], &d[..config.hidden]);
        }
    }

    /// Final norm and output head.
    fn head(&mut self, rows: usize, output: &mut StepOutput) {
        let isa = self.kernels.isa();
        let config = &self.model.config;
        let stride = config.hidden.next_multiple_of(PANEL);
        let Buffers { hidden, normed, .. } = &mut self.buffers;
        for (x, y) in hidden
            .chunks_exact(stride)
            .zip(normed.chunks_exact_mut(stride))
            .take(rows)
        {
            rms_norm(
                isa,
                &x[..config.hidden],
                &self.model.final_norm,
                config.norm_eps,
                &mut y[..config.hidden],
            );
        }
        let width = self.model.head.padded_outputs();
        let logits = output.prepare(rows, width, config.vocab_size);
        let mut to = RowsMut::new(logits, width, rows);
        let from = Rows::new(normed, stride, rows);
        matmul(
            &self.kernels,
            self.substitute.as_deref(),
            from,
            &self.model.head,
            &mut to,
        );
        output.finish(rows);
    }
}

/// The lane matmul, or its stand-in.
fn matmul(
    kernels: &LaneKernels,
    substitute: Option<&dyn Matmul>,
    x: Rows<'_>,
    weight: &crate::kernels::PackedWeight,
    out: &mut RowsMut<'_>,
) {
    match substitute {
        None => kernels.matmul(x, weight, out),
        Some(other) => other.matmul(x, weight, out),
    }
}

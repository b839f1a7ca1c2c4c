//! A model on a device with its cache: bookkeeping on one side, arithmetic on the other.

use std::ops::ControlFlow;
use std::path::Path;

use decode::{CacheOp, Sampler, StepPlan};

use crate::answers;
use crate::backend::{Backend, Facts, SeqStep, StepEnd};
use crate::device::Device;
use crate::end::{Networks, WalkEnd};
use crate::error::EngineError;
use crate::identity;
use crate::load::{LoadError, Progress, trim};
use crate::model::{AttentionShape, Decoder, RopeTable, Tapped};
use crate::opened::{Opened, Sizes};
use crate::options::EngineOptions;
use crate::sequence::{SeqId, Sequences};
use crate::step::{Limits, Plan};

/// What a row of a step leaves to be read.
#[derive(Clone, Copy, Debug)]
pub struct RowStates<'a> {
    /// Its entry of the batch.
    pub entry: usize,
    /// Its place in [`StepPlan::asked`].
    pub place: usize,
    /// The residual stream behind each of the last four layers (of all, if there are fewer), that of the last one behind the
    /// final norm, end to end.
    pub states: &'a [f32],
    /// One logit for each id of the model, padding included.
    pub logits: &'a [f32],
}

/// A loaded model on a device.
pub(crate) struct Engine<D: Device> {
    pub(crate) device: D,
    pub(crate) model: Decoder<D>,
    cache: D::Cache,
    sequences: Sequences,
    sampler: Sampler,
    beside: Networks<D>,
    limits: Limits,
    facts: Facts,
}

impl<D: Device> Engine<D> {
    /// Loads a checkpoint folder or a GGUF file. The options have been checked, and the device holds as many rows as they say.
    pub(crate) fn load(
        dir: &Path,
        options: &EngineOptions,
        device: D,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<Engine<D>, LoadError> {
        let Opened {
            config,
            checkpoint,
            vocab,
        } = Opened::open(dir, options)?;
        trim();
        let dtype = options.dtype.unwrap_or_else(|| checkpoint.dtype());
        let mut model = Decoder::load(&device, &checkpoint, config, dtype, watch)?;
        let beside = Networks::load(&device, &mut model, options)?;
        let config = &model.config;
        let id = identity::numerics_id(D::ARITHMETIC, &checkpoint, config, dtype, options.threads);
        let sizes = Sizes::of(config, vocab, options, id);
        let ropes = RopeTable::all(config, checkpoint.rope_factors(), sizes.limits.positions);
        let cache = device.cache(
            AttentionShape::of(config),
            config.layers,
            sizes.pages,
            ropes,
        )?;
        let Sizes {
            sequences,
            limits,
            facts,
            ..
        } = sizes;
        Ok(Engine {
            device,
            model,
            cache,
            sequences,
            sampler: Sampler::new(vocab),
            beside,
            limits,
            facts,
        })
    }

    /// Computes plans and shows the logits of every row that is asked for something, whatever it is asked: `read(entry
    /// of the batch, place among its asked rows, logits)`, one logit for each row of the embedding.
    pub(crate) fn read_logits(
        &mut self,
        batch: &[(SeqId, &StepPlan)],
        read: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.compute(batch, |engine, [entry, place, row]| {
            read(entry, place, engine.device.row(engine.model.logits(), row));
        })
    }

    /// As [`Engine::read_logits`], with the hidden states of the last layers.
    pub(crate) fn read_states(
        &mut self,
        batch: &[(SeqId, &StepPlan)],
        read: &mut dyn FnMut(RowStates<'_>),
    ) -> Result<(), EngineError> {
        let before = self.model.tapped;
        self.model.tapped = Tapped::Yes;
        let end = self.compute(batch, |engine, [entry, place, row]| {
            read(RowStates {
                entry,
                place,
                states: &engine.model.tap(&engine.device, row),
                logits: engine.device.row(engine.model.logits(), row),
            });
        });
        self.model.tapped = before;
        end
    }

    /// Computes plans and shows every row that is asked for something: entry, place among its asked rows, row of the
    /// activations.
    fn compute(
        &mut self,
        batch: &[(SeqId, &StepPlan)],
        mut show: impl FnMut(&Engine<D>, [usize; 3]),
    ) -> Result<(), EngineError> {
        let plan = Plan::new(batch.iter().copied(), &mut self.sequences, self.limits)?;
        let go_on = &mut |_| ControlFlow::Continue(());
        let forward = (self.model).forward(&self.device, &mut self.cache, &plan, go_on);
        if forward.is_continue() {
            for (entry, group) in plan.groups.iter().enumerate() {
                for (place, row) in group.asked.clone().enumerate() {
                    show(self, [entry, place, row]);
                }
            }
            plan.done(&mut self.sequences);
        }
        Ok(())
    }
}

impl<D: Device> Backend for Engine<D> {
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
        for (from, to) in self.sequences.apply(seq, op)? {
            self.device.copy(&mut self.cache, from, to);
        }
        Ok(())
    }

    fn step(
        &mut self,
        batch: &mut [SeqStep<'_>],
        at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<StepEnd, EngineError> {
        let Some(plan) = answers::plan(batch, &mut self.sequences, self.limits)? else {
            return Ok(StepEnd::Done(vec![Vec::new(); batch.len()]));
        };
        let forward = (self.model).forward(&self.device, &mut self.cache, &plan, at_layer);
        if forward.is_break() {
            return Ok(StepEnd::Interrupted);
        }
        let tokens = self.facts.vocab as usize;
        let logits = |place: usize| &self.device.row(self.model.logits(), place)[..tokens];
        let sampler = &mut self.sampler;
        let mut answers = answers::answer(&plan, batch, |part, group, place, asked| {
            answers::sample(sampler, part, group, asked, logits(place))
        });
        for (at, part) in batch.iter_mut().enumerate() {
            if let Some(end) = WalkEnd::find(&plan, at, part, &answers[at]) {
                let seen = (&self.device, &self.model);
                let answer = self.beside.answer(seen, &mut self.sampler, part, &end);
                answers[at].extend(answer);
            }
        }
        plan.done(&mut self.sequences);
        Ok(StepEnd::Done(answers))
    }
}

//! Small engines, and steps of them that are answered or refused.

use std::ops::ControlFlow;

use decode::sampling::SamplingParams;
use decode::{SamplerState, StepPlan};
use engine::{Backend, CpuEngine, EngineError, EngineOptions, SeqId, SeqStep, StepEnd};
use offshoot_engine as engine;
use safetensors::Dtype;

use super::synthetic;

/// Two sequences of 32 positions and 8 tree rows each, 16 rows a step.
pub(crate) fn small() -> CpuEngine {
    let dir = synthetic::checkpoint(Dtype::F32, 2);
    let options = EngineOptions {
        scratch_rows: 8,
        max_rows: 16,
        ..EngineOptions::for_sequences(32, 2)
    };
    CpuEngine::load(dir.path(), &options).unwrap()
}

/// A step that has to be refused before anything is computed; so has reading its logits.
pub(crate) fn refused(engine: &mut CpuEngine, batch: &[(SeqId, StepPlan)]) -> EngineError {
    let texts: Vec<Vec<u32>> = (batch.iter())
        .map(|(seq, plan)| [&vec![1; engine.len(*seq)], &plan.append[..]].concat())
        .collect();
    let mut samplers = vec![SamplerState::default(); batch.len()];
    let parts = batch.iter().zip(&texts).zip(&mut samplers);
    let mut steps: Vec<SeqStep<'_>> = parts
        .map(|(((seq, plan), text), sampler)| SeqStep {
            seq: *seq,
            plan,
            text,
            prompt_len: 0,
            sampler,
        })
        .collect();
    let nothing = &mut |_| panic!("nothing may be computed");
    let error = engine.step(&mut steps, nothing).unwrap_err();
    let plans: Vec<(SeqId, &StepPlan)> = batch.iter().map(|(seq, plan)| (*seq, plan)).collect();
    let read = engine.read_logits(&plans, &mut |_, _, _| panic!("nothing may be computed"));
    assert_eq!(read.as_ref(), Err(&error));
    error
}

/// One step of one sequence.
pub(crate) fn step(
    engine: &mut CpuEngine,
    seq: SeqId,
    plan: &StepPlan,
    text: &[u32],
    at_layer: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> StepEnd {
    let batch = &mut [SeqStep {
        seq,
        plan,
        text,
        prompt_len: 0,
        sampler: &mut SamplingParams::default().into(),
    }];
    engine.step(batch, at_layer).unwrap()
}

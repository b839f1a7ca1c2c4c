//! The engine's law on a GPU, with the models that are bundled. Without a GPU every test says that it is skipped.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::ops::ControlFlow;

use decode::{Answer, Ask, CacheOp, Judgement, Sampler, SamplerState, StepPlan};
use engine::{
    Backend, CpuEngine, Cuda, CudaEngine, EngineOptions, SeqId, SeqStep, StepEnd, WeightDtype,
};
use offshoot_engine as engine;
use support::plain::{Dice, Plain, Reference};
use support::schedule::{Check, Schedule, Subject, run};
use support::{Asked, append, bits, logits_by, model, prompts, random_tree, tree};

impl Subject for CudaEngine {
    /// A step is given up before the first layer or not at all.
    fn layers(&self) -> usize {
        1
    }

    fn vary(&mut self, _: &mut Dice) {}

    fn read(&mut self, batch: &[(SeqId, &StepPlan)]) -> Vec<Vec<f32>> {
        logits_by(batch, |read| self.read_logits(batch, read))
    }
}

/// The first GPU. None where there is none, which is said; an error only where one has to be there.
fn gpu() -> Option<Cuda> {
    match Cuda::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("OFFSHOOT_NEEDS_GPU").is_none(), "{error}");
            #[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
            {
                println!("skipped: {error}");
            }
            None
        }
    }
}

const MODELS: [&str; 3] = ["draft", "qualifier", "target"];

fn options() -> EngineOptions {
    EngineOptions {
        scratch_rows: 64,
        max_rows: 256,
        ..EngineOptions::for_sequences(512, 4)
    }
}

fn load(gpu: &Cuda, name: &str) -> CudaEngine {
    CudaEngine::load(&model(name), &options(), gpu).unwrap()
}

#[test]
fn random_schedules_on_the_bundled_models() {
    let Some(gpu) = gpu() else { return };
    for name in MODELS {
        let mut plain = Plain::new(load(&gpu, name));
        for seed in 0..3 {
            let schedule = Schedule {
                seed,
                operations: 30,
                tokens: 3,
                max_len: 160,
                scratch_rows: 64,
                max_chunk: 60,
                max_tree: 24,
                check: Check::Either,
            };
            run(&mut load(&gpu, name), &mut plain, &schedule).unwrap();
        }
    }
}

/// A tree behind a text that ends shortly before a piece of attention does, at every number of rows.
#[test]
fn every_row_count_from_1_to_64() {
    let Some(gpu) = gpu() else { return };
    let mut plain = Plain::new(load(&gpu, "target"));
    let mut engine = load(&gpu, "target");
    let prompt: Vec<u32> = (0..124).map(|i| 7 + i * 31 % 2000).collect();
    let seq = engine.open(400).unwrap();
    engine.read(&[(seq, &append(&prompt, Asked::None))]);
    let mut dice = Dice(5);
    for rows in 1..=64 {
        let (grown, paths) = random_tree(&mut dice, &prompt, rows);
        let found = engine.read(&[(seq, &tree(&grown))]);
        for (i, (found, path)) in found.iter().zip(&paths).enumerate() {
            assert_eq!(bits(found), plain.bits(path), "row {i} of {rows}");
        }
        let nodes = grown.iter().map(|row| row.node).collect();
        engine.apply(seq, &CacheOp::Drop(nodes)).unwrap();
    }
}

#[test]
fn a_prompt_in_one_step_is_the_prompt_token_by_token() {
    let Some(gpu) = gpu() else { return };
    let text: Vec<u32> = (0..256).map(|i| 5 + i * 37 % 3000).collect();
    for name in MODELS {
        let mut plain = Plain::new(load(&gpu, name));
        for chunk in [256, 129, 65, 50] {
            let mut engine = load(&gpu, name);
            let seq = engine.open(256).unwrap();
            let mut len = 0;
            for part in text.chunks(chunk) {
                for found in engine.read(&[(seq, &append(part, Asked::All))]) {
                    len += 1;
                    assert_eq!(bits(&found), plain.bits(&text[..len]), "{name}, {chunk}");
                }
            }
        }
    }
}

/// Not the same numbers as the CPU's, but the same model: weights are packed right, and no position is turned wrong.
#[test]
fn logits_are_close_to_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for name in MODELS {
        let options = EngineOptions {
            dtype: Some(WeightDtype::Bf16),
            ..options()
        };
        let mut cpu = CpuEngine::load(&model(name), &options).unwrap();
        let mut cuda = load(&gpu, name);
        assert_ne!(cpu.facts().numerics_id, cuda.facts().numerics_id);
        let (mut distance, mut size, mut same, mut count) = (0.0, 0.0, 0, 0);
        for prompt in prompts(200).iter().take(8) {
            let plan = append(prompt, Asked::All);
            let seqs = (cpu.open(256).unwrap(), cuda.open(256).unwrap());
            let want = cpu.read(&[(seqs.0, &plan)]);
            let got = cuda.read(&[(seqs.1, &plan)]);
            cpu.release(seqs.0);
            cuda.release(seqs.1);
            for (want, got) in want.iter().zip(&got) {
                for (a, b) in want.iter().zip(got) {
                    distance += f64::from(a - b).powi(2);
                    size += f64::from(*a).powi(2);
                }
                let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
                same += usize::from(best(want) == best(got));
                count += 1;
            }
        }
        let relative = (distance / size).sqrt();
        println!(
            "{name}: logits {relative:.2e} from the CPU's, {same} of {count} strongest tokens the same"
        );
        assert!(
            relative < 0.02 && same * 100 > count * 97,
            "{name}: {relative}, {same} of {count}"
        );
    }
}

/// What has no kernel is answered from the row's logits: drawn siblings, and judgements of them.
#[test]
fn drawn_and_judged_rows_are_answered_by_the_sampler_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let (mut engine, mut shown) = (load(&gpu, "draft"), load(&gpu, "draft"));
    let text = [5, 9, 700];
    let mut plan = append(&text, Asked::Last);
    let logits = {
        let seq = shown.open(64).unwrap();
        shown.read(&[(seq, &plan)]).remove(0)
    };
    let mut sampler = Sampler::new(engine.facts().vocab);
    let mut answers = |plan: &StepPlan| {
        let seq = engine.open(64).unwrap();
        let state = &mut SamplerState::default();
        let batch = &mut [SeqStep {
            seq,
            plan,
            text: &text,
            prompt_len: 3,
            sampler: state,
        }];
        let end = engine.step(batch, &mut |_| ControlFlow::Continue(()));
        engine.release(seq);
        let Ok(StepEnd::Done(answers)) = end else {
            panic!("{end:?}")
        };
        answers[0].clone()
    };
    let history = decode::History {
        text: &text,
        path: &[],
        prompt_len: 3,
    };
    let state = &mut SamplerState::default();
    plan.asks = vec![Ask::Draw(3)];
    let drawn = sampler.draw_after(&logits, state, &history, 3).unwrap();
    assert_eq!(answers(&plan), [Answer::Drawn(Box::new(drawn.clone()))]);
    plan.asks = vec![Ask::Judge {
        judgement: 0,
        score: None,
    }];
    plan.judgements = vec![Judgement::Rejection(drawn)];
    let judged = sampler.judge((&plan.judgements[0], None), &logits, state, &history);
    assert_eq!(answers(&plan), [judged]);
    plan.asks = vec![Ask::Guesses(100)];
    let guesses = sampler
        .answer(plan.asks[0], &logits, state, &history)
        .unwrap();
    assert_eq!(answers(&plan), [guesses]);
}

//! The engine's law on a GPU, with the models that are bundled. Without a GPU every test says that it is skipped, and one runs the
//! others over a fake driver, which computes the kernels on the CPU: there everything is smaller.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../tests/cuda/src/compile.rs"]
#[allow(dead_code, unreachable_pub, reason = "another crate uses all of it")]
mod compile;
mod support;

use std::env;
use std::io::{Write, stderr};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::thread;
use std::time::Instant;

use compile::{SMALL_BLOCKS, compiler, fake_driver};
use decode::{Answer, Ask, CacheOp, Judgement, Sampler, SamplerState, StepPlan};
use engine::{
    Backend, CpuEngine, Cuda, CudaEngine, EngineOptions, SeqId, SeqStep, StepEnd, WeightDtype,
};
use offshoot_engine as engine;
use support::plain::{Dice, Plain, Reference};
use support::schedule::{Check, Schedule, Subject, run};
use support::{Asked, append, bits, gguf, logits_by, model, prompts, random_tree, synthetic, tree};

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

/// Set where the driver is the fake one of tests/cuda.
const EMULATED: &str = "OFFSHOOT_EMULATED_GPU";

/// The first GPU. None where there is none, which is said; an error only where one has to be there.
fn gpu() -> Option<Cuda> {
    match Cuda::open(0) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(env::var_os("OFFSHOOT_NEEDS_GPU").is_none(), "{error}");
            skipped(&error.to_string());
            None
        }
    }
}

/// Says once that tests are skipped, past the runner, which shows only what failed.
fn skipped(why: &str) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let _ = writeln!(stderr(), "skipped: {why}");
    });
}

fn is_emulated() -> bool {
    env::var_os(EMULATED).is_some()
}

/// The models that are tested: those that a fake driver computes fast enough.
fn models() -> &'static [&'static str] {
    let all = &["draft", "qualifier", "target"];
    if is_emulated() { &all[..1] } else { all }
}

/// What is right.
fn plain(gpu: &Cuda, name: &str) -> Plain {
    let engine = load(gpu, name);
    if is_emulated() {
        Plain::keeping(engine, 400)
    } else {
        Plain::new(engine)
    }
}

/// The last of them.
fn largest() -> &'static str {
    models().last().unwrap()
}

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
    let [seeds, operations, max_tree] = if is_emulated() {
        [1, 9, 12]
    } else {
        [3, 30, 24]
    };
    for name in models() {
        let mut plain = plain(&gpu, name);
        for seed in 0..seeds as u64 {
            let schedule = Schedule {
                seed,
                operations,
                tokens: 3,
                max_len: 160,
                scratch_rows: 64,
                max_chunk: 60,
                max_tree,
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
    let mut plain = plain(&gpu, largest());
    let mut engine = load(&gpu, largest());
    let prompt: Vec<u32> = (0..124).map(|i| 7 + i * 31 % 2000).collect();
    let seq = engine.open(400).unwrap();
    engine.read(&[(seq, &append(&prompt, Asked::None))]);
    let mut dice = Dice(5);
    for rows in 1..=64 {
        // Each bucket, as full as it gets and not.
        if is_emulated() && ![1, 8, 9, 20, 40, 64].contains(&rows) {
            continue;
        }
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
    let len = if is_emulated() { 140 } else { 256 };
    let text: Vec<u32> = (0..len).map(|i| 5 + i * 37 % 3000).collect();
    for name in models() {
        let mut plain = plain(&gpu, name);
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

/// How far the logits of a GPU are from those of the CPU, relatively, and how many of all strongest tokens are the same.
fn distance(want: &[Vec<f32>], got: &[Vec<f32>]) -> (f64, usize) {
    let (mut distance, mut size, mut same) = (0.0, 0.0, 0);
    for (want, got) in want.iter().zip(got) {
        for (a, b) in want.iter().zip(got) {
            distance += f64::from(a - b).powi(2);
            size += f64::from(*a).powi(2);
        }
        let best = |row: &[f32]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
        same += usize::from(best(want) == best(got));
    }
    ((distance / size).sqrt(), same)
}

/// The logits behind every token of some texts, on the CPU and on the GPU.
fn both(dir: &Path, gpu: &Cuda, texts: &[Vec<u32>]) -> [Vec<Vec<f32>>; 2] {
    let options = EngineOptions {
        dtype: Some(WeightDtype::Bf16),
        ..options()
    };
    let mut cpu = CpuEngine::load(dir, &options).unwrap();
    let mut cuda = CudaEngine::load(dir, &options, gpu).unwrap();
    assert_ne!(cpu.facts().numerics_id, cuda.facts().numerics_id);
    let mut logits = [Vec::new(), Vec::new()];
    for text in texts {
        let plan = append(text, Asked::All);
        let seqs = (cpu.open(256).unwrap(), cuda.open(256).unwrap());
        logits[0].extend(cpu.read(&[(seqs.0, &plan)]));
        logits[1].extend(cuda.read(&[(seqs.1, &plan)]));
        cpu.release(seqs.0);
        cuda.release(seqs.1);
    }
    logits
}

/// Not the same numbers as the CPU's, but the same model: weights are packed right, and no position is turned wrong.
#[test]
fn logits_are_close_to_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    for name in models() {
        let texts = if is_emulated() { 2 } else { 8 };
        let [want, got] = both(&model(name), &gpu, &prompts(200)[..texts]);
        let (relative, same) = distance(&want, &got);
        let count = want.len();
        println!(
            "{name}: logits {relative:.2e} from the CPU's, {same} of {count} strongest tokens the same"
        );
        assert!(
            relative < 0.02 && same * 100 > count * 97,
            "{name}: {relative}, {same} of {count}"
        );
    }
}

/// Families beside Llama, in heads of several shapes: the model of the CPU, and rows of their own.
#[test]
fn other_families_compute_what_the_cpu_computes() {
    let Some(gpu) = gpu() else { return };
    let len = if is_emulated() { 24 } else { 200 };
    let text: Vec<u32> = (0..len).map(|i| 7 + i * 31 % 90).collect();
    for (family, heads) in [
        ("mistral", [4, 1, 64]),
        ("qwen2", [7, 1, 64]),
        ("qwen2", [6, 1, 128]),
        ("qwen2", [7, 1, 128]),
        ("qwen3", [4, 2, 128]),
        ("qwen3", [5, 1, 128]),
        ("smollm3", [4, 1, 128]),
        ("phi3", [2, 2, 96]),
        ("phi3", [4, 1, 128]),
    ] {
        let dir = synthetic::of_family(family, heads);
        let [want, got] = both(dir.path(), &gpu, std::slice::from_ref(&text));
        let (relative, _) = distance(&want, &got);
        println!("{family} {heads:?}: logits {relative:.2e} from the CPU's");
        assert!(relative < 0.02, "{family} {heads:?}: {relative}");
        let load = || CudaEngine::load(dir.path(), &options(), &gpu).unwrap();
        let mut plain = Plain::keeping(load(), 256);
        let mut engine = load();
        let seq = engine.open(256).unwrap();
        let mut len = 0;
        for chunk in text.chunks(9) {
            for found in engine.read(&[(seq, &append(chunk, Asked::All))]) {
                len += 1;
                assert_eq!(bits(&found), plain.bits(&text[..len]), "{family}, {len}");
            }
        }
    }
}

/// Blocks become bf16, heads in the order of neighbours are turned in that of halves, and frequencies are divided by factors.
#[test]
fn a_gguf_file_is_the_model_that_it_is_on_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let text: Vec<u32> = (0..40).map(|i| 7 + i * 31 % 200).collect();
    let [want, got] = both(&gguf("heads.gguf"), &gpu, &[text]);
    let (relative, _) = distance(&want, &got);
    println!("heads.gguf: logits {relative:.2e} from the CPU's");
    assert!(relative < 0.02, "{relative}");
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

/// All that a load reserves is counted before, and a share of the memory decides how long the cache is.
#[test]
fn what_is_reserved_is_what_was_counted() {
    let Some(gpu) = gpu() else { return };
    let free = gpu.free_bytes().unwrap();
    let mut engine = load(&gpu, "draft");
    let taken = free - gpu.free_bytes().unwrap();
    let counted = engine.reserved_bytes();
    // A driver gives whole pages of its own, some of which it has already, and takes some for itself.
    let [less, more] = if is_emulated() {
        [0, 0]
    } else {
        [32 << 20, 256 << 20]
    };
    assert!(
        (counted.saturating_sub(less)..=counted + more).contains(&taken),
        "{taken} bytes for {counted}"
    );
    let seq = engine.open(64).unwrap();
    engine.read(&[(seq, &append(&[5, 9, 700], Asked::Last))]);
    if is_emulated() {
        assert_eq!(
            free - gpu.free_bytes().unwrap(),
            taken,
            "a step reserves nothing"
        );
    }
    drop(engine);
    let share = |gpu_memory| {
        let options = EngineOptions {
            kv_pages: 100_000,
            gpu_memory: Some(gpu_memory),
            ..options()
        };
        CudaEngine::load(&model("draft"), &options, &gpu)
    };
    let error = share(1e-6).err().unwrap().to_string();
    assert!(
        error.starts_with("cuda:0: the model needs ") && !error.contains('\n'),
        "{error}"
    );
    if is_emulated() {
        // Of 2 GiB; a page has 4 layers of 2 times 96 bf16 numbers for 16 positions.
        let pages = |share: CudaEngine| share.facts().total_pages;
        let (half, more) = (pages(share(0.5).unwrap()), pages(share(0.75).unwrap()));
        let page = 4 * 2 * 96 * 2 * 16;
        let expected = (1 << 29) / page;
        assert!(
            (more - half).abs_diff(expected) < expected / 50,
            "{half} and {more} pages"
        );
    }
}

/// Prints how long a step takes by rows, for the models that `OFFSHOOT_TIME_MODELS` names, or one that is bundled: behind 512
/// positions, each row asked for a pick, the median of some steps, from the call to the answers.
#[test]
fn how_long_a_step_takes() {
    let Some(gpu) = gpu() else { return };
    let named = env::var_os("OFFSHOOT_TIME_MODELS");
    let models: Vec<PathBuf> = match &named {
        Some(named) => env::split_paths(named).collect(),
        None => vec![model("draft")],
    };
    let (text_len, times) = if is_emulated() { (40, 2) } else { (512, 20) };
    for dir in models {
        let options = EngineOptions {
            scratch_rows: 64,
            ..EngineOptions::for_sequences(1024, 2)
        };
        let mut engine = CudaEngine::load(&dir, &options, &gpu).unwrap();
        let seq = engine.open(text_len + 64).unwrap();
        let token = |i: usize| 5 + i as u32 * 37 % 3000;
        let text: Vec<u32> = (0..text_len + 64).map(token).collect();
        for part in text[..text_len].chunks(128) {
            engine.read(&[(seq, &append(part, Asked::None))]);
        }
        for rows in [1, 8, 16, 32, 64] {
            let end = text_len + rows;
            let plan = append(&text[text_len..end], Asked::All);
            let mut spans: Vec<f64> = (0..times)
                .map(|_| {
                    let sampler = &mut SamplerState::default();
                    let batch = &mut [SeqStep {
                        seq,
                        plan: &plan,
                        text: &text[..end],
                        prompt_len: text_len as u32,
                        sampler,
                    }];
                    let begun = Instant::now();
                    let done = engine.step(batch, &mut |_| ControlFlow::Continue(()));
                    let span = begun.elapsed().as_secs_f64() * 1e3;
                    let Ok(StepEnd::Done(answers)) = done else {
                        panic!("{done:?}")
                    };
                    assert_eq!(answers[0].len(), rows);
                    let op = CacheOp::Shorten(text_len as u32);
                    engine.apply(seq, &op).unwrap();
                    span
                })
                .collect();
            spans.sort_by(f64::total_cmp);
            let name = dir.file_name().unwrap_or_default().display();
            println!(
                "{name}: a step of {rows} rows takes {:.3} ms",
                spans[times / 2]
            );
        }
    }
}

/// The tests above, over a fake driver: one that begins a kernel before those before it have ended, copies as late as it may, and
/// ends memory where nothing may be touched. As a card whose blocks have much shared memory, and as one whose blocks have little.
#[test]
fn over_a_fake_driver() {
    if env::var_os("OFFSHOOT_NEEDS_GPU").is_some() {
        return;
    }
    let Some(compiler) = compiler() else { return };
    let large = || over(&compiler, "large-blocks", &[], "");
    thread::scope(|scope| {
        scope.spawn(large);
        over(&compiler, "small-blocks", &[SMALL_BLOCKS], "a_prompt");
    });
}

/// The tests above whose names contain `only`, over a fake driver compiled with these flags.
fn over(compiler: &str, name: &str, flags: &[&str], only: &str) {
    let root = &Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let driver = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fake_driver(root, compiler, &driver, flags).unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args([
            "--test-threads=1",
            "--nocapture",
            "--skip",
            "over_a_fake_driver",
            only,
        ])
        .env("LD_LIBRARY_PATH", driver)
        .env("OFFSHOOT_NEEDS_GPU", "1")
        .env(EMULATED, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name}: {}\n{said}{errors}",
        output.status
    );
    assert!(said.contains("a_prompt_in_one_step"), "{said}");
}

//! Every model family: against Hugging Face transformers, on the checkpoints and results that `tests/oracle/make.py` wrote, and
//! against itself, because a row of any family depends on nothing but its own token path.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::num::NonZeroUsize;
use std::path::Path;

use engine::cpu::kernels::Isa;
use engine::{Backend, CpuEngine, EngineOptions, Family, ModelConfig, WeightDtype};
use offshoot_engine as engine;
use support::families::{self, Expected};
use support::plain::Plain;
use support::schedule::{Schedule, run};
use support::{Asked, append_to, argmax, bits};

/// The engine against what transformers computed with the same weights in f32.
fn compare(path: &Path, expected: &Expected) {
    let options = EngineOptions {
        dtype: Some(WeightDtype::F32),
        ..families::options()
    };
    let mut engine = CpuEngine::load(path, &options).unwrap();
    let seq = engine.open(expected.ids.len()).unwrap();
    let found = append_to(&mut engine, seq, &expected.ids, Asked::All);
    engine.release(seq);
    for (row, logits) in expected.rows.iter().zip(&expected.logits) {
        assert_eq!(found[*row].len(), logits.len());
        let most = logits.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let errors = found[*row].iter().zip(logits).map(|(a, b)| (a - b).abs());
        let error = errors.fold(0.0_f32, f32::max) / most;
        assert!(
            error <= 1e-5,
            "{}, row {row}: off by {error} of the largest logit",
            path.display()
        );
    }
    let seq = engine.open(256).unwrap();
    let mut logits = append_to(&mut engine, seq, &expected.ids, Asked::Last);
    for token in &expected.greedy {
        assert_eq!(argmax(&logits[0]), *token, "{}", path.display());
        logits = append_to(&mut engine, seq, &[*token], Asked::Last);
    }
}

#[test]
fn every_family_computes_what_transformers_computes() {
    let mut seen = Vec::new();
    for name in families::FOLDERS {
        let path = families::path(name);
        let expected = families::expected(name);
        assert!(expected.rows.len() >= 4 && expected.greedy.len() >= 16);
        compare(&path, &expected);
        seen.push(ModelConfig::read(&path).unwrap().family);
    }
    for family in Family::ALL {
        assert!(seen.contains(&family), "{family:?} has no oracle");
    }
}

#[test]
fn gguf_files_of_every_architecture_compute_the_same() {
    for name in families::FILES {
        compare(&families::path(name), &families::expected(name));
    }
}

/// Windows, two rotary embeddings, norms of heads: whatever a family adds keeps rows apart, in schedules that go far beyond its
/// windows.
#[test]
fn random_schedules_on_every_family() {
    for name in families::FOLDERS.into_iter().chain(families::FILES) {
        let load = || CpuEngine::load(&families::path(name), &families::options()).unwrap();
        let mut plain = Plain::new(load());
        for seed in 0..4 {
            let schedule = Schedule::small(seed);
            let verdict = run(&mut load(), &mut plain, &schedule);
            assert!(verdict.is_ok(), "{name}: {}", verdict.unwrap_err());
        }
    }
}

#[test]
fn threads_and_instruction_sets_change_no_bit_of_any_family() {
    let ids: Vec<u32> = (0..60).map(|i| 3 + i * i * 31 % 120).collect();
    for name in families::FOLDERS {
        let mut engine = CpuEngine::load(&families::path(name), &families::options()).unwrap();
        let probe = |engine: &mut CpuEngine| -> Vec<_> {
            let seq = engine.open(64).unwrap();
            let found = append_to(engine, seq, &ids, Asked::All);
            engine.release(seq);
            found.iter().map(|row| bits(row)).collect()
        };
        let wanted = probe(&mut engine);
        for threads in 1..=3 {
            engine
                .set_threads(NonZeroUsize::new(threads).unwrap())
                .unwrap();
            for isa in Isa::available() {
                engine.set_isa(isa);
                assert!(
                    probe(&mut engine) == wanted,
                    "{name}, {isa:?}, {threads} threads"
                );
            }
        }
    }
}

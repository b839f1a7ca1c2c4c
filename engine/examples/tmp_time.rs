#![allow(unsafe_code)]
use offshoot_engine::*;
use std::ops::ControlFlow;
fn now() -> f64 { let mut t: libc::timespec = unsafe { std::mem::zeroed() }; unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) }; t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9 }
fn main() {
    let dir = std::env::args().nth(1).unwrap();
    let dtype = match std::env::args().nth(2).as_deref() { Some("f32") => Some(WeightDtype::F32), Some("bf16") => Some(WeightDtype::Bf16), _ => None };
    let threads: usize = std::env::args().nth(3).map_or(1, |s| s.parse().unwrap());
    let reps: usize = std::env::args().nth(4).map_or(10, |s| s.parse().unwrap());
    let mut e = Engine::load(dir.as_ref(), &EngineOptions { dtype, threads: threads.try_into().unwrap(), ..EngineOptions::for_sequences(512, 4) }).unwrap();
    println!("{} bytes {:.1} MB", dir, e.weight_bytes() as f64 / 1e6);
    let s = e.open(400).unwrap();
    let prompt: Vec<u32> = (0..128).map(|i| 100 + i * 7 % 1000).collect();
    let mut out = StepOutput::new();
    e.step(&[SeqRows { seq: s, append: &prompt, append_logits: AppendLogits::Last, tree: &[] }], &mut out, &mut |_| ControlFlow::Continue(())).unwrap();
    for rows in [1usize, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64] {
        let tree: Vec<TreeRow> = (0..rows).map(|i| TreeRow { token: 50 + i as u32, parent: if i % 5 == 0 { Parent::Tail } else { Parent::Slot(Slot(i as u16 - 1)) }, slot: Slot(i as u16) }).collect();
        let slots: Vec<Slot> = tree.iter().map(|t| t.slot).collect();
        let mut best = f64::MAX; let mut all = vec![];
        for _ in 0..reps {
            let t = now();
            e.step(&[SeqRows { seq: s, append: &[], append_logits: AppendLogits::None, tree: &tree }], &mut out, &mut |_| ControlFlow::Continue(())).unwrap();
            let d = now() - t;
            e.free(s, &slots);
            best = best.min(d); all.push(d);
        }
        all.sort_by(f64::total_cmp);
        println!("rows {rows:3} best {:.3} ms median {:.3} ms  GB/s {:.1} GFLOP/s {:.1}", best * 1e3, all[reps / 2] * 1e3, e.weight_bytes() as f64 / best / 1e9, 2.0 * rows as f64 * (e.weight_bytes() as f64 / match dtype { Some(WeightDtype::F32) => 4.0, _ => 2.0 }) / best / 1e9);
    }
}

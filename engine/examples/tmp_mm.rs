#![allow(unsafe_code)]
use offshoot_engine::kernels::*;
fn now() -> f64 { let mut t: libc::timespec = unsafe { std::mem::zeroed() }; unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) }; t.tv_sec as f64 + t.tv_nsec as f64 * 1e-9 }
fn main() {
    let k: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let n: usize = std::env::args().nth(2).unwrap().parse().unwrap();
    for ahead in std::env::args().skip(4).map(|s| s.parse::<usize>().unwrap()) { println!("ahead {ahead}"); 
    let count: usize = std::env::args().nth(3).unwrap().parse().unwrap();
    for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
        let ws: Vec<PackedWeight> = (0..count).map(|_| { let mut w = PackedWeight::zeros(dtype, k, n).unwrap(); w.set_outputs(0, n, |a, b| ((a * 7 + b * 13) % 100) as f32 * 0.01 - 0.5); w }).collect();
        let kernels = LaneKernels::new(Isa::best(), Pool::single());
        print!("{dtype:?} {k}x{n} x{count} {:.0} MB:", (ws[0].bytes() * count) as f64 / 1e6);
        for rows in [1usize, 2, 4, 6, 8, 10, 12, 16, 24, 32, 64] {
            let x = vec![0.3f32; rows * k]; let width = ws[0].padded_outputs();
            let mut out = vec![0.0f32; rows * width];
            let mut best = f64::MAX;
            for _ in 0..(if count * k * n > 20_000_000 { 7 } else { 60 }) {
                let t = now();
                for w in &ws { kernels.matmul(Rows::new(&x, k, rows), w, &mut RowsMut::new(&mut out, width, rows)); }
                best = best.min(now() - t);
            }
            print!("  {rows}: {:.3} ms ({:.0} GB/s {:.0} GF)", best * 1e3, (ws[0].bytes() * count) as f64 / best / 1e9, 2e-9 * (rows * k * n * count) as f64 / best);
        }
        println!();
    }
}
}

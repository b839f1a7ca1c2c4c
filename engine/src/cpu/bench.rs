//! What the machine can do, measured: the two sides of the roofline that a step is judged by.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::cpu::kernels::isa::per_isa;
use crate::cpu::kernels::{Isa, Output, Pool, RowsMut, multiply_add};

/// f32 elements read per thread: far beyond any cache.
const READ: usize = 64 << 20;
/// Rounds of the arithmetic loop.
const ROUNDS: usize = 2_000_000;
/// Repetitions, of which the best counts.
const TRIES: usize = 3;

per_isa! {
    /// Sums all of `data` into `sums`, in as many lanes as keep the memory busy.
    fn read_all(data: &[f32], sums: &mut [f32; 128]) = read_all_body;
}

#[inline(always)]
fn read_all_body(data: &[f32], sums: &mut [f32; 128]) {
    let mut lanes = *sums;
    for chunk in data.as_chunks::<128>().0 {
        for l in 0..128 {
            lanes[l] += chunk[l];
        }
    }
    *sums = lanes;
}

/// Bytes a second that `threads` threads read from memory together, each its own block beyond the caches.
///
/// # Errors
/// When the operating system gives no thread.
pub fn read_bandwidth(threads: NonZeroUsize) -> std::io::Result<f64> {
    let pool = Pool::new(threads)?;
    let isa = Isa::best();
    let count = threads.get();
    let mut data = vec![0.0_f32; READ * count];
    fill(
        &pool,
        &mut RowsMut::new(&mut data, READ, count).share(),
        count,
    );
    let seconds = best(|| {
        pool.run(count, &|i| {
            let mut sums = [0.0; 128];
            read_all(isa, &data[i * READ..(i + 1) * READ], &mut sums);
            core::hint::black_box(sums);
        });
    });
    Ok((READ * count * size_of::<f32>()) as f64 / seconds)
}

/// Touches every page from the thread that will read it.
fn fill(pool: &Pool, data: &mut Output<'_>, count: usize) {
    let data = &*data;
    pool.run(count, &|i| data.slice(i, 0, READ).fill(1.0));
}

/// f32 operations a second (a fused multiply-add is two) of `threads` threads together, in registers.
///
/// # Errors
/// When the operating system gives no thread.
pub fn peak_flops(threads: NonZeroUsize) -> std::io::Result<f64> {
    let pool = Pool::new(threads)?;
    let isa = Isa::best();
    let done = AtomicUsize::new(0);
    let seconds = best(|| {
        done.store(0, Ordering::Relaxed);
        pool.run(threads.get(), &|_| {
            done.fetch_add(multiply_add(isa, ROUNDS), Ordering::Relaxed);
        });
    });
    Ok(2.0 * done.load(Ordering::Relaxed) as f64 / seconds)
}

/// Seconds of the fastest of a few runs.
fn best(mut run: impl FnMut()) -> f64 {
    (0..TRIES)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

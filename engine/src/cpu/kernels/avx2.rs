//! The lane matmul with 256-bit vectors: a panel's 32 columns are four of them, three rows fit in the registers.
#![expect(
    unsafe_code,
    reason = "vector intrinsics load and store through raw pointers"
)]

use core::arch::x86_64::{
    __m256, _mm256_and_si256, _mm256_castsi256_ps, _mm256_cvtss_f32, _mm256_fmadd_ps,
    _mm256_load_ps, _mm256_load_si256, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_slli_epi32, _mm256_storeu_ps,
};
use core::ops::Range;

use super::pack::{Line, PANEL, PairLine, Storage};
use super::{Output, PackedWeight, Rows};

/// Rows that share one pass over a panel, at most.
const MOST_ROWS: usize = 3;

/// One row of a panel, 32 weights, widened to four vectors.
trait PanelRow: Copy {
    /// # Safety
    /// `row` points to row `k` of a panel, inside the packed weights; AVX2 is available.
    unsafe fn widen(row: *const Self) -> [__m256; 4];
}

/// A row of an f32 panel.
#[derive(Clone, Copy)]
#[repr(C)]
struct F32Row([Line; 2]);

impl PanelRow for F32Row {
    #[inline(always)]
    unsafe fn widen(row: *const Self) -> [__m256; 4] {
        let row = row.cast::<f32>();
        // SAFETY: the caller's promise; lines are 64-byte aligned.
        unsafe {
            [
                _mm256_load_ps(row),
                _mm256_load_ps(row.add(8)),
                _mm256_load_ps(row.add(16)),
                _mm256_load_ps(row.add(24)),
            ]
        }
    }
}

impl PanelRow for PairLine {
    #[inline(always)]
    unsafe fn widen(row: *const Self) -> [__m256; 4] {
        // SAFETY: the caller's promise; lines are 64-byte aligned.
        unsafe {
            let a = _mm256_load_si256(row.cast());
            let b = _mm256_load_si256(row.cast::<u32>().add(8).cast());
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            [
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
                _mm256_castsi256_ps(_mm256_and_si256(a, high)),
                _mm256_castsi256_ps(_mm256_and_si256(b, high)),
            ]
        }
    }
}

/// Writes the outputs of `panels` for every row of `x`.
///
/// # Safety
/// AVX2 and FMA are available. The caller has checked that `x` rows are at least `weight.inputs()` long.
pub(super) unsafe fn panels(
    x: Rows<'_>,
    weight: &PackedWeight,
    panels: Range<usize>,
    out: &Output,
) {
    assert!(panels.end <= weight.panels());
    // SAFETY: the range was checked just now, the rest is the caller's promise.
    match weight.storage() {
        Storage::F32(lines) => unsafe {
            all(
                x,
                lines.as_ptr().cast::<F32Row>(),
                weight.inputs(),
                panels,
                out,
            )
        },
        Storage::Bf16(lines) => unsafe { all(x, lines.as_ptr(), weight.inputs(), panels, out) },
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn all<W: PanelRow>(
    x: Rows<'_>,
    weights: *const W,
    inputs: usize,
    panels: Range<usize>,
    out: &Output,
) {
    let rows = x.rows();
    let blocks = rows.div_ceil(MOST_ROWS);
    for panel in panels {
        for b in 0..blocks {
            let first = rows * b / blocks;
            let count = rows * (b + 1) / blocks - first;
            // SAFETY: a panel of `inputs` rows lies there; the rest is the caller's promise.
            unsafe {
                let w = weights.add(panel * inputs);
                match count {
                    1 => block::<W, 1>(w, x, first, (inputs, panel), out),
                    2 => block::<W, 2>(w, x, first, (inputs, panel), out),
                    _ => block::<W, MOST_ROWS>(w, x, first, (inputs, panel), out),
                }
            }
        }
    }
}

/// `R` rows by one panel, all accumulators in registers, one pass over k.
#[target_feature(enable = "avx2,fma")]
unsafe fn block<W: PanelRow, const R: usize>(
    weights: *const W,
    x: Rows<'_>,
    first: usize,
    (inputs, panel): (usize, usize),
    out: &Output,
) {
    let rows: [*const f32; R] = core::array::from_fn(|r| x.row(first + r).as_ptr());
    let mut sums = [[_mm256_setzero_ps(); 4]; R];
    for k in 0..inputs {
        // SAFETY: row k of the panel.
        let w = unsafe { W::widen(weights.add(k)) };
        for r in 0..R {
            // SAFETY: rows are `inputs` long.
            let x = _mm256_set1_ps(unsafe { *rows[r].add(k) });
            for c in 0..4 {
                sums[r][c] = _mm256_fmadd_ps(x, w[c], sums[r][c]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let to = out.place(first + r, panel * PANEL);
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: `place` has checked that a whole panel fits there.
            unsafe { _mm256_storeu_ps(to.add(8 * c), *sum) };
        }
    }
}

/// Fused multiply-adds in registers only: `rounds` of them in each of 8 vectors, twice. Returns a value that keeps
/// them from being optimised away.
///
/// # Safety
/// AVX2 and FMA are available.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn multiply_add(rounds: usize, factor: f32) -> f32 {
    // Chains of one value would be computed once.
    let mut sums: [_; 8] = core::array::from_fn(|i| _mm256_set1_ps(i as f32));
    let (factor, one) = (_mm256_set1_ps(factor), _mm256_set1_ps(1.0));
    for _ in 0..2 * rounds {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(factor, *sum, one);
        }
    }
    sums.iter()
        .fold(0.0, |total, sum| total + _mm256_cvtss_f32(*sum))
}

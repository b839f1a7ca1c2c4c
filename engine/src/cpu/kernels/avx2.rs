//! The lane matmul with 256-bit vectors: a panel's 32 columns are four of them, three rows fit in the registers.
#![expect(
    unsafe_code,
    reason = "vector intrinsics load and store through raw pointers"
)]

use core::arch::x86_64::{
    __m256, __m256i, _mm_loadl_epi64, _mm_loadu_si128, _mm256_add_epi32, _mm256_and_si256,
    _mm256_castsi256_ps, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtepu8_epi32,
    _mm256_cvtepu16_epi32, _mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_load_ps, _mm256_load_si256,
    _mm256_mul_ps, _mm256_or_ps, _mm256_or_si256, _mm256_set1_epi32, _mm256_set1_ps,
    _mm256_setr_epi32, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32,
    _mm256_srli_epi32, _mm256_srlv_epi32, _mm256_storeu_ps, _mm256_sub_epi32, _mm256_sub_ps,
};
use core::ops::Range;

use super::blocks::{BlockPanels, Format, Layout, with_format};
use super::pack::{Line, PANEL, PairLine, Storage};
use super::{Output, PackedWeight, Rows};

/// Rows that share one pass over a panel, at most.
const MOST_ROWS: usize = 3;
/// The same for a panel of blocks, whose scales take registers too.
const MOST_QUANTISED_ROWS: usize = 2;

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
    let inputs = weight.inputs();
    for (storage, first, within) in weight.pieces(panels) {
        let run = Run {
            first,
            panels: within,
        };
        // SAFETY: the pieces are those of the weight, the rest is the caller's promise.
        unsafe {
            match storage {
                Storage::F32(lines) => all(x, lines.as_ptr().cast::<F32Row>(), inputs, run, out),
                Storage::Bf16(lines) => all(x, lines.as_ptr(), inputs, run, out),
                Storage::Blocks(blocks) => {
                    with_format!(blocks.format(), F => all_blocks::<F>(x, blocks, inputs, run, out));
                }
            }
        }
    }
}

/// Panels of one storage, whose own panels are counted from `first`.
struct Run {
    first: usize,
    panels: Range<usize>,
}

#[target_feature(enable = "avx2,fma")]
unsafe fn all<W: PanelRow>(x: Rows<'_>, weights: *const W, inputs: usize, run: Run, out: &Output) {
    let rows = x.rows();
    let blocks = rows.div_ceil(MOST_ROWS);
    for panel in run.panels {
        for b in 0..blocks {
            let first = rows * b / blocks;
            let count = rows * (b + 1) / blocks - first;
            // SAFETY: a panel of `inputs` rows lies there; the rest is the caller's promise.
            unsafe {
                let w = weights.add((panel - run.first) * inputs);
                match count {
                    1 => block::<W, 1>(w, x, first, (inputs, panel), out),
                    2 => block::<W, 2>(w, x, first, (inputs, panel), out),
                    _ => block::<W, MOST_ROWS>(w, x, first, (inputs, panel), out),
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn all_blocks<F: Format>(
    x: Rows<'_>,
    blocks: &BlockPanels,
    inputs: usize,
    run: Run,
    out: &Output,
) {
    for panel in run.panels {
        let w = blocks.panel(panel - run.first);
        for first in (0..x.rows()).step_by(MOST_QUANTISED_ROWS) {
            // SAFETY: a panel of blocks for `inputs` inputs lies there; the rest is the caller's promise.
            unsafe {
                match x.rows() - first {
                    1 => quantised::<F, 1>(w, x, first, (inputs, panel), out),
                    _ => quantised::<F, MOST_QUANTISED_ROWS>(w, x, first, (inputs, panel), out),
                }
            }
        }
    }
}

/// `R` rows by one panel of blocks, all accumulators in registers, one pass over k.
#[target_feature(enable = "avx2,fma")]
unsafe fn quantised<F: Format, const R: usize>(
    weights: *const u8,
    x: Rows<'_>,
    first: usize,
    (inputs, panel): (usize, usize),
    out: &Output,
) {
    let shape = F::LAYOUT.shape;
    let rows: [*const f32; R] = core::array::from_fn(|r| x.row(first + r).as_ptr());
    let mut sums = [[_mm256_setzero_ps(); 4]; R];
    for b in 0..inputs / shape.inputs {
        // SAFETY: panel block b of the panel.
        let (block, scale, minimum) = unsafe {
            let block = weights.add(b * F::LAYOUT.bytes);
            let minimum = match shape.minimum {
                true => halves(block.add(F::LAYOUT.minimum)),
                false => [_mm256_setzero_ps(); 4],
            };
            (block, halves(block), minimum)
        };
        for group in 0..shape.groups() {
            // SAFETY: a group of that block.
            let scale =
                unsafe { of_group(scale, block.add(F::LAYOUT.scales), group, shape.nested) };
            // SAFETY: likewise; without minima nothing is read.
            let minimum = unsafe {
                let nested = shape.nested && shape.minimum;
                of_group(minimum, block.add(F::LAYOUT.minima), group, nested)
            };
            for i in group * shape.group..(group + 1) * shape.group {
                // SAFETY: an input of that group.
                let codes = unsafe { codes::<F>(block, i) };
                let mut w = [_mm256_setzero_ps(); 4];
                for c in 0..4 {
                    w[c] = _mm256_mul_ps(scale[c], _mm256_cvtepi32_ps(codes[c]));
                    if shape.minimum {
                        w[c] = _mm256_sub_ps(w[c], minimum[c]);
                    }
                }
                for r in 0..R {
                    // SAFETY: rows are `inputs` long.
                    let x = _mm256_set1_ps(unsafe { *rows[r].add(b * shape.inputs + i) });
                    for c in 0..4 {
                        sums[r][c] = _mm256_fmadd_ps(x, w[c], sums[r][c]);
                    }
                }
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

/// 32 numbers of half precision, which are finite, as f32: their bits moved into place, the exponent put right by a
/// multiplication that is exact.
///
/// # Safety
/// 64 bytes lie there; AVX2 is available.
#[inline(always)]
unsafe fn halves(from: *const u8) -> [__m256; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        let rebias = _mm256_set1_ps(f32::from_bits((127 + 112) << 23));
        core::array::from_fn(|c| {
            let bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(16 * c).cast()));
            let size = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff));
            let sign = _mm256_and_si256(bits, _mm256_set1_epi32(0x8000));
            let size = _mm256_castsi256_ps(_mm256_slli_epi32::<13>(size));
            _mm256_or_ps(
                _mm256_mul_ps(size, rebias),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(sign)),
            )
        })
    }
}

/// What a group's scales or minima are: those of the block, times the group's bytes if it has any.
///
/// # Safety
/// With `nested`, bytes of `group` and of all groups before it lie there; AVX2 is available.
#[inline(always)]
unsafe fn of_group(of: [__m256; 4], bytes: *const u8, group: usize, nested: bool) -> [__m256; 4] {
    if !nested {
        return of;
    }
    // SAFETY: the caller's promise.
    unsafe {
        core::array::from_fn(|c| {
            let bytes = _mm_loadl_epi64(bytes.add(group * PANEL + 8 * c).cast());
            _mm256_mul_ps(of[c], _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
        })
    }
}

/// The codes of one input of a panel block, less their offset.
///
/// # Safety
/// A panel block of the format lies there, and it has that input; AVX2 is available.
#[inline(always)]
unsafe fn codes<F: Format>(block: *const u8, input: usize) -> [__m256i; 4] {
    let shape = F::LAYOUT.shape;
    // SAFETY: the caller's promise.
    unsafe {
        let low = block.add(F::LAYOUT.low + input * Layout::low_bytes(shape));
        if shape.bits == 8 {
            return core::array::from_fn(|c| {
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(low.add(8 * c).cast()))
            });
        }
        let first = _mm256_cvtepu8_epi32(_mm_loadl_epi64(low.cast()));
        let second = _mm256_cvtepu8_epi32(_mm_loadl_epi64(low.add(8).cast()));
        let mask = _mm256_set1_epi32(15);
        let mut codes = [
            _mm256_and_si256(first, mask),
            _mm256_and_si256(second, mask),
            _mm256_srli_epi32::<4>(first),
            _mm256_srli_epi32::<4>(second),
        ];
        let high = block.add(F::LAYOUT.high + input * Layout::high_bytes(shape));
        for (c, code) in codes.iter_mut().enumerate() {
            let bits = match shape.bits {
                5 => {
                    let word = _mm256_set1_epi32(high.cast::<i32>().read_unaligned());
                    let eight = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                    let shifts = _mm256_add_epi32(eight, _mm256_set1_epi32(8 * c as i32));
                    _mm256_and_si256(_mm256_srlv_epi32(word, shifts), _mm256_set1_epi32(1))
                }
                6 => {
                    let word = high.cast::<u16>().add(c).read_unaligned();
                    let word = _mm256_set1_epi32(i32::from(word));
                    let shifts = _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14);
                    _mm256_and_si256(_mm256_srlv_epi32(word, shifts), _mm256_set1_epi32(3))
                }
                _ => _mm256_setzero_si256(),
            };
            *code = _mm256_or_si256(*code, _mm256_slli_epi32::<4>(bits));
            *code = _mm256_sub_epi32(*code, _mm256_set1_epi32(shape.offset));
        }
        codes
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

//! The lane matmul with 512-bit vectors.
//!
//! A panel's 32 columns are two vectors, so up to 12 rows fit in the register file (24 accumulators) and share
//! one pass over the weights. With few rows several panels are taken at once: a fused multiply-add has four
//! cycles of latency and two can start in each, so eight accumulators are the least that keeps the units busy.
#![expect(
    unsafe_code,
    reason = "vector intrinsics load and store through raw pointers"
)]

use core::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch, _mm256_loadu_si256,
    _mm512_add_epi32, _mm512_and_si512, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cvtepi8_epi32, _mm512_cvtepi32_ps, _mm512_cvtepu8_epi32, _mm512_cvtepu16_epi32,
    _mm512_cvtss_f32, _mm512_fmadd_ps, _mm512_load_ps, _mm512_load_si512, _mm512_mul_ps,
    _mm512_or_si512, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setr_epi32, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srli_epi32, _mm512_srlv_epi32,
    _mm512_storeu_ps, _mm512_sub_epi32, _mm512_sub_ps,
};
use core::ops::Range;

use super::blocks::{BlockPanels, Format, Layout, with_format};
use super::pack::{Line, PANEL, PairLine, Storage};
use super::{Output, PackedWeight, Rows};

/// Rows that share one pass over a panel, at most.
const MOST_ROWS: usize = 12;
/// The same for a panel of blocks, whose scales and masks take registers too.
const MOST_QUANTISED_ROWS: usize = 8;

/// One row of a panel, 32 weights, widened to two vectors.
trait PanelRow: Copy {
    /// # Safety
    /// `row` points to row `k` of a panel, inside the packed weights; AVX-512F is available.
    unsafe fn widen(row: *const Self) -> [__m512; 2];
}

/// A row of an f32 panel.
#[derive(Clone, Copy)]
#[repr(C)]
struct F32Row([Line; 2]);

impl PanelRow for F32Row {
    #[inline(always)]
    unsafe fn widen(row: *const Self) -> [__m512; 2] {
        // SAFETY: the caller's promise; lines are 64-byte aligned.
        unsafe {
            [
                _mm512_load_ps(row.cast()),
                _mm512_load_ps(row.cast::<f32>().add(16)),
            ]
        }
    }
}

impl PanelRow for PairLine {
    #[inline(always)]
    unsafe fn widen(row: *const Self) -> [__m512; 2] {
        // SAFETY: the caller's promise; lines are 64-byte aligned.
        unsafe {
            let words = _mm512_load_si512(row.cast());
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)),
                _mm512_castsi512_ps(_mm512_and_si512(
                    words,
                    _mm512_set1_epi32(0xffff_0000_u32 as i32),
                )),
            ]
        }
    }
}

/// Writes the outputs of `panels` for every row of `x`.
///
/// # Safety
/// AVX-512F is available. The caller has checked that `x` rows are at least `weight.inputs()` long.
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

/// Splits the rows into equal blocks and the panels into groups; `weights` is `[panel][inputs]` rows.
#[target_feature(enable = "avx512f")]
unsafe fn all<W: PanelRow>(x: Rows<'_>, weights: *const W, inputs: usize, run: Run, out: &Output) {
    let rows = x.rows();
    let blocks = rows.div_ceil(MOST_ROWS);
    let mut panel = run.panels.start;
    while panel < run.panels.end {
        let left = run.panels.end - panel;
        // With one or two rows four panels run side by side, as far as there are four.
        let width = if rows <= 2 && left >= 4 { 4 } else { 1 };
        for b in 0..blocks {
            let first = rows * b / blocks;
            let count = rows * (b + 1) / blocks - first;
            let ahead = Ahead::new(b, blocks, inputs * size_of::<W>());
            let at = Place {
                x,
                first,
                panel,
                inputs,
                out,
                ahead,
            };
            // SAFETY: `panel + width` panels of `inputs` rows lie behind `weights`; the rest is the caller's promise.
            unsafe {
                let w = weights.add((panel - run.first) * inputs);
                match (count, width) {
                    (1, 4) => block::<W, 1, 4>(w, at),
                    (2, 4) => block::<W, 2, 4>(w, at),
                    (1, _) => block::<W, 1, 1>(w, at),
                    (2, _) => block::<W, 2, 1>(w, at),
                    (3, _) => block::<W, 3, 1>(w, at),
                    (4, _) => block::<W, 4, 1>(w, at),
                    (5, _) => block::<W, 5, 1>(w, at),
                    (6, _) => block::<W, 6, 1>(w, at),
                    (7, _) => block::<W, 7, 1>(w, at),
                    (8, _) => block::<W, 8, 1>(w, at),
                    (9, _) => block::<W, 9, 1>(w, at),
                    (10, _) => block::<W, 10, 1>(w, at),
                    (11, _) => block::<W, 11, 1>(w, at),
                    _ => block::<W, MOST_ROWS, 1>(w, at),
                }
            }
        }
        panel += width;
    }
}

/// Where a block reads and writes: rows from `first`, columns from `panel`.
#[derive(Clone, Copy)]
struct Place<'a> {
    x: Rows<'a>,
    first: usize,
    panel: usize,
    inputs: usize,
    out: &'a Output<'a>,
    ahead: Ahead,
}

/// Bytes between the weights in use and those asked for: far enough for memory, near enough to stay in the cache.
const DISTANCE: usize = 8 << 10;

/// Which weights to ask memory for while a block computes.
///
/// The hardware's prefetcher keeps up with one row but not with eight, whose loads come too slowly for it to run
/// far ahead: without this, arithmetic and memory time add up instead of overlapping.
#[derive(Clone, Copy)]
enum Ahead {
    /// The only block of its panel: [`DISTANCE`] ahead in the same stream.
    Near,
    /// One of several blocks: its share of the next panel.
    NextPanel {
        /// Bytes from the panel's start to the share.
        start: usize,
        /// One block in this many asks for each row.
        blocks: usize,
    },
}

impl Ahead {
    /// For block `b` of `blocks` over a panel of `bytes`.
    fn new(b: usize, blocks: usize, bytes: usize) -> Ahead {
        match blocks {
            1 => Ahead::Near,
            _ => Ahead::NextPanel {
                start: bytes + bytes / blocks * b,
                blocks,
            },
        }
    }

    /// Asks for what row `k` of panel `p` should bring; `P` panels of `inputs` rows run side by side.
    #[inline(always)]
    fn fetch<W, const P: usize>(self, weights: *const W, p: usize, k: usize, inputs: usize) {
        let bytes = size_of::<W>();
        match self {
            Ahead::Near => {
                let distance = DISTANCE / bytes / P;
                // Behind a panel's end comes the panel that is next in the same place, not its neighbour.
                let beyond = if k + distance < inputs {
                    0
                } else {
                    (P - 1) * inputs
                };
                let row = weights
                    .wrapping_add(p * inputs + k + distance + beyond)
                    .cast::<i8>();
                for line in 0..bytes / 64 {
                    // SAFETY: a prefetch has no effect that a program can see, wherever it points.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(64 * line)) };
                }
            }
            Ahead::NextPanel { start, blocks } => {
                // Steps of less than a line ask for some lines twice, which costs little.
                let row = weights
                    .wrapping_byte_add(start + k * (bytes / blocks))
                    .cast::<i8>();
                // SAFETY: a prefetch has no effect that a program can see, wherever it points.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(row) };
            }
        }
    }
}

/// `R` rows by `P` panels, all accumulators in registers, one pass over k.
#[target_feature(enable = "avx512f")]
unsafe fn block<W: PanelRow, const R: usize, const P: usize>(weights: *const W, at: Place<'_>) {
    let inputs = at.inputs;
    let rows: [*const f32; R] = core::array::from_fn(|r| at.x.row(at.first + r).as_ptr());
    let mut sums = [[[_mm512_setzero_ps(); 2]; P]; R];
    for k in 0..inputs {
        let mut w = [[_mm512_setzero_ps(); 2]; P];
        for (p, w) in w.iter_mut().enumerate() {
            at.ahead.fetch::<W, P>(weights, p, k, inputs);
            // SAFETY: row k of panel p, both in range.
            *w = unsafe { W::widen(weights.add(p.unchecked_mul(inputs).unchecked_add(k))) };
        }
        for r in 0..R {
            // SAFETY: rows are `inputs` long.
            let x = _mm512_set1_ps(unsafe { *rows[r].add(k) });
            for p in 0..P {
                sums[r][p][0] = _mm512_fmadd_ps(x, w[p][0], sums[r][p][0]);
                sums[r][p][1] = _mm512_fmadd_ps(x, w[p][1], sums[r][p][1]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (p, sums) in sums.iter().enumerate() {
            let to = at.out.place(at.first + r, (at.panel + p) * PANEL);
            // SAFETY: `place` has checked that a whole panel fits there.
            unsafe {
                _mm512_storeu_ps(to, sums[0]);
                _mm512_storeu_ps(to.add(16), sums[1]);
            }
        }
    }
}

/// Splits the rows into equal blocks, for panels of quantised weights.
#[target_feature(enable = "avx512f")]
unsafe fn all_blocks<F: Format>(
    x: Rows<'_>,
    weights: &BlockPanels,
    inputs: usize,
    run: Run,
    out: &Output,
) {
    let rows = x.rows();
    let blocks = rows.div_ceil(MOST_QUANTISED_ROWS);
    for panel in run.panels {
        let w = weights.panel(panel - run.first);
        for b in 0..blocks {
            let first = rows * b / blocks;
            let count = rows * (b + 1) / blocks - first;
            let at = Place {
                x,
                first,
                panel,
                inputs,
                out,
                ahead: Ahead::Near,
            };
            // SAFETY: a panel of blocks for `inputs` inputs lies there; the rest is the caller's promise.
            unsafe {
                match count {
                    1 => quantised::<F, 1>(w, at),
                    2 => quantised::<F, 2>(w, at),
                    3 => quantised::<F, 3>(w, at),
                    4 => quantised::<F, 4>(w, at),
                    5 => quantised::<F, 5>(w, at),
                    6 => quantised::<F, 6>(w, at),
                    7 => quantised::<F, 7>(w, at),
                    _ => quantised::<F, MOST_QUANTISED_ROWS>(w, at),
                }
            }
        }
    }
}

/// `R` rows by one panel of blocks, all accumulators in registers, one pass over k.
#[target_feature(enable = "avx512f")]
unsafe fn quantised<F: Format, const R: usize>(weights: *const u8, at: Place<'_>) {
    let shape = F::LAYOUT.shape;
    let rows: [*const f32; R] = core::array::from_fn(|r| at.x.row(at.first + r).as_ptr());
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for b in 0..at.inputs / shape.inputs {
        // SAFETY: panel block b of the panel.
        let (block, scale, minimum) = unsafe {
            let block = weights.add(b * F::LAYOUT.bytes);
            let minimum = match shape.minimum {
                true => halves(block.add(F::LAYOUT.minimum)),
                false => [_mm512_setzero_ps(); 2],
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
                let mut w = [_mm512_setzero_ps(); 2];
                for c in 0..2 {
                    w[c] = _mm512_mul_ps(scale[c], _mm512_cvtepi32_ps(codes[c]));
                    if shape.minimum {
                        w[c] = _mm512_sub_ps(w[c], minimum[c]);
                    }
                }
                for r in 0..R {
                    // SAFETY: rows are `inputs` long.
                    let x = _mm512_set1_ps(unsafe { *rows[r].add(b * shape.inputs + i) });
                    sums[r][0] = _mm512_fmadd_ps(x, w[0], sums[r][0]);
                    sums[r][1] = _mm512_fmadd_ps(x, w[1], sums[r][1]);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        let to = at.out.place(at.first + r, at.panel * PANEL);
        // SAFETY: `place` has checked that a whole panel fits there.
        unsafe {
            _mm512_storeu_ps(to, sums[0]);
            _mm512_storeu_ps(to.add(16), sums[1]);
        }
    }
}

/// 32 numbers of half precision, which are finite, as f32: their bits moved into place, the exponent put right by a
/// multiplication that is exact.
///
/// # Safety
/// 64 bytes lie there; AVX-512F is available.
#[inline(always)]
unsafe fn halves(from: *const u8) -> [__m512; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let rebias = _mm512_set1_ps(f32::from_bits((127 + 112) << 23));
        core::array::from_fn(|c| {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.add(32 * c).cast()));
            let size = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff));
            let sign = _mm512_and_si512(bits, _mm512_set1_epi32(0x8000));
            let size = _mm512_castsi512_ps(_mm512_slli_epi32::<13>(size));
            let size = _mm512_castps_si512(_mm512_mul_ps(size, rebias));
            _mm512_castsi512_ps(_mm512_or_si512(size, _mm512_slli_epi32::<16>(sign)))
        })
    }
}

/// What a group's scales or minima are: those of the block, times the group's bytes if it has any.
///
/// # Safety
/// With `nested`, bytes of `group` and of all groups before it lie there; AVX-512F is available.
#[inline(always)]
unsafe fn of_group(of: [__m512; 2], bytes: *const u8, group: usize, nested: bool) -> [__m512; 2] {
    if !nested {
        return of;
    }
    // SAFETY: the caller's promise.
    unsafe {
        core::array::from_fn(|c| {
            let bytes = _mm_loadu_si128(bytes.add(group * PANEL + 16 * c).cast());
            _mm512_mul_ps(of[c], _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
        })
    }
}

/// The codes of one input of a panel block, less their offset.
///
/// # Safety
/// A panel block of the format lies there, and it has that input; AVX-512F is available.
#[inline(always)]
unsafe fn codes<F: Format>(block: *const u8, input: usize) -> [__m512i; 2] {
    let shape = F::LAYOUT.shape;
    // SAFETY: the caller's promise.
    unsafe {
        let low = block.add(F::LAYOUT.low + input * Layout::low_bytes(shape));
        if shape.bits == 8 {
            return core::array::from_fn(|c| {
                _mm512_cvtepi8_epi32(_mm_loadu_si128(low.add(16 * c).cast()))
            });
        }
        let both = _mm512_cvtepu8_epi32(_mm_loadu_si128(low.cast()));
        let mut codes = [
            _mm512_and_si512(both, _mm512_set1_epi32(15)),
            _mm512_srli_epi32::<4>(both),
        ];
        let high = block.add(F::LAYOUT.high + input * Layout::high_bytes(shape));
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        for (c, code) in codes.iter_mut().enumerate() {
            let bits = match shape.bits {
                5 => {
                    let word = high.cast::<u16>().add(c).read_unaligned();
                    let word = _mm512_set1_epi32(i32::from(word));
                    _mm512_and_si512(_mm512_srlv_epi32(word, lanes), _mm512_set1_epi32(1))
                }
                6 => {
                    let word = _mm512_set1_epi32(high.cast::<i32>().add(c).read_unaligned());
                    let shifts = _mm512_add_epi32(lanes, lanes);
                    _mm512_and_si512(_mm512_srlv_epi32(word, shifts), _mm512_set1_epi32(3))
                }
                _ => _mm512_setzero_si512(),
            };
            *code = _mm512_or_si512(*code, _mm512_slli_epi32::<4>(bits));
            *code = _mm512_sub_epi32(*code, _mm512_set1_epi32(shape.offset));
        }
        codes
    }
}

/// Fused multiply-adds in registers only: `rounds` of them in each of 16 vectors. Returns a value that keeps them
/// from being optimised away.
///
/// # Safety
/// AVX-512F is available.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply_add(rounds: usize, factor: f32) -> f32 {
    // Chains of one value would be computed once.
    let mut sums: [_; 16] = core::array::from_fn(|i| _mm512_set1_ps(i as f32));
    let (factor, one) = (_mm512_set1_ps(factor), _mm512_set1_ps(1.0));
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(factor, *sum, one);
        }
    }
    sums.iter()
        .fold(0.0, |total, sum| total + _mm512_cvtss_f32(*sum))
}

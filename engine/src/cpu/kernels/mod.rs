//! The lane matmul: `y = x * w^T` for 1 to 64 rows at about the price of reading the weights once.
//!
//! One f32 accumulator per output, strictly sequential over k, fused multiply-add. Lanes are output columns, so
//! neither the row count, nor the thread count, nor the vector width can change a bit of a row's result.

use core::marker::PhantomData;
use core::ops::Range;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocks;
pub(crate) mod isa;
mod pack;
mod pool;
mod portable;
pub mod reference;

pub use isa::Isa;
pub(crate) use pack::Panel;
pub use pack::{PANEL, PackTooLarge, PackedWeight, Packing};
pub use pool::Pool;

/// A borrowed row-major matrix of f32 with a stride.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    data: &'a [f32],
    stride: usize,
    rows: usize,
}

impl<'a> Rows<'a> {
    /// `rows` rows, each `stride` elements after the one before it.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * stride`.
    #[must_use]
    pub fn new(data: &'a [f32], stride: usize, rows: usize) -> Rows<'a> {
        assert!(
            rows * stride <= data.len(),
            "{rows} rows of {stride} in {}",
            data.len()
        );
        Rows { data, stride, rows }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Elements from one row to the next.
    #[must_use]
    pub fn stride(self) -> usize {
        self.stride
    }

    /// Row `r`, `stride` elements.
    #[inline]
    #[must_use]
    pub fn row(self, r: usize) -> &'a [f32] {
        &self.data[r * self.stride..(r + 1) * self.stride]
    }
}

/// The mutable counterpart of [`Rows`].
pub struct RowsMut<'a> {
    data: &'a mut [f32],
    stride: usize,
    rows: usize,
}

impl<'a> RowsMut<'a> {
    /// `rows` rows, each `stride` elements after the one before it.
    ///
    /// # Panics
    /// When `data` is shorter than `rows * stride`.
    #[must_use]
    pub fn new(data: &'a mut [f32], stride: usize, rows: usize) -> RowsMut<'a> {
        assert!(
            rows * stride <= data.len(),
            "{rows} rows of {stride} in {}",
            data.len()
        );
        RowsMut { data, stride, rows }
    }

    /// Row `r`, `stride` elements.
    #[inline]
    #[must_use]
    pub fn row_mut(&mut self, r: usize) -> &mut [f32] {
        &mut self.data[r * self.stride..(r + 1) * self.stride]
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Splits the matrix among threads that write disjoint rectangles of it.
    pub(crate) fn share(&mut self) -> Output<'_> {
        Output {
            start: self.data.as_mut_ptr(),
            stride: self.stride,
            rows: self.rows,
            matrix: PhantomData,
        }
    }
}

/// A matrix that several threads fill, each its own rectangles.
pub(crate) struct Output<'a> {
    start: *mut f32,
    stride: usize,
    rows: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

#[expect(
    unsafe_code,
    reason = "threads write disjoint columns of one matrix, which slices cannot express"
)]
// SAFETY: the pointer stands for an exclusive borrow of plain floats; tasks never share a rectangle.
unsafe impl Sync for Output<'_> {}

impl Output<'_> {
    /// The address of element (`row`, `column`) with room for one panel behind it.
    ///
    /// # Panics
    /// When the panel does not fit in the row.
    #[inline]
    fn place(&self, row: usize, column: usize) -> *mut f32 {
        assert!(
            row < self.rows && column + PANEL <= self.stride,
            "a panel at ({row}, {column})"
        );
        self.start.wrapping_add(row * self.stride + column)
    }

    /// Writes one panel's outputs of one row.
    fn write(&self, row: usize, column: usize, values: &[f32; PANEL]) {
        self.slice(row, column, PANEL).copy_from_slice(values);
    }

    /// `len` elements of `row` from `column`, which the calling task alone may touch.
    ///
    /// # Panics
    /// When they reach beyond the row.
    #[inline]
    #[expect(
        clippy::mut_from_ref,
        reason = "the matrix is shared out in disjoint rectangles, one task each"
    )]
    pub(crate) fn slice(&self, row: usize, column: usize, len: usize) -> &mut [f32] {
        assert!(
            row < self.rows && column + len <= self.stride,
            "{len} elements at ({row}, {column})"
        );
        #[expect(
            unsafe_code,
            reason = "threads write disjoint columns of one matrix, which slices cannot express"
        )]
        // SAFETY: in range of the borrow as checked above; each task asks only for rectangles of its own.
        unsafe {
            core::slice::from_raw_parts_mut(self.start.add(row * self.stride + column), len)
        }
    }
}

/// What multiplies activations by weights: the lane kernels, or a stand-in under test.
pub trait Matmul: Send {
    /// Writes `out[r][..weight.outputs()] = x[r][..weight.inputs()] * w^T` for every row; the rest of an output row,
    /// up to `weight.padded_outputs()`, may be overwritten.
    fn matmul(&self, x: Rows<'_>, weight: &PackedWeight, out: &mut RowsMut<'_>);
}

/// The lane kernels of one instruction set, on the calling thread and, where there is a pool, on its workers.
pub struct LaneKernels {
    isa: Isa,
    pool: Pool,
}

/// Below this many multiply-adds a matmul stays on the calling thread: waking others would cost more.
const WORTH_SHARING: usize = 200_000;

impl LaneKernels {
    /// Kernels for `isa` that share their work over `pool`.
    #[must_use]
    pub fn new(isa: Isa, pool: Pool) -> LaneKernels {
        LaneKernels { isa, pool }
    }

    /// The instruction set in use.
    #[must_use]
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Changes the instruction set. Results stay the same, bit for bit.
    pub fn set_isa(&mut self, isa: Isa) {
        self.isa = isa;
    }

    /// The threads in use.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    fn panels(&self, x: Rows<'_>, weight: &PackedWeight, panels: Range<usize>, out: &Output<'_>) {
        match self.isa.level() {
            isa::Level::Portable => portable::panels(x, weight, panels, out),
            #[cfg(target_arch = "x86_64")]
            #[expect(
                unsafe_code,
                reason = "calling into a target feature; the Isa value proves the machine has it"
            )]
            // SAFETY: an `Isa` of this level exists only where detected; `matmul` checks the row length.
            isa::Level::Avx2 => unsafe { avx2::panels(x, weight, panels, out) },
            #[cfg(target_arch = "x86_64")]
            #[expect(
                unsafe_code,
                reason = "calling into a target feature; the Isa value proves the machine has it"
            )]
            // SAFETY: an `Isa` of this level exists only where detected; `matmul` checks the row length.
            isa::Level::Avx512 => unsafe { avx512::panels(x, weight, panels, out) },
        }
    }
}

impl Matmul for LaneKernels {
    /// # Panics
    /// When `x` is narrower than the weight's inputs, or `out` narrower than its padded outputs or shorter than `x`.
    fn matmul(&self, x: Rows<'_>, weight: &PackedWeight, out: &mut RowsMut<'_>) {
        assert!(
            x.stride() >= weight.inputs(),
            "input rows of {} for {}",
            x.stride(),
            weight.inputs()
        );
        assert!(
            out.rows() >= x.rows(),
            "{} output rows for {}",
            out.rows(),
            x.rows()
        );
        let panels = weight.panels();
        let out = out.share();
        let threads = self.pool.threads();
        if threads == 1 || panels * PANEL * weight.inputs() * x.rows() < WORTH_SHARING {
            return self.panels(x, weight, 0..panels, &out);
        }
        // Chunks of four panels are what the one-row kernel takes at once; more chunks than threads even out a
        // core that somebody else is using.
        let chunk = (panels / (threads * 4)).max(4).next_multiple_of(4);
        self.pool.run(panels.div_ceil(chunk), &|task| {
            let first = task * chunk;
            self.panels(x, weight, first..(first + chunk).min(panels), &out);
        });
    }
}

/// Runs `rounds` fused multiply-adds in each of sixteen vectors, without touching memory, and returns how many
/// single-number multiply-adds that were.
pub(crate) fn multiply_add(isa: Isa, rounds: usize) -> usize {
    let factor = core::hint::black_box(0.5);
    let (result, lanes) = match isa.level() {
        isa::Level::Portable => (portable::multiply_add(rounds, factor), 16),
        #[cfg(target_arch = "x86_64")]
        #[expect(
            unsafe_code,
            reason = "calling into a target feature; the Isa value proves the machine has it"
        )]
        // SAFETY: an `Isa` of this level exists only where detected.
        isa::Level::Avx2 => (unsafe { avx2::multiply_add(rounds, factor) }, 2 * 8 * 8),
        #[cfg(target_arch = "x86_64")]
        #[expect(
            unsafe_code,
            reason = "calling into a target feature; the Isa value proves the machine has it"
        )]
        // SAFETY: an `Isa` of this level exists only where detected.
        isa::Level::Avx512 => (unsafe { avx512::multiply_add(rounds, factor) }, 16 * 16),
    };
    core::hint::black_box(result);
    rounds * lanes
}

#[cfg(test)]
mod tests;

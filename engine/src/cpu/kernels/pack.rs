//! Matmul weights, packed in panels of [`PANEL`] output columns so that a kernel streams them once, in order.

use half::bf16;

use crate::load::LoadError;
use crate::options::WeightDtype;

/// Output columns of one panel: two 16-lane vectors.
pub const PANEL: usize = 32;

/// Sixteen f32 weights: half a panel's row. One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

/// Thirty-two bf16 weights, a panel's whole row: word j holds column j in its low half and column j + 16 in its
/// high half, so that a shift and a mask widen it to two vectors without moving anything across lanes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct PairLine(pub(crate) [u32; 16]);

/// The weights' storage, `[panel][input][32 outputs]`.
pub(crate) enum Storage {
    F32(Vec<Line>),
    Bf16(Vec<PairLine>),
}

/// A weight matrix `y[n] = sum_k x[k] * w[n][k]`, packed; outputs are padded with zero columns to whole panels.
pub struct PackedWeight {
    inputs: usize,
    outputs: usize,
    storage: Storage,
}

/// The packed matrix would not fit in memory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a weight matrix of {outputs} x {inputs} does not fit in memory")]
pub struct PackTooLarge {
    /// Rows of the checkpoint's matrix.
    pub outputs: usize,
    /// Columns of the checkpoint's matrix.
    pub inputs: usize,
}

impl From<PackTooLarge> for LoadError {
    fn from(PackTooLarge { outputs, inputs }: PackTooLarge) -> LoadError {
        LoadError::WeightTooLarge { outputs, inputs }
    }
}

impl PackedWeight {
    /// A zero matrix of `outputs x inputs`.
    ///
    /// # Errors
    /// When the size overflows or the memory cannot be reserved.
    pub fn zeros(
        dtype: WeightDtype,
        inputs: usize,
        outputs: usize,
    ) -> Result<PackedWeight, PackTooLarge> {
        let too_large = PackTooLarge { outputs, inputs };
        let Some(rows) = outputs.div_ceil(PANEL).checked_mul(inputs) else {
            return Err(too_large);
        };
        let storage = match dtype {
            WeightDtype::F32 => {
                let mut lines: Vec<Line> = Vec::new();
                let Some(len) = rows.checked_mul(2) else {
                    return Err(too_large);
                };
                if lines.try_reserve_exact(len).is_err() {
                    return Err(too_large);
                }
                advise_huge(lines.as_ptr().cast(), len);
                lines.resize(len, Line([0.0; 16]));
                Storage::F32(lines)
            }
            WeightDtype::Bf16 => {
                let mut lines: Vec<PairLine> = Vec::new();
                if lines.try_reserve_exact(rows).is_err() {
                    return Err(too_large);
                }
                advise_huge(lines.as_ptr().cast(), rows);
                lines.resize(rows, PairLine([0; 16]));
                Storage::Bf16(lines)
            }
        };
        Ok(PackedWeight {
            inputs,
            outputs,
            storage,
        })
    }

    /// Packs a row-major `outputs x inputs` matrix.
    ///
    /// # Errors
    /// As [`PackedWeight::zeros`].
    ///
    /// # Panics
    /// When `weight` is not `outputs * inputs` long.
    pub fn pack(
        dtype: WeightDtype,
        inputs: usize,
        outputs: usize,
        weight: &[f32],
    ) -> Result<PackedWeight, PackTooLarge> {
        assert_eq!(
            Some(weight.len()),
            inputs.checked_mul(outputs),
            "a row-major outputs x inputs matrix"
        );
        let mut packed = PackedWeight::zeros(dtype, inputs, outputs)?;
        packed.set_outputs(0, outputs, |n, k| weight[n * inputs + k]);
        Ok(packed)
    }

    /// Writes the columns of outputs `first .. first + count`; `at(n, k)` is the weight from input k to the n-th of
    /// them. bf16 storage rounds to nearest even.
    ///
    /// # Panics
    /// When the range reaches beyond [`PackedWeight::outputs`].
    pub fn set_outputs(&mut self, first: usize, count: usize, at: impl Fn(usize, usize) -> f32) {
        assert!(
            first + count <= self.outputs,
            "outputs {first}+{count} of {}",
            self.outputs
        );
        let inputs = self.inputs;
        let mut n = 0;
        while n < count {
            let column = first + n;
            let (panel, lane) = (column / PANEL, column % PANEL);
            let width = (PANEL - lane).min(count - n);
            let base = panel * inputs;
            for k in 0..inputs {
                match &mut self.storage {
                    Storage::F32(lines) => {
                        let row = &mut lines[2 * (base + k)..2 * (base + k) + 2];
                        for j in 0..width {
                            row[(lane + j) / 16].0[(lane + j) % 16] = at(n + j, k);
                        }
                    }
                    Storage::Bf16(lines) => {
                        let row = &mut lines[base + k].0;
                        for j in 0..width {
                            let bits = u32::from(bf16::from_f32(at(n + j, k)).to_bits());
                            let (word, shift) = ((lane + j) % 16, 16 * ((lane + j) / 16));
                            row[word] = (row[word] & !(0xffff << shift)) | (bits << shift);
                        }
                    }
                }
            }
            n += width;
        }
    }

    /// The stored weight from input `k` to output `n`, widened to f32.
    ///
    /// # Panics
    /// When `n` or `k` is out of range.
    #[inline]
    #[must_use]
    pub fn at(&self, n: usize, k: usize) -> f32 {
        assert!(
            n < self.outputs && k < self.inputs,
            "({n}, {k}) of {} x {}",
            self.outputs,
            self.inputs
        );
        let (row, lane) = ((n / PANEL) * self.inputs + k, n % PANEL);
        match &self.storage {
            Storage::F32(lines) => lines[2 * row + lane / 16].0[lane % 16],
            Storage::Bf16(lines) => {
                f32::from_bits((lines[row].0[lane % 16] >> (16 * (lane / 16))) << 16)
            }
        }
    }

    /// Length of an input row.
    #[must_use]
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Length of an output row, without padding.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Length of an output row as kernels write it: [`PackedWeight::outputs`] rounded up to whole panels.
    #[must_use]
    pub fn padded_outputs(&self) -> usize {
        self.panels() * PANEL
    }

    /// Number of panels.
    #[must_use]
    pub fn panels(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    /// Storage type.
    #[must_use]
    pub fn dtype(&self) -> WeightDtype {
        match self.storage {
            Storage::F32(_) => WeightDtype::F32,
            Storage::Bf16(_) => WeightDtype::Bf16,
        }
    }

    /// Bytes a kernel reads to apply the matrix once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.panels() * PANEL * self.inputs * self.dtype().bytes()
    }

    pub(crate) fn storage(&self) -> &Storage {
        &self.storage
    }
}

/// Asks for huge pages behind a large allocation of cache lines: streaming gigabytes through 4 KiB pages spends a
/// visible share of the bandwidth on page walks. Advice only; failure changes nothing.
fn advise_huge(start: *const u8, lines: usize) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let address = start as usize;
        let first = address.next_multiple_of(HUGE);
        let end = address.saturating_add(lines.saturating_mul(64)) / HUGE * HUGE;
        if first < end {
            #[expect(
                unsafe_code,
                reason = "madvise has no safe wrapper for memory that a Vec owns"
            )]
            // SAFETY: [first, end) lies inside an allocation we own, and this advice never changes its contents.
            unsafe {
                libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (start, lines);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_comes_back() {
        for (inputs, outputs) in [(1, 1), (3, 31), (5, 32), (7, 33), (16, 100)] {
            let weight: Vec<f32> = (0..inputs * outputs)
                .map(|i| i as f32 * 0.37 - 3.0)
                .collect();
            for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
                let packed = PackedWeight::pack(dtype, inputs, outputs, &weight).unwrap();
                for n in 0..outputs {
                    for k in 0..inputs {
                        let want = weight[n * inputs + k];
                        let want = match dtype {
                            WeightDtype::F32 => want,
                            WeightDtype::Bf16 => bf16::from_f32(want).to_f32(),
                        };
                        assert_eq!(packed.at(n, k), want);
                    }
                }
            }
        }
    }

    #[test]
    fn parts_land_side_by_side() {
        let mut packed = PackedWeight::zeros(WeightDtype::Bf16, 2, 50).unwrap();
        packed.set_outputs(0, 20, |n, k| (n * 2 + k) as f32);
        packed.set_outputs(20, 30, |n, k| -((n * 2 + k) as f32));
        assert_eq!(packed.at(19, 1), 39.0);
        assert_eq!(packed.at(20, 1), -1.0);
        assert_eq!(packed.at(49, 1), -59.0);
        assert_eq!(packed.padded_outputs(), 64);
    }

    #[test]
    fn an_impossible_size_is_refused() {
        assert!(PackedWeight::zeros(WeightDtype::F32, usize::MAX / 2, 64).is_err());
    }
}

//! Matmul weights, packed in panels of [`PANEL`] output columns so that a kernel streams them once, in order.

use core::ops::Range;

use gguf::{Block, BlockFormat};
use half::bf16;

use super::blocks::{BlockPanel, BlockPanels};
use crate::load::LoadError;

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

/// How weights lie in memory. Arithmetic is f32 fused multiply-add whatever it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Packing {
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight, widened exactly to f32 as it is read.
    Bf16,
    /// In blocks, each weight made an f32 as it is read.
    Blocks(BlockFormat),
}

/// The weights' storage, `[panel][input][32 outputs]` or panel blocks.
pub(crate) enum Storage {
    F32(Vec<Line>),
    Bf16(Vec<PairLine>),
    Blocks(BlockPanels),
}

/// Neighbouring panels of one packing.
pub(crate) struct Segment {
    /// The first of them.
    pub(crate) first: usize,
    /// How many there are.
    pub(crate) panels: usize,
    pub(crate) storage: Storage,
}

/// A weight matrix `y[n] = sum_k x[k] * w[n][k]`, packed; outputs are padded with zero columns to whole panels.
pub struct PackedWeight {
    inputs: usize,
    outputs: usize,
    segments: Vec<Segment>,
}

/// One panel of a weight, to be written.
pub(crate) struct Panel<'a> {
    /// Its first output.
    pub(crate) first: usize,
    /// How many it has, padding not counted.
    pub(crate) outputs: usize,
    lines: PanelLines<'a>,
}

enum PanelLines<'a> {
    F32(&'a mut [Line]),
    Bf16(&'a mut [PairLine]),
    Blocks(BlockPanel<'a>),
}

impl Panel<'_> {
    /// The format of its blocks; none where it has numbers.
    pub(crate) fn blocks(&self) -> Option<BlockFormat> {
        match &self.lines {
            PanelLines::F32(_) | PanelLines::Bf16(_) => None,
            PanelLines::Blocks(blocks) => Some(blocks.format),
        }
    }

    /// Writes some outputs of the panel; `at(n, k)` is the weight from input k to the n-th of them. bf16 storage rounds to nearest
    /// even.
    ///
    /// # Panics
    /// When the panel has blocks.
    pub(crate) fn set(&mut self, outputs: Range<usize>, at: impl Fn(usize, usize) -> f32) {
        match &mut self.lines {
            PanelLines::F32(lines) => {
                for (k, row) in lines.chunks_exact_mut(2).enumerate() {
                    for (n, lane) in outputs.clone().enumerate() {
                        row[lane / 16].0[lane % 16] = at(n, k);
                    }
                }
            }
            PanelLines::Bf16(lines) => {
                for (k, row) in lines.iter_mut().enumerate() {
                    for (n, lane) in outputs.clone().enumerate() {
                        let bits = u32::from(bf16::from_f32(at(n, k)).to_bits());
                        let (word, shift) = (&mut row.0[lane % 16], 16 * (lane / 16));
                        *word = (*word & !(0xffff << shift)) | (bits << shift);
                    }
                }
            }
            PanelLines::Blocks(_) => panic!("output {} is in blocks", self.first),
        }
    }

    /// Writes a block of the n-th output of the panel, once.
    ///
    /// # Panics
    /// When the panel has no blocks.
    pub(crate) fn set_block(&mut self, n: usize, block: usize, from: &Block) {
        let PanelLines::Blocks(panel) = &mut self.lines else {
            panic!("output {} is not in blocks", self.first + n);
        };
        panel.set(block, n, from);
    }
}

/// The packed matrix would not fit in memory.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
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

/// Reserves lines, if their number is one, and fills them.
pub(super) fn reserve<L: Clone>(
    len: Option<usize>,
    zero: L,
    too_large: PackTooLarge,
) -> Result<Vec<L>, PackTooLarge> {
    let mut lines: Vec<L> = Vec::new();
    match len {
        Some(len) if lines.try_reserve_exact(len).is_ok() => {
            advise_huge(lines.as_ptr().cast(), len);
            lines.resize(len, zero);
            Ok(lines)
        }
        _ => Err(too_large),
    }
}

impl PackedWeight {
    /// A zero matrix of `outputs x inputs`.
    ///
    /// # Errors
    /// When the size overflows or the memory cannot be reserved.
    ///
    /// # Panics
    /// When `inputs` is not a whole number of the packing's blocks.
    pub fn zeros(
        packing: Packing,
        inputs: usize,
        outputs: usize,
    ) -> Result<PackedWeight, PackTooLarge> {
        PackedWeight::side_by_side(inputs, &[(packing, outputs)])
    }

    /// A zero matrix whose outputs are those of several parts, each with a packing of its own. Parts of different packings that
    /// share a panel become f32.
    ///
    /// # Errors
    /// As [`PackedWeight::zeros`].
    ///
    /// # Panics
    /// As [`PackedWeight::zeros`].
    pub fn side_by_side(
        inputs: usize,
        parts: &[(Packing, usize)],
    ) -> Result<PackedWeight, PackTooLarge> {
        let outputs = parts
            .iter()
            .try_fold(0_usize, |sum, (_, n)| sum.checked_add(*n));
        let too_large = PackTooLarge {
            outputs: outputs.unwrap_or(usize::MAX),
            inputs,
        };
        let outputs = outputs.ok_or(too_large)?;
        let mut runs: Vec<(Packing, usize)> = Vec::new();
        for &(packing, count) in parts {
            match runs.last_mut() {
                Some((last, before)) if *last == packing => *before += count,
                Some((last, before)) if !before.is_multiple_of(PANEL) => {
                    *last = Packing::F32;
                    *before += count;
                }
                _ => runs.push((packing, count)),
            }
        }
        let mut segments = Vec::new();
        let mut first = 0;
        for (packing, count) in runs {
            let panels = count.div_ceil(PANEL);
            let rows = panels.checked_mul(inputs);
            let storage = match packing {
                Packing::F32 => {
                    let len = rows.and_then(|rows| rows.checked_mul(2));
                    Storage::F32(reserve(len, Line([0.0; 16]), too_large)?)
                }
                Packing::Bf16 => Storage::Bf16(reserve(rows, PairLine([0; 16]), too_large)?),
                Packing::Blocks(format) => {
                    Storage::Blocks(BlockPanels::zeros(format, inputs, panels, too_large)?)
                }
            };
            segments.push(Segment {
                first,
                panels,
                storage,
            });
            first += panels;
        }
        Ok(PackedWeight {
            inputs,
            outputs,
            segments,
        })
    }

    /// Packs a row-major `outputs x inputs` matrix as f32 or bf16.
    ///
    /// # Errors
    /// As [`PackedWeight::zeros`].
    ///
    /// # Panics
    /// When `weight` is not `outputs * inputs` long, or the packing is one of blocks.
    pub fn pack(
        packing: Packing,
        inputs: usize,
        outputs: usize,
        weight: &[f32],
    ) -> Result<PackedWeight, PackTooLarge> {
        assert_eq!(
            Some(weight.len()),
            inputs.checked_mul(outputs),
            "a row-major outputs x inputs matrix"
        );
        let mut packed = PackedWeight::zeros(packing, inputs, outputs)?;
        packed.set_outputs(0, outputs, |n, k| weight[n * inputs + k]);
        Ok(packed)
    }

    /// The segment with this output, and the output's panel in it.
    fn segment(&self, output: usize) -> (usize, usize) {
        let panel = output / PANEL;
        let at = self
            .segments
            .partition_point(|s| s.first + s.panels <= panel);
        (at, panel - self.segments[at].first)
    }

    /// How an output's weights lie in memory.
    ///
    /// # Panics
    /// When there is no such output.
    #[must_use]
    pub fn packing(&self, output: usize) -> Packing {
        match &self.segments[self.segment(output).0].storage {
            Storage::F32(_) => Packing::F32,
            Storage::Bf16(_) => Packing::Bf16,
            Storage::Blocks(blocks) => Packing::Blocks(blocks.format()),
        }
    }

    /// The panels in order, to be written; several threads may each take some.
    pub(crate) fn panels_mut(&mut self) -> impl Iterator<Item = Panel<'_>> {
        let (inputs, outputs) = (self.inputs, self.outputs);
        let lines = self.segments.iter_mut().flat_map(move |segment| {
            let lines: Box<dyn Iterator<Item = PanelLines<'_>> + '_> = match &mut segment.storage {
                Storage::F32(lines) => {
                    Box::new(lines.chunks_exact_mut(2 * inputs).map(PanelLines::F32))
                }
                Storage::Bf16(lines) => {
                    Box::new(lines.chunks_exact_mut(inputs).map(PanelLines::Bf16))
                }
                Storage::Blocks(panels) => Box::new(panels.panels_mut().map(PanelLines::Blocks)),
            };
            lines
        });
        lines.enumerate().map(move |(n, lines)| Panel {
            first: n * PANEL,
            outputs: PANEL.min(outputs - n * PANEL),
            lines,
        })
    }

    /// Writes the columns of outputs `first .. first + count`, which are not in blocks; `at(n, k)` is the weight from input k to
    /// the n-th of them. bf16 storage rounds to nearest even.
    ///
    /// # Panics
    /// When the range reaches beyond [`PackedWeight::outputs`], or into blocks.
    pub fn set_outputs(&mut self, first: usize, count: usize, at: impl Fn(usize, usize) -> f32) {
        assert!(
            first + count <= self.outputs,
            "outputs {first}+{count} of {}",
            self.outputs
        );
        for mut panel in self.panels_mut() {
            let begin = first.max(panel.first);
            let end = (first + count).min(panel.first + panel.outputs);
            if begin < end {
                let lanes = begin - panel.first..end - panel.first;
                panel.set(lanes, |n, k| at(begin - first + n, k));
            }
        }
    }

    /// Writes the blocks of one output, once.
    ///
    /// # Panics
    /// When the output is not in blocks.
    pub fn set_blocks(&mut self, output: usize, blocks: impl Iterator<Item = Block>) {
        let mut panel =
            (self.panels_mut().nth(output / PANEL)).expect("the output is one of the matrix");
        for (n, block) in blocks.enumerate() {
            panel.set_block(output % PANEL, n, &block);
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
        let (segment, panel) = self.segment(n);
        let (row, lane) = (panel * self.inputs + k, n % PANEL);
        match &self.segments[segment].storage {
            Storage::F32(lines) => lines[2 * row + lane / 16].0[lane % 16],
            Storage::Bf16(lines) => {
                f32::from_bits((lines[row].0[lane % 16] >> (16 * (lane / 16))) << 16)
            }
            Storage::Blocks(panels) => panels.at(panel, lane, k),
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

    /// Bytes a kernel reads to apply the matrix once.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let bytes = |segment: &Segment| match &segment.storage {
            Storage::F32(lines) => size_of_val(&lines[..]),
            Storage::Bf16(lines) => size_of_val(&lines[..]),
            Storage::Blocks(panels) => panels.bytes(),
        };
        self.segments.iter().map(bytes).sum()
    }

    /// The storage of some panels, piece by piece: where it lies, which panel is its first, and which of the panels are in it.
    pub(crate) fn pieces(
        &self,
        panels: Range<usize>,
    ) -> impl Iterator<Item = (&Storage, usize, Range<usize>)> {
        self.segments.iter().filter_map(move |segment| {
            let end = segment.first + segment.panels;
            let within = panels.start.max(segment.first)..panels.end.min(end);
            (!within.is_empty()).then_some((&segment.storage, segment.first, within))
        })
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
            for packing in [Packing::F32, Packing::Bf16] {
                let packed = PackedWeight::pack(packing, inputs, outputs, &weight).unwrap();
                for n in 0..outputs {
                    for k in 0..inputs {
                        let want = weight[n * inputs + k];
                        let want = match packing {
                            Packing::Bf16 => bf16::from_f32(want).to_f32(),
                            _ => want,
                        };
                        assert_eq!(packed.at(n, k), want);
                    }
                }
            }
        }
    }

    #[test]
    fn parts_land_side_by_side() {
        let mut packed = PackedWeight::zeros(Packing::Bf16, 2, 50).unwrap();
        packed.set_outputs(0, 20, |n, k| (n * 2 + k) as f32);
        packed.set_outputs(20, 30, |n, k| -((n * 2 + k) as f32));
        assert_eq!(packed.at(19, 1), 39.0);
        assert_eq!(packed.at(20, 1), -1.0);
        assert_eq!(packed.at(49, 1), -59.0);
        assert_eq!(packed.padded_outputs(), 64);
    }

    #[test]
    fn an_impossible_size_is_refused() {
        assert!(PackedWeight::zeros(Packing::F32, usize::MAX / 2, 64).is_err());
    }
}

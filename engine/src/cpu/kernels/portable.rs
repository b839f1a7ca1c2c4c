//! The lane matmul in plain Rust.

use core::ops::Range;

use super::pack::{PANEL, Storage};
use super::{Output, PackedWeight, Rows};

/// Rows that share one pass over a panel.
const BLOCK: usize = 4;

/// Writes the outputs of `panels` for every row of `x`.
pub(super) fn panels(x: Rows<'_>, weight: &PackedWeight, panels: Range<usize>, out: &Output) {
    for (storage, first, within) in weight.pieces(panels) {
        for panel in within {
            let place = Place {
                storage,
                local: panel - first,
                inputs: weight.inputs(),
                column: panel * PANEL,
                out,
            };
            let mut r = 0;
            while r < x.rows() {
                if x.rows() - r >= BLOCK {
                    block::<BLOCK>(x, r, &place);
                    r += BLOCK;
                } else {
                    block::<1>(x, r, &place);
                    r += 1;
                }
            }
        }
    }
}

/// Where a panel's weights are, and where its outputs go.
struct Place<'a> {
    storage: &'a Storage,
    /// The panel, counted from the first of its storage.
    local: usize,
    inputs: usize,
    column: usize,
    out: &'a Output<'a>,
}

fn block<const R: usize>(x: Rows<'_>, first: usize, place: &Place<'_>) {
    let (inputs, panel) = (place.inputs, place.local);
    let mut sums = [[0.0_f32; PANEL]; R];
    let rows: [&[f32]; R] = core::array::from_fn(|i| &x.row(first + i)[..inputs]);
    let mut add = |k: usize, w: [f32; PANEL]| {
        for (sums, row) in sums.iter_mut().zip(rows) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = row[k].mul_add(w, *sum);
            }
        }
    };
    match place.storage {
        Storage::F32(lines) => {
            for k in 0..inputs {
                let at = 2 * (panel * inputs + k);
                let mut w = [0.0_f32; PANEL];
                w[..16].copy_from_slice(&lines[at].0);
                w[16..].copy_from_slice(&lines[at + 1].0);
                add(k, w);
            }
        }
        Storage::Bf16(lines) => {
            for k in 0..inputs {
                let mut w = [0.0_f32; PANEL];
                for (j, word) in lines[panel * inputs + k].0.iter().enumerate() {
                    w[j] = f32::from_bits(word << 16);
                    w[16 + j] = f32::from_bits(word & 0xffff_0000);
                }
                add(k, w);
            }
        }
        Storage::Blocks(panels) => {
            for (b, block) in panels.blocks(panel).enumerate() {
                let shape = block.shape();
                for group in 0..shape.groups() {
                    let scales: [_; PANEL] = core::array::from_fn(|j| block.scale(group, j));
                    for i in group * shape.group..(group + 1) * shape.group {
                        let w = core::array::from_fn(|j| block.weight(i, j, scales[j]));
                        add(b * shape.inputs + i, w);
                    }
                }
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        place.out.write(first + i, place.column, sums);
    }
}

/// Fused multiply-adds without memory: `rounds` of them in each of 16 chains.
pub(super) fn multiply_add(rounds: usize, factor: f32) -> f32 {
    let mut sums = [factor; 16];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = sum.mul_add(factor, 1.0);
        }
    }
    sums.iter().sum()
}

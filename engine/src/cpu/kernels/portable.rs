//! The lane matmul in plain Rust.

use core::ops::Range;

use super::pack::{PANEL, Storage};
use super::{Output, PackedWeight, Rows};

/// Rows that share one pass over a panel.
const BLOCK: usize = 4;

/// Writes the outputs of `panels` for every row of `x`.
pub(super) fn panels(x: Rows<'_>, weight: &PackedWeight, panels: Range<usize>, out: &Output) {
    for panel in panels {
        let mut r = 0;
        while r < x.rows() {
            if x.rows() - r >= BLOCK {
                block::<BLOCK>(x, r, weight, panel, out);
                r += BLOCK;
            } else {
                block::<1>(x, r, weight, panel, out);
                r += 1;
            }
        }
    }
}

fn block<const R: usize>(
    x: Rows<'_>,
    first: usize,
    weight: &PackedWeight,
    panel: usize,
    out: &Output,
) {
    let inputs = weight.inputs();
    let mut sums = [[0.0_f32; PANEL]; R];
    let rows: [&[f32]; R] = core::array::from_fn(|i| &x.row(first + i)[..inputs]);
    for k in 0..inputs {
        let mut w = [0.0_f32; PANEL];
        match weight.storage() {
            Storage::F32(lines) => {
                let at = 2 * (panel * inputs + k);
                w[..16].copy_from_slice(&lines[at].0);
                w[16..].copy_from_slice(&lines[at + 1].0);
            }
            Storage::Bf16(lines) => {
                for (j, word) in lines[panel * inputs + k].0.iter().enumerate() {
                    w[j] = f32::from_bits(word << 16);
                    w[16 + j] = f32::from_bits(word & 0xffff_0000);
                }
            }
        }
        for (sums, row) in sums.iter_mut().zip(rows) {
            for (sum, w) in sums.iter_mut().zip(w) {
                *sum = row[k].mul_add(w, *sum);
            }
        }
    }
    for (i, sums) in sums.iter().enumerate() {
        out.write(first + i, panel * PANEL, sums);
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

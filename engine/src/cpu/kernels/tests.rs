//! Every kernel against the reference, bit for bit.

use std::num::NonZeroUsize;

use super::*;
use crate::options::WeightDtype;

/// Reproducible values in about [-1, 1), with some exact zeros and large ones among them.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            match state % 97 {
                0 => 0.0,
                1 => value * 1e6,
                2 => -0.0,
                _ => value,
            }
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_kernel_equals_the_reference_bit_for_bit() {
    for (inputs, outputs) in [
        (1, 1),
        (17, 33),
        (48, 32),
        (96, 288),
        (128, 257),
        (33, 4 * PANEL + 5),
    ] {
        let weight = noise(inputs * outputs, 1 + inputs as u64);
        for dtype in [WeightDtype::F32, WeightDtype::Bf16] {
            let packed = PackedWeight::pack(dtype, inputs, outputs, &weight).unwrap();
            let width = packed.padded_outputs();
            for rows in (1..=16).chain([24, 25, 31, 48, 63, 64]) {
                let stride = inputs + 3;
                let x = noise(rows * stride, rows as u64);
                let x = Rows::new(&x, stride, rows);
                let mut want = vec![0.0; rows * width];
                reference::matmul(x, &packed, &mut RowsMut::new(&mut want, width, rows));
                for isa in Isa::available() {
                    for threads in [1, 2, 3] {
                        let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
                        let mut got = vec![f32::NAN; rows * width];
                        LaneKernels::new(isa, pool).matmul(
                            x,
                            &packed,
                            &mut RowsMut::new(&mut got, width, rows),
                        );
                        for r in 0..rows {
                            let range = r * width..r * width + outputs;
                            assert_eq!(
                                bits(&got[range.clone()]),
                                bits(&want[range]),
                                "{inputs}x{outputs} {dtype:?} row {r} of {rows}, {isa:?}, {threads} threads"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "input rows")]
fn a_row_too_narrow_is_refused() {
    let packed = PackedWeight::zeros(WeightDtype::F32, 8, 8).unwrap();
    let mut out = [0.0; PANEL];
    let kernels = LaneKernels::new(Isa::best(), Pool::single());
    kernels.matmul(
        Rows::new(&[0.0; 7], 7, 1),
        &packed,
        &mut RowsMut::new(&mut out, PANEL, 1),
    );
}

//! Every kernel against the reference, bit for bit.

use std::num::NonZeroUsize;

use gguf::BlockFormat;

use super::*;

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

/// Compares all kernels with the reference, for these numbers of rows.
fn check(packed: &PackedWeight, rows: impl Iterator<Item = usize>, what: &str) {
    let (inputs, outputs, width) = (packed.inputs(), packed.outputs(), packed.padded_outputs());
    for rows in rows {
        let stride = inputs + 3;
        let x = noise(rows * stride, rows as u64);
        let x = Rows::new(&x, stride, rows);
        let mut want = vec![0.0; rows * width];
        reference::matmul(x, packed, &mut RowsMut::new(&mut want, width, rows));
        for isa in Isa::available() {
            for threads in [1, 2, 3] {
                let pool = Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap();
                let mut got = vec![f32::NAN; rows * width];
                LaneKernels::new(isa, pool).matmul(
                    x,
                    packed,
                    &mut RowsMut::new(&mut got, width, rows),
                );
                for r in 0..rows {
                    let range = r * width..r * width + outputs;
                    assert_eq!(
                        bits(&got[range.clone()]),
                        bits(&want[range]),
                        "{inputs}x{outputs} {what} row {r} of {rows}, {isa:?}, {threads} threads"
                    );
                }
            }
        }
    }
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
        for packing in [Packing::F32, Packing::Bf16] {
            let packed = PackedWeight::pack(packing, inputs, outputs, &weight).unwrap();
            let rows = (1..=16).chain([24, 25, 31, 48, 63, 64]);
            check(&packed, rows, &format!("{packing:?}"));
        }
    }
}

/// Blocks of reproducible bits whose scales are finite, some of them subnormal or zero.
fn blocks(format: BlockFormat, count: usize, seed: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = noise(count * format.bytes(), seed)
        .into_iter()
        .map(|x| (x.to_bits() >> 5) as u8)
        .collect();
    for block in bytes.chunks_exact_mut(format.bytes()) {
        let at: &[usize] = match format {
            BlockFormat::Q8_0 | BlockFormat::Q5_0 | BlockFormat::Q4_0 => &[1],
            BlockFormat::Q4_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[1, 3],
            BlockFormat::Q6K => &[209],
        };
        for &at in at {
            // The exponent is in the upper byte; all ones would not be finite.
            if block[at] & 0x7c == 0x7c {
                block[at] ^= 0x44;
            }
        }
        assert!(format.is_finite(block));
    }
    bytes
}

/// A weight of several parts, with the f32 weights that it has to have, `[output][input]`.
fn quantised(inputs: usize, parts: &[(Packing, usize)]) -> (PackedWeight, Vec<f32>) {
    let mut packed = PackedWeight::side_by_side(inputs, parts).unwrap();
    let mut all = Vec::new();
    for (i, &(packing, outputs)) in parts.iter().enumerate() {
        let mut weights = vec![0.0; outputs * inputs];
        let first = all.len() / inputs;
        let per_row = |format: BlockFormat| inputs / format.shape().inputs;
        if let Packing::Blocks(format) = packing {
            let bytes = blocks(format, outputs * per_row(format), 9 + i as u64);
            format.dequantise(&bytes, &mut weights);
            if packed.packing(first) == packing {
                for (n, row) in bytes
                    .chunks_exact(format.bytes() * per_row(format))
                    .enumerate()
                {
                    let row = row.chunks_exact(format.bytes());
                    packed.set_blocks(first + n, row.map(|block| format.unpack(block)));
                }
            } else {
                packed.set_outputs(first, outputs, |n, k| weights[n * inputs + k]);
            }
        } else {
            weights = noise(outputs * inputs, 5);
            packed.set_outputs(first, outputs, |n, k| weights[n * inputs + k]);
        }
        all.extend(weights);
    }
    (packed, all)
}

#[test]
fn blocks_in_panels_are_the_weights_of_the_file() {
    for format in BlockFormat::ALL {
        for outputs in [1, 16, 33, 70] {
            let (packed, weights) = quantised(512, &[(Packing::Blocks(format), outputs)]);
            let found: Vec<f32> = (0..outputs)
                .flat_map(|n| (0..512).map(move |k| (n, k)))
                .map(|(n, k)| packed.at(n, k))
                .collect();
            assert_eq!(
                bits(&found),
                bits(&weights),
                "{format:?}, {outputs} outputs"
            );
            let per_panel = format.bytes() * 512 / format.shape().inputs * PANEL;
            let most = packed.panels() * per_panel * 103 / 100;
            assert!(
                packed.bytes() <= most,
                "{format:?} takes {} bytes",
                packed.bytes()
            );
        }
    }
}

#[test]
fn quantised_kernels_equal_the_reference_bit_for_bit() {
    for format in BlockFormat::ALL {
        for outputs in [1, 33, 4 * PANEL + 5] {
            let (packed, _) = quantised(512, &[(Packing::Blocks(format), outputs)]);
            let rows = (1..=10).chain([15, 16, 17, 64]);
            check(&packed, rows, format.name());
        }
    }
}

#[test]
fn parts_of_different_packings_lie_side_by_side() {
    let of = Packing::Blocks;
    let parts = [
        (of(BlockFormat::Q4K), 64),
        (of(BlockFormat::Q4K), 32),
        (of(BlockFormat::Q6K), 32),
        (Packing::Bf16, 32),
        // These two share a panel, so both become f32.
        (of(BlockFormat::Q8_0), 16),
        (of(BlockFormat::Q5_0), 16),
        (of(BlockFormat::Q5K), 45),
    ];
    let (packed, weights) = quantised(256, &parts);
    let found = [0, 95, 96, 128, 160, 176, 192, 236].map(|n| packed.packing(n));
    assert_eq!(
        found,
        [
            of(BlockFormat::Q4K),
            of(BlockFormat::Q4K),
            of(BlockFormat::Q6K),
            Packing::Bf16,
            Packing::F32,
            Packing::F32,
            of(BlockFormat::Q5K),
            of(BlockFormat::Q5K),
        ]
    );
    for n in (0..237).filter(|n| packed.packing(*n) != Packing::Bf16) {
        for k in [0, 77, 255] {
            assert_eq!(packed.at(n, k).to_bits(), weights[n * 256 + k].to_bits());
        }
    }
    check(&packed, [1, 3, 9].into_iter(), "of several packings");
}

#[test]
#[should_panic(expected = "input rows")]
fn a_row_too_narrow_is_refused() {
    let packed = PackedWeight::zeros(Packing::F32, 8, 8).unwrap();
    let mut out = [0.0; PANEL];
    let kernels = LaneKernels::new(Isa::best(), Pool::single());
    kernels.matmul(
        Rows::new(&[0.0; 7], 7, 1),
        &packed,
        &mut RowsMut::new(&mut out, PANEL, 1),
    );
}

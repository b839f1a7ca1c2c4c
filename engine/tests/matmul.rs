//! The lane matmul against candle's own, which shares no code with it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use candle_core::{Device, Tensor};
use engine::cpu::kernels::{Isa, LaneKernels, Matmul, PackedWeight, Packing, Pool, Rows, RowsMut};
use offshoot_engine as engine;

#[test]
fn candle_finds_the_same_product_up_to_rounding() {
    let (rows, inputs, outputs) = (6, 48, 50);
    let weight: Vec<f32> = (0..inputs * outputs)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
        .collect();
    let x: Vec<f32> = (0..rows * inputs)
        .map(|i| ((i * 53 % 97) as f32 - 48.0) / 48.0)
        .collect();
    let packed = PackedWeight::pack(Packing::F32, inputs, outputs, &weight).unwrap();
    let width = packed.padded_outputs();
    let theirs = Tensor::from_vec(x.clone(), (rows, inputs), &Device::Cpu)
        .unwrap()
        .matmul(
            &Tensor::from_vec(weight, (outputs, inputs), &Device::Cpu)
                .unwrap()
                .t()
                .unwrap(),
        )
        .unwrap()
        .to_vec2::<f32>()
        .unwrap();
    for isa in Isa::available() {
        let mut ours = vec![0.0; rows * width];
        LaneKernels::new(isa, Pool::single()).matmul(
            Rows::new(&x, inputs, rows),
            &packed,
            &mut RowsMut::new(&mut ours, width, rows),
        );
        for (ours, theirs) in ours.chunks_exact(width).zip(&theirs) {
            for (ours, theirs) in ours.iter().zip(theirs) {
                assert!((ours - theirs).abs() < 1e-4, "{ours} {theirs}, {isa:?}");
            }
        }
    }
}

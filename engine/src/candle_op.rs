//! The lane matmul as a candle operation, for models that are written in candle.

use candle_core::{CpuStorage, CustomOp1, Layout, Shape};

use crate::kernels::{LaneKernels, Matmul, PackedWeight, Rows, RowsMut};

/// `y = x * w^T` over a packed weight: `x [.., inputs]` contiguous f32 on the CPU, `y [.., outputs]`. Unlike candle's
/// own matmul every row has the same bits at every row count.
pub struct LaneMatmul {
    weight: PackedWeight,
    kernels: LaneKernels,
}

impl LaneMatmul {
    /// The operation of one weight.
    #[must_use]
    pub fn new(weight: PackedWeight, kernels: LaneKernels) -> LaneMatmul {
        LaneMatmul { weight, kernels }
    }
}

impl CustomOp1 for LaneMatmul {
    fn name(&self) -> &'static str {
        "lane-matmul"
    }

    fn cpu_fwd(
        &self,
        storage: &CpuStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (inputs, outputs) = (self.weight.inputs(), self.weight.outputs());
        let CpuStorage::F32(data) = storage else {
            candle_core::bail!("lane-matmul takes f32 activations")
        };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("lane-matmul takes contiguous activations")
        };
        let mut dims = layout.dims().to_vec();
        match dims.last_mut() {
            Some(last) if *last == inputs => *last = outputs,
            _ => candle_core::bail!(
                "lane-matmul takes rows of {inputs}, not {:?}",
                layout.dims()
            ),
        }
        let rows = (end - start) / inputs;
        let width = self.weight.padded_outputs();
        let mut padded = vec![0.0; rows * width];
        let x = Rows::new(&data[start..end], inputs, rows);
        self.kernels
            .matmul(x, &self.weight, &mut RowsMut::new(&mut padded, width, rows));
        let y = padded
            .chunks_exact(width)
            .flat_map(|row| &row[..outputs])
            .copied()
            .collect();
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;
    use crate::kernels::{Isa, Pool, WeightDtype};

    #[test]
    fn candle_sees_its_own_product_up_to_rounding() {
        let (inputs, outputs) = (48, 50);
        let weight: Vec<f32> = (0..inputs * outputs)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
            .collect();
        let x: Vec<f32> = (0..2 * 3 * inputs)
            .map(|i| ((i * 53 % 97) as f32 - 48.0) / 48.0)
            .collect();
        let packed = PackedWeight::pack(WeightDtype::F32, inputs, outputs, &weight).unwrap();
        let op = LaneMatmul::new(packed, LaneKernels::new(Isa::best(), Pool::single()));
        let x = Tensor::from_vec(x, (2, 3, inputs), &Device::Cpu).unwrap();
        let w = Tensor::from_vec(weight, (outputs, inputs), &Device::Cpu).unwrap();
        let ours = x.apply_op1_no_bwd(&op).unwrap();
        assert_eq!(ours.dims(), [2, 3, outputs]);
        let theirs = x
            .reshape((6, inputs))
            .unwrap()
            .matmul(&w.t().unwrap())
            .unwrap();
        let difference = (ours.reshape((6, outputs)).unwrap() - theirs)
            .unwrap()
            .abs()
            .unwrap();
        assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() < 1e-4);
    }

    #[test]
    fn wrong_activations_are_errors() {
        let packed = PackedWeight::zeros(WeightDtype::F32, 4, 4).unwrap();
        let op = LaneMatmul::new(packed, LaneKernels::new(Isa::best(), Pool::single()));
        let narrow = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(narrow.apply_op1_no_bwd(&op).is_err());
        let strided = Tensor::zeros((4, 2), candle_core::DType::F32, &Device::Cpu)
            .unwrap()
            .t()
            .unwrap();
        assert!(strided.apply_op1_no_bwd(&op).is_err());
        let double = Tensor::zeros((2, 4), candle_core::DType::F64, &Device::Cpu).unwrap();
        assert!(double.apply_op1_no_bwd(&op).is_err());
    }
}

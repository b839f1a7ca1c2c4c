//! The slow, obvious matmul that every fast kernel must equal bit for bit.

use super::{PackedWeight, Rows, RowsMut};

/// `out[r][n] = sum over k of x[r][k] * w[n][k]`: one f32 accumulator per output that starts at zero and takes
/// one fused multiply-add per k, in ascending order.
///
/// # Panics
/// When the shapes do not fit together.
pub fn matmul(x: Rows<'_>, weight: &PackedWeight, out: &mut RowsMut<'_>) {
    for r in 0..x.rows() {
        let input = &x.row(r)[..weight.inputs()];
        let output = out.row_mut(r);
        for (n, y) in output[..weight.outputs()].iter_mut().enumerate() {
            let mut sum = 0.0_f32;
            for (k, x) in input.iter().enumerate() {
                sum = x.mul_add(weight.at(n, k), sum);
            }
            *y = sum;
        }
    }
}

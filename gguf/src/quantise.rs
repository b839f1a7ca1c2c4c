//! Quantising to the formats that have a scale and no more, as ggml's reference does.

use half::f16;

/// Weights of a block of these formats.
const INPUTS: usize = 32;

/// A block of Q8_0; none if a weight is not finite, or too large for the scale to be.
#[must_use]
pub fn quantise_q8_0(weights: &[f32; INPUTS]) -> Option<[u8; 34]> {
    let most = weights.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
    let (scale, inverse) = scales(weights, most / 127.0)?;
    let mut block = [0; 34];
    block[..2].copy_from_slice(&scale);
    for (code, x) in block[2..].iter_mut().zip(weights) {
        // At most 127 in size.
        *code = (x * inverse).round() as i8 as u8;
    }
    Some(block)
}

/// A block of Q4_0; none if a weight is not finite, or too large for the scale to be.
#[must_use]
pub fn quantise_q4_0(weights: &[f32; INPUTS]) -> Option<[u8; 18]> {
    // The largest in size, the first of equals, becomes the code 0, which is 8 below the middle.
    let most = weights.iter().fold(
        0.0_f32,
        |most, x| {
            if x.abs() > most.abs() { *x } else { most }
        },
    );
    let (scale, inverse) = scales(weights, most / -8.0)?;
    let code = |x: f32| ((x * inverse + 8.5) as u8).min(15);
    let mut block = [0; 18];
    block[..2].copy_from_slice(&scale);
    for (j, byte) in block[2..].iter_mut().enumerate() {
        *byte = code(weights[j]) | code(weights[j + 16]) << 4;
    }
    Some(block)
}

/// A scale as it is stored, and what weights are multiplied by.
fn scales(weights: &[f32; INPUTS], scale: f32) -> Option<([u8; 2], f32)> {
    let stored = f16::from_f32(scale);
    let is_finite = stored.is_finite() && weights.iter().all(|x| x.is_finite());
    // A scale so small that this overflows is stored as 0.
    let inverse = Some(1.0 / scale).filter(|inverse| inverse.is_finite());
    is_finite.then_some((stored.to_le_bytes(), inverse.unwrap_or(0.0)))
}

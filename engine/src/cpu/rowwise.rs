//! The functions of a row between two matmuls.

use decode::math;

use crate::cpu::kernels::isa::per_isa;

/// The one order in which sixteen lanes are added.
#[inline(always)]
pub(crate) fn reduce(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for l in 0..half {
            lanes[l] += lanes[l + half];
        }
    }
    lanes[0]
}

per_isa! {
    /// RMSNorm (arXiv 1910.07467): `out = x / sqrt(mean(x^2) + eps) * weight`, all three of one length.
    ///
    /// The squares are summed in 16 lanes by index and reduced in one fixed tree.
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body;
}

#[inline(always)]
fn rms_norm_body(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let scale = inverse_root_mean_square(x, eps);
    for ((y, x), w) in out.iter_mut().zip(x).zip(weight) {
        *y = x * scale * w;
    }
}

#[inline(always)]
fn inverse_root_mean_square(x: &[f32], eps: f32) -> f32 {
    let mut lanes = [0.0_f32; 16];
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for l in 0..16 {
            lanes[l] = chunk[l].mul_add(chunk[l], lanes[l]);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.mul_add(*x, *lane);
    }
    math::rsqrt(reduce(lanes) / x.len() as f32 + eps)
}

per_isa! {
    /// [`rms_norm`] of consecutive heads of `weight.len()` elements, each by itself, in place.
    pub(crate) fn rms_norm_heads(heads: &mut [f32], weight: &[f32], eps: f32) = rms_norm_heads_body;
}

#[inline(always)]
fn rms_norm_heads_body(heads: &mut [f32], weight: &[f32], eps: f32) {
    for head in heads.chunks_exact_mut(weight.len()) {
        let scale = inverse_root_mean_square(head, eps);
        for (x, w) in head.iter_mut().zip(weight) {
            *x = *x * scale * w;
        }
    }
}

per_isa! {
    /// `x *= factor`, element by element.
    pub(crate) fn scale(x: &mut [f32], factor: f32) = scale_body;
}

#[inline(always)]
fn scale_body(x: &mut [f32], factor: f32) {
    for x in x {
        *x *= factor;
    }
}

per_isa! {
    /// `x = cap * tanh(x / cap)`, element by element.
    pub(crate) fn soft_cap(x: &mut [f32], cap: f32) = soft_cap_body;
}

#[inline(always)]
pub(crate) fn soft_cap_body(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * math::tanh(*x / cap);
    }
}

per_isa! {
    /// `out = silu(gate) * up`, element by element.
    pub(crate) fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) = swiglu_body;
}

#[inline(always)]
fn swiglu_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((y, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *y = math::silu(*gate) * up;
    }
}

per_isa! {
    /// `out = gelu(gate) * up` with the tanh form of GELU, element by element.
    pub(crate) fn geglu(gate: &[f32], up: &[f32], out: &mut [f32]) = geglu_body;
}

#[inline(always)]
fn geglu_body(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((y, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *y = math::gelu_tanh(*gate) * up;
    }
}

per_isa! {
    /// `x += y`, element by element.
    pub(crate) fn add(x: &mut [f32], y: &[f32]) = add_body;
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

per_isa! {
    /// `x += silu(y + bias)`, element by element.
    pub(crate) fn add_silu(x: &mut [f32], y: &[f32], bias: &[f32]) = add_silu_body;
}

#[inline(always)]
fn add_silu_body(x: &mut [f32], y: &[f32], bias: &[f32]) {
    for ((x, y), bias) in x.iter_mut().zip(y).zip(bias) {
        *x += math::silu(*y + bias);
    }
}

per_isa! {
    /// `x = max(x + bias, 0)`, element by element.
    pub(crate) fn relu(x: &mut [f32], bias: &[f32]) = relu_body;
}

#[inline(always)]
fn relu_body(x: &mut [f32], bias: &[f32]) {
    for (x, bias) in x.iter_mut().zip(bias) {
        *x = (*x + bias).max(0.0);
    }
}

per_isa! {
    /// Rotates consecutive heads of `dim` elements: pair (i, i + half) by the angle of frequency i, where half is `cos.len()`.
    /// Elements behind the pairs stay as they are.
    pub(crate) fn rotate(heads: &mut [f32], dim: usize, cos: &[f32], sin: &[f32]) = rotate_body;
}

#[inline(always)]
fn rotate_body(heads: &mut [f32], dim: usize, cos: &[f32], sin: &[f32]) {
    let half = cos.len();
    for head in heads.chunks_exact_mut(dim) {
        let (low, high) = head[..2 * half].split_at_mut(half);
        for (((low, high), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (a, b) = (*low, *high);
            *low = (-b).mul_add(*sin, a * cos);
            *high = a.mul_add(*sin, b * cos);
        }
    }
}

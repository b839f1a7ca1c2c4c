//! Elementary functions for every crate that computes: fixed polynomial code that gives the same bits on every machine.
//!
//! Nothing here calls libm. IEEE square root, division and `mul_add` (a fused multiply-add, correctly rounded
//! by definition whether the machine has the instruction or not) are the only primitives, so a result depends
//! on its argument alone: not on the instruction set, the vector width or the C library. Coefficients are those
//! of Cephes (`expf`) and of fdlibm (the f64 functions); the argument reductions are Cody and Waite's.

// For the machine's fused multiply-add and square root, and to ask which instructions it has. Nothing else here, or in
// a pure crate above this one, needs `std`.
extern crate std;

/// `1.5 * 2^23`: adding it to a small f32 leaves the nearest integer in the low mantissa bits.
const ROUND32: f32 = 12_582_912.0;
/// `1.5 * 2^52`: the f64 counterpart of [`ROUND32`].
const ROUND64: f64 = 6_755_399_441_055_744.0;

/// e^x in single precision, at most 2 ulp off (normal results).
///
/// Overflows to infinity above 88.72; flushes to zero below -87.33, where the exact result would be subnormal.
/// NaN stays NaN. Branch-free, so that it vectorises inside kernels.
#[inline(always)]
#[must_use]
#[expect(
    clippy::excessive_precision,
    reason = "coefficients as Cephes publishes them"
)]
pub fn exp(x: f32) -> f32 {
    let shifted = x.mul_add(core::f32::consts::LOG2_E, ROUND32);
    let n = shifted - ROUND32;
    let r = n.mul_add(-0.693_359_375, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_15e-4_f32;
    p = p.mul_add(r, 1.398_199_95e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_55e-1);
    p = p.mul_add(r, 5.000_000_1e-1);
    let y = p.mul_add(r * r, r) + 1.0;
    // 2^128 has no f32, so the scale is applied in two halves.
    let k = (shifted.to_bits() as i32).wrapping_sub(ROUND32.to_bits() as i32);
    let half = k >> 1;
    let rest = k.wrapping_sub(half);
    let scale = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    let y = y * scale(half) * scale(rest);
    let y = if x > 88.722_83 { f32::INFINITY } else { y };
    if x < -87.336_54 { 0.0 } else { y }
}

/// e^x in double precision, below 1 ulp (fdlibm `e_exp.c`). Results that would be subnormal are flushed to zero.
#[must_use]
pub fn exp64(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x > 709.782_712_893_384 {
        return f64::INFINITY;
    }
    if x < -708.396_418_532_264_1 {
        return 0.0;
    }
    let shifted = x.mul_add(core::f64::consts::LOG2_E, ROUND64);
    let n = shifted - ROUND64;
    let hi = n.mul_add(-6.931_471_803_691_238e-1, x);
    let lo = n * 1.908_214_929_270_587_7e-10;
    let r = hi - lo;
    let t = r * r;
    let mut p = 4.138_136_797_057_238_5e-8_f64;
    p = p.mul_add(t, -1.653_390_220_546_525_2e-6);
    p = p.mul_add(t, 6.613_756_321_437_934e-5);
    p = p.mul_add(t, -2.777_777_777_701_559_3e-3);
    p = p.mul_add(t, 1.666_666_666_666_660_2e-1);
    let c = r - t * p;
    let y = 1.0 - ((lo - (r * c) / (2.0 - c)) - hi);
    let k = shifted.to_bits().wrapping_sub(ROUND64.to_bits()) as i64;
    let half = k >> 1;
    let scale = |e: i64| f64::from_bits(((e + 1023) as u64) << 52);
    y * scale(half) * scale(k - half)
}

/// Natural logarithm in double precision, below 1 ulp (fdlibm `e_log.c`).
///
/// `ln(0)` is minus infinity and the logarithm of a negative number is NaN.
#[must_use]
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x == f64::INFINITY {
        return x;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x < 0.0 {
        return f64::NAN;
    }
    let (x, subnormal) = if x < f64::MIN_POSITIVE {
        (x * 18_014_398_509_481_984.0, -54)
    } else {
        (x, 0)
    };
    // Split into 2^k * m with m in [sqrt(1/2), sqrt(2)).
    let bits = x.to_bits();
    let top = (bits >> 32) as u32;
    let mantissa = top & 0x000f_ffff;
    let carry = mantissa.wrapping_add(0x9_5f64) & 0x10_0000;
    let k = ((top >> 20) as i32) - 1023 + ((carry >> 20) as i32) + subnormal;
    let m_top = mantissa | (carry ^ 0x3ff0_0000);
    let f = f64::from_bits((u64::from(m_top) << 32) | (bits & 0xffff_ffff)) - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let t1 = w * w.mul_add(
        w.mul_add(1.531_383_769_920_937_3e-1, 2.222_219_843_214_978_4e-1),
        3.999_999_999_940_942e-1,
    );
    let t2 = z * w.mul_add(
        w.mul_add(
            w.mul_add(1.479_819_860_511_658_6e-1, 1.818_357_216_161_805e-1),
            2.857_142_874_366_239e-1,
        ),
        6.666_666_666_666_735e-1,
    );
    let r = t1 + t2;
    let hfsq = 0.5 * f * f;
    let k = f64::from(k);
    k * 6.931_471_803_691_238e-1 - ((hfsq - (s * (hfsq + r) + k * 1.908_214_929_270_587_7e-10)) - f)
}

/// Sine and cosine of an angle in radians, about 1 ulp for |x| up to 2^20 (fdlibm kernels after a two-part
/// reduction by pi/2). Used for rotary tables, where angles never exceed the context length.
#[must_use]
pub fn sin_cos(x: f64) -> (f64, f64) {
    let shifted = x.mul_add(core::f64::consts::FRAC_2_PI, ROUND64);
    let n = shifted - ROUND64;
    let r = n.mul_add(-core::f64::consts::FRAC_PI_2, x);
    let r = n.mul_add(-6.123_233_995_736_766e-17, r);
    let z = r * r;
    let mut p = 1.589_690_995_211_55e-10_f64;
    p = p.mul_add(z, -2.505_076_025_340_686_3e-8);
    p = p.mul_add(z, 2.755_731_370_707_007e-6);
    p = p.mul_add(z, -1.984_126_982_985_795e-4);
    p = p.mul_add(z, 8.333_333_333_322_49e-3);
    p = p.mul_add(z, -1.666_666_666_666_663_2e-1);
    let sin = (r * z).mul_add(p, r);
    let mut p = -1.135_964_755_778_819_5e-11_f64;
    p = p.mul_add(z, 2.087_572_321_298_175e-9);
    p = p.mul_add(z, -2.755_731_435_139_066_3e-7);
    p = p.mul_add(z, 2.480_158_728_947_673e-5);
    p = p.mul_add(z, -1.388_888_888_887_411e-3);
    p = p.mul_add(z, 4.166_666_666_666_66e-2);
    let cos = (z * z).mul_add(p, 1.0 - 0.5 * z);
    match shifted.to_bits() & 3 {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// `1 / sqrt(x)` from the two IEEE operations, each correctly rounded.
#[inline(always)]
#[must_use]
pub fn rsqrt(x: f32) -> f32 {
    1.0 / x.sqrt()
}

/// `x / (1 + e^-x)`, the gate of SwiGLU (arXiv 2002.05202), from [`exp`].
#[inline(always)]
#[must_use]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// Hyperbolic tangent in single precision, at most 2 ulp off (Cephes `tanhf`). Branch-free, so that it vectorises inside
/// kernels.
#[inline(always)]
#[must_use]
#[expect(
    clippy::excessive_precision,
    reason = "coefficients as Cephes publishes them"
)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_727_45e-3_f32;
    p = p.mul_add(z, 2.063_908_879_54e-2);
    p = p.mul_add(z, -5.373_971_555_31e-2);
    p = p.mul_add(z, 1.333_144_220_36e-1);
    p = p.mul_add(z, -3.333_328_194_22e-1);
    let small = (p * z).mul_add(x, x);
    let most = x.abs();
    let large = (1.0 - 2.0 / (exp(most + most) + 1.0)).copysign(x);
    if most < 0.625 { small } else { large }
}

/// The tanh form of GELU (arXiv 1606.08415), `x / 2 * (1 + tanh(u))` with `u = sqrt(2 / pi) * (x + 0.044715 x^3)`, which is
/// `x / (1 + e^-2u)`.
#[inline(always)]
#[must_use]
pub fn gelu_tanh(x: f32) -> f32 {
    // -2 sqrt(2 / pi)
    const FACTOR: f32 = -1.595_769_2;
    let inner = (0.044_715 * x * x).mul_add(x, x);
    x / (1.0 + exp(FACTOR * inner))
}

/// Whether this machine runs 256-bit vectors with fused multiply-add.
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
}

/// Whether this machine runs 512-bit vectors, besides those of [`has_avx2`].
#[cfg(target_arch = "x86_64")]
#[must_use]
pub fn has_avx512() -> bool {
    has_avx2()
        && std::is_x86_feature_detected!("avx512f")
        && std::is_x86_feature_detected!("avx512dq")
        && std::is_x86_feature_detected!("avx512vl")
        && std::is_x86_feature_detected!("avx512bw")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance between `got` and `want` in units of the last place of `want`.
    fn ulp64(got: f64, want: f64) -> f64 {
        (got - want).abs() / (want.abs().max(f64::MIN_POSITIVE) * f64::EPSILON)
    }

    #[test]
    fn exp_is_close_to_the_f64_reference() {
        let mut worst = 0.0_f64;
        for i in -870_000..887_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / (want * f64::from(f32::EPSILON)));
        }
        assert!(worst < 2.0, "worst error {worst} ulp");
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(1e30), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(88.7).is_finite());
    }

    #[test]
    fn exp64_and_ln_are_close_to_std() {
        for i in -7_080_i32..7_090 {
            let x = f64::from(i) * 0.1;
            assert!(ulp64(exp64(x), x.exp()) < 2.0, "exp64({x})");
            let y = x.exp();
            if y > f64::MIN_POSITIVE {
                assert!(
                    ulp64(ln(y), y.ln()) < 2.0 || y.ln().abs() < 1e-12,
                    "ln({y})"
                );
            }
        }
        for i in 1..100_000 {
            let x = f64::from(i) * 1e-5;
            assert!(ulp64(ln(x), x.ln()) < 2.0, "ln({x})");
        }
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        assert!(ln(-1.0).is_nan());
        assert!(exp64(f64::NAN).is_nan());
        assert!((ln(5e-324) - (-744.440_071_921_381_2)).abs() < 1e-9);
    }

    #[test]
    fn sine_and_cosine_are_close_to_std() {
        for i in 0..200_000 {
            let x = f64::from(i) * 0.737;
            let (sin, cos) = sin_cos(x);
            assert!((sin - x.sin()).abs() < 3e-16, "sin({x})");
            assert!((cos - x.cos()).abs() < 3e-16, "cos({x})");
        }
    }

    #[test]
    fn tanh_is_close_to_the_f64_reference() {
        let mut worst = 0.0_f64;
        for i in -200_000..200_000 {
            let x = i as f32 * 5e-5;
            let want = f64::from(x).tanh();
            let unit = want.abs().max(f64::from(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
            worst = worst.max((f64::from(tanh(x)) - want).abs() / unit);
        }
        assert!(worst < 2.0, "worst error {worst} ulp");
        assert_eq!(tanh(f32::INFINITY), 1.0);
        assert_eq!(tanh(-1e30), -1.0);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_is_close_to_the_f64_reference() {
        for i in -100_000..100_000 {
            let x = f64::from(i as f32 * 1e-4);
            let inner = (2.0 / core::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            let want = 0.5 * x * (1.0 + inner.tanh());
            let found = f64::from(gelu_tanh(x as f32));
            assert!(
                (found - want).abs() < 1e-6 * x.abs().max(1e-3),
                "gelu({x}) is {found}"
            );
        }
        assert_eq!(gelu_tanh(0.0), 0.0);
        assert_eq!(gelu_tanh(100.0), 100.0);
        assert_eq!(gelu_tanh(-100.0), 0.0);
    }

    #[test]
    fn frozen_bits() {
        // The class of results that share bits is named by these values: a change here needs a new kernel class.
        let fold = |h: u64, bits: u64| {
            (h ^ bits)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(17)
        };
        let mut h = 0xcbf2_9ce4_8422_2325;
        for i in -800..880 {
            let x = i as f32 * 0.1;
            h = fold(h, u64::from(exp(x).to_bits()));
            h = fold(h, u64::from(silu(x).to_bits()));
            h = fold(h, exp64(f64::from(x)).to_bits());
            h = fold(h, ln(f64::from(x.abs()) + 0.01).to_bits());
            h = fold(h, sin_cos(f64::from(x)).0.to_bits());
        }
        assert_eq!(h, FROZEN, "{h:#x}");
    }

    /// The fold of `frozen_bits`, the same on every machine.
    const FROZEN: u64 = 0x794b_f49f_346b_c97e;
}

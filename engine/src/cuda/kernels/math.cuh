// The elementary functions of the sampling contract: the formulas of decode/src/math.rs, operation by operation.
//
// Compiled without contraction of products and sums, so that each line rounds where the Rust line does: equal arguments
// give equal bits on both. A change there is a change here.
#pragma once

#include "ptx.cuh"

#define INFINITE float_of(0x7f800000u)
constexpr float LARGEST = 3.40282346638528859812e38f;

/// e^x in single precision.
DEVICE float exp32(float x) {
    const float round = 12582912.0f;
    float shifted = multiply_add(x, 1.44269504088896340736f, round);
    float n = shifted - round;
    float r = multiply_add(n, -0.693359375f, x);
    r = multiply_add(n, 2.1219444e-4f, r);
    float p = 1.98756915e-4f;
    p = multiply_add(p, r, 1.39819995e-3f);
    p = multiply_add(p, r, 8.333452e-3f);
    p = multiply_add(p, r, 4.1665796e-2f);
    p = multiply_add(p, r, 1.66666655e-1f);
    p = multiply_add(p, r, 5.0000001e-1f);
    float y = multiply_add(p, r * r, r) + 1.0f;
    i32 k = i32(bits_of(shifted) - bits_of(round));
    i32 half = k >> 1;
    i32 rest = i32(u32(k) - u32(half));
    y = y * float_of(u32(half + 127) << 23) * float_of(u32(rest + 127) << 23);
    y = x > 88.72283f ? INFINITE : y;
    return x < -87.33654f ? 0.0f : y;
}

/// e^x in double precision.
DEVICE double exp64(double x) {
    const double round = 6755399441055744.0;
    if (x != x) return x;
    if (x > 709.782712893384) return double(INFINITE);
    if (x < -708.3964185322641) return 0.0;
    double shifted = multiply_add(x, 1.44269504088896340736, round);
    double n = shifted - round;
    double hi = multiply_add(n, -6.931471803691238e-1, x);
    double lo = n * 1.9082149292705877e-10;
    double r = hi - lo;
    double t = r * r;
    double p = 4.1381366797057385e-8;
    p = multiply_add(p, t, -1.6533902205465252e-6);
    p = multiply_add(p, t, 6.613756321437934e-5);
    p = multiply_add(p, t, -2.7777777777015593e-3);
    p = multiply_add(p, t, 1.6666666666666602e-1);
    double c = r - t * p;
    double y = 1.0 - ((lo - (r * c) / (2.0 - c)) - hi);
    i64 k = i64(bits_of(shifted) - bits_of(round));
    i64 half = k >> 1;
    return y * double_of(u64(half + 1023) << 52) * double_of(u64(k - half + 1023) << 52);
}

/// Natural logarithm in double precision.
DEVICE double ln64(double x) {
    if (x != x || x == double(INFINITE)) return x;
    if (x == 0.0) return -double(INFINITE);
    if (x < 0.0) return double_of(0x7ff8000000000000ull);
    i32 subnormal = 0;
    if (x < 2.2250738585072014e-308) {
        x = x * 18014398509481984.0;
        subnormal = -54;
    }
    u64 bits = bits_of(x);
    u32 top = u32(bits >> 32);
    u32 mantissa = top & 0x000fffffu;
    u32 carry = (mantissa + 0x95f64u) & 0x100000u;
    i32 exponent = i32(top >> 20) - 1023 + i32(carry >> 20) + subnormal;
    u32 m_top = mantissa | (carry ^ 0x3ff00000u);
    double f = double_of(u64(m_top) << 32 | (bits & 0xffffffffull)) - 1.0;
    double s = f / (2.0 + f);
    double z = s * s;
    double w = z * z;
    double t1 = multiply_add(w, 1.5313837699209373e-1, 2.2222198432149784e-1);
    t1 = w * multiply_add(w, t1, 3.999999999940942e-1);
    double t2 = multiply_add(w, 1.4798198605116586e-1, 1.818357216161805e-1);
    t2 = multiply_add(w, t2, 2.857142874366239e-1);
    t2 = z * multiply_add(w, t2, 6.666666666666735e-1);
    double r = t1 + t2;
    double hfsq = 0.5 * f * f;
    double k = double(exponent);
    return k * 6.931471803691238e-1 - ((hfsq - (s * (hfsq + r) + k * 1.9082149292705877e-10)) - f);
}

/// `1 / sqrt(x)`, each operation rounded.
DEVICE float reciprocal_root(float x) { return 1.0f / square_root(x); }

/// `x / (1 + e^-x)`, the gate of SwiGLU (arXiv 2002.05202).
DEVICE float silu(float x) { return x / (1.0f + exp32(-x)); }

/* Exact scalar conversions between fp16, bf16, fp8 and fp32. The reference for every SIMD
 * path; integer arithmetic only, so flags and rounding modes do not matter. */
#ifndef ANE_BASE_F16_H
#define ANE_BASE_F16_H

#include <stdint.h>
#include <string.h>

static inline uint32_t ane_f32_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static inline float ane_bits_f32(uint32_t u) {
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

/* Round to nearest even; |x| >= 65520 -> inf; NaN keeps sign and the top payload bits and
 * becomes quiet, as vcvtps2ph does. */
static inline uint16_t ane_f16_from_f32(float x) {
    uint32_t u = ane_f32_bits(x);
    uint16_t sign = (uint16_t)((u >> 16) & 0x8000u);
    uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (a < 0x33000001u) return sign;           /* at most half of the least subnormal */
    if (a < 0x38800000u) {                      /* subnormal result */
        uint32_t shift = 126u - (a >> 23);      /* 14..24 */
        uint32_t m = (a & 0x7fffffu) | 0x800000u;
        uint32_t q = m >> shift, rest = m & ((1u << shift) - 1u), half = 1u << (shift - 1);
        q += rest > half || (rest == half && (q & 1u));
        return (uint16_t)(sign | q);
    }
    a += 0xfffu + ((a >> 13) & 1u);
    return (uint16_t)(sign | ((a - 0x38000000u) >> 13));
}

static inline float ane_f32_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, e = (h >> 10) & 31u, m = h & 0x3ffu;
    if (e == 31) return ane_bits_f32(sign | 0x7f800000u | (m ? 0x400000u | (m << 13) : 0u));
    if (e == 0) {
        float v = (float)m * 0x1p-24f;
        return ane_bits_f32(sign | ane_f32_bits(v));
    }
    return ane_bits_f32(sign | ((e + 112u) << 23) | (m << 13));
}

static inline uint16_t ane_bf16_from_f32(float x) {
    uint32_t u = ane_f32_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
static inline float ane_f32_from_bf16(uint16_t h) {
    return ane_bits_f32((uint32_t)h << 16);
}

/* One rounding from double to fp16 (through fp32 could round twice). */
static inline uint16_t ane_f16_from_f64(double x) {
    /* Round to odd in fp32 first: then the second rounding is the only one that counts. */
    float f = (float)x;
    if (f == f && (double)f != x && (ane_f32_bits(f) & 0x7fffffffu) < 0x7f800000u) {
        uint32_t u = ane_f32_bits(f);
        double d = (double)f;
        int away = (d < 0 ? -d : d) > (x < 0 ? -x : x);
        if (away) u -= 1u;              /* towards zero */
        u |= 1u;                        /* sticky */
        f = ane_bits_f32(u);
    }
    return ane_f16_from_f32(f);
}
static inline uint16_t ane_bf16_from_f64(double x) {
    float f = (float)x;
    if (f == f && (double)f != x && (ane_f32_bits(f) & 0x7fffffffu) < 0x7f800000u) {
        uint32_t u = ane_f32_bits(f);
        double d = (double)f;
        if ((d < 0 ? -d : d) > (x < 0 ? -x : x)) u -= 1u;
        f = ane_bits_f32(u | 1u);
    }
    return ane_bf16_from_f32(f);
}

#endif

/* One-lane form of the vector type that body_*.h is written in. Reference for the others;
 * no intrinsics, no alignment, no undefined integer arithmetic. */
#ifndef ANE_SIMD_SCALAR_H
#define ANE_SIMD_SCALAR_H

#include "../base/f16.h"

#include <math.h>

#include "simd.h"

#define VW 1
#define V_UNITS 8
typedef float vf;
typedef bool vm;

static inline vf v_set1(float x) { return x; }
static inline vf v_loadu(const void *p) {
    float x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline void v_storeu(void *p, vf x) { memcpy(p, &x, sizeof x); }
static inline vf v_load_n(const void *p, size_t n) { return n ? v_loadu(p) : 0; }
static inline void v_store_n(void *p, vf x, size_t n) {
    if (n) v_storeu(p, x);
}
static inline vf v_load16(const void *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return ane_f32_from_f16(h);
}
static inline void v_store16(void *p, vf x) {
    uint16_t h = ane_f16_from_f32(x);
    memcpy(p, &h, sizeof h);
}
static inline vf v_load16_n(const void *p, size_t n) { return n ? v_load16(p) : 0; }
static inline void v_store16_n(void *p, vf x, size_t n) {
    if (n) v_store16(p, x);
}
static inline vf v_loadb(const void *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return ane_f32_from_bf16(h);
}
static inline void v_storeb(void *p, vf x) {
    uint16_t h = ane_bf16_from_f32(x);
    memcpy(p, &h, sizeof h);
}
static inline vf v_loadb_n(const void *p, size_t n) { return n ? v_loadb(p) : 0; }
static inline void v_storeb_n(void *p, vf x, size_t n) {
    if (n) v_storeb(p, x);
}

#define VSTREAM 0       /* bytes of one streaming store; none here */
static inline void v_stream(void *p, vf x) { v_storeu(p, x); }
static inline void v_stream16(void *p, vf a, vf b) { v_store16(p, a), (void)b; }
static inline void v_fence(void) {}

static inline vf v_add(vf a, vf b) { return a + b; }
static inline vf v_sub(vf a, vf b) { return a - b; }
static inline vf v_mul(vf a, vf b) { return a * b; }
static inline vf v_div(vf a, vf b) { return a / b; }
static inline vf v_sqrt(vf a) { return sqrtf(a); }
/* a*b + c; two roundings here, one where there is an instruction for it. */
static inline vf v_fma(vf a, vf b, vf c) { return a * b + c; }
/* The second operand where either is NaN. */
static inline vf v_max(vf a, vf b) { return a > b ? a : b; }
static inline vf v_min(vf a, vf b) { return a < b ? a : b; }
static inline vm v_lt(vf a, vf b) { return a < b; }
static inline vm v_isnan(vf a) { return a != a; }
static inline vf v_sel(vm m, vf a, vf b) { return m ? a : b; }
static inline vf v_abs(vf a) { return ane_bits_f32(ane_f32_bits(a) & 0x7fffffffu); }
static inline vf v_neg(vf a) { return ane_bits_f32(ane_f32_bits(a) ^ 0x80000000u); }
static inline vf v_copysign(vf a, vf s) {
    return ane_bits_f32((ane_f32_bits(a) & 0x7fffffffu) | (ane_f32_bits(s) & 0x80000000u));
}
static inline vf v_trunc_low(vf a) { return ane_bits_f32(ane_f32_bits(a) & 0xfffff000u); }

#define V_MAGIC 12582912.0f     /* 1.5 * 2^23: adding it rounds to an integer */
/* p * 2^n for t = V_MAGIC + n, |n| <= 160; rounds once. */
static inline vf v_scale_magic(vf p, vf t) {
    uint32_t n = ane_f32_bits(t) - 0x4b400000u;
    uint32_t half = (n + 1024u) / 2u - 512u, rest = n - half;
    return p * ane_bits_f32((half + 127u) << 23) * ane_bits_f32((rest + 127u) << 23);
}
/* The same where p and the result are normal numbers; of no use for others. */
static inline vf v_pow2_magic(vf p, vf t) {
    return ane_bits_f32(ane_f32_bits(p) + (ane_f32_bits(t) << 23));
}
/* x = m * 2^e with m in [sqrt(1/2), sqrt(2)); x positive and finite. */
static inline vf v_split(vf x, vf *e) {
    float bias = 0;
    if (x < 0x1p-126f) {
        x *= 0x1p23f;
        bias = 23;
    }
    uint32_t i = ane_f32_bits(x) - 0x3f3504f3u;
    int32_t n = (int32_t)(i >> 23) - (i >> 31 ? 512 : 0);
    *e = (float)n - bias;
    return ane_bits_f32(ane_f32_bits(x) - ((uint32_t)n << 23));
}

static inline void v_transpose(vf r[VW]) { (void)r; }

/* 8-bit values. The lowest bytes of 32 lanes. */
static inline void v_low_bytes(uint8_t *to, const vf *r) {
    for (int i = 0; i < 32; i++) to[i] = (uint8_t)ane_f32_bits(r[i]);
}
static inline bool v_any(vm m) { return m; }
/* VW bytes, and 32 of them as int16 less `by`. */
static inline vf v_from_bytes(const void *p, bool sign) {
    return sign ? (vf)*(const int8_t *)p : (vf)*(const uint8_t *)p;
}
static inline void v_widen_bytes(int16_t *to, const void *p, bool sign, int by) {
    for (int i = 0; i < 32; i++) {
        int x = sign ? ((const int8_t *)p)[i] : ((const uint8_t *)p)[i];
        int16_t y = (int16_t)(x - by);
        memcpy((char *)to + 2 * i, &y, sizeof y);
    }
}

#endif

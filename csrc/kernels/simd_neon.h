/* Four lanes: AArch64 Advanced SIMD. Conversions between fp16 and fp32 are part of the
 * baseline; fp16 arithmetic is not, and is not used here. */
#ifndef ANE_SIMD_NEON_H
#define ANE_SIMD_NEON_H

#include <arm_neon.h>

#include "simd.h"

#define VW 4
#define V_UNITS 16
typedef float32x4_t vf;
typedef uint32x4_t vm;

static inline vf v_set1(float x) { return vdupq_n_f32(x); }
/* Through bytes: no alignment is promised. */
static inline vf v_loadu(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
static inline void v_storeu(void *p, vf x) { vst1q_u8(p, vreinterpretq_u8_f32(x)); }
static inline vf v_load_n(const void *p, size_t n) {
    float t[4] = {0};
    memcpy(t, p, n * 4);
    return vld1q_f32(t);
}
static inline void v_store_n(void *p, vf x, size_t n) {
    float t[4];
    vst1q_f32(t, x);
    memcpy(p, t, n * 4);
}
static inline vf v_load16(const void *p) {
    return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
}
static inline void v_store16(void *p, vf x) {
    vst1_u8(p, vreinterpret_u8_f16(vcvt_f16_f32(x)));
}
static inline vf v_load16_n(const void *p, size_t n) {
    uint16_t t[4] = {0};
    memcpy(t, p, n * 2);
    return v_load16(t);
}
static inline void v_store16_n(void *p, vf x, size_t n) {
    uint16_t t[4];
    v_store16(t, x);
    memcpy(p, t, n * 2);
}
static inline vf v_widen(uint16x4_t h) { return vreinterpretq_f32_u32(vshll_n_u16(h, 16)); }
static inline uint16x4_t v_narrow(vf x) {
    uint32x4_t u = vreinterpretq_u32_f32(x);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t r = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(x, x), r, quiet), 16);
}
static inline vf v_loadb(const void *p) { return v_widen(vreinterpret_u16_u8(vld1_u8(p))); }
static inline void v_storeb(void *p, vf x) { vst1_u8(p, vreinterpret_u8_u16(v_narrow(x))); }
static inline vf v_loadb_n(const void *p, size_t n) {
    uint16_t t[4] = {0};
    memcpy(t, p, n * 2);
    return v_loadb(t);
}
static inline void v_storeb_n(void *p, vf x, size_t n) {
    uint16_t t[4];
    v_storeb(t, x);
    memcpy(p, t, n * 2);
}

#define VSTREAM 0       /* stores do not read the line first where it is wholly written */
static inline void v_stream(void *p, vf x) { v_storeu(p, x); }
static inline void v_stream16(void *p, vf a, vf b) { v_store16(p, a), (void)b; }
static inline void v_fence(void) {}

static inline vf v_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf v_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf v_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf v_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf v_sqrt(vf a) { return vsqrtq_f32(a); }
static inline vf v_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf v_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline vf v_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vm v_lt(vf a, vf b) { return vcltq_f32(a, b); }
static inline vm v_isnan(vf a) { return vmvnq_u32(vceqq_f32(a, a)); }
static inline vf v_sel(vm m, vf a, vf b) { return vbslq_f32(m, a, b); }
static inline vf v_abs(vf a) { return vabsq_f32(a); }
static inline vf v_neg(vf a) { return vnegq_f32(a); }
static inline vf v_copysign(vf a, vf s) {
    return vbslq_f32(vdupq_n_u32(0x80000000u), s, a);
}
static inline vf v_trunc_low(vf a) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0xfffff000u)));
}

#define V_MAGIC 12582912.0f
static inline vf v_scale_magic(vf p, vf t) {
    int32x4_t bias = vdupq_n_s32(127);
    int32x4_t n = vsubq_s32(vreinterpretq_s32_f32(t), vdupq_n_s32(0x4b400000));
    int32x4_t half = vshrq_n_s32(n, 1), rest = vsubq_s32(n, half);
    half = vshlq_n_s32(vaddq_s32(half, bias), 23);
    rest = vshlq_n_s32(vaddq_s32(rest, bias), 23);
    return v_mul(v_mul(p, vreinterpretq_f32_s32(half)), vreinterpretq_f32_s32(rest));
}
static inline vf v_pow2_magic(vf p, vf t) {
    int32x4_t n = vshlq_n_s32(vreinterpretq_s32_f32(t), 23);
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p), n));
}
static inline vf v_split(vf x, vf *e) {
    vm tiny = v_lt(x, v_set1(0x1p-126f));
    x = v_sel(tiny, v_mul(x, v_set1(0x1p23f)), x);
    int32x4_t u = vreinterpretq_s32_f32(x);
    int32x4_t n = vshrq_n_s32(vsubq_s32(u, vdupq_n_s32(0x3f3504f3)), 23);
    *e = v_sub(vcvtq_f32_s32(n), v_sel(tiny, v_set1(23), v_set1(0)));
    return vreinterpretq_f32_s32(vsubq_s32(u, vshlq_n_s32(n, 23)));
}

static inline void v_transpose(vf r[VW]) {
    float32x4_t a = vtrn1q_f32(r[0], r[1]), b = vtrn2q_f32(r[0], r[1]);
    float32x4_t c = vtrn1q_f32(r[2], r[3]), d = vtrn2q_f32(r[2], r[3]);
#define D(x) vreinterpretq_f64_f32(x)
#define S(x) vreinterpretq_f32_f64(x)
    r[0] = S(vtrn1q_f64(D(a), D(c)));
    r[1] = S(vtrn1q_f64(D(b), D(d)));
    r[2] = S(vtrn2q_f64(D(a), D(c)));
    r[3] = S(vtrn2q_f64(D(b), D(d)));
#undef D
#undef S
}

/* 8-bit values. The lowest bytes of 32 lanes. */
static inline void v_low_bytes(uint8_t *to, const vf *r) {
    UNROLL for (int i = 0; i < 8; i += 4) {
        uint16x8_t a = vcombine_u16(vmovn_u32(vreinterpretq_u32_f32(r[i])),
                                    vmovn_u32(vreinterpretq_u32_f32(r[i + 1])));
        uint16x8_t b = vcombine_u16(vmovn_u32(vreinterpretq_u32_f32(r[i + 2])),
                                    vmovn_u32(vreinterpretq_u32_f32(r[i + 3])));
        vst1q_u8(to + 4 * i, vcombine_u8(vmovn_u16(a), vmovn_u16(b)));
    }
}
static inline bool v_any(vm m) { return vmaxvq_u32(m) != 0; }
/* VW bytes, and 32 of them as int16 less `by`. */
static inline vf v_from_bytes(const void *p, bool sign) {
    uint8_t four[8] = {0};
    memcpy(four, p, 4);
    uint8x8_t x = vld1_u8(four);
    int16x8_t y = sign ? vmovl_s8(vreinterpret_s8_u8(x)) : vreinterpretq_s16_u16(vmovl_u8(x));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(y)));
}
static inline void v_widen_bytes(int16_t *to, const void *p, bool sign, int by) {
    int16x8_t less = vdupq_n_s16((int16_t)by);
    UNROLL for (int i = 0; i < 32; i += 8) {
        uint8x8_t x = vld1_u8((const uint8_t *)p + i);
        int16x8_t y = sign ? vmovl_s8(vreinterpret_s8_u8(x)) : vreinterpretq_s16_u16(vmovl_u8(x));
        vst1q_u8((void *)(to + i), vreinterpretq_u8_s16(vsubq_s16(y, less)));
    }
}

#endif

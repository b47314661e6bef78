/* Sixteen lanes: AVX-512 F, BW, DQ, VL. */
#ifndef ANE_SIMD_AVX512_H
#define ANE_SIMD_AVX512_H

#include <immintrin.h>

#include "simd.h"

#define VW 16
#define V_UNITS 16
typedef __m512 vf;
typedef __mmask16 vm;

static inline __mmask16 v_tail_mask(size_t n) {
    return n < 16 ? (__mmask16)((1u << n) - 1u) : (__mmask16)0xffff;
}
static inline vf v_set1(float x) { return _mm512_set1_ps(x); }
static inline vf v_loadu(const void *p) { return _mm512_loadu_ps(p); }
static inline void v_storeu(void *p, vf x) { _mm512_storeu_ps(p, x); }
static inline vf v_load_n(const void *p, size_t n) {
    return _mm512_maskz_loadu_ps(v_tail_mask(n), p);
}
static inline void v_store_n(void *p, vf x, size_t n) {
    _mm512_mask_storeu_ps(p, v_tail_mask(n), x);
}
static inline vf v_load16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
static inline void v_store16(void *p, vf x) {
    _mm256_storeu_si256(p, _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline vf v_load16_n(const void *p, size_t n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_tail_mask(n), p));
}
static inline void v_store16_n(void *p, vf x, size_t n) {
    _mm256_mask_storeu_epi16(p, v_tail_mask(n),
                             _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
static inline vf v_widen(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
static inline __m256i v_narrow(vf x) {
    __m512i u = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
    __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
static inline vf v_loadb(const void *p) { return v_widen(_mm256_loadu_si256(p)); }
static inline void v_storeb(void *p, vf x) { _mm256_storeu_si256(p, v_narrow(x)); }
static inline vf v_loadb_n(const void *p, size_t n) {
    return v_widen(_mm256_maskz_loadu_epi16(v_tail_mask(n), p));
}
static inline void v_storeb_n(void *p, vf x, size_t n) {
    _mm256_mask_storeu_epi16(p, v_tail_mask(n), v_narrow(x));
}

#define VSTREAM 64
static inline void v_stream(void *p, vf x) { _mm512_stream_ps(p, x); }
static inline void v_stream16(void *p, vf a, vf b) {
    __m256i lo = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    __m256i hi = _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT);
    _mm512_stream_si512(p, _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1));
}
static inline void v_fence(void) { _mm_sfence(); }

static inline vf v_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf v_sqrt(vf a) { return _mm512_sqrt_ps(a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf v_max(vf a, vf b) { return _mm512_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm512_min_ps(a, b); }
static inline vm v_lt(vf a, vf b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline vm v_isnan(vf a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
static inline vf v_sel(vm m, vf a, vf b) { return _mm512_mask_blend_ps(m, b, a); }
static inline vf v_abs(vf a) { return _mm512_abs_ps(a); }
static inline vf v_neg(vf a) { return _mm512_xor_ps(_mm512_set1_ps(-0.0f), a); }
static inline vf v_copysign(vf a, vf s) {
    __m512i bits = _mm512_ternarylogic_epi32(
        _mm512_set1_epi32((int)0x80000000u), _mm512_castps_si512(s), _mm512_castps_si512(a),
        0xca);      /* sign ? s : a */
    return _mm512_castsi512_ps(bits);
}
static inline vf v_trunc_low(vf a) {
    return _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32((int)0xfffff000u)));
}

#define V_MAGIC 12582912.0f
static inline vf v_scale_magic(vf p, vf t) {
    return _mm512_scalef_ps(p, _mm512_sub_ps(t, _mm512_set1_ps(V_MAGIC)));
}
static inline vf v_pow2_magic(vf p, vf t) {
    __m512i n = _mm512_slli_epi32(_mm512_castps_si512(t), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), n));
}
static inline vf v_split(vf x, vf *e) {
    vm tiny = v_lt(x, v_set1(0x1p-126f));
    x = _mm512_mask_mul_ps(x, tiny, x, v_set1(0x1p23f));
    __m512i u = _mm512_castps_si512(x);
    __m512i n = _mm512_srai_epi32(_mm512_sub_epi32(u, _mm512_set1_epi32(0x3f3504f3)), 23);
    vf f = _mm512_cvtepi32_ps(n);
    *e = _mm512_mask_sub_ps(f, tiny, f, v_set1(23));
    return _mm512_castsi512_ps(_mm512_sub_epi32(u, _mm512_slli_epi32(n, 23)));
}

static inline void v_transpose(vf r[VW]) {
    __m512 a[16];
    UNROLL for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 16; i += 4) {
#define PD(x) _mm512_castps_pd(x)
        r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(PD(a[i]), PD(a[i + 2])));
        r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(PD(a[i]), PD(a[i + 2])));
        r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(PD(a[i + 1]), PD(a[i + 3])));
        r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(PD(a[i + 1]), PD(a[i + 3])));
#undef PD
    }
    UNROLL for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        a[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        a[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(a[i], a[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(a[i + 4], a[i + 12], 0xdd);
    }
}

/* 8-bit values. The lowest bytes of 32 lanes. */
static inline void v_low_bytes(uint8_t *to, const vf *r) {
    UNROLL for (int i = 0; i < 2; i++)
        _mm_storeu_si128((void *)(to + 16 * i), _mm512_cvtepi32_epi8(_mm512_castps_si512(r[i])));
}
static inline bool v_any(vm m) { return m != 0; }
/* VW bytes, and 32 of them as int16 less `by`. */
static inline vf v_from_bytes(const void *p, bool sign) {
    __m128i x = _mm_loadu_si128(p);
    return _mm512_cvtepi32_ps(sign ? _mm512_cvtepi8_epi32(x) : _mm512_cvtepu8_epi32(x));
}
static inline void v_widen_bytes(int16_t *to, const void *p, bool sign, int by) {
    __m256i x = _mm256_loadu_si256(p);
    __m512i y = sign ? _mm512_cvtepi8_epi16(x) : _mm512_cvtepu8_epi16(x);
    _mm512_storeu_si512(to, _mm512_sub_epi16(y, _mm512_set1_epi16((int16_t)by)));
}

#endif

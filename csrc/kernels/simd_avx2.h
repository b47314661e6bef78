/* Eight lanes: AVX2, FMA, F16C. */
#ifndef ANE_SIMD_AVX2_H
#define ANE_SIMD_AVX2_H

#include <immintrin.h>

#include "simd.h"

#define VW 8
#define V_UNITS 12
typedef __m256 vf;
typedef __m256 vm;

static inline __m256i v_tail_mask(size_t n) {
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const void *)(ones + 8 - n));
}
static inline vf v_set1(float x) { return _mm256_set1_ps(x); }
static inline vf v_loadu(const void *p) { return _mm256_loadu_ps(p); }
static inline void v_storeu(void *p, vf x) { _mm256_storeu_ps(p, x); }
static inline vf v_load_n(const void *p, size_t n) {
    return _mm256_maskload_ps(p, v_tail_mask(n));
}
/* In pieces: a masked store is dozens of micro-operations on AMD. Any alignment. */
static inline void v_store_n(void *p, vf x, size_t n) {
    char *to = p;
    __m128i part = _mm_castps_si128(_mm256_castps256_ps128(x));
    if (n >= 8) {
        _mm256_storeu_ps(p, x);
        return;
    }
    if (n & 4) {
        _mm_storeu_si128((void *)to, part);
        to += 16;
        part = _mm_castps_si128(_mm256_extractf128_ps(x, 1));
    }
    if (n & 2) {
        int64_t two = _mm_cvtsi128_si64(part);
        memcpy(to, &two, 8);
        to += 8;
        part = _mm_unpackhi_epi64(part, part);
    }
    int32_t one = _mm_cvtsi128_si32(part);
    if (n & 1) memcpy(to, &one, 4);
}
static inline vf v_load16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
static inline void v_store16(void *p, vf x) {
    _mm_storeu_si128(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
/* In pieces, too: a copy through memory waits for its own stores. */
static inline __m128i v_halves_n(const void *p, size_t n) {
    const char *from = p;
    uint64_t part[2] = {0, 0}, *to = part;
    uint32_t two;
    uint16_t one;
    if (n >= 8) return _mm_loadu_si128(p);
    if (n & 4) {
        memcpy(to++, from, 8);
        from += 8;
    }
    if (n & 2) {
        memcpy(&two, from, 4);
        *to = two;
        from += 4;
    }
    if (n & 1) {
        memcpy(&one, from, 2);
        *to |= (uint64_t)one << (n & 2 ? 32 : 0);
    }
    return _mm_set_epi64x((int64_t)part[1], (int64_t)part[0]);
}
static inline void v_put_halves_n(void *p, __m128i x, size_t n) {
    char *to = p;
    if (n >= 8) {
        _mm_storeu_si128(p, x);
        return;
    }
    uint64_t part = (uint64_t)_mm_cvtsi128_si64(x);
    if (n & 4) {
        memcpy(to, &part, 8);
        part = (uint64_t)_mm_extract_epi64(x, 1);
        to += 8;
    }
    uint32_t two = (uint32_t)part;
    if (n & 2) {
        memcpy(to, &two, 4);
        two = (uint32_t)(part >> 32);
        to += 4;
    }
    uint16_t one = (uint16_t)two;
    if (n & 1) memcpy(to, &one, 2);
}
static inline vf v_load16_n(const void *p, size_t n) {
    return _mm256_cvtph_ps(v_halves_n(p, n));
}
static inline void v_store16_n(void *p, vf x, size_t n) {
    v_put_halves_n(p, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT), n);
}
static inline vf v_widen(__m128i h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
static inline __m128i v_narrow(vf x) {
    __m256i u = _mm256_castps_si256(x), one = _mm256_set1_epi32(1);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), one);
    __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_srli_epi32(_mm256_blendv_epi8(r, quiet, nan), 16);
    r = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08);
    return _mm256_castsi256_si128(r);
}
static inline vf v_loadb(const void *p) { return v_widen(_mm_loadu_si128(p)); }
static inline void v_storeb(void *p, vf x) { _mm_storeu_si128(p, v_narrow(x)); }
static inline vf v_loadb_n(const void *p, size_t n) { return v_widen(v_halves_n(p, n)); }
static inline void v_storeb_n(void *p, vf x, size_t n) {
    v_put_halves_n(p, v_narrow(x), n);
}

#define VSTREAM 32
static inline void v_stream(void *p, vf x) { _mm256_stream_ps(p, x); }
#define V_ORDER "x"     /* constraint of a vector register: there are only sixteen */
static inline void v_stream16(void *p, vf a, vf b) {
    __m128i lo = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT);
    __m128i hi = _mm256_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT);
    _mm256_stream_si256(p, _mm256_set_m128i(hi, lo));
}
static inline void v_fence(void) { _mm_sfence(); }

static inline vf v_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf v_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf v_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf v_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf v_sqrt(vf a) { return _mm256_sqrt_ps(a); }
static inline vf v_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf v_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf v_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vm v_lt(vf a, vf b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
static inline vm v_isnan(vf a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
static inline vf v_sel(vm m, vf a, vf b) { return _mm256_blendv_ps(b, a, m); }
static inline vf v_abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf v_neg(vf a) { return _mm256_xor_ps(_mm256_set1_ps(-0.0f), a); }
static inline vf v_copysign(vf a, vf s) {
    vf sign = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, s));
}
static inline vf v_trunc_low(vf a) {
    return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32((int)0xfffff000u)));
}

#define V_MAGIC 12582912.0f
static inline vf v_scale_magic(vf p, vf t) {
    __m256i bias = _mm256_set1_epi32(127);
    __m256i n = _mm256_sub_epi32(_mm256_castps_si256(t), _mm256_set1_epi32(0x4b400000));
    __m256i half = _mm256_srai_epi32(n, 1), rest = _mm256_sub_epi32(n, half);
    half = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    rest = _mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23);
    return v_mul(v_mul(p, _mm256_castsi256_ps(half)), _mm256_castsi256_ps(rest));
}
static inline vf v_pow2_magic(vf p, vf t) {
    __m256i n = _mm256_slli_epi32(_mm256_castps_si256(t), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n));
}
static inline vf v_split(vf x, vf *e) {
    vm tiny = v_lt(x, v_set1(0x1p-126f));
    x = v_sel(tiny, v_mul(x, v_set1(0x1p23f)), x);
    __m256i u = _mm256_castps_si256(x);
    __m256i n = _mm256_srai_epi32(_mm256_sub_epi32(u, _mm256_set1_epi32(0x3f3504f3)), 23);
    *e = v_sub(_mm256_cvtepi32_ps(n), v_sel(tiny, v_set1(23), v_set1(0)));
    return _mm256_castsi256_ps(_mm256_sub_epi32(u, _mm256_slli_epi32(n, 23)));
}

static inline void v_transpose(vf r[VW]) {
    __m256d a[8], b[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_castps_pd(_mm256_unpacklo_ps(r[i], r[i + 1]));
        a[i + 1] = _mm256_castps_pd(_mm256_unpackhi_ps(r[i], r[i + 1]));
    }
    UNROLL for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_pd(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_pd(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_pd(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_pd(a[i + 1], a[i + 3]);
    }
    UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm256_castpd_ps(_mm256_permute2f128_pd(b[i], b[i + 4], 0x20));
        r[i + 4] = _mm256_castpd_ps(_mm256_permute2f128_pd(b[i], b[i + 4], 0x31));
    }
}

/* 8-bit values. The lowest bytes of 32 lanes. */
static inline void v_low_bytes(uint8_t *to, const vf *r) {
    __m256i q[4], low = _mm256_set1_epi32(255);
    UNROLL for (int i = 0; i < 4; i++) q[i] = _mm256_and_si256(_mm256_castps_si256(r[i]), low);
    __m256i a = _mm256_packus_epi32(q[0], q[1]), b = _mm256_packus_epi32(q[2], q[3]);
    __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    a = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order);
    _mm256_storeu_si256((void *)to, a);
}
static inline bool v_any(vm m) { return _mm256_movemask_ps(m) != 0; }
/* VW bytes, and 32 of them as int16 less `by`. */
static inline vf v_from_bytes(const void *p, bool sign) {
    __m128i x = _mm_loadl_epi64(p);
    return _mm256_cvtepi32_ps(sign ? _mm256_cvtepi8_epi32(x) : _mm256_cvtepu8_epi32(x));
}
static inline void v_widen_bytes(int16_t *to, const void *p, bool sign, int by) {
    __m256i less = _mm256_set1_epi16((int16_t)by);
    UNROLL for (int i = 0; i < 32; i += 16) {
        __m128i x = _mm_loadu_si128((const void *)((const char *)p + i));
        __m256i y = sign ? _mm256_cvtepi8_epi16(x) : _mm256_cvtepu8_epi16(x);
        _mm256_storeu_si256((void *)(to + i), _mm256_sub_epi16(y, less));
    }
}

#endif

/* AVX512-BF16, AVX512-FP16 and AVX512-VNNI in software: exactly the intrinsics that their
 * files use, with the instructions' own arithmetic, so that those kernels can be run (slowly)
 * on a CPU with plain AVX-512. Test-only; see tests/run_kernels.sh. emulate_check.c compares
 * it with the instructions where there are any. */
#ifndef EMULATE_AVX512_H
#define EMULATE_AVX512_H

#include "../csrc/base/f16.h"

#include <immintrin.h>
#include <math.h>

/* ---- vdpbf16ps: odd element first, then even; each a fused multiply-add that rounds to
 * nearest even; denormal inputs and results count as zero, a result being one by what 24 bits
 * of it would be: from half a step below the least normal float it rounds up to that. */

static inline float emulate_flush(float x) {
    return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x;
}
static inline __m512 emulate_dpbf16(__m512 s, __m512i x, __m512i y) {
    float f[16];
    uint32_t a[16], b[16];
    _mm512_storeu_ps(f, s);
    _mm512_storeu_si512(a, x);
    _mm512_storeu_si512(b, y);
    for (int i = 0; i < 16; i++) {
        float t = emulate_flush(f[i]);
        for (int h = 1; h >= 0; h--) {
            float p = emulate_flush(ane_f32_from_bf16((uint16_t)(a[i] >> (16 * h))));
            float q = emulate_flush(ane_f32_from_bf16((uint16_t)(b[i] >> (16 * h))));
            double sum = fma((double)p, (double)q, (double)t);
            t = fmaf(p, q, t);
            if (fabs(sum) < 0x1p-126 - 0x1p-151) t = copysignf(0.0f, t);
        }
        f[i] = t;
    }
    return _mm512_loadu_ps(f);
}
#define __m512bh __m512i
#define _mm512_dpbf16_ps emulate_dpbf16

/* ---- fp16 arithmetic: one rounding per operation, subnormals kept. */

/* x*y + z rounded once to fp16. The product is exact in double; the sum's error is had by
 * two-sum and folded into the last bit (round to odd), after which the one rounding to fp16
 * that counts is right. */
static inline uint16_t emulate_fma16(uint16_t x, uint16_t y, uint16_t z) {
    double p = (double)ane_f32_from_f16(x) * (double)ane_f32_from_f16(y);
    double c = (double)ane_f32_from_f16(z), s = p + c;
    if (isfinite(s)) {
        double t = s - p, e = (p - (s - t)) + (c - t);
        if (e != 0) {
            uint64_t u;
            if ((e < 0) != (s < 0)) s = nextafter(s, 0);
            memcpy(&u, &s, sizeof u);
            u |= 1;
            memcpy(&s, &u, sizeof u);
        }
    }
    return ane_f16_from_f64(s);
}
static inline __m512i emulate_fmadd_ph(__m512i x, __m512i y, __m512i z) {
    uint16_t a[32], b[32], c[32];
    _mm512_storeu_si512(a, x);
    _mm512_storeu_si512(b, y);
    _mm512_storeu_si512(c, z);
    for (int i = 0; i < 32; i++) c[i] = emulate_fma16(a[i], b[i], c[i]);
    return _mm512_loadu_si512(c);
}
static inline __m512i emulate_add_ph(__m512i x, __m512i y) {
    return emulate_fmadd_ph(x, _mm512_set1_epi16(0x3c00), y);
}
#define __m512h __m512i
#define _mm512_castph_si512(x) (x)
#define _mm512_castsi512_ph(x) (x)
#define _mm512_setzero_ph _mm512_setzero_si512
#define _mm512_fmadd_ph emulate_fmadd_ph
#define _mm512_add_ph emulate_add_ph

/* AVX512-VNNI: pairs of int16, added to int32. */
#ifndef __AVX512VNNI__
#define __AVX512VNNI__ 1
#endif
static inline __m512i emulate_dpwssd(__m512i s, __m512i a, __m512i b) {
    return _mm512_add_epi32(s, _mm512_madd_epi16(a, b));
}
#define _mm512_dpwssd_epi32 emulate_dpwssd
/* Four products of an unsigned byte of a and a signed one of b. */
static inline __m512i emulate_dpbusd(__m512i s, __m512i a, __m512i b) {
    __m512i even = _mm512_madd_epi16(_mm512_and_si512(a, _mm512_set1_epi16(0xff)),
                                     _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
    __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8));
    return _mm512_add_epi32(s, _mm512_add_epi32(even, odd));
}
#define _mm512_dpbusd_epi32 emulate_dpbusd

#endif

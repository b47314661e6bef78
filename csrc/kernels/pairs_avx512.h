/* Packing for AVX-512 kernels that take two consecutive k in one dword: panels of W dwords
 * per pair, [k / 2][W]. A panel of 32 columns may have its even columns first, then its odd
 * ones (`deal`), which is what the fp16 kernel's flush wants. Static only; included by
 * ukr_avx512bf16.c and ukr_avx512fp16.c. */
#ifndef ANE_PAIRS_AVX512_H
#define ANE_PAIRS_AVX512_H

#include "simd_avx512.h"

#include "kernels.h"

/* n <= 32 consecutive elements as 16-bit lanes; the rest zero. */
static inline __m512i halves_same(const char *p, ane_dtype dtype, size_t n) {
    (void)dtype;
    return _mm512_maskz_loadu_epi16(n < 32 ? (1u << n) - 1u : 0xffffffffu, p);
}
static inline __m512i halves_bf16(const char *p, ane_dtype dtype, size_t n) {
    if (dtype == ANE_BF16) return halves_same(p, dtype, n);
    size_t lo = n < 16 ? n : 16, hi = n - lo;
    vf x, y;
    if (dtype == ANE_F32) {
        x = v_load_n(p, lo);
        y = hi ? v_load_n(p + 64, hi) : v_set1(0);
    } else {
        x = v_load16_n(p, lo);
        y = hi ? v_load16_n(p + 32, hi) : v_set1(0);
    }
    return _mm512_inserti64x4(_mm512_castsi256_si512(v_narrow(x)), v_narrow(y), 1);
}

typedef __m512i halves_fn(const char *p, ane_dtype dtype, size_t n);
#define ALWAYS static inline __attribute__((always_inline))

/* Neighbours in memory: two rows of k are zipped. */
ALWAYS void pairs_across(halves_fn *get, const size_t w, const bool deal, uint32_t *d,
                         size_t stride, const char *s, ane_dtype dtype, int64_t s_k,
                         size_t count, size_t k) {
    int64_t size = dtype == ANE_F32 ? 4 : 2;
    for (size_t p = 0; p < k; p += 2)
        for (size_t i = 0; i < count; i += w) {
            size_t n = count - i < w ? count - i : w;
            const char *from = s + (int64_t)p * s_k + (int64_t)i * size;
            __m512i x = get(from, dtype, n);
            __m512i y = p + 1 < k ? get(from + s_k, dtype, n) : _mm512_setzero_si512();
            uint32_t *to = (uint32_t *)(void *)((char *)d + i / w * stride) + p / 2 * w;
            __m512i even = _mm512_mask_blend_epi16(0xaaaaaaaau, x, _mm512_slli_epi32(y, 16));
            __m512i odd = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(x, 16), y);
            if (deal) {
                _mm512_storeu_si512(to, even);
                _mm512_storeu_si512(to + 16, odd);
                continue;
            }
            __m512i l = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                                          23);
            __m512i h = _mm512_add_epi32(l, _mm512_set1_epi32(8));
            __m512i first = _mm512_permutex2var_epi32(even, l, odd);
            if (w == 32) {
                _mm512_storeu_si512(to, first);
                _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi32(even, h, odd));
            } else {
                _mm512_mask_storeu_epi32(to, (__mmask16)((1u << w) - 1u), first);
            }
        }
}

/* k contiguous: the pairs are there already, dwords are transposed 16 by 16. */
ALWAYS void pairs_along(halves_fn *get, const size_t w, const bool deal, uint32_t *d,
                        size_t stride, const char *s, ane_dtype dtype, int64_t s_i,
                        size_t count, size_t k) {
    int64_t size = dtype == ANE_F32 ? 4 : 2;
    __mmask16 mask = w < 16 ? (__mmask16)((1u << w) - 1u) : (__mmask16)0xffff;
    for (size_t i = 0; i < count; i += w)
        for (size_t block = 0; block < w; block += 16)
            for (size_t p = 0; p < k; p += 32) {
                size_t left = k - p < 32 ? k - p : 32;
                vf r[16];
                for (size_t l = 0; l < 16; l++) {
                    size_t row = i + (deal ? 2 * l + block / 16 : block + l);
                    bool there = row < count && block + l < w;
                    r[l] = there ? _mm512_castsi512_ps(get(s + (int64_t)row * s_i +
                                                           (int64_t)p * size, dtype, left))
                                 : v_set1(0);
                }
                v_transpose(r);
                uint32_t *to = (uint32_t *)(void *)((char *)d + i / w * stride) + p / 2 * w +
                               block;
                for (size_t l = 0; l < (left + 1) / 2; l++)
                    _mm512_mask_storeu_epi32(to + l * w, mask, _mm512_castps_si512(r[l]));
            }
}

ALWAYS void pairs(halves_fn *get, const size_t w, const bool deal, void *dst, size_t stride,
                  const void *src, ane_dtype dtype, int64_t s_i, int64_t s_k, size_t count,
                  size_t k) {
    int64_t size = dtype == ANE_F32 ? 4 : 2;
    if (s_i == size) {
        pairs_across(get, w, deal, dst, stride, src, dtype, s_k, count, k);
        return;
    }
    if (s_k == size) {
        pairs_along(get, w, deal, dst, stride, src, dtype, s_i, count, k);
        return;
    }
    for (size_t i = 0; i < (count + w - 1) / w * w; i++) {
        size_t j = i % w, at = deal ? j % 2 * 16 + j / 2 : j;
        uint32_t *to = (uint32_t *)(void *)((char *)dst + i / w * stride) + at;
        const char *from = (const char *)src + (int64_t)i * s_i;
        for (size_t p = 0; p < k; p += 2) {
            uint32_t lo = 0, hi = 0;
            if (i < count) {
                lo = (uint32_t)_mm512_cvtsi512_si32(get(from + (int64_t)p * s_k, dtype, 1));
                if (p + 1 < k)
                    hi = (uint32_t)_mm512_cvtsi512_si32(get(from + (int64_t)(p + 1) * s_k,
                                                            dtype, 1));
            }
            to[p / 2 * w] = (lo & 0xffffu) | hi << 16;
        }
    }
}

#define PACK_PAIRS(name, get, w, deal)                                                    \
    static void name(void *dst, size_t stride, const void *src, ane_dtype dtype,          \
                     int64_t s_i, int64_t s_k, size_t count, size_t k) {                  \
        pairs(get, w, deal, dst, stride, src, dtype, s_i, s_k, count, k);                 \
    }

#endif

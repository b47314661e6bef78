/* AVX512-FP16: fp16 multiply-adds in two interleaved chains of 64, flushed to fp32: `high`.
 *
 * Two consecutive k lie in one dword of both panels, so one dword broadcast of A feeds a
 * whole vector of B, and a lane's two halves are two independent chains. 12 rows by 32
 * columns (even columns in one accumulator, odd ones in the other) for 128 k, then
 *     U = even's low halves with odd's high ones, V = the other two, U + V in column order
 * is added to the fp32 tile. Measured elsewhere: relative Frobenius error 1.2e-3, half of
 * bf16's, at 0.92 of the fp16 peak.
 *
 * A chunk that leaves fp16's range is done again in fp32, so only real infinities remain. */
#if defined(__AVX512FP16__) || defined(ANE_EMULATE_AVX512)
#include "pairs_avx512.h"

#include "tables.h"

#define CHUNK 128

PACK_PAIRS(pack_12, halves_same, 12, false)
PACK_PAIRS(pack_32, halves_same, 32, true)

/* One row's two accumulators as 32 fp16 sums in column order. */
static inline __m512h join(__m512h even, __m512h odd) {
    __m512i e = _mm512_castph_si512(even), o = _mm512_castph_si512(odd);
    __m512i u = _mm512_mask_blend_epi16(0xaaaaaaaau, e, o);
    __m512i v = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(e, 16),
                                        _mm512_slli_epi32(o, 16));
    return _mm512_add_ph(_mm512_castsi512_ph(u), _mm512_castsi512_ph(v));
}

static inline bool overflowed(__m512i sums) {
    __m512i high = _mm512_set1_epi16(0x7c00);
    return _mm512_cmpeq_epi16_mask(_mm512_and_si512(sums, high), high) != 0;
}

/* The chunk in fp32, from the same panels: products exact. */
static __attribute__((noinline)) void redo(size_t m, size_t k, const uint32_t *a,
                                           const uint32_t *b, float *c, size_t ldc, bool add) {
    for (size_t i = 0; i < m; i++) {
        vf s0 = v_set1(0), s1 = v_set1(0);
        for (size_t p = 0; p < k; p += 2) {
            __m512i even = _mm512_loadu_si512(b + p / 2 * 32);
            __m512i odd = _mm512_loadu_si512(b + p / 2 * 32 + 16);
            uint32_t pair = a[p / 2 * 12 + i];
            for (int h = 0; h < 2; h++) {
                /* Row p + h of B in column order. */
                __m512i row = h ? _mm512_mask_blend_epi16(0xaaaaaaaau,
                                                          _mm512_srli_epi32(even, 16), odd)
                                : _mm512_mask_blend_epi16(0xaaaaaaaau, even,
                                                          _mm512_slli_epi32(odd, 16));
                uint16_t half = (uint16_t)(pair >> (16 * h));
                vf x = _mm512_cvtph_ps(_mm256_set1_epi16((short)half));
                s0 = v_fma(x, _mm512_cvtph_ps(_mm512_castsi512_si256(row)), s0);
                s1 = v_fma(x, _mm512_cvtph_ps(_mm512_extracti64x4_epi64(row, 1)), s1);
            }
        }
        float *to = c + i * ldc;
        v_storeu(to, add ? v_add(v_loadu(to), s0) : s0);
        v_storeu(to + 16, add ? v_add(v_loadu(to + 16), s1) : s1);
    }
}

ALWAYS void rows_of(const size_t m, size_t k, const uint32_t *a, const uint32_t *b, float *c,
                    size_t ldc, bool add) {
    do {
        size_t chunk = k < CHUNK ? k : CHUNK;
        const uint32_t *a0 = a, *b0 = b;
        __m512h s[12][2];
        UNROLL for (size_t i = 0; i < m; i++) s[i][0] = s[i][1] = _mm512_setzero_ph();
        for (size_t p = 0; p < chunk; p += 2, a += 12, b += 32) {
            __m512h even = _mm512_castsi512_ph(_mm512_loadu_si512(b));
            __m512h odd = _mm512_castsi512_ph(_mm512_loadu_si512(b + 16));
            UNROLL for (size_t i = 0; i < m; i++) {
                __m512h v = _mm512_castsi512_ph(_mm512_set1_epi32((int)a[i]));
                s[i][0] = _mm512_fmadd_ph(v, even, s[i][0]);
                s[i][1] = _mm512_fmadd_ph(v, odd, s[i][1]);
            }
        }
        bool bad = false;
        __m512i sums[12];
        UNROLL for (size_t i = 0; i < m; i++) {
            sums[i] = _mm512_castph_si512(join(s[i][0], s[i][1]));
            bad |= overflowed(sums[i]);
        }
        if (__builtin_expect(bad, 0)) {
            redo(m, chunk, a0, b0, c, ldc, add);
        } else {
            UNROLL for (size_t i = 0; i < m; i++) {
                float *to = c + i * ldc;
                vf x = _mm512_cvtph_ps(_mm512_castsi512_si256(sums[i]));
                vf y = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(sums[i], 1));
                v_storeu(to, add ? v_add(v_loadu(to), x) : x);
                v_storeu(to + 16, add ? v_add(v_loadu(to + 16), y) : y);
            }
        }
        add = true;
        k -= chunk;
    } while (k);
}

static void ukr_12x32(size_t m, size_t k, const void *a, const void *b, float *c, size_t ldc,
                      bool add) {
    switch (m) {
#define CASE(n)                                                                           \
    case n: rows_of(n, k, a, b, c, ldc, add); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11)
#undef CASE
    default: rows_of(12, k, a, b, c, ldc, add); break;
    }
}

static const ane_gemm_entry entries[] = {
    {.name = "f16_12x32__avx512fp16", .keeps = ANE_PRECISION_HIGH, .a_types = ANE_BIT(ANE_F16),
     .b_types = ANE_BIT(ANE_F16), .mr = 12, .nr = 32, .kr = 2, .unit = 2, .ukr = ukr_12x32,
     .pack_a = pack_12, .pack_b = pack_32},
};

const ane_kernels ane_kernels__avx512fp16 = {.name = "avx512fp16", .entries = entries,
                                             .n_entries = 1};
#endif

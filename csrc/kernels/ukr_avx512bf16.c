/* AVX512-BF16: pairs of bf16 products into fp32 sums, for `medium`. Twice the fp32 rate on
 * AMD (Zen 4, Zen 5); half of it on Intel's Sapphire Rapids, where select.c passes it over. */
#if defined(__AVX512BF16__) || defined(ANE_EMULATE_AVX512)
#include "pairs_avx512.h"

#include "tables.h"

PACK_PAIRS(pack_12, halves_bf16, 12, false)
PACK_PAIRS(pack_32, halves_bf16, 32, false)

#define DOT(s, x, y) _mm512_dpbf16_ps(s, (__m512bh)(x), (__m512bh)(y))

ALWAYS void rows_of(const size_t m, size_t k, const uint32_t *a, const uint32_t *b, float *c,
                    size_t ldc, bool add) {
    vf s[12][2];
    UNROLL for (size_t i = 0; i < m; i++) s[i][0] = s[i][1] = v_set1(0);
    for (size_t p = 0; p < k; p += 2, a += 12, b += 32) {
        __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + 16);
        UNROLL for (size_t i = 0; i < m; i++) {
            __m512i v = _mm512_set1_epi32((int)a[i]);
            s[i][0] = DOT(s[i][0], v, b0);
            s[i][1] = DOT(s[i][1], v, b1);
        }
    }
    UNROLL for (size_t i = 0; i < m; i++) {
        float *to = c + i * ldc;
        v_storeu(to, add ? v_add(v_loadu(to), s[i][0]) : s[i][0]);
        v_storeu(to + 16, add ? v_add(v_loadu(to + 16), s[i][1]) : s[i][1]);
    }
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
    {.name = "bf16f32_12x32__avx512bf16", .keeps = ANE_PRECISION_MEDIUM,
     .a_types = ANE_FLOATS, .b_types = ANE_FLOATS, .mr = 12, .nr = 32, .kr = 2, .unit = 2,
     .ukr = ukr_12x32, .pack_a = pack_12, .pack_b = pack_32},
};

const ane_kernels ane_kernels__avx512bf16 = {.name = "avx512bf16", .entries = entries,
                                             .n_entries = 1};
#endif

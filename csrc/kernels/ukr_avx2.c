/* AVX2 + FMA + F16C. */
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define ISA_NAME "avx2"
#include "simd_avx2.h"

#include "body_vec.h"

#define PEAK_CHAINS 12
#include "body_gemm.h"

#define CONV_MR 6
#define CONV_NV 2
#define CONV_NAME "6x16"
#define CONV_CASES                                                                        \
    CONV_CASE(1, 1) CONV_CASE(2, 1) CONV_CASE(3, 1) CONV_CASE(4, 1) CONV_CASE(5, 1)       \
    CONV_CASE(6, 1)                                                                       \
    CONV_CASE(1, 2) CONV_CASE(2, 2) CONV_CASE(3, 2) CONV_CASE(4, 2) CONV_CASE(5, 2)       \
    CONV_CASE(6, 2)
#include "body_conv.h"

typedef __m256i qi;
static inline qi q_zero(void) { return _mm256_setzero_si256(); }
static inline qi q_load(const void *p) { return _mm256_loadu_si256(p); }
static inline qi q_pair(const void *p) { return _mm256_castps_si256(_mm256_broadcast_ss(p)); }
static inline qi q_dot(qi s, qi a, qi b) {
    return _mm256_add_epi32(s, _mm256_madd_epi16(a, b));
}
static inline qi q_add(qi a, qi b) { return _mm256_add_epi32(a, b); }
static inline qi q_bits(vf x) { return _mm256_castps_si256(x); }
static inline vf q_raw(qi x) { return _mm256_castsi256_ps(x); }
static inline vf q_float(qi x) { return _mm256_cvtepi32_ps(x); }
#include "body_qconv.h"

#include "body_attention.h"

#include "tables.h"

PACK(pack_6, 6)
PACK(pack_16, 16)

/* m rows of two vectors: 12 of the 16 registers hold sums, 2 hold B, 1 a broadcast. */
static inline __attribute__((always_inline)) void rows_of(const size_t m, size_t k,
                                                          const float *a, const float *b,
                                                          float *c, size_t ldc, bool add) {
    vf s[6][2];
    UNROLL for (size_t i = 0; i < m; i++) {
        s[i][0] = s[i][1] = v_set1(0);
        _mm_prefetch((const char *)(c + i * ldc), _MM_HINT_T0);
    }
#define STEP(o)                                                                           \
    {                                                                                     \
        vf b0 = v_loadu(b + o * 16), b1 = v_loadu(b + o * 16 + 8);                        \
        _mm_prefetch((const char *)(b + (o + 12) * 16), _MM_HINT_T0);                     \
        UNROLL for (size_t i = 0; i < m; i++) {                                           \
            vf v = _mm256_broadcast_ss(a + o * 6 + i);                                    \
            s[i][0] = v_fma(v, b0, s[i][0]);                                              \
            s[i][1] = v_fma(v, b1, s[i][1]);                                              \
        }                                                                                 \
    }
    size_t p = 0;
    for (; p + 4 <= k; p += 4, a += 24, b += 64) {
        STEP(0) STEP(1) STEP(2) STEP(3)
    }
    for (; p < k; p++, a += 6, b += 16) STEP(0)
#undef STEP
    UNROLL for (size_t i = 0; i < m; i++) {
        float *to = c + i * ldc;
        v_storeu(to, add ? v_add(v_loadu(to), s[i][0]) : s[i][0]);
        v_storeu(to + 8, add ? v_add(v_loadu(to + 8), s[i][1]) : s[i][1]);
    }
}

static void ukr_6x16(size_t m, size_t k, const void *a, const void *b, float *c, size_t ldc,
                     bool add) {
    switch (m) {
    case 1: rows_of(1, k, a, b, c, ldc, add); break;
    case 2: rows_of(2, k, a, b, c, ldc, add); break;
    case 3: rows_of(3, k, a, b, c, ldc, add); break;
    case 4: rows_of(4, k, a, b, c, ldc, add); break;
    case 5: rows_of(5, k, a, b, c, ldc, add); break;
    default: rows_of(6, k, a, b, c, ldc, add); break;
    }
}

static const ane_gemm_entry entries[] = {
    {.name = "f32_6x16__avx2", .keeps = ANE_PRECISION_HIGHEST, .a_types = ANE_FLOATS,
     .b_types = ANE_FLOATS, .mr = 6, .nr = 16, .kr = 1, .unit = 4, .ukr = ukr_6x16,
     .pack_a = pack_6, .pack_b = pack_16},
};

const ane_kernels ane_kernels__avx2 = {
    .name = ISA_NAME, .entries = entries, .n_entries = 1, .vec = &vec_table,
    .tile = tile_out, .gemv_rows = gemv_rows, .gemv_cols = gemv_cols,
    .attn_forward = attn_forward, .attn_rescale = attn_rescale,
    .attn_mask = attn_mask, .attn_backward = attn_backward,
    .conv = &conv_table, .qtile = qconv_tile, .qname = "int16_6x16__" ISA_NAME, .convert = vec_convert, .peak = peak, .peak_flops = PEAK_CHAINS * VW * 2,
};
#endif

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
/* A byte of each, lane by lane, as a pair of int16. */
static inline qi q_bytes(const void *a, const void *b, bool sign) {
    __m128i x = _mm_unpacklo_epi8(_mm_loadl_epi64(a), _mm_loadl_epi64(b));
    return sign ? _mm256_cvtepi8_epi16(x) : _mm256_cvtepu8_epi16(x);
}
#include "body_qconv.h"
#include "body_qdw.h"

#include "body_attention.h"

#include "tables.h"

PACK(pack_16, 16)

/* Panels of six: 8 k of 6 rows (or 4 k, where rows are neighbours) are 48 (24) floats, which
 * leave as whole vectors. Edges go the general way. */
PACK_LOOPS(edge_6, 6)

#define SIX_ALONG(name, edge, LD, size)                                                   \
    static void name(char *d, size_t stride, const char *s, int64_t s_i, size_t count,    \
                     size_t k) {                                                          \
        size_t whole = count / 6, k8 = k / 8 * 8;                                         \
        for (size_t i = 0; i < whole; i++) {                                              \
            const char *from = s + (int64_t)(i * 6) * s_i;                                \
            float *to = (float *)(void *)(d + i * stride);                                \
            for (size_t p = 0; p < k8; p += 8, from += 8 * size, to += 48) {              \
                __m256d a[3], b[3];                                                       \
                UNROLL for (int l = 0; l < 3; l++) {                                      \
                    vf x = LD(from + 2 * l * s_i), y = LD(from + (2 * l + 1) * s_i);      \
                    a[l] = _mm256_castps_pd(_mm256_unpacklo_ps(x, y));                    \
                    b[l] = _mm256_castps_pd(_mm256_unpackhi_ps(x, y));                    \
                    if (p * size % 64 == 0) {                                             \
                        soon(from, (6 + 2 * l) * s_i);                                    \
                        soon(from, (7 + 2 * l) * s_i);                                    \
                    }                                                                     \
                }                                                                         \
                six_of(to, a, b);                                                         \
            }                                                                             \
        }                                                                                 \
        if (whole * 6 < count)                                                            \
            edge(d + whole * stride, stride, s + (int64_t)(whole * 6) * s_i, s_i,         \
                 count - whole * 6, k);                                                   \
        if (k8 < k && whole)                                                              \
            edge(d + k8 * 24, stride, s + k8 * size, s_i, whole * 6, k - k8);             \
    }

#define SIX_ACROSS(name, edge, LD, size)                                                  \
    static void name(char *d, size_t stride, const char *s, int64_t s_k, size_t count,    \
                     size_t k) {                                                          \
        /* A whole vector is read where six elements are wanted. */                       \
        size_t whole = count < 8 ? 0 : (count - 2) / 6, k4 = k / 4 * 4;                   \
        for (size_t p = 0; p < k4; p += 4)                                                \
            for (size_t i = 0; i < whole; i++) {                                          \
                const char *from = s + i * 6 * size + (int64_t)p * s_k;                   \
                float *to = (float *)(void *)(d + i * stride) + p * 6;                    \
                UNROLL for (int l = 0; l < 4; l++) soon(from, (4 + l) * s_k);             \
                six_by_four(to, LD(from), LD(from + s_k), LD(from + 2 * s_k),             \
                            LD(from + 3 * s_k));                                          \
            }                                                                             \
        if (whole * 6 < count)                                                            \
            edge(d + whole * stride, stride, s + whole * 6 * size, s_k,                   \
                 count - whole * 6, k);                                                   \
        if (k4 < k && whole)                                                              \
            edge(d + k4 * 24, stride, s + (int64_t)k4 * s_k, s_k, whole * 6, k - k4);     \
    }

/* a: (row 2l, row 2l+1) of k 0, 1 | 4, 5; b: of k 2, 3 | 6, 7. */
static inline void six_of(float *to, const __m256d a[3], const __m256d b[3]) {
    __m256d x[6] = {
        _mm256_unpacklo_pd(a[0], a[1]), _mm256_shuffle_pd(a[2], a[0], 10),
        _mm256_unpackhi_pd(a[1], a[2]), _mm256_unpacklo_pd(b[0], b[1]),
        _mm256_shuffle_pd(b[2], b[0], 10), _mm256_unpackhi_pd(b[1], b[2]),
    };
    UNROLL for (int l = 0; l < 6; l += 2) {
        v_storeu(to + l * 4, _mm256_castpd_ps(_mm256_permute2f128_pd(x[l], x[l + 1], 0x20)));
        v_storeu(to + 24 + l * 4,
                 _mm256_castpd_ps(_mm256_permute2f128_pd(x[l], x[l + 1], 0x31)));
    }
}

/* The first six of each, one after the other. */
static inline void six_by_four(float *to, vf r0, vf r1, vf r2, vf r3) {
    __m256d b = _mm256_permute4x64_pd(_mm256_castps_pd(r1), _MM_SHUFFLE(0, 0, 2, 1));
    __m256d c = _mm256_permute4x64_pd(_mm256_castps_pd(r2), _MM_SHUFFLE(1, 0, 0, 2));
    __m256d d = _mm256_permute4x64_pd(_mm256_castps_pd(r3), _MM_SHUFFLE(2, 1, 0, 0));
    v_storeu(to, _mm256_castpd_ps(_mm256_blend_pd(_mm256_castps_pd(r0), b, 8)));
    v_storeu(to + 8, _mm256_castpd_ps(_mm256_blend_pd(b, c, 12)));
    v_storeu(to + 16, _mm256_castpd_ps(_mm256_blend_pd(c, d, 14)));
}

SIX_ALONG(six_along_32, edge_6_along_32, v_loadu, 4)
SIX_ALONG(six_along_16, edge_6_along_16, v_load16, 2)
SIX_ALONG(six_along_b, edge_6_along_b, v_loadb, 2)
SIX_ACROSS(six_across_32, edge_6_across_32, v_loadu, 4)
SIX_ACROSS(six_across_16, edge_6_across_16, v_load16, 2)
SIX_ACROSS(six_across_b, edge_6_across_b, v_loadb, 2)
PACK_WITH(pack_6, 6, six_across, six_along)

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
    .conv = &conv_table, .qtile = qconv_tile, .qname = "int16_6x16__" ISA_NAME,
    .dw8 = qdw, .dw8_name = "int8_depthwise__" ISA_NAME, .convert = vec_convert, .peak = peak, .peak_flops = PEAK_CHAINS * VW * 2,
};
#endif

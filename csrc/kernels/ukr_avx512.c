/* AVX-512 F, BW, DQ, VL. */
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define ISA_NAME "avx512"
#include "simd_avx512.h"

#include "body_vec.h"

#define PEAK_CHAINS 24
#include "body_gemm.h"

#include "conv_avx512.h"
#include "body_conv.h"

typedef __m512i qi;
static inline qi q_dot(qi s, qi a, qi b) {
    return _mm512_add_epi32(s, _mm512_madd_epi16(a, b));
}
#include "pairs16_avx512.h"
/* A byte of each, lane by lane, as a pair of int16. */
static inline qi q_bytes(const void *a, const void *b, bool sign) {
    __m128i x = _mm_loadu_si128(a), y = _mm_loadu_si128(b);
    __m256i both = _mm256_set_m128i(_mm_unpackhi_epi8(x, y), _mm_unpacklo_epi8(x, y));
    return sign ? _mm512_cvtepi8_epi16(both) : _mm512_cvtepu8_epi16(both);
}
#include "body_qconv.h"
#include "body_qdw.h"

#include "body_attention.h"

#include "tables.h"

PACK(pack_32, 32)

/* Panels of 12: no vector is 12 wide, and masked or overlapping stores cost twice as much as
 * whole ones, so four rows of k become three full vectors. */
static inline void lanes_4x4(float *to, vf x0, vf x1, vf x2, vf x3) {
    vf s0 = _mm512_shuffle_f32x4(x0, x1, 0x44), s1 = _mm512_shuffle_f32x4(x0, x1, 0xee);
    vf s2 = _mm512_shuffle_f32x4(x2, x3, 0x44), s3 = _mm512_shuffle_f32x4(x2, x3, 0xee);
    v_storeu(to, _mm512_shuffle_f32x4(s0, s2, 0x88));
    v_storeu(to + 48, _mm512_shuffle_f32x4(s0, s2, 0xdd));
    v_storeu(to + 96, _mm512_shuffle_f32x4(s1, s3, 0x88));
    v_storeu(to + 144, _mm512_shuffle_f32x4(s1, s3, 0xdd));
}
/* r[i][k] of 12 rows by 16 k: 4x4 blocks are transposed inside the 128-bit lanes, then
 * lanes are dealt out so that k = 4L..4L+3 fill three vectors. */
static inline void transpose_12x16(float *to, const vf r[12]) {
    vf t[12];
#define PD(x) _mm512_castps_pd(x)
    UNROLL for (int g = 0; g < 12; g += 4) {
        vf u0 = _mm512_unpacklo_ps(r[g], r[g + 1]), u1 = _mm512_unpackhi_ps(r[g], r[g + 1]);
        vf u2 = _mm512_unpacklo_ps(r[g + 2], r[g + 3]);
        vf u3 = _mm512_unpackhi_ps(r[g + 2], r[g + 3]);
        t[g] = _mm512_castpd_ps(_mm512_unpacklo_pd(PD(u0), PD(u2)));
        t[g + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(PD(u0), PD(u2)));
        t[g + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(PD(u1), PD(u3)));
        t[g + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(PD(u1), PD(u3)));
    }
#undef PD
    lanes_4x4(to, t[0], t[4], t[8], t[1]);
    lanes_4x4(to + 16, t[5], t[9], t[2], t[6]);
    lanes_4x4(to + 32, t[10], t[3], t[7], t[11]);
}

PACK_LOOPS(pack_12_any, 12)

#define PACK_12(name, LD, LDN, size)                                                      \
    static void pack_12_along_##name(char *d, size_t stride, const char *s, int64_t s_i,  \
                                     size_t count, size_t k) {                            \
        size_t whole = k / 16 * 16, i = 0;                                                \
        for (; i + 12 <= count; i += 12) {                                                \
            float *to = (float *)(void *)(d + i / 12 * stride);                           \
            const char *from = s + (int64_t)i * s_i;                                      \
            for (size_t p = 0; p < whole; p += 16, to += 192, from += 16 * size) {        \
                vf r[12];                                                                 \
                UNROLL for (int l = 0; l < 12; l++) r[l] = LD(from + l * s_i);            \
                transpose_12x16(to, r);                                                   \
            }                                                                             \
        }                                                                                 \
        if (whole < k)                                                                    \
            pack_12_any_along_##name(d + whole * 48, stride, s + whole * size, s_i, i,    \
                                     k - whole);                                          \
        if (i < count)                                                                    \
            pack_12_any_along_##name(d + i / 12 * stride, stride, s + (int64_t)i * s_i,   \
                                     s_i, count - i, k);                                  \
    }                                                                                     \
    static void pack_12_across_##name(char *d, size_t stride, const char *s, int64_t s_k, \
                                      size_t count, size_t k) {                           \
        const __m512i m0 = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 16,    \
                                             17, 18, 19);                                 \
        const __m512i m1 = _mm512_setr_epi32(4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19,    \
                                             20, 21, 22, 23);                             \
        const __m512i m2 = _mm512_setr_epi32(8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22,    \
                                             23, 24, 25, 26, 27);                         \
        size_t whole = k / 4 * 4, full = count / 12 * 12;                                 \
        for (size_t p0 = 0; p0 < whole; p0 += 8) {                                        \
            size_t p1 = p0 + 8 < whole ? p0 + 8 : whole;                                  \
            for (size_t i = 0; i < full; i += 12) {                                       \
                float *to = (float *)(void *)(d + i / 12 * stride) + p0 * 12;             \
                const char *from = s + i * size + (int64_t)p0 * s_k;                      \
                for (size_t p = p0; p < p1; p += 4, to += 48, from += 4 * s_k) {          \
                    vf a = LDN(from, 12), b = LDN(from + s_k, 12);                        \
                    vf c = LDN(from + 2 * s_k, 12), e = LDN(from + 3 * s_k, 12);          \
                    v_storeu(to, _mm512_permutex2var_ps(a, m0, b));                       \
                    v_storeu(to + 16, _mm512_permutex2var_ps(b, m1, c));                  \
                    v_storeu(to + 32, _mm512_permutex2var_ps(c, m2, e));                  \
                }                                                                         \
            }                                                                             \
        }                                                                                 \
        if (whole < k)                                                                    \
            pack_12_any_across_##name(d + whole * 48, stride, s + (int64_t)whole * s_k,   \
                                      s_k, full, k - whole);                              \
        if (full < count)                                                                 \
            pack_12_any_across_##name(d + full / 12 * stride, stride, s + full * size,    \
                                      s_k, count - full, k);                              \
    }
PACK_12(32, v_loadu, v_load_n, 4)
PACK_12(16, v_load16, v_load16_n, 2)
PACK_12(b, v_loadb, v_loadb_n, 2)
PACK_WITH(pack_12, 12, pack_12_across, pack_12_along)

/* acc += b * *p, the broadcast inside the instruction. A register broadcast shared by two
 * products is one load less but one instruction more, and where another hardware thread
 * takes half of the core's issue slots (any cloud machine) instructions are what is short.
 * Four of twelve rows this way: 0.95 of peak alone and 0.64 beside such a neighbour, against
 * 0.93 and 0.57 for none and 0.83 and 0.54 for all. */
#define FMA_EMBED(acc, b, x)                                                              \
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(x))
#ifndef EMBED
#define EMBED 4
#endif

/* m rows of two vectors: 24 of the 32 registers hold sums. */
static inline __attribute__((always_inline)) void rows_of(const size_t m, size_t k,
                                                          const float *a, const float *b,
                                                          float *c, size_t ldc, bool add) {
    vf s[12][2];
    UNROLL for (size_t i = 0; i < m; i++) {
        s[i][0] = s[i][1] = v_set1(0);
        _mm_prefetch((const char *)(c + i * ldc), _MM_HINT_T0);
        _mm_prefetch((const char *)(c + i * ldc + 16), _MM_HINT_T0);
    }
#define STEP(o)                                                                           \
    {                                                                                     \
        vf b0 = v_loadu(b + o * 32), b1 = v_loadu(b + o * 32 + 16);                       \
        UNROLL for (size_t i = 0; i < m; i++) {                                           \
            if (i < EMBED) {                                                              \
                FMA_EMBED(s[i][0], b0, a[o * 12 + i]);                                    \
                FMA_EMBED(s[i][1], b1, a[o * 12 + i]);                                    \
            } else {                                                                      \
                vf v = v_set1(a[o * 12 + i]);                                             \
                s[i][0] = v_fma(v, b0, s[i][0]);                                          \
                s[i][1] = v_fma(v, b1, s[i][1]);                                          \
            }                                                                             \
        }                                                                                 \
    }
    size_t p = 0;
    for (; p + 4 <= k; p += 4, a += 48, b += 128) {
        STEP(0) STEP(1) STEP(2) STEP(3)
    }
    for (; p < k; p++, a += 12, b += 32) STEP(0)
#undef STEP
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
    {.name = "f32_12x32__avx512", .keeps = ANE_PRECISION_HIGHEST, .a_types = ANE_FLOATS,
     .b_types = ANE_FLOATS, .mr = 12, .nr = 32, .kr = 1, .unit = 4, .ukr = ukr_12x32,
     .pack_a = pack_12, .pack_b = pack_32},
};

const ane_kernels ane_kernels__avx512 = {
    .name = ISA_NAME, .entries = entries, .n_entries = 1, .vec = &vec_table,
    .tile = tile_out, .gemv_rows = gemv_rows, .gemv_cols = gemv_cols,
    .attn_forward = attn_forward, .attn_rescale = attn_rescale,
    .attn_mask = attn_mask, .attn_backward = attn_backward,
    .conv = &conv_table, .qtile = qconv_tile, .qname = "int16_12x32__" ISA_NAME,
    .dw8 = qdw, .dw8_name = "int8_depthwise__" ISA_NAME, .convert = vec_convert, .peak = peak, .peak_flops = PEAK_CHAINS * VW * 2,
};
#endif

/* FEAT_BF16: pairs of bf16 products into fp32 sums, for `medium`. */
#if defined(__aarch64__) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include <arm_neon.h>

#include "simd.h"

#include "pack16_neon.h"

#include "tables.h"

PACK16_NEON(pack_8, bf16, 8, 2)

/* Eight rows of eight columns; a panel's step is two k: [k / 2][8][2]. */
static void ukr_8x8(size_t m, size_t k, const void *va, const void *vb, float *c, size_t ldc,
                    bool add) {
    const bfloat16_t *a = va, *b = vb;
    float32x4_t s[8][2];
    UNROLL for (int i = 0; i < 8; i++) s[i][0] = s[i][1] = vdupq_n_f32(0);
    for (size_t p = 0; p < k; p += 2, a += 16, b += 16) {
        bfloat16x8_t x0 = vld1q_bf16(a), x1 = vld1q_bf16(a + 8);
        bfloat16x8_t y0 = vld1q_bf16(b), y1 = vld1q_bf16(b + 8);
#define ROW(i, x, lane)                                                                   \
    s[i][0] = vbfdotq_laneq_f32(s[i][0], y0, x, lane);                                    \
    s[i][1] = vbfdotq_laneq_f32(s[i][1], y1, x, lane);
        ROW(0, x0, 0) ROW(1, x0, 1) ROW(2, x0, 2) ROW(3, x0, 3)
        ROW(4, x1, 0) ROW(5, x1, 1) ROW(6, x1, 2) ROW(7, x1, 3)
#undef ROW
    }
    UNROLL for (size_t i = 0; i < 8; i++) {
        if (i < m) {
            float *to = c + i * ldc;
            UNROLL for (int j = 0; j < 2; j++)
                vst1q_f32(to + j * 4, add ? vaddq_f32(vld1q_f32(to + j * 4), s[i][j]) : s[i][j]);
        }
    }
}

static const ane_gemm_entry entries[] = {
    {.name = "bf16f32_8x8__neonbf16", .keeps = ANE_PRECISION_MEDIUM, .a_types = ANE_FLOATS,
     .b_types = ANE_FLOATS, .mr = 8, .nr = 8, .kr = 2, .unit = 2, .ukr = ukr_8x8,
     .pack_a = pack_8, .pack_b = pack_8},
};

const ane_kernels ane_kernels__neonbf16 = {.name = "neonbf16", .entries = entries,
                                           .n_entries = 1};
#endif

/* FEAT_FHM: fp16 products into fp32 sums in one instruction. The products are exact, so this
 * keeps the strictest promise at half the packed bytes. */
#if defined(__aarch64__) && defined(__ARM_FEATURE_FP16_FML)
#include <arm_neon.h>

#include "simd.h"

#include "pack16_neon.h"

#include "tables.h"

PACK16_NEON(pack_8, same, 8, 1)

static void ukr_8x8(size_t m, size_t k, const void *va, const void *vb, float *c, size_t ldc,
                    bool add) {
    const float16_t *a = va, *b = vb;
    float32x4_t s[8][2];
    UNROLL for (int i = 0; i < 8; i++) s[i][0] = s[i][1] = vdupq_n_f32(0);
    for (size_t p = 0; p < k; p++, a += 8, b += 8) {
        float16x8_t x = vld1q_f16(a), y = vld1q_f16(b);
#define ROW(i)                                                                            \
    s[i][0] = vfmlalq_laneq_low_f16(s[i][0], y, x, i);                                    \
    s[i][1] = vfmlalq_laneq_high_f16(s[i][1], y, x, i);
        ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7)
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
    {.name = "f16f32_8x8__neonfhm", .keeps = ANE_PRECISION_HIGHEST, .a_types = ANE_BIT(ANE_F16),
     .b_types = ANE_BIT(ANE_F16), .mr = 8, .nr = 8, .kr = 1, .unit = 2, .ukr = ukr_8x8,
     .pack_a = pack_8, .pack_b = pack_8},
};

const ane_kernels ane_kernels__neonfhm = {.name = "neonfhm", .entries = entries, .n_entries = 1};
#endif

/* FEAT_FP16: fp16 multiply-adds in chains of 64, flushed to fp32: `high`. A chunk that leaves
 * fp16's range is done again in fp32. */
#if defined(__aarch64__) && defined(__ARM_FEATURE_FP16_VECTOR_ARITHMETIC)
#include <arm_neon.h>

#include "simd.h"

#include "pack16_neon.h"

#include "tables.h"

#define CHUNK 64

PACK16_NEON(pack_8, same, 8, 1)
PACK16_NEON(pack_24, same, 24, 1)

static void redo(size_t m, size_t k, const float16_t *a, const float16_t *b, float *c,
                 size_t ldc, bool add) {
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < 24; j += 4) {
            float32x4_t s = vdupq_n_f32(0);
            for (size_t p = 0; p < k; p++) {
                float32x4_t y = vcvt_f32_f16(vld1_f16(b + p * 24 + j));
                s = vfmaq_n_f32(s, y, (float)a[p * 8 + i]);
            }
            float *to = c + i * ldc + j;
            vst1q_f32(to, add ? vaddq_f32(vld1q_f32(to), s) : s);
        }
}

/* Eight rows of three vectors of eight: 24 accumulators. */
static void ukr_8x24(size_t m, size_t k, const void *va, const void *vb, float *c, size_t ldc,
                     bool add) {
    const float16_t *a = va, *b = vb;
    do {
        size_t chunk = k < CHUNK ? k : CHUNK;
        const float16_t *a0 = a, *b0 = b;
        float16x8_t s[8][3];
        UNROLL for (int i = 0; i < 8; i++) s[i][0] = s[i][1] = s[i][2] = vdupq_n_f16(0);
        for (size_t p = 0; p < chunk; p++, a += 8, b += 24) {
            float16x8_t x = vld1q_f16(a);
            float16x8_t y0 = vld1q_f16(b), y1 = vld1q_f16(b + 8), y2 = vld1q_f16(b + 16);
#define ROW(i)                                                                            \
    s[i][0] = vfmaq_laneq_f16(s[i][0], y0, x, i);                                         \
    s[i][1] = vfmaq_laneq_f16(s[i][1], y1, x, i);                                         \
    s[i][2] = vfmaq_laneq_f16(s[i][2], y2, x, i);
            ROW(0) ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7)
#undef ROW
        }
        uint16x8_t worst = vdupq_n_u16(0), high = vdupq_n_u16(0x7c00);
        UNROLL for (int i = 0; i < 8; i++)
            UNROLL for (int j = 0; j < 3; j++)
                worst = vmaxq_u16(worst, vandq_u16(vreinterpretq_u16_f16(s[i][j]), high));
        if (vmaxvq_u16(worst) == 0x7c00) {
            redo(m, chunk, a0, b0, c, ldc, add);
        } else {
            UNROLL for (size_t i = 0; i < 8; i++) {
                if (i < m) {
                    UNROLL for (int j = 0; j < 3; j++) {
                        float *to = c + i * ldc + j * 8;
                        float32x4_t x = vcvt_f32_f16(vget_low_f16(s[i][j]));
                        float32x4_t y = vcvt_f32_f16(vget_high_f16(s[i][j]));
                        vst1q_f32(to, add ? vaddq_f32(vld1q_f32(to), x) : x);
                        vst1q_f32(to + 4, add ? vaddq_f32(vld1q_f32(to + 4), y) : y);
                    }
                }
            }
        }
        add = true;
        k -= chunk;
    } while (k);
}

static const ane_gemm_entry entries[] = {
    {.name = "f16_8x24__neonfp16", .keeps = ANE_PRECISION_HIGH, .a_types = ANE_BIT(ANE_F16),
     .b_types = ANE_BIT(ANE_F16), .mr = 8, .nr = 24, .kr = 1, .unit = 2, .ukr = ukr_8x24,
     .pack_a = pack_8, .pack_b = pack_24},
};

const ane_kernels ane_kernels__neonfp16 = {.name = "neonfp16", .entries = entries,
                                           .n_entries = 1};
#endif

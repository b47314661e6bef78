/* AArch64 Advanced SIMD, the baseline of every 64-bit Arm. */
#if defined(__aarch64__)
#define ISA_NAME "neon"
#include "simd_neon.h"

#include "body_vec.h"

#define PEAK_CHAINS 24
#include "body_gemm.h"

#include "conv_neon.h"
#include "body_conv.h"

#include "qi_neon.h"
static inline qi q_dot(qi s, qi a, qi b) {
    int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
    return vaddq_s32(s, vpaddq_s32(low, high));
}
/* A byte of each, lane by lane, as a pair of int16. */
static inline qi q_bytes(const void *a, const void *b, bool sign) {
    uint8_t x[8] = {0}, y[8] = {0};
    memcpy(x, a, 4);
    memcpy(y, b, 4);
    uint8x8_t both = vzip1_u8(vld1_u8(x), vld1_u8(y));
    int16x8_t wide = sign ? vmovl_s8(vreinterpret_s8_u8(both))
                          : vreinterpretq_s16_u16(vmovl_u8(both));
    return vreinterpretq_s32_s16(wide);
}
#include "body_qconv.h"
#include "body_qdw.h"

#include "body_attention.h"

#include "tables.h"

PACK(pack_8, 8)
PACK(pack_12, 12)

/* Eight rows of three vectors: 24 of the 32 registers hold sums. Rows of A past m are zeros
 * and are not stored. */
static void ukr_8x12(size_t m, size_t k, const void *va, const void *vb, float *c, size_t ldc,
                     bool add) {
    const float *a = va, *b = vb;
    vf s[8][3];
    UNROLL for (int i = 0; i < 8; i++) s[i][0] = s[i][1] = s[i][2] = v_set1(0);
    for (size_t p = 0; p < k; p++, a += 8, b += 12) {
        vf a0 = vld1q_f32(a), a1 = vld1q_f32(a + 4);
        vf b0 = vld1q_f32(b), b1 = vld1q_f32(b + 4), b2 = vld1q_f32(b + 8);
#define ROW(i, from, lane)                                                                \
    s[i][0] = vfmaq_laneq_f32(s[i][0], b0, from, lane);                                   \
    s[i][1] = vfmaq_laneq_f32(s[i][1], b1, from, lane);                                   \
    s[i][2] = vfmaq_laneq_f32(s[i][2], b2, from, lane);
        ROW(0, a0, 0) ROW(1, a0, 1) ROW(2, a0, 2) ROW(3, a0, 3)
        ROW(4, a1, 0) ROW(5, a1, 1) ROW(6, a1, 2) ROW(7, a1, 3)
#undef ROW
    }
    UNROLL for (size_t i = 0; i < 8; i++) {
        if (i < m) {
            float *to = c + i * ldc;
            UNROLL for (int j = 0; j < 3; j++)
                v_storeu(to + j * 4, add ? v_add(v_loadu(to + j * 4), s[i][j]) : s[i][j]);
        }
    }
}

static const ane_gemm_entry entries[] = {
    {.name = "f32_8x12__neon", .keeps = ANE_PRECISION_HIGHEST, .a_types = ANE_FLOATS,
     .b_types = ANE_FLOATS, .mr = 8, .nr = 12, .kr = 1, .unit = 4, .ukr = ukr_8x12,
     .pack_a = pack_8, .pack_b = pack_12},
};

const ane_kernels ane_kernels__neon = {
    .name = ISA_NAME, .entries = entries, .n_entries = 1, .vec = &vec_table,
    .tile = tile_out, .gemv_rows = gemv_rows, .gemv_cols = gemv_cols,
    .attn_forward = attn_forward, .attn_rescale = attn_rescale,
    .attn_mask = attn_mask, .attn_backward = attn_backward,
    .conv = &conv_table, .qtile = qconv_tile, .qname = "int16_8x8__" ISA_NAME,
    .dw8 = qdw, .dw8_name = "int8_depthwise__" ISA_NAME, .convert = vec_convert, .peak = peak, .peak_flops = PEAK_CHAINS * VW * 2,
};
#endif

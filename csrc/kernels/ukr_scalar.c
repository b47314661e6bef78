/* The reference table: plain C, complete, and the meaning of every other table. */
#define ISA_NAME "scalar"
#include "simd_scalar.h"

#include "body_vec.h"

#define PEAK_CHAINS 8
#include "body_gemm.h"

#define CONV_MR 4
#define CONV_NV 4
#define CONV_NAME "4x4"
#define CONV_CASES                                                                        \
    CONV_CASE(1, 1) CONV_CASE(2, 1) CONV_CASE(3, 1) CONV_CASE(4, 1)                       \
    CONV_CASE(1, 2) CONV_CASE(2, 2) CONV_CASE(3, 2) CONV_CASE(4, 2)                       \
    CONV_CASE(1, 3) CONV_CASE(2, 3) CONV_CASE(3, 3) CONV_CASE(4, 3)                       \
    CONV_CASE(1, 4) CONV_CASE(2, 4) CONV_CASE(3, 4) CONV_CASE(4, 4)
#include "body_conv.h"

typedef int32_t qi;
static inline qi q_zero(void) { return 0; }
static inline qi q_load(const void *p) {
    qi x;
    memcpy(&x, p, sizeof x);
    return x;
}
static inline qi q_pair(const void *p) { return q_load(p); }
static inline qi q_dot(qi s, qi a, qi b) {
    int16_t x[2], y[2];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    return s + x[0] * y[0] + x[1] * y[1];
}
/* An unsigned byte times a signed one; what sums begin with may be large, so they wrap. */
static inline qi q_dot4(qi s, qi a, qi b) {
    uint8_t x[4];
    int8_t y[4];
    memcpy(x, &a, sizeof x);
    memcpy(y, &b, sizeof y);
    int32_t sum = x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3];
    return (qi)((uint32_t)s + (uint32_t)sum);
}
static inline qi q_add(qi a, qi b) { return (qi)((uint32_t)a + (uint32_t)b); }
static inline qi q_bits(vf x) { return q_load(&x); }
static inline vf q_raw(qi x) {
    vf y;
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline vf q_float(qi x) { return (vf)x; }
/* A byte of each as a pair of int16. */
static inline qi q_bytes(const void *a, const void *b, bool sign) {
    int16_t x[2];
    qi q;
    for (int i = 0; i < 2; i++) {
        const void *p = i ? b : a;
        x[i] = sign ? *(const int8_t *)p : *(const uint8_t *)p;
    }
    memcpy(&q, x, sizeof q);
    return q;
}
#include "body_qconv.h"
#include "body_qdw.h"
#define QCONV_TILE quad_tile
#define QCONV_ROWS quad_rows
#define QCONV_DOT q_dot4
#include "body_qconv.h"

#include "body_attention.h"

#include "tables.h"

PACK(pack_4, 4)
PACK(pack_8, 8)

static void ukr_4x8(size_t m, size_t k, const void *va, const void *vb, float *c, size_t ldc,
                    bool add) {
    const float *a = va, *b = vb;
    float s[4][8];
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < 8; j++) s[i][j] = 0.0f;
    for (size_t p = 0; p < k; p++, a += 4, b += 8)
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < 8; j++) s[i][j] += a[i] * b[j];
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < 8; j++) c[i * ldc + j] = add ? c[i * ldc + j] + s[i][j] : s[i][j];
}

static const ane_gemm_entry entries[] = {
    {.name = "f32_4x8__scalar", .keeps = ANE_PRECISION_HIGHEST, .a_types = ANE_FLOATS,
     .b_types = ANE_FLOATS, .mr = 4, .nr = 8, .kr = 1, .unit = 4, .ukr = ukr_4x8,
     .pack_a = pack_4, .pack_b = pack_8},
};

const ane_kernels ane_kernels__scalar = {
    .name = ISA_NAME, .entries = entries, .n_entries = 1, .vec = &vec_table,
    .tile = tile_out, .gemv_rows = gemv_rows, .gemv_cols = gemv_cols,
    .attn_forward = attn_forward, .attn_rescale = attn_rescale,
    .attn_mask = attn_mask, .attn_backward = attn_backward,
    .conv = &conv_table, .qtile = qconv_tile, .qname = "int16_4x4__" ISA_NAME,
    .dw8 = qdw, .dw8_name = "int8_depthwise__" ISA_NAME,
    .quad = quad_tile, .quad_x = ANE_U8, .quad_name = "int8_4x4__" ISA_NAME,
    .convert = vec_convert, .peak = peak, .peak_flops = PEAK_CHAINS * VW * 2,
};

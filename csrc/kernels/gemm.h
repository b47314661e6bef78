/* Matrix product of strided operands. No intrinsics here: the macro-kernel packs both
 * operands into panels and calls the micro-kernel that kernels/select.c chose.
 *
 *     C[m, n] = act(alpha * sum_k A[m, k] * B[k, n] + bias) + beta * R[m, n]
 *
 * Sums are split into blocks that depend on the shape only, never on the thread count:
 * same bits for every thread count.
 */
#ifndef ANE_GEMM_H
#define ANE_GEMM_H

#include "../base/status.h"

struct ane_room;                        /* base/sync.h */

typedef enum ane_precision {
    ANE_PRECISION_HIGHEST, ANE_PRECISION_HIGH, ANE_PRECISION_MEDIUM
} ane_precision;

/* Element (i, j) is at data + i*rs + j*cs (bytes; 0 and negative are legal).
 * dtype: ANE_F16, ANE_BF16 or ANE_F32. */
typedef struct ane_mat {
    void *data;
    ane_dtype dtype;
    int64_t rs, cs;
} ane_mat;

typedef enum ane_act {
    ANE_ACT_NONE, ANE_ACT_RELU, ANE_ACT_SIGMOID, ANE_ACT_SILU, ANE_ACT_TANH, ANE_ACT_GELU
} ane_act;

typedef struct ane_epilogue {
    float alpha;                /* 1 */
    const void *bias;           /* NULL: none */
    ane_dtype bias_dtype;
    int64_t bias_rs, bias_cs;   /* bytes; one of them is usually 0 */
    ane_act act;
    const ane_mat *residual;    /* NULL: none. May be C itself (exact alias). */
    float beta;                 /* 1 where there is a residual */
} ane_epilogue;

typedef struct ane_gemm_args {
    int64_t m, n, k;
    ane_mat a, b, c;
    const ane_epilogue *epilogue;       /* NULL: C = A B */
    ane_precision precision;
    const void *packed_a, *packed_b;    /* from ane_gemm_pack_*, or NULL */
    /* Batches: `batch` products, operand p at data + p*stride (bytes, 0 broadcasts). */
    int64_t batch;
    int64_t a_batch, b_batch, c_batch, r_batch;
} ane_gemm_args;

/* Bytes of scratch that a run of these args needs (shape only). */
size_t ane_gemm_scratch(const ane_gemm_args *args);
/* States what a call without scratch takes. packed_a and packed_b tell only whether they will be
 * given; of addresses only which of them are the same counts. */
void ane_gemm_room(const ane_gemm_args *args, struct ane_room *room);
/* scratch: 64-byte aligned, or NULL (allocated for the call). C must not overlap A or B. */
ane_status ane_gemm(const ane_gemm_args *args, void *scratch, ane_error *err);
/* "f32_12x32__avx512", for reports: what would run these args. */
const char *ane_gemm_name(const ane_gemm_args *args);
/* Packing one operand once: bytes needed (0: what runs these args takes no packed operand),
 * and the packing (threaded). */
size_t ane_gemm_pack_bytes(const ane_gemm_args *args, int which /* 0: A, 1: B */);
ane_status ane_gemm_pack(const ane_gemm_args *args, int which, void *dst, ane_error *err);

#endif

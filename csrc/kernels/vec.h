/* Vector primitives: one row in, one row out, in fp32. A fused chain loads a tile that fits
 * the first-level cache (ANE_VEC_TILE elements), runs it through these, and stores it with
 * conversion. One table per instruction set, all made from kernels/body_vec.h; get the
 * chosen one with ane_vec_get().
 *
 *  - Rows are contiguous, any alignment, any length (0 too). y may be exactly one of the
 *    inputs; partial overlap is not allowed. Nothing past n is read or written.
 *  - Reductions add in 64 interleaved chains that are then added pairwise: the order
 *    depends on n only and is the same in every table. A longer row than fits one call is
 *    not to be split differently for different thread counts.
 *  - Errors in units of the last fp32 place: add sub mul div sqrt round once (0.5); exp 2;
 *    log tanh sigmoid silu erf softplus 4; gelu 16; gelu_tanh and gelu_sigmoid as far as
 *    their argument's rounding allows. Measured over all halves and random floats by
 *    tests/test_kernels.py.
 *    NaN in gives NaN out; max, min, relu keep NaN; results may be subnormal.
 */
#ifndef ANE_VEC_H
#define ANE_VEC_H

#include "../base/status.h"

#define ANE_VEC_TILE 1024

#define ANE_VEC_UNARY_MAP(X)                                                              \
    X(EXP, exp) X(LOG, log) X(TANH, tanh) X(SIGMOID, sigmoid) X(SILU, silu)               \
    X(GELU, gelu) X(GELU_TANH, gelu_tanh) X(GELU_SIGMOID, gelu_sigmoid) X(ERF, erf)       \
    X(RELU, relu) X(SQRT, sqrt) X(RSQRT, rsqrt) X(RECIP, recip) X(ABS, abs) X(NEG, neg)   \
    X(SQUARE, square) X(SOFTPLUS, softplus)

#define ANE_VEC_BINARY_MAP(X)                                                             \
    X(ADD, add) X(SUB, sub) X(MUL, mul) X(DIV, div) X(MAX, max) X(MIN, min)

typedef enum ane_vec_unary {
#define X(N, n) ANE_VEC_##N,
    ANE_VEC_UNARY_MAP(X)
#undef X
    ANE_VEC_UNARY_COUNT
} ane_vec_unary;

typedef enum ane_vec_binary {
#define X(N, n) ANE_VEC_##N,
    ANE_VEC_BINARY_MAP(X)
#undef X
    ANE_VEC_BINARY_COUNT
} ane_vec_binary;

/* Functions of one operand that cost no more than reading and writing their row. */
#define ANE_STEP_UNARY_MAP(X)                                                             \
    X(RELU, relu) X(SQRT, sqrt) X(RSQRT, rsqrt) X(RECIP, recip) X(ABS, abs) X(NEG, neg)   \
    X(SQUARE, square)

/* What the other operand of a step is: the scalar s, or a row of fp32, fp16 or bf16; the one
 * on the left is marked R. */
enum { ANE_STEP_S, ANE_STEP_32, ANE_STEP_16, ANE_STEP_B,
       ANE_STEP_RS, ANE_STEP_R32, ANE_STEP_R16, ANE_STEP_RB, ANE_STEP_KINDS };
#define ANE_STEP_UNARY(op) (op)
#define ANE_STEP(op, kind) (ANE_VEC_UNARY_COUNT + (op) * ANE_STEP_KINDS + (kind))

#define ANE_STEPS_MAX 32                        /* of one call */

typedef struct ane_vec_step {
    int code;                                   /* ANE_STEP_UNARY or ANE_STEP */
    float s;
    const void *row;                            /* any alignment */
} ane_vec_step;

typedef void ane_vec1_fn(float *y, const float *x, size_t n);
typedef void ane_vec2_fn(float *y, const float *a, const float *b, size_t n);
typedef void ane_vecs_fn(float *y, const float *a, float s, size_t n);
typedef float ane_vecr_fn(const float *x, size_t n);

typedef struct ane_vec {
    const char *name;                           /* of the table: "avx2" */
    /* dtype: ANE_F32, ANE_F16, ANE_BF16. Exact up; nearest even down. */
    void (*load)(float *y, const void *x, ane_dtype dtype, size_t n);
    void (*store)(void *y, ane_dtype dtype, const float *x, size_t n);
    ane_vec1_fn *unary[ANE_VEC_UNARY_COUNT];
    ane_vec2_fn *binary[ANE_VEC_BINARY_COUNT];  /* y = a op b */
    ane_vecs_fn *scalar[ANE_VEC_BINARY_COUNT];  /* y = a op s */
    ane_vecs_fn *rscalar[ANE_VEC_BINARY_COUNT]; /* y = s op a */
    /* y = the steps, one after the other, of x; floats in, fp32 between, one rounding out:
     * bit for bit what load, the rows below and store give. y may be exactly x or a row (of
     * the same size of element). stream: the result is written past the caches. */
    void (*steps)(void *y, ane_dtype to, bool stream, const void *x, ane_dtype from,
                  const ane_vec_step *steps, size_t n_steps, size_t n);
    void (*affine)(float *y, const float *x, float scale, float shift, size_t n);
    void (*axpy)(float *y, float s, const float *x, size_t n);          /* y += s*x */
    void (*muladd)(float *y, const float *a, const float *b, size_t n); /* y += a*b */
    ane_vecr_fn *sum, *sumsq, *max, *min;       /* of nothing: 0, 0, -inf, inf */
    float (*dot)(const float *a, const float *b, size_t n);
    float (*sumsq_about)(const float *x, float center, size_t n);
    /* y = exp(scale*x - shift), returns the sum of y: one pass of a streaming softmax. */
    float (*exp_sum)(float *y, const float *x, float scale, float shift, size_t n);
    /* y = softmax(x), max subtracted. A row of -inf gives NaN. n > 0. */
    ane_vec1_fn *softmax;
    /* 8-bit rows, int8 (sign) or uint8. Quotients rounded to the nearest even as if in double,
     * plus zero, saturated, NaN as 0; (v - zero) * scale; v - zero. */
    void (*quantize)(void *y, bool sign, const float *x, double scale, int zero, size_t n);
    void (*dequantize)(float *y, const void *x, bool sign, float scale, int zero, size_t n);
    void (*widen)(int16_t *y, const void *x, bool sign, int zero, size_t n);
} ane_vec;

/* The table of the chosen instruction set; never NULL. */
const ane_vec *ane_vec_get(void);

#endif

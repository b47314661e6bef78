/* Fusion as grouping: a pass says which ops a device may compute as one step; the graph
 * itself stays as it was. An op outside every group is a step of its own. A group runs
 * where its last op stands (or at `at`), so nobody may need one of its values before that.
 */
#ifndef ANE_GROUP_H
#define ANE_GROUP_H

#include "../ir/ops.h"

/* Every fusion has its own off switch: its name here, in ANETORCH_NO_FUSE. Tests take the list
 * from here, and docs/environment.md describes each. */
#define ANE_FUSION_MAP(X)                                                                  \
    X(attention)    /* softmax(scale Q K' + mask) V and its derivative, streamed */         \
    X(product)      /* bias, scale, activation, residual, casts around a matrix product */  \
    X(conv)         /* batch_norm, scale, activation, residual, a cast behind a conv */     \
    X(quant)        /* dequantisation in front of a product of 8-bit operands */            \
    X(requant)      /* quantisation behind a convolution */                                 \
    X(softmax)      /* scale and mask (any chain) in front of a softmax */                  \
    X(reduce)       /* a chain in front of a reduction */                                   \
    X(chain)        /* element-wise ops into one pass */                                    \
    X(steps)        /* cheap ops of a chain on vectors that stay in registers */

/* Families of fast kernels, switched off alone by ANETORCH_NO_KERNELS: plain evaluation, or
 * (product, layout, spans, keep) another way. */
#define ANE_FAMILY_MAP(X) X(conv) X(pool) X(norm) X(int8) X(product) X(layout) X(spans) X(keep)

typedef enum ane_fusion {
#define X(name) ANE_FUSE_##name,
    ANE_FUSION_MAP(X)
#undef X
} ane_fusion;

typedef enum ane_family {
#define X(name) ANE_FAMILY_##name,
    ANE_FAMILY_MAP(X)
#undef X
} ane_family;

typedef enum ane_group_kind {
    ANE_GROUP_CHAIN, ANE_GROUP_PRODUCT, ANE_GROUP_REDUCE, ANE_GROUP_SOFTMAX,
    ANE_GROUP_ATTENTION, ANE_GROUP_CONV
} ane_group_kind;

/* act(alpha * x y + bias) + beta * residual, in this order. */
typedef struct ane_product {
    double alpha, beta;
    const ane_value *bias, *residual;   /* NULL: none */
    const char *act;                    /* op name; NULL: none */
    const ane_value *out;               /* what the group leaves */
} ane_product;

/* The matrices in the last two dims of a value, swapped when t. v NULL: none. */
typedef struct ane_side {
    const ane_value *v;
    bool t;
} ane_side;

/* out = softmax(scale q k' + mask) v with q [queries, qk_dim], k [keys, qk_dim], v [keys,
 * v_dim], out [queries, v_dim] below the batch dims of `scores`; and the derivative for dout
 * (see pass/fuse_attention.c), whose scores get the factor dscale. Results may be missing:
 * of the derivative q, k, dout and v are there whenever one result is. */
typedef struct ane_attention_core {
    ane_side q, k, v, out, dout, dq, dk, dv;
    const ane_value *last[4];           /* where out, dq, dk, dv end up behind shape ops */
    const ane_type *scores;             /* batch dims, and two more */
    int64_t queries, keys, qk_dim, v_dim;
    double scale, dscale;
    ane_side mask;                      /* floats: mask_scale * mask is added to the scaled
                                           scores; bool: where it is not `keep`, they are fill */
    const ane_type *mask_over;          /* what it is broadcast to, before the swap */
    double mask_scale, fill;
    bool keep;
    bool masked;                        /* the bool mask also stands on dS: 0 where not keep */
} ane_attention_core;

/* after(before(affine(conv)) + residual), the affine ops in order. */
#define ANE_CONV_AFFINE 4
typedef struct ane_conv_fused {
    int n_affine;
    const ane_op *affine[ANE_CONV_AFFINE];      /* batch_norm, mul, add; per channel */
    const ane_op *before, *after;               /* activations; NULL: none */
    const ane_value *residual;                  /* NULL: none */
    const ane_value *out;                       /* what the group leaves, unless only eight */
    const ane_op *eight;                        /* quantize behind it; NULL: none */
    bool only_eight;                            /* nobody else takes `out` */
} ane_conv_fused;

typedef struct ane_group {
    ane_group_kind kind;
    int n, cap;
    int *ops;                           /* indices, ascending */
    int at;                             /* index it runs at: the last one, or earlier where
                                           what follows only moves */
    int core;                           /* index of the product, reduction, softmax; or -1 */
    bool dead;                          /* merged into another group */
    ane_product product;
    const ane_attention_core *attention;
    ane_conv_fused conv;
} ane_group;

/* The body's ops by number, who uses what, and the groups so far. */
typedef struct ane_graph {
    const ane_function *fn;
    ane_arena *arena;
    int n;
    const ane_op **ops;
    int *number;                        /* by op id */
    int **users, *n_users;              /* by value id: op numbers, ascending */
    bool *output;                       /* by value id: leaves the function */
    uint32_t n_values;
    ane_group **group;                  /* by op number; NULL: alone */
    bool *folded;                       /* by op number: a widening cast that all its users
                                           take unconverted */
    bool *squeeze;                      /* by op number: ane_op_is_squeeze */
    bool single;                        /* no op may join another: numerics that round each */
} ane_graph;

/* Everything lives in the arena. */
ane_status ane_graph_build(const ane_function *f, ane_arena *arena, ane_graph *g,
                           ane_error *err);
/* All fusions that are switched on. */
ane_status ane_graph_fuse(ane_graph *g, ane_error *err);
bool ane_fusion_on(const ane_graph *g, ane_fusion which);
bool ane_kernel_on(ane_family which);

/* In fuse_*.c; run in this order. */
ane_status ane_fuse_attention(ane_graph *g, ane_error *err);
void ane_fuse_quant(ane_graph *g);
ane_status ane_fuse_conv(ane_graph *g, ane_error *err);
/* Is op a quantize to bytes with one constant scale and zero point? */
bool ane_op_quantizes(const ane_op *op, double *scale, int *zero);
ane_status ane_fuse_product(ane_graph *g, ane_error *err);
ane_status ane_fuse_rows(ane_graph *g, ane_error *err);
ane_status ane_fuse_chain(ane_graph *g, ane_error *err);

/* Element-wise ops that a device can chain in fp32 (floats), int32 and bool. */
bool ane_op_is_pointwise(const ane_op *op);
/* Result and operand differ in unit dims only: nothing moves, nothing is renumbered. */
bool ane_op_is_squeeze(const ane_op *op);
/* How many squeezes in a row are seen through: fusion gives up behind more, so that no program
 * makes it walk, or recurse, far. */
#define ANE_SQUEEZES 64
/* v, or what it is a squeeze-like view of. */
const ane_value *ane_value_through(const ane_value *v);
bool ane_shape_same_but_ones(const ane_type *a, const ane_type *b);
bool ane_dtype_is_float(ane_dtype d);           /* fp16, bf16, fp32: what steps compute in */
bool ane_op_is_product(const ane_op *op);       /* a matmul or linear of floats */
/* Copies of x along a dim: a tile, or a concat of one value (whose x is values[0]). */
bool ane_op_is_repeat(const ane_op *op);
bool ane_op_is_conv(const ane_op *op);          /* conv or conv_transpose of floats */
/* A linear or matmul of any rows by a matrix. */
bool ane_op_is_fixed_product(const ane_op *op);
/* What a quantised product is made of. */
typedef struct ane_quantized {
    const ane_op *dequantize;
    const ane_value *x, *w;             /* the 8-bit values; w is constant */
    double x_scale;
    int x_zero, w_zero;
    const ane_const *w_scale;           /* one, or one per output channel */
} ane_quantized;
bool ane_op_is_quantized(const ane_graph *g, const ane_op *op, ane_quantized *q);
/* The only op that uses v, looking through squeezes; -1: none or several, or an output. */
int ane_value_only_user(const ane_graph *g, const ane_value *v);
/* Do all users outside grp stand after op number `after`? */
bool ane_uses_after(const ane_graph *g, const ane_value *v, const ane_group *grp, int after);
/* Does v leave the group (an output, or a user outside)? */
bool ane_value_escapes(const ane_graph *g, const ane_value *v, const ane_group *grp);

ane_group *ane_group_new(ane_graph *g, ane_group_kind kind);
bool ane_group_add(ane_graph *g, ane_group *grp, int op);       /* false: no memory */

#endif

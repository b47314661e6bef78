/* Fusion as grouping: a pass says which ops a device may compute as one step; the graph
 * itself stays as it was. An op outside every group is a step of its own. A group runs
 * where its last op stands, so nobody may need one of its values before that.
 *
 * Each kind has its own off switch in ANETORCH_NO_FUSE, named as here:
 *     product   bias, scale, activation, residual and casts around a matrix product
 *     softmax   scale and mask (any chain) in front of a softmax
 *     reduce    a chain in front of a reduction
 *     chain     element-wise ops into one pass
 */
#ifndef ANE_GROUP_H
#define ANE_GROUP_H

#include "../ir/ops.h"

typedef enum ane_group_kind {
    ANE_GROUP_CHAIN, ANE_GROUP_PRODUCT, ANE_GROUP_REDUCE, ANE_GROUP_SOFTMAX
} ane_group_kind;

/* act(alpha * x y + bias) + beta * residual, in this order. */
typedef struct ane_product {
    double alpha, beta;
    const ane_value *bias, *residual;   /* NULL: none */
    const char *act;                    /* op name; NULL: none */
    const ane_value *out;               /* what the group leaves */
} ane_product;

typedef struct ane_group {
    ane_group_kind kind;
    int n, cap;
    int *ops;                           /* indices, ascending */
    int core;                           /* index of the product, reduction, softmax; or -1 */
    bool dead;                          /* merged into another group */
    ane_product product;
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
    bool single;                        /* no op may join another: numerics that round each */
} ane_graph;

/* Everything lives in the arena. */
ane_status ane_graph_build(const ane_function *f, ane_arena *arena, ane_graph *g,
                           ane_error *err);
/* All fusions that are switched on. */
ane_status ane_graph_fuse(ane_graph *g, ane_error *err);
bool ane_fusion_on(const ane_graph *g, const char *name);

/* In fuse_*.c; run in this order. */
ane_status ane_fuse_product(ane_graph *g, ane_error *err);
ane_status ane_fuse_rows(ane_graph *g, ane_error *err);
ane_status ane_fuse_chain(ane_graph *g, ane_error *err);

/* Element-wise ops that a device can chain in fp32 (floats), int32 and bool. */
bool ane_op_is_pointwise(const ane_op *op);
/* Result and operand differ in unit dims only: nothing moves, nothing is renumbered. */
bool ane_op_is_squeeze(const ane_op *op);
/* v, or what it is a squeeze-like view of. */
const ane_value *ane_value_through(const ane_value *v);
bool ane_shape_same_but_ones(const ane_type *a, const ane_type *b);
bool ane_dtype_is_float(ane_dtype d);           /* fp16, bf16, fp32: what steps compute in */
bool ane_op_is_product(const ane_op *op);       /* a matmul or linear of floats */
/* The only op that uses v, looking through squeezes; -1: none or several, or an output. */
int ane_value_only_user(const ane_graph *g, const ane_value *v);
/* Do all users outside grp stand after op number `after`? */
bool ane_uses_after(const ane_graph *g, const ane_value *v, const ane_group *grp, int after);
/* Does v leave the group (an output, or a user outside)? */
bool ane_value_escapes(const ane_graph *g, const ane_value *v, const ane_group *grp);

ane_group *ane_group_new(ane_graph *g, ane_group_kind kind);
bool ane_group_add(ane_graph *g, ane_group *grp, int op);       /* false: no memory */

#endif

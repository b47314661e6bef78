/* Element-wise expressions over tiles: straight code of vector primitives whose registers
 * are rows of fp32 (or int32, or bool as 0 and 1) that stay in the caches. One expression
 * is a whole fused chain; reductions and softmax use one for what feeds them.
 *
 * Values stay fp32 inside; they round to the declared type in the store, and where the
 * program says `cast` to a narrower float.
 */
#ifndef ANE_CPU_EXPR_H
#define ANE_CPU_EXPR_H

#include "../../kernels/vec.h"
#include "../../pass/group.h"
#include "cpu.h"

#define ANE_TILE 1024                   /* elements of a register, at least */

typedef struct ane_ins ane_ins;
typedef struct ane_run ane_run;         /* of steps.c */
typedef void ane_ins_fn(const ane_ins *i, float *y, const float *a, const float *b,
                        const float *c, size_t n);
struct ane_ins {
    ane_ins_fn *fn;                     /* NULL: a load of view `load` */
    ane_run *run;                       /* of ane__do_run, which has no a, b, c */
    int dst, a, b, c;                   /* registers, -1: none */
    int load;
    bool lazy;                          /* only runs read it: need not be converted */
    int kind;
    float s, t;
    int32_t k;
    ane_vec1_fn *v1;
    ane_vec2_fn *v2;
    ane_vecs_fn *vs;
    float (*libm)(float);
};

typedef struct ane_expr {
    int n_ins, n_regs, n_views;
    ane_ins *ins;
    ane_view *views;                    /* canonical: outputs, then inputs */
    int n_stores;                       /* views[i] = register store[i] */
    int *store;
    int result;                         /* register that a row core takes; -1 */
    int rank;                           /* of the iteration space */
    int64_t shape[ANE_MAX_RANK];
    double flops;                       /* per element: one per instruction */
} ane_expr;

/* The ops of grp except its core, as one expression. result: the value that a row core
 * takes; NULL: a chain, whose escaping values are stored. Adds the step with its views:
 * outputs first (n_out of them are reserved for the core's own result when result is
 * given). */
ane_status ane_expr_build(ane_planner *pl, const ane_graph *g, const ane_group *grp,
                          const ane_value *result, ane_expr **out);
/* Orders the dims by the strides of view 0, largest first, and merges those that step
 * alike in every view. */
void ane_expr_arrange(ane_expr *e, bool sort);

/* Where a tile is: one address per view, and how rows and columns step. */
typedef struct ane_tile {
    const ane_expr *e;
    char **at;                          /* per view */
    size_t rows, cols;
    int row_dim, col_dim;               /* of the space; -1: none */
    float *regs;                        /* n_regs * cap */
    size_t cap;
    bool stream;                        /* results are written past the caches */
} ane_tile;

/* Runs the code; returns register `result` (NULL when the expression is a chain, which has
 * stored its values). The row of `result` is not to be written. */
const float *ane_expr_run(const ane_tile *t);
/* Bytes of `regs` for tiles of cap elements. */
static inline size_t ane_expr_bytes(const ane_expr *e, size_t cap) {
    return (size_t)(e->n_regs + 1) * cap * sizeof(float);
}

/* Strided row <-> fp32 of any chainable dtype (int32 keeps its bits). */
void ane_row_load(float *y, const char *p, ane_dtype dtype, int64_t stride, size_t n);
void ane_row_store(char *p, ane_dtype dtype, int64_t stride, const float *x, size_t n);

#endif

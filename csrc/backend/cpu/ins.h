/* Instructions of expressions. */
#ifndef ANE_CPU_INS_H
#define ANE_CPU_INS_H

#include "expr.h"

/* An op's instruction for floats and for int32 (NULL: none). */
typedef struct ane_code {
    const char *name;
    ane_ins_fn *f, *g;
    int vec;                            /* of ane__do_v1 and _v2 */
    float (*libm)(float);               /* of a plain loop over a C function */
    bool pow;
} ane_code;

const ane_code *ane_code_of(const char *op);    /* NULL: not a function of x and y alone */

/* Those that expr.c emits by itself. */
ane_ins_fn ane__do_copy, ane__do_fill, ane__do_round, ane__do_select, ane__do_v1, ane__do_v2,
    ane__do_vs, ane__do_f2i, ane__do_i2f, ane__do_f2b, ane__do_i2b, ane__do_run;

/* ---------------------------------------------------------------- runs (steps.c) */

typedef struct ane_run_step {
    int code;                           /* of ane_vec_step, rows as fp32 */
    int reg;                            /* the row, -1: none */
    float s;
} ane_run_step;

#define ANE_OPERANDS 40                 /* of one instruction, at most */

/* Where the registers that `i` reads are named; how many. */
int ane_ins_operands(const ane_ins *i, int **at);
/* Makes runs of an expression over virtual registers, each of which is written once. */
bool ane_expr_fuse_steps(ane_expr *e, int n_virtual, ane_arena *arena);
/* Is this one run that stores its value, and the loads for it? It needs no registers then
 * where every view is dense. */
bool ane_expr_is_run(const ane_expr *e);
int ane_run_store(const ane_ins *i);    /* of the last instruction: the store it can do */
/* y = the run; type[r]: the dtype that register r is kept in. */
void ane_run_steps(const ane_ins *i, void *y, ane_dtype to, bool stream,
                   const float *const *reg, const unsigned char *type, size_t n);

#endif

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
    ane__do_vs, ane__do_f2i, ane__do_i2f, ane__do_f2b, ane__do_i2b;

#endif

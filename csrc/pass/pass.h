/* Passes over one specialised function, in the order of pipeline.c's list. */
#ifndef ANE_PASS_H
#define ANE_PASS_H

#include "../ir/ops.h"

/* target: chips whose arithmetic the result is for (ir/target.h); 0: IEEE. */
typedef ane_status ane_pass_fn(ane_function *f, unsigned target, ane_error *err);

typedef struct ane_pass {
    const char *name;                   /* ANETORCH_DUMP's name */
    ane_pass_fn *run;
} ane_pass;

/* All of them; each result is verified in debug builds and dumped where asked for. */
ane_status ane_passes_run(ane_function *f, unsigned target, ane_error *err);

ane_pass_fn ane_pass_fold, ane_pass_dce;

#endif

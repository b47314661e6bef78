/* A kernel of the engine: a model, and how the function's ports lie in its own. */
#ifndef ANE_APPLE_LOWERING_H
#define ANE_APPLE_LOWERING_H

#include "model.h"

#include "../../base/sync.h"

#include <stdatomic.h>

typedef struct ane_lowered {
    ane_model *model;
    ane_program *packed;                /* NULL: the model's ports are the function's */
    const ane_packing *layout;          /* lives with packed */
    char why[512];                      /* of a second choice: what became of the first; "" */
    atomic_bool ran;                    /* an evaluation of it succeeded */

    /* Of a first choice that may still be packed. */
    const ane_function *f;              /* NULL: what it is, it stays */
    ane_mutex lock;                     /* while `other` is being made */
    _Atomic(struct ane_lowered *) other;        /* what new bindings take instead; NULL: none */
    char failed[400];                   /* why there is none although it was tried; "" */
} ane_lowered;

/* Compiles f with its own ports, or packed; AUTO takes its own, and where the compiler
 * refuses those and there is something to pack, the packed form. */
ane_status ane_lower(const ane_objc *rt, const ane_function *f, ane_lowering how,
                     ane_lowered **out, ane_error *err);
/* An experiment: f, whose text is donor's, with its own weights but without a compile. */
ane_status ane_lower_exchange(const ane_objc *rt, const ane_function *f, ane_lowered *donor,
                              bool reload, ane_lowered **out, ane_error *err);
/* The form that new bindings take. */
ane_lowered *ane_lowered_now(ane_lowered *l);
/* The packed form, after an evaluation of l's own ports was refused with *err: compiled once,
 * and only where the choice was ours and no evaluation has succeeded. NULL where there is none;
 * *err then says so. */
ane_lowered *ane_lower_again(const ane_objc *rt, ane_lowered *l, ane_error *err);
void ane_lowered_destroy(const ane_objc *rt, ane_lowered *l);

#endif

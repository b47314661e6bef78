/* A kernel of the engine: a model, and how the function's ports lie in its own. */
#ifndef ANE_APPLE_LOWERING_H
#define ANE_APPLE_LOWERING_H

#include "model.h"

typedef struct ane_lowered {
    ane_model *model;
    ane_program *packed;                /* NULL: the model's ports are the function's */
    const ane_packing *layout;          /* lives with packed */
    char why[512];                      /* of a second choice: what became of the first; "" */
} ane_lowered;

/* Compiles f with its own ports, or packed; AUTO takes its own, and where the compiler
 * refuses those and there is something to pack, the packed form. */
ane_status ane_lower(const ane_objc *rt, const ane_function *f, ane_lowering how,
                     ane_lowered **out, ane_error *err);
/* An experiment: f, whose text is donor's, with its own weights but without a compile. */
ane_status ane_lower_exchange(const ane_objc *rt, const ane_function *f, ane_lowered *donor,
                              bool reload, ane_lowered **out, ane_error *err);
void ane_lowered_destroy(const ane_objc *rt, ane_lowered *l);

#endif

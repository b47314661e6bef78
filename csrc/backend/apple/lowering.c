#include "lowering.h"

#include <stdio.h>
#include <string.h>

static bool many_ports(const ane_function *f) {
    return f->n_params > 1 || f->body->n_outputs > 1;
}

static ane_status acquire_packed(const ane_objc *rt, const ane_function *f, ane_lowered *l,
                                 ane_error *err) {
    bool refused = false;
    ane_status st = ane_program_pack(f->program, f->name, &l->packed, &l->layout, err);
    if (!st) st = ane_model_acquire(rt, l->packed->functions, &l->model, &refused, err);
    return st;
}

ane_status ane_lower(const ane_objc *rt, const ane_function *f, ane_lowering how,
                     ane_lowered **out, ane_error *err) {
    ane_error second;
    bool refused = false;
    ane_lowered *l = ane_calloc(1, sizeof *l);
    if (!l) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_status st;
    if (how == ANE_LOWER_PACKED && many_ports(f)) {
        st = acquire_packed(rt, f, l, err);
    } else {
        st = ane_model_acquire(rt, f, &l->model, &refused, err);
        if (st && refused && how == ANE_LOWER_AUTO && many_ports(f)) {
            snprintf(l->why, sizeof l->why, "its own ports were refused: %.440s", err->message);
            ane_error_clear(&second);
            if (!acquire_packed(rt, f, l, &second)) {
                st = ANE_OK;
                ane_error_clear(err);
            } else {
                /* The first error stands: it is about the program as it was written. */
                size_t n = strlen(err->message);
                snprintf(err->message + n, sizeof err->message - n, "; packed: %.400s",
                         second.message);
            }
        }
    }
    if (st) ane_lowered_destroy(rt, l);
    else *out = l;
    return st;
}

ane_status ane_lower_exchange(const ane_objc *rt, const ane_function *f, ane_lowered *donor,
                              bool reload, ane_lowered **out, ane_error *err) {
    if (donor->layout)
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "[compile] exchange: the donor is packed");
    ane_lowered *l = ane_calloc(1, sizeof *l);
    if (!l) return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_status st = ane_model_exchange(rt, f, donor->model, reload, &l->model, err);
    if (st) ane_lowered_destroy(rt, l);
    else *out = l;
    return st;
}

void ane_lowered_destroy(const ane_objc *rt, ane_lowered *l) {
    if (!l) return;
    if (l->model) ane_model_release(rt, l->model);
    ane_program_release(l->packed);
    ane_free(l);
}

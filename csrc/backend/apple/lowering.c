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

static const char refused_text[] = "its own ports were refused: %.440s";

static ane_lowered *create(ane_error *err) {
    ane_lowered *l = ane_calloc(1, sizeof *l);
    if (!l) (void)ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    else pthread_mutex_init(&l->lock, NULL);
    return l;
}

/* The first error stands: it is about the program as it was written. */
static void append_packed(ane_error *err, const char *why) {
    size_t n = strlen(err->message);
    snprintf(err->message + n, sizeof err->message - n, "; packed: %.400s", why);
}

ane_status ane_lower(const ane_objc *rt, const ane_function *f, ane_lowering how,
                     ane_lowered **out, ane_error *err) {
    ane_error second;
    bool refused = false;
    ane_lowered *l = create(err);
    if (!l) return ANE_ERR_NOMEM;
    ane_status st;
    if (how == ANE_LOWER_PACKED && many_ports(f)) {
        st = acquire_packed(rt, f, l, err);
    } else {
        st = ane_model_acquire(rt, f, &l->model, &refused, err);
        if (st && refused && how == ANE_LOWER_AUTO && many_ports(f)) {
            snprintf(l->why, sizeof l->why, refused_text, err->message);
            ane_error_clear(&second);
            if (!acquire_packed(rt, f, l, &second)) {
                st = ANE_OK;
                ane_error_clear(err);
            } else {
                append_packed(err, second.message);
            }
        } else if (how == ANE_LOWER_AUTO && many_ports(f)) {
            l->f = f;
        }
    }
    if (st) ane_lowered_destroy(rt, l);
    else *out = l;
    return st;
}

ane_status ane_lower_exchange(const ane_objc *rt, const ane_function *f, ane_lowered *donor,
                              bool reload, ane_lowered **out, ane_error *err) {
    if (ane_lowered_now(donor)->layout)
        return ane_fail(err, ANE_ERR_UNSUPPORTED, "[compile] exchange: the donor is packed");
    ane_lowered *l = create(err);
    if (!l) return ANE_ERR_NOMEM;
    ane_status st = ane_model_exchange(rt, f, donor->model, reload, &l->model, err);
    if (st) ane_lowered_destroy(rt, l);
    else *out = l;
    return st;
}

ane_lowered *ane_lowered_now(ane_lowered *l) {
    ane_lowered *other = atomic_load(&l->other);
    return other ? other : l;
}

ane_lowered *ane_lower_again(const ane_objc *rt, ane_lowered *l, ane_error *err) {
    ane_error second = {0};
    if (!l->f) return NULL;
    ane_mutex_lock(&l->lock);
    ane_lowered *other = atomic_load(&l->other);
    if (!other && !atomic_load(&l->ran) && !*l->failed) {
        other = create(&second);
        ane_status st = other ? acquire_packed(rt, l->f, other, &second) : ANE_ERR_NOMEM;
        if (st) {
            ane_lowered_destroy(rt, other);
            other = NULL;
            append_packed(err, second.message);
            /* A compile each time would use up the budget; memory may come back. */
            if (st != ANE_ERR_NOMEM)
                snprintf(l->failed, sizeof l->failed, "%.399s", second.message);
        } else {
            snprintf(other->why, sizeof other->why, refused_text, err->message);
            ane_error_clear(err);
        }
        atomic_store(&l->other, other);
    } else if (other) {
        ane_error_clear(err);
    } else if (*l->failed) {
        append_packed(err, l->failed);
    }
    ane_mutex_unlock(&l->lock);
    return other;
}

void ane_lowered_destroy(const ane_objc *rt, ane_lowered *l) {
    if (!l) return;
    ane_lowered_destroy(rt, atomic_load(&l->other));
    pthread_mutex_destroy(&l->lock);
    if (l->model) ane_model_release(rt, l->model);
    ane_program_release(l->packed);
    ane_free(l);
}

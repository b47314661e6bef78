/* Double evaluation of a pipeline: what gradients and bounds are checked against where no
 * outside oracle exists. Testing only; speed and memory do not matter (eight bytes of
 * shadow per byte of surface). */
#include "program.h"

#include "backend/cpu/cpu.h"

#include <string.h>

typedef struct shade {
    struct shade *next;
    ane_surface *surface;               /* retained: its address is the key */
    double *at;                         /* by byte offset */
    uint8_t *known;
} shade;

struct ane_shadow {
    shade *first;
};

ane_shadow *ane_shadow_create(void) { return ane_calloc(1, sizeof(ane_shadow)); }

void ane_shadow_destroy(ane_shadow *s) {
    if (!s) return;
    for (shade *h = s->first, *next; h; h = next) {
        next = h->next;
        ane_surface_release(h->surface);
        ane_free(h->at);
        ane_free(h->known);
        ane_free(h);
    }
    ane_free(s);
}

static shade *shade_of(ane_shadow *s, ane_surface *surface, ane_error *err) {
    for (shade *h = s->first; h; h = h->next)
        if (h->surface == surface) return h;
    size_t n = ane_surface_bytes(surface);
    shade *h = ane_calloc(1, sizeof *h);
    if (h) {
        h->at = ane_calloc(n + 1, sizeof *h->at);
        h->known = ane_calloc(n + 1, 1);
    }
    if (!h || !h->at || !h->known) {
        if (h) {
            ane_free(h->at);
            ane_free(h->known);
        }
        ane_free(h);
        ane_fail(err, ANE_ERR_NOMEM, "[eval_pipeline] out of memory for a shadow of %zu bytes",
                 n);
        return NULL;
    }
    h->surface = ane_surface_retain(surface);
    h->next = s->first;
    return s->first = h;
}

/* Byte offsets of all elements in row-major order: calls move for each. */
static ane_status each(ane_shadow *s, const ane_tensor *t, double *data, bool write,
                       ane_error *err) {
    shade *h = shade_of(s, t->surface, err);
    if (!h) return ANE_ERR_NOMEM;
    int64_t idx[ANE_MAX_RANK] = {0}, count = ane_tensor_count(t);
    const char *base = ane_surface_base(t->surface);
    for (int64_t i = 0; i < count; i++) {
        int64_t off = (int64_t)t->offset;
        for (int d = 0; d < t->rank; d++) off += idx[d] * t->strides[d];
        if (write) {
            h->at[off] = data[i];
            h->known[off] = 1;
        } else if (h->known[off]) {
            data[i] = h->at[off];
        } else {
            ane_view v = {.dtype = t->dtype};
            ane_view_load(&v, base + off, &data[i]);
        }
        for (int d = t->rank - 1; d >= 0 && ++idx[d] == t->shape[d]; d--) idx[d] = 0;
    }
    return ANE_OK;
}

ane_status ane_shadow_write(ane_shadow *s, const ane_tensor *t, const double *data,
                            ane_error *err) {
    return each(s, t, (double *)(uintptr_t)data, true, err);
}

ane_status ane_shadow_read(ane_shadow *s, const ane_tensor *t, double *data,
                           ane_error *err) {
    return each(s, t, data, false, err);
}

static ane_status run_request(ane_shadow *s, const ane_request *r, ane_error *err) {
    const ane_kernel *k = ane_request_kernel(r);
    size_t n_in = ane_kernel_input_count(k), n_out = ane_kernel_output_count(k);
    ane_program *types = NULL, *p = NULL;
    ane_rt **in = ane_calloc(n_in + 1, sizeof *in), **out = ane_calloc(n_out + 1, sizeof *out);
    ane_tensor *views = ane_calloc(n_in + 1, sizeof *views);
    ane_status st = ANE_ERR_NOMEM;
    if (!in || !out || !views) {
        ane_fail(err, ANE_ERR_NOMEM, "[eval_pipeline] out of memory");
        goto done;
    }
    for (size_t i = 0; i < n_in; i++) views[i] = *ane_request_input(r, i);
    st = ane_function_for(ane__kernel_function(k), views, &types, &p, err);
    for (size_t i = 0; i < n_in && !st; i++) {
        in[i] = ane_rt_tensor(views[i].dtype, views[i].rank, views[i].shape);
        if (!in[i]) st = ane_fail(err, ANE_ERR_NOMEM, "[eval_pipeline] out of memory");
        else st = ane_shadow_read(s, &views[i], in[i]->data, err);
        if (!st && ane_kernel_input(k, i)->state) in[i]->kind = ANE_T_STATE;
    }
    ane_walk_options opts = {.wide = true};
    if (!st) st = ane_function_eval(p->functions, in, out, &opts, err);
    for (size_t i = 0; i < n_in && !st; i++)
        if (ane_kernel_input(k, i)->state)
            st = ane_shadow_write(s, &views[i], in[i]->data, err);
    for (size_t i = 0; i < n_out && !st; i++) {
        const ane_tensor *t = ane_request_output(r, i);
        if (!t->surface || !out[i]->data || out[i]->count != ane_tensor_count(t))
            st = ane_fail(err, ANE_ERR_UNSUPPORTED,
                          "[eval_pipeline] output %s has no fixed shape",
                          ane_kernel_output(k, i)->name);
        else st = ane_shadow_write(s, t, out[i]->data, err);
    }
done:
    for (size_t i = 0; in && i < n_in; i++) ane_rt_release(in[i]);
    for (size_t i = 0; out && i < n_out; i++) ane_rt_release(out[i]);
    ane_free(in);
    ane_free(out);
    ane_free(views);
    ane_program_release(p);
    ane_program_release(types);
    return st;
}

ane_status ane_shadow_run(ane_shadow *s, ane_pipeline *p, ane_error *err) {
    for (size_t i = 0; i < ane_pipeline_count(p); i++) {
        ane_status st = run_request(s, ane_pipeline_request(p, i), err);
        if (st) {
            ane_error_prefix(err, "[eval_pipeline] request %zu: ", i);
            return st;
        }
    }
    return ANE_OK;
}

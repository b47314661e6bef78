/* Lists, states and classify. cond and while_loop belong to the walk.
 *
 * Lists are values: writing makes a new list that shares the elements. An element that was
 * never written reads as zeros when its type has a known shape. Whether a list grows is what
 * make_list said: packages declare a growing list with the length that it begins with. */
#include "ops_fn.h"

#include <string.h>

static ane_status no_list(ane_eval *ev, int64_t n) {
    return ane_eval_fail(ev, ANE_ERR_NOMEM, "a list of %lld elements", (long long)n);
}

ane_status ane__eval_make_list(ane_eval *ev) {
    int64_t n = ane_eval_i64(ev, "init_length", 1);
    if (n < 0) return ane_eval_fail(ev, ANE_ERR_INVALID, "'init_length' is %lld", (long long)n);
    ev->out[0] = ane__rt_items(ANE_T_LIST, n);
    if (!ev->out[0]) return no_list(ev, n);
    ev->out[0]->grows = ane_op_bool(ev->op, "dynamic_length", true);
    return ANE_OK;
}

ane_status ane__eval_list_length(ane_eval *ev) {
    ane_rt *y = ANE__OUT(0, 0, NULL);
    y->data[0] = (double)ane_eval_in(ev, "ls")->n;
    return ANE_OK;
}

static ane_status wrapped(ane_eval *ev, double v, int64_t n, bool grows, int64_t *out) {
    int64_t k = (int64_t)ane__round_to(ANE_I64, v);
    if (k < 0) k += n;
    if (k < 0 || (k >= n && !grows))
        return ane_eval_fail(ev, ANE_ERR_INDEX, "index %g is outside the list of %lld", v,
                             (long long)n);
    *out = k;
    return ANE_OK;
}

/* Element k, zeros when it was never written; retained. */
static ane_rt *element(ane_eval *ev, const ane_rt *ls, int64_t k) {
    if (ls->items[k]) return ane_rt_retain(ls->items[k]);
    const ane_type *t = ane_op_in(ev->op, "ls")->type->elem;
    if (t->kind != ANE_T_TENSOR || !ane_type_static(t)) {
        ane_eval_fail(ev, ANE_ERR_RUNTIME, "element %lld was never written", (long long)k);
        return NULL;
    }
    ane_rt *r = ane_rt_tensor(t->dtype, t->rank, t->dims);
    if (!r) ane_eval_fail(ev, ANE_ERR_NOMEM, "an element");
    return r;
}

ane_status ane__eval_list_read(ane_eval *ev) {
    const ane_rt *ls = ane_eval_in(ev, "ls");
    int64_t k;
    ane_status st = wrapped(ev, ane_eval_f64(ev, "index", 0), ls->n, false, &k);
    if (st) return st;
    ev->out[0] = element(ev, ls, k);
    return ev->out[0] ? ANE_OK : ev->status;
}

/* A list with the items of ls and room for n. */
static ane_rt *copied(const ane_rt *ls, int64_t n) {
    ane_rt *r = ane__rt_items(ANE_T_LIST, n > ls->n ? n : ls->n);
    if (r) r->grows = ls->grows;
    for (int64_t i = 0; r && i < ls->n; i++) r->items[i] = ane_rt_retain(ls->items[i]);
    return r;
}

ane_status ane__eval_list_write(ane_eval *ev) {
    const ane_rt *ls = ane_eval_in(ev, "ls");
    int64_t k;
    ane_status st = wrapped(ev, ane_eval_f64(ev, "index", 0), ls->n, ls->grows, &k);
    if (st) return st;
    ane_rt *r = ev->out[0] = copied(ls, k + 1);
    if (!r) return no_list(ev, k + 1);
    ane_rt_release(r->items[k]);
    r->items[k] = ane_rt_retain(ane_eval_in(ev, "value"));
    return ANE_OK;
}

ane_status ane__eval_list_gather(ane_eval *ev) {
    const ane_rt *ls = ane_eval_in(ev, "ls"), *idx = ane_eval_in(ev, "indices");
    ane_rt *y = NULL;
    int64_t shape[ANE_MAX_RANK], k;
    if (!idx->count) {
        const ane_type *t = ev->op->results[0]->type;
        memcpy(shape, t->dims, sizeof shape);
        shape[0] = 0;
        for (int i = 1; i < t->rank; i++)
            if (shape[i] < 0) shape[i] = 0;
        y = ANE__OUT(0, t->rank, shape);
    }
    for (int64_t i = 0; i < idx->count; i++) {
        ane_status st = wrapped(ev, idx->data[i], ls->n, false, &k);
        if (st) return st;
        ane_rt *e = element(ev, ls, k);
        if (!e) return ev->status;
        shape[0] = idx->count;
        if (!y) {
            memcpy(shape + 1, e->shape, sizeof *shape * (size_t)e->rank);
            y = ane_eval_out(ev, 0, e->rank + 1, shape);
        }
        bool fits = y && e->count * idx->count == y->count;
        if (fits) memcpy(y->data + i * e->count, e->data, (size_t)e->count * sizeof *y->data);
        ane_rt_release(e);
        if (!y) return ev->status;
        if (!fits) return ane_eval_fail(ev, ANE_ERR_SHAPE, "element %lld has another shape",
                                        (long long)k);
    }
    return ANE_OK;
}

ane_status ane__eval_list_scatter(ane_eval *ev) {
    const ane_rt *ls = ane_eval_in(ev, "ls"), *idx = ane_eval_in(ev, "indices"),
                 *v = ane_eval_in(ev, "value");
    int64_t most = ls->n, k;
    if (v->shape[0] != idx->count)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "%lld values for %lld indices",
                             (long long)v->shape[0], (long long)idx->count);
    for (int64_t i = 0; i < idx->count; i++) {
        ane_status st = wrapped(ev, idx->data[i], ls->n, ls->grows, &k);
        if (st) return st;
        if (k >= most) most = k + 1;
    }
    ane_rt *r = ev->out[0] = copied(ls, most);
    if (!r) return no_list(ev, most);
    for (int64_t i = 0; i < idx->count; i++) {
        wrapped(ev, idx->data[i], ls->n, true, &k);
        ane_rt *e = ane_rt_tensor(v->dtype, v->rank - 1, v->shape + 1);
        if (!e) return ane_eval_fail(ev, ANE_ERR_NOMEM, "an element");
        memcpy(e->data, v->data + i * e->count, (size_t)e->count * sizeof *e->data);
        ane_rt_release(r->items[k]);
        r->items[k] = e;
    }
    return ANE_OK;
}

/* ---------------------------------------------------------------- states */

static ane_status store(ane_eval *ev, ane_rt *state, const ane_rt *v) {
    if (state->count != v->count || state->rank != v->rank ||
        memcmp(state->shape, v->shape, sizeof *v->shape * (size_t)v->rank))
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "the state has another shape");
    memcpy(state->data, v->data, (size_t)v->count * sizeof *v->data);
    return ANE_OK;
}

ane_status ane__eval_read_state(ane_eval *ev) {
    const ane_rt *s = ane_eval_in(ev, "input");
    ane_rt *y = ANE__OUT(0, s->rank, s->shape);
    memcpy(y->data, s->data, (size_t)s->count * sizeof *y->data);
    return ANE_OK;
}

ane_status ane__eval_write_state(ane_eval *ev) {
    return store(ev, ane_eval_in(ev, "input"), ane_eval_in(ev, "data"));
}

ane_status ane__eval_coreml_update_state(ane_eval *ev) {
    ane_eval_set(ev, 0, ane_eval_in(ev, "value"));
    return store(ev, ane_eval_in(ev, "state"), ane_eval_in(ev, "value"));
}

/* ---------------------------------------------------------------- classify */

ane_status ane__eval_classify(ane_eval *ev) {
    const ane_rt *p = ane_eval_in(ev, "probabilities");
    ane_rt *c = ane_eval_in(ev, "classes");
    if (c->n != p->count || !c->n)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "%lld classes for %lld probabilities",
                             (long long)c->n, (long long)p->count);
    ane_rt *d = ev->out[1] = ane__rt_items(ANE_T_DICT, 2 * c->n);
    if (!d) return no_list(ev, c->n);
    int64_t best = 0;
    for (int64_t i = 0; i < c->n; i++) {
        d->items[2 * i] = ane_rt_retain(c->items[i]);
        ane_rt *v = d->items[2 * i + 1] = ane_rt_tensor(ANE_F64, 0, NULL);
        if (!v) return no_list(ev, c->n);
        v->data[0] = p->data[i];
        if (p->data[i] > p->data[best]) best = i;
    }
    ane_eval_set(ev, 0, c->items[best]);
    return ANE_OK;
}

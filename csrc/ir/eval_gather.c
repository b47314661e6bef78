/* Gathering and scattering.
 *
 * Indices: a negative one counts from the end. One that is still outside is an error up to
 * iOS16 and with validate_indices; from iOS17 on without it, gathering takes the nearest
 * element and scattering leaves the update out, so that nothing is read or written that is
 * not there. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

static bool strict(ane_eval *ev) {
    return ev->op->row->opset < 17 || ane_eval_bool(ev, "validate_indices", false);
}

/* Index into a dim of d; -1 (scatter) or the nearest (gather) when outside and not strict. */
static ane_status at(ane_eval *ev, double v, int64_t d, bool is_strict, bool nearest,
                     int64_t *out) {
    int64_t k = (int64_t)ane__round_to(ANE_I64, v);
    bool below = k < 0 && ev->op->row->opset >= 17 && is_strict;
    int64_t w = k < 0 ? k + d : k;
    if (w >= 0 && w < d && !below) {
        *out = w;
        return ANE_OK;
    }
    if (is_strict || (nearest && !d))
        return ane_eval_fail(ev, ANE_ERR_INDEX, "index %lld is out of range for a dimension of "
                             "%lld", (long long)k, (long long)d);
    *out = nearest ? (w < 0 ? 0 : d - 1) : -1;
    return ANE_OK;
}

ane_status ane__eval_gather(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *idx = ane_eval_in(ev, "indices");
    int b = ane_op_param_index(ev->op->row, "batch_dims") < 0
                ? 0 : (int)ane_eval_i64(ev, "batch_dims", 0);
    bool is_strict = strict(ev);
    int axis, r = 0;
    ane_status st = ane__eval_axis(ev, "axis", 0, x->rank, &axis);
    if (st) return st;
    int64_t shape[ANE_MAX_RANK];
    for (int i = 0; i < axis; i++) shape[r++] = x->shape[i];
    for (int i = b; i < idx->rank; i++) shape[r++] = idx->shape[i];
    for (int i = axis + 1; i < x->rank; i++) shape[r++] = x->shape[i];
    int64_t batch = ane__count(b, x->shape), before = ane__count(axis - b, x->shape + b),
            d = x->shape[axis], after = ane__count(x->rank - axis - 1, x->shape + axis + 1),
            m = ane__count(idx->rank - b, idx->shape + b);
    if (ane__count(b, idx->shape) != batch)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "the batch dimensions differ");
    ane_rt *y = ANE__OUT(0, r, shape);
    if (!y->count) return ANE_OK;
    for (int64_t q = 0; q < batch; q++)
        for (int64_t i = 0; i < m; i++) {
            int64_t k;
            st = at(ev, idx->data[q * m + i], d, is_strict, true, &k);
            if (st) return st;
            for (int64_t p = 0; p < before; p++)
                memcpy(y->data + ((q * before + p) * m + i) * after,
                       x->data + ((q * before + p) * d + k) * after,
                       (size_t)after * sizeof *y->data);
        }
    return ANE_OK;
}

ane_status ane__eval_gather_along_axis(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *idx = ane_eval_in(ev, "indices");
    bool is_strict = strict(ev);
    int axis;
    ane_status st = ane__eval_axis(ev, "axis", 0, x->rank, &axis);
    if (st) return st;
    int64_t outer, d, inner, n = idx->shape[axis];
    ane__around(x->rank, x->shape, axis, &outer, &d, &inner);
    if (idx->count != outer * n * inner)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'indices' does not fit 'x'");
    ane_rt *y = ANE__OUT(0, idx->rank, idx->shape);
    for (int64_t i = 0; i < y->count; i++) {
        int64_t k;
        st = at(ev, idx->data[i], d, is_strict, true, &k);
        if (st) return st;
        y->data[i] = x->data[(i / (n * inner) * d + k) * inner + i % inner];
    }
    return ANE_OK;
}

/* Offset (in blocks of the dims after K) that one index tuple names; -1: left out. */
static ane_status tuple_offset(ane_eval *ev, const double *idx, int k, const int64_t *dims,
                               bool is_strict, bool nearest, int64_t *out) {
    int64_t off = 0;
    for (int i = 0; i < k; i++) {
        int64_t v;
        ane_status st = at(ev, idx[i], dims[i], is_strict, nearest, &v);
        if (st) return st;
        off = v < 0 || off < 0 ? -1 : off * dims[i] + v;
    }
    *out = off;
    return ANE_OK;
}

ane_status ane__eval_gather_nd(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *idx = ane_eval_in(ev, "indices");
    int b = ane_op_param_index(ev->op->row, "batch_dims") < 0
                ? 0 : (int)ane_eval_i64(ev, "batch_dims", 0);
    int k = (int)idx->shape[idx->rank - 1], r = 0;
    bool is_strict = strict(ev);
    int64_t shape[ANE_MAX_RANK], batch = ane__count(b, x->shape),
        rows = ane__count(idx->rank - 1 - b, idx->shape + b), block = ane__count(k, x->shape + b),
        after = ane__count(x->rank - b - k, x->shape + b + k);
    for (int i = 0; i < idx->rank - 1; i++) shape[r++] = idx->shape[i];
    for (int i = b + k; i < x->rank; i++) shape[r++] = x->shape[i];
    if (ane__count(b, idx->shape) != batch)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "the batch dimensions differ");
    ane_rt *y = ANE__OUT(0, r, shape);
    if (!y->count) return ANE_OK;
    for (int64_t i = 0; i < batch * rows; i++) {
        int64_t off;
        ane_status st = tuple_offset(ev, idx->data + i * k, k, x->shape + b, is_strict, true,
                                     &off);
        if (st) return st;
        memcpy(y->data + i * after, x->data + (i / rows * block + off) * after,
               (size_t)after * sizeof *y->data);
    }
    return ANE_OK;
}

/* ---------------------------------------------------------------- scattering */

typedef enum how { ADD, UPDATE, SUB, MUL, DIV, MAX, MIN } how;

static how mode_of(ane_eval *ev) {
    static const char *const names[] = {"add", "update", "sub", "mul", "div", "max", "min"};
    const char *s = ane_eval_str(ev, "mode", "add");
    for (int i = 0; i < 7; i++)
        if (!strcmp(s, names[i])) return (how)i;
    return ADD;
}

/* Combines n updates into data, in order. */
static void combine(how mode, ane_dtype d, double *data, const double *u, int64_t n) {
    bool ints = !ane__is_float(d);
    for (int64_t i = 0; i < n; i++) {
        double a = data[i], b = u[i];
        int64_t x = ints ? (int64_t)a : 0, y = ints ? (int64_t)b : 0;
        switch (mode) {
        case UPDATE: a = b; break;
        case MAX: a = b > a || b != b ? b : a; break;
        case MIN: a = b < a || b != b ? b : a; break;
        case ADD: a = ints ? ane__wrap(d, x + y) : a + b; break;
        case SUB: a = ints ? ane__wrap(d, x - y) : a - b; break;
        case MUL: a = ints ? ane__wrap(d, x * y) : a * b; break;
        case DIV: a = ints ? ane__wrap(d, y ? x / y : 0) : a / b; break;
        }
        data[i] = a;
    }
}

static ane_rt *copy_of_data(ane_eval *ev) {
    const ane_rt *d = ane_eval_in(ev, "data");
    ane_rt *y = ane_eval_out(ev, 0, d->rank, d->shape);
    if (y) memcpy(y->data, d->data, (size_t)d->count * sizeof *y->data);
    return y;
}

/* What the scatters along one axis share: y is the copy of data, [outer, d, inner]. */
typedef struct scattering {
    const ane_rt *indices, *updates;
    ane_rt *y;
    how mode;
    bool strict;
    int axis;
    int64_t outer, d, inner;
} scattering;

static ane_status scattering_init(ane_eval *ev, scattering *s) {
    *s = (scattering){.indices = ane_eval_in(ev, "indices"),
                      .updates = ane_eval_in(ev, "updates"), .y = copy_of_data(ev)};
    if (!s->y) return ev->status;
    s->strict = strict(ev);
    s->mode = mode_of(ev);
    ane_status st = ane__eval_axis(ev, "axis", 0, s->y->rank, &s->axis);
    if (!st) ane__around(s->y->rank, s->y->shape, s->axis, &s->outer, &s->d, &s->inner);
    return st;
}

ane_status ane__eval_scatter(ane_eval *ev) {
    scattering s;
    ane_status st = scattering_init(ev, &s);
    if (st) return st;
    int64_t m = s.indices->count;
    if (s.updates->count != s.outer * m * s.inner)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'updates' does not fit");
    for (int64_t o = 0; o < s.outer; o++)
        for (int64_t i = 0; i < m; i++) {
            int64_t k;
            st = at(ev, s.indices->data[i], s.d, s.strict, false, &k);
            if (st) return st;
            if (k >= 0)
                combine(s.mode, s.y->dtype, s.y->data + (o * s.d + k) * s.inner,
                        s.updates->data + (o * m + i) * s.inner, s.inner);
        }
    return ANE_OK;
}

ane_status ane__eval_scatter_along_axis(ane_eval *ev) {
    scattering s;
    ane_status st = scattering_init(ev, &s);
    if (st) return st;
    int64_t count = s.indices->count, n = s.indices->shape[s.axis];
    if (count != s.outer * n * s.inner || s.updates->count != count)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'indices' or 'updates' does not fit");
    for (int64_t i = 0; i < count; i++) {
        int64_t k, o = i / (n * s.inner);
        st = at(ev, s.indices->data[i], s.d, s.strict, false, &k);
        if (st) return st;
        if (k >= 0)
            combine(s.mode, s.y->dtype, s.y->data + (o * s.d + k) * s.inner + i % s.inner,
                    s.updates->data + i, 1);
    }
    return ANE_OK;
}

ane_status ane__eval_scatter_nd(ane_eval *ev) {
    const ane_rt *idx = ane_eval_in(ev, "indices"), *u = ane_eval_in(ev, "updates");
    ane_rt *y = copy_of_data(ev);
    if (!y) return ev->status;
    bool is_strict = strict(ev);
    how mode = mode_of(ev);
    int k = (int)idx->shape[idx->rank - 1];
    int64_t rows = ane__count(idx->rank - 1, idx->shape),
            after = ane__count(y->rank - k, y->shape + k);
    if (u->count != rows * after)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'updates' does not fit");
    for (int64_t i = 0; i < rows; i++) {
        int64_t off;
        ane_status st = tuple_offset(ev, idx->data + i * k, k, y->shape, is_strict, false,
                                     &off);
        if (st) return st;
        if (off >= 0)
            combine(mode, y->dtype, y->data + off * after, u->data + i * after, after);
    }
    return ANE_OK;
}

/* Ops that make tensors: fills, ranges, one-hot, shape, non_zero, random numbers. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

static ane_status dims_of(ane_eval *ev, const char *name, int64_t *shape, int *rank) {
    *rank = ane_eval_ints(ev, name, shape, ANE_MAX_RANK);
    if (*rank > ANE_MAX_RANK)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'%s' has %d elements; tensors have at most %d "
                             "dimensions", name, *rank, ANE_MAX_RANK);
    for (int i = 0; i < *rank; i++)
        if (shape[i] < 0)
            return ane_eval_fail(ev, ANE_ERR_SHAPE, "%s[%d] is %lld", name, i,
                                 (long long)shape[i]);
    return ANE_OK;
}

ane_status ane__eval_fill(ane_eval *ev) {
    double v = ane_eval_f64(ev, "value", 0);
    int64_t shape[ANE_MAX_RANK];
    int rank;
    ane_status st = dims_of(ev, "shape", shape, &rank);
    if (st) return st;
    ane_rt *y = ANE__OUT(0, rank, shape);
    for (int64_t i = 0; i < y->count; i++) y->data[i] = v;
    return ANE_OK;
}

ane_status ane__eval_fill_like(ane_eval *ev) {
    const ane_rt *r = ane_eval_in(ev, "ref_tensor");
    double v = ane_eval_f64(ev, "value", 0);
    ane_rt *y = ANE__OUT(0, r->rank, r->shape);
    for (int64_t i = 0; i < y->count; i++) y->data[i] = v;
    return ANE_OK;
}

ane_status ane__eval_shape(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t rank = x->rank;
    ane_rt *y = ANE__OUT(0, 1, &rank);
    for (int i = 0; i < x->rank; i++) y->data[i] = (double)x->shape[i];
    return ANE_OK;
}

ane_status ane__eval_non_zero(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t shape[2] = {0, x->rank}, own[ANE_MAX_RANK];
    for (int64_t i = 0; i < x->count; i++) shape[0] += x->data[i] != 0;
    ane_rt *y = ANE__OUT(0, 2, shape);
    ane__strides(x->rank, x->shape, own);
    double *o = y->data;
    for (int64_t i = 0; i < x->count; i++)
        for (int k = 0; x->data[i] != 0 && k < x->rank; k++)
            *o++ = (double)(i / own[k] % x->shape[k]);
    return ANE_OK;
}

ane_status ane__eval_range_1d(ane_eval *ev) {
    double start = ane_eval_f64(ev, "start", 0), end = ane_eval_f64(ev, "end", 0),
           step = ane_eval_f64(ev, "step", 1);
    double len = ceil((end - start) / step);
    if (step == 0 || !(len < 0x1p40))
        return ane_eval_fail(ev, ANE_ERR_INVALID, "%g elements from %g to %g by %g", len, start,
                             end, step);
    int64_t n = len > 0 ? (int64_t)len : 0;
    ane_rt *y = ANE__OUT(0, 1, &n);
    for (int64_t i = 0; i < n; i++) y->data[i] = start + (double)i * step;
    return ANE_OK;
}

/* An index outside gives a vector of off_value, as in TensorFlow. */
ane_status ane__eval_one_hot(ane_eval *ev) {
    const ane_rt *idx = ane_eval_in(ev, "indices");
    int64_t size = ane_eval_i64(ev, "one_hot_vector_size", 0), shape[ANE_MAX_RANK];
    double on = ane_eval_f64(ev, "on_value", 1), off = ane_eval_f64(ev, "off_value", 0);
    int axis;
    ane_status st = ane__eval_axis(ev, "axis", -1, idx->rank + 1, &axis);
    if (st) return st;
    if (size < 0)
        return ane_eval_fail(ev, ANE_ERR_INVALID, "'one_hot_vector_size' is %lld",
                             (long long)size);
    for (int i = 0, k = 0; i <= idx->rank; i++) shape[i] = i == axis ? size : idx->shape[k++];
    ane_rt *y = ANE__OUT(0, idx->rank + 1, shape);
    int64_t inner = ane__count(idx->rank - axis, shape + axis + 1);
    for (int64_t i = 0; i < y->count; i++) y->data[i] = off;
    for (int64_t i = 0; i < idx->count; i++) {
        double k = idx->data[i];
        if (k >= 0 && k < (double)size)
            y->data[(i / inner * size + (int64_t)k) * inner + i % inner] = on;
    }
    return ANE_OK;
}

/* ---------------------------------------------------------------- random numbers */

/* With a seed the numbers depend on it alone, else on the run's generator. */
static uint64_t *generator(ane_eval *ev, uint64_t *own) {
    int64_t seed = ane_eval_i64(ev, "seed", -1);
    *own = (uint64_t)seed;
    return seed == -1 ? ev->rng : own;
}

static ane_rt *random_out(ane_eval *ev) {
    int64_t shape[ANE_MAX_RANK];
    int rank;
    return dims_of(ev, "shape", shape, &rank) ? NULL : ane_eval_out(ev, 0, rank, shape);
}

ane_status ane__eval_random_uniform(ane_eval *ev) {
    uint64_t own, *g = generator(ev, &own);
    double lo = ane_eval_f64(ev, "low", 0), hi = ane_eval_f64(ev, "high", 1);
    ane_rt *y = random_out(ev);
    if (!y) return ev->status;
    for (int64_t i = 0; i < y->count; i++) y->data[i] = lo + (hi - lo) * ane__uniform(g);
    return ANE_OK;
}

ane_status ane__eval_random_normal(ane_eval *ev) {
    uint64_t own, *g = generator(ev, &own);
    double mean = ane_eval_f64(ev, "mean", 0), sd = ane_eval_f64(ev, "stddev", 1);
    ane_rt *y = random_out(ev);
    if (!y) return ev->status;
    for (int64_t i = 0; i < y->count; i++) {    /* Box and Muller; 1 - u is never 0 */
        double r = sqrt(-2 * log(1 - ane__uniform(g)));
        y->data[i] = mean + sd * r * cos(6.28318530717958647692 * ane__uniform(g));
    }
    return ANE_OK;
}

ane_status ane__eval_random_bernoulli(ane_eval *ev) {
    uint64_t own, *g = generator(ev, &own);
    double p = ane_eval_f64(ev, "prob", 0.5);
    ane_rt *y = random_out(ev);
    if (!y) return ev->status;
    for (int64_t i = 0; i < y->count; i++) y->data[i] = ane__uniform(g) < p;
    return ANE_OK;
}

ane_status ane__eval_random_categorical(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    bool logits = !strcmp(ane_eval_str(ev, "mode", "logits"), "logits");
    uint64_t own, *g = generator(ev, &own);
    int64_t n = x->shape[x->rank - 1], size = ane_eval_i64(ev, "size", 1), shape[ANE_MAX_RANK];
    memcpy(shape, x->shape, sizeof shape);
    shape[x->rank - 1] = size;
    ane_rt *y = ANE__OUT(0, x->rank, shape);
    if (!y->count) return ANE_OK;
    if (!n) return ane_eval_fail(ev, ANE_ERR_SHAPE, "there is no category");
    double *w = ane__scratch(ev, n);
    if (!w) return ev->status;
    for (int64_t row = 0; row < y->count / size; row++) {
        double sum = 0;
        memcpy(w, x->data + row * n, (size_t)n * sizeof *w);
        if (logits) ane__softmax_row(w, w, n, 1);
        for (int64_t i = 0; i < n; i++) sum += w[i];
        for (int64_t k = 0; k < size; k++) {
            double u = ane__uniform(g) * sum;
            int64_t i = 0;
            while (i < n - 1 && (u -= w[i]) >= 0) i++;
            y->data[row * size + k] = (double)i;
        }
    }
    ane__eval_free(w);
    return ANE_OK;
}

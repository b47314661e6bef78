/* Normalisations. Means and variances in double, two passes. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

/* y = (x - mean) / sqrt(var + eps) over n elements; biased variance. */
static void standardise(double *y, const double *x, int64_t n, double eps) {
    double sum = 0, sq = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    double mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) sq += (x[i] - mean) * (x[i] - mean);
    double scale = 1 / sqrt(sq / (double)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale;
}

ane_status ane__eval_layer_norm(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *gamma = ane_eval_in(ev, "gamma"),
                 *beta = ane_eval_in(ev, "beta");
    double eps = ane_eval_f64(ev, "epsilon", 1e-5);
    bool set[ANE_MAX_RANK];
    ane_status st = ane__eval_axes(ev, "axes", x->rank, true, set);
    if (st) return st;
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    /* The normalised axes go last, so that each group is one run. */
    int perm[ANE_MAX_RANK], back[ANE_MAX_RANK], r = 0;
    int64_t moved[ANE_MAX_RANK], n = 1;
    for (int i = 0; i < x->rank; i++)
        if (!set[i]) perm[r++] = i;
    for (int i = 0; i < x->rank; i++)
        if (set[i]) {
            perm[r++] = i;
            n *= x->shape[i];
        }
    for (int i = 0; i < x->rank; i++) {
        moved[i] = x->shape[perm[i]];
        back[perm[i]] = i;
    }
    if ((gamma && gamma->count != n) || (beta && beta->count != n))
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'gamma' and 'beta' must have %lld elements",
                             (long long)n);
    double *t = ane__scratch(ev, x->count);
    if (!t) return ev->status;
    ane__permute(t, x->data, x->rank, x->shape, perm);
    for (int64_t g = 0; n && g < x->count / n; g++) {
        double *p = t + g * n;
        standardise(p, p, n, eps);
        for (int64_t i = 0; gamma && i < n; i++) p[i] *= gamma->data[i];
        for (int64_t i = 0; beta && i < n; i++) p[i] += beta->data[i];
    }
    ane__permute(y->data, t, x->rank, moved, back);
    ane__eval_free(t);
    return ANE_OK;
}

/* Value c of an optional vector. */
static double of(const ane_rt *r, int64_t c, double fallback) {
    return !r ? fallback : r->data[r->count == 1 ? 0 : c];
}

ane_status ane__eval_batch_norm(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *mean = ane_eval_in(ev, "mean"),
                 *var = ane_eval_in(ev, "variance"), *gamma = ane_eval_in(ev, "gamma"),
                 *beta = ane_eval_in(ev, "beta");
    double eps = ane_eval_f64(ev, "epsilon", 1e-5);
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    int64_t outer, channels, inner, k = 0;
    ane__around(x->rank, x->shape, 1, &outer, &channels, &inner);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t c = 0; c < channels; c++) {
            double scale = of(gamma, c, 1) / sqrt(of(var, c, 1) + eps);
            for (int64_t i = 0; i < inner; i++, k++)
                y->data[k] = (x->data[k] - of(mean, c, 0)) * scale + of(beta, c, 0);
        }
    return ANE_OK;
}

ane_status ane__eval_instance_norm(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *gamma = ane_eval_in(ev, "gamma"),
                 *beta = ane_eval_in(ev, "beta");
    double eps = ane_eval_f64(ev, "epsilon", 1e-5);
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    int64_t channels = x->shape[1], planes = x->shape[0] * channels;
    int64_t n = planes ? x->count / planes : 0;
    for (int64_t p = 0; p < planes; p++) {
        double *o = y->data + p * n;
        standardise(o, x->data + p * n, n, eps);
        for (int64_t i = 0; i < n; i++)
            o[i] = o[i] * of(gamma, p % channels, 1) + of(beta, p % channels, 0);
    }
    return ANE_OK;
}

ane_status ane__eval_l2_norm(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    double eps = ane_eval_f64(ev, "epsilon", 1e-6);
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    int64_t n = ane__count(3, x->shape + x->rank - 3);
    for (int64_t g = 0; n && g < x->count / n; g++) {
        double sum = 0;
        for (int64_t i = g * n; i < (g + 1) * n; i++) sum += x->data[i] * x->data[i];
        double scale = 1 / sqrt(sum + eps);
        for (int64_t i = g * n; i < (g + 1) * n; i++) y->data[i] = x->data[i] * scale;
    }
    return ANE_OK;
}

/* The window of `size` channels around c reaches size/2 below it, as PyTorch's does. */
ane_status ane__eval_local_response_norm(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t size = ane_eval_i64(ev, "size", 1);
    double alpha = ane_eval_f64(ev, "alpha", 1e-4), beta = ane_eval_f64(ev, "beta", 0.75),
           k = ane_eval_f64(ev, "k", 1);
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    int64_t outer, channels, inner;
    ane__around(x->rank, x->shape, 1, &outer, &channels, &inner);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t c = 0; c < channels; c++) {
            int64_t lo = c - size / 2, hi = lo + size;
            if (lo < 0) lo = 0;
            if (hi > channels) hi = channels;
            for (int64_t i = 0; i < inner; i++) {
                double sum = 0;
                for (int64_t j = lo; j < hi; j++) {
                    double v = x->data[(o * channels + j) * inner + i];
                    sum += v * v;
                }
                int64_t at = (o * channels + c) * inner + i;
                y->data[at] = x->data[at] / pow(k + alpha / (double)size * sum, beta);
            }
        }
    return ANE_OK;
}

/* Reductions, arg-reductions and cumsum. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

typedef enum kind { SUM, MEAN, MAX, MIN, PROD, SUM_SQUARE, L1, L2, LOG_SUM, LOG_SUM_EXP } kind;

/* acc[i * sa] takes x[i] in, for a run of n elements; sa is 0 inside a reduced run. */
static void take_in(kind k, bool ints, double *acc, int64_t sa, const double *x, int64_t n,
                    const double *most) {
#define LOOP(expr)                                                                       \
    for (int64_t i = 0; i < n; i++) {                                                    \
        double *a = acc + i * sa, v = x[i];                                              \
        *a = expr;                                                                       \
    }                                                                                    \
    break
    if (ints) {
        /* Kept wrapped to int32, so every product and sum is exact in int64. */
        for (int64_t i = 0; i < n; i++) {
            double *a = acc + i * sa;
            int64_t s = (int64_t)*a, v = (int64_t)x[i];
            switch (k) {
            case MAX: s = v > s ? v : s; break;
            case MIN: s = v < s ? v : s; break;
            case PROD: s *= v; break;
            case SUM_SQUARE: s += v * v; break;
            case L1: s += v < 0 ? -v : v; break;
            default: s += v; break;
            }
            *a = k == MEAN ? (double)s : ane__wrap(ANE_I32, s);
        }
        return;
    }
    switch (k) {
    case SUM: case MEAN: case LOG_SUM: LOOP(*a + v);
    case MAX: LOOP(v > *a || v != v ? v : *a);
    case MIN: LOOP(v < *a || v != v ? v : *a);
    case PROD: LOOP(*a *v);
    case SUM_SQUARE: case L2: LOOP(*a + v * v);
    case L1: LOOP(*a + fabs(v));
    case LOG_SUM_EXP:
        for (int64_t i = 0; i < n; i++) {
            double m = most[i * sa];
            acc[i * sa] += isinf(m) ? (x[i] == m ? 1 : 0) : exp(x[i] - m);
        }
        break;
    }
#undef LOOP
}

/* One pass over x into acc, whose strides are 0 along reduced dims. */
static void pass(kind k, bool ints, const ane_rt *x, double *acc, const int64_t *sa,
                 const double *most) {
    int r = x->rank;
    if (!x->count) return;
    if (!r) {
        take_in(k, ints, acc, 0, x->data, 1, most);
        return;
    }
    int64_t at[ANE_MAX_RANK] = {0}, n = x->shape[r - 1], rows = x->count / n, off = 0;
    const double *p = x->data;
    for (int64_t row = 0; row < rows; row++, p += n) {
        take_in(k, ints, acc + off, sa[r - 1], p, n, most ? most + off : NULL);
        for (int i = r - 2; i >= 0; i--) {
            off += sa[i];
            if (++at[i] < x->shape[i]) break;
            off -= sa[i] * x->shape[i];
            at[i] = 0;
        }
    }
}

static ane_status reduce(ane_eval *ev, kind k) {
    const ane_rt *x = ane_eval_in(ev, "x");
    bool set[ANE_MAX_RANK], keep = ane_eval_bool(ev, "keep_dims", false);
    ane_status st = ane__eval_axes(ev, "axes", x->rank, true, set);
    if (st) return st;
    int64_t shape[ANE_MAX_RANK], sa[ANE_MAX_RANK], stride = 1, n = 1;
    int r = 0;
    for (int i = 0; i < x->rank; i++) {
        if (!set[i]) shape[r++] = x->shape[i];
        else if (keep) shape[r++] = 1;
        if (set[i]) n *= x->shape[i];
    }
    for (int i = x->rank - 1; i >= 0; i--) {
        sa[i] = set[i] ? 0 : stride;
        if (!set[i]) stride *= x->shape[i];
    }
    ane_rt *out = ANE__OUT(0, r, shape);
    double *o = out->data, *most = NULL;
    bool ints = !ane__is_float(x->dtype), logs = k == LOG_SUM_EXP || k == LOG_SUM || k == L2;
    if (!n && (k == MAX || k == MIN) && out->count)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "there is no element to choose from");
    double start = k == PROD ? 1 : k == MAX ? (ints ? INT32_MIN : -INFINITY)
                   : k == MIN ? (ints ? INT32_MAX : INFINITY) : 0;
    for (int64_t i = 0; i < out->count; i++) o[i] = start;
    if (k == LOG_SUM_EXP) {
        most = ane__scratch(ev, out->count);
        if (!most) return ev->status;
        for (int64_t i = 0; i < out->count; i++) most[i] = -INFINITY;
        pass(MAX, false, x, most, sa, NULL);
    }
    pass(k, ints && !logs, x, o, sa, most);
    for (int64_t i = 0; i < out->count; i++) switch (k) {
        case MEAN: o[i] /= (double)n; break;
        case L2: o[i] = sqrt(o[i]); break;
        case LOG_SUM: o[i] = log(o[i]); break;
        case LOG_SUM_EXP: o[i] = most[i] != most[i] ? most[i] : most[i] + log(o[i]); break;
        default: break;
        }
    ane__eval_free(most);
    return ANE_OK;
}

ane_status ane__eval_reduce_sum(ane_eval *ev) { return reduce(ev, SUM); }
ane_status ane__eval_reduce_mean(ane_eval *ev) { return reduce(ev, MEAN); }
ane_status ane__eval_reduce_max(ane_eval *ev) { return reduce(ev, MAX); }
ane_status ane__eval_reduce_min(ane_eval *ev) { return reduce(ev, MIN); }
ane_status ane__eval_reduce_prod(ane_eval *ev) { return reduce(ev, PROD); }
ane_status ane__eval_reduce_sum_square(ane_eval *ev) { return reduce(ev, SUM_SQUARE); }
ane_status ane__eval_reduce_l1_norm(ane_eval *ev) { return reduce(ev, L1); }
ane_status ane__eval_reduce_l2_norm(ane_eval *ev) { return reduce(ev, L2); }
ane_status ane__eval_reduce_log_sum(ane_eval *ev) { return reduce(ev, LOG_SUM); }
ane_status ane__eval_reduce_log_sum_exp(ane_eval *ev) { return reduce(ev, LOG_SUM_EXP); }

static ane_status arg(ane_eval *ev, bool max) {
    const ane_rt *x = ane_eval_in(ev, "x");
    bool keep = ane_eval_bool(ev, "keep_dims", false);
    int axis, r = 0;
    ane_status st = ane__eval_axis(ev, "axis", -1, x->rank, &axis);
    if (st) return st;
    int64_t shape[ANE_MAX_RANK], outer, n, inner;
    ane__around(x->rank, x->shape, axis, &outer, &n, &inner);
    for (int i = 0; i < x->rank; i++) {
        if (i != axis) shape[r++] = x->shape[i];
        else if (keep) shape[r++] = 1;
    }
    ane_rt *out = ANE__OUT(0, r, shape);
    if (!n && out->count)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "there is no element to choose from");
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            const double *p = x->data + o * n * inner + i;
            int64_t best = 0;
            /* The first NaN wins, as in NumPy; then the first of equal values. */
            for (int64_t j = 1; j < n && p[best * inner] == p[best * inner]; j++) {
                double v = p[j * inner], b = p[best * inner];
                if (v != v || (max ? v > b : v < b)) best = j;
            }
            out->data[o * inner + i] = (double)best;
        }
    return ANE_OK;
}

ane_status ane__eval_reduce_argmax(ane_eval *ev) { return arg(ev, true); }
ane_status ane__eval_reduce_argmin(ane_eval *ev) { return arg(ev, false); }

ane_status ane__eval_cumsum(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    bool exclusive = ane_eval_bool(ev, "exclusive", false),
         reverse = ane_eval_bool(ev, "reverse", false), ints = !ane__is_float(x->dtype);
    int axis;
    ane_status st = ane__eval_axis(ev, "axis", 0, x->rank, &axis);
    if (st) return st;
    ane_rt *out = ANE__OUT(0, x->rank, x->shape);
    int64_t outer, n, inner;
    ane__around(x->rank, x->shape, axis, &outer, &n, &inner);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            double sum = 0;
            for (int64_t j = 0; j < n; j++) {
                int64_t k = (o * n + (reverse ? n - 1 - j : j)) * inner + i;
                double next = sum + x->data[k];
                if (ints) next = ane__wrap(x->dtype, (int64_t)next);
                out->data[k] = exclusive ? sum : next;
                sum = next;
            }
        }
    return ANE_OK;
}

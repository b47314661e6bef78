/* Activations and softmax. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

/* Formulas see v and the op's constants a (alpha) and b (beta). */
#define FORMULA(fn, takes_a, takes_b, expr)                                              \
    ane_status fn(ane_eval *ev) {                                                        \
        const ane_rt *x = ane_eval_in(ev, "x");                                          \
        double a = takes_a ? ane_eval_f64(ev, "alpha", 0) : 0;                           \
        double b = takes_b ? ane_eval_f64(ev, "beta", 0) : 0;                            \
        (void)a, (void)b;                                                                \
        ane_rt *y = ANE__OUT(0, x->rank, x->shape);                                      \
        for (int64_t i = 0; i < x->count; i++) {                                         \
            double v = x->data[i];                                                       \
            y->data[i] = expr;                                                           \
        }                                                                                \
        return ANE_OK;                                                                   \
    }
#define ACTIVATION(name, a, b, expr) FORMULA(ane__eval_##name, a, b, expr)

/* Comparisons are written so that NaN falls through to v. */
ACTIVATION(relu, 0, 0, v < 0 ? 0 : v)
ACTIVATION(relu6, 0, 0, v < 0 ? 0 : v > 6 ? 6 : v)
ACTIVATION(sigmoid, 0, 0, 1 / (1 + exp(-v)))
ACTIVATION(silu, 0, 0, v / (1 + exp(-v)))
ACTIVATION(softsign, 0, 0, isinf(v) ? copysign(1, v) : v / (1 + fabs(v)))
ACTIVATION(softplus, 0, 0, (v < 0 ? 0 : v) + log1p(exp(-fabs(v))))
ACTIVATION(elu, 1, 0, v > 0 ? v : a * expm1(v))
ACTIVATION(leaky_relu, 1, 0, v > 0 ? v : a * v)
ACTIVATION(thresholded_relu, 1, 0, v < a ? 0 : v)
ACTIVATION(clamped_relu, 1, 1, v >= 0 ? (v > b ? b : v) : (a * v > b ? b : a * v))
ACTIVATION(linear_activation, 1, 1, a *v + b)
ACTIVATION(scaled_tanh, 1, 1, a *tanh(b *v))
ACTIVATION(sigmoid_hard, 1, 1, a *v + b < 0 ? 0 : a * v + b > 1 ? 1 : a * v + b)

/* 1 + erf(t) loses all digits for large negative t; erfc(-t) does not. */
static FORMULA(gelu_exact, 0, 0, 0.5 * v * erfc(-v * 0.70710678118654752440))
static FORMULA(gelu_tanh, 0, 0,
               0.5 * v * (1 + tanh(0.79788456080286535588 * (v + 0.044715 * v * v * v))))
static FORMULA(gelu_sigmoid, 0, 0, v / (1 + exp(-1.702 * v)))

ane_status ane__eval_gelu(ane_eval *ev) {
    const char *mode = ane_eval_str(ev, "mode", "EXACT");
    if (!strcmp(mode, "TANH_APPROXIMATION")) return gelu_tanh(ev);
    if (!strcmp(mode, "SIGMOID_APPROXIMATION")) return gelu_sigmoid(ev);
    return gelu_exact(ev);
}

/* Per channel (dim 1): one constant for all channels, or one each. */
static ane_status per_channel(ane_eval *ev, bool softplus) {
    const ane_rt *x = ane_eval_in(ev, "x"), *alpha = ane_eval_in(ev, "alpha"),
                 *beta = softplus ? ane_eval_in(ev, "beta") : NULL;
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    int64_t outer, channels, inner, k = 0;
    ane__around(x->rank, x->shape, 1, &outer, &channels, &inner);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t c = 0; c < channels; c++) {
            double a = alpha->data[alpha->count == 1 ? 0 : c];
            double b = beta ? beta->data[beta->count == 1 ? 0 : c] : 0;
            for (int64_t i = 0; i < inner; i++, k++) {
                double v = x->data[k], t = b * v;
                if (beta) y->data[k] = a * ((t < 0 ? 0 : t) + log1p(exp(-fabs(t))));
                else y->data[k] = v > 0 ? v : a * v;
            }
        }
    return ANE_OK;
}

ane_status ane__eval_prelu(ane_eval *ev) { return per_channel(ev, false); }
ane_status ane__eval_softplus_parametric(ane_eval *ev) { return per_channel(ev, true); }

void ane__softmax_row(double *y, const double *x, int64_t n, int64_t step) {
    double most = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++)
        if (x[i * step] > most) most = x[i * step];
    for (int64_t i = 0; i < n; i++) sum += y[i * step] = exp(x[i * step] - most);
    for (int64_t i = 0; i < n; i++) y[i * step] /= sum;
}

ane_status ane__eval_softmax(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int axis;
    ane_status st = ane__eval_axis(ev, "axis", -1, x->rank, &axis);
    if (st) return st;
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    int64_t outer, n, inner;
    ane__around(x->rank, x->shape, axis, &outer, &n, &inner);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++)
            ane__softmax_row(y->data + o * n * inner + i, x->data + o * n * inner + i, n,
                             inner);
    return ANE_OK;
}

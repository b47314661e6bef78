/* Convolution and its adjoint as products over gathered columns, in blocks of positions so
 * that the scratch stays small; and pooling. */
#include "window.h"

#include <math.h>
#include <string.h>

enum { POSITIONS = 1024 };

/* Where in a plane of the big side tap (a, b, e) of the window at output position q lies;
 * -1: in the padding. */
static inline int64_t place(const ane_window *w, int64_t q, int64_t a, int64_t b, int64_t e) {
    int64_t k = q % w->out[2] * w->stride[2] + e * w->dilation[2] - w->pad[2][0];
    int64_t j = q / w->out[2] % w->out[1] * w->stride[1] + b * w->dilation[1] - w->pad[1][0];
    int64_t i = q / w->out[2] / w->out[1] * w->stride[0] + a * w->dilation[0] - w->pad[0][0];
    bool in = i >= 0 && i < w->in[0] && j >= 0 && j < w->in[1] && k >= 0 && k < w->in[2];
    return in ? (i * w->in[1] + j) * w->in[2] + k : -1;
}

#define FOR_TAPS(w, a, b, e)                                                               \
    for (int64_t a = 0; a < (w)->kernel[0]; a++)                                           \
        for (int64_t b = 0; b < (w)->kernel[1]; b++)                                       \
            for (int64_t e = 0; e < (w)->kernel[2]; e++)

/* col[(c, k), p] = x[c, position of tap k in window at+p], 0 in the padding. */
static void gather(double *col, const double *x, const ane_window *w, int64_t channels,
                   int64_t at, int64_t n) {
    int64_t plane = w->in[0] * w->in[1] * w->in[2];
    for (int64_t c = 0; c < channels; c++, x += plane)
        FOR_TAPS(w, a, b, e) {
            for (int64_t p = 0; p < n; p++) {
                int64_t from = place(w, at + p, a, b, e);
                col[p] = from < 0 ? 0 : x[from];
            }
            col += n;
        }
}

/* The adjoint: y[c, position] += col[(c, k), p]; `w` is the geometry of the big side y. */
static void spread(double *y, const double *col, const ane_window *w, int64_t channels,
                   int64_t at, int64_t n) {
    int64_t plane = w->in[0] * w->in[1] * w->in[2];
    for (int64_t c = 0; c < channels; c++, y += plane)
        FOR_TAPS(w, a, b, e) {
            for (int64_t p = 0; p < n; p++) {
                int64_t to = place(w, at + p, a, b, e);
                if (to >= 0) y[to] += col[p];
            }
            col += n;
        }
}

static void add_bias(ane_rt *y, const ane_rt *bias) {
    int64_t channels = y->shape[1], inner = ane__count(y->rank - 2, y->shape + 2);
    for (int64_t i = 0; bias && i < y->count; i++)
        y->data[i] += bias->data[i / inner % channels];
}

ane_status ane__eval_conv(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *k = ane_eval_in(ev, "weight"),
                 *bias = ane_eval_in(ev, "bias");
    int64_t groups = ane_eval_i64(ev, "groups", 1), shape[5];
    ane_window w = {.n = x->rank - 2};
    memcpy(w.in, x->shape + 2, sizeof *w.in * (size_t)w.n);
    memcpy(w.kernel, k->shape + 2, sizeof *w.kernel * (size_t)w.n);
    ane_status st = ane__window_forward(NULL, ev, ev->op, &w);
    if (st) return st;
    if (k->shape[1] * groups != x->shape[1] || k->shape[0] % groups)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'weight' does not fit %lld channels in %lld "
                             "groups", (long long)x->shape[1], (long long)groups);
    shape[0] = x->shape[0];
    shape[1] = k->shape[0];
    memcpy(shape + 2, w.out, sizeof w.out);
    ane_rt *y = ANE__OUT(0, x->rank, shape);
    ane__window_three(&w);
    int64_t cin = k->shape[1], cout = k->shape[0] / groups, taps = ane__count(3, w.kernel),
            plane = ane__count(3, w.in), positions = ane__count(3, w.out);
    int64_t block = positions < POSITIONS ? positions : POSITIONS;
    double *col = ane__scratch(ev, cin * taps * block);
    double *acc = col ? ane__scratch(ev, cout * block) : NULL;
    for (int64_t n = 0; acc && y->count && n < x->shape[0]; n++)
        for (int64_t g = 0; g < groups; g++)
            for (int64_t at = 0; at < positions; at += block) {
                int64_t p = positions - at < block ? positions - at : block;
                gather(col, x->data + (n * groups + g) * cin * plane, &w, cin, at, p);
                memset(acc, 0, (size_t)(cout * p) * sizeof *acc);
                ane__matmul_f64(acc, k->data + g * cout * cin * taps, col, cout, cin * taps, p);
                for (int64_t c = 0; c < cout; c++)
                    memcpy(y->data + ((n * groups + g) * cout + c) * positions + at,
                           acc + c * p, (size_t)p * sizeof *acc);
            }
    st = acc ? ANE_OK : ev->status;
    ane__eval_free(col);
    ane__eval_free(acc);
    if (!st) add_bias(y, bias);
    return st;
}

ane_status ane__eval_conv_transpose(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *k = ane_eval_in(ev, "weight"),
                 *bias = ane_eval_in(ev, "bias");
    int64_t groups = ane_eval_i64(ev, "groups", 1), shape[5];
    ane_window w = {.n = x->rank - 2};
    memcpy(w.in, x->shape + 2, sizeof *w.in * (size_t)w.n);
    memcpy(w.kernel, k->shape + 2, sizeof *w.kernel * (size_t)w.n);
    ane_status st = ane__window_transpose(NULL, ev, ev->op, &w);
    if (st) return st;
    if (k->shape[0] != x->shape[1] || x->shape[1] % groups)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'weight' does not fit %lld channels in %lld "
                             "groups", (long long)x->shape[1], (long long)groups);
    shape[0] = x->shape[0];
    shape[1] = k->shape[1] * groups;
    memcpy(shape + 2, w.out, sizeof w.out);
    ane_rt *y = ANE__OUT(0, x->rank, shape);
    ane__window_three(&w);
    /* Seen as the forward convolution from y: its input is our result. */
    for (int i = 0; i < 3; i++) {
        int64_t t = w.in[i];
        w.in[i] = w.out[i];
        w.out[i] = t;
    }
    int64_t cin = k->shape[0] / groups, cout = k->shape[1], taps = ane__count(3, w.kernel),
            plane = ane__count(3, w.in), positions = ane__count(3, w.out);
    int64_t block = positions < POSITIONS ? positions : POSITIONS;
    double *wt = ane__scratch(ev, k->count), *col = NULL, *xs = NULL;
    if (wt) col = ane__scratch(ev, cout * taps * block);
    if (col) xs = ane__scratch(ev, cin * block);
    if (xs) {                           /* weight per group as [Cout*K, Cin] */
        static const int perm[3] = {0, 2, 1};
        int64_t from[3] = {groups, cin, cout * taps};
        ane__permute(wt, k->data, 3, from, perm);
    }
    for (int64_t n = 0; xs && n < x->shape[0]; n++)
        for (int64_t g = 0; g < groups; g++)
            for (int64_t at = 0; at < positions; at += block) {
                int64_t p = positions - at < block ? positions - at : block;
                for (int64_t c = 0; c < cin; c++)
                    memcpy(xs + c * p, x->data + ((n * groups + g) * cin + c) * positions + at,
                           (size_t)p * sizeof *xs);
                memset(col, 0, (size_t)(cout * taps * p) * sizeof *col);
                ane__matmul_f64(col, wt + g * cout * taps * cin, xs, cout * taps, cin, p);
                spread(y->data + (n * groups + g) * cout * plane, col, &w, cout, at, p);
            }
    st = xs ? ANE_OK : ev->status;
    ane__eval_free(wt);
    ane__eval_free(col);
    ane__eval_free(xs);
    if (!st) add_bias(y, bias);
    return st;
}

/* ---------------------------------------------------------------- pooling */

typedef enum kind { MAX, AVG, L2 } kind;

static double pool_one(const double *x, const ane_window *w, const int64_t *start, kind k,
                       bool exclude) {
    double acc = k == MAX ? -INFINITY : 0;
    int64_t lo[3], hi[3], volume = 1, real = 1;
    for (int i = 0; i < 3; i++) {
        lo[i] = start[i] < 0 ? 0 : start[i];
        hi[i] = start[i] + w->kernel[i];
        /* In ceil mode a window may hang over even the padding; what lies beyond does not
         * count in the average (PyTorch's rule). */
        int64_t edge = w->in[i] + w->pad[i][1];
        volume *= (hi[i] < edge ? hi[i] : edge) - start[i];
        if (hi[i] > w->in[i]) hi[i] = w->in[i];
        real *= hi[i] > lo[i] ? hi[i] - lo[i] : 0;
    }
    for (int64_t i = lo[0]; i < hi[0]; i++)
        for (int64_t j = lo[1]; j < hi[1]; j++)
            for (int64_t e = lo[2]; e < hi[2]; e++) {
                double v = x[(i * w->in[1] + j) * w->in[2] + e];
                if (k == MAX) acc = v > acc || v != v ? v : acc;
                else acc += k == AVG ? v : v * v;
            }
    if (k == AVG && !real) return 0;    /* a window wholly behind the input */
    return k == MAX ? acc : k == L2 ? sqrt(acc) : acc / (double)(exclude ? real : volume);
}

static ane_status pool(ane_eval *ev, kind k) {
    const ane_rt *x = ane_eval_in(ev, "x");
    bool exclude = k == AVG && ane_eval_bool(ev, "exclude_padding_from_average", false);
    ane_window w = {.n = x->rank - 2};
    int64_t shape[5];
    memcpy(w.in, x->shape + 2, sizeof *w.in * (size_t)w.n);
    if (ane_eval_ints(ev, "kernel_sizes", w.kernel, w.n) != w.n)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'kernel_sizes' must have %d elements", w.n);
    ane_status st = ane__window_forward(NULL, ev, ev->op, &w);
    if (st) return st;
    memcpy(shape, x->shape, sizeof shape);
    memcpy(shape + 2, w.out, sizeof *w.out * (size_t)w.n);
    ane_rt *y = ANE__OUT(0, x->rank, shape);
    ane__window_three(&w);
    int64_t plane = ane__count(3, w.in), at[3];
    double *o = y->data;
    for (int64_t c = 0; c < x->shape[0] * x->shape[1]; c++)
        for (at[0] = -w.pad[0][0]; at[0] < w.out[0] * w.stride[0] - w.pad[0][0];
             at[0] += w.stride[0])
            for (at[1] = -w.pad[1][0]; at[1] < w.out[1] * w.stride[1] - w.pad[1][0];
                 at[1] += w.stride[1])
                for (at[2] = -w.pad[2][0]; at[2] < w.out[2] * w.stride[2] - w.pad[2][0];
                     at[2] += w.stride[2])
                    *o++ = pool_one(x->data + c * plane, &w, at, k, exclude);
    return ANE_OK;
}

ane_status ane__eval_max_pool(ane_eval *ev) { return pool(ev, MAX); }
ane_status ane__eval_avg_pool(ane_eval *ev) { return pool(ev, AVG); }
ane_status ane__eval_l2_pool(ane_eval *ev) { return pool(ev, L2); }

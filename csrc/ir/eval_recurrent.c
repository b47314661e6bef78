/* lstm, gru and rnn. States stay double from step to step and are rounded once, at the end.
 *
 * "reverse" walks the sequence backwards and gives its steps in the order walked; the
 * backward half of "bidirectional" gives them in the order of the input. Without
 * output_sequence each direction gives the step it ends with. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>
#include <strings.h>

typedef enum act { SIGMOID, TANH, RELU, LINEAR, HARD } act;

static act act_of(ane_eval *ev, const char *name) {
    const char *s = ane_eval_str(ev, name, "tanh");
    return !strcasecmp(s, "sigmoid") ? SIGMOID : !strcasecmp(s, "relu") ? RELU
           : !strcasecmp(s, "linear") ? LINEAR
           : !strcasecmp(s, "hard_sigmoid") || !strcasecmp(s, "sigmoid_hard") ? HARD : TANH;
}

static double apply(act a, double v) {
    switch (a) {
    case SIGMOID: return 1 / (1 + exp(-v));
    case TANH: return tanh(v);          /* scaled_tanh with its default constants too */
    case RELU: return v < 0 ? 0 : v;
    case HARD: v = 0.2 * v + 0.5; return v < 0 ? 0 : v > 1 ? 1 : v;
    case LINEAR: break;
    }
    return v;
}

typedef enum cell { RNN, GRU, LSTM } cell;

typedef struct run {
    cell kind;
    int64_t s, b, i, h, gates;
    const ane_rt *x, *wih, *whh, *bias, *input_bias, *peephole;
    act gate, mid, out;
    double clip;
    bool reset_after;
    double *hs, *cs;                    /* [b, h] each: initial, then final state */
} run;

static double bias_at(const ane_rt *r, int64_t k) { return r ? r->data[k] : 0; }

/* One step for one row of the batch. g holds x @ wih.T + biases, and for all but gru's
 * output gate also h @ whh.T; rec is h @ whh.T, [gates*h]. */
static void step(const run *r, double *g, const double *rec, double *h, double *c,
                 double *tmp) {
    int64_t n = r->h;
    if (r->kind == RNN) {
        for (int64_t k = 0; k < n; k++) h[k] = apply(r->out, g[k] + rec[k]);
    } else if (r->kind == GRU) {        /* rows: reset, output, update */
        for (int64_t k = 0; k < n; k++) {
            g[k] = apply(r->gate, g[k] + rec[k]);
            g[2 * n + k] = apply(r->gate, g[2 * n + k] + rec[2 * n + k]);
        }
        if (!r->reset_after) {          /* W_ho applied to the reset state */
            for (int64_t k = 0; k < n; k++) tmp[k] = g[k] * h[k];
            for (int64_t k = 0; k < n; k++) {
                const double *w = r->whh->data + (n + k) * n;
                double sum = 0;
                for (int64_t j = 0; j < n; j++) sum += w[j] * tmp[j];
                g[n + k] += sum;
            }
        } else {                        /* `bias` of the output gate is inside the reset */
            for (int64_t k = 0; k < n; k++)
                g[n + k] += g[k] * (rec[n + k] + bias_at(r->bias, n + k));
        }
        for (int64_t k = 0; k < n; k++)
            h[k] = (1 - g[2 * n + k]) * apply(r->out, g[n + k]) + g[2 * n + k] * h[k];
    } else {                            /* rows: input, forget, output, cell */
        const double *p = r->peephole ? r->peephole->data : NULL;
        for (int64_t k = 0; k < n; k++) {
            double i = apply(r->gate, g[k] + rec[k] + (p ? p[k] * c[k] : 0));
            double f = apply(r->gate, g[n + k] + rec[n + k] + (p ? p[n + k] * c[k] : 0));
            double z = apply(r->mid, g[3 * n + k] + rec[3 * n + k]);
            double v = f * c[k] + i * z;
            c[k] = v > r->clip ? r->clip : v < -r->clip ? -r->clip : v;
            double o = apply(r->gate, g[2 * n + k] + rec[2 * n + k] +
                                          (p ? p[2 * n + k] * c[k] : 0));
            h[k] = o * apply(r->out, c[k]);
        }
    }
}

/* out[t, b, offset..] with row length `width`; t in walked order, or the input's. */
static ane_status walk_sequence(ane_eval *ev, const run *r, bool backwards, bool aligned,
                                double *out, int64_t width, int64_t offset) {
    int64_t rows = r->gates * r->h, sb = r->s * r->b;
    static const int swap[2] = {1, 0};
    int64_t ih[2] = {rows, r->i}, hh[2] = {rows, r->h};
    double *wi = ane__scratch(ev, rows * r->i), *wh = NULL, *g = NULL, *rec = NULL, *tmp = NULL;
    if (wi) wh = ane__scratch(ev, rows * r->h);
    if (wh) g = ane__scratch(ev, sb * rows);
    if (g) rec = ane__scratch(ev, r->b * rows);
    if (rec) tmp = ane__scratch(ev, r->h);
    if (tmp) {
        ane__permute(wi, r->wih->data, 2, ih, swap);
        ane__permute(wh, r->whh->data, 2, hh, swap);
        for (int64_t k = 0; k < sb * rows; k++) {
            int64_t row = k % rows;
            bool inside = r->reset_after && row / r->h == 1;
            g[k] = (inside ? 0 : bias_at(r->bias, row)) + bias_at(r->input_bias, row);
        }
        ane__matmul_f64(g, r->x->data, wi, sb, r->i, rows);
    }
    for (int64_t n = 0; tmp && n < r->s; n++) {
        int64_t t = backwards ? r->s - 1 - n : n, to = aligned ? t : n;
        memset(rec, 0, (size_t)(r->b * rows) * sizeof *rec);
        ane__matmul_f64(rec, r->hs, wh, r->b, r->h, rows);
        for (int64_t b = 0; b < r->b; b++) {
            double *h = r->hs + b * r->h;
            step(r, g + (t * r->b + b) * rows, rec + b * rows, h,
                 r->cs ? r->cs + b * r->h : NULL, tmp);
            memcpy(out + (to * r->b + b) * width + offset, h, (size_t)r->h * sizeof *h);
        }
    }
    ane_status st = tmp ? ANE_OK : ev->status;
    ane__eval_free(wi);
    ane__eval_free(wh);
    ane__eval_free(g);
    ane__eval_free(rec);
    ane__eval_free(tmp);
    return st;
}

/* Columns [offset, offset+h) of a state [b, width], there or back. */
static void columns(double *part, double *whole, int64_t b, int64_t h, int64_t width,
                    int64_t offset, bool back) {
    for (int64_t k = 0; k < b; k++) {
        double *p = part + k * h, *w = whole + k * width + offset;
        memcpy(back ? w : p, back ? p : w, (size_t)h * sizeof *p);
    }
}

static ane_status recurrent(ane_eval *ev, cell kind) {
    const ane_rt *h0 = ane_eval_in(ev, "initial_h"),
                 *c0 = kind == LSTM ? ane_eval_in(ev, "initial_c") : NULL;
    bool lstm = kind == LSTM, newer = ane_op_param_index(ev->op->row, "input_bias") >= 0;
    run r = {.kind = kind, .gates = lstm ? 4 : kind == GRU ? 3 : 1, .clip = INFINITY};
    r.x = ane_eval_in(ev, "x");
    r.wih = ane_eval_in(ev, "weight_ih");
    r.whh = ane_eval_in(ev, "weight_hh");
    r.bias = ane_eval_in(ev, "bias");
    r.peephole = lstm ? ane_eval_in(ev, "peephole") : NULL;
    r.input_bias = newer ? ane_eval_in(ev, "input_bias") : NULL;
    r.reset_after = newer && ane_eval_bool(ev, "reset_after", false);
    r.out = act_of(ev, "activation");
    r.gate = kind == RNN ? TANH : act_of(ev, "recurrent_activation");
    r.mid = lstm ? act_of(ev, "cell_activation") : TANH;
    if (lstm && ane_eval_in(ev, "clip")) r.clip = fabs(ane_eval_f64(ev, "clip", INFINITY));
    r.s = r.x->shape[0];
    r.b = r.x->shape[1];
    r.i = r.x->shape[2];
    r.h = r.whh->shape[1];
    char direction = ane_eval_str(ev, "direction", "forward")[0];
    int dirs = direction == 'b' ? 2 : 1;
    int64_t width = r.h * dirs, shape[3] = {r.s, r.b, width};
    bool sequence = ane_eval_bool(ev, "output_sequence", false);
    if (h0->count != r.b * width || (lstm && c0->count != r.b * width) ||
        r.wih->shape[1] != r.i)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "the operands' shapes do not fit");
    if (!sequence) {
        shape[0] = 1;
        if (!r.s) return ane_eval_fail(ev, ANE_ERR_SHAPE, "the sequence is empty");
    }
    ane_rt *seq = ANE__OUT(0, 3, shape);
    ane_rt *cn = NULL, *hn = ANE__OUT(1, 2, shape + 1);
    if (lstm) {
        cn = ANE__OUT(2, 2, shape + 1);
    }
    double *all = ane__scratch(ev, r.s * r.b * width);
    if (all) r.hs = ane__scratch(ev, r.b * r.h);
    if (r.hs && lstm) r.cs = ane__scratch(ev, r.b * r.h);
    ane_status st = r.hs && (!lstm || r.cs) ? ANE_OK : ev->status;
    for (int d = 0; d < dirs && !st; d++) {
        if (d) {
            r.wih = ane_eval_in(ev, "weight_ih_back");
            r.whh = ane_eval_in(ev, "weight_hh_back");
            r.bias = ane_eval_in(ev, "bias_back");
            r.peephole = ane_eval_in(ev, "peephole_back");
        }
        columns(r.hs, h0->data, r.b, r.h, width, d * r.h, false);
        if (lstm) columns(r.cs, c0->data, r.b, r.h, width, d * r.h, false);
        st = walk_sequence(ev, &r, d || direction == 'r', d == 1, all, width, d * r.h);
        columns(r.hs, hn->data, r.b, r.h, width, d * r.h, true);
        if (lstm) columns(r.cs, cn->data, r.b, r.h, width, d * r.h, true);
    }
    if (!st)
        memcpy(seq->data, sequence ? all : hn->data,    /* each direction's last step */
               (size_t)seq->count * sizeof *all);
    ane__eval_free(all);
    ane__eval_free(r.hs);
    ane__eval_free(r.cs);
    return st;
}

ane_status ane__eval_lstm(ane_eval *ev) { return recurrent(ev, LSTM); }
ane_status ane__eval_gru(ane_eval *ev) { return recurrent(ev, GRU); }
ane_status ane__eval_rnn(ane_eval *ev) { return recurrent(ev, RNN); }

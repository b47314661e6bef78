/* topk, argsort and non_maximum_suppression. */
#include "ops_fn.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct item {
    double v;
    int64_t i;
} item;

/* NaN is the largest; equal values keep their order. A total order, so that the result does
 * not depend on the sort. */
static int descending(const void *pa, const void *pb) {
    const item *a = pa, *b = pb;
    bool na = a->v != a->v, nb = b->v != b->v;
    if (na != nb) return na ? -1 : 1;
    if (!na && a->v != b->v) return a->v > b->v ? -1 : 1;
    return a->i < b->i ? -1 : a->i > b->i;
}
static int ascending(const void *pa, const void *pb) {
    const item *a = pa, *b = pb;
    bool na = a->v != a->v, nb = b->v != b->v;
    if (na != nb) return na ? 1 : -1;
    if (!na && a->v != b->v) return a->v < b->v ? -1 : 1;
    return a->i < b->i ? -1 : a->i > b->i;
}

/* The first k of the sorted order along an axis; values and indices may be NULL. */
static ane_status sorted(ane_eval *ev, const ane_rt *x, int axis, int64_t k, bool up,
                         double *values, double *indices) {
    int64_t outer, n, inner;
    ane__around(x->rank, x->shape, axis, &outer, &n, &inner);
    item *t = ane__eval_alloc((size_t)n, sizeof *t);
    if (!t) return ane_eval_fail(ev, ANE_ERR_NOMEM, "%lld elements to sort", (long long)n);
    for (int64_t o = 0; o < outer; o++)
        for (int64_t i = 0; i < inner; i++) {
            for (int64_t j = 0; j < n; j++)
                t[j] = (item){x->data[(o * n + j) * inner + i], j};
            qsort(t, (size_t)n, sizeof *t, up ? ascending : descending);
            for (int64_t j = 0; j < k; j++) {
                int64_t to = (o * k + j) * inner + i;
                if (values) values[to] = t[j].v;
                if (indices) indices[to] = (double)t[j].i;
            }
        }
    ane__eval_free(t);
    return ANE_OK;
}

ane_status ane__eval_topk(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int axis;
    ane_status st = ane__eval_axis(ev, "axis", -1, x->rank, &axis);
    if (st) return st;
    int64_t k = ane_eval_i64(ev, "k", 1), d = x->shape[axis], shape[ANE_MAX_RANK];
    if (k == -1 && ev->op->row->opset >= 17) k = d;
    if (k < 0 || k > d)
        return ane_eval_fail(ev, ANE_ERR_INVALID, "'k' is %lld, dimension %d is %lld",
                             (long long)k, axis, (long long)d);
    memcpy(shape, x->shape, sizeof shape);
    shape[axis] = k;
    ane_rt *i = NULL, *v = ANE__OUT(0, x->rank, shape);
    if (ev->op->n_results == 2) {
        i = ANE__OUT(1, x->rank, shape);
    }
    return sorted(ev, x, axis, k, ane_eval_bool(ev, "ascending", false), v->data,
                  i ? i->data : NULL);
}

ane_status ane__eval_argsort(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int axis;
    ane_status st = ane__eval_axis(ev, "axis", -1, x->rank, &axis);
    if (st) return st;
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    return sorted(ev, x, axis, x->shape[axis], ane_eval_bool(ev, "ascending", false), NULL,
                  y->data);
}

/* ---------------------------------------------------------------- boxes */

/* One image: boxes are (width-first centre and size) and scores [box][class], both read
 * through strides, so that iOS15's and iOS17's layouts share the code. */
typedef struct boxes {
    const double *box, *score;
    int64_t n, classes, box_step, coord_step, score_step, class_step;
} boxes;

static double overlap(const boxes *b, int64_t i, int64_t j) {
    double at[2][4];
    for (int k = 0; k < 4; k++) {
        at[0][k] = b->box[i * b->box_step + k * b->coord_step];
        at[1][k] = b->box[j * b->box_step + k * b->coord_step];
    }
    double inter = 1;
    for (int k = 0; k < 2; k++) {
        double lo = fmax(at[0][k] - at[0][k + 2] / 2, at[1][k] - at[1][k + 2] / 2);
        double hi = fmin(at[0][k] + at[0][k + 2] / 2, at[1][k] + at[1][k + 2] / 2);
        inter *= hi > lo ? hi - lo : 0;
    }
    double both = at[0][2] * at[0][3] + at[1][2] * at[1][3] - inter;
    return both > 0 ? inter / both : 0;
}

ane_status ane__eval_non_maximum_suppression(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "boxes"), *s = ane_eval_in(ev, "scores");
    bool modern = ev->op->row->opset >= 17;
    double iou = ane_eval_f64(ev, "iou_threshold", 0);
    double least = modern ? -INFINITY : ane_eval_f64(ev, "score_threshold", -INFINITY);
    int64_t m = ane_eval_i64(ev, "max_boxes", 0);
    bool per_class = ane_eval_bool(ev, "per_class_suppression", false);
    int box = modern ? 1 : 2, each = modern ? 2 : 1;
    int64_t batch = x->shape[0], n = x->shape[each], classes = s->shape[box];
    int64_t bs[3] = {batch}, ss[3] = {batch}, is[2] = {batch, m};
    bs[each] = ss[each] = m;
    bs[box] = 4;
    ss[box] = classes;
    if (m < 0 || s->shape[each] != n || s->shape[0] != batch || x->shape[box] != 4)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'boxes' and 'scores' do not fit");
    ane_rt *ob = ANE__OUT(0, 3, bs);
    ane_rt *os = ANE__OUT(1, 3, ss);
    ane_rt *on = NULL, *oi = ANE__OUT(2, 2, is);
    if (!modern) {
        on = ANE__OUT(3, 1, &batch);
    }
    item *t = ane__eval_alloc((size_t)n, sizeof *t);
    int64_t *best = ane__eval_alloc((size_t)n, sizeof *best);
    if (!t || !best) {
        ane__eval_free(t);
        ane__eval_free(best);
        return ane_eval_fail(ev, ANE_ERR_NOMEM, "%lld boxes", (long long)n);
    }
    for (int64_t i = 0; i < oi->count; i++) oi->data[i] = -1;
    for (int64_t q = 0; q < batch; q++) {
        boxes b = {.box = x->data + q * n * 4, .score = s->data + q * n * classes, .n = n,
                   .classes = classes};
        b.box_step = modern ? 1 : 4;
        b.coord_step = modern ? n : 1;
        b.score_step = modern ? 1 : classes;
        b.class_step = modern ? n : 1;
        int64_t kept = 0;
        for (int64_t i = 0; i < n; i++) {
            double top = -INFINITY;
            for (int64_t c = 0; c < classes; c++) {
                double v = b.score[i * b.score_step + c * b.class_step];
                if (v > top) {
                    top = v;
                    best[i] = c;
                }
            }
            t[i] = (item){top, i};
        }
        qsort(t, (size_t)n, sizeof *t, descending);
        for (int64_t i = 0; i < n && kept < m && t[i].v >= least; i++) {
            int64_t me = t[i].i;
            bool keep = true;
            for (int64_t k = 0; k < kept && keep; k++) {
                int64_t other = (int64_t)oi->data[q * m + k];
                if (per_class && best[other] != best[me]) continue;
                keep = overlap(&b, me, other) <= iou;
            }
            if (keep) oi->data[q * m + kept++] = (double)me;
        }
        if (on) on->data[q] = (double)kept;
        for (int64_t k = 0; k < kept; k++) {
            int64_t i = (int64_t)oi->data[q * m + k];
            for (int64_t c = 0; c < 4; c++)
                ob->data[q * m * 4 + (modern ? c * m + k : k * 4 + c)] =
                    b.box[i * b.box_step + c * b.coord_step];
            for (int64_t c = 0; c < classes; c++)
                os->data[q * m * classes + (modern ? c * m + k : k * classes + c)] =
                    b.score[i * b.score_step + c * b.class_step];
        }
    }
    ane__eval_free(t);
    ane__eval_free(best);
    return ANE_OK;
}

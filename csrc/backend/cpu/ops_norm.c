/* layer_norm, instance_norm and l2_norm over strided operands: one walk for rows that lie
 * along memory, one for columns side by side. Means and sums of squares are made of two
 * passes over fp32 values, whose order depends on the shape only. */
#include "expr.h"
#include "ops.h"
#include "view.h"

#include <math.h>
#include <string.h>

#define TASK 16384                      /* elements of one task, at least */
#define COLUMNS 64                      /* side by side in the walk over columns */
#define LEVEL 32                        /* rows of one partial sum there */

enum { Y, X, VIEWS };

typedef struct dim {
    int64_t size, xs, ys;
} dim;

typedef struct norm {
    bool centred;                       /* false: l2_norm, a sum instead of a variance */
    double eps;
    int n_kept, n_reduced, channel;     /* channel: kept dim that gamma runs along; -1 */
    dim kept[ANE_MAX_RANK], reduced[ANE_MAX_RANK];
    bool rows;                          /* the innermost reduced dim is the densest */
    int64_t outer, n, cols;             /* kept places, elements of one; columns of a task */
    int64_t col_tiles, per;
    const float *gamma, *beta;          /* per reduced place, or per channel; NULL: 1, 0 */
    ane_dtype x_dtype, y_dtype;
} norm;

typedef struct norm_run {
    const norm *p;
    char *y;
    const char *x;
    atomic_bool nomem;
} norm_run;

/* Place `i` of the dims, row-major: offsets into x and y. */
static void place(const dim *d, int n, int64_t i, int64_t *x, int64_t *y) {
    *x = *y = 0;
    for (int k = n - 1; k >= 0; k--) {
        *x += i % d[k].size * d[k].xs;
        *y += i % d[k].size * d[k].ys;
        i /= d[k].size;
    }
}

static int64_t channel_of(const norm *p, int64_t i) {
    if (p->channel < 0) return 0;
    for (int k = p->n_kept - 1; k > p->channel; k--) i /= p->kept[k].size;
    return i % p->kept[p->channel].size;
}

static size_t row_bytes(const norm *p) { return (size_t)p->n * sizeof(float); }
static size_t column_bytes(const norm *p, size_t columns) {
    return ((size_t)p->n + 4) * columns * sizeof(float);
}

/* Kept places one by one: all their elements in a row. */
static void row_task(void *arg, size_t task) {
    norm_run *run = arg;
    const norm *p = run->p;
    const ane_vec *v = ane_vec_get();
    const dim *in = &p->reduced[p->n_reduced - 1];
    int64_t runs = p->n / in->size;
    float *row = ane_scratch_push(row_bytes(p));
    if (!row) {
        atomic_store(&run->nomem, true);
        return;
    }
    int64_t first = (int64_t)task * p->per, end = first + p->per;
    size_t n = (size_t)p->n;
    for (int64_t o = first; o < end && o < p->outer; o++) {
        int64_t x0, y0, x, y;
        place(p->kept, p->n_kept, o, &x0, &y0);
        for (int64_t k = 0; k < runs; k++) {
            place(p->reduced, p->n_reduced - 1, k, &x, &y);
            ane_row_load(row + k * in->size, run->x + x0 + x, p->x_dtype, in->xs,
                         (size_t)in->size);
        }
        double scale;
        if (p->centred) {
            float mean = (float)((double)v->sum(row, n) / (double)p->n);
            v->scalar[ANE_VEC_SUB](row, row, mean, n);
            scale = 1 / sqrt((double)v->sumsq(row, n) / (double)p->n + p->eps);
        } else {
            scale = 1 / sqrt((double)v->sumsq(row, n) + p->eps);
        }
        int64_t c = channel_of(p, o);
        bool one = p->channel >= 0;
        if (one && p->gamma) scale *= (double)p->gamma[c];
        v->affine(row, row, (float)scale, one && p->beta ? p->beta[c] : 0.0f, n);
        if (!one && p->gamma) v->binary[ANE_VEC_MUL](row, row, p->gamma, n);
        if (!one && p->beta) v->binary[ANE_VEC_ADD](row, row, p->beta, n);
        for (int64_t k = 0; k < runs; k++) {
            place(p->reduced, p->n_reduced - 1, k, &x, &y);
            ane_row_store(run->y + y0 + y, p->y_dtype, in->ys, row + k * in->size,
                          (size_t)in->size);
        }
    }
    ane_scratch_pop(row);
}

/* sum (of squares) over the rows of all, in two levels. */
static void sum_rows(const ane_vec *v, const float *all, int64_t rows, size_t n, bool square,
                     float *sum, float *part) {
    memset(sum, 0, n * sizeof *sum);
    for (int64_t r = 0; r < rows;) {
        memset(part, 0, n * sizeof *part);
        for (int64_t stop = r + LEVEL; r < rows && r < stop; r++) {
            const float *x = all + (size_t)r * n;
            if (square) v->muladd(part, x, x, n);
            else v->binary[ANE_VEC_ADD](part, part, x, n);
        }
        v->binary[ANE_VEC_ADD](sum, sum, part, n);
    }
}

/* Neighbouring kept places side by side. */
static void column_task(void *arg, size_t task) {
    norm_run *run = arg;
    const norm *p = run->p;
    const ane_vec *v = ane_vec_get();
    const dim *in = &p->kept[p->n_kept - 1];
    int64_t c0 = (int64_t)task % p->col_tiles * p->cols, o = (int64_t)task / p->col_tiles;
    size_t n = (size_t)(in->size - c0 < p->cols ? in->size - c0 : p->cols);
    float *all = ane_scratch_push(column_bytes(p, n));
    if (!all) {
        atomic_store(&run->nomem, true);
        return;
    }
    float *mean = all + (size_t)p->n * n, *scale = mean + n, *part = scale + n, *beta = part + n;
    int64_t x0, y0, x, y;
    place(p->kept, p->n_kept - 1, o, &x0, &y0);
    x0 += c0 * in->xs;
    y0 += c0 * in->ys;
    for (int64_t k = 0; k < p->n; k++) {
        place(p->reduced, p->n_reduced, k, &x, &y);
        ane_row_load(all + (size_t)k * n, run->x + x0 + x, p->x_dtype, in->xs, n);
    }
    double count = 1;
    if (p->centred) {
        count = (double)p->n;
        sum_rows(v, all, p->n, n, false, mean, part);
        for (size_t i = 0; i < n; i++) mean[i] = (float)((double)mean[i] / count);
        for (int64_t k = 0; k < p->n; k++)
            v->binary[ANE_VEC_SUB](all + (size_t)k * n, all + (size_t)k * n, mean, n);
    }
    sum_rows(v, all, p->n, n, true, scale, part);
    for (size_t i = 0; i < n; i++) {
        double s = 1 / sqrt((double)scale[i] / count + p->eps);
        int64_t c = channel_of(p, o * in->size + c0 + (int64_t)i);
        if (p->channel >= 0 && p->gamma) s *= (double)p->gamma[c];
        scale[i] = (float)s;
        beta[i] = p->channel >= 0 && p->beta ? p->beta[c] : 0.0f;
    }
    for (int64_t k = 0; k < p->n; k++) {
        float *r = all + (size_t)k * n;
        v->binary[ANE_VEC_MUL](r, r, scale, n);
        if (p->channel >= 0) v->binary[ANE_VEC_ADD](r, r, beta, n);
        else if (p->gamma || p->beta)
            v->affine(r, r, p->gamma ? p->gamma[k] : 1.0f, p->beta ? p->beta[k] : 0.0f, n);
        place(p->reduced, p->n_reduced, k, &x, &y);
        ane_row_store(run->y + y0 + y, p->y_dtype, in->ys, r, n);
    }
    ane_scratch_pop(all);
}

static size_t tasks_of(const norm *p) {
    return p->rows ? (size_t)((p->outer - 1) / p->per + 1)
                   : (size_t)(p->outer / p->kept[p->n_kept - 1].size * p->col_tiles);
}

static void room_of(const ane_exec *ex, const ane_step *s, ane_room *room) {
    const norm *p = s->data;
    (void)ex;
    ane_room_loop(room, tasks_of(p), p->rows ? row_bytes(p) : column_bytes(p, (size_t)p->cols), 0);
}

static ane_status run_norm(ane_exec *ex, const ane_step *s, ane_error *err) {
    const norm *p = s->data;
    norm_run run = {.p = p, .y = ane_at(ex, &s->views[Y]), .x = ane_at(ex, &s->views[X])};
    if (!ane_parallel_for(tasks_of(p), p->rows ? row_task : column_task, &run)) return ane_run_check(err);
    if (atomic_load(&run.nomem)) return ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
    return ANE_OK;
}

void ane_batch_norm_of(const ane_op *op, int64_t c, double *scale, double *shift) {
    static const char *const names[] = {"gamma", "variance", "mean", "beta"};
    double v[4] = {1, 1, 0, 0};
    for (int i = 0; i < 4; i++) {
        const ane_const *k = ane_op_const(op, names[i]);
        if (k) v[i] = ane_const_f64(k, ane_type_count(k->type) == 1 ? 0 : c);
    }
    *scale = v[0] / sqrt(v[1] + ane_op_f64(op, "epsilon", 1e-5));
    *shift = v[3] - v[2] * *scale;
}

/* A constant's values in fp32, at the places that `order` names; NULL without one. */
static ane_status vector(ane_planner *pl, const ane_op *op, const char *name, int64_t n,
                         const int64_t *order, const float **out) {
    const ane_const *k = ane_op_const(op, name);
    *out = NULL;
    if (!k) return ANE_OK;
    float *v = ane_arena_alloc(pl->plan->arena, (size_t)n * sizeof *v);
    if (!v) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)ane_const_f64(k, ane_type_count(k->type) == 1 ? 0 : order ? order[i] : i);
    *out = v;
    return ANE_OK;
}

static int64_t size_of(int64_t stride) { return stride < 0 ? -stride : stride; }

static void insert(dim *d, int *n, int *which, int at, dim x) {
    int k = (*n)++;
    for (; k > 0 && size_of(d[k - 1].xs) < size_of(x.xs); k--) {
        d[k] = d[k - 1];
        which[k] = which[k - 1];
    }
    d[k] = x;
    which[k] = at;
}

ane_status ane_plan_norm(ane_planner *pl, const ane_op *op, bool *done) {
    const char *name = op->row->name;
    bool layer = !strcmp(name, "layer_norm"), instance = !strcmp(name, "instance_norm");
    *done = false;
    if (pl->opts->target) return ANE_OK;        /* which may narrow gamma and the like */
    if ((!layer && !instance && strcmp(name, "l2_norm")) || !ane_kernel_on(ANE_FAMILY_norm)) return ANE_OK;
    const ane_value *x = ane_op_in(op, "x");
    const ane_type *t = x->type;
    if (!ane_dtype_is_float(t->dtype) || !ane_type_static(t) || !ane_type_count(t)) return ANE_OK;
    bool set[ANE_MAX_RANK] = {false};
    int64_t axes[ANE_MAX_RANK];
    int n_axes = layer ? ane_op_ints(op, "axes", axes, ANE_MAX_RANK) : 0;
    for (int d = 0; d < t->rank; d++)
        set[d] = instance ? d >= 2 : layer ? n_axes <= 0 : d >= t->rank - 3;
    for (int i = 0; i < n_axes; i++) set[axes[i] < 0 ? axes[i] + t->rank : axes[i]] = true;

    norm *p = ane_arena_alloc(pl->plan->arena, sizeof *p);
    ane_view v[VIEWS];
    if (!p) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    *done = true;
    ane_status st = ane_plan_operand(pl, x, &v[X]);
    if (!st) st = ane_plan_dest(pl, op->results[0], &v[Y]);
    if (st) return st;
    int kept[ANE_MAX_RANK], reduced[ANE_MAX_RANK];
    p->centred = layer || instance;
    p->eps = ane_op_f64(op, "epsilon", p->centred ? 1e-5 : 1e-6);
    p->outer = p->n = 1;
    p->channel = -1;
    for (int d = 0; d < t->rank; d++) {
        dim at = {t->dims[d], v[X].strides[d], v[Y].strides[d]};
        *(set[d] ? &p->n : &p->outer) *= at.size;
        if (at.size == 1) continue;
        if (set[d]) insert(p->reduced, &p->n_reduced, reduced, d, at);
        else insert(p->kept, &p->n_kept, kept, d, at);
    }
    if (!p->n_reduced) p->reduced[p->n_reduced++] = (dim){1, 0, 0};
    for (int k = 0; k < p->n_kept; k++)
        if (instance && kept[k] == 1) p->channel = k;
    if (instance && p->channel < 0) {           /* one channel: a dim of one */
        if (p->n_kept == ANE_MAX_RANK) return ANE_ERR_RUNTIME;
        memmove(p->kept + 1, p->kept, (size_t)p->n_kept * sizeof *p->kept);
        p->kept[p->channel = 0] = (dim){1, 0, 0};
        p->n_kept++;
    }
    const dim *rin = &p->reduced[p->n_reduced - 1], *kin = p->kept + p->n_kept - 1;
    p->rows = !p->n_kept || kin->size < 8 || p->n == 1 || size_of(rin->xs) <= size_of(kin->xs);
    p->per = TASK / p->n + 1;
    if (!p->rows) {
        p->cols = kin->size < COLUMNS ? kin->size : COLUMNS;
        p->col_tiles = (kin->size - 1) / p->cols + 1;
    }
    p->x_dtype = v[X].dtype;
    p->y_dtype = v[Y].dtype;
    if (instance) {
        st = vector(pl, op, "gamma", t->dims[1], NULL, &p->gamma);
        if (!st) st = vector(pl, op, "beta", t->dims[1], NULL, &p->beta);
    } else if (layer) {
        /* gamma's own order is that of the axes; ours is by stride. */
        int64_t *order = ane_calloc((size_t)p->n, sizeof *order);
        if (!order) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
        for (int64_t i = 0; i < p->n; i++) {
            int64_t left = i, idx[ANE_MAX_RANK] = {0}, at = 0;
            for (int k = p->n_reduced - 1; k >= 0 && p->n > 1; k--) {
                idx[reduced[k]] = left % p->reduced[k].size;
                left /= p->reduced[k].size;
            }
            for (int d = 0; d < t->rank; d++)
                if (set[d]) at = at * t->dims[d] + idx[d];
            order[i] = at;
        }
        st = vector(pl, op, "gamma", p->n, order, &p->gamma);
        if (!st) st = vector(pl, op, "beta", p->n, order, &p->beta);
        ane_free(order);
    }
    if (st) return st;
    ane_step *s = ane_plan_step(pl, run_norm, op, 1, VIEWS - 1);
    if (!s) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    memcpy(s->views, v, sizeof v);
    s->data = p;
    s->room = room_of;
    s->kernel = ane_vec_get()->name;
    s->flops = 8.0 * (double)ane_type_count(t);
    return ANE_OK;
}

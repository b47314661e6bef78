/* Reductions and softmax, with what feeds them computed tile by tile on the way.
 *
 * The iteration space is the operand's shape. Where the innermost dim is reduced, a row is
 * summed by a vector primitive; where it is kept, rows are added to a row of accumulators.
 * Every split (tile, task, block of a long row) depends on the shape only.
 */
#include "expr.h"
#include "ops.h"
#include "view.h"

#include <math.h>
#include <string.h>

typedef enum how { SUM, MEAN, MAX, MIN, SUM_SQUARE, L1, L2, LOG_SUM, LOG_SUM_EXP } how;

static const char *const names[] = {"reduce_sum", "reduce_mean", "reduce_max", "reduce_min",
                                    "reduce_sum_square", "reduce_l1_norm", "reduce_l2_norm",
                                    "reduce_log_sum", "reduce_log_sum_exp"};

typedef struct rows {
    ane_expr *e;                        /* views[0]: the result, stepping 0 where reduced */
    how how;
    bool softmax;
    /* Outer dims are walked by a task (kept) or inside one (reduced). */
    int n_kept, n_reduced;
    int kept[ANE_MAX_RANK], reduced[ANE_MAX_RANK];
    bool inner;                         /* the innermost dim is reduced */
    int64_t outer, steps;               /* kept and reduced outer indices */
    int64_t cols, tile_cols, col_tiles; /* of the innermost dim */
    int row_dim;                        /* reduced dim of which a tile takes several rows */
    int64_t tile_rows, rows;            /* 1 where there is none */
    int64_t per;                        /* outer indices of one task */
    int64_t block, blocks;              /* a long reduced row in blocks of columns */
    double count;                       /* elements per result */
} rows;

typedef struct rows_run {
    const rows *r;
    ane_exec *ex;
    double *partial;                    /* per outer, per block */
    atomic_bool nomem;
} rows_run;

static double start_of(how h) { return h == MAX ? -INFINITY : h == MIN ? INFINITY : 0; }

static void address(const rows_run *run, const int *dims, int n, int64_t index, char **at) {
    const ane_expr *e = run->r->e;
    for (int i = n - 1; i >= 0; i--) {
        int64_t k = index % e->shape[dims[i]];
        index /= e->shape[dims[i]];
        for (int v = 0; v < e->n_views; v++) at[v] += k * e->views[v].strides[dims[i]];
    }
}

static void bases(const rows_run *run, char **at) {
    const ane_expr *e = run->r->e;
    for (int v = 0; v < e->n_views; v++) at[v] = ane_at(run->ex, &e->views[v]);
}

static void shift(const ane_expr *e, int dim, int64_t n, char **at, char **to) {
    for (int v = 0; v < e->n_views; v++)
        to[v] = at[v] + (dim < 0 ? 0 : n * e->views[v].strides[dim]);
}

/* Of the result, along the innermost dim. */
static int64_t col_stride(const ane_expr *e) {
    return e->rank ? e->views[0].strides[e->rank - 1] : 0;
}

static float finish(const rows *r, double s) {
    switch (r->how) {
    case MEAN: return (float)(s / r->count);
    case L2: return (float)sqrt(s);
    case LOG_SUM: return (float)log(s);
    default: return (float)s;
    }
}

/* ---------------------------------------------------------------- innermost dim reduced */

typedef struct lse {
    float most;
    double sum;
} lse;

static double take_row(how h, double acc, const float *x, float *spare, size_t n) {
    const ane_vec *v = ane_vec_get();
    float y;
    switch (h) {
    case MAX: y = v->max(x, n); return y != y || acc != acc ? NAN : y > acc ? y : acc;
    case MIN: y = v->min(x, n); return y != y || acc != acc ? NAN : y < acc ? y : acc;
    case SUM_SQUARE:
    case L2: return acc + (double)v->sumsq(x, n);
    case L1: v->unary[ANE_VEC_ABS](spare, x, n); return acc + (double)v->sum(spare, n);
    default: return acc + (double)v->sum(x, n);
    }
}

/* Running maximum and sum of exp(x - maximum). */
static void take_lse(lse *l, const float *x, float *spare, size_t n) {
    const ane_vec *v = ane_vec_get();
    float most = v->max(x, n);
    if (most != most || l->most != l->most) {
        l->most = NAN;
        return;
    }
    if (most > l->most) {
        l->sum = isinf(l->most) ? 0 : l->sum * exp((double)l->most - (double)most);
        l->most = most;
    }
    if (isinf(l->most)) {               /* all -inf, or an inf: exp(inf - inf) is no number */
        for (size_t i = 0; i < n; i++) l->sum += x[i] == l->most;
        return;
    }
    l->sum += (double)v->exp_sum(spare, x, 1.0f, l->most, n);
}

/* Registers of a tile, and what each kind of task adds. */
static size_t task_bytes(const rows *r) {
    size_t cols = (size_t)r->cols, tile = (size_t)r->tile_cols;
    if (r->softmax && r->inner) return ane_expr_bytes(r->e, cols);
    if (r->softmax)
        return ane_expr_bytes(r->e, tile) + ((size_t)r->steps + 3) * tile * sizeof(float);
    if (r->inner) return ane_expr_bytes(r->e, tile);
    tile *= (size_t)r->tile_rows;
    return ane_expr_bytes(r->e, tile) + 3 * tile * sizeof(float);
}

static void inner_task(void *arg, size_t task) {
    rows_run *run = arg;
    const rows *r = run->r;
    const ane_expr *e = r->e;
    size_t cap = (size_t)r->tile_cols;
    float *regs = ane_scratch_push(task_bytes(r));
    if (!regs) {
        atomic_store(&run->nomem, true);
        return;
    }
    float *spare = regs + (size_t)e->n_regs * cap;
    char *row[256], *at[256], *tile[256];
    ane_tile t = {.e = e, .at = tile, .regs = regs, .cap = cap, .rows = 1, .row_dim = -1,
                  .col_dim = e->rank - 1};
    int64_t first = (int64_t)task / r->blocks * r->per, end = first + r->per;
    int64_t block = (int64_t)task % r->blocks;
    if (end > r->outer) end = r->outer;
    int64_t from = block * r->block, to = from + r->block < r->cols ? from + r->block : r->cols;
    for (int64_t o = first; o < end; o++) {
        bases(run, row);
        address(run, r->kept, r->n_kept, o, row);
        double acc = start_of(r->how);
        lse l = {.most = -INFINITY};
        for (int64_t step = 0; step < r->steps; step++) {
            memcpy(at, row, (size_t)e->n_views * sizeof *at);
            address(run, r->reduced, r->n_reduced, step, at);
            for (int64_t c = from; c < to; c += r->tile_cols) {
                shift(e, e->rank - 1, c, at, tile);
                t.cols = (size_t)(to - c < r->tile_cols ? to - c : r->tile_cols);
                const float *x = ane_expr_run(&t);
                if (r->how == LOG_SUM_EXP) take_lse(&l, x, spare, t.cols);
                else acc = take_row(r->how, acc, x, spare, t.cols);
            }
        }
        if (r->blocks > 1) {
            run->partial[o * r->blocks + block] = acc;
            continue;
        }
        float y = r->how == LOG_SUM_EXP
                      ? (l.most != l.most ? NAN : (float)((double)l.most + log(l.sum)))
                      : finish(r, acc);
        ane_row_store(row[0], e->views[0].dtype, 0, &y, 1);
    }
    ane_scratch_pop(regs);
}

/* ---------------------------------------------------------------- innermost dim kept */

/* Two levels of accumulators: sums of up to LEVEL rows, then of those. */
#define LEVEL 32

static void take_rows(how h, float *acc, const float *x, float *spare, size_t n) {
    const ane_vec *v = ane_vec_get();
    switch (h) {
    case MAX: v->binary[ANE_VEC_MAX](acc, acc, x, n); return;
    case MIN: v->binary[ANE_VEC_MIN](acc, acc, x, n); return;
    case SUM_SQUARE:
    case L2: v->muladd(acc, x, x, n); return;
    case L1: v->unary[ANE_VEC_ABS](spare, x, n); v->binary[ANE_VEC_ADD](acc, acc, spare, n); return;
    default: v->binary[ANE_VEC_ADD](acc, acc, x, n);
    }
}

static void fill(float *x, float v, size_t n) {
    for (size_t i = 0; i < n; i++) x[i] = v;
}

/* One column tile of one kept index: every reduced index in order. `each` sees the rows. */
static void walk_rows(rows_run *run, ane_tile *t, char **row, how h, float *sum, float *acc,
                      float *spare, const float *most) {
    const rows *r = run->r;
    const ane_expr *e = r->e;
    const ane_vec *v = ane_vec_get();
    size_t n = t->cols;
    float zero = (float)start_of(h);
    fill(sum, zero, n);
    fill(acc, zero, n);
    int64_t taken = 0;
    char *first[256];
    for (int64_t step = 0; step < r->steps / r->rows; step++) {
        memcpy(first, row, (size_t)e->n_views * sizeof *first);
        address(run, r->reduced, r->n_reduced - (r->row_dim >= 0), step, first);
        for (int64_t q = 0; q < r->rows; q += r->tile_rows) {
            shift(e, r->row_dim, q, first, t->at);
            t->rows = (size_t)(r->rows - q < r->tile_rows ? r->rows - q : r->tile_rows);
            const float *x = ane_expr_run(t);
            for (size_t k = 0; k < t->rows; k++, x += n) {
                if (h == LOG_SUM_EXP) { /* most is known: add exp(x - most) */
                    v->binary[ANE_VEC_SUB](spare, x, most, n);
                    v->unary[ANE_VEC_EXP](spare, spare, n);
                    v->binary[ANE_VEC_ADD](acc, acc, spare, n);
                } else {
                    take_rows(h, acc, x, spare, n);
                }
                if (++taken % LEVEL || h == MAX || h == MIN) continue;
                v->binary[ANE_VEC_ADD](sum, sum, acc, n);
                fill(acc, 0, n);
            }
        }
    }
    if (h == MAX || h == MIN) memcpy(sum, acc, n * sizeof *sum);
    else v->binary[ANE_VEC_ADD](sum, sum, acc, n);
}

static void outer_task(void *arg, size_t task) {
    rows_run *run = arg;
    const rows *r = run->r;
    const ane_expr *e = r->e;
    size_t cap = (size_t)(r->tile_cols * r->tile_rows);
    float *regs = ane_scratch_push(task_bytes(r));
    if (!regs) {
        atomic_store(&run->nomem, true);
        return;
    }
    float *spare = regs + (size_t)e->n_regs * cap, *sum = spare + cap, *acc = sum + cap,
          *most = acc + cap;
    char *row[256], *at[256];
    ane_tile t = {.e = e, .at = at, .regs = regs, .cap = cap, .rows = 1,
                  .row_dim = r->row_dim, .col_dim = e->rank - 1};
    int64_t o = (int64_t)task / r->col_tiles, c = (int64_t)task % r->col_tiles * r->tile_cols;
    t.cols = (size_t)(r->cols - c < r->tile_cols ? r->cols - c : r->tile_cols);
    bases(run, row);
    address(run, r->kept, r->n_kept, o, row);
    shift(e, e->rank - 1, c, row, row);
    if (r->how == LOG_SUM_EXP) {
        walk_rows(run, &t, row, MAX, most, acc, spare, NULL);
        for (size_t i = 0; i < t.cols; i++)     /* of infinities only: see take_lse */
            if (isinf(most[i])) most[i] = most[i] < 0 ? -3.4e38f : INFINITY;
    }
    walk_rows(run, &t, row, r->how, sum, acc, spare, most);
    for (size_t i = 0; i < t.cols; i++) {
        if (r->how != LOG_SUM_EXP) sum[i] = finish(r, (double)sum[i]);
        else if (isinf(most[i])) sum[i] = most[i];
        else sum[i] = (float)((double)most[i] + log((double)sum[i]));
    }
    ane_row_store(row[0], e->views[0].dtype, col_stride(e), sum, t.cols);
    ane_scratch_pop(regs);
}

/* ---------------------------------------------------------------- softmax */

/* The softmax dim is innermost: a whole row in one register. */
static void softmax_inner(void *arg, size_t task) {
    rows_run *run = arg;
    const rows *r = run->r;
    const ane_expr *e = r->e;
    size_t n = (size_t)r->cols;
    float *regs = ane_scratch_push(task_bytes(r));
    if (!regs) {
        atomic_store(&run->nomem, true);
        return;
    }
    float *spare = regs + (size_t)e->n_regs * n;
    char *row[256];
    ane_tile t = {.e = e, .at = row, .regs = regs, .cap = n, .rows = 1, .cols = n,
                  .row_dim = -1, .col_dim = e->rank - 1};
    int64_t first = (int64_t)task * r->per, end = first + r->per;
    if (end > r->outer) end = r->outer;
    for (int64_t o = first; o < end; o++) {
        bases(run, row);
        address(run, r->kept, r->n_kept, o, row);
        const float *x = ane_expr_run(&t);
        ane_vec_get()->softmax(spare, x, n);
        ane_row_store(row[0], e->views[0].dtype, col_stride(e), spare, n);
    }
    ane_scratch_pop(regs);
}

/* Another dim: tiles of columns, the dim's rows kept side by side. */
static void softmax_outer(void *arg, size_t task) {
    rows_run *run = arg;
    const rows *r = run->r;
    const ane_expr *e = r->e;
    const ane_vec *v = ane_vec_get();
    size_t cap = (size_t)r->tile_cols, axis = (size_t)r->steps;
    float *regs = ane_scratch_push(task_bytes(r));
    if (!regs) {
        atomic_store(&run->nomem, true);
        return;
    }
    float *most = regs + (size_t)(e->n_regs + 1) * cap, *sum = most + cap, *part = sum + cap;
    float *all = part + cap;
    char *row[256], *at[256];
    ane_tile t = {.e = e, .at = at, .regs = regs, .cap = cap, .rows = 1, .row_dim = -1,
                  .col_dim = e->rank - 1};
    int64_t o = (int64_t)task / r->col_tiles, c = (int64_t)task % r->col_tiles * r->tile_cols;
    size_t n = t.cols = (size_t)(r->cols - c < r->tile_cols ? r->cols - c : r->tile_cols);
    bases(run, row);
    address(run, r->kept, r->n_kept, o, row);
    shift(e, e->rank - 1, c, row, row);
    fill(most, -INFINITY, n);
    fill(sum, 0, n);
    fill(part, 0, n);
    for (size_t a = 0; a < axis; a++) {
        memcpy(at, row, (size_t)e->n_views * sizeof *at);
        address(run, r->reduced, r->n_reduced, (int64_t)a, at);
        memcpy(all + a * cap, ane_expr_run(&t), n * sizeof *all);
        v->binary[ANE_VEC_MAX](most, most, all + a * cap, n);
    }
    for (size_t a = 0; a < axis; a++) {
        float *x = all + a * cap;
        v->binary[ANE_VEC_SUB](x, x, most, n);
        v->unary[ANE_VEC_EXP](x, x, n);
        v->binary[ANE_VEC_ADD](part, part, x, n);
        /* Chains of 64, so that the error of a long sum stays small. */
        if (a % 64 == 63 || a + 1 == axis) {
            v->binary[ANE_VEC_ADD](sum, sum, part, n);
            fill(part, 0, n);
        }
    }
    for (size_t a = 0; a < axis; a++) {
        float *x = all + a * cap;
        v->binary[ANE_VEC_DIV](x, x, sum, n);
        memcpy(at, row, (size_t)e->n_views * sizeof *at);
        address(run, r->reduced, r->n_reduced, (int64_t)a, at);
        ane_row_store(at[0], e->views[0].dtype, col_stride(e), x, n);
    }
    ane_scratch_pop(regs);
}

/* ---------------------------------------------------------------- steps */

static size_t tasks_of(const rows *r) {
    return r->inner ? (size_t)((r->outer + r->per - 1) / r->per * r->blocks)
                    : (size_t)(r->outer * r->col_tiles);
}

/* One partial result for every block of a row; 0: a row is one block. */
static size_t partial_bytes(const rows *r) {
    return r->blocks > 1 ? (size_t)(r->outer * r->blocks) * sizeof(double) : 0;
}

static void room_of(const ane_exec *ex, const ane_step *s, ane_room *room) {
    const rows *r = s->data;
    (void)ex;
    size_t partial = partial_bytes(r);
    if (partial) ane_room_push(room, partial);
    ane_room_loop(room, tasks_of(r), task_bytes(r), 0);
    if (partial) ane_room_pop(room, partial);
}

static ane_status run_rows(ane_exec *ex, const ane_step *s, ane_error *err) {
    const rows *r = s->data;
    rows_run run = {.r = r, .ex = ex};
    ane_task_fn *fn = r->softmax ? (r->inner ? softmax_inner : softmax_outer)
                      : r->inner ? inner_task : outer_task;
    size_t tasks = tasks_of(r);
    if (r->blocks > 1) {
        run.partial = ane_scratch_push(partial_bytes(r));
        if (!run.partial) return ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
    }
    bool finished = true;
    if (tasks == 1) fn(&run, 0);
    else finished = ane_parallel_for(tasks, fn, &run);
    if (finished && r->blocks > 1) {
        for (int64_t o = 0; o < r->outer; o++) {
            char *row[256];
            double acc = start_of(r->how);
            for (int64_t b = 0; b < r->blocks; b++) {
                double p = run.partial[o * r->blocks + b];
                if (r->how == MAX) acc = p != p || acc != acc ? NAN : p > acc ? p : acc;
                else if (r->how == MIN) acc = p != p || acc != acc ? NAN : p < acc ? p : acc;
                else acc += p;
            }
            bases(&run, row);
            address(&run, r->kept, r->n_kept, o, row);
            float y = finish(r, acc);
            ane_row_store(row[0], r->e->views[0].dtype, 0, &y, 1);
        }
    }
    if (r->blocks > 1) ane_scratch_pop(run.partial);
    if (!finished) return ane_run_check(err);
    if (atomic_load(&run.nomem)) return ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
    return ANE_OK;
}

/* The result's view over the operand's space: stepping 0 along reduced dims. */
static void over_space(const ane_type *x, const bool *reduced, bool keep, ane_view *out) {
    ane_view r = {.buf = out->buf, .dtype = out->dtype, .offset = out->offset, .rank = x->rank};
    for (int d = 0, k = 0; d < x->rank; d++) {
        r.shape[d] = x->dims[d];
        r.strides[d] = reduced[d] ? 0 : out->strides[k];
        k += !reduced[d] || keep;
    }
    *out = r;
}

/* The first operand's dims, largest steps outermost: an image whose channels lie last is
 * then summed in whole rows of them. */
static void along_memory(ane_expr *e, bool *reduced) {
    if (e->n_views < 2) return;
    int perm[ANE_MAX_RANK];
    bool was[ANE_MAX_RANK];
    int64_t shape[ANE_MAX_RANK];
    for (int d = 0; d < e->rank; d++) {
        int64_t s = e->views[1].strides[d];
        int at = d;
        for (; at > 0; at--) {
            int64_t t = e->views[1].strides[perm[at - 1]];
            if (!s || (t < 0 ? -t : t) >= (s < 0 ? -s : s)) break;
            perm[at] = perm[at - 1];
        }
        perm[at] = d;
    }
    memcpy(was, reduced, sizeof was);
    memcpy(shape, e->shape, sizeof shape);
    for (int v = 0; v < e->n_views; v++) ane_view_permute(&e->views[v], perm, &e->views[v]);
    for (int d = 0; d < e->rank; d++) {
        reduced[d] = was[perm[d]];
        e->shape[d] = shape[perm[d]];
    }
}

static ane_status plan(ane_planner *pl, const ane_graph *g, const ane_group *grp, bool softmax) {
    const ane_op *op = g->ops[grp->core];
    const ane_value *xv = ane_op_in(op, "x");
    const ane_type *x = xv->type;
    bool reduced[ANE_MAX_RANK] = {false};
    int64_t axes[ANE_MAX_RANK];
    int n = softmax ? 1 : ane_op_ints(op, "axes", axes, ANE_MAX_RANK);
    if (softmax) axes[0] = ane_op_i64(op, "axis", -1);
    for (int d = 0; d < x->rank && n <= 0; d++) reduced[d] = true;
    for (int i = 0; i < n; i++) reduced[axes[i] < 0 ? axes[i] + x->rank : axes[i]] = true;

    ane_expr *e = NULL;
    ane_view result;
    ane_status st = ane_expr_build(pl, g, grp, xv, &e);
    if (!st) st = ane_plan_dest(pl, op->results[0], &result);
    if (st) return st;
    ane_step *s = ane_plan_step(pl, run_rows, op, 1, e->n_views);
    rows *r = ane_arena_alloc(pl->plan->arena, sizeof *r);
    ane_view *views = ane_arena_alloc(pl->plan->arena, (size_t)(e->n_views + 1) * sizeof *views);
    if (!s || !r || !views) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    s->views[0] = result;
    memcpy(s->views + 1, e->views, (size_t)e->n_views * sizeof *s->views);
    /* The result joins as view 0, so loads move up by one. */
    if (!softmax) over_space(x, reduced, ane_op_bool(op, "keep_dims", false), &result);
    ane_view_drop_ones(&result, x->dims, x->rank);
    views[0] = result;
    memcpy(views + 1, e->views, (size_t)e->n_views * sizeof *views);
    e->views = views;
    e->n_views++;
    for (int i = 0; i < e->n_ins; i++) e->ins[i].load += e->ins[i].load >= 0;

    /* For the merging, softmax's dim must stay one by itself: mark it by a view that steps
     * 0 there and a row-major way elsewhere, which is what a reduction's result does. */
    bool red[ANE_MAX_RANK];
    int k = 0;
    for (int d = 0; d < x->rank; d++)
        if (x->dims[d] != 1) red[k++] = reduced[d];
    if (!softmax) along_memory(e, red);
    ane_view mark = {.rank = e->rank}, *all[256];
    int64_t step = 8;
    for (int d = e->rank - 1; d >= 0; d--) {
        mark.shape[d] = e->shape[d];
        mark.strides[d] = red[d] ? 0 : step;
        step *= red[d] ? 1 : e->shape[d];
    }
    for (int v = 0; v < e->n_views; v++) all[v] = &e->views[v];
    all[e->n_views] = &mark;
    e->rank = ane_views_merge(e->n_views + 1, all);
    for (int d = 0; d < e->rank; d++) e->shape[d] = mark.shape[d];

    r->e = e;
    r->softmax = softmax;
    for (int i = 0; !softmax && i < (int)(sizeof names / sizeof *names); i++)
        if (!strcmp(op->row->name, names[i])) r->how = (how)i;
    int last = e->rank - 1;
    r->inner = last >= 0 ? mark.strides[last] == 0 : true;
    r->outer = r->steps = r->blocks = r->col_tiles = 1;
    r->cols = last >= 0 ? e->shape[last] : 1;
    r->count = (double)r->cols * r->inner + !r->inner;
    for (int d = 0; d < last; d++) {
        if (mark.strides[d]) {
            r->kept[r->n_kept++] = d;
            r->outer *= e->shape[d];
        } else {
            r->reduced[r->n_reduced++] = d;
            r->steps *= e->shape[d];
            r->count *= (double)e->shape[d];
        }
    }
    if (softmax && r->inner && r->n_reduced) return ANE_ERR_RUNTIME;    /* cannot be */
    r->tile_cols = r->cols < ANE_TILE ? r->cols : ANE_TILE;
    r->row_dim = -1;
    r->rows = r->tile_rows = 1;
    r->block = r->cols;
    r->per = 1;
    if (r->inner) {
        int64_t row = r->cols * r->steps;
        r->per = 8192 / (row ? row : 1) + 1;
        /* Few long rows: blocks of columns, whose partial results are put together in order. */
        if (!softmax && r->outer < 16 && r->cols >= 1 << 16 && r->how != LOG_SUM_EXP) {
            r->per = 1;
            r->block = 1 << 15;
            r->blocks = (r->cols + r->block - 1) / r->block;
        }
    } else {
        /* Enough tasks for any number of threads, whatever that number is. */
        while (r->tile_cols > 64 &&
               r->outer * ((r->cols + r->tile_cols - 1) / r->tile_cols) < 16)
            r->tile_cols = (r->tile_cols / 2 + 15) / 16 * 16;
        if (softmax)
            while (r->tile_cols > 16 && r->tile_cols * r->steps > 1 << 16) r->tile_cols /= 2;
        r->col_tiles = (r->cols + r->tile_cols - 1) / r->tile_cols;
        if (r->n_reduced && !softmax) {
            r->row_dim = r->reduced[r->n_reduced - 1];
            r->rows = e->shape[r->row_dim];
            r->tile_rows = 2 * ANE_TILE / r->tile_cols;
            if (r->tile_rows > r->rows) r->tile_rows = r->rows;
        }
    }
    s->data = r;
    s->room = room_of;
    s->label = ane_group_label(pl, g, grp);
    s->kernel = ane_vec_get()->name;
    s->flops = (e->flops + (softmax ? 4 : 1)) * (double)ane_type_count(x);
    s->in_place = softmax && r->inner;  /* a whole row is read before it is written */
    return ANE_OK;
}

ane_status ane_plan_reduce(ane_planner *pl, const ane_graph *g, const ane_group *grp) {
    return plan(pl, g, grp, false);
}
ane_status ane_plan_softmax(ane_planner *pl, const ane_graph *g, const ane_group *grp) {
    return plan(pl, g, grp, true);
}

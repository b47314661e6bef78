/* What the Neural Engine does to a value where an operation begins and ends (ir/target.h):
 * one pass over memory behind the step that made it. */
#include "../../ir/target.h"
#include "expr.h"
#include "ops.h"
#include "view.h"

#include <math.h>
#include <string.h>

#define CHUNK 1024                      /* elements in the caches */
#define TASK 32768

typedef struct edges {
    ane_edges e;
    int rank;                           /* dims above the row */
    int64_t shape[ANE_MAX_RANK], ds[ANE_MAX_RANK], ss[ANE_MAX_RANK];
    ane_dtype dtype;
    int64_t n, dstep, sstep;            /* of a row */
    int64_t rows, per, tasks;
} edges;

typedef struct edges_run {
    const edges *p;
    char *dst;
    const char *src;
} edges_run;

static void one_row(const edges *p, char *d, const char *s) {
    const ane_vec *v = ane_vec_get();
    float x[CHUNK];
    uint16_t h[CHUNK];
    float above = (float)p->e.above, below = (float)p->e.below;
    for (int64_t i = 0; i < p->n; i += CHUNK) {
        size_t n = (size_t)(p->n - i < CHUNK ? p->n - i : CHUNK);
        ane_row_load(x, s + i * p->sstep, p->dtype, p->sstep, n);
        if (p->e.fp16 && p->dtype != ANE_F16) {
            v->store(h, ANE_F16, x, n);
            v->load(x, h, ANE_F16, n);
        }
        for (size_t k = 0; k < n; k++)
            x[k] = x[k] > above ? INFINITY : x[k] < below ? -INFINITY : x[k];
        ane_row_store(d + i * p->dstep, p->dtype, p->dstep, x, n);
    }
}

static void edges_task(void *arg, size_t task) {
    const edges_run *run = arg;
    const edges *p = run->p;
    int64_t first = (int64_t)task * p->per, end = first + p->per;
    if (end > p->rows) end = p->rows;
    for (int64_t r = first; r < end; r++) {
        char *d = run->dst;
        const char *s = run->src;
        int64_t left = r;
        for (int k = p->rank - 1; k >= 0; k--) {
            int64_t i = left % p->shape[k];
            left /= p->shape[k];
            d += i * p->ds[k];
            s += i * p->ss[k];
        }
        one_row(p, d, s);
    }
}

static ane_status run_edges(ane_exec *ex, const ane_step *s, ane_error *err) {
    const edges *p = s->data;
    edges_run run = {.p = p, .dst = ane_at(ex, ane_step_out(s, 0)),
                     .src = ane_at(ex, ane_step_in(s, 0))};
    if (p->tasks == 1) edges_task(&run, 0);
    else if (!ane_parallel_for((size_t)p->tasks, edges_task, &run)) return ane_run_check(err);
    return ANE_OK;
}

/* dst = what the target makes of src; the two may be the same view. */
static ane_status plan_pass(ane_planner *pl, const ane_op *op, const ane_edges *e,
                            const ane_view *dst, const ane_view *src) {
    int64_t count = ane_view_count(dst);
    if (!count) return ANE_OK;
    ane_step *s = ane_plan_step(pl, run_edges, op, 1, 1);
    edges *p = ane_arena_alloc(pl->plan->arena, sizeof *p);
    if (!s || !p) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    *ane_step_out(s, 0) = *dst;
    *ane_step_in(s, 0) = *src;
    s->data = p;
    s->label = "edges";
    s->kernel = ane_vec_get()->name;
    s->in_place = true;
    ane_view d = *dst, t = *src, *both[2] = {&d, &t};
    int rank = ane_views_merge(2, both);
    *p = (edges){.e = *e, .dtype = dst->dtype, .n = 1, .rows = 1};
    if (rank) {
        p->rank = rank - 1;
        p->n = d.shape[rank - 1];
        p->dstep = d.strides[rank - 1];
        p->sstep = t.strides[rank - 1];
    }
    /* One long run is cut, so that threads share it. */
    if (rank == 1 && p->n > 2 * TASK && p->n % TASK == 0) {
        p->rank = 1;
        p->shape[0] = p->n / TASK;
        p->ds[0] = p->dstep * TASK;
        p->ss[0] = p->sstep * TASK;
        p->n = TASK;
    } else {
        memcpy(p->shape, d.shape, sizeof p->shape);
        memcpy(p->ds, d.strides, sizeof p->ds);
        memcpy(p->ss, t.strides, sizeof p->ss);
    }
    for (int k = 0; k < p->rank; k++) p->rows *= p->shape[k];
    p->per = TASK / p->n;
    if (p->per < 1) p->per = 1;
    p->tasks = (p->rows + p->per - 1) / p->per;
    return ANE_OK;
}

ane_status ane_plan_edges(ane_planner *pl, const ane_op *op) {
    ane_edges e;
    ane_status st = ANE_OK;
    if (!ane_target_edges(pl->opts->target, op, &e)) return ANE_OK;
    for (int i = 0; i < op->n_results && !st; i++) {
        ane_view at;
        st = ane_plan_operand(pl, op->results[i], &at);
        if (!st) st = plan_pass(pl, op, &e, &at, &at);
    }
    return st;
}

/* What would be a view of the operand gets memory of its own. */
ane_status ane_plan_move_edges(ane_planner *pl, const ane_op *op, bool *done) {
    ane_edges e;
    ane_status st = ANE_OK;
    *done = ane_target_edges(pl->opts->target, op, &e);
    for (int i = 0; *done && i < op->n_results && !st; i++) {
        const ane_value *v = op->results[i];
        ane_view from, to;
        st = ane_plan_operand(pl, v, &from);
        if (st) break;
        pl->places[v->id].placed = false;
        st = ane_plan_dest(pl, v, &to);
        if (!st) st = plan_pass(pl, op, &e, &to, &from);
    }
    return st;
}

ane_status ane_plan_narrow(ane_planner *pl, const ane_value *v) {
    ane_place *place = &pl->places[v->id];
    static const ane_edges narrow = {.fp16 = true, .above = INFINITY, .below = -INFINITY};
    ane_view from = place->at;
    if (!v->uses || !ane_target_narrows(pl->opts->target, from.dtype)) return ANE_OK;
    ane_status st = ane_plan_temp(pl, &from, &place->at);
    return st ? st : plan_pass(pl, NULL, &narrow, &place->at, &from);
}

ane_status ane_plan_narrow_const(ane_planner *pl, const ane_value *v, const void **data) {
    const ane_const *c = v->konst;
    if (!ane_target_narrows(pl->opts->target, c->type->dtype)) return ANE_OK;
    int64_t n = ane_type_count(c->type);
    size_t unit = ane_dtype_size(c->type->dtype);
    char *own = ane_arena_alloc(pl->plan->arena, (size_t)n * unit);
    if (!own) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    const ane_vec *vec = ane_vec_get();
    float x[CHUNK];
    uint16_t h[CHUNK];
    for (int64_t i = 0; i < n; i += CHUNK) {
        size_t m = (size_t)(n - i < CHUNK ? n - i : CHUNK);
        ane_row_load(x, (const char *)c->data + (size_t)i * unit, c->type->dtype, (int64_t)unit, m);
        vec->store(h, ANE_F16, x, m);
        vec->load(x, h, ANE_F16, m);
        ane_row_store(own + (size_t)i * unit, c->type->dtype, (int64_t)unit, x, m);
    }
    *data = own;
    return ANE_OK;
}

float ane_plan_scalar(const ane_planner *pl, const ane_value *v) {
    double x = ane_const_f64(v->konst, 0);
    ane_edges e = {.fp16 = ane_target_narrows(pl->opts->target, v->type->dtype),
                   .above = INFINITY, .below = -INFINITY};
    return (float)ane_edges_apply(&e, x);
}

/* Element-wise chains: one pass over memory in tiles, split over the threads. */
#include "../../kernels/convert.h"
#include "ins.h"
#include "ops.h"

#include <string.h>

#define TASK 16384                      /* elements of one task: a few tens of microseconds */
#define STREAM_TASK 65536               /* with a fence at the end of each */

typedef struct chain {
    ane_expr *e;
    size_t tile_rows, tile_cols;
    int64_t row_tiles, col_tiles, tiles, per_task, tasks;
    bool stream;
} chain;

typedef struct chain_run {
    const chain *c;
    ane_exec *ex;
    atomic_bool nomem;
} chain_run;

static size_t task_bytes(const chain *c) {
    return ane_expr_bytes(c->e, c->tile_rows * c->tile_cols);
}

static void run_task(void *arg, size_t task) {
    chain_run *run = arg;
    const chain *c = run->c;
    const ane_expr *e = c->e;
    size_t cap = c->tile_rows * c->tile_cols;           /* regs are untouched in a tile above */
    float *regs = ane_scratch_push(task_bytes(c));
    if (!regs) {
        atomic_store(&run->nomem, true);
        return;
    }
    char *at[256];
    ane_tile t = {.e = e, .at = at, .regs = regs, .cap = cap, .stream = c->stream, .row_dim = e->rank - 2,
                  .col_dim = e->rank - 1};
    int64_t first = (int64_t)task * c->per_task, end = first + c->per_task;
    if (end > c->tiles) end = c->tiles;
    int64_t rows = e->rank > 1 ? e->shape[e->rank - 2] : 1;
    int64_t cols = e->rank > 0 ? e->shape[e->rank - 1] : 1;
    for (int64_t tile = first; tile < end; tile++) {
        int64_t left = tile, idx[ANE_MAX_RANK] = {0};
        int64_t c0 = left % c->col_tiles * (int64_t)c->tile_cols;
        left /= c->col_tiles;
        int64_t r0 = left % c->row_tiles * (int64_t)c->tile_rows;
        left /= c->row_tiles;
        for (int d = e->rank - 3; d >= 0; d--) {
            idx[d] = left % e->shape[d];
            left /= e->shape[d];
        }
        if (e->rank > 1) idx[e->rank - 2] = r0;
        if (e->rank > 0) idx[e->rank - 1] = c0;
        for (int k = 0; k < e->n_views; k++) {
            const ane_view *v = &e->views[k];
            char *p = ane_at(run->ex, v);
            for (int d = 0; d < e->rank; d++) p += idx[d] * v->strides[d];
            at[k] = p;
        }
        t.rows = (size_t)(rows - r0) < c->tile_rows ? (size_t)(rows - r0) : c->tile_rows;
        t.cols = (size_t)(cols - c0) < c->tile_cols ? (size_t)(cols - c0) : c->tile_cols;
        (void)ane_expr_run(&t);
    }
    ane_scratch_pop(regs);
}

static void room_of(const ane_exec *ex, const ane_step *s, ane_room *room) {
    const chain *c = s->data;
    (void)ex;
    ane_room_loop(room, (size_t)c->tasks, task_bytes(c), 0);
}

static ane_status run_chain(ane_exec *ex, const ane_step *s, ane_error *err) {
    const chain *c = s->data;
    chain_run run = {.c = c, .ex = ex};
    if (c->tasks == 1) run_task(&run, 0);
    else if (!ane_parallel_for((size_t)c->tasks, run_task, &run)) return ane_run_check(err);
    if (atomic_load(&run.nomem)) return ane_fail(err, ANE_ERR_NOMEM, "[run] out of memory");
    return ANE_OK;
}

/* One row that every view steps through element by element: no register is needed. */
static bool all_dense(const ane_expr *e) {
    bool dense = e->rank <= 1;
    for (int k = 0; k < e->n_views; k++) {
        const ane_view *v = &e->views[k];
        dense &= ane_dtype_is_float(v->dtype) &&
                 (!e->rank || v->strides[0] == (int64_t)ane_dtype_size(v->dtype));
    }
    return dense;
}

ane_status ane_plan_chain(ane_planner *pl, const ane_graph *g, const ane_group *grp) {
    ane_arena *arena = pl->plan->arena;
    ane_expr *e = NULL;
    ane_status st = ane_expr_build(pl, g, grp, NULL, &e);
    if (st) return st;
    int64_t count = 1;
    for (int d = 0; d < e->rank; d++) count *= e->shape[d];
    if (!count) return ANE_OK;
    chain *c = ane_arena_alloc(arena, sizeof *c);
    ane_step *s = ane_plan_step(pl, run_chain, g->ops[grp->ops[grp->n - 1]], e->n_stores,
                                e->n_views - e->n_stores);
    if (!c || !s) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    memcpy(s->views, e->views, (size_t)e->n_views * sizeof *s->views);
    s->data = c;
    s->room = room_of;
    s->label = ane_group_label(pl, g, grp);
    s->kernel = ane_vec_get()->name;
    bool runs = false;
    for (int i = 0; i < e->n_ins; i++) runs = runs || e->ins[i].run;
    if (runs) s->kernel = ane_arena_printf(arena, "runs__%s", ane_vec_get()->name);
    if (!s->kernel) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    s->flops = e->flops * (double)count;
    s->in_place = true;
    ane_expr_arrange(e, true);
    c->e = e;
    int64_t cols = e->rank > 0 ? e->shape[e->rank - 1] : 1;
    int64_t rows = e->rank > 1 ? e->shape[e->rank - 2] : 1;
    size_t bytes = 0;
    for (int k = 0; k < e->n_views; k++) bytes += (size_t)count * ane_dtype_size(e->views[k].dtype);
    c->stream = bytes >= ANE_STREAM_BYTES;
    int64_t task = c->stream ? STREAM_TASK : TASK;
    int64_t most = ane_expr_is_run(e) && all_dense(e) ? task : ANE_TILE;
    c->tile_cols = (size_t)(cols < most ? cols : most);
    int64_t fit = most / (int64_t)c->tile_cols;
    c->tile_rows = (size_t)(rows < fit ? rows : fit);
    c->col_tiles = (cols + (int64_t)c->tile_cols - 1) / (int64_t)c->tile_cols;
    c->row_tiles = (rows + (int64_t)c->tile_rows - 1) / (int64_t)c->tile_rows;
    c->tiles = c->col_tiles * c->row_tiles;
    for (int d = 0; d < e->rank - 2; d++) c->tiles *= e->shape[d];
    c->per_task = task / (int64_t)(c->tile_rows * c->tile_cols);
    if (c->per_task < 1) c->per_task = 1;
    c->tasks = (c->tiles + c->per_task - 1) / c->per_task;
    return ANE_OK;
}

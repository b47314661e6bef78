/* Moves of data: strided copies of equal dtype, blocked where both sides cannot run along
 * memory at once, and split over the threads. */
#include "cpu.h"
#include "view.h"

#include <string.h>

#define TASK_BYTES (256 << 10)
#define BLOCK 32                        /* square of a transposition: 4 KB of fp32 a side */

typedef struct copy_plan {
    int rank;                           /* dims that tasks walk; the last two may be special */
    int64_t shape[ANE_MAX_RANK], ds[ANE_MAX_RANK], ss[ANE_MAX_RANK];
    size_t unit;                        /* bytes of one contiguous piece */
    bool transpose;                     /* last dim runs along dst, last but one along src */
    int64_t outer, per_task, tasks;     /* outer: product of the dims before the inner ones */
    int inner;                          /* dims that one call of the mover does */
} copy_plan;

typedef struct copy_run {
    const copy_plan *c;
    char *dst;
    const char *src;
} copy_run;

#define MOVE(T)                                                                            \
    for (int64_t i = 0; i < n; i++) {                                                      \
        T x;                                                                               \
        memcpy(&x, s + i * ss, sizeof x);                                                  \
        memcpy(d + i * ds, &x, sizeof x);                                                  \
    }

static void move_row(char *d, const char *s, int64_t n, int64_t ds, int64_t ss, size_t unit) {
    switch (unit) {
    case 1: MOVE(uint8_t) break;
    case 2: MOVE(uint16_t) break;
    case 4: MOVE(uint32_t) break;
    case 8: MOVE(uint64_t) break;
    default:
        for (int64_t i = 0; i < n; i++) memcpy(d + i * ds, s + i * ss, unit);
    }
}

/* d[i][j] = s[i][j] in squares, so that neither side's cache lines are fetched often. */
static void move_square(const copy_plan *c, char *d, const char *s) {
    int r = c->rank;
    int64_t rows = c->shape[r - 2], cols = c->shape[r - 1];
    int64_t dr = c->ds[r - 2], dc = c->ds[r - 1], sr = c->ss[r - 2], sc = c->ss[r - 1];
    for (int64_t i = 0; i < rows; i += BLOCK)
        for (int64_t j = 0; j < cols; j += BLOCK) {
            int64_t m = rows - i < BLOCK ? rows - i : BLOCK, n = cols - j < BLOCK ? cols - j : BLOCK;
            for (int64_t k = 0; k < m; k++)
                move_row(d + (i + k) * dr + j * dc, s + (i + k) * sr + j * sc, n, dc, sc,
                         c->unit);
        }
}

static void copy_task(void *arg, size_t task) {
    const copy_run *run = arg;
    const copy_plan *c = run->c;
    int64_t first = (int64_t)task * c->per_task, end = first + c->per_task;
    if (end > c->outer) end = c->outer;
    for (int64_t i = first; i < end; i++) {
        char *d = run->dst;
        const char *s = run->src;
        int64_t left = i;
        for (int k = c->rank - c->inner - 1; k >= 0; k--) {
            int64_t x = left % c->shape[k];
            left /= c->shape[k];
            d += x * c->ds[k];
            s += x * c->ss[k];
        }
        int last = c->rank - 1;
        if (c->inner == 0) memcpy(d, s, c->unit);
        else if (c->inner == 1)
            move_row(d, s, c->shape[last], c->ds[last], c->ss[last], c->unit);
        else move_square(c, d, s);
    }
}

static ane_status run_copy(ane_exec *ex, const ane_step *s, ane_error *err) {
    const copy_plan *c = s->data;
    copy_run run = {.c = c, .dst = ane_at(ex, ane_step_out(s, 0)),
                    .src = ane_at(ex, ane_step_in(s, 0))};
    if (run.dst == run.src) return ANE_OK;      /* in place: plan.c checked the strides */
    if (c->tasks == 1) copy_task(&run, 0);
    else if (!ane_parallel_for((size_t)c->tasks, copy_task, &run)) return ane_run_check(err);
    return ANE_OK;
}

static void swap_dims(copy_plan *c, int a, int b) {
    int64_t *const all[] = {c->shape, c->ds, c->ss};
    for (int k = 0; k < 3; k++) {
        int64_t t = all[k][a];
        all[k][a] = all[k][b];
        all[k][b] = t;
    }
}

ane_status ane_plan_copy(ane_planner *pl, const ane_view *dst, const ane_view *src) {
    ANE_ASSERT(dst->dtype == src->dtype && dst->rank == src->rank);
    if (!ane_view_count(dst)) return ANE_OK;
    ane_step *step = ane_plan_step(pl, run_copy, NULL, 1, 1);
    copy_plan *c = ane_arena_alloc(pl->plan->arena, sizeof *c);
    if (!step || !c) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    step->data = c;
    step->in_place = true;
    *ane_step_out(step, 0) = *dst;
    *ane_step_in(step, 0) = *src;
    ane_view d = *dst, s = *src, *both[2] = {&d, &s};
    /* Along dst first: sort by its strides, largest outermost. */
    int perm[ANE_MAX_RANK];
    for (int i = 0; i < d.rank; i++) {
        int at = i;
        for (; at > 0 && d.strides[perm[at - 1]] < d.strides[i]; at--) perm[at] = perm[at - 1];
        perm[at] = i;
    }
    ane_view_permute(&d, perm, &d);
    ane_view_permute(&s, perm, &s);
    c->rank = ane_views_merge(2, both);
    memcpy(c->shape, d.shape, sizeof c->shape);
    memcpy(c->ds, d.strides, sizeof c->ds);
    memcpy(c->ss, s.strides, sizeof c->ss);
    c->unit = ane_dtype_size(dst->dtype);
    int last = c->rank - 1;
    int64_t unit = (int64_t)c->unit;
    if (last >= 0 && c->ds[last] == unit && c->ss[last] == unit) {
        c->unit *= (size_t)c->shape[last];
        c->rank--;
    } else if (last >= 1 && c->ss[last] != unit && c->ss[last] != 0) {
        for (int k = 0; k < last; k++)
            if (c->ss[k] == unit) {
                swap_dims(c, k, last - 1);
                c->transpose = true;
            }
    }
    c->inner = c->transpose ? 2 : c->rank ? 1 : 0;
    /* One long contiguous run is cut, so that threads share it. */
    if (!c->rank && c->unit > 2 * TASK_BYTES) {
        size_t n = c->unit / TASK_BYTES;
        while (c->unit % n) n--;
        c->rank = 1;
        c->shape[0] = (int64_t)n;
        c->ds[0] = c->ss[0] = (int64_t)(c->unit / n);
        c->unit /= n;
        c->inner = 0;
    }
    c->outer = 1;
    for (int k = 0; k < c->rank - c->inner; k++) c->outer *= c->shape[k];
    int64_t bytes = unit * ane_view_count(dst) / c->outer;
    c->per_task = bytes ? TASK_BYTES / bytes : 1;
    if (c->per_task < 1) c->per_task = 1;
    c->tasks = (c->outer + c->per_task - 1) / c->per_task;
    return ANE_OK;
}

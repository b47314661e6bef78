/* Moves of data: strided copies of equal dtype. */
#include "cpu.h"

#include <string.h>

typedef struct copy_plan {
    int rank;                           /* outer dims after merging */
    int64_t shape[ANE_MAX_RANK], ds[ANE_MAX_RANK], ss[ANE_MAX_RANK];
    size_t unit;                        /* bytes of one contiguous piece */
} copy_plan;

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

static void copy_dims(const copy_plan *c, int dim, char *d, const char *s) {
    if (dim == c->rank - 1) {
        move_row(d, s, c->shape[dim], c->ds[dim], c->ss[dim], c->unit);
        return;
    }
    for (int64_t i = 0; i < c->shape[dim]; i++)
        copy_dims(c, dim + 1, d + i * c->ds[dim], s + i * c->ss[dim]);
}

static ane_status run_copy(ane_exec *ex, const ane_step *s, ane_error *err) {
    (void)err;
    const copy_plan *c = s->data;
    char *d = ane_at(ex, ane_step_out(s, 0));
    const char *src = ane_at(ex, ane_step_in(s, 0));
    if (c->rank == 0) memcpy(d, src, c->unit);
    else copy_dims(c, 0, d, src);
    return ANE_OK;
}

ane_status ane_plan_copy(ane_planner *pl, const ane_view *dst, const ane_view *src) {
    ANE_ASSERT(dst->dtype == src->dtype && dst->rank == src->rank);
    if (!ane_view_count(dst)) return ANE_OK;
    ane_step *step = ane_plan_step(pl, run_copy, NULL, 1, 1);
    copy_plan *c = ane_arena_alloc(pl->plan->arena, sizeof *c);
    if (!step || !c) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    step->data = c;
    *ane_step_out(step, 0) = *dst;
    *ane_step_in(step, 0) = *src;
    /* Drop ones, merge neighbours that step alike on both sides, then take a contiguous
     * innermost dimension into the unit. */
    c->unit = ane_dtype_size(dst->dtype);
    for (int i = 0; i < dst->rank; i++) {
        if (dst->shape[i] == 1) continue;
        int last = c->rank - 1;
        if (last >= 0 && c->ds[last] == dst->strides[i] * dst->shape[i] &&
            c->ss[last] == src->strides[i] * dst->shape[i]) {
            c->shape[last] *= dst->shape[i];
            c->ds[last] = dst->strides[i];
            c->ss[last] = src->strides[i];
            continue;
        }
        c->shape[c->rank] = dst->shape[i];
        c->ds[c->rank] = dst->strides[i];
        c->ss[c->rank++] = src->strides[i];
    }
    int last = c->rank - 1;
    if (last >= 0 && c->ds[last] == (int64_t)c->unit && c->ss[last] == (int64_t)c->unit) {
        c->unit *= (size_t)c->shape[last];
        c->rank--;
    }
    return ANE_OK;
}

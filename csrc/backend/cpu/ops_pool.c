/* Pooling through channels-last windows. */
#include "ops.h"
#include "view.h"

#include "../../ir/window.h"
#include "../../kernels/conv.h"

#include <string.h>

enum { Y, X, VIEWS };

static ane_status run_pool(ane_exec *ex, const ane_step *s, ane_error *err) {
    ane_pool_args g = *(const ane_pool_args *)s->data;
    g.x.data = ane_at(ex, &s->views[X]);
    g.y.data = ane_at(ex, &s->views[Y]);
    return ane_pool(&g, err);
}

static void room_of(const ane_exec *ex, const ane_step *s, ane_room *room) {
    (void)ex;
    ane_pool_room(s->data, room);
}

ane_status ane_plan_pool(ane_planner *pl, const ane_op *op, bool *done) {
    static const char *const names[] = {"max_pool", "avg_pool", "l2_pool"};
    int kind = 0;
    while (kind < 3 && strcmp(op->row->name, names[kind])) kind++;
    *done = false;
    if (kind == 3 || !ane_kernel_on(ANE_FAMILY_pool)) return ANE_OK;
    const ane_value *x = ane_op_in(op, "x");
    if (!ane_dtype_is_float(x->type->dtype) || !ane_type_static(x->type) ||
        !ane_type_static(op->results[0]->type))
        return ANE_OK;
    ane_window w = {.n = x->type->rank - 2};
    memcpy(w.in, x->type->dims + 2, sizeof *w.in * (size_t)w.n);
    if (ane_op_ints(op, "kernel_sizes", w.kernel, w.n) != w.n) return ANE_OK;
    if (ane__window_forward(NULL, NULL, op, &w)) return ANE_OK;
    ane__window_three(&w);
    *done = true;
    ane_view v[VIEWS];
    ane_status st = ane_plan_operand(pl, x, &v[X]);
    if (!st) st = ane_plan_dest(pl, op->results[0], &v[Y]);
    if (st || !ane_view_count(&v[Y])) return st;
    ane_step *s = ane_plan_step(pl, run_pool, op, 1, VIEWS - 1);
    ane_pool_args *a = ane_arena_alloc(pl->plan->arena, sizeof *a);
    if (!s || !a) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    memcpy(s->views, v, sizeof v);
    *a = (ane_pool_args){.kind = (ane_pool_kind)kind, .n = v[X].shape[0],
                         .channels = v[X].shape[1],
                         .exclude = kind == ANE_POOL_AVG &&
                                    ane_op_bool(op, "exclude_padding_from_average", false)};
    s->flops = (double)ane_view_count(&v[Y]);
    for (int d = 0; d < 3; d++) {
        a->in[d] = w.in[d];
        a->out[d] = w.out[d];
        a->kernel[d] = w.kernel[d];
        a->stride[d] = w.stride[d];
        a->pad[d] = w.pad[d][0];
        a->after[d] = w.pad[d][1];
        s->flops *= (double)w.kernel[d];
    }
    a->x = ane_planes_of(&v[X]);
    a->y = ane_planes_of(&v[Y]);
    s->data = a;
    s->room = room_of;
    s->kernel = ane_pool_name();
    return ANE_OK;
}

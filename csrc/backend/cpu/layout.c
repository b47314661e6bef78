/* Which values live channels last. Convolutions make such values and like to read them;
 * pooling and element-wise ops pass the order on. Only scratch is affected: whatever the
 * program takes or gives keeps its own layout. */
#include "ops.h"

#include <string.h>

static bool last_of(const ane_planner *pl, const ane_value *v, int rank) {
    return !v->konst && v->type->kind == ANE_T_TENSOR && v->type->rank == rank &&
           pl->places[v->id].last;
}

static bool passes_on(const ane_op *op) {
    static const char *const names[] = {
        "avg_pool", "batch_norm", "concat", "dequantize", "instance_norm", "l2_pool", "max_pool",
        "pad", "quantize", "resize", "resize_bilinear", "resize_nearest_neighbor", "upsample_bilinear",
        "upsample_nearest_neighbor"};
    if (ane_op_is_pointwise(op)) return true;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(op->row->name, names[i])) return true;
    return false;
}

void ane_plan_layout(ane_planner *pl) {
    const ane_graph *g = pl->graph;
    if (!ane_kernel_on(ANE_FAMILY_layout)) return;
    for (int i = 0; i < g->n; i++) {
        const ane_op *op = g->ops[i];
        if (op->n_results != 1 || op->results[0]->konst) continue;
        const ane_type *t = op->results[0]->type;
        if (!ane_plan_is_tensor(t) || t->rank < 3 || t->rank > 5) continue;
        bool last = false;
        if (ane_op_is_conv(op)) {
            last = last_of(pl, ane_op_in(op, "x"), t->rank) || !ane_conv_is_product(op);
        } else if (passes_on(op)) {
            for (int p = 0; p < op->row->n_params && !last; p++)
                for (int k = 0; k < op->args[p].n && !last; k++)
                    last = last_of(pl, op->args[p].v[k], t->rank);
        }
        pl->places[op->results[0]->id].last = last;
    }
}

void ane_view_channels_last(ane_view *v) {
    int64_t step = (int64_t)ane_dtype_size(v->dtype);
    v->strides[1] = step;
    step *= v->shape[1];
    for (int d = v->rank - 1; d >= 2; d--) {
        v->strides[d] = step;
        step *= v->shape[d];
    }
    v->strides[0] = step;
}

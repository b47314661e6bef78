/* Reductions and softmax: a core that walks rows, and the element-wise chain that feeds it
 * and nobody else, computed on the fly. A core is a group of its own even with nothing
 * fused, so that the device sees one kind of thing. */
#include "group.h"

#include <string.h>

static int core_kind(const ane_op *op) {
    static const char *const reductions[] = {
        "reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_sum_square",
        "reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp"};
    if (op->n_results != 1) return -1;
    const ane_type *r = op->results[0]->type;
    const ane_value *x = ane_op_in(op, "x");
    if (!x || x->type->kind != ANE_T_TENSOR || !ane_dtype_is_float(x->type->dtype) ||
        !ane_type_static(x->type) || r->kind != ANE_T_TENSOR || !ane_type_static(r) ||
        !ane_type_count(x->type) || op->results[0]->konst)
        return -1;
    if (!strcmp(op->row->name, "softmax")) return ANE_GROUP_SOFTMAX;
    for (size_t i = 0; i < sizeof reductions / sizeof *reductions; i++)
        if (!strcmp(op->row->name, reductions[i])) return ANE_GROUP_REDUCE;
    return -1;
}

static ane_status absorb(ane_graph *g, ane_group *grp, const ane_value *v, const ane_type *of,
                         ane_error *err) {
    v = ane_value_through(v);
    if (v->konst || !v->def || v->def->block != g->fn->body) return ANE_OK;
    const ane_op *op = v->def;
    int number = g->number[op->id];
    if (g->group[number] || g->folded[number] || grp->n >= 24 || !ane_op_is_pointwise(op) ||
        !ane_shape_same_but_ones(of, v->type) || ane_value_escapes(g, v, grp))
        return ANE_OK;
    if (!ane_group_add(g, grp, number))
        return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
    ane_status st = ANE_OK;
    for (int p = 0; p < op->row->n_params && !st; p++)
        for (int k = 0; k < op->args[p].n && !st; k++)
            st = absorb(g, grp, op->args[p].v[k], of, err);
    return st;
}

ane_status ane_fuse_rows(ane_graph *g, ane_error *err) {
    for (int i = 0; i < g->n; i++) {
        int kind = core_kind(g->ops[i]);
        if (kind < 0 || g->group[i]) continue;
        ane_group *grp = ane_group_new(g, (ane_group_kind)kind);
        if (!grp || !ane_group_add(g, grp, i))
            return ane_fail(err, ANE_ERR_NOMEM, "[compile] out of memory");
        grp->core = i;
        if (!ane_fusion_on(g, kind == ANE_GROUP_SOFTMAX ? ANE_FUSE_softmax : ANE_FUSE_reduce)) continue;
        const ane_value *x = ane_op_in(g->ops[i], "x");
        ane_status st = absorb(g, grp, x, x->type, err);
        if (st) return st;
    }
    return ANE_OK;
}

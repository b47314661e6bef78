#include "target.h"

#include "../base/f16.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- the table */

#define ALL ANE_CHIP_ALL
#define M1 ANE_CHIP_M1
#define M2 ANE_CHIP_M2
static const ane_cliff cliffs[] = {
#define CLIFF(id, value, chips, modelled, what, evidence)                                  \
    {#id, value, chips, modelled, what, evidence},
#include "target.def"
};

static const struct {
    const char *name;
    ane_verdict verdict;
    const char *evidence;
} operations[] = {
#define OPERATION(name, verdict, evidence) {#name, ANE_OP_##verdict, evidence},
#include "target.def"
};

const ane_cliff *ane_cliff_at(size_t i) { return i < ANE_CLIFF_COUNT ? &cliffs[i] : NULL; }

bool ane_target_models(unsigned target, ane_cliff_id id) {
    return cliffs[id].modelled && (cliffs[id].chips & target);
}

ane_verdict ane_target_verdict(const char *op, const char **evidence) {
    if (evidence) *evidence = "";
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++) {
        if (strcmp(operations[i].name, op)) continue;
        if (evidence) *evidence = operations[i].evidence;
        return operations[i].verdict;
    }
    return ANE_OP_UNTRIED;
}

ane_status ane_target_parse(const char *name, unsigned *target, const char *who,
                            ane_error *err) {
    static const struct {
        const char *name;
        unsigned chip;
    } names[] = {{"m1", ANE_CHIP_M1}, {"m2", ANE_CHIP_M2}, {"m3", ANE_CHIP_M3},
                 {"m4", ANE_CHIP_M4}, {"m5", ANE_CHIP_M5}, {"a14", ANE_CHIP_M1},
                 {"a15", ANE_CHIP_M2}, {"a16", ANE_CHIP_M2}, {"a17", ANE_CHIP_M3},
                 {"a18", ANE_CHIP_M4}, {"a19", ANE_CHIP_M5}};
    *target = ANE_CHIP_ALL;
    if (!name || !*name) return ANE_OK;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strcmp(names[i].name, name)) {
            *target = names[i].chip;
            return ANE_OK;
        }
    return ane_fail(err, ANE_ERR_INVALID, "[%s] unknown target '%.40s'; expected m1 to m5 or "
                    "a14 to a19", who, name);
}

/* ---------------------------------------------------------------- what an op's value becomes */

static bool is_one_of(const char *name, const char *const *list) {
    for (; *list; list++)
        if (!strcmp(name, *list)) return true;
    return false;
}

bool ane_op_cuts_last_axis(const ane_op *op) {
    static const char *const slices[] = {"slice_by_size", "slice_by_index", NULL};
    if (!is_one_of(op->row->name, slices)) return false;
    const ane_value *x = ane_op_in(op, "x");
    const ane_type *out = op->results[0]->type;
    if (!x || x->type->kind != ANE_T_TENSOR || out->kind != ANE_T_TENSOR || !x->type->rank)
        return false;
    /* squeeze_mask drops dims: then only the count of elements tells, and dropping the last
     * one is a cut. */
    int last = x->type->rank - 1;
    if (out->rank == x->type->rank) return out->dims[last] != x->type->dims[last];
    return x->type->dims[last] != 1 &&
           (!out->rank || out->dims[out->rank - 1] != x->type->dims[last]);
}

static bool is_float(ane_dtype d) {
    return d == ANE_F16 || d == ANE_F32 || d == ANE_F64 || d == ANE_BF16;
}

/* The values of the result are values of the operands, which were rounded before. */
static bool only_passes_on(const ane_op *op) {
    static const char *const names[] = {
        "batch_to_space", "concat", "crop", "depth_to_space", "expand_dims", "flatten2d",
        "gather", "gather_along_axis", "gather_nd", "identity", "make_list", "pixel_shuffle",
        "pixel_unshuffle", "reshape", "reshape_like", "reverse", "reverse_sequence", "select",
        "slice_by_index", "slice_by_size", "sliding_windows", "space_to_batch",
        "space_to_depth", "split", "squeeze", "stack", "tile", "transpose", NULL};
    return is_one_of(op->row->name, names);
}

bool ane_target_edges(unsigned target, const ane_op *op, ane_edges *out) {
    static const char *const products[] = {"matmul", "linear", "einsum", "conv",
                                           "conv_transpose", NULL};
    const char *name = op->row->name;
    *out = (ane_edges){.above = INFINITY, .below = -INFINITY};
    const ane_type *t = op->n_results ? op->results[0]->type : NULL;
    if (!target || !t || t->kind != ANE_T_TENSOR) return false;
    if (!is_float(t->dtype)) {
        out->fp16 = ane_target_models(target, ANE_CLIFF_INTEGER_SUM) && t->dtype != ANE_BOOL &&
                    !strncmp(name, "reduce_", 7) && strncmp(name, "reduce_arg", 10);
        return out->fp16;
    }
    double limit = 0;
    out->fp16 = ane_target_models(target, ANE_CLIFF_FP16) && !only_passes_on(op);
    if (is_one_of(name, products) && ane_target_models(target, ANE_CLIFF_PRODUCT_OVERFLOW))
        limit = cliffs[ANE_CLIFF_PRODUCT_OVERFLOW].value;
    if (ane_op_cuts_last_axis(op) && ane_target_models(target, ANE_CLIFF_SLICE_CLAMP))
        limit = cliffs[ANE_CLIFF_SLICE_CLAMP].value;
    if (limit > 0) {
        out->above = limit;
        out->below = -limit;
    }
    if (!strcmp(name, "reduce_log_sum_exp") && ane_target_models(target, ANE_CLIFF_LOG_SUM_EXP))
        out->above = cliffs[ANE_CLIFF_LOG_SUM_EXP].value;
    /* fp16 values are stored as such: the store rounds. */
    return limit > 0 || isfinite(out->above) || (out->fp16 && t->dtype != ANE_F16);
}

double ane_edges_apply(const ane_edges *e, double x) {
    if (e->fp16) x = (double)ane_f32_from_f16(ane_f16_from_f64(x));
    return x > e->above ? INFINITY : x < e->below ? -INFINITY : x;
}

bool ane_target_rounds_away(unsigned target, const ane_op *op) {
    return ane_target_models(target, ANE_CLIFF_ROUND_HALF_AWAY) &&
           !strcmp(op->row->name, "round");
}

/* ---------------------------------------------------------------- the reference evaluator */

void ane_target_narrow(ane_rt *r) {
    if (!r->data || r->kind == ANE_T_LIST || r->kind == ANE_T_DICT || !is_float(r->dtype)) return;
    for (int64_t i = 0; i < r->count; i++)
        r->data[i] = (double)ane_f32_from_f16(ane_f16_from_f64(r->data[i]));
}

ane_status ane_target_results(unsigned target, const ane_op *op, ane_rt *const *const *in,
                              ane_rt **out, ane_error *err) {
    ane_edges e;
    bool edges = ane_target_edges(target, op, &e), away = ane_target_rounds_away(target, op);
    for (int i = 0; (edges || away) && i < op->n_results; i++) {
        if (out[i]->kind != ANE_T_TENSOR || !out[i]->data) continue;
        if (out[i]->refs > 1) {         /* an operand passed through: it keeps its values */
            ane_rt *own = ane_rt_tensor(out[i]->dtype, out[i]->rank, out[i]->shape);
            if (!own) return ane_fail(err, ANE_ERR_NOMEM, "evaluation: %s", op->row->name);
            memcpy(own->data, out[i]->data, (size_t)own->count * sizeof *own->data);
            ane_rt_release(out[i]);
            out[i] = own;
        }
        double *y = out[i]->data;
        if (away) {
            const ane_rt *x = in[ane_op_param_index(op->row, "x")][0];
            for (int64_t k = 0; k < out[i]->count; k++) y[k] = round(x->data[k]);
        }
        for (int64_t k = 0; edges && k < out[i]->count; k++) y[k] = ane_edges_apply(&e, y[k]);
        ane_rt_round(out[i]);
    }
    return ANE_OK;
}

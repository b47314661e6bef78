/* Reading an op's arguments by name, and the helpers that inference functions are written
 * with. */
#include "impl.h"

#include "../base/f16.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- arguments */

const ane_arg *ane_op_arg(const ane_op *op, const char *name) {
    int i = ane_op_param_index(op->row, name);
    return i >= 0 && (op->args[i].n || op->args[i].tuple) ? &op->args[i] : NULL;
}

ane_value *ane_op_in(const ane_op *op, const char *name) {
    const ane_arg *a = ane_op_arg(op, name);
    return a && a->n ? a->v[0] : NULL;
}

const ane_const *ane_op_const(const ane_op *op, const char *name) {
    int i = ane_op_param_index(op->row, name);
    if (i < 0) return NULL;
    if (op->args[i].n) return op->args[i].v[0]->konst;
    return op->row->params[i].default_value;
}

/* One number of a constant tensor, or NULL. */
static const ane_const *scalar(const ane_op *op, const char *name) {
    const ane_const *c = ane_op_const(op, name);
    if (!c || !c->data || c->type->kind != ANE_T_TENSOR) return NULL;
    return ane_type_count(c->type) >= 1 ? c : NULL;
}

int64_t ane_op_i64(const ane_op *op, const char *name, int64_t fallback) {
    const ane_const *c = scalar(op, name);
    return c ? ane_const_i64(c, 0) : fallback;
}

double ane_op_f64(const ane_op *op, const char *name, double fallback) {
    const ane_const *c = scalar(op, name);
    if (!c) return fallback;
    double v = ane_const_f64(c, 0);
    if (c->type->dtype != ANE_F32 || ane_op_arg(op, name)) return v;
    /* A default takes the dtype of the op's first float operand, as evaluation has it: the
     * 1e-45 of log is 0 beside an fp16 x. */
    for (int i = 0; i < op->row->n_params; i++) {
        const ane_type *t = op->args[i].n ? op->args[i].v[0]->type : NULL;
        if (!t || t->kind != ANE_T_TENSOR) continue;
        if (t->dtype == ANE_F16) return (double)ane_f32_from_f16(ane_f16_from_f64(v));
        if (t->dtype == ANE_F32) break;
    }
    return v;
}

bool ane_op_bool(const ane_op *op, const char *name, bool fallback) {
    const ane_const *c = scalar(op, name);
    return c ? ane_const_i64(c, 0) != 0 : fallback;
}

const char *ane_op_str(const ane_op *op, const char *name, const char *fallback) {
    const ane_const *c = scalar(op, name);
    return c && c->type->dtype == ANE_STRING ? ((const char *const *)c->data)[0] : fallback;
}

int ane_op_ints(const ane_op *op, const char *name, int64_t *out, int max) {
    const ane_arg *a = ane_op_arg(op, name);
    if (a && a->tuple) {                /* (int32(0), int32(1)): one number each */
        for (int k = 0; k < a->n; k++) {
            const ane_const *c = a->v[k]->konst;
            if (!c || !c->data || c->type->kind != ANE_T_TENSOR || ane_type_count(c->type) != 1)
                return -1;
            if (k < max) out[k] = ane_const_i64(c, 0);
        }
        return a->n;
    }
    const ane_const *c = ane_op_const(op, name);
    if (!c || !c->data || c->type->kind != ANE_T_TENSOR || c->type->dtype == ANE_STRING)
        return -1;
    int64_t n = ane_type_count(c->type);
    if (n < 0 || n > INT32_MAX) return -1;
    for (int64_t i = 0; i < n && i < max; i++) out[i] = ane_const_i64(c, i);
    return (int)n;
}

/* ---------------------------------------------------------------- inference */

ane_status ane_infer_fail(ane_infer *in, ane_status st, const char *fmt, ...) {
    /* The op and its place are put in front by whoever called infer. */
    char msg[sizeof in->err->message];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    return ane_fail(in->err, st, "%s", msg);
}

ane_status ane_infer_same(ane_infer *in, int i, const ane_type *type) {
    if (!type) return ane__nomem(in->err);
    ANE_ASSERT(i >= 0 && i < ANE_MAX_RESULTS);
    in->results[i] = type;
    if (i >= in->n_results) in->n_results = i + 1;
    return ANE_OK;
}

ane_status ane_infer_set(ane_infer *in, int i, ane_dtype dtype, int rank,
                         const int64_t *dims) {
    if (rank > ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "result would have rank %d; at most %d", rank,
                              ANE_MAX_RANK);
    return ane_infer_same(in, i, ane_type_tensor(in->program, dtype, rank, dims));
}

ane_status ane_infer_axis(ane_infer *in, const char *param, int64_t axis, int rank, int *out) {
    if (axis < -(int64_t)rank || axis >= rank)
        return ane_infer_fail(in, ANE_ERR_INDEX, "%s is %lld, expected %d to %d", param,
                              (long long)axis, -rank, rank - 1);
    *out = (int)(axis < 0 ? axis + rank : axis);
    return ANE_OK;
}

ane_status ane_infer_broadcast(ane_infer *in, const ane_type *a, const ane_type *b, int *rank,
                               int64_t *dims) {
    int n = a->rank > b->rank ? a->rank : b->rank;
    for (int i = 0; i < n; i++) {
        int ia = i - (n - a->rank), ib = i - (n - b->rank);
        int64_t x = ia < 0 ? 1 : a->dims[ia], y = ib < 0 ? 1 : b->dims[ib];
        if (ane_dim_same(x, y) || y == 1) {
            dims[i] = x;
        } else if (x == 1) {
            dims[i] = y;
        } else if (x >= 0 && y >= 0) {
            char s[ANE_TYPE_TEXT], t[ANE_TYPE_TEXT];
            return ane_infer_fail(in, ANE_ERR_SHAPE,
                                  "%s and %s do not broadcast: %lld and %lld in dimension %d",
                                  ane_type_text(a, s, sizeof s), ane_type_text(b, t, sizeof t),
                                  (long long)x, (long long)y, i - n);
        } else {
            /* One side known and not 1: the other must be 1 or the same. */
            dims[i] = x >= 0 ? x : y >= 0 ? y : ANE_DIM_ANY;
        }
    }
    *rank = n;
    return ANE_OK;
}

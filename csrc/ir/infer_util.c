/* Small checks that the op families share. Generic signature checks (names, constness,
 * dtype sets, type variables) have been done by the graph before any infer function runs. */
#include "ops_fn.h"

#include <stdio.h>
#include <string.h>

bool ane__given(const ane_op *op, const char *name) {
    const ane_arg *a = ane_op_arg(op, name);
    return a && a->n;
}

const ane_type *ane__in_type_at(const ane_infer *in, const char *name, int k) {
    const ane_arg *a = ane_op_arg(in->op, name);
    return a && k < a->n ? a->v[k]->type : NULL;
}

const ane_type *ane__in_type(const ane_infer *in, const char *name) {
    return ane__in_type_at(in, name, 0);
}

ane_dtype ane__in_dtype(const ane_infer *in, const char *name) {
    const ane_type *t = ane__in_type(in, name);
    if (t && t->kind == ANE_T_TENSOR) return t->dtype;
    const ane_op_row *row = in->op->row;
    int i = ane_op_param_index(row, name);
    ANE_ASSERT(i >= 0 && row->params[i].default_value);
    /* A default takes the dtype its type variable has from another operand. */
    for (int k = 0; k < row->n_params; k++)
        if (row->params[i].var >= 0 && row->params[k].var == row->params[i].var &&
            in->op->args[k].n)
            return in->op->args[k].v[0]->type->dtype;
    return row->params[i].default_value->type->dtype;
}

char *ane__dims_text(int rank, const int64_t *dims, char *buf, size_t n) {
    size_t at = 0;
    buf[0] = 0;
    for (int i = 0; i <= rank && at + 2 < n; i++) {
        int k;
        if (i == rank) k = snprintf(buf + at, n - at, rank ? "]" : "[]");
        else if (dims[i] < 0) k = snprintf(buf + at, n - at, "%s?", i ? ", " : "[");
        else k = snprintf(buf + at, n - at, "%s%lld", i ? ", " : "[", (long long)dims[i]);
        at += k > 0 ? (size_t)k : 0;
    }
    return buf;
}

ane_status ane__want_rank(ane_infer *in, const char *name, int lo, int hi) {
    const ane_type *t = ane__in_type(in, name);
    if (!t || (t->rank >= lo && t->rank <= hi)) return ANE_OK;
    char text[ANE_TYPE_TEXT];
    if (lo == hi)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must have rank %d, got %s", name, lo,
                              ane_type_text(t, text, sizeof text));
    if (hi >= ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must have rank %d or more, got %s",
                              name, lo, ane_type_text(t, text, sizeof text));
    return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must have rank %d to %d, got %s", name,
                          lo, hi, ane_type_text(t, text, sizeof text));
}

ane_status ane__want_scalar(ane_infer *in, const char *name) {
    const ane_type *t = ane__in_type(in, name);
    char text[ANE_TYPE_TEXT];
    bool one = !t || t->kind == ANE_T_TENSOR;
    for (int i = 0; t && one && i < t->rank; i++) one = t->dims[i] == 1;
    if (one) return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must be a scalar, got %s", name,
                          ane_type_text(t, text, sizeof text));
}

ane_status ane__want_vector(ane_infer *in, const char *name, int64_t n) {
    const ane_type *t = ane__in_type(in, name);
    if (!t) return ANE_OK;
    ane_status st = ane__want_rank(in, name, 1, 1);
    if (st) return st;
    if (ane__dim_fits(t->dims[0], n)) return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must have %lld elements, got %lld", name,
                          (long long)n, (long long)t->dims[0]);
}

ane_status ane__dim_mul(ane_infer *in, int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0) {
        *out = b == 1 ? a : a == 1 ? b : ANE_DIM_ANY;
        return ANE_OK;
    }
    if (!__builtin_mul_overflow(a, b, out)) return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "a dimension of %lld times %lld is too large",
                          (long long)a, (long long)b);
}

ane_status ane__dim_add(ane_infer *in, int64_t a, int64_t b, int64_t *out) {
    if (a < 0 || b < 0) {
        *out = b == 0 ? a : a == 0 ? b : ANE_DIM_ANY;
        return ANE_OK;
    }
    if (!__builtin_add_overflow(a, b, out)) return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "a dimension of %lld plus %lld is too large",
                          (long long)a, (long long)b);
}

ane_status ane__want_ints(ane_infer *in, const char *name, int n, int64_t *out,
                          bool *known) {
    const ane_type *t = ane__in_type(in, name);
    int got = ane_op_ints(in->op, name, out, n);
    *known = got >= 0;
    int64_t len = got >= 0 ? got : t && t->rank == 1 ? t->dims[0] : t ? 1 : n;
    if (ane__dim_fits(len, n)) return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must have %d elements, got %lld", name, n,
                          (long long)len);
}

ane_status ane__want_dtype(ane_infer *in, const char *name, uint32_t allowed,
                           ane_dtype *out) {
    const char *s = ane_op_str(in->op, name, "");
    char list[160] = "";
    for (int d = 0; d < ANE_DTYPE_COUNT; d++) {
        if (!(allowed & ANE__DT(d))) continue;
        if (!strcmp(s, ane_dtype_mil_name((ane_dtype)d))) {
            *out = (ane_dtype)d;
            return ANE_OK;
        }
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "",
                 ane_dtype_mil_name((ane_dtype)d));
    }
    return ane_infer_fail(in, ANE_ERR_INVALID, "'%s' must be one of %s, got \"%.40s\"", name,
                          list, s);
}

ane_status ane__want_one_of(ane_infer *in, const char *name, const char *const *names) {
    const char *s = ane_op_str(in->op, name, names[0]);
    char list[160] = "";
    for (int i = 0; names[i]; i++) {
        if (!strcmp(s, names[i])) return ANE_OK;
        size_t n = strlen(list);
        snprintf(list + n, sizeof list - n, "%s%s", n ? ", " : "", names[i]);
    }
    return ane_infer_fail(in, ANE_ERR_INVALID, "'%s' must be one of %s, got \"%.40s\"", name,
                          list, s);
}

/* Shapes of element-wise ops, activations, cast and select. */
#include "ops_fn.h"

#include <math.h>

/* Scalars among the constant parameters that many of these ops take. */
static ane_status scalars(ane_infer *in) {
    static const char *const names[] = {"alpha", "beta", "epsilon"};
    for (size_t i = 0; i < 3; i++) {
        if (ane_op_param_index(in->op->row, names[i]) < 0) continue;
        ane_status st = ane__want_scalar(in, names[i]);
        if (st) return st;
    }
    return ANE_OK;
}

ane_status ane__infer_unary(ane_infer *in) {
    ane_status st = scalars(in);
    return st ? st : ane_infer_same(in, 0, ane__in_type(in, "x"));
}

ane_status ane__infer_identity(ane_infer *in) {
    return ane_infer_same(in, 0, ane__in_type(in, "x"));
}

ane_status ane__infer_const(ane_infer *in) {
    return ane_infer_fail(in, ANE_ERR_INVALID, "is made from its value, not from arguments");
}

static ane_status broadcast(ane_infer *in, bool compare) {
    const ane_type *x = ane__in_type(in, "x"), *y = ane__in_type(in, "y");
    int rank;
    int64_t dims[ANE_MAX_RANK];
    ane_status st = ane_infer_broadcast(in, x, y, &rank, dims);
    return st ? st : ane_infer_set(in, 0, compare ? ANE_BOOL : x->dtype, rank, dims);
}

ane_status ane__infer_binary(ane_infer *in) { return broadcast(in, false); }
ane_status ane__infer_compare(ane_infer *in) { return broadcast(in, true); }

ane_status ane__infer_real_div(ane_infer *in) {
    ane_status st = broadcast(in, false);
    if (!st && ane__in_type(in, "x")->dtype == ANE_I32)
        ane_program_warn(in->program, in->op->line, in->op->column,
                         "real_div of int32 keeps int32: the quotient is truncated; cast to "
                         "fp32 first, or use floor_div");
    return st;
}

ane_status ane__infer_pow(ane_infer *in) {
    const ane_const *y = ane_op_const(in->op, "y");
    if (y && y->data && y->type->dtype == ANE_I32)
        for (int64_t i = 0, n = ane_type_count(y->type); i < n; i++)
            if (ane_const_i64(y, i) < 0)
                return ane_infer_fail(in, ANE_ERR_INVALID,
                                      "an int32 power cannot have the exponent %lld",
                                      (long long)ane_const_i64(y, i));
    return broadcast(in, false);
}

ane_status ane__infer_select(ane_infer *in) {
    const ane_type *c = ane__in_type(in, "cond"), *a = ane__in_type(in, "a"),
                   *b = ane__in_type(in, "b");
    ane_type ab = *a;
    int rank;
    int64_t dims[ANE_MAX_RANK];
    ane_status st = ane_infer_broadcast(in, a, b, &ab.rank, ab.dims);
    if (!st) st = ane_infer_broadcast(in, c, &ab, &rank, dims);
    return st ? st : ane_infer_set(in, 0, a->dtype, rank, dims);
}

ane_status ane__infer_clip(ane_infer *in) {
    ane_status st = scalars(in);
    if (st) return st;
    double lo = ane_op_f64(in->op, "alpha", NAN), hi = ane_op_f64(in->op, "beta", NAN);
    if (in->opset >= 17 && lo >= hi)
        return ane_infer_fail(in, ANE_ERR_INVALID,
                              "'alpha' must be less than 'beta', got %g and %g", lo, hi);
    return ane_infer_same(in, 0, ane__in_type(in, "x"));
}

ane_status ane__infer_cast(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    ane_dtype d;
    uint32_t allowed = in->op->row->opset >= 17 ? ANE__SET_A : ANE__SET_FIB;
    ane_status st = ane__want_dtype(in, "dtype", allowed, &d);
    return st ? st : ane_infer_set(in, 0, d, x->rank, x->dims);
}

ane_status ane__infer_gelu(ane_infer *in) {
    static const char *const modes[] = {"EXACT", "TANH_APPROXIMATION",
                                        "SIGMOID_APPROXIMATION", NULL};
    ane_status st = ane__want_one_of(in, "mode", modes);
    return st ? st : ane_infer_same(in, 0, ane__in_type(in, "x"));
}

ane_status ane__infer_softmax(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int axis;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", -1), x->rank,
                                   &axis);
    return st ? st : ane_infer_same(in, 0, x);
}

/* Per-channel parameters: a vector as long as dim 1, or one element for all. */
static ane_status per_channel(ane_infer *in, const char *name) {
    const ane_type *x = ane__in_type(in, "x"), *a = ane__in_type(in, name);
    ane_status st = ane__want_rank(in, name, 1, 1);
    if (st || a->dims[0] == 1 || ane__dim_fits(a->dims[0], x->dims[1])) return st;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must have one element per channel (%lld), "
                          "got %lld", name, (long long)x->dims[1], (long long)a->dims[0]);
}

ane_status ane__infer_prelu(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    ane_status st = ane__want_rank(in, "x", 3, 5);
    if (!st) st = per_channel(in, "alpha");
    if (st) return st;
    const ane_const *a = ane_op_const(in->op, "alpha");
    if (a && a->data && x->rank != 4)
        for (int64_t i = 1, n = ane_type_count(a->type); i < n; i++)
            if (fabs(ane_const_f64(a, i) - ane_const_f64(a, 0)) > 1e-5)
                return ane_infer_fail(in, ANE_ERR_INVALID, "with an x of rank %d all values "
                                      "of 'alpha' must be equal", x->rank);
    return ane_infer_same(in, 0, x);
}

ane_status ane__infer_softplus_parametric(ane_infer *in) {
    ane_status st = ane__want_rank(in, "x", 3, ANE_MAX_RANK);
    if (!st) st = per_channel(in, "alpha");
    if (!st) st = per_channel(in, "beta");
    return st ? st : ane_infer_same(in, 0, ane__in_type(in, "x"));
}

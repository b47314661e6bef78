/* Shapes of ops that make tensors: fills, ranges, random numbers, shape itself. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

/* result 0 = dtype with the dims that int vector `name` holds. */
static ane_status shaped(ane_infer *in, const char *name, ane_dtype dtype) {
    int rank;
    int64_t dims[ANE_MAX_RANK];
    bool known;
    ane_status st = ane__want_vector_length(in, name, &rank);
    if (!st) st = ane__want_ints(in, name, rank, dims, &known);
    if (st) return st;
    for (int i = 0; i < rank; i++) {
        if (!known) dims[i] = ANE_DIM_ANY;
        else if (dims[i] < 0)
            return ane_infer_fail(in, ANE_ERR_INVALID, "%s[%d] is %lld", name, i,
                                  (long long)dims[i]);
    }
    return ane_infer_set(in, 0, dtype, rank, dims);
}

ane_status ane__infer_fill(ane_infer *in) {
    ane_status st = ane__want_scalar(in, "value");
    return st ? st : shaped(in, "shape", ane__in_dtype(in, "value"));
}

ane_status ane__infer_fill_like(ane_infer *in) {
    const ane_type *r = ane__in_type(in, "ref_tensor");
    ane_status st = ane__want_scalar(in, "value");
    return st ? st : ane_infer_set(in, 0, ane__in_dtype(in, "value"), r->rank, r->dims);
}

ane_status ane__infer_shape(ane_infer *in) {
    int64_t rank = ane__in_type(in, "x")->rank;
    return ane_infer_set(in, 0, ANE_I32, 1, &rank);
}

ane_status ane__infer_non_zero(ane_infer *in) {
    int64_t dims[2] = {ANE_DIM_ANY, ane__in_type(in, "x")->rank};
    return ane_infer_set(in, 0, ANE_I32, 2, dims);
}

ane_status ane__infer_range_1d(ane_infer *in) {
    static const char *const names[] = {"start", "end", "step"};
    ane_status st = ANE_OK;
    double v[3];
    bool known = true;
    for (int i = 0; i < 3 && !st; i++) {
        st = ane__want_scalar(in, names[i]);
        v[i] = ane_op_f64(in->op, names[i], NAN);
        known = known && v[i] == v[i];
    }
    if (st) return st;
    int64_t n = ANE_DIM_ANY;
    if (known) {
        if (v[2] == 0) return ane_infer_fail(in, ANE_ERR_INVALID, "'step' is 0");
        double len = ceil((v[1] - v[0]) / v[2]);
        if (!(len < 0x1p40))
            return ane_infer_fail(in, ANE_ERR_SHAPE, "%g elements from %g to %g by %g", len,
                                  v[0], v[1], v[2]);
        n = len > 0 ? (int64_t)len : 0;
    }
    return ane_infer_set(in, 0, ane__in_type(in, "start")->dtype, 1, &n);
}

ane_status ane__infer_cumsum(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t axis = ane_op_i64(in->op, "axis", 0);
    if (axis < -1 || axis >= x->rank)
        return ane_infer_fail(in, ANE_ERR_INDEX, "'axis' is %lld; -1 to %d are possible",
                              (long long)axis, x->rank - 1);
    return ane_infer_same(in, 0, x);
}

ane_status ane__infer_one_hot(ane_infer *in) {
    const ane_type *idx = ane__in_type(in, "indices");
    int64_t size = ane_op_i64(in->op, "one_hot_vector_size", ANE_DIM_ANY), dims[ANE_MAX_RANK];
    int axis;
    if (idx->rank == ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'indices' has rank %d; the result would have "
                              "one more", idx->rank);
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", -1), idx->rank + 1,
                                   &axis);
    if (!st) st = ane__want_scalar(in, "one_hot_vector_size");
    if (!st) st = ane__want_scalar(in, "on_value");
    if (!st) st = ane__want_scalar(in, "off_value");
    if (st) return st;
    if (ane_op_const(in->op, "one_hot_vector_size") && size < 0)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'one_hot_vector_size' is %lld",
                              (long long)size);
    for (int i = 0, k = 0; i <= idx->rank; i++) dims[i] = i == axis ? size : idx->dims[k++];
    ane_dtype dtype = ane__given(in->op, "on_value") || !ane__given(in->op, "off_value")
                          ? ane__in_dtype(in, "on_value") : ane__in_dtype(in, "off_value");
    return ane_infer_set(in, 0, dtype, idx->rank + 1, dims);
}

/* The dtype of the float parameters: of the first one given. */
static ane_status random_shape(ane_infer *in, const char *a, const char *b) {
    ane_status st = ane__want_scalar(in, a);
    if (!st && b) st = ane__want_scalar(in, b);
    if (st) return st;
    const char *from = b && !ane__given(in->op, a) && ane__given(in->op, b) ? b : a;
    return shaped(in, "shape", ane__in_dtype(in, from));
}

ane_status ane__infer_random_uniform(ane_infer *in) { return random_shape(in, "low", "high"); }
ane_status ane__infer_random_normal(ane_infer *in) {
    return random_shape(in, "mean", "stddev");
}
ane_status ane__infer_random_bernoulli(ane_infer *in) { return random_shape(in, "prob", NULL); }

ane_status ane__infer_random_categorical(ane_infer *in) {
    static const char *const modes[] = {"logits", "probs", NULL};
    const ane_type *x = ane__in_type(in, "x");
    ane_status st = ane__want_rank(in, "x", 1, ANE_MAX_RANK);
    if (!st) st = ane__want_one_of(in, "mode", modes);
    if (st) return st;
    int64_t dims[ANE_MAX_RANK], size = ane_op_i64(in->op, "size", 1);
    if (size < 0)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'size' is %lld", (long long)size);
    memcpy(dims, x->dims, sizeof dims);
    dims[x->rank - 1] = size;
    return ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

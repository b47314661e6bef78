/* Shapes of reductions and normalisations. */
#include "ops_fn.h"

#include <string.h>

/* Marks the axes of a constant parameter; all when absent. Duplicates are an error. */
static ane_status axes_set(ane_infer *in, int rank, bool *set) {
    int64_t axes[ANE_MAX_RANK];
    int n = ane_op_ints(in->op, "axes", axes, ANE_MAX_RANK);
    for (int i = 0; i < rank; i++) set[i] = n < 0;
    if (n > rank)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'axes' has %d entries, the rank of 'x' is "
                              "%d", n, rank);
    for (int i = 0; i < n; i++) {
        int a;
        ane_status st = ane_infer_axis(in, "axes", axes[i], rank, &a);
        if (st) return st;
        if (set[a])
            return ane_infer_fail(in, ANE_ERR_INVALID, "'axes' names dimension %d twice", a);
        set[a] = true;
    }
    return ANE_OK;
}

ane_status ane__infer_reduce(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    bool keep = ane_op_bool(in->op, "keep_dims", false), set[ANE_MAX_RANK];
    ane_status st = axes_set(in, x->rank, set);
    if (st) return st;
    int64_t dims[ANE_MAX_RANK];
    int r = 0;
    for (int i = 0; i < x->rank; i++) {
        if (!set[i]) dims[r++] = x->dims[i];
        else if (keep) dims[r++] = 1;
    }
    return ane_infer_set(in, 0, x->dtype, r, dims);
}

ane_status ane__infer_reduce_arg(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    bool keep = ane_op_bool(in->op, "keep_dims", false);
    ane_dtype dtype = ANE_I32;
    int axis;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", -1), x->rank,
                                   &axis);
    if (!st && in->op->row->opset >= 17)
        st = ane__want_dtype(in, "output_dtype", ANE__DT(ANE_I32) | ANE__DT(ANE_U16), &dtype);
    if (st) return st;
    int64_t dims[ANE_MAX_RANK];
    int r = 0;
    for (int i = 0; i < x->rank; i++) {
        if (i != axis) dims[r++] = x->dims[i];
        else if (keep) dims[r++] = 1;
    }
    return ane_infer_set(in, 0, dtype, r, dims);
}

ane_status ane__infer_layer_norm(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    bool set[ANE_MAX_RANK];
    ane_status st = axes_set(in, x->rank, set);
    if (!st) st = ane__want_scalar(in, "epsilon");
    if (st) return st;
    int64_t want[ANE_MAX_RANK];
    int r = 0;
    for (int i = 0; i < x->rank; i++)
        if (set[i]) want[r++] = x->dims[i];
    static const char *const names[] = {"gamma", "beta"};
    for (int k = 0; k < 2; k++) {
        const ane_type *g = ane__in_type(in, names[k]);
        if (!g) continue;
        bool ok = g->rank == r;
        for (int i = 0; ok && i < r; i++) ok = ane__dim_fits(g->dims[i], want[i]);
        char text[ANE_TYPE_TEXT], shape[ANE_DIMS_TEXT];
        if (!ok)
            return ane_infer_fail(in, ANE_ERR_SHAPE,
                                  "'%s' must have the shape of the normalised axes, %s, "
                                  "got %s", names[k],
                                  ane__dims_text(r, want, shape, sizeof shape),
                                  ane_type_text(g, text, sizeof text));
    }
    return ane_infer_same(in, 0, x);
}

static ane_status channel_vectors(ane_infer *in, int lo, int hi) {
    static const char *const names[] = {"gamma", "beta", "mean", "variance"};
    const ane_type *x = ane__in_type(in, "x");
    ane_status st = ane__want_rank(in, "x", lo, hi);
    for (int i = 0; !st && i < 4; i++)
        if (ane_op_param_index(in->op->row, names[i]) >= 0)
            st = ane__want_vector(in, names[i], x->dims[1]);
    if (!st) st = ane__want_scalar(in, "epsilon");
    return st ? st : ane_infer_same(in, 0, x);
}

ane_status ane__infer_batch_norm(ane_infer *in) { return channel_vectors(in, 3, 5); }
ane_status ane__infer_instance_norm(ane_infer *in) { return channel_vectors(in, 3, 4); }

ane_status ane__infer_l2_norm(ane_infer *in) {
    ane_status st = ane__want_rank(in, "x", 3, ANE_MAX_RANK);
    if (!st) st = ane__want_scalar(in, "epsilon");
    return st ? st : ane_infer_same(in, 0, ane__in_type(in, "x"));
}

ane_status ane__infer_local_response_norm(ane_infer *in) {
    static const char *const names[] = {"size", "alpha", "beta", "k"};
    ane_status st = ane__want_rank(in, "x", 3, 5);
    for (int i = 0; !st && i < 4; i++) st = ane__want_scalar(in, names[i]);
    if (!st && ane_op_i64(in->op, "size", 1) < 1)
        st = ane_infer_fail(in, ANE_ERR_INVALID, "'size' must be 1 or more, got %lld",
                            (long long)ane_op_i64(in->op, "size", 1));
    return st ? st : ane_infer_same(in, 0, ane__in_type(in, "x"));
}

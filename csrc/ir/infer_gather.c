/* Shapes of gathering, scattering and sorting. */
#include "ops_fn.h"

#include <string.h>

static ane_status bad_shapes(ane_infer *in, const char *want, const char *a, const char *b,
                             const char *c) {
    const char *names[3] = {a, b, c};
    char text[3][ANE_TYPE_TEXT] = {"", "", ""};
    for (int i = 0; i < 3; i++)
        if (names[i]) ane_type_text(ane__in_type(in, names[i]), text[i], sizeof text[i]);
    return ane_infer_fail(in, ANE_ERR_SHAPE, "%s; got '%s' %s, '%s' %s%s%s%s%s", want, a,
                          text[0], b, text[1], c ? ", '" : "", c ? c : "", c ? "' " : "",
                          text[2]);
}

static ane_status too_many(ane_infer *in, int rank) {
    return ane_infer_fail(in, ANE_ERR_SHAPE, "the result would have rank %d; at most %d is "
                          "possible", rank, ANE_MAX_RANK);
}

/* A constant index outside the dimension is known to be wrong. */
static ane_status check_indices(ane_infer *in, int64_t dim) {
    const ane_const *c = ane_op_const(in->op, "indices");
    if (!c || !c->data || dim < 0) return ANE_OK;
    bool modern = in->op->row->opset >= 17;
    if (modern && !ane_op_bool(in->op, "validate_indices", false)) return ANE_OK;
    for (int64_t i = 0, n = ane_type_count(c->type); i < n; i++) {
        int64_t k = ane_const_i64(c, i);
        if (k >= dim || k < (modern ? 0 : -dim))
            return ane_infer_fail(in, ANE_ERR_INDEX, "index %lld is out of range for a "
                                  "dimension of %lld", (long long)k, (long long)dim);
    }
    return ANE_OK;
}

static ane_status batch_dims(ane_infer *in, const ane_type *x, const ane_type *idx, int *out) {
    int64_t b = ane_op_param_index(in->op->row, "batch_dims") < 0
                    ? 0 : ane_op_i64(in->op, "batch_dims", 0);
    if (b < 0 || b > x->rank || b > idx->rank)
        return ane_infer_fail(in, ANE_ERR_INDEX, "'batch_dims' is %lld; 'x' has rank %d, "
                              "'indices' has rank %d", (long long)b, x->rank, idx->rank);
    for (int i = 0; i < b; i++)
        if (!ane__dim_fits(x->dims[i], idx->dims[i]))
            return bad_shapes(in, "the batch dimensions of 'x' and 'indices' must be equal",
                              "x", "indices", NULL);
    *out = (int)b;
    return ANE_OK;
}

ane_status ane__infer_gather(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x"), *idx = ane__in_type(in, "indices");
    int axis, b, r = 0;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", 0), x->rank, &axis);
    if (!st) st = batch_dims(in, x, idx, &b);
    if (st) return st;
    if (b > axis)
        return ane_infer_fail(in, ANE_ERR_INDEX, "'batch_dims' is %d, more than 'axis' %d", b,
                              axis);
    if (x->rank - 1 + idx->rank - b > ANE_MAX_RANK)
        return too_many(in, x->rank - 1 + idx->rank - b);
    int64_t dims[ANE_MAX_RANK];
    for (int i = 0; i < axis; i++) dims[r++] = x->dims[i];
    for (int i = b; i < idx->rank; i++) dims[r++] = idx->dims[i];
    for (int i = axis + 1; i < x->rank; i++) dims[r++] = x->dims[i];
    st = check_indices(in, x->dims[axis]);
    return st ? st : ane_infer_set(in, 0, x->dtype, r, dims);
}

/* indices like x but for the axis; returns the axis. */
static ane_status along_axis(ane_infer *in, const char *data, int *axis) {
    const ane_type *x = ane__in_type(in, data), *idx = ane__in_type(in, "indices");
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", 0), x->rank, axis);
    if (st) return st;
    bool ok = idx->rank == x->rank;
    for (int i = 0; ok && i < x->rank; i++)
        ok = i == *axis || ane__dim_fits(x->dims[i], idx->dims[i]);
    if (!ok)
        return bad_shapes(in, "'indices' must equal the data's shape except along the axis",
                          data, "indices", NULL);
    return check_indices(in, x->dims[*axis]);
}

ane_status ane__infer_gather_along_axis(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x"), *idx = ane__in_type(in, "indices");
    int axis;
    ane_status st = along_axis(in, "x", &axis);
    return st ? st : ane_infer_set(in, 0, x->dtype, idx->rank, idx->dims);
}

/* Last dim of indices: how many dims one index picks. */
static ane_status index_width(ane_infer *in, const ane_type *idx, int most, int *k) {
    if (idx->rank < 1 || idx->dims[idx->rank - 1] < 0)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "the last dimension of 'indices' must exist "
                              "and be known");
    if (idx->dims[idx->rank - 1] > most)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'indices' holds tuples of %lld, the data "
                              "has %d dimensions for them",
                              (long long)idx->dims[idx->rank - 1], most);
    *k = (int)idx->dims[idx->rank - 1];
    return ANE_OK;
}

ane_status ane__infer_gather_nd(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x"), *idx = ane__in_type(in, "indices");
    int b, k = 0, r = 0;
    ane_status st = batch_dims(in, x, idx, &b);
    if (!st) st = index_width(in, idx, x->rank - b, &k);
    if (st) return st;
    if (b > idx->rank - 1)
        return ane_infer_fail(in, ANE_ERR_INDEX, "'batch_dims' is %d; 'indices' has rank %d", b,
                              idx->rank);
    int rank = idx->rank - 1 + x->rank - b - k;
    if (rank > ANE_MAX_RANK) return too_many(in, rank);
    int64_t dims[ANE_MAX_RANK];
    for (int i = 0; i < idx->rank - 1; i++) dims[r++] = idx->dims[i];
    for (int i = b + k; i < x->rank; i++) dims[r++] = x->dims[i];
    return ane_infer_set(in, 0, x->dtype, r, dims);
}

static ane_status scatter_mode(ane_infer *in) {
    static const char *const modes[] = {"add", "update", "sub", "mul", "div", "max", "min",
                                        NULL};
    if (!ane__given(in->op, "mode"))
        ane_program_warn(in->program, in->op->line, in->op->column,
                         "%s without 'mode': \"add\" is taken, Core ML's documentation also "
                         "names \"update\"; give it", in->op->row->name);
    return ane__want_one_of(in, "mode", modes);
}

ane_status ane__infer_scatter(ane_infer *in) {
    const ane_type *d = ane__in_type(in, "data"), *idx = ane__in_type(in, "indices"),
                   *u = ane__in_type(in, "updates");
    int axis;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", 0), d->rank, &axis);
    if (!st) st = scatter_mode(in);
    if (st) return st;
    bool ok = u->rank == d->rank - 1 + idx->rank;
    for (int i = 0, k = 0; ok && i < d->rank; i++) {
        if (i != axis) ok = ane__dim_fits(u->dims[k++], d->dims[i]);
        else
            for (int j = 0; ok && j < idx->rank; j++)
                ok = ane__dim_fits(u->dims[k++], idx->dims[j]);
    }
    if (!ok)
        return bad_shapes(in, "'updates' must have the shape of 'data' with the axis replaced "
                          "by the shape of 'indices'", "data", "indices", "updates");
    st = check_indices(in, d->dims[axis]);
    return st ? st : ane_infer_same(in, 0, d);
}

ane_status ane__infer_scatter_along_axis(ane_infer *in) {
    const ane_type *idx = ane__in_type(in, "indices"), *u = ane__in_type(in, "updates");
    int axis;
    ane_status st = along_axis(in, "data", &axis);
    if (!st) st = scatter_mode(in);
    if (st) return st;
    bool ok = u->rank == idx->rank;
    for (int i = 0; ok && i < u->rank; i++) ok = ane__dim_fits(u->dims[i], idx->dims[i]);
    if (!ok)
        return bad_shapes(in, "'updates' must have the shape of 'indices'", "data", "indices",
                          "updates");
    return ane_infer_same(in, 0, ane__in_type(in, "data"));
}

ane_status ane__infer_scatter_nd(ane_infer *in) {
    const ane_type *d = ane__in_type(in, "data"), *idx = ane__in_type(in, "indices"),
                   *u = ane__in_type(in, "updates");
    int k = 0;
    ane_status st = index_width(in, idx, d->rank, &k);
    if (!st) st = scatter_mode(in);
    if (st) return st;
    bool ok = u->rank == idx->rank - 1 + d->rank - k;
    for (int i = 0; ok && i < u->rank; i++)
        ok = ane__dim_fits(u->dims[i], i < idx->rank - 1 ? idx->dims[i]
                                                         : d->dims[k + i - (idx->rank - 1)]);
    if (!ok)
        return bad_shapes(in, "'updates' must have shape indices[:-1] + data[K:]", "data",
                          "indices", "updates");
    return ane_infer_same(in, 0, d);
}

/* ---------------------------------------------------------------- sorting */

ane_status ane__infer_topk(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int opset = in->op->row->opset, axis;
    ane_dtype index_type = ANE_I32;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", -1), x->rank, &axis);
    if (!st) st = ane__want_scalar(in, "k");
    if (!st && opset >= 17)
        st = ane__want_dtype(in, "output_indices_dtype", ANE__DT(ANE_I32) | ANE__DT(ANE_U16) |
                             ANE__DT(ANE_I16) | ANE__DT(ANE_I8) | ANE__DT(ANE_U8),
                             &index_type);
    if (st) return st;
    int64_t d = x->dims[axis], k = ane_op_i64(in->op, "k", ANE_DIM_ANY), dims[ANE_MAX_RANK];
    bool known = ane_op_const(in->op, "k") != NULL;
    if (known && k == -1 && opset >= 17) k = d;
    else if (known && (k < 0 || (d >= 0 && k > d)))
        return ane_infer_fail(in, ANE_ERR_INVALID, "'k' is %lld, dimension %d is %lld",
                              (long long)k, axis, (long long)d);
    memcpy(dims, x->dims, sizeof dims);
    dims[axis] = known ? k : ANE_DIM_ANY;
    bool both = opset < 16 || ane_op_bool(in->op, "return_indices", true);
    in->n_results = both ? 2 : 1;
    st = ane_infer_set(in, 0, x->dtype, x->rank, dims);
    return st || !both ? st : ane_infer_set(in, 1, index_type, x->rank, dims);
}

ane_status ane__infer_argsort(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int axis;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", -1), x->rank, &axis);
    return st ? st : ane_infer_set(in, 0, ANE_I32, x->rank, x->dims);
}

ane_status ane__infer_non_maximum_suppression(ane_infer *in) {
    const ane_type *boxes = ane__in_type(in, "boxes"), *scores = ane__in_type(in, "scores");
    bool modern = in->op->row->opset >= 17;
    int box = modern ? 1 : 2, each = modern ? 2 : 1;    /* dims of 4 and of B in boxes */
    bool ok = boxes->rank == 3 && scores->rank == 3 && ane__dim_fits(boxes->dims[box], 4) &&
              ane__dim_fits(boxes->dims[0], scores->dims[0]) &&
              ane__dim_fits(boxes->dims[each], scores->dims[each]);
    if (!ok)
        return bad_shapes(in, modern ? "wants boxes [n, 4, B] and scores [n, K, B]"
                                     : "wants boxes [n, B, 4] and scores [n, B, K]",
                          "boxes", "scores", NULL);
    int64_t n = ane__dim_merge(boxes->dims[0], scores->dims[0]);
    int64_t k = scores->dims[modern ? 1 : 2], m = ane_op_i64(in->op, "max_boxes", 0);
    if (m < 0)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'max_boxes' is %lld", (long long)m);
    int64_t box_dims[3], score_dims[3];
    box_dims[0] = score_dims[0] = n;
    box_dims[each] = score_dims[each] = m;
    box_dims[box] = 4;
    score_dims[box] = k;
    ane_status st = ane_infer_set(in, 0, boxes->dtype, 3, box_dims);
    if (!st) st = ane_infer_set(in, 1, scores->dtype, 3, score_dims);
    int64_t index_dims[2] = {n, m};
    if (!st) st = ane_infer_set(in, 2, ANE_I32, 2, index_dims);
    in->n_results = modern ? 3 : 4;
    if (!st && !modern) st = ane_infer_set(in, 3, ANE_I32, 1, &n);
    return st;
}

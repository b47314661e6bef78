/* Shapes of ops that rename elements without choosing among them: reshape, transpose,
 * axes in and out, concatenation, splitting, tiling, padding. */
#include "ops_fn.h"

#include <string.h>

/* Fills the one -1 of dims from x's element count. Symbols that stand on both sides
 * cancel, so [B, 4, S] -> [B, -1] finds nothing but [S, 1] -> [-1] finds S. */
static ane_status fill_gap(ane_infer *in, const ane_type *x, int rank, int64_t *dims,
                           int gap) {
    int64_t have = 1, want = 1, left[ANE_MAX_RANK];
    int n_left = 0;
    ane_status st = ANE_OK;
    for (int i = 0; i < x->rank && !st; i++) {
        if (x->dims[i] < 0) left[n_left++] = x->dims[i];
        else st = ane__dim_mul(in, have, x->dims[i], &have);
    }
    bool any = false;
    for (int i = 0; i < rank && !st; i++) {
        if (i == gap) continue;
        if (dims[i] >= 0) {
            st = ane__dim_mul(in, want, dims[i], &want);
            continue;
        }
        int k = 0;
        while (k < n_left && !ane_dim_same(left[k], dims[i])) k++;
        if (k < n_left) left[k] = left[--n_left];
        else any = true;
    }
    if (st) return st;
    char a[ANE_TYPE_TEXT], b[ANE_DIMS_TEXT];
    if (gap < 0) {
        if (any || n_left || have == want) return ANE_OK;
        return ane_infer_fail(in, ANE_ERR_SHAPE, "%s has %lld elements, shape %s has %lld",
                              ane_type_text(x, a, sizeof a), (long long)have,
                              ane__dims_text(rank, dims, b, sizeof b), (long long)want);
    }
    dims[gap] = ANE_DIM_ANY;
    if (any || n_left > 1) return ANE_OK;
    if (n_left == 1) {
        if (have == want) dims[gap] = left[0];
        return ANE_OK;
    }
    if (want == 0 || have % want)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "%s cannot fill shape %s: %lld elements, not "
                              "a multiple of %lld", ane_type_text(x, a, sizeof a),
                              ane__dims_text(rank, dims, b, sizeof b), (long long)have,
                              (long long)want);
    dims[gap] = have / want;
    return ANE_OK;
}

ane_status ane__want_vector_length(ane_infer *in, const char *name, int *n) {
    const ane_type *t = ane__in_type(in, name);
    int64_t len = t->rank == 0 ? 1 : t->dims[0];
    if (len < 0)
        return ane_infer_fail(in, ANE_ERR_UNSUPPORTED, "'%s' has a variable length, so the "
                              "rank of the result is unknown", name);
    if (len > ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' has %lld elements; tensors have at "
                              "most %d dimensions", name, (long long)len, ANE_MAX_RANK);
    *n = (int)len;
    return ANE_OK;
}

ane_status ane__infer_reshape(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int rank, gap = -1;
    int64_t dims[ANE_MAX_RANK];
    bool known;
    ane_status st = ane__want_vector_length(in, "shape", &rank);
    if (!st) st = ane__want_ints(in, "shape", rank, dims, &known);
    if (st) return st;
    if (!known) {
        for (int i = 0; i < rank; i++) dims[i] = ANE_DIM_ANY;
        return ane_infer_set(in, 0, x->dtype, rank, dims);
    }
    for (int i = 0; i < rank; i++) {
        if (dims[i] == 0) {
            int from = i + (in->op->row->opset >= 17 ? x->rank - rank : 0);
            if (in->op->row->opset < 17 && rank != x->rank)
                return ane_infer_fail(in, ANE_ERR_SHAPE, "a 0 in 'shape' needs %d entries, "
                                      "as many as 'x' has dimensions; got %d", x->rank,
                                      rank);
            dims[i] = from >= 0 ? x->dims[from] : 1;
        } else if (dims[i] == -1) {
            if (gap >= 0)
                return ane_infer_fail(in, ANE_ERR_INVALID, "'shape' has more than one -1");
            gap = i;
        } else if (dims[i] < 0) {
            return ane_infer_fail(in, ANE_ERR_INVALID, "'shape' has %lld",
                                  (long long)dims[i]);
        }
    }
    st = fill_gap(in, x, rank, dims, gap);
    return st ? st : ane_infer_set(in, 0, x->dtype, rank, dims);
}

ane_status ane__infer_reshape_like(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    const ane_arg *ref = ane_op_arg(in->op, "ref_tensors");
    int64_t b[16], e[16], m[16], dims[ANE_MAX_RANK];
    int n = ref ? ref->n : 0, rank = 0;
    int nb = ane_op_ints(in->op, "begins", b, 16), ne = ane_op_ints(in->op, "ends", e, 16),
        nm = ane_op_ints(in->op, "end_masks", m, 16);
    if (n > 16 || nb != n || ne != n || nm != n)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'begins', 'ends' and 'end_masks' must "
                              "have one constant for each of the %d 'ref_tensors' (at most "
                              "16), got %d, %d, %d", n, nb, ne, nm);
    for (int i = 0; i < n; i++) {
        const ane_type *r = ref->v[i]->type;
        if (r->kind != ANE_T_TENSOR)
            return ane_infer_fail(in, ANE_ERR_DTYPE, "'ref_tensors' must be tensors");
        int64_t lo = b[i] < 0 ? b[i] + r->rank : b[i], hi = m[i] ? r->rank : e[i];
        if (hi < 0) hi += r->rank;
        if (lo < 0 || hi > r->rank || lo > hi || rank + hi - lo > ANE_MAX_RANK)
            return ane_infer_fail(in, ANE_ERR_INDEX, "dimensions %lld to %lld of ref_tensors"
                                  "[%d], which has %d", (long long)lo, (long long)hi, i,
                                  r->rank);
        for (; lo < hi; lo++) dims[rank++] = r->dims[lo];
    }
    ane_status st = fill_gap(in, x, rank, dims, -1);
    return st ? st : ane_infer_set(in, 0, x->dtype, rank, dims);
}

ane_status ane__infer_transpose(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t perm[ANE_MAX_RANK], dims[ANE_MAX_RANK];
    bool known, seen[ANE_MAX_RANK] = {false};
    ane_status st = ane__want_ints(in, "perm", x->rank, perm, &known);
    if (st) return st;
    for (int i = 0; i < x->rank; i++) {
        int p = 0;
        if (!known) {
            dims[i] = ANE_DIM_ANY;
            continue;
        }
        st = ane_infer_axis(in, "perm", perm[i], x->rank, &p);
        if (st) return st;
        if (seen[p])
            return ane_infer_fail(in, ANE_ERR_INVALID, "'perm' names dimension %d twice", p);
        seen[p] = true;
        dims[i] = x->dims[p];
    }
    return ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

ane_status ane__infer_expand_dims(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t axes[ANE_MAX_RANK], dims[ANE_MAX_RANK];
    bool set[ANE_MAX_RANK] = {false};
    int n = ane_op_ints(in->op, "axes", axes, ANE_MAX_RANK);
    if (n < 0 || x->rank + n > ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "%d more dimensions than the %d of 'x'; at "
                              "most %d are possible", n, x->rank, ANE_MAX_RANK);
    int rank = x->rank + n, from = 0;
    for (int i = 0; i < n; i++) {
        int a;
        ane_status st = ane_infer_axis(in, "axes", axes[i], rank, &a);
        if (st) return st;
        if (set[a])
            return ane_infer_fail(in, ANE_ERR_INVALID, "'axes' names dimension %d twice", a);
        set[a] = true;
    }
    for (int i = 0; i < rank; i++) dims[i] = set[i] ? 1 : x->dims[from++];
    return ane_infer_set(in, 0, x->dtype, rank, dims);
}

ane_status ane__infer_squeeze(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t axes[ANE_MAX_RANK], dims[ANE_MAX_RANK];
    bool set[ANE_MAX_RANK];
    int n = ane_op_ints(in->op, "axes", axes, ANE_MAX_RANK), rank = 0;
    for (int i = 0; i < x->rank; i++) set[i] = n < 0;
    if (n > x->rank)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'axes' has %d entries, the rank of 'x' is "
                              "%d", n, x->rank);
    for (int i = 0; i < n; i++) {
        int a;
        ane_status st = ane_infer_axis(in, "axes", axes[i], x->rank, &a);
        if (st) return st;
        set[a] = true;
    }
    for (int i = 0; i < x->rank; i++)
        if (!set[i] || x->dims[i] != 1) dims[rank++] = x->dims[i];
    return ane_infer_set(in, 0, x->dtype, rank, dims);
}

ane_status ane__infer_flatten2d(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t axis = ane_op_i64(in->op, "axis", 1), dims[2] = {1, 1};
    if (axis < 0) axis += x->rank;
    if (axis < 0 || axis > x->rank)
        return ane_infer_fail(in, ANE_ERR_INDEX, "'axis' is %lld; the rank is %d",
                              (long long)ane_op_i64(in->op, "axis", 1), x->rank);
    ane_status st = ANE_OK;
    for (int i = 0; i < x->rank && !st; i++)
        st = ane__dim_mul(in, dims[i >= axis], x->dims[i], &dims[i >= axis]);
    return st ? st : ane_infer_set(in, 0, x->dtype, 2, dims);
}

/* ---------------------------------------------------------------- several tensors */

static ane_status same_ranks(ane_infer *in, const ane_arg *v) {
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    if (!v || !v->n) return ane_infer_fail(in, ANE_ERR_INVALID, "'values' is empty");
    for (int i = 1; i < v->n; i++)
        if (v->v[i]->type->rank != v->v[0]->type->rank)
            return ane_infer_fail(in, ANE_ERR_SHAPE, "'values' must have one rank: values[0] "
                                  "is %s, values[%d] is %s",
                                  ane_type_text(v->v[0]->type, a, sizeof a), i,
                                  ane_type_text(v->v[i]->type, b, sizeof b));
    return ANE_OK;
}

ane_status ane__infer_concat(ane_infer *in) {
    const ane_arg *v = ane_op_arg(in->op, "values");
    bool interleave = ane_op_bool(in->op, "interleave", false);
    ane_status st = same_ranks(in, v);
    if (st) return st;
    const ane_type *t = v->v[0]->type;
    int64_t dims[ANE_MAX_RANK], axis_arg = ane_op_i64(in->op, "axis", 0);
    int axis;
    if (t->rank == 0) {                 /* scalars make a vector */
        dims[0] = v->n;
        st = ane_infer_axis(in, "axis", axis_arg, 1, &axis);
        return st ? st : ane_infer_set(in, 0, t->dtype, 1, dims);
    }
    st = ane_infer_axis(in, "axis", axis_arg, t->rank, &axis);
    if (st) return st;
    memcpy(dims, t->dims, sizeof dims);
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    for (int i = 1; i < v->n; i++) {
        const ane_type *u = v->v[i]->type;
        for (int k = 0; k < t->rank; k++) {
            if (k == axis) continue;
            if (!ane__dim_fits(dims[k], u->dims[k]))
                return ane_infer_fail(in, ANE_ERR_SHAPE, "dimension %d differs: values[0] is "
                                      "%s, values[%d] is %s (axis %d)", k,
                                      ane_type_text(t, a, sizeof a), i,
                                      ane_type_text(u, b, sizeof b), axis);
            dims[k] = ane__dim_merge(dims[k], u->dims[k]);
        }
        if (interleave && !ane__dim_fits(t->dims[axis], u->dims[axis]))
            return ane_infer_fail(in, ANE_ERR_SHAPE, "interleave needs equal shapes: values[0] "
                                  "is %s, values[%d] is %s", ane_type_text(t, a, sizeof a), i,
                                  ane_type_text(u, b, sizeof b));
        st = ane__dim_add(in, dims[axis], u->dims[axis], &dims[axis]);
        if (st) return st;
    }
    return ane_infer_set(in, 0, t->dtype, t->rank, dims);
}

ane_status ane__infer_stack(ane_infer *in) {
    const ane_arg *v = ane_op_arg(in->op, "values");
    ane_status st = same_ranks(in, v);
    if (st) return st;
    const ane_type *t = v->v[0]->type;
    int axis;
    if (t->rank == ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "the result would have rank %d; at most %d "
                              "is possible", t->rank + 1, ANE_MAX_RANK);
    st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", 0), t->rank + 1, &axis);
    if (st) return st;
    int64_t in_dims[ANE_MAX_RANK], dims[ANE_MAX_RANK];
    memcpy(in_dims, t->dims, sizeof in_dims);
    for (int i = 1; i < v->n; i++)
        for (int k = 0; k < t->rank; k++) {
            char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
            const ane_type *u = v->v[i]->type;
            if (!ane__dim_fits(in_dims[k], u->dims[k]))
                return ane_infer_fail(in, ANE_ERR_SHAPE, "'values' must have one shape: "
                                      "values[0] is %s, values[%d] is %s",
                                      ane_type_text(t, a, sizeof a), i,
                                      ane_type_text(u, b, sizeof b));
            in_dims[k] = ane__dim_merge(in_dims[k], u->dims[k]);
        }
    for (int i = 0, k = 0; i <= t->rank; i++) dims[i] = i == axis ? v->n : in_dims[k++];
    return ane_infer_set(in, 0, t->dtype, t->rank + 1, dims);
}

ane_status ane__infer_split(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int axis;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", 0), x->rank, &axis);
    if (st) return st;
    int64_t sizes[ANE_MAX_RESULTS], dims[ANE_MAX_RANK], d = x->dims[axis];
    int64_t n = ane_op_i64(in->op, "num_splits", -1);
    int n_sizes = ane_op_ints(in->op, "split_sizes", sizes, ANE_MAX_RESULTS);
    if (n < 0 && n_sizes < 0)
        return ane_infer_fail(in, ANE_ERR_INVALID, "needs 'num_splits' or 'split_sizes'");
    if (n >= 0 && n_sizes >= 0 && n != n_sizes)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'num_splits' is %lld, 'split_sizes' has "
                              "%d entries", (long long)n, n_sizes);
    if (n_sizes >= 0) n = n_sizes;
    if (n < 1 || n > ANE_MAX_RESULTS)
        return ane_infer_fail(in, ANE_ERR_INVALID, "%lld results; 1 to %d are possible",
                              (long long)n, ANE_MAX_RESULTS);
    if (n_sizes < 0) {
        if (d >= 0 && d % n)
            return ane_infer_fail(in, ANE_ERR_SHAPE, "dimension %d of 'x' is %lld, which %lld "
                                  "parts do not divide", axis, (long long)d, (long long)n);
        for (int64_t i = 0; i < n; i++)
            sizes[i] = d >= 0 ? d / n : n == 1 ? d : ANE_DIM_ANY;
    } else {
        int64_t sum = 0;
        for (int64_t i = 0; i < n && !st; i++) {
            if (sizes[i] < 0)
                return ane_infer_fail(in, ANE_ERR_INVALID, "split_sizes[%lld] is %lld",
                                      (long long)i, (long long)sizes[i]);
            st = ane__dim_add(in, sum, sizes[i], &sum);
        }
        if (st) return st;
        if (!ane__dim_fits(sum, d))
            return ane_infer_fail(in, ANE_ERR_SHAPE, "'split_sizes' add up to %lld, dimension "
                                  "%d of 'x' is %lld", (long long)sum, axis, (long long)d);
    }
    memcpy(dims, x->dims, sizeof dims);
    in->n_results = (int)n;
    for (int64_t i = 0; i < n && !st; i++) {
        dims[axis] = sizes[i];
        st = ane_infer_set(in, (int)i, x->dtype, x->rank, dims);
    }
    return st;
}

ane_status ane__infer_tile(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t reps[ANE_MAX_RANK], dims[ANE_MAX_RANK];
    bool known;
    ane_status st = ane__want_ints(in, "reps", x->rank, reps, &known);
    for (int i = 0; i < x->rank && !st; i++) {
        if (!known) {
            dims[i] = ANE_DIM_ANY;
            continue;
        }
        if (reps[i] < 1)
            return ane_infer_fail(in, ANE_ERR_INVALID, "reps[%d] is %lld; it must be 1 or more",
                                  i, (long long)reps[i]);
        st = ane__dim_mul(in, x->dims[i], reps[i], &dims[i]);
    }
    return st ? st : ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

ane_status ane__infer_pad(ane_infer *in) {
    static const char *const modes[] = {"constant", "reflect", "replicate", NULL};
    const ane_type *x = ane__in_type(in, "x"), *p = ane__in_type(in, "pad");
    int64_t pad[2 * ANE_MAX_RANK], dims[ANE_MAX_RANK];
    int n = ane_op_ints(in->op, "pad", pad, 2 * ANE_MAX_RANK);
    ane_status st = ane__want_one_of(in, "mode", modes);
    if (!st) st = ane__want_scalar(in, "constant_val");
    if (st) return st;
    memcpy(dims, x->dims, sizeof dims);
    if (n < 0) {
        if (!ane__dim_fits(p->rank ? p->dims[0] : 1, 2 * x->rank))
            return ane_infer_fail(in, ANE_ERR_SHAPE, "a 'pad' that is not constant must have "
                                  "%d elements, twice the rank of 'x'; got %lld", 2 * x->rank,
                                  (long long)(p->rank ? p->dims[0] : 1));
        for (int i = 0; i < x->rank; i++) dims[i] = ANE_DIM_ANY;
        return ane_infer_set(in, 0, x->dtype, x->rank, dims);
    }
    if (n % 2 || n > 2 * x->rank)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'pad' has %d elements; it takes a pair for "
                              "each of the last dimensions, at most %d", n, 2 * x->rank);
    const char *mode = ane_op_str(in->op, "mode", "constant");
    for (int i = 0; i < n / 2 && !st; i++) {
        int a = x->rank - n / 2 + i;
        int64_t lo = pad[2 * i], hi = pad[2 * i + 1], d = x->dims[a];
        int64_t most = !strcmp(mode, "reflect") ? d - 1 : !strcmp(mode, "replicate") ? d
                       : INT64_MAX;
        if (lo < 0 || hi < 0)
            return ane_infer_fail(in, ANE_ERR_INVALID, "'pad' must not be negative, got %lld "
                                  "and %lld for dimension %d", (long long)lo, (long long)hi, a);
        if (d >= 0 && (lo > most || hi > most))
            return ane_infer_fail(in, ANE_ERR_SHAPE, "mode \"%s\" takes at most %lld for "
                                  "dimension %d (%lld), got %lld and %lld", mode,
                                  (long long)most, a, (long long)d, (long long)lo,
                                  (long long)hi);
        st = ane__dim_add(in, dims[a], lo, &dims[a]);
        if (!st) st = ane__dim_add(in, dims[a], hi, &dims[a]);
    }
    return st ? st : ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

/* Shapes of slices and of ops that regroup elements inside a tensor. */
#include "ops_fn.h"

#include <string.h>

ane_status ane__infer_slice_by_size(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t begin[ANE_MAX_RANK], size[ANE_MAX_RANK], dims[ANE_MAX_RANK];
    bool have_begin, have_size;
    ane_status st = ane__want_ints(in, "begin", x->rank, begin, &have_begin);
    if (!st) st = ane__want_ints(in, "size", x->rank, size, &have_size);
    for (int i = 0; i < x->rank && !st; i++) {
        int64_t d = x->dims[i], b = have_begin ? begin[i] : -1, s = have_size ? size[i] : -1;
        if (have_begin && b < 0 && d >= 0) b += d;
        if (have_begin && d >= 0 && (b < 0 || b > d))
            return ane_infer_fail(in, ANE_ERR_INDEX, "begin[%d] is %lld, dimension %d is %lld",
                                  i, (long long)begin[i], i, (long long)d);
        if (s < -1)
            return ane_infer_fail(in, ANE_ERR_INVALID, "size[%d] is %lld", i, (long long)s);
        if (have_size && s >= 0 && d >= 0 && (s > d || (have_begin && s > d - b)))
            return ane_infer_fail(in, ANE_ERR_SHAPE, "%lld elements from %lld on, dimension "
                                  "%d has %lld", (long long)s,
                                  (long long)(have_begin ? b : 0), i, (long long)d);
        if (have_size && s >= 0) dims[i] = s;
        else if (have_size && have_begin && d >= 0) dims[i] = d - b;
        else dims[i] = have_size && have_begin && begin[i] == 0 ? d : ANE_DIM_ANY;
    }
    return st ? st : ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

int64_t ane__slice_dim(int64_t dim, int64_t begin, int64_t end, int64_t stride,
                       bool begin_mask, bool end_mask, int64_t *first) {
    int64_t n;
    if (begin < 0 && !begin_mask) begin = begin + dim < 0 ? 0 : begin + dim;
    if (end < 0 && !end_mask) end = end + dim < 0 ? 0 : end + dim;
    if (stride > 0) {
        if (begin_mask) begin = 0;
        if (end_mask || end > dim) end = dim;
        n = end > begin ? (end - begin - 1) / stride + 1 : 0;
    } else {
        if (begin_mask || begin > dim - 1) begin = dim - 1;
        if (end_mask) end = -1;
        /* -(stride + 1) cannot overflow, -stride could. */
        n = begin > end ? (int64_t)((uint64_t)(begin - end - 1) /
                                    ((uint64_t)(-(stride + 1)) + 1)) + 1 : 0;
    }
    *first = begin;
    return n;
}

/* Constant vectors of a slice; absent ones take their default. */
typedef struct slice_args {
    int64_t begin[ANE_MAX_RANK], end[ANE_MAX_RANK], stride[ANE_MAX_RANK];
    int64_t begin_mask[ANE_MAX_RANK], end_mask[ANE_MAX_RANK], squeeze[ANE_MAX_RANK];
    bool have_begin, have_end, have_stride;
} slice_args;

static ane_status optional_ints(ane_infer *in, const char *name, int n, int64_t *out,
                                int64_t def, bool *known) {
    *known = true;
    for (int i = 0; i < n; i++) out[i] = def;
    return ane__given(in->op, name) ? ane__want_ints(in, name, n, out, known) : ANE_OK;
}

/* dims of x[begin:end:stride]; squeezed dims are dropped. */
static ane_status sliced(ane_infer *in, const ane_type *x, int *out_rank, int64_t *dims) {
    slice_args a;
    int n = x->rank, r = 0;
    bool masks[3];
    ane_status st = ane__want_ints(in, "begin", n, a.begin, &a.have_begin);
    if (!st) st = ane__want_ints(in, "end", n, a.end, &a.have_end);
    if (!st) st = optional_ints(in, "stride", n, a.stride, 1, &a.have_stride);
    if (!st) st = optional_ints(in, "begin_mask", n, a.begin_mask, 0, &masks[0]);
    if (!st) st = optional_ints(in, "end_mask", n, a.end_mask, 0, &masks[1]);
    if (!st) st = optional_ints(in, "squeeze_mask", n, a.squeeze, 0, &masks[2]);
    if (st) return st;
    if (!masks[0] || !masks[1] || !masks[2])
        return ane_infer_fail(in, ANE_ERR_INVALID, "the masks must be constants whose data is "
                              "loaded");
    for (int i = 0; i < n; i++) {
        int64_t d = x->dims[i], s = a.stride[i], first;
        bool bm = a.begin_mask[i], em = a.end_mask[i];
        if (a.have_stride && s == 0)
            return ane_infer_fail(in, ANE_ERR_INVALID, "stride[%d] is 0", i);
        if (a.squeeze[i]) {
            int64_t b = a.begin[i];
            if (a.have_begin && !bm && d >= 0 && (b < -d || b >= d))
                return ane_infer_fail(in, ANE_ERR_INDEX, "begin[%d] is %lld, dimension %d is "
                                      "%lld", i, (long long)b, i, (long long)d);
            continue;
        }
        bool know_b = bm || a.have_begin, know_e = em || a.have_end;
        if (know_b && know_e && !bm && !em && a.have_stride && s > 0 && a.begin[i] >= 0 &&
            a.end[i] >= 0 && a.begin[i] > a.end[i])
            return ane_infer_fail(in, ANE_ERR_INVALID, "begin[%d] is %lld and end[%d] is %lld "
                                  "with the stride %lld", i, (long long)a.begin[i], i,
                                  (long long)a.end[i], (long long)s);
        int64_t b = a.begin[i], e = a.end[i];
        if (!know_b || !know_e || !a.have_stride) dims[r++] = ANE_DIM_ANY;
        else if (d >= 0) dims[r++] = ane__slice_dim(d, b, e, s, bm, em, &first);
        else if ((bm || b == 0) && em && s == 1) dims[r++] = d;
        else if (bm && em && s == -1) dims[r++] = d;
        else if (!bm && em && ((b == -1 && s > 0) || (b == 0 && s < 0))) dims[r++] = 1;
        else if (!bm && !em && b == e) dims[r++] = 0;
        else if (!bm && !em && b == -2 && e == -1 && s > 0) dims[r++] = 1;
        else dims[r++] = ANE_DIM_ANY;
    }
    *out_rank = r;
    return ANE_OK;
}

ane_status ane__infer_slice_by_index(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int rank = 0;
    int64_t dims[ANE_MAX_RANK];
    ane_status st = sliced(in, x, &rank, dims);
    return st ? st : ane_infer_set(in, 0, x->dtype, rank, dims);
}

ane_status ane__infer_slice_update(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x"), *u = ane__in_type(in, "update");
    int rank = 0;
    int64_t dims[ANE_MAX_RANK];
    ane_status st = sliced(in, x, &rank, dims);
    if (st) return st;
    bool ok = u->rank == rank;
    for (int i = 0; ok && i < rank; i++) ok = ane__dim_fits(u->dims[i], dims[i]);
    char a[ANE_TYPE_TEXT], b[ANE_DIMS_TEXT];
    if (!ok)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'update' must have the slice's shape %s, got "
                              "%s", ane__dims_text(rank, dims, b, sizeof b),
                              ane_type_text(u, a, sizeof a));
    if (!rank)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'update' must have rank 1 or more; a slice "
                              "that squeezes every dimension cannot be updated");
    return ane_infer_same(in, 0, x);
}

ane_status ane__infer_reverse(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t axes[ANE_MAX_RANK];
    int n = ane_op_ints(in->op, "axes", axes, ANE_MAX_RANK), a;
    for (int i = 0; i < n; i++) {
        ane_status st = ane_infer_axis(in, "axes", i < ANE_MAX_RANK ? axes[i] : x->rank,
                                       x->rank, &a);
        if (st) return st;
    }
    return ane_infer_same(in, 0, x);
}

ane_status ane__infer_reverse_sequence(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int s, b;
    ane_status st = ane_infer_axis(in, "seq_axis", ane_op_i64(in->op, "seq_axis", 0), x->rank,
                                   &s);
    if (!st)
        st = ane_infer_axis(in, "batch_axis", ane_op_i64(in->op, "batch_axis", 0), x->rank, &b);
    if (!st) st = ane__want_vector(in, "lengths", x->dims[b]);
    return st ? st : ane_infer_same(in, 0, x);
}

ane_status ane__infer_band_part(ane_infer *in) {
    ane_status st = ane__want_rank(in, "x", 2, ANE_MAX_RANK);
    return st ? st : ane_infer_same(in, 0, ane__in_type(in, "x"));
}

ane_status ane__infer_sliding_windows(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t size = ane_op_i64(in->op, "size", 0), stride = ane_op_i64(in->op, "stride", 1);
    int axis;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", 0), x->rank, &axis);
    if (st) return st;
    if (x->rank == ANE_MAX_RANK)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "the result would have rank %d; at most %d "
                              "is possible", x->rank + 1, ANE_MAX_RANK);
    int64_t d = x->dims[axis], dims[ANE_MAX_RANK];
    if (size < 1 || stride < 1 || (d >= 0 && size > d))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "windows of %lld every %lld in dimension %d, "
                              "which is %lld", (long long)size, (long long)stride, axis,
                              (long long)d);
    for (int i = 0; i < axis; i++) dims[i] = x->dims[i];
    dims[axis] = d < 0 ? ANE_DIM_ANY : (d - size) / stride + 1;
    dims[axis + 1] = size;
    for (int i = axis + 1; i < x->rank; i++) dims[i + 1] = x->dims[i];
    return ane_infer_set(in, 0, x->dtype, x->rank + 1, dims);
}

/* ---------------------------------------------------------------- space and depth */

/* *out = a / b, which must be exact. */
static ane_status divide(ane_infer *in, const char *what, int64_t a, int64_t b,
                         int64_t *out) {
    if (a < 0) *out = b == 1 ? a : ANE_DIM_ANY;
    else if (a % b)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "%s %lld is not a multiple of %lld", what,
                              (long long)a, (long long)b);
    else *out = a / b;
    return ANE_OK;
}

static ane_status regroup(ane_infer *in, const char *factor, bool to_space) {
    const ane_type *x = ane__in_type(in, "x");
    int64_t b = ane_op_i64(in->op, factor, 0), b2, dims[4];
    ane_status st = ane__want_rank(in, "x", 4, 4);
    if (st) return st;
    if (b < 1)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'%s' must be 1 or more, got %lld", factor,
                              (long long)b);
    dims[0] = x->dims[0];
    st = ane__dim_mul(in, b, b, &b2);
    if (to_space) {
        if (!st) st = divide(in, "the channel count", x->dims[1], b2, &dims[1]);
        if (!st) st = ane__dim_mul(in, x->dims[2], b, &dims[2]);
        if (!st) st = ane__dim_mul(in, x->dims[3], b, &dims[3]);
    } else {
        if (!st) st = ane__dim_mul(in, x->dims[1], b2, &dims[1]);
        if (!st) st = divide(in, "the height", x->dims[2], b, &dims[2]);
        if (!st) st = divide(in, "the width", x->dims[3], b, &dims[3]);
    }
    return st ? st : ane_infer_set(in, 0, x->dtype, 4, dims);
}

ane_status ane__infer_depth_to_space(ane_infer *in) { return regroup(in, "block_size", true); }
ane_status ane__infer_space_to_depth(ane_infer *in) { return regroup(in, "block_size", false); }
ane_status ane__infer_pixel_shuffle(ane_infer *in) {
    return regroup(in, "upscale_factor", true);
}
ane_status ane__infer_pixel_unshuffle(ane_infer *in) {
    return regroup(in, "downscale_factor", false);
}

static ane_status batch_blocks(ane_infer *in, bool to_batch) {
    const ane_type *x = ane__in_type(in, "x");
    const char *name = to_batch ? "paddings" : "crops";
    int64_t block[2], pad[4], dims[4];
    bool known;
    ane_status st = ane__want_rank(in, "x", 4, 4);
    if (!st) st = ane__want_ints(in, "block_shape", 2, block, &known);
    if (!st) st = ane__want_rank(in, name, 2, 2);
    if (!st && ane_op_ints(in->op, name, pad, 4) != 4)
        st = ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must have shape [2, 2]", name);
    if (st) return st;
    for (int i = 0; i < 4; i++)
        if (pad[i] < 0 || (i < 2 && block[i] < 1))
            return ane_infer_fail(in, ANE_ERR_INVALID, "'block_shape' must be 1 or more and "
                                  "'%s' not negative", name);
    int64_t b2;
    st = ane__dim_mul(in, block[0], block[1], &b2);
    if (st) return st;
    st = to_batch ? ane__dim_mul(in, x->dims[0], b2, &dims[0])
                  : divide(in, "the batch", x->dims[0], b2, &dims[0]);
    dims[1] = x->dims[1];
    for (int i = 0; i < 2 && !st; i++) {
        int64_t d = x->dims[2 + i], both;
        st = ane__dim_add(in, pad[2 * i], pad[2 * i + 1], &both);
        if (st) return st;
        if (to_batch) {
            st = ane__dim_add(in, d, both, &d);
            if (!st) st = divide(in, "a padded dimension", d, block[i], &dims[2 + i]);
        } else {
            st = ane__dim_mul(in, d, block[i], &d);
            if (!st && d >= 0 && both > d)
                st = ane_infer_fail(in, ANE_ERR_SHAPE, "'crops' take %lld of %lld elements",
                                    (long long)both, (long long)d);
            dims[2 + i] = d < 0 ? ANE_DIM_ANY : d - both;
        }
    }
    return st ? st : ane_infer_set(in, 0, x->dtype, 4, dims);
}

ane_status ane__infer_space_to_batch(ane_infer *in) { return batch_blocks(in, true); }
ane_status ane__infer_batch_to_space(ane_infer *in) { return batch_blocks(in, false); }

ane_status ane__infer_crop(ane_infer *in) {
    static const char *const names[] = {"crop_height", "crop_width"};
    const ane_type *x = ane__in_type(in, "x");
    int64_t dims[ANE_MAX_RANK], c[2];
    bool known;
    ane_status st = ane__want_rank(in, "x", 3, ANE_MAX_RANK);
    if (st) return st;
    memcpy(dims, x->dims, sizeof dims);
    for (int i = 0; i < 2; i++) {
        int64_t *d = &dims[x->rank - 2 + i];
        st = ane__want_ints(in, names[i], 2, c, &known);
        if (st) return st;
        if (!known || c[0] < 0 || c[1] < 0 || (*d >= 0 && (c[0] > *d || c[1] > *d - c[0])))
            return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' takes %lld and %lld of %lld "
                                  "elements", names[i], (long long)c[0], (long long)c[1],
                                  (long long)*d);
        *d = *d < 0 ? ANE_DIM_ANY : *d - c[0] - c[1];
    }
    return ane_infer_set(in, 0, x->dtype, x->rank, dims);
}

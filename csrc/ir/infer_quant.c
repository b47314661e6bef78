/* Shapes of quantised values and compressed constants. */
#include "ops_fn.h"

#include <string.h>

/* ---------------------------------------------------------------- quantize, dequantize */

/* scale and zero_point: both scalars without an axis, or vectors as long as the axis. */
static ane_status scale_and_zero(ane_infer *in, const ane_type *x) {
    const ane_type *s = ane__in_type(in, "scale"), *z = ane__in_type(in, "zero_point");
    bool axis_given = ane__given(in->op, "axis");
    if (s->rank > 1 || (z && z->rank != s->rank))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'scale' and 'zero_point' must both be scalars "
                              "or both be vectors, got rank %d and %d", s->rank,
                              z ? z->rank : s->rank);
    if (s->rank == 0)
        return axis_given ? ane_infer_fail(in, ANE_ERR_INVALID, "'axis' must be absent with a "
                                           "scalar 'scale'") : ANE_OK;
    if (!axis_given)
        return ane_infer_fail(in, ANE_ERR_INVALID, "'axis' is required with a vector 'scale'");
    int axis;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", 0), x->rank, &axis);
    if (!st) st = ane__want_vector(in, "scale", x->dims[axis]);
    if (!st) st = ane__want_vector(in, "zero_point", x->dims[axis]);
    return st;
}

ane_status ane__infer_quantize(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "input"), *z = ane__in_type(in, "zero_point");
    ane_dtype d;
    ane_status st = ane__want_dtype(in, "output_dtype", ANE__DT(ANE_I8) | ANE__DT(ANE_U8), &d);
    if (!st) st = scale_and_zero(in, x);
    if (st) return st;
    if (z && z->dtype != d)
        return ane_infer_fail(in, ANE_ERR_DTYPE, "'zero_point' must be %s as the output, got %s",
                              ane_dtype_mil_name(d), ane_dtype_mil_name(z->dtype));
    const ane_const *s = ane_op_const(in->op, "scale");
    for (int64_t i = 0, n = s && s->data ? ane_type_count(s->type) : 0; i < n; i++)
        if (ane_const_f64(s, i) == 0)
            return ane_infer_fail(in, ANE_ERR_INVALID, "'scale' is 0 at %lld", (long long)i);
    return ane_infer_set(in, 0, d, x->rank, x->dims);
}

ane_status ane__infer_dequantize(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "input");
    ane_status st = scale_and_zero(in, x);
    return st ? st : ane_infer_set(in, 0, ane__in_type(in, "scale")->dtype, x->rank, x->dims);
}

/* ---------------------------------------------------------------- constexpr, ios16 */

ane_status ane__infer_constexpr_affine_dequantize(ane_infer *in) {
    static const char *const names[] = {"scale", "zero_point"};
    const ane_type *x = ane__in_type(in, "quantized_data");
    int axis;
    ane_status st = ane_infer_axis(in, "axis", ane_op_i64(in->op, "axis", 0), x->rank, &axis);
    for (int i = 0; i < 2 && !st; i++) {
        const ane_type *t = ane__in_type(in, names[i]);
        st = t->rank == 0 ? ANE_OK : ane__want_vector(in, names[i], x->dims[axis]);
    }
    return st ? st : ane_infer_set(in, 0, ane__in_type(in, "scale")->dtype, x->rank, x->dims);
}

ane_status ane__infer_constexpr_cast(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "source_val");
    ane_dtype d;
    ane_status st = ane__want_dtype(in, "output_dtype", ANE__DT(ANE_F32), &d);
    return st ? st : ane_infer_set(in, 0, d, x->rank, x->dims);
}

/* Result dims from the constant `shape`, and their product. */
static ane_status dense_shape(ane_infer *in, int *rank, int64_t *dims, int64_t *count) {
    bool known;
    *count = 1;
    ane_status st = ane__want_vector_length(in, "shape", rank);
    if (!st) st = ane__want_ints(in, "shape", *rank, dims, &known);
    if (!st && !known) st = ane_infer_fail(in, ANE_ERR_INVALID, "'shape' is not loaded");
    for (int i = 0; i < *rank && !st; i++) {
        if (dims[i] < 0) st = ane_infer_fail(in, ANE_ERR_INVALID, "shape[%d] is %lld", i,
                                             (long long)dims[i]);
        else st = ane__dim_mul(in, *count, dims[i], count);
    }
    if (!st && *count > INT64_MAX / 64)
        st = ane_infer_fail(in, ANE_ERR_SHAPE, "%lld elements", (long long)*count);
    return st;
}

ane_status ane__infer_constexpr_lut_to_dense_attr(ane_infer *in) {
    const ane_type *idx = ane__in_type(in, "indices"), *lut = ane__in_type(in, "lut");
    int64_t dims[ANE_MAX_RANK], n;
    int rank, bits = 0;
    ane_status st = ane__want_rank(in, "indices", 1, 1);
    if (!st) st = ane__want_rank(in, "lut", 1, 1);
    if (!st) st = dense_shape(in, &rank, dims, &n);
    if (st) return st;
    while (bits < 8 && lut->dims[0] != (int64_t)1 << bits) bits++;
    if (lut->dims[0] != (int64_t)1 << bits || (bits != 1 && bits != 2 && bits != 4 &&
                                              bits != 6 && bits != 8))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'lut' must have 2, 4, 16, 64 or 256 entries, "
                              "got %lld", (long long)lut->dims[0]);
    if (idx->dims[0] != (n * bits + 7) / 8)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'indices' must have %lld bytes, %d bits for "
                              "each of %lld elements; got %lld",
                              (long long)((n * bits + 7) / 8), bits, (long long)n,
                              (long long)idx->dims[0]);
    return ane_infer_set(in, 0, lut->dtype, rank, dims);
}

ane_status ane__infer_constexpr_sparse_to_dense_attr(ane_infer *in) {
    const ane_type *mask = ane__in_type(in, "mask");
    int64_t dims[ANE_MAX_RANK], n;
    int rank;
    ane_status st = ane__want_rank(in, "nonzero_data", 1, 1);
    if (!st) st = ane__want_rank(in, "mask", 1, 1);
    if (!st) st = dense_shape(in, &rank, dims, &n);
    if (st) return st;
    if (mask->dims[0] != (n + 7) / 8)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'mask' must have %lld bytes, one bit for each "
                              "of %lld elements; got %lld", (long long)((n + 7) / 8),
                              (long long)n, (long long)mask->dims[0]);
    return ane_infer_set(in, 0, ane__in_type(in, "nonzero_data")->dtype, rank, dims);
}

/* ---------------------------------------------------------------- constexpr, ios18 */

/* `parts` has as many dims as `whole` and divides it in each. */
static ane_status divides(ane_infer *in, const char *name, const ane_type *whole, int extra) {
    const ane_type *t = ane__in_type(in, name);
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    bool ok = whole->rank >= 1 && t->rank == whole->rank + extra;
    for (int i = 0; ok && i < whole->rank; i++)
        ok = t->dims[i] > 0 && whole->dims[i] % t->dims[i] == 0;
    if (ok) return ANE_OK;
    return ane_infer_fail(in, ANE_ERR_SHAPE, "'%s' must divide the data %s in every dimension%s, "
                          "got %s", name, ane_type_text(whole, a, sizeof a),
                          extra ? " and have two more" : "", ane_type_text(t, b, sizeof b));
}

static ane_status shift_scale(ane_infer *in, const ane_type *whole, ane_dtype data) {
    const ane_type *s = ane__in_type(in, "scale"), *o = ane__in_type(in, "offset");
    char a[ANE_TYPE_TEXT], b[ANE_TYPE_TEXT];
    ane_status st = divides(in, "scale", whole, 0);
    if (st || !o) return st;
    bool ok = o->rank == s->rank && !memcmp(o->dims, s->dims, sizeof *o->dims * (size_t)s->rank);
    if (!ok)
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'offset' must have the shape of 'scale' %s, "
                              "got %s", ane_type_text(s, a, sizeof a),
                              ane_type_text(o, b, sizeof b));
    if (!ane__is_float(o->dtype) && o->dtype != data)
        return ane_infer_fail(in, ANE_ERR_DTYPE, "'offset' must be float or %s as the data, got "
                              "%s", ane_dtype_mil_name(data), ane_dtype_mil_name(o->dtype));
    return ANE_OK;
}

ane_status ane__infer_constexpr_blockwise_shift_scale(ane_infer *in) {
    const ane_type *x = ane__in_type(in, "data");
    ane_status st = shift_scale(in, x, x->dtype);
    return st ? st : ane_infer_set(in, 0, ane__in_type(in, "scale")->dtype, x->rank, x->dims);
}

ane_status ane__infer_constexpr_sparse_blockwise_shift_scale(ane_infer *in) {
    const ane_type *m = ane__in_type(in, "data_mask"), *x = ane__in_type(in, "nonzero_data");
    ane_status st = ane__want_rank(in, "nonzero_data", 1, 1);
    if (!st) st = shift_scale(in, m, x->dtype);
    if (!st) st = ane_infer_same(in, 0, m);
    return st ? st : ane_infer_set(in, 1, ane__in_type(in, "scale")->dtype, 1, x->dims);
}

/* Dims of the dense result of a lut with vectors: dim vector_axis times their length. */
static ane_status lut_dims(ane_infer *in, const ane_type *idx, ane_dtype idx_type,
                           int64_t *dims, int64_t *vector) {
    const ane_type *lut = ane__in_type(in, "lut");
    ane_status st = divides(in, "lut", idx, 2);
    if (st) return st;
    int64_t entries = lut->dims[idx->rank];
    *vector = lut->dims[idx->rank + 1];
    if (entries != (int64_t)1 << ane_dtype_bits(idx_type))
        return ane_infer_fail(in, ANE_ERR_SHAPE, "'lut' must have %lld entries for %s indices, "
                              "got %lld", (long long)1 << ane_dtype_bits(idx_type),
                              ane_dtype_mil_name(idx_type), (long long)entries);
    memcpy(dims, idx->dims, sizeof idx->dims);
    bool axis_given = ane__given(in->op, "vector_axis");
    if (!axis_given && *vector != 1)
        return ane_infer_fail(in, ANE_ERR_INVALID, "a 'lut' of vectors of %lld needs "
                              "'vector_axis'", (long long)*vector);
    int axis;
    if (!axis_given) return ANE_OK;
    st = ane_infer_axis(in, "vector_axis", ane_op_i64(in->op, "vector_axis", 0), idx->rank,
                        &axis);
    return st ? st : ane__dim_mul(in, dims[axis], *vector, &dims[axis]);
}

ane_status ane__infer_constexpr_lut_to_dense(ane_infer *in) {
    const ane_type *idx = ane__in_type(in, "indices");
    int64_t dims[ANE_MAX_RANK], vector;
    ane_status st = lut_dims(in, idx, idx->dtype, dims, &vector);
    return st ? st : ane_infer_set(in, 0, ane__in_type(in, "lut")->dtype, idx->rank, dims);
}

ane_status ane__infer_constexpr_lut_to_sparse(ane_infer *in) {
    const ane_type *m = ane__in_type(in, "indices_mask"),
                   *x = ane__in_type(in, "indices_nonzero_data");
    int64_t dims[ANE_MAX_RANK], vector, n;
    ane_status st = ane__want_rank(in, "indices_nonzero_data", 1, 1);
    if (!st) st = lut_dims(in, m, x->dtype, dims, &vector);
    if (!st) st = ane_infer_set(in, 0, m->dtype, m->rank, dims);
    if (!st) st = ane__dim_mul(in, x->dims[0], vector, &n);
    return st ? st : ane_infer_set(in, 1, ane__in_type(in, "lut")->dtype, 1, &n);
}

ane_status ane__infer_constexpr_sparse_to_dense(ane_infer *in) {
    const ane_type *m = ane__in_type(in, "mask");
    ane_status st = ane__want_rank(in, "nonzero_data", 1, 1);
    return st ? st : ane_infer_set(in, 0, ane__in_type(in, "nonzero_data")->dtype, m->rank,
                                   m->dims);
}

/* quantize, dequantize and the compressed constants. */
#include "ops_fn.h"

#include <math.h>
#include <string.h>

/* Which element of a scalar or per-axis vector belongs to element i of x. */
static int64_t of_axis(const ane_rt *v, const ane_rt *x, int axis, int64_t inner, int64_t i) {
    return v->count == 1 ? 0 : i / inner % x->shape[axis];
}

static ane_status axis_of(ane_eval *ev, const ane_rt *x, const ane_rt *s, const ane_rt *z,
                          int *axis, int64_t *inner) {
    *axis = 0;
    *inner = 1;
    if (s->count == 1 && (!z || z->count == 1)) return ANE_OK;
    ane_status st = ane__eval_axis(ev, "axis", 0, x->rank, axis);
    if (st) return st;
    int64_t n = x->shape[*axis];
    if ((s->count != 1 && s->count != n) || (z && z->count != 1 && z->count != n))
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'scale' or 'zero_point' does not fit the axis");
    *inner = ane__count(x->rank - *axis - 1, x->shape + *axis + 1);
    return ANE_OK;
}

ane_status ane__eval_quantize(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "input"), *s = ane_eval_in(ev, "scale"),
                 *z = ane_eval_in(ev, "zero_point");
    int axis;
    int64_t inner;
    ane_status st = axis_of(ev, x, s, z, &axis, &inner);
    if (st) return st;
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    for (int64_t i = 0; i < x->count; i++) {
        double zero = z ? z->data[of_axis(z, x, axis, inner, i)] : 0;
        double v = rint(x->data[i] / s->data[of_axis(s, x, axis, inner, i)]) + zero;
        y->data[i] = ane__round_to(y->dtype, v);
    }
    return ANE_OK;
}

static ane_status affine(ane_eval *ev, const ane_rt *x) {
    const ane_rt *s = ane_eval_in(ev, "scale"), *z = ane_eval_in(ev, "zero_point");
    int axis;
    int64_t inner;
    ane_status st = axis_of(ev, x, s, z, &axis, &inner);
    if (st) return st;
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    for (int64_t i = 0; i < x->count; i++)
        y->data[i] = s->data[of_axis(s, x, axis, inner, i)] *
                     (x->data[i] - (z ? z->data[of_axis(z, x, axis, inner, i)] : 0));
    return ANE_OK;
}

ane_status ane__eval_dequantize(ane_eval *ev) { return affine(ev, ane_eval_in(ev, "input")); }
ane_status ane__eval_constexpr_affine_dequantize(ane_eval *ev) {
    return affine(ev, ane_eval_in(ev, "quantized_data"));
}

ane_status ane__eval_constexpr_cast(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "source_val");
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    memcpy(y->data, x->data, (size_t)x->count * sizeof *y->data);
    return ANE_OK;
}

/* Entry i of `bits` bits, least significant first, of bytes held as doubles. */
static int64_t packed(const ane_rt *bytes, int64_t i, int bits) {
    int64_t at = i * bits, byte = at >> 3;
    unsigned w = (unsigned)bytes->data[byte];
    if ((at & 7) + bits > 8 && byte + 1 < bytes->count)
        w |= (unsigned)bytes->data[byte + 1] << 8;
    return (w >> (at & 7)) & ((1u << bits) - 1u);
}

ane_status ane__eval_constexpr_lut_to_dense_attr(ane_eval *ev) {
    const ane_rt *idx = ane_eval_in(ev, "indices"), *lut = ane_eval_in(ev, "lut");
    int bits = 0;
    while (bits < 8 && lut->count > (int64_t)1 << bits) bits++;
    ane_rt *y = ane_eval_out_declared(ev, 0);
    if (!y) return ev->status;
    if (idx->count * 8 < y->count * bits || lut->count != (int64_t)1 << bits)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'indices' is too short");
    for (int64_t i = 0; i < y->count; i++) y->data[i] = lut->data[packed(idx, i, bits)];
    return ANE_OK;
}

/* y = data where mask (a bit or an element per place) is set, else 0. */
static ane_status spread(ane_eval *ev, ane_rt *y, const ane_rt *mask, bool bits,
                         const ane_rt *data) {
    int64_t k = 0;
    for (int64_t i = 0; i < y->count; i++) {
        if (!(bits ? packed(mask, i, 1) != 0 : mask->data[i] != 0)) continue;
        if (k < data->count) y->data[i] = data->data[k];
        k++;
    }
    if (k == data->count) return ANE_OK;
    return ane_eval_fail(ev, ANE_ERR_INVALID, "the mask has %lld ones, 'nonzero_data' %lld "
                         "elements", (long long)k, (long long)data->count);
}

ane_status ane__eval_constexpr_sparse_to_dense_attr(ane_eval *ev) {
    const ane_rt *mask = ane_eval_in(ev, "mask");
    ane_rt *y = ane_eval_out_declared(ev, 0);
    if (!y) return ev->status;
    if (mask->count * 8 < y->count) return ane_eval_fail(ev, ANE_ERR_SHAPE, "'mask' is too short");
    return spread(ev, y, mask, true, ane_eval_in(ev, "nonzero_data"));
}

ane_status ane__eval_constexpr_sparse_to_dense(ane_eval *ev) {
    const ane_rt *mask = ane_eval_in(ev, "mask");
    ane_rt *y = ANE__OUT(0, mask->rank, mask->shape);
    return spread(ev, y, mask, false, ane_eval_in(ev, "nonzero_data"));
}

/* Index into a tensor `small` whose dims divide those of `big`, for element i of big. */
static int64_t block_of(const ane_rt *small, const int64_t *big, int rank, int64_t i) {
    int64_t at = 0, step = 1;
    for (int d = rank - 1; d >= 0; d--) {
        int64_t size = big[d] / small->shape[d];
        at += i % big[d] / size * step;
        i /= big[d];
        step *= small->shape[d];
    }
    return at;
}

ane_status ane__eval_constexpr_blockwise_shift_scale(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "data"), *s = ane_eval_in(ev, "scale"),
                 *o = ane_eval_in(ev, "offset");
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    for (int64_t i = 0; i < x->count; i++) {
        int64_t k = block_of(s, x->shape, x->rank, i);
        y->data[i] = s->data[k] * (x->data[i] - (o ? o->data[k] : 0));
    }
    return ANE_OK;
}

/* The mask as it is, and data[k] of its k-th one. */
ane_status ane__eval_constexpr_sparse_blockwise_shift_scale(ane_eval *ev) {
    ane_rt *m = ane_eval_in(ev, "data_mask");
    const ane_rt *x = ane_eval_in(ev, "nonzero_data"), *s = ane_eval_in(ev, "scale"),
                 *o = ane_eval_in(ev, "offset");
    ane_rt *y = ANE__OUT(1, 1, x->shape);
    int64_t k = 0;
    for (int64_t i = 0; i < m->count; i++) {
        if (m->data[i] == 0) continue;
        int64_t b = block_of(s, m->shape, m->rank, i);
        if (k < x->count) y->data[k] = s->data[b] * (x->data[k] - (o ? o->data[b] : 0));
        k++;
    }
    if (k != x->count)
        return ane_eval_fail(ev, ANE_ERR_INVALID, "the mask has %lld ones, 'nonzero_data' %lld "
                             "elements", (long long)k, (long long)x->count);
    ane_eval_set(ev, 0, m);
    return ANE_OK;
}

/* What a lut gives for indices of this shape: value j of the vector of element i. */
typedef struct palette {
    const ane_rt *lut;
    int rank, axis;
    const int64_t *shape;               /* of the indices */
    int64_t vector, inner;              /* inner: elements behind the vector axis */
} palette;

static ane_status palette_of(ane_eval *ev, const ane_rt *shape_of, palette *p) {
    p->lut = ane_eval_in(ev, "lut");
    p->rank = shape_of->rank;
    p->shape = shape_of->shape;
    p->vector = p->lut->shape[p->rank + 1];
    p->axis = p->rank - 1;
    ane_status st = ANE_OK;
    if (ane_eval_in_n(ev, "vector_axis"))
        st = ane__eval_axis(ev, "vector_axis", 0, p->rank, &p->axis);
    p->inner = ane__count(p->rank - p->axis - 1, p->shape + p->axis + 1);
    return st;
}

static double palette_value(const palette *p, int64_t i, double index, int64_t j) {
    int64_t entries = p->lut->shape[p->rank];
    int64_t table = block_of(p->lut, p->shape, p->rank, i);
    return p->lut->data[(table * entries + (int64_t)index) * p->vector + j];
}

/* Place of vector element j of element i in the dense result. */
static int64_t palette_place(const palette *p, int64_t i, int64_t j) {
    return (i / p->inner * p->vector + j) * p->inner + i % p->inner;
}

ane_status ane__eval_constexpr_lut_to_dense(ane_eval *ev) {
    const ane_rt *idx = ane_eval_in(ev, "indices");
    palette p;
    int64_t shape[ANE_MAX_RANK];
    ane_status st = palette_of(ev, idx, &p);
    if (st) return st;
    memcpy(shape, idx->shape, sizeof shape);
    shape[p.axis] *= p.vector;
    ane_rt *y = ANE__OUT(0, idx->rank, shape);
    for (int64_t i = 0; i < idx->count; i++)
        for (int64_t j = 0; j < p.vector; j++)
            y->data[palette_place(&p, i, j)] = palette_value(&p, i, idx->data[i], j);
    return ANE_OK;
}

ane_status ane__eval_constexpr_lut_to_sparse(ane_eval *ev) {
    const ane_rt *m = ane_eval_in(ev, "indices_mask"),
                 *x = ane_eval_in(ev, "indices_nonzero_data");
    palette p;
    int64_t shape[ANE_MAX_RANK], k = 0, n, at = 0;
    ane_status st = palette_of(ev, m, &p);
    if (st) return st;
    memcpy(shape, m->shape, sizeof shape);
    shape[p.axis] *= p.vector;
    n = x->count * p.vector;
    ane_rt *mask = ANE__OUT(0, m->rank, shape);
    ane_rt *y = ANE__OUT(1, 1, &n);
    double *dense = ane__scratch(ev, mask->count);
    if (!dense) return ev->status;
    for (int64_t i = 0; i < m->count; i++) {
        if (m->data[i] == 0) continue;
        for (int64_t j = 0; j < p.vector && k < x->count; j++) {
            mask->data[palette_place(&p, i, j)] = 1;
            dense[palette_place(&p, i, j)] = palette_value(&p, i, x->data[k], j);
        }
        k++;
    }
    for (int64_t i = 0; i < mask->count && k == x->count; i++)
        if (mask->data[i] != 0) y->data[at++] = dense[i];
    ane__eval_free(dense);
    if (k == x->count) return ANE_OK;
    return ane_eval_fail(ev, ANE_ERR_INVALID, "the mask has %lld ones, 'indices_nonzero_data' "
                         "%lld elements", (long long)k, (long long)x->count);
}

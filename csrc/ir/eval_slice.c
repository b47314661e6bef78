/* Slices, reversals and the ops that regroup space, depth and batch. */
#include "ops_fn.h"

#include <string.h>

ane_status ane__eval_slice_by_size(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t begin[ANE_MAX_RANK], size[ANE_MAX_RANK], own[ANE_MAX_RANK], to[ANE_MAX_RANK],
        first = 0;
    int r = x->rank;
    if (ane_eval_ints(ev, "begin", begin, ANE_MAX_RANK) != r ||
        ane_eval_ints(ev, "size", size, ANE_MAX_RANK) != r)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'begin' and 'size' must have %d elements", r);
    ane__strides(r, x->shape, own);
    for (int i = 0; i < r; i++) {
        int64_t d = x->shape[i];
        if (begin[i] < 0) begin[i] += d;
        if (begin[i] < 0 || begin[i] > d)
            return ane_eval_fail(ev, ANE_ERR_INDEX, "begin[%d] is %lld, dimension %d is %lld",
                                 i, (long long)begin[i], i, (long long)d);
        if (size[i] == -1) size[i] = d - begin[i];
        if (size[i] < 0 || size[i] > d - begin[i])
            return ane_eval_fail(ev, ANE_ERR_INDEX, "%lld elements from %lld on, dimension %d "
                                 "has %lld", (long long)size[i], (long long)begin[i], i,
                                 (long long)d);
        first += begin[i] * own[i];
    }
    ane_rt *y = ANE__OUT(0, r, size);
    ane__strides(r, size, to);
    if (y->count) ane__copy(y->data, to, x->data + first, own, r, size);
    return ANE_OK;
}

/* The box that a slice picks: n elements of each dim, `step` apart from `first` on, and the
 * dims that stay. */
typedef struct box {
    int64_t n[ANE_MAX_RANK], step[ANE_MAX_RANK], first;
    int64_t shape[ANE_MAX_RANK];
    int rank;
} box;

static ane_status slice_box(ane_eval *ev, const ane_rt *x, box *out) {
    static const char *const names[] = {"begin", "end", "stride", "begin_mask", "end_mask",
                                        "squeeze_mask"};
    int64_t v[6][ANE_MAX_RANK], own[ANE_MAX_RANK];
    int r = x->rank;
    for (int k = 0; k < 6; k++) {
        int n = ane_eval_ints(ev, names[k], v[k], ANE_MAX_RANK);
        if (n < 0 && k >= 2) {
            for (int i = 0; i < r; i++) v[k][i] = k == 2;
        } else if (n != r)
            return ane_eval_fail(ev, ANE_ERR_SHAPE, "'%s' must have %d elements, got %d",
                                 names[k], r, n);
    }
    ane__strides(r, x->shape, own);
    out->rank = 0;
    out->first = 0;
    for (int i = 0; i < r; i++) {
        int64_t d = x->shape[i], b = v[0][i], first = 0, s = v[2][i];
        if (s == 0) return ane_eval_fail(ev, ANE_ERR_INVALID, "stride[%d] is 0", i);
        if (v[5][i]) {
            first = v[3][i] ? 0 : b < 0 ? b + d : b;
            if (first < 0 || first >= d)
                return ane_eval_fail(ev, ANE_ERR_INDEX, "begin[%d] is %lld, dimension %d is "
                                     "%lld", i, (long long)b, i, (long long)d);
            out->n[i] = 1;
        } else {
            out->n[i] = ane__slice_dim(d, b, v[1][i], s, v[3][i] != 0, v[4][i] != 0, &first);
            out->shape[out->rank++] = out->n[i];
        }
        out->step[i] = out->n[i] > 1 ? own[i] * s : own[i];
        if (out->n[i]) out->first += first * own[i];
    }
    return ANE_OK;
}

ane_status ane__eval_slice_by_index(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    box b;
    int64_t to[ANE_MAX_RANK];
    ane_status st = slice_box(ev, x, &b);
    if (st) return st;
    ane_rt *y = ANE__OUT(0, b.rank, b.shape);
    ane__strides(x->rank, b.n, to);
    if (y->count) ane__copy(y->data, to, x->data + b.first, b.step, x->rank, b.n);
    return ANE_OK;
}

ane_status ane__eval_slice_update(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *u = ane_eval_in(ev, "update");
    box b;
    int64_t from[ANE_MAX_RANK];
    ane_status st = slice_box(ev, x, &b);
    if (st) return st;
    bool ok = u->rank == b.rank;
    for (int i = 0; ok && i < b.rank; i++) ok = u->shape[i] == b.shape[i];
    if (!ok) return ane_eval_fail(ev, ANE_ERR_SHAPE, "'update' does not have the slice's shape");
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    memcpy(y->data, x->data, (size_t)x->count * sizeof *y->data);
    ane__strides(x->rank, b.n, from);
    if (u->count) ane__copy(y->data + b.first, b.step, u->data, from, x->rank, b.n);
    return ANE_OK;
}

ane_status ane__eval_reverse(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    bool set[ANE_MAX_RANK];
    int64_t own[ANE_MAX_RANK], to[ANE_MAX_RANK], first = 0;
    ane_status st = ane__eval_axes(ev, "axes", x->rank, true, set);
    if (st) return st;
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    if (!y->count) return ANE_OK;
    ane__strides(x->rank, x->shape, to);
    for (int i = 0; i < x->rank; i++) {
        own[i] = set[i] ? -to[i] : to[i];
        if (set[i]) first += (x->shape[i] - 1) * to[i];
    }
    ane__copy(y->data, to, x->data + first, own, x->rank, x->shape);
    return ANE_OK;
}

ane_status ane__eval_reverse_sequence(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x"), *len = ane_eval_in(ev, "lengths");
    int s, b;
    ane_status st = ane__eval_axis(ev, "seq_axis", 0, x->rank, &s);
    if (!st) st = ane__eval_axis(ev, "batch_axis", 0, x->rank, &b);
    if (st) return st;
    if (len->count != x->shape[b])
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'lengths' has %lld elements, the batch %lld",
                             (long long)len->count, (long long)x->shape[b]);
    for (int64_t i = 0; i < len->count; i++)
        if (len->data[i] < 0 || len->data[i] > (double)x->shape[s])
            return ane_eval_fail(ev, ANE_ERR_INDEX, "lengths[%lld] is %g, the sequence has %lld",
                                 (long long)i, len->data[i], (long long)x->shape[s]);
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    int64_t own[ANE_MAX_RANK];
    ane__strides(x->rank, x->shape, own);
    for (int64_t i = 0; i < x->count; i++) {
        int64_t k = i / own[s] % x->shape[s];
        int64_t n = (int64_t)len->data[i / own[b] % x->shape[b]];
        y->data[i] = x->data[k < n ? i + (n - 1 - 2 * k) * own[s] : i];
    }
    return ANE_OK;
}

ane_status ane__eval_band_part(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t lower = ane_eval_i64(ev, "lower", -1), upper = ane_eval_i64(ev, "upper", -1);
    ane_rt *y = ANE__OUT(0, x->rank, x->shape);
    int64_t n = x->shape[x->rank - 1], m = x->shape[x->rank - 2];
    for (int64_t i = 0; i < x->count; i++) {
        int64_t col = i % n, row = i / n % m;
        if ((lower < 0 || row - col <= lower) && (upper < 0 || col - row <= upper))
            y->data[i] = x->data[i];
    }
    return ANE_OK;
}

ane_status ane__eval_sliding_windows(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t size = ane_eval_i64(ev, "size", 1), stride = ane_eval_i64(ev, "stride", 1);
    int axis;
    ane_status st = ane__eval_axis(ev, "axis", 0, x->rank, &axis);
    if (st) return st;
    int64_t shape[ANE_MAX_RANK], own[ANE_MAX_RANK], from[ANE_MAX_RANK], to[ANE_MAX_RANK];
    if (size < 1 || stride < 1 || size > x->shape[axis])
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "windows of %lld in a dimension of %lld",
                             (long long)size, (long long)x->shape[axis]);
    ane__strides(x->rank, x->shape, own);
    for (int i = 0, k = 0; i <= x->rank; i++) {
        shape[i] = i == axis ? (x->shape[axis] - size) / stride + 1
                   : i == axis + 1 ? size : x->shape[k];
        from[i] = i == axis ? own[axis] * stride : own[k];
        if (i != axis) k++;
    }
    ane_rt *y = ANE__OUT(0, x->rank + 1, shape);
    ane__strides(x->rank + 1, shape, to);
    if (y->count) ane__copy(y->data, to, x->data, from, x->rank + 1, shape);
    return ANE_OK;
}

/* ---------------------------------------------------------------- space and depth */

/* The result reads x through a view of rank 6 whose dims are permuted:
 *   to space:  [n, (c, dy, dx), h, w]   -> [n, c, (h, dy), (w, dx)]
 *   to depth:  [n, c, (h, dy), (w, dx)] -> [n, (c, dy, dx), h, w]
 * with (dy, dx) before c in the channel index when `block_first` (TensorFlow's order). */
static ane_status regroup(ane_eval *ev, const char *factor, bool to_space, bool block_first) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t b = ane_eval_i64(ev, factor, 1), shape[4], split[6];
    int perm[6];
    if (b < 1) return ane_eval_fail(ev, ANE_ERR_INVALID, "'%s' is %lld", factor, (long long)b);
    if (to_space) {
        int64_t c = x->shape[1] / (b * b);
        int64_t v[6] = {x->shape[0], c, b, b, x->shape[2], x->shape[3]};
        int64_t w[6] = {x->shape[0], b, b, c, x->shape[2], x->shape[3]};
        static const int pv[6] = {0, 1, 4, 2, 5, 3}, pw[6] = {0, 3, 4, 1, 5, 2};
        memcpy(split, block_first ? w : v, sizeof split);
        memcpy(perm, block_first ? pw : pv, sizeof perm);
        int64_t s[4] = {x->shape[0], c, x->shape[2] * b, x->shape[3] * b};
        memcpy(shape, s, sizeof shape);
    } else {
        int64_t h = x->shape[2] / b, w = x->shape[3] / b;
        int64_t v[6] = {x->shape[0], x->shape[1], h, b, w, b};
        static const int pv[6] = {0, 1, 3, 5, 2, 4}, pw[6] = {0, 3, 5, 1, 2, 4};
        memcpy(split, v, sizeof split);
        memcpy(perm, block_first ? pw : pv, sizeof perm);
        int64_t s[4] = {x->shape[0], x->shape[1] * b * b, h, w};
        memcpy(shape, s, sizeof shape);
    }
    if (ane__count(6, split) != x->count)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'%s' %lld does not divide the shape", factor,
                             (long long)b);
    ane_rt *y = ANE__OUT(0, 4, shape);
    if (y->count) ane__permute(y->data, x->data, 6, split, perm);
    return ANE_OK;
}

ane_status ane__eval_depth_to_space(ane_eval *ev) {
    return regroup(ev, "block_size", true, true);
}
ane_status ane__eval_space_to_depth(ane_eval *ev) {
    return regroup(ev, "block_size", false, true);
}
ane_status ane__eval_pixel_shuffle(ane_eval *ev) {
    return regroup(ev, "upscale_factor", true, false);
}
ane_status ane__eval_pixel_unshuffle(ane_eval *ev) {
    return regroup(ev, "downscale_factor", false, false);
}

/* TensorFlow's order: the block position is the slow part of the batch index. */
ane_status ane__eval_space_to_batch(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t b[2], p[4];
    ane_eval_ints(ev, "block_shape", b, 2);
    ane_eval_ints(ev, "paddings", p, 4);
    int64_t n = x->shape[0], c = x->shape[1], h = x->shape[2], w = x->shape[3];
    int64_t oh = (h + p[0] + p[1]) / b[0], ow = (w + p[2] + p[3]) / b[1];
    int64_t shape[4] = {n * b[0] * b[1], c, oh, ow};
    ane_rt *y = ANE__OUT(0, 4, shape);
    double *o = y->data;
    for (int64_t q = 0; q < shape[0]; q++)
        for (int64_t k = 0; k < c; k++)
            for (int64_t i = 0; i < oh; i++)
                for (int64_t j = 0; j < ow; j++, o++) {
                    int64_t s = i * b[0] + q / n / b[1] - p[0];
                    int64_t t = j * b[1] + q / n % b[1] - p[2];
                    if (s >= 0 && s < h && t >= 0 && t < w)
                        *o = x->data[((q % n * c + k) * h + s) * w + t];
                }
    return ANE_OK;
}

ane_status ane__eval_batch_to_space(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t b[2], p[4];
    ane_eval_ints(ev, "block_shape", b, 2);
    ane_eval_ints(ev, "crops", p, 4);
    int64_t n = x->shape[0] / (b[0] * b[1]), c = x->shape[1], h = x->shape[2],
            w = x->shape[3];
    int64_t shape[4] = {n, c, h * b[0] - p[0] - p[1], w * b[1] - p[2] - p[3]};
    ane_rt *y = ANE__OUT(0, 4, shape);
    double *o = y->data;
    for (int64_t q = 0; q < n; q++)
        for (int64_t k = 0; k < c; k++)
            for (int64_t i = 0; i < shape[2]; i++)
                for (int64_t j = 0; j < shape[3]; j++, o++) {
                    int64_t s = i + p[0], t = j + p[2];
                    int64_t from = (s % b[0] * b[1] + t % b[1]) * n + q;
                    *o = x->data[((from * c + k) * h + s / b[0]) * w + t / b[1]];
                }
    return ANE_OK;
}

ane_status ane__eval_crop(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t c[4], shape[ANE_MAX_RANK], own[ANE_MAX_RANK], to[ANE_MAX_RANK];
    int r = x->rank;
    ane_eval_ints(ev, "crop_height", c, 2);
    ane_eval_ints(ev, "crop_width", c + 2, 2);
    memcpy(shape, x->shape, sizeof shape);
    for (int i = 0; i < 2; i++) {
        int64_t *d = &shape[r - 2 + i];
        *d -= c[2 * i] + c[2 * i + 1];
        if (*d < 0) return ane_eval_fail(ev, ANE_ERR_SHAPE, "more is cropped than there is");
    }
    ane_rt *y = ANE__OUT(0, r, shape);
    ane__strides(r, x->shape, own);
    ane__strides(r, shape, to);
    if (y->count)
        ane__copy(y->data, to, x->data + c[0] * own[r - 2] + c[2] * own[r - 1], own, r, shape);
    return ANE_OK;
}

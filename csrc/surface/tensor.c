/* Views: making, measuring, checking. Copying is in copy.c. */
#include "tensor.h"
#include "watch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

const char *ane__shape_text(int rank, const int64_t *dims, char *buf, size_t n) {
    size_t at = 0;
    buf[0] = 0;
    for (int i = 0; i < rank && at + 24 < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%s%" PRId64, i ? ", " : "", dims[i]);
    return buf;
}

ane_status ane_shape_size(ane_dtype dtype, int rank, const int64_t *shape, size_t *bytes,
                          ane_error *err) {
    char text[ANE__SHAPE_TEXT];
    if (rank < 0 || rank > ANE_MAX_RANK)
        return ane_fail(err, ANE_ERR_SHAPE, "[tensor] rank %d is not in 0 to %d", rank,
                        ANE_MAX_RANK);
    size_t unit = ane_dtype_size(dtype);
    if (!unit)
        return ane_fail(err, ANE_ERR_DTYPE, "[tensor] dtype %s has no element size in bytes",
                        ane_dtype_name(dtype));
    for (int i = 0; i < rank; i++)
        if (shape[i] < 0)
            return ane_fail(err, ANE_ERR_SHAPE, "[tensor] dimension %d of [%s] is negative",
                            i, ane__shape_text(rank, shape, text, sizeof text));
    if (!ane_shape_bytes(rank, shape, unit, bytes))
        return ane_fail(err, ANE_ERR_SHAPE, "[tensor] shape [%s] of %s overflows 2^63 bytes",
                        ane__shape_text(rank, shape, text, sizeof text),
                        ane_dtype_name(dtype));
    return ANE_OK;
}

ane_status ane_tensor_init(ane_tensor *t, ane_surface *s, size_t offset, ane_dtype dtype,
                           int rank, const int64_t *shape, ane_error *err) {
    char text[ANE__SHAPE_TEXT];
    size_t bytes, end;
    ane_status st = ane_shape_size(dtype, rank, shape, &bytes, err);
    if (st) return st;
    if (!ane_add_size(offset, bytes, &end) || end > s->bytes)
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[tensor] shape [%s] of %s at byte %zu needs %zu bytes, the surface "
                        "has %zu",
                        ane__shape_text(rank, shape, text, sizeof text),
                        ane_dtype_name(dtype), offset, bytes, s->bytes);
    *t = (ane_tensor){.surface = s, .offset = offset, .dtype = dtype, .rank = rank};
    int64_t stride = (int64_t)ane_dtype_size(dtype);
    for (int i = rank - 1; i >= 0; i--) {
        t->shape[i] = shape[i];
        t->strides[i] = stride;
        /* With a zero dimension the product is unchecked, and the strides do not matter. */
        stride = bytes ? stride * shape[i] : stride;
    }
    return ANE_OK;
}

bool ane_tensor_contiguous(const ane_tensor *t) {
    int64_t want = (int64_t)ane_dtype_size(t->dtype);
    for (int i = 0; i < t->rank; i++)
        if (t->shape[i] == 0) return true;
    for (int i = t->rank - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->strides[i] != want) return false;
        want *= t->shape[i];
    }
    return true;
}

int64_t ane_tensor_count(const ane_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] == 0) return 0;
        /* A broadcast view may have more elements than bytes exist. */
        if (__builtin_mul_overflow(n, t->shape[i], &n)) n = INT64_MAX;
    }
    return n;
}

void *ane_tensor_data(const ane_tensor *t) { return t->surface->base + t->offset; }

void ane_tensor_extent(const ane_tensor *t, size_t *lo, size_t *hi) {
    size_t a = t->offset, b = t->offset + ane_dtype_size(t->dtype);
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] == 0) {
            *lo = *hi = t->offset;
            return;
        }
        int64_t span = (t->shape[i] - 1) * t->strides[i];
        if (span < 0) a -= (size_t)-span;
        else b += (size_t)span;
    }
    *lo = a;
    *hi = b;
}

ane_status ane_tensor_check(const ane_tensor *t, ane_error *err) {
    if (t->rank < 0 || t->rank > ANE_MAX_RANK)
        return ane_fail(err, ANE_ERR_SHAPE, "[tensor] rank %d is not in 0 to %d", t->rank,
                        ANE_MAX_RANK);
    char text[ANE__SHAPE_TEXT];
    size_t unit = ane_dtype_size(t->dtype);
    if (!unit)
        return ane_fail(err, ANE_ERR_DTYPE, "[tensor] dtype %s has no element size in bytes",
                        ane_dtype_name(t->dtype));
    bool empty = false;
    for (int i = 0; i < t->rank; i++) {
        if (t->shape[i] < 0)
            return ane_fail(err, ANE_ERR_SHAPE, "[tensor] dimension %d of [%s] is negative",
                            i, ane__shape_text(t->rank, t->shape, text, sizeof text));
        empty = empty || t->shape[i] == 0;
    }
    size_t lo = t->offset, hi = t->offset;
    bool fits = lo <= s_bytes(t);
    if (!empty) {
        fits = fits && ane_add_size(hi, unit, &hi);
        for (int i = 0; fits && i < t->rank; i++) {
            int64_t span;
            fits = !__builtin_mul_overflow(t->shape[i] - 1, t->strides[i], &span);
            if (!fits) break;
            if (span < 0) fits = !__builtin_sub_overflow(lo, (size_t)0 - (size_t)span, &lo);
            else fits = ane_add_size(hi, (size_t)span, &hi);
        }
    }
    if (!fits || hi > s_bytes(t))
        return ane_fail(err, ANE_ERR_SHAPE,
                        "[tensor] a view of shape [%s] of %s at byte %zu reaches outside the "
                        "surface's %zu bytes",
                        ane__shape_text(t->rank, t->shape, text, sizeof text),
                        ane_dtype_name(t->dtype), t->offset, s_bytes(t));
    return ANE_OK;
}

ane_status ane_tensor_readable(const ane_tensor *t, ane_error *err) {
    if (!t->surface->check &&
        !atomic_load_explicit(&t->surface->any_invalid, memory_order_acquire))
        return ANE_OK;
    size_t lo, hi;
    ane_tensor_extent(t, &lo, &hi);
    return ane_surface_check(t->surface, lo, hi - lo, err);
}

void ane_tensor_written(const ane_tensor *t) {
    ane__surface_wrote(t);
    if (!atomic_load_explicit(&t->surface->any_invalid, memory_order_acquire)) return;
    size_t lo, hi;
    ane_tensor_extent(t, &lo, &hi);
    /* Gaps between elements were not written: then the range keeps its mark. */
    if ((int64_t)(hi - lo) == ane_tensor_count(t) * (int64_t)ane_dtype_size(t->dtype))
        ane_surface_validate(t->surface, lo, hi - lo);
}

/* ---------------------------------------------------------------- boxes */

/* Do two boxes with the same strides share an element? Element i of a and j of b meet where
 * sum (i_d - j_d) * stride_d equals the distance of the two origins. Dimensions go from the
 * largest stride down; what the smaller ones can reach bounds the candidates, of which
 * views of one row-major parent have at most two each. */
typedef struct box_pair {
    int n;
    int64_t stride[ANE_MAX_RANK], lo[ANE_MAX_RANK], hi[ANE_MAX_RANK], reach[ANE_MAX_RANK];
    int64_t unit;
    int budget;
} box_pair;

static bool meet(box_pair *p, int d, int64_t rest) {
    if (d == p->n) return rest > -p->unit && rest < p->unit;
    if (--p->budget < 0) return true;   /* not views of one parent: assume the worst */
    int64_t s = p->stride[d], reach = p->reach[d] + p->unit - 1;
    int64_t first = (rest - reach) / s - 1, last = (rest + reach) / s + 1;
    if (first < p->lo[d]) first = p->lo[d];
    if (last > p->hi[d]) last = p->hi[d];
    for (int64_t k = first; k <= last; k++) {
        int64_t left = rest - k * s;
        if (left <= reach && left >= -reach && meet(p, d + 1, left)) return true;
    }
    return false;
}

bool ane__boxes_meet(const ane_tensor *a, const ane_tensor *b) {
    if (!ane_tensor_overlap(a, b)) return false;
    if (a->dtype != b->dtype || a->rank != b->rank) return true;
    box_pair p = {.unit = (int64_t)ane_dtype_size(a->dtype), .budget = 1000};
    for (int i = 0; i < a->rank; i++) {
        if (a->shape[i] == 1 && b->shape[i] == 1) continue;
        int64_t s = a->shape[i] > 1 ? a->strides[i] : b->strides[i];
        if (s <= 0 || (a->shape[i] > 1 && b->shape[i] > 1 && a->strides[i] != b->strides[i]))
            return true;
        int at = p.n++;
        for (; at > 0 && p.stride[at - 1] < s; at--) {
            p.stride[at] = p.stride[at - 1];
            p.lo[at] = p.lo[at - 1];
            p.hi[at] = p.hi[at - 1];
        }
        p.stride[at] = s;
        p.lo[at] = 1 - b->shape[i];
        p.hi[at] = a->shape[i] - 1;
    }
    for (int i = p.n - 2; i >= 0; i--) {
        int64_t far = p.hi[i + 1] > -p.lo[i + 1] ? p.hi[i + 1] : -p.lo[i + 1];
        p.reach[i] = p.reach[i + 1] + far * p.stride[i + 1];
    }
    return meet(&p, 0, (int64_t)((uintptr_t)ane_tensor_data(b) - (uintptr_t)ane_tensor_data(a)));
}

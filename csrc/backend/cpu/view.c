/* Arithmetic of strided views: what a shape op costs when it costs nothing. */
#include "view.h"

#include <string.h>

bool ane_view_reshape(const ane_view *v, int rank, const int64_t *shape, ane_view *out) {
    ane_view r = {.buf = v->buf, .dtype = v->dtype, .rank = rank, .offset = v->offset};
    memcpy(r.shape, shape, (size_t)rank * sizeof *shape);
    int64_t unit = (int64_t)ane_dtype_size(v->dtype);
    if (ane_view_count(v) == 0) {
        for (int i = 0; i < rank; i++) r.strides[i] = unit;
        *out = r;
        return true;
    }
    /* Runs of old dims and of new dims with equal products; within a run the old dims must
     * step like one. Ones join any run. */
    int i = 0, j = 0;
    while (i < v->rank || j < rank) {
        int i0 = i, j0 = j;
        int64_t a = i < v->rank ? v->shape[i++] : 1, b = j < rank ? shape[j++] : 1;
        while (a != b) {
            if (a < b) {
                if (i == v->rank) return false;
                a *= v->shape[i++];
            } else {
                if (j == rank) return false;
                b *= shape[j++];
            }
        }
        while (i < v->rank && v->shape[i] == 1) i++;
        while (j < rank && shape[j] == 1) j++;
        int64_t stride = unit;          /* of the run's innermost element */
        bool any = false;
        for (int k = i - 1; k >= i0; k--) {
            if (v->shape[k] == 1) continue;
            if (!any) stride = v->strides[k];
            else if (v->strides[k] != stride) return false;
            any = true;
            stride *= v->shape[k];
        }
        /* stride is now one past the outermost: walk back inwards from the inner end. */
        stride = unit;
        for (int k = i - 1; k >= i0; k--)
            if (v->shape[k] != 1) {
                stride = v->strides[k];
                break;
            }
        for (int k = j - 1; k >= j0; k--) {
            r.strides[k] = stride;
            stride *= shape[k];
        }
    }
    *out = r;
    return true;
}

void ane_view_permute(const ane_view *v, const int *perm, ane_view *out) {
    ane_view r = *v;
    for (int i = 0; i < v->rank; i++) {
        r.shape[i] = v->shape[perm[i]];
        r.strides[i] = v->strides[perm[i]];
    }
    *out = r;
}

void ane_view_slice(ane_view *v, int axis, int64_t begin, int64_t size, int64_t step) {
    if (size > 0) v->offset += begin * v->strides[axis];
    v->shape[axis] = size;
    v->strides[axis] *= step;
}

bool ane_view_broadcast(const ane_view *v, int rank, const int64_t *shape, ane_view *out) {
    ane_view r = {.buf = v->buf, .dtype = v->dtype, .rank = rank, .offset = v->offset};
    if (v->rank > rank) return false;
    for (int i = 0; i < rank; i++) {
        int k = i - (rank - v->rank);
        r.shape[i] = shape[i];
        if (k < 0 || (v->shape[k] == 1 && shape[i] != 1)) r.strides[i] = 0;
        else if (v->shape[k] == shape[i]) r.strides[i] = v->strides[k];
        else return false;
    }
    *out = r;
    return true;
}

void ane_view_drop_ones(ane_view *v, const int64_t *shape, int rank) {
    int n = 0;
    for (int i = 0; i < rank; i++) {
        if (shape[i] == 1) continue;
        v->shape[n] = v->shape[i];
        v->strides[n++] = v->strides[i];
    }
    v->rank = n;
}

bool ane_view_same(const ane_view *a, const ane_view *b) {
    if (a->buf != b->buf || a->offset != b->offset || a->dtype != b->dtype ||
        a->rank != b->rank)
        return false;
    for (int i = 0; i < a->rank; i++)
        if (a->shape[i] != b->shape[i] || (a->shape[i] > 1 && a->strides[i] != b->strides[i]))
            return false;
    return true;
}

bool ane_view_contiguous(const ane_view *v) {
    int64_t stride = (int64_t)ane_dtype_size(v->dtype);
    for (int i = v->rank - 1; i >= 0; i--) {
        if (v->shape[i] != 1 && v->strides[i] != stride) return false;
        stride *= v->shape[i];
    }
    return true;
}

void ane_view_of_type(const ane_type *t, int buf, ane_view *out) {
    *out = (ane_view){.buf = buf, .dtype = t->dtype, .rank = t->rank};
    memcpy(out->shape, t->dims, sizeof out->shape);
    int64_t stride = (int64_t)ane_dtype_size(t->dtype);
    for (int i = t->rank - 1; i >= 0; i--) {
        out->strides[i] = stride;
        stride *= t->dims[i];
    }
}

void ane_view_of_tensor(const ane_tensor *t, int buf, ane_view *out) {
    *out = (ane_view){.buf = buf, .dtype = t->dtype, .rank = t->rank};
    memcpy(out->shape, t->shape, sizeof out->shape);
    memcpy(out->strides, t->strides, sizeof out->strides);
}

int ane_views_merge(int n, ane_view *const *v) {
    int rank = v[0]->rank, m = 0;
    for (int d = 0; d < rank; d++) {
        if (v[0]->shape[d] == 1) continue;
        bool join = m > 0;
        for (int k = 0; k < n && join; k++)
            join = v[k]->strides[m - 1] == v[k]->strides[d] * v[0]->shape[d];
        int64_t len = v[0]->shape[d];
        for (int k = n - 1; k >= 0; k--) {
            v[k]->strides[join ? m - 1 : m] = v[k]->strides[d];
            v[k]->shape[join ? m - 1 : m] = join ? v[k]->shape[m - 1] * len : len;
        }
        m += !join;
    }
    for (int k = 0; k < n; k++) v[k]->rank = m;
    return m;
}

/* Data movement: reshape, transpose, concatenation, splitting, tiling, padding. */
#include "ops_fn.h"

#include <string.h>

/* x's elements in order under another shape. */
static ane_status reshaped(ane_eval *ev, int rank, const int64_t *shape) {
    const ane_rt *x = ane_eval_in(ev, "x");
    char a[ANE_DIMS_TEXT], b[ANE_DIMS_TEXT];
    size_t n;
    if (!ane_shape_bytes(rank, shape, 1, &n) || (int64_t)n != x->count)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "%s cannot become %s",
                             ane__dims_text(x->rank, x->shape, a, sizeof a),
                             ane__dims_text(rank, shape, b, sizeof b));
    ane_rt *y = ANE__OUT(0, rank, shape);
    memcpy(y->data, x->data, (size_t)x->count * sizeof *y->data);
    return ANE_OK;
}

ane_status ane__eval_reshape(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t shape[ANE_MAX_RANK], known = 1;
    int rank = ane_eval_ints(ev, "shape", shape, ANE_MAX_RANK), gap = -1;
    if (rank > ANE_MAX_RANK)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'shape' has %d elements", rank);
    for (int i = 0; i < rank; i++) {
        if (shape[i] == 0) {
            int from = i + (ev->op->row->opset >= 17 ? x->rank - rank : 0);
            shape[i] = from >= 0 && from < x->rank ? x->shape[from] : 1;
        }
        if (shape[i] == -1 && gap < 0) gap = i;
        else if (shape[i] < 0 || __builtin_mul_overflow(known, shape[i], &known))
            return ane_eval_fail(ev, ANE_ERR_SHAPE, "shape[%d] is %lld", i,
                                 (long long)shape[i]);
    }
    if (gap >= 0) shape[gap] = known && x->count % known == 0 ? x->count / known : 0;
    return reshaped(ev, rank, shape);
}

ane_status ane__eval_reshape_like(ane_eval *ev) {
    int64_t shape[ANE_MAX_RANK];
    int rank = 0;
    for (int i = 0; i < ane_eval_in_n(ev, "ref_tensors"); i++) {
        const ane_rt *ref = ane_eval_in_at(ev, "ref_tensors", i);
        int64_t lo = (int64_t)ane_eval_in_at(ev, "begins", i)->data[0],
                hi = (int64_t)ane_eval_in_at(ev, "ends", i)->data[0];
        if (lo < 0) lo += ref->rank;
        if (hi < 0) hi += ref->rank;
        if (ane_eval_in_at(ev, "end_masks", i)->data[0] != 0) hi = ref->rank;
        for (; lo >= 0 && lo < hi && lo < ref->rank && rank < ANE_MAX_RANK; lo++)
            shape[rank++] = ref->shape[lo];
    }
    return reshaped(ev, rank, shape);
}

ane_status ane__eval_expand_dims(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t shape[ANE_MAX_RANK], axes[ANE_MAX_RANK];
    bool set[ANE_MAX_RANK];
    int n = ane_eval_ints(ev, "axes", axes, ANE_MAX_RANK), k = 0;
    int rank = x->rank + n;
    if (rank > ANE_MAX_RANK) return ane_eval_fail(ev, ANE_ERR_SHAPE, "rank %d", rank);
    ane_status st = ane__eval_axes(ev, "axes", rank, false, set);
    if (st) return st;
    for (int i = 0; i < rank; i++) shape[i] = set[i] || k == x->rank ? 1 : x->shape[k++];
    return reshaped(ev, rank, shape);
}

ane_status ane__eval_squeeze(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t shape[ANE_MAX_RANK];
    bool set[ANE_MAX_RANK];
    int rank = 0;
    ane_status st = ane__eval_axes(ev, "axes", x->rank, true, set);
    if (st) return st;
    for (int i = 0; i < x->rank; i++)
        if (!set[i] || x->shape[i] != 1) shape[rank++] = x->shape[i];
    return reshaped(ev, rank, shape);
}

ane_status ane__eval_flatten2d(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t axis = ane_eval_i64(ev, "axis", 1), shape[2];
    if (axis < 0) axis += x->rank;
    shape[0] = ane__count((int)axis, x->shape);
    shape[1] = ane__count(x->rank - (int)axis, x->shape + axis);
    return reshaped(ev, 2, shape);
}

ane_status ane__eval_transpose(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t perm[ANE_MAX_RANK], shape[ANE_MAX_RANK];
    int p[ANE_MAX_RANK], seen = 0;
    ane_eval_ints(ev, "perm", perm, ANE_MAX_RANK);
    for (int i = 0; i < x->rank; i++) {
        p[i] = (int)(perm[i] < 0 ? perm[i] + x->rank : perm[i]);
        if (p[i] < 0 || p[i] >= x->rank || (seen & (1 << p[i])))
            return ane_eval_fail(ev, ANE_ERR_INDEX, "'perm' is not a permutation");
        seen |= 1 << p[i];
        shape[i] = x->shape[p[i]];
    }
    ane_rt *y = ANE__OUT(0, x->rank, shape);
    ane__permute(y->data, x->data, x->rank, x->shape, p);
    return ANE_OK;
}

/* ---------------------------------------------------------------- several tensors */

/* Copies x over the box of y that begins at element `first` with these steps. */
static void place(ane_rt *y, int64_t first, const int64_t *steps, const ane_rt *x) {
    int64_t own[ANE_MAX_RANK];
    ane__strides(x->rank, x->shape, own);
    ane__copy(y->data + first, steps, x->data, own, x->rank, x->shape);
}

static ane_status shapes_fit(ane_eval *ev, int except) {
    const ane_rt *x = ane_eval_in_at(ev, "values", 0);
    for (int k = 1; k < ane_eval_in_n(ev, "values"); k++) {
        const ane_rt *v = ane_eval_in_at(ev, "values", k);
        bool ok = v->rank == x->rank;
        for (int i = 0; ok && i < x->rank; i++)
            ok = i == except || v->shape[i] == x->shape[i];
        if (!ok) return ane_eval_fail(ev, ANE_ERR_SHAPE, "values[%d] does not fit", k);
    }
    return ANE_OK;
}

ane_status ane__eval_concat(ane_eval *ev) {
    int n = ane_eval_in_n(ev, "values"), axis = 0;
    const ane_rt *x = ane_eval_in_at(ev, "values", 0);
    bool interleave = ane_eval_bool(ev, "interleave", false);
    int rank = x->rank ? x->rank : 1;
    ane_status st = ane__eval_axis(ev, "axis", 0, rank, &axis);
    if (!st) st = shapes_fit(ev, interleave ? -1 : axis);
    if (st) return st;
    int64_t shape[ANE_MAX_RANK], steps[ANE_MAX_RANK], at = 0;
    memcpy(shape, x->shape, sizeof shape);
    shape[axis] = 0;
    for (int k = 0; k < n; k++) {
        const ane_rt *v = ane_eval_in_at(ev, "values", k);
        shape[axis] += v->rank ? v->shape[axis] : 1;
    }
    ane_rt *y = ANE__OUT(0, rank, shape);
    if (!y->count) return ANE_OK;
    ane__strides(rank, shape, steps);
    int64_t unit = steps[axis];
    if (interleave && x->rank) steps[axis] *= n;
    for (int k = 0; k < n; k++) {
        const ane_rt *v = ane_eval_in_at(ev, "values", k);
        if (v->count) place(y, at, steps, v);
        at += unit * (interleave || !v->rank ? 1 : v->shape[axis]);
    }
    return ANE_OK;
}

ane_status ane__eval_stack(ane_eval *ev) {
    int n = ane_eval_in_n(ev, "values"), axis;
    const ane_rt *x = ane_eval_in_at(ev, "values", 0);
    ane_status st = ane__eval_axis(ev, "axis", 0, x->rank + 1, &axis);
    if (!st) st = shapes_fit(ev, -1);
    if (st) return st;
    int64_t shape[ANE_MAX_RANK], steps[ANE_MAX_RANK], unit;
    for (int i = 0, k = 0; i <= x->rank; i++) shape[i] = i == axis ? n : x->shape[k++];
    ane_rt *y = ANE__OUT(0, x->rank + 1, shape);
    if (!y->count) return ANE_OK;
    ane__strides(x->rank + 1, shape, steps);
    unit = steps[axis];
    memmove(steps + axis, steps + axis + 1, sizeof *steps * (size_t)(x->rank - axis));
    for (int k = 0; k < n; k++) place(y, k * unit, steps, ane_eval_in_at(ev, "values", k));
    return ANE_OK;
}

ane_status ane__eval_split(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int axis, n = ev->op->n_results;
    ane_status st = ane__eval_axis(ev, "axis", 0, x->rank, &axis);
    if (st) return st;
    int64_t sizes[ANE_MAX_RESULTS], shape[ANE_MAX_RANK], own[ANE_MAX_RANK],
        to[ANE_MAX_RANK], d = x->shape[axis], at = 0, sum = 0;
    int given = ane_eval_ints(ev, "split_sizes", sizes, ANE_MAX_RESULTS);
    for (int i = 0; i < n; i++) {
        if (given < 0) sizes[i] = d / n;
        if (sizes[i] < 0 || sizes[i] > d - sum) break;
        sum += sizes[i];
    }
    if (sum != d)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "%d parts do not make up dimension %d, %lld", n,
                             axis, (long long)d);
    ane__strides(x->rank, x->shape, own);
    memcpy(shape, x->shape, sizeof shape);
    for (int i = 0; i < n; i++) {
        shape[axis] = sizes[i];
        ane_rt *y = ANE__OUT(i, x->rank, shape);
        ane__strides(x->rank, shape, to);
        ane__copy(y->data, to, x->data + at * own[axis], own, x->rank, shape);
        at += sizes[i];
    }
    return ANE_OK;
}

ane_status ane__eval_tile(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    int64_t reps[ANE_MAX_RANK], shape[ANE_MAX_RANK], own[ANE_MAX_RANK], to[ANE_MAX_RANK];
    int n = ane_eval_ints(ev, "reps", reps, ANE_MAX_RANK), r = x->rank;
    for (int i = 0; i < r; i++)
        if (n != r || reps[i] < 1 || __builtin_mul_overflow(x->shape[i], reps[i], &shape[i]))
            return ane_eval_fail(ev, ANE_ERR_INVALID, "'reps' must be %d numbers of 1 or more",
                                 r);
    ane_rt *y = ANE__OUT(0, r, shape);
    if (!y->count) return ANE_OK;
    ane__strides(r, x->shape, own);
    ane__strides(r, shape, to);
    ane__copy(y->data, to, x->data, own, r, x->shape);
    /* Then dim by dim from the last: the first x.shape[i] slices are repeated. Seen from dim
     * i everything after it is full and everything before it still has x's extent. */
    for (int i = r - 1; i >= 0; i--) {
        int64_t box[ANE_MAX_RANK];
        for (int k = 0; k < r; k++) box[k] = k <= i ? x->shape[k] : shape[k];
        for (int64_t t = 1; t < reps[i]; t++)
            ane__copy(y->data + t * x->shape[i] * to[i], to, y->data, to, r, box);
    }
    return ANE_OK;
}

/* Which source index a padded position reads; -1: the constant. */
static int64_t padded_from(int64_t i, int64_t n, char mode) {
    if (i >= 0 && i < n) return i;
    if (mode == 'c') return -1;
    if (mode == 'e') return i < 0 ? 0 : n - 1;
    return i < 0 ? -i : 2 * (n - 1) - i;
}

ane_status ane__eval_pad(ane_eval *ev) {
    const ane_rt *x = ane_eval_in(ev, "x");
    const char *name = ane_eval_str(ev, "mode", "constant");
    char mode = name[0] == 'c' ? 'c' : name[2] == 'p' ? 'e' : 'r';  /* reP-licate, reF-lect */
    double value = ane_eval_f64(ev, "constant_val", 0);
    int64_t pad[2 * ANE_MAX_RANK], shape[ANE_MAX_RANK], at[ANE_MAX_RANK] = {0},
        own[ANE_MAX_RANK], lo[ANE_MAX_RANK] = {0};
    int n = ane_eval_ints(ev, "pad", pad, 2 * ANE_MAX_RANK), r = x->rank;
    if (n < 0 || n % 2 || n > 2 * r)
        return ane_eval_fail(ev, ANE_ERR_SHAPE, "'pad' has %d elements for rank %d", n, r);
    memcpy(shape, x->shape, sizeof shape);
    for (int i = 0; i < n / 2; i++) {
        int a = r - n / 2 + i;
        int64_t b = pad[2 * i], e = pad[2 * i + 1], d = shape[a],
                most = mode == 'r' ? d - 1 : mode == 'e' ? d : INT32_MAX;
        if (b < 0 || e < 0 || b > most || e > most)
            return ane_eval_fail(ev, ANE_ERR_INVALID, "mode \"%s\" cannot pad dimension %d "
                                 "(%lld) by %lld and %lld", name, a, (long long)d, (long long)b,
                                 (long long)e);
        lo[a] = b;
        shape[a] += b + e;
    }
    ane_rt *y = ANE__OUT(0, r, shape);
    if (!y->count) return ANE_OK;
    if (!r) {
        y->data[0] = x->data[0];
        return ANE_OK;
    }
    ane__strides(r, x->shape, own);
    int64_t len = shape[r - 1], rows = y->count / len;
    double *o = y->data;
    for (int64_t row = 0; row < rows; row++, o += len) {
        int64_t from = 0;
        for (int i = 0; i < r - 1 && from >= 0; i++) {
            int64_t s = padded_from(at[i] - lo[i], x->shape[i], mode);
            from = s < 0 ? -1 : from + s * own[i];
        }
        for (int64_t k = 0; k < len; k++) {
            int64_t s = from < 0 ? -1 : padded_from(k - lo[r - 1], x->shape[r - 1], mode);
            o[k] = s < 0 ? value : x->data[from + s];
        }
        for (int i = r - 2; i >= 0; i--) {
            if (++at[i] < shape[i]) break;
            at[i] = 0;
        }
    }
    return ANE_OK;
}

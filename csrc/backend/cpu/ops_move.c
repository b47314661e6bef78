/* Ops that only rename elements: views, and the places of concat's operands. */
#include "ops.h"
#include "view.h"

#include <string.h>

typedef enum move {
    NOT_A_MOVE, RESHAPE, TRANSPOSE, SLICE_SIZE, SLICE_INDEX, SPLIT, REVERSE, CROP
} move;

static move kind_of(const ane_op *op) {
    static const struct {
        const char *name;
        move kind;
    } table[] = {
        {"reshape", RESHAPE},         {"reshape_like", RESHAPE}, {"expand_dims", RESHAPE},
        {"squeeze", RESHAPE},         {"identity", RESHAPE},     {"flatten2d", RESHAPE},
        {"transpose", TRANSPOSE},     {"slice_by_size", SLICE_SIZE},
        {"slice_by_index", SLICE_INDEX}, {"split", SPLIT},       {"reverse", REVERSE},
        {"crop", CROP},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(op->row->name, table[i].name)) return table[i].kind;
    return NOT_A_MOVE;
}

static bool tensor(const ane_value *v) { return v && ane_plan_is_tensor(v->type); }

bool ane_op_is_move(const ane_op *op) {
    move m = kind_of(op);
    if (m == NOT_A_MOVE || !tensor(ane_op_in(op, "x"))) return false;
    for (int i = 0; i < op->n_results; i++)
        if (!tensor(op->results[i])) return false;
    if (m == TRANSPOSE) return ane_op_const(op, "perm") != NULL;
    if (m == SLICE_SIZE) return ane_op_const(op, "begin") != NULL;
    if (m == SLICE_INDEX) return ane_op_const(op, "begin") != NULL;
    return true;
}

static bool flag(const ane_op *op, const char *name, int i) {
    const ane_const *c = ane_op_const(op, name);
    int64_t n = c ? ane_type_count(c->type) : 0;
    return i < n && ane_const_i64(c, n == 1 ? 0 : i) != 0;
}

bool ane_move_view(const ane_op *op, int result, const ane_view *x, ane_view *out) {
    const ane_type *t = op->results[result]->type;
    int64_t a[ANE_MAX_RANK], s[ANE_MAX_RANK];
    int perm[ANE_MAX_RANK], n;
    ane_view v = *x;
    switch (kind_of(op)) {
    case RESHAPE: return ane_view_reshape(x, t->rank, t->dims, out);
    case TRANSPOSE:
        n = ane_op_ints(op, "perm", a, ANE_MAX_RANK);
        if (n != x->rank) return false;
        for (int i = 0; i < n; i++) perm[i] = (int)(a[i] < 0 ? a[i] + n : a[i]);
        ane_view_permute(x, perm, out);
        return true;
    case SLICE_SIZE:
        if (ane_op_ints(op, "begin", a, ANE_MAX_RANK) != x->rank) return false;
        for (int i = 0; i < x->rank; i++)
            ane_view_slice(&v, i, a[i] < 0 ? a[i] + x->shape[i] : a[i], t->dims[i], 1);
        *out = v;
        return true;
    case SLICE_INDEX:
        if (ane_op_ints(op, "begin", a, ANE_MAX_RANK) != x->rank) return false;
        n = ane_op_ints(op, "stride", s, ANE_MAX_RANK);
        out->rank = 0;
        for (int i = 0, k = 0; i < x->rank; i++) {
            int64_t step = n > 0 ? s[n == 1 ? 0 : i] : 1, dim = x->shape[i], begin = a[i];
            bool drop = flag(op, "squeeze_mask", i);
            if (flag(op, "begin_mask", i) && !drop) begin = step > 0 ? 0 : dim - 1;
            else if (begin < 0) begin += dim;
            int64_t hi = step > 0 ? dim : dim - 1;
            begin = begin < 0 ? 0 : begin > hi ? hi : begin;
            if (!drop && k >= t->rank) return false;
            ane_view_slice(&v, i, begin, drop ? 1 : t->dims[k], step);
            k += !drop;
        }
        /* Dropped dims are ones now. */
        for (int i = 0, k = 0; i < x->rank; i++) {
            if (flag(op, "squeeze_mask", i)) continue;
            v.shape[k] = v.shape[i];
            v.strides[k++] = v.strides[i];
            v.rank = k;
        }
        if (t->rank == 0) v.rank = 0;
        *out = v;
        return v.rank == t->rank;
    case SPLIT: {
        int64_t axis = ane_op_i64(op, "axis", 0), at = 0;
        if (axis < 0) axis += x->rank;
        for (int i = 0; i < result; i++) at += op->results[i]->type->dims[axis];
        ane_view_slice(&v, (int)axis, at, t->dims[axis], 1);
        *out = v;
        return true;
    }
    case REVERSE:
        n = ane_op_ints(op, "axes", a, ANE_MAX_RANK);
        for (int i = 0; i < x->rank; i++) {
            bool on = n <= 0;
            for (int k = 0; k < n; k++) on = on || (a[k] < 0 ? a[k] + x->rank : a[k]) == i;
            if (on && x->shape[i]) ane_view_slice(&v, i, x->shape[i] - 1, x->shape[i], -1);
        }
        *out = v;
        return true;
    case CROP: {
        int64_t h[2], w[2];
        if (ane_op_ints(op, "crop_height", h, 2) != 2 || ane_op_ints(op, "crop_width", w, 2) != 2)
            return false;
        ane_view_slice(&v, x->rank - 2, h[0], t->dims[x->rank - 2], 1);
        ane_view_slice(&v, x->rank - 1, w[0], t->dims[x->rank - 1], 1);
        *out = v;
        return true;
    }
    case NOT_A_MOVE: break;
    }
    return false;
}

bool ane_move_back(const ane_op *op, const ane_view *out, ane_view *x) {
    const ane_type *t = ane_op_in(op, "x")->type;
    int64_t a[ANE_MAX_RANK];
    int perm[ANE_MAX_RANK];
    switch (kind_of(op)) {
    case RESHAPE: return ane_view_reshape(out, t->rank, t->dims, x);
    case TRANSPOSE:
        if (ane_op_ints(op, "perm", a, ANE_MAX_RANK) != t->rank) return false;
        for (int i = 0; i < t->rank; i++) perm[a[i] < 0 ? a[i] + t->rank : a[i]] = i;
        ane_view_permute(out, perm, x);
        return true;
    default: return false;
    }
}

bool ane_op_is_join(const ane_op *op) {
    bool stack = !strcmp(op->row->name, "stack");
    if (!stack && strcmp(op->row->name, "concat")) return false;
    if (!tensor(op->results[0])) return false;
    const ane_arg *a = ane_op_arg(op, "values");
    for (int i = 0; i < a->n; i++)
        if (!tensor(a->v[i])) return false;
    return a->n > 0;
}

void ane_join_part(const ane_op *op, int i, const ane_view *whole, ane_view *part) {
    const ane_arg *a = ane_op_arg(op, "values");
    ane_view v = *whole;
    int64_t axis = ane_op_i64(op, "axis", 0);
    if (axis < 0) axis += whole->rank;
    if (!strcmp(op->row->name, "stack")) {
        ane_view_slice(&v, (int)axis, i, 1, 1);
        for (int d = (int)axis; d + 1 < v.rank; d++) {
            v.shape[d] = v.shape[d + 1];
            v.strides[d] = v.strides[d + 1];
        }
        v.rank--;
    } else if (ane_op_bool(op, "interleave", false)) {
        ane_view_slice(&v, (int)axis, i, a->v[i]->type->dims[axis], a->n);
    } else if (a->v[i]->type->rank == 0) {              /* scalars make a vector */
        ane_view_slice(&v, 0, i, 1, 1);
        v.rank = 0;
    } else {
        int64_t at = 0;
        for (int k = 0; k < i; k++) at += a->v[k]->type->dims[axis];
        ane_view_slice(&v, (int)axis, at, a->v[i]->type->dims[axis], 1);
    }
    *part = v;
}

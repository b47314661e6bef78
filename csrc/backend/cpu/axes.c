/* Dims of several strides, and the operands and results that are found as such. */
#include "axes.h"

#include "ops.h"
#include "view.h"

#include "../../base/env.h"

#include <string.h>

int64_t ane_axes_dim(const ane_axes *x, int dim) {
    int64_t n = 1;
    for (int i = x->first[dim]; i < x->first[dim + 1]; i++) n *= x->size[i];
    return n;
}

void ane_axes_of_view(const ane_view *v, ane_axes *out) {
    *out = (ane_axes){.buf = v->buf, .dtype = v->dtype, .offset = v->offset, .rank = v->rank};
    int n = 0;
    for (int i = 0; i < v->rank; i++) {
        if (v->shape[i] != 1) {
            out->size[n] = v->shape[i];
            out->stride[n++] = v->strides[i];
        }
        out->first[i + 1] = n;
    }
}

void ane_axes_as_view(const ane_axes *x, ane_view *out) {
    *out = (ane_view){.buf = x->buf, .dtype = x->dtype, .offset = x->offset,
                      .rank = x->first[x->rank]};
    memcpy(out->shape, x->size, sizeof out->shape);
    memcpy(out->strides, x->stride, sizeof out->strides);
}

static bool reshape(const ane_axes *x, int rank, const int64_t *shape, ane_axes *out) {
    ane_axes r = {.buf = x->buf, .dtype = x->dtype, .offset = x->offset, .rank = rank};
    ane_axes from = *x;
    int at = 0, all = x->first[x->rank], n = 0;
    for (int d = 0; d < rank; d++) {
        for (int64_t left = shape[d]; left > 1;) {
            if (at == all || n == ANE_MAX_RANK || from.size[at] < 1) return false;
            int64_t s = from.size[at];
            if (left % s == 0) {
                r.size[n] = s;
                r.stride[n++] = from.stride[at++];
                left /= s;
            } else if (s % left == 0) {     /* its outer part */
                r.size[n] = left;
                r.stride[n++] = from.stride[at] * (s / left);
                from.size[at] = s / left;
                left = 1;
            } else {
                return false;
            }
        }
        r.first[d + 1] = n;
    }
    if (at != all) return false;
    *out = r;
    return true;
}

static void permute(const ane_axes *x, const int *perm, ane_axes *out) {
    ane_axes r = {.buf = x->buf, .dtype = x->dtype, .offset = x->offset, .rank = x->rank};
    int n = 0;
    for (int d = 0; d < x->rank; d++) {
        for (int i = x->first[perm[d]]; i < x->first[perm[d] + 1]; i++, n++) {
            r.size[n] = x->size[i];
            r.stride[n] = x->stride[i];
        }
        r.first[d + 1] = n;
    }
    *out = r;
}

void ane_axes_swap(ane_axes *x) {
    int perm[ANE_MAX_RANK];
    for (int i = 0; i < x->rank; i++) perm[i] = i;
    perm[x->rank - 1] = x->rank - 2;
    perm[x->rank - 2] = x->rank - 1;
    permute(x, perm, x);
}

/* x `reps[d]` times along every dim. */
static bool repeat(const ane_axes *x, const int64_t *reps, ane_axes *out) {
    ane_axes r = {.buf = x->buf, .dtype = x->dtype, .offset = x->offset, .rank = x->rank};
    int n = 0;
    for (int d = 0; d < x->rank; d++) {
        int more = x->first[d + 1] - x->first[d];
        if (n + more + (reps[d] != 1) > ANE_MAX_RANK) return false;
        if (reps[d] != 1) {
            r.size[n] = reps[d];
            r.stride[n++] = 0;
        }
        for (int i = x->first[d]; i < x->first[d + 1]; i++, n++) {
            r.size[n] = x->size[i];
            r.stride[n] = x->stride[i];
        }
        r.first[d + 1] = n;
    }
    *out = r;
    return true;
}

bool ane_axes_broadcast(const ane_axes *x, int rank, const int64_t *shape, ane_axes *out) {
    ane_axes r = {.buf = x->buf, .dtype = x->dtype, .offset = x->offset, .rank = rank};
    int n = 0, pad = rank - x->rank;
    if (pad < 0) return false;
    for (int d = 0; d < rank; d++) {
        int64_t have = d < pad ? 1 : ane_axes_dim(x, d - pad);
        if (have != shape[d] && have != 1) return false;
        if (have == 1 && shape[d] != 1) {
            if (n == ANE_MAX_RANK) return false;
            r.size[n] = shape[d];
            r.stride[n++] = 0;
        } else if (have != 1) {
            for (int i = x->first[d - pad]; i < x->first[d - pad + 1]; i++, n++) {
                if (n == ANE_MAX_RANK) return false;
                r.size[n] = x->size[i];
                r.stride[n] = x->stride[i];
            }
        }
        r.first[d + 1] = n;
    }
    *out = r;
    return true;
}

bool ane_axes_align(int n, const ane_axes *const *x, const int *first, const int *last,
                    ane_axis *out) {
    int at[10];
    int64_t left[10];                   /* of the factor being cut, from its inner end */
    ANE_ASSERT(n <= 10);
    for (int k = 0; k < n; k++) {
        if (!x[k]) continue;
        at[k] = x[k]->first[last[k]] - 1;
        left[k] = at[k] >= x[k]->first[first[k]] ? x[k]->size[at[k]] : 0;
    }
    ane_axis r = {0};                   /* innermost first, turned round in the end */
    for (;;) {
        int64_t m = 0;
        for (int k = 0; k < n; k++)
            if (x[k] && left[k] && (!m || left[k] < m)) m = left[k];
        if (!m) break;
        if (r.n == ANE_MAX_RANK) return false;
        for (int k = 0; k < n; k++) {
            if (!x[k]) continue;
            if (!left[k] || left[k] % m) return false;
            r.stride[r.n][k] = x[k]->stride[at[k]] * (x[k]->size[at[k]] / left[k]);
            left[k] /= m;
            if (left[k] == 1) {
                at[k]--;
                left[k] = at[k] >= x[k]->first[first[k]] ? x[k]->size[at[k]] : 0;
            }
        }
        r.size[r.n++] = m;
        /* One step of the last factor and this one? */
        if (r.n < 2) continue;
        bool join = true;
        for (int k = 0; k < n; k++)
            join = join && (!x[k] || r.stride[r.n - 1][k] ==
                                         r.stride[r.n - 2][k] * r.size[r.n - 2]);
        if (join) {
            r.size[r.n - 2] *= m;
            r.n--;
        }
    }
    out->n = r.n;
    for (int i = 0; i < r.n; i++) {
        out->size[i] = r.size[r.n - 1 - i];
        memcpy(out->stride[i], r.stride[r.n - 1 - i], sizeof out->stride[i]);
    }
    return true;
}

/* ---------------------------------------------------------------- operands */

ane_status ane_plan_axes_dense(ane_planner *pl, const ane_axes *x, ane_axes *out) {
    ane_view src, dst, whole = {.dtype = x->dtype, .rank = x->rank};
    ane_axes_as_view(x, &src);
    ane_status st = ane_plan_temp(pl, &src, &dst);
    if (!st) st = ane_plan_copy(pl, &dst, &src);
    if (st) return st;
    for (int d = 0; d < x->rank; d++) whole.shape[d] = ane_axes_dim(x, d);
    ANE_ASSERT(ane_view_reshape(&dst, whole.rank, whole.shape, &whole));
    ane_axes_of_view(&whole, out);
    return ANE_OK;
}

static bool is(const ane_op *op, const char *name) { return !strcmp(op->row->name, name); }

static bool perm_of(const ane_op *op, int rank, int *perm) {
    int64_t p[ANE_MAX_RANK];
    if (ane_op_ints(op, "perm", p, ANE_MAX_RANK) != rank) return false;
    for (int i = 0; i < rank; i++) perm[i] = (int)(p[i] < 0 ? p[i] + rank : p[i]);
    return true;
}

static bool keeps_order(const ane_op *op) {
    return is(op, "reshape") || is(op, "expand_dims") || is(op, "squeeze");
}

/* Result of a shape op or repeat from its operand's axes; false: only after a copy. */
static bool moved(const ane_op *op, const ane_axes *x, ane_axes *out) {
    const ane_type *t = op->results[0]->type;
    int64_t reps[ANE_MAX_RANK];
    int perm[ANE_MAX_RANK];
    if (keeps_order(op)) return reshape(x, t->rank, t->dims, out);
    if (is(op, "transpose")) {
        if (!perm_of(op, x->rank, perm)) return false;
        permute(x, perm, out);
        return true;
    }
    if (is(op, "tile")) {
        if (ane_op_ints(op, "reps", reps, ANE_MAX_RANK) != x->rank) return false;
    } else {
        int64_t axis = ane_op_i64(op, "axis", 0);
        for (int d = 0; d < x->rank; d++) reps[d] = 1;
        reps[axis < 0 ? axis + x->rank : axis] = ane_op_arg(op, "values")->n;
    }
    return repeat(x, reps, out);
}

ane_status ane_plan_axes(ane_planner *pl, const ane_value *v, ane_axes *out) {
    const ane_op *op = v->konst || pl->places[v->id].placed ? NULL : v->def;
    if (op && op->block == pl->plan->fn->body && !ane_env_flag(ANE_ENV_NO_VIEWS) &&
        (ane_op_is_repeat(op) ||
         (ane_op_is_move(op) && (keeps_order(op) || is(op, "transpose"))))) {
        ane_axes x;
        const ane_value *in = is(op, "concat") ? ane_op_in(op, "values") : ane_op_in(op, "x");
        ane_status st = ane_plan_axes(pl, in, &x);
        if (st || moved(op, &x, out)) return st;
        st = ane_plan_axes_dense(pl, &x, &x);
        if (st || moved(op, &x, out)) return st;
        return ane_fail(pl->err, ANE_ERR_RUNTIME, "[compile] %s is not a view", v->name);
    }
    ane_view view;
    ane_status st = ane_plan_operand(pl, v, &view);
    if (!st) ane_axes_of_view(&view, out);
    return st;
}

/* ---------------------------------------------------------------- results */

#define MAX_MOVES 32

static int moves_between(const ane_value *v, const ane_value *last, const ane_op **ops) {
    int n = 0;
    for (; last != v && n < MAX_MOVES; last = ane_op_in(last->def, "x")) ops[n++] = last->def;
    ANE_ASSERT(last == v);
    return n;
}

ane_status ane_plan_axes_detour(ane_planner *pl, ane_axes_dest *d) {
    ane_view room, like = {.dtype = d->v->type->dtype, .rank = d->v->type->rank};
    memcpy(like.shape, d->v->type->dims, sizeof like.shape);
    ane_status st = ane_plan_temp(pl, &like, &room);
    if (st) return st;
    ane_axes_of_view(&room, &d->at);
    d->after = true;
    return ANE_OK;
}

ane_status ane_plan_axes_dest(ane_planner *pl, const ane_value *v, const ane_value *last,
                              ane_axes_dest *out) {
    const ane_op *ops[MAX_MOVES];
    int n = moves_between(v, last, ops);
    *out = (ane_axes_dest){.v = v, .last = last};
    ane_status st = ane_plan_dest(pl, last, &out->whole);
    if (st) return st;
    ane_axes x;
    ane_axes_of_view(&out->whole, &x);
    bool fits = n == 0 || !ane_env_flag(ANE_ENV_NO_VIEWS);
    for (int i = 0; i < n && fits; i++) {
        const ane_type *t = ane_op_in(ops[i], "x")->type;
        int perm[ANE_MAX_RANK], back[ANE_MAX_RANK];
        if (keeps_order(ops[i])) {
            fits = reshape(&x, t->rank, t->dims, &x);
        } else {
            fits = perm_of(ops[i], t->rank, perm);
            for (int d = 0; d < t->rank && fits; d++) back[perm[d]] = d;
            if (fits) permute(&x, back, &x);
        }
    }
    out->at = x;
    return fits ? ANE_OK : ane_plan_axes_detour(pl, out);
}

ane_status ane_plan_axes_finish(ane_planner *pl, const ane_axes_dest *d) {
    if (!d->after) return ANE_OK;
    const ane_op *ops[MAX_MOVES];
    int n = moves_between(d->v, d->last, ops);
    ane_axes x = d->at;
    ane_status st = ANE_OK;
    for (int i = n - 1; i >= 0 && !st; i--) {
        if (moved(ops[i], &x, &x)) continue;
        st = ane_plan_axes_dense(pl, &x, &x);
        if (!st) ANE_ASSERT(moved(ops[i], &x, &x));
    }
    if (st) return st;
    /* The same factors on both sides. */
    ane_view src, dst;
    ane_axes_as_view(&x, &src);
    if (!ane_view_reshape(&d->whole, src.rank, src.shape, &dst)) {
        st = ane_plan_axes_dense(pl, &x, &x);
        if (st) return st;
        ane_axes_as_view(&x, &src);
        ANE_ASSERT(ane_view_reshape(&d->whole, src.rank, src.shape, &dst));
    }
    return ane_plan_copy(pl, &dst, &src);
}

/* gather and scatter, along one axis: rows by number, and element by element.
 *
 * Every operand is taken as [outer, axis, inner] in row-major order; operands that are not
 * contiguous are copied first. Scattering keeps the order of the updates for every element
 * whatever the threads: they share out what lies beside the axis, never the updates.
 */
#include "ops.h"
#include "view.h"

#include "../../kernels/vec.h"

#include <string.h>

typedef enum how { COPY, ADD } how;

typedef struct index_plan {
    int64_t outer, d, inner, n;         /* d: the axis of x or data; n: number of indices */
    bool along, strict, negative_fails;
    how how;
    size_t unit;
    ane_dtype dtype, index_dtype;
    const char *name;
    int64_t piece;                      /* inner elements of one task of a scatter */
} index_plan;

typedef struct index_run {
    const index_plan *p;
    char *out;
    const char *x, *idx, *updates;
    atomic_llong bad;                   /* an index that is out of range, plus 1; 0: none */
    atomic_int bad_set;
} index_run;

static int64_t index_at(const index_plan *p, const char *idx, int64_t i) {
    switch (p->index_dtype) {
    case ANE_I32: { int32_t v; memcpy(&v, idx + i * 4, 4); return v; }
    case ANE_I16: { int16_t v; memcpy(&v, idx + i * 2, 2); return v; }
    case ANE_U16: { uint16_t v; memcpy(&v, idx + i * 2, 2); return v; }
    case ANE_I8: return ((const int8_t *)idx)[i];
    default: return ((const uint8_t *)idx)[i];
    }
}

/* The reference's rule (ir/eval_gather.c); -1: leave the update out. */
static bool resolve(index_run *run, int64_t i, bool nearest, int64_t *k) {
    const index_plan *p = run->p;
    int64_t v = index_at(p, run->idx, i), w = v < 0 ? v + p->d : v;
    *k = w;
    if (w >= 0 && w < p->d && !(v < 0 && p->negative_fails)) return true;
    if (p->strict || (nearest && !p->d)) {
        atomic_store(&run->bad, v);
        atomic_store(&run->bad_set, 1);
        return false;
    }
    *k = nearest ? (w < 0 ? 0 : p->d - 1) : -1;
    return true;
}

#define BLOCK 64                        /* indices of one gathering task */

static void gather_task(void *arg, size_t task) {
    index_run *run = arg;
    const index_plan *p = run->p;
    int64_t blocks = (p->n + BLOCK - 1) / BLOCK, o = (int64_t)task / blocks;
    int64_t i = (int64_t)task % blocks * BLOCK, end = i + BLOCK < p->n ? i + BLOCK : p->n;
    size_t row = (size_t)p->inner * p->unit;
    for (; i < end; i++) {
        int64_t k;
        if (!p->along) {
            if (!resolve(run, i, true, &k)) return;
            memcpy(run->out + (size_t)(o * p->n + i) * row,
                   run->x + (size_t)(o * p->d + k) * row, row);
            continue;
        }
        for (int64_t j = 0; j < p->inner; j++) {
            int64_t at = (o * p->n + i) * p->inner + j;
            if (!resolve(run, at, true, &k)) return;
            memcpy(run->out + (size_t)at * p->unit,
                   run->x + (size_t)((o * p->d + k) * p->inner + j) * p->unit, p->unit);
        }
    }
}

static void add_row(char *y, const char *u, ane_dtype dtype, int64_t n) {
    const ane_vec *v = ane_vec_get();
    float a[256], b[256];
    size_t unit = ane_dtype_size(dtype);
    for (int64_t j = 0; j < n; j += 256) {
        size_t m = n - j < 256 ? (size_t)(n - j) : 256;
        v->load(a, y + (size_t)j * unit, dtype, m);
        v->load(b, u + (size_t)j * unit, dtype, m);
        v->binary[ANE_VEC_ADD](a, a, b, m);
        v->store(y + (size_t)j * unit, dtype, a, m);
    }
}

static void scatter_task(void *arg, size_t task) {
    index_run *run = arg;
    const index_plan *p = run->p;
    int64_t pieces = (p->inner + p->piece - 1) / p->piece, o = (int64_t)task / pieces;
    int64_t j = (int64_t)task % pieces * p->piece;
    int64_t m = p->inner - j < p->piece ? p->inner - j : p->piece, k;
    for (int64_t i = 0; i < p->n; i++) {
        if (!p->along) {
            if (!resolve(run, i, false, &k)) return;
            if (k < 0) continue;
            char *y = run->out + (size_t)((o * p->d + k) * p->inner + j) * p->unit;
            const char *u = run->updates + (size_t)((o * p->n + i) * p->inner + j) * p->unit;
            if (p->how == ADD) add_row(y, u, p->dtype, m);
            else memcpy(y, u, (size_t)m * p->unit);
            continue;
        }
        for (int64_t q = j; q < j + m; q++) {
            int64_t at = (o * p->n + i) * p->inner + q;
            if (!resolve(run, at, false, &k)) return;
            if (k < 0) continue;
            char *y = run->out + (size_t)((o * p->d + k) * p->inner + q) * p->unit;
            const char *u = run->updates + (size_t)at * p->unit;
            if (p->how == ADD) add_row(y, u, p->dtype, 1);
            else memcpy(y, u, p->unit);
        }
    }
}

static ane_status run_index(ane_exec *ex, const ane_step *s, ane_error *err) {
    const index_plan *p = s->data;
    index_run run = {.p = p, .out = ane_at(ex, ane_step_out(s, 0)),
                     .idx = ane_at(ex, ane_step_in(s, 0))};
    bool scatter = s->n_in == 3;
    size_t tasks = (size_t)(p->outer * ((p->n + BLOCK - 1) / BLOCK));
    if (scatter) {
        run.updates = ane_at(ex, ane_step_in(s, 1));
        tasks = (size_t)(p->outer * ((p->inner + p->piece - 1) / p->piece));
    } else {
        run.x = ane_at(ex, ane_step_in(s, 1));
    }
    ane_task_fn *fn = scatter ? scatter_task : gather_task;
    if (p->outer * p->n * p->inner < 8192)
        for (size_t t = 0; t < tasks; t++) fn(&run, t);
    else if (!ane_parallel_for(tasks, fn, &run)) return ane_run_check(err);
    if (atomic_load(&run.bad_set))
        return ane_fail(err, ANE_ERR_INDEX,
                        "[run] %s: index %lld is out of range for a dimension of %lld",
                        p->name, (long long)atomic_load(&run.bad), (long long)p->d);
    return ANE_OK;
}

static ane_status dense(ane_planner *pl, const ane_value *v, ane_view *out) {
    ane_status st = ane_plan_operand(pl, v, out);
    if (st || ane_view_contiguous(out)) return st;
    ane_view copy;
    st = ane_plan_temp(pl, out, &copy);
    if (!st) st = ane_plan_copy(pl, &copy, out);
    *out = copy;
    return st;
}

ane_status ane_plan_index(ane_planner *pl, const ane_op *op, bool *done) {
    const char *name = op->row->name;
    bool gather = !strcmp(name, "gather"), along = !strcmp(name, "gather_along_axis");
    bool scatter = !strcmp(name, "scatter"), scatter_along = !strcmp(name, "scatter_along_axis");
    *done = false;
    if (!gather && !along && !scatter && !scatter_along) return ANE_OK;
    bool puts = scatter || scatter_along;
    const ane_value *x = ane_op_in(op, puts ? "data" : "x"), *idx = ane_op_in(op, "indices");
    const ane_value *u = puts ? ane_op_in(op, "updates") : NULL;
    if (!ane_plan_is_tensor(x->type) || !ane_plan_is_tensor(idx->type) ||
        (u && !ane_plan_is_tensor(u->type)) || !ane_plan_is_tensor(op->results[0]->type))
        return ANE_OK;
    ane_dtype d = x->type->dtype, it = idx->type->dtype;
    if (it != ANE_I32 && it != ANE_I16 && it != ANE_U16 && it != ANE_I8 && it != ANE_U8)
        return ANE_OK;
    if (ane_op_i64(op, "batch_dims", 0) != 0) return ANE_OK;
    if (idx->konst && !ane_dtype_size(it)) return ANE_OK;
    index_plan p = {.along = along || scatter_along, .dtype = d, .index_dtype = it,
                    .unit = ane_dtype_size(d), .name = name};
    const char *mode = ane_op_str(op, "mode", "add");
    if (puts) {
        if (!strcmp(mode, "update")) p.how = COPY;
        else if (!strcmp(mode, "add") && ane_dtype_is_float(d)) p.how = ADD;
        else return ANE_OK;
    }
    bool validate = ane_op_bool(op, "validate_indices", false);
    p.strict = op->row->opset < 17 || validate;
    p.negative_fails = op->row->opset >= 17 && p.strict;
    int rank = x->type->rank;
    int64_t axis = ane_op_i64(op, "axis", 0);
    if (axis < 0) axis += rank;
    p.outer = p.inner = 1;
    for (int i = 0; i < rank; i++) {
        if (i < axis) p.outer *= x->type->dims[i];
        if (i > axis) p.inner *= x->type->dims[i];
    }
    p.d = x->type->dims[axis];
    p.n = p.along ? idx->type->dims[axis] : ane_type_count(idx->type);
    p.piece = p.inner < 256 ? p.inner : 256;
    if (p.outer * p.inner == 0 || ane_type_count(op->results[0]->type) == 0) return ANE_OK;

    ane_view out, vx, vi, vu = {.buf = -1};
    ane_status st = dense(pl, idx, &vi);
    if (!st && u) st = dense(pl, u, &vu);
    if (!st) st = puts ? ane_plan_operand(pl, x, &vx) : dense(pl, x, &vx);
    if (!st) st = ane_plan_dest(pl, op->results[0], &out);
    if (st) return st;
    ane_view made = out;
    if (!ane_view_contiguous(&out)) {
        st = ane_plan_temp(pl, &out, &made);
        if (st) return st;
    }
    if (puts) {                         /* starts as a copy of data */
        st = ane_plan_copy(pl, &made, &vx);
        if (st) return st;
    }
    ane_step *s = p.n ? ane_plan_step(pl, run_index, op, 1, puts ? 3 : 2) : NULL;
    index_plan *kept = ane_arena_alloc(pl->plan->arena, sizeof *kept);
    if ((p.n && !s) || !kept) return ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    *kept = p;
    if (s) {
        s->data = kept;
        *ane_step_out(s, 0) = made;
        *ane_step_in(s, 0) = vi;
        *ane_step_in(s, 1) = puts ? vu : vx;
        if (puts) *ane_step_in(s, 2) = made;    /* read as well as written */
    }
    *done = true;
    return made.buf == out.buf && ane_view_same(&made, &out) ? ANE_OK
                                                            : ane_plan_copy(pl, &out, &made);
}

/* ---------------------------------------------------------------- tile, fill */

ane_status ane_plan_spread(ane_planner *pl, const ane_op *op, bool *done) {
    const char *name = op->row->name;
    bool tile = !strcmp(name, "tile"), like = !strcmp(name, "fill_like");
    *done = false;
    const ane_type *t = op->results[0]->type;
    if ((!tile && !like && strcmp(name, "fill")) || !ane_plan_is_tensor(t)) return ANE_OK;
    const ane_value *x = ane_op_in(op, tile ? "x" : "value");
    ane_view src, dst;
    if (tile) {
        int64_t reps[ANE_MAX_RANK];
        if (!ane_plan_is_tensor(x->type) ||
            ane_op_ints(op, "reps", reps, ANE_MAX_RANK) != t->rank)
            return ANE_OK;
        int rank = t->rank;
        for (int i = 0; i < t->rank; i++) rank += reps[i] > 1 && x->type->dims[i] > 1;
        if (rank > ANE_MAX_RANK) return ANE_OK;
        ane_status st = ane_plan_operand(pl, x, &src);
        if (!st) st = ane_plan_dest(pl, op->results[0], &dst);
        if (st) return st;
        /* A repeated dim becomes two: the copies, stepping 0 in x, and the dim itself. */
        ane_view a = {.buf = src.buf, .dtype = src.dtype, .offset = src.offset, .rank = rank};
        ane_view b = {.buf = dst.buf, .dtype = dst.dtype, .offset = dst.offset, .rank = rank};
        for (int i = 0, k = 0; i < t->rank; i++, k++) {
            int64_t dim = x->type->dims[i];
            if (reps[i] > 1 && dim > 1) {
                a.shape[k] = b.shape[k] = reps[i];
                b.strides[k++] = dst.strides[i] * dim;
            }
            a.shape[k] = b.shape[k] = dim > 1 ? dim : t->dims[i];
            a.strides[k] = dim > 1 ? src.strides[i] : 0;
            b.strides[k] = dst.strides[i];
        }
        *done = true;
        return ane_plan_copy(pl, &b, &a);
    }
    ane_view wide;
    if (!x || !x->konst || ane_type_count(x->type) != 1 || !ane_dtype_size(x->type->dtype) ||
        x->type->dtype != t->dtype)
        return ANE_OK;
    ane_status st = ane_plan_operand(pl, x, &src);
    if (!st) st = ane_plan_dest(pl, op->results[0], &dst);
    if (st) return st;
    src.rank = 0;
    ANE_ASSERT(ane_view_broadcast(&src, dst.rank, dst.shape, &wide));
    *done = true;
    return ane_plan_copy(pl, &dst, &wide);
}

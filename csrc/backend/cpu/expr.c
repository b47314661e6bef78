/* Ops to expressions, and the interpreter of one tile. */
#include "ins.h"
#include "ops.h"
#include "view.h"

#include "../../ir/target.h"

#include <math.h>
#include <string.h>

/* ---------------------------------------------------------------- building */

typedef struct builder {
    ane_planner *pl;
    const ane_graph *g;
    const ane_group *grp;
    ane_expr *e;
    int cap_ins, cap_views;
    int *reg;                           /* by value id: virtual register + 1; 0: none */
    int n_virtual;
    const ane_type *space;
} builder;

static ane_ins *emit(builder *b, ane_ins_fn *fn, int a, int c2, int c3) {
    ane_expr *e = b->e;
    if (e->n_ins == b->cap_ins) return NULL;            /* sized before; cannot happen */
    ane_ins *i = &e->ins[e->n_ins++];
    *i = (ane_ins){.fn = fn, .a = a, .b = c2, .c = c3, .dst = b->n_virtual++, .load = -1};
    return i;
}

/* Virtual register of an operand: a value of the group, a constant scalar, or a load. */
static ane_status operand(builder *b, const ane_value *given, const ane_type *of, int *reg) {
    const ane_value *v = ane_value_through(given);
    if (!given->konst && b->reg[v->id]) {
        *reg = b->reg[v->id] - 1;
        return ANE_OK;
    }
    if (given->konst && ane_type_count(given->type) == 1 && given->konst->data) {
        ane_ins *i = emit(b, ane__do_fill, -1, -1, -1);
        if (given->type->dtype == ANE_I32) {
            int32_t k = (int32_t)ane_const_i64(given->konst, 0);
            memcpy(&i->s, &k, sizeof k);
        } else if (given->type->dtype == ANE_BOOL) {
            i->s = ane_const_i64(given->konst, 0) != 0;
        } else {
            i->s = ane_plan_scalar(b->pl, given);
        }
        *reg = i->dst;
        return ANE_OK;
    }
    ane_view view, wide;
    ane_status st = ane_plan_operand(b->pl, given, &view);
    if (st) return st;
    if (!ane_view_broadcast(&view, of->rank, of->dims, &wide))
        return ane_fail(b->pl->err, ANE_ERR_SHAPE, "[compile] %s does not broadcast",
                        given->name);
    ane_view_drop_ones(&wide, of->dims, of->rank);
    ane_expr *e = b->e;
    int k = 0;
    while (k < e->n_views && !ane_view_same(&e->views[k], &wide)) k++;
    for (int j = 0; j < e->n_ins; j++)
        if (k < e->n_views && e->ins[j].load == k) {
            *reg = e->ins[j].dst;
            return ANE_OK;
        }
    if (k == e->n_views) e->views[e->n_views++] = wide;
    ane_ins *i = emit(b, NULL, -1, -1, -1);
    i->load = k;
    *reg = i->dst;
    return ANE_OK;
}

/* The constant of operand `v` as a scalar of a binary float op. */
static bool scalar_of(const builder *b, const ane_value *v, float *s) {
    if (!v->konst || ane_type_count(v->type) != 1 || !v->konst->data ||
        !ane_dtype_is_float(v->type->dtype))
        return false;
    *s = ane_plan_scalar(b->pl, v);
    return true;
}

/* x to a constant power by cheaper ways; all as accurate as powf or better. */
static const ane_vec_unary *cheap_power(float s) {
    static const ane_vec_unary square = ANE_VEC_SQUARE, rsqrt = ANE_VEC_RSQRT,
                               root = ANE_VEC_SQRT, recip = ANE_VEC_RECIP;
    if (s == 2.0f) return &square;
    if (s == -0.5f) return &rsqrt;
    if (s == 0.5f) return &root;
    if (s == -1.0f) return &recip;
    return NULL;
}

static ane_status cast(builder *b, const ane_op *op, int a) {
    ane_dtype from = ane_op_in(op, "x")->type->dtype, to = op->results[0]->type->dtype;
    ane_ins *i = NULL;
    bool ff = ane_dtype_is_float(from), tf = ane_dtype_is_float(to);
    if (ff && tf && to != ANE_F32 && to != from) {
        i = emit(b, ane__do_round, a, -1, -1);
        i->kind = (int)to;
    } else if (ff && to == ANE_I32) i = emit(b, ane__do_f2i, a, -1, -1);
    else if (from == ANE_BOOL && to == ANE_I32) i = emit(b, ane__do_f2i, a, -1, -1);
    else if (from == ANE_I32 && tf) i = emit(b, ane__do_i2f, a, -1, -1);
    else if (ff && to == ANE_BOOL) i = emit(b, ane__do_f2b, a, -1, -1);
    else if (from == ANE_I32 && to == ANE_BOOL) i = emit(b, ane__do_i2b, a, -1, -1);
    /* A stored value has a register of its own: one that is the input's memory could be
     * overwritten by another store. */
    if (!i && ane_value_escapes(b->g, op->results[0], b->grp)) i = emit(b, ane__do_copy, a, -1, -1);
    b->reg[op->results[0]->id] = (i ? i->dst : a) + 1;
    return ANE_OK;
}

/* A constant vector along dim 1, made here; its register. */
static ane_status along_channels(builder *b, const ane_type *of, const float *data, int *reg) {
    int buf = ane_plan_buf(b->pl, ANE_BUF_CONST, (size_t)of->dims[1] * sizeof *data);
    if (buf < 0) return ANE_ERR_NOMEM;
    b->pl->plan->bufs[buf].data = data;
    ane_view v = {.buf = buf, .dtype = ANE_F32, .rank = of->rank};
    memcpy(v.shape, of->dims, sizeof v.shape);
    v.strides[1] = sizeof *data;
    ane_view_drop_ones(&v, of->dims, of->rank);
    b->e->views[b->e->n_views] = v;
    ane_ins *i = emit(b, NULL, -1, -1, -1);
    i->load = b->e->n_views++;
    *reg = i->dst;
    return ANE_OK;
}

/* x * scale[c] + shift[c]. */
static ane_status batch_norm(builder *b, const ane_op *op) {
    const ane_type *of = op->results[0]->type;
    size_t bytes = (size_t)of->dims[1] * sizeof(float);
    float *scale = ane_arena_alloc(b->pl->plan->arena, bytes);
    float *shift = ane_arena_alloc(b->pl->plan->arena, bytes);
    int r[3];
    if (!scale || !shift) return ane_fail(b->pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
    for (int64_t c = 0; c < of->dims[1]; c++) {
        double s, t;
        ane_batch_norm_of(op, c, &s, &t);
        scale[c] = (float)s;
        shift[c] = (float)t;
    }
    ane_status st = operand(b, ane_op_in(op, "x"), of, &r[0]);
    if (!st) st = along_channels(b, of, scale, &r[1]);
    if (!st) st = along_channels(b, of, shift, &r[2]);
    if (st) return st;
    const ane_vec *vec = ane_vec_get();
    ane_ins *i = emit(b, ane__do_v2, r[0], r[1], -1);
    i->v2 = vec->binary[ANE_VEC_MUL];
    i = emit(b, ane__do_v2, i->dst, r[2], -1);
    i->v2 = vec->binary[ANE_VEC_ADD];
    b->reg[op->results[0]->id] = i->dst + 1;
    return ANE_OK;
}

static ane_status lower(builder *b, const ane_op *op) {
    const char *name = op->row->name;
    const ane_vec *vec = ane_vec_get();
    const ane_type *of = op->results[0]->type;
    int r[3] = {-1, -1, -1};
    ane_ins *i = NULL;
    ane_status st = ANE_OK;
    if (!strcmp(name, "select")) {
        static const char *const args[] = {"cond", "a", "b"};
        for (int k = 0; k < 3 && !st; k++) st = operand(b, ane_op_in(op, args[k]), of, &r[k]);
        if (st) return st;
        i = emit(b, ane__do_select, r[0], r[1], r[2]);
        b->reg[op->results[0]->id] = i->dst + 1;
        return ANE_OK;
    }
    if (!strcmp(name, "batch_norm")) return batch_norm(b, op);
    const ane_value *x = ane_op_in(op, "x"), *y = ane_op_in(op, "y");
    if (!strcmp(name, "cast") || !strcmp(name, "identity")) {
        st = operand(b, x, of, &r[0]);
        return st ? st : cast(b, op, r[0]);
    }
    const ane_code *c = ane_code_of(name);
    ANE_ASSERT(c);
    bool ints = x->type->dtype == ANE_I32;
    ane_ins_fn *fn = ints ? c->g : c->f;
    ANE_ASSERT(fn);
    float s;
    if (y && fn == ane__do_v2 && scalar_of(b, y, &s)) {
        st = operand(b, x, of, &r[0]);
        if (st) return st;
        i = emit(b, ane__do_vs, r[0], -1, -1);
        i->vs = vec->scalar[c->vec];
        i->s = s;
    } else if (y && fn == ane__do_v2 && scalar_of(b, x, &s)) {
        st = operand(b, y, of, &r[0]);
        if (st) return st;
        i = emit(b, ane__do_vs, r[0], -1, -1);
        i->vs = vec->rscalar[c->vec];
        i->s = s;
    } else if (y && c->pow && scalar_of(b, y, &s) && cheap_power(s)) {
        st = operand(b, x, of, &r[0]);
        if (st) return st;
        i = emit(b, ane__do_v1, r[0], -1, -1);
        i->v1 = vec->unary[*cheap_power(s)];
    } else {
        st = operand(b, x, of, &r[0]);
        if (!st && y) st = operand(b, y, of, &r[1]);
        if (st) return st;
        double eps = ane_op_f64(op, "epsilon", 0);
        if (eps != 0 && (c->vec == ANE_VEC_RSQRT || c->vec == ANE_VEC_RECIP ||
                         c->vec == ANE_VEC_LOG)) {
            i = emit(b, ane__do_vs, r[0], -1, -1);
            i->vs = vec->scalar[ANE_VEC_ADD];
            i->s = (float)eps;
            r[0] = i->dst;
        }
        i = emit(b, fn, r[0], r[1], -1);
        if (fn == ane__do_v1) i->v1 = vec->unary[c->vec];
        if (fn == ane__do_v2) i->v2 = vec->binary[c->vec];
        i->libm = ane_target_rounds_away(b->pl->opts->target, op) ? roundf : c->libm;
        i->s = (float)ane_op_f64(op, "alpha", 0);
        i->t = (float)ane_op_f64(op, "beta", 0);
        i->k = (int32_t)ane_op_i64(op, "alpha", 0);
        if (!strcmp(name, "gelu")) {
            const char *mode = ane_op_str(op, "mode", "EXACT");
            if (!strcmp(mode, "TANH_APPROXIMATION")) i->v1 = vec->unary[ANE_VEC_GELU_TANH];
            if (!strcmp(mode, "SIGMOID_APPROXIMATION"))
                i->v1 = vec->unary[ANE_VEC_GELU_SIGMOID];
        }
    }
    b->reg[op->results[0]->id] = i->dst + 1;
    return ANE_OK;
}

/* Virtual to physical: a register is free after its last reader. Loads come where they are
 * first read, so few are live at once; values to be stored live to the end, since a store
 * may overwrite an input of the same view. */
static bool assign_registers(ane_expr *e, int n_virtual, ane_arena *arena) {
    int *last = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *last);
    int *phys = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *phys);
    bool *busy = ane_arena_alloc(arena, (size_t)n_virtual * sizeof *busy);
    int *in[ANE_OPERANDS];
    if (!last || !phys || !busy) return false;
    for (int i = 0; i < e->n_ins; i++) {
        for (int k = ane_ins_operands(&e->ins[i], in); k--;) last[*in[k]] = i;
        if (last[e->ins[i].dst] < i) last[e->ins[i].dst] = i;
    }
    for (int k = 0; k < e->n_stores; k++) last[e->store[k]] = e->n_ins;
    if (e->result >= 0) last[e->result] = e->n_ins;
    for (int i = 0; i < e->n_ins; i++) {
        ane_ins *s = &e->ins[i];
        int virt = s->dst, n = ane_ins_operands(s, in);
        /* The destination may be one of the operands that end here: exactly the same row. */
        for (int k = 0; k < n; k++) {
            bool ends = last[*in[k]] == i;
            *in[k] = phys[*in[k]];
            if (ends) busy[*in[k]] = false;
        }
        int p = 0;
        while (busy[p]) p++;
        busy[p] = last[virt] > i;
        phys[virt] = s->dst = p;
        if (p >= e->n_regs) e->n_regs = p + 1;
    }
    for (int k = 0; k < e->n_stores; k++) e->store[k] = phys[e->store[k]];
    if (e->result >= 0) e->result = phys[e->result];
    return true;
}

const char *ane_group_label(ane_planner *pl, const ane_graph *g, const ane_group *grp) {
    if (grp->n == 1) return g->ops[grp->ops[0]]->row->name;
    char text[128];
    size_t n = 0;
    for (int i = 0; i < grp->n && n < sizeof text - 24; i++) {
        const char *name = g->ops[grp->ops[i]]->row->name;
        size_t m = strlen(name);
        if (n + m + 2 >= sizeof text - 8) break;
        if (i) text[n++] = '+';
        memcpy(text + n, name, m);
        n += m;
    }
    const char *s = ane_arena_strndup(pl->plan->arena, text, n);
    return s ? s : "chain";
}

ane_status ane_expr_build(ane_planner *pl, const ane_graph *g, const ane_group *grp,
                          const ane_value *result, ane_expr **out) {
    ane_arena *arena = pl->plan->arena;
    builder b = {.pl = pl, .g = g, .grp = grp};
    int ops = grp->n;
    ane_expr *e = b.e = ane_arena_alloc(arena, sizeof *e);
    b.cap_ins = 6 * ops + 8;            /* select: three loads and itself; eps one more */
    b.cap_views = 4 * ops + 8;
    b.reg = ane_calloc(g->n_values, sizeof *b.reg);
    ane_status st = ANE_OK;
    if (!e || !b.reg) goto nomem;
    e->ins = ane_arena_alloc(arena, (size_t)b.cap_ins * sizeof *e->ins);
    e->views = ane_arena_alloc(arena, (size_t)b.cap_views * sizeof *e->views);
    e->store = ane_arena_alloc(arena, (size_t)(ops + 1) * sizeof *e->store);
    if (!e->ins || !e->views || !e->store) goto nomem;
    e->result = -1;
    b.space = result ? result->type : g->ops[grp->ops[grp->n - 1]]->results[0]->type;
    for (int d = 0; d < b.space->rank; d++)
        if (b.space->dims[d] != 1) e->shape[e->rank++] = b.space->dims[d];
    /* Outputs first: their places must not depend on what is loaded. */
    if (!result) {
        for (int i = 0; i < grp->n; i++) {
            const ane_value *v = g->ops[grp->ops[i]]->results[0];
            if (!ane_value_escapes(g, v, grp)) continue;
            ane_view *view = &e->views[e->n_views++];
            st = ane_plan_dest(pl, v, view);
            if (st) goto done;
            ane_view_drop_ones(view, v->type->dims, v->type->rank);
            e->n_stores++;
        }
    }
    for (int i = 0; i < grp->n && !st; i++)
        if (grp->ops[i] != grp->core) st = lower(&b, g->ops[grp->ops[i]]);
    if (!st && result) st = operand(&b, result, result->type, &e->result);
    if (st) goto done;
    int k = 0;
    for (int i = 0; i < grp->n && !result; i++) {
        const ane_value *v = g->ops[grp->ops[i]]->results[0];
        if (ane_value_escapes(g, v, grp)) e->store[k++] = b.reg[v->id] - 1;
    }
    for (int i = 0; i < e->n_ins; i++) e->flops += e->ins[i].fn != NULL;
    if (!result && ane_fusion_on(g, ANE_FUSE_steps) && !ane_expr_fuse_steps(e, b.n_virtual, arena))
        goto nomem;
    if (!assign_registers(e, b.n_virtual, arena)) goto nomem;
    *out = e;
    goto done;
nomem:
    st = ane_fail(pl->err, ANE_ERR_NOMEM, "[compile] out of memory");
done:
    ane_free(b.reg);
    return st;
}

void ane_expr_arrange(ane_expr *e, bool sort) {
    if (!e->n_views || !e->rank) return;
    int perm[ANE_MAX_RANK];
    for (int d = 0; d < e->rank; d++) {
        int64_t s = e->views[0].strides[d];
        int at = d;
        for (; sort && at > 0; at--) {
            int64_t t = e->views[0].strides[perm[at - 1]];
            if ((t < 0 ? -t : t) >= (s < 0 ? -s : s)) break;
            perm[at] = perm[at - 1];
        }
        perm[at] = d;
    }
    ane_view *all[256];
    for (int k = 0; k < e->n_views; k++) {
        ane_view_permute(&e->views[k], perm, &e->views[k]);
        all[k] = &e->views[k];
    }
    e->rank = ane_views_merge(e->n_views, all);
    for (int d = 0; d < e->rank; d++) e->shape[d] = e->views[0].shape[d];
}

/* ---------------------------------------------------------------- one tile */

/* Rows of a view whose columns step by cs and whose rows step by rs; one row when both
 * together are dense. */
static void load_tile(float *y, const char *p, ane_dtype dtype, int64_t rs, int64_t cs,
                      size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; r++, p += rs, y += cols) {
        if (cs) {
            ane_row_load(y, p, dtype, cs, cols);
            continue;
        }
        float x;
        ane_row_load(&x, p, dtype, 0, 1);
        for (size_t c = 0; c < cols; c++) memcpy(&y[c], &x, sizeof x);
    }
}

/* How a view lies in a tile. */
typedef struct lie {
    int64_t rs, cs, unit;               /* bytes between rows, columns, elements */
    bool dense;                         /* one row of rows * cols */
} lie;

static lie lie_of(const ane_tile *t, const ane_view *v) {
    lie l = {.unit = (int64_t)ane_dtype_size(v->dtype)};
    l.rs = t->row_dim < 0 ? 0 : v->strides[t->row_dim];
    l.cs = t->col_dim < 0 ? l.unit : v->strides[t->col_dim];
    l.dense = (l.cs == l.unit || t->cols == 1) &&
              (t->rows == 1 || l.rs == (int64_t)t->cols * l.unit);
    return l;
}

const float *ane_expr_run(const ane_tile *t) {
    const ane_expr *e = t->e;
    size_t n = t->rows * t->cols;
    const float *reg[128];
    unsigned char type[128];            /* dtype that the register is kept in */
    int stored = -1;
    ANE_ASSERT(e->n_regs <= 128);
    for (int k = 0; k < e->n_ins; k++) {
        const ane_ins *i = &e->ins[k];
        float *own = t->regs + (size_t)i->dst * t->cap;
        if (i->run) {
            int store = k + 1 == e->n_ins ? ane_run_store(i) : -1;
            if (store >= 0 && lie_of(t, &e->views[store]).dense) {
                ane_run_steps(i, t->at[store], e->views[store].dtype, t->stream, reg, type, n);
                stored = store;
                break;
            }
            ane_run_steps(i, own, ANE_F32, false, reg, type, n);
            reg[i->dst] = own;
            type[i->dst] = ANE_F32;
            continue;
        }
        if (i->fn) {
            i->fn(i, own, i->a < 0 ? NULL : reg[i->a], i->b < 0 ? NULL : reg[i->b],
                  i->c < 0 ? NULL : reg[i->c], n);
            reg[i->dst] = own;
            type[i->dst] = ANE_F32;
            continue;
        }
        const ane_view *v = &e->views[i->load];
        const char *p = t->at[i->load];
        lie l = lie_of(t, v);
        bool whole = v->dtype == ANE_F32 || v->dtype == ANE_I32;
        type[i->dst] = ANE_F32;
        if (l.dense && ((whole && !((uintptr_t)p & (sizeof(float) - 1))) ||
                        (i->lazy && ane_dtype_is_float(v->dtype)))) {
            reg[i->dst] = (const float *)(const void *)p;       /* no copy */
            if (i->lazy) type[i->dst] = (unsigned char)v->dtype;
        } else {
            if (l.dense) ane_row_load(own, p, v->dtype, l.unit, n);
            else load_tile(own, p, v->dtype, l.rs, l.cs, t->rows, t->cols);
            reg[i->dst] = own;
        }
    }
    for (int k = 0; k < e->n_stores; k++) {
        if (k == stored) continue;
        const ane_view *v = &e->views[k];
        char *p = t->at[k];
        const float *x = reg[e->store[k]];
        lie l = lie_of(t, v);
        if (l.dense) {
            ane_row_store(p, v->dtype, l.unit, x, n);
            continue;
        }
        for (size_t r = 0; r < t->rows; r++, p += l.rs, x += t->cols)
            ane_row_store(p, v->dtype, l.cs, x, t->cols);
    }
    return e->result < 0 ? NULL : reg[e->result];
}
